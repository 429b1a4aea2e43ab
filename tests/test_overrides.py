"""Fields set on the command line: which there are, what they may be, what is said if not."""

import importlib

import pytest

from ddim_jax.commands import configs
from ddim_jax.training import fields
from tests.errors import rejects


def get(name="digits"):
    return importlib.import_module(f"configs.{name}").get_config()


def at(config, path):
    for name in path.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize(
    "path, text, value",
    [
        ("train.steps", "500", 500),
        ("train.steps", "1e3", 1000),
        ("model.dropout", "0.1", 0.1),  # not in the file, but a field of the network
        ("model.head_channels", "8", 8),
        ("model.channel_mults", "(1, 2, 4)", (1, 2, 4)),
        ("model.channel_mults", "2", (2,)),
        ("model.scalars", "('guidance',)", ("guidance",)),
        ("model.num_classes", "None", None),
        ("model.num_classes", "3", 3),
        ("data.name", "folder:photos", "folder:photos"),
        ("data.split", "train[:10]", "train[:10]"),
        ("data.resize", "(32, 48)", (32, 48)),
        ("data.resize", "32", 32),
        ("data.class_names", "('dog', 'cat')", ("dog", "cat")),
        ("data.flip", None, True),
        ("data.skip_unreadable", "true", True),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.decay", "linear", "linear"),
        ("optimizer.decay_steps", "None", None),
        ("sample.solver", "unipc_2", "unipc_2"),
        ("sample.guidance_scale", "2", 2.0),
        ("loss.label_dropout", "0", 0.0),
        ("schedule.log_snr_min", "-15", -15.0),
    ],
)
def test_any_field_can_be_set(path, text, value):
    config = get()
    fields.override(config, path, text)
    assert at(config, path) == value and type(at(config, path)) is type(value)


def test_a_stage_is_set_with_what_it_names():
    config = get("distill_digits")
    fields.override(config, "stages[3].train.steps", "5000")
    fields.override(config, "stages[3].loss.label_dropout", "0.1")
    fields.override(config, "stages[3].ema.decay", "0.5")
    fields.override(config, "stages[3].model.dropout", "0.2")
    stage = config.stages[3]
    assert stage["train"]["steps"] == 5000 and stage["ema"] == {"decay": 0.5}
    assert stage["loss"]["label_dropout"] == 0.1 and stage["model"] == {"dropout": 0.2}
    assert config.train.steps == 600 and config.stages[2]["train"]["steps"] == 1000


def test_names_come_before_their_options(tmp_path):
    overrides = [("loss.weighting.gamma", "3"), ("loss.weighting.name", "min_snr")]
    config = configs.load("digits", overrides)
    assert config.loss.weighting.to_dict() == {"name": "min_snr", "gamma": 3.0}


@pytest.mark.parametrize(
    "path, text, parts",
    [
        ("train.stepz", "5", ["config.train has no field 'stepz' (did you mean 'steps'?)", "keep"]),
        ("no.such.field", "1", ["config has no field 'no'", "train"]),
        ("train.steps.more", "1", ["config.train.steps is no section"]),
        ("stages[9].train.steps", "1", ["config.stages has no entry [9]", "none"]),
        ("train[0].steps", "1", ["config.train is no list"]),
        ("model.width", "1", ["config.model has no field 'width'", "channels"]),
        ("loss.weighting.gamma", "1", ["config.loss.weighting has no field 'gamma'"]),
        ("loss", "1", ["config.loss is a section", "label_dropout"]),
        ("train.steps", "many", ["config.train.steps must be a whole number, got 'many'"]),
        ("train.steps", "2.5", ["config.train.steps must be a whole number, got '2.5'"]),
        ("train.steps", "", ["config.train.steps must be a whole number, got ''"]),
        ("train.steps", "None", ["config.train.steps must be a whole number, got 'None'"]),
        ("train.steps", None, ["config.train.steps must be a whole number"]),
        ("model.dropout", "much", ["config.model.dropout must be a number, got 'much'"]),
        ("data.flip", "maybe", ["config.data.flip must be True or False, got 'maybe'"]),
        ("", "1", ["must be like --config.train.steps=500"]),
        ("train..steps", "1", ["must be like --config.train.steps=500"]),
    ],
)
def test_what_cannot_be_set_is_said(path, text, parts):
    config = get()
    with rejects(ValueError, *parts):
        fields.override(config, path, text)
    assert config.to_json() == get().to_json()


def test_a_stage_that_is_not_there():
    with rejects(ValueError, "config.stages has no entry [9]", "0 to 5"):
        fields.override(get("distill_digits"), "stages[9].train.steps", "1")


def test_overrides_are_taken_out_of_the_arguments():
    given = ["train.py", "--config.train.steps=5", "--workdir=w", "--config", "digits"]
    rest, overrides = configs.split([*given, "--config.data.flip", "--config.seed", "3"])
    assert rest == ["train.py", "--workdir=w", "--config", "digits"]
    assert overrides == [("train.steps", "5"), ("data.flip", None), ("seed", "3")]
    given = ["--noconfig.data.flip", "--config.loss.mean", "-1.5", "--config.data.pad", "--plan=x"]
    rest, overrides = configs.split(given)
    assert rest == ["--plan=x"]
    assert overrides == [("data.flip", "False"), ("loss.mean", "-1.5"), ("data.pad", None)]


def test_configs_that_cannot_be_loaded(tmp_path):
    with rejects(FileNotFoundError, "no config 'digit' (did you mean 'digits'?)"):
        configs.load("digit")
    with rejects(FileNotFoundError, "no config ''"):
        configs.load("")
    for text, parts in {
        "def get_config(:": ["SyntaxError"],
        "import nothing_of_this_name": ["ModuleNotFoundError", "nothing_of_this_name"],
        "x = 1": ["AttributeError", "get_config"],
        "def get_config():\n    return 1 / 0": ["ZeroDivisionError", "line 2"],
    }.items():
        (tmp_path / "mine.py").write_text(text)
        with rejects(ValueError, "mine.py", "cannot be used as a config", *parts):
            configs.load(str(tmp_path / "mine.py"))
