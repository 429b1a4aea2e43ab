from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import digits
from ddim_jax import command_line, experiment, names, recipe, schedules, strides
from ddim_jax.editing import restoration
from tests.errors import rejects
from tests.tiny import tiny

COSINE = schedules.cosine()


def scaled(x, *, scale=1.0, offset=0):
    return x * scale + offset


KNOWN = {"scaled": scaled, "negated": lambda x: -x}


def test_lookup():
    assert names.lookup(KNOWN, "scaled", "map") is scaled
    with rejects(
        ValueError, "unknown map 'scale'", "did you mean 'scaled'?", "one of scaled, negated"
    ):
        names.lookup(KNOWN, "scale", "map")
    with rejects(ValueError, "unknown map 7;", "one of"):
        names.lookup(KNOWN, 7, "map")


def test_check_options():
    names.check_options(scaled, {"scale": 2}, "map")
    names.check_options(lambda **options: options, {"anything": 1}, "map")
    with rejects(
        ValueError,
        "map 'scaled' has no option 'scales' (did you mean 'scale'?)",
        "x, scale, offset",
    ):
        names.check_options(scaled, {"scales": 2}, "map 'scaled'")
    with rejects(ValueError, "map has no option 'y'; it has none"):
        names.check_options(lambda: 0, {"y": 1}, "map")


def test_options_of_a_flax_module_leave_out_what_flax_adds():
    class Net(nn.Module):
        width: int = 1

    names.check_options(Net, {"width": 2}, "model")
    for added in ("name", "parent"):
        with rejects(ValueError, f"no option {added!r}; it has width"):
            names.check_options(Net, {added: None}, "model")
    # a function may have an option of that name, as make_optimizer has
    names.check_options(lambda name="adam": name, {"name": "adam"}, "optimizer")


def test_make():
    section = {"name": "scaled", "scale": 3}
    assert names.make(KNOWN, section, "map", 2) == 6
    assert section == {"name": "scaled", "scale": 3}
    with rejects(ValueError, "unknown map 'other'"):
        names.make(KNOWN, {"name": "other"}, "map", 2)
    with rejects(ValueError, "map has no option 'base'"):
        names.make(KNOWN, {"name": "scaled", "base": 3}, "map", 2)
    with rejects(ValueError, "map needs a name, one of scaled, negated", "{'scale': 3}"):
        names.make(KNOWN, {"scale": 3}, "map", 2)


@pytest.mark.parametrize(
    "text, options",
    [
        ("", {}),
        ([], {}),
        ("eta=0.2", {"eta": 0.2}),
        ("order=3,lower_order_final=False", {"order": 3, "lower_order_final": False}),
        (["order=3", "space=lam"], {"order": 3, "space": "lam"}),
        ("a = 1, b = x", {"a": 1, "b": "x"}),
        ("span=(0.2,5),rest=[1,[2,3]]", {"span": (0.2, 5), "rest": [1, [2, 3]]}),
        (["span=(0.2", "5)", "b=None"], {"span": (0.2, 5), "b": None}),  # as absl splits a list
        (["a=x,y"], {"a": "x,y"}),
        ("url=a=b", {"url": "a=b"}),
        ("end=inf,path=runs/a.json,minus=-4", {"end": np.inf, "path": "runs/a.json", "minus": -4}),
        ("empty=", {"empty": ""}),
    ],
)
def test_parse_options(text, options):
    assert names.parse_options(text, "--options") == options


@pytest.mark.parametrize("text, part", [("eta", "eta"), ("a=1,0.2", "0.2"), ("=1", "=1")])
def test_parse_options_says_what_they_are_like(text, part):
    with rejects(ValueError, f"--solver_options must be like name=value,name=value, got {part!r}"):
        names.parse_options(text, "--solver_options")


def test_an_open_bracket_is_text():
    assert names.parse_options("a=(1,b=2", "--options") == {"a": "(1,b=2"}


@pytest.mark.parametrize(
    "within, good, bad, rule",
    [
        ("[0, 1)", [0, 0.5], [-0.1, 1, 1.0], "in [0, 1)"),
        ("(0, 1]", [0.5, 1], [0, 2], "in (0, 1]"),
        ("(0, inf)", [1e-30, 5], [0, -1], "positive"),
        ("[0, inf)", [0, 7], [-1], "at least 0"),
        ("[2, inf)", [2], [1], "at least 2"),
        ("(1, inf)", [2], [1, 0.5], "above 1"),
        ("(-inf, inf)", [-5, 0, np.float32(2)], [], "finite"),
    ],
)
def test_numbers_in_a_range(within, good, bad, rule):
    for value in good:
        names.check_range("x", value, within)
    for value in bad:
        with rejects(ValueError, f"x must be {rule}, got {value!r}; 3 is usual"):
            names.check_range("x", value, within, "3 is usual")
    for value in (np.nan, np.inf, -np.inf):
        with rejects(ValueError, "x must be ", f"got {value!r}"):
            names.check_range("x", value, within)
    for value in ("1", None, True, [1], 1j):
        with rejects(ValueError, "x must be a number, got "):
            names.check_range("x", value, within)


def test_whole_numbers():
    for value in (1, np.int64(3), 10**400, 2.0, np.float32(2)):
        taken = names.check_range("x", value, "[1, inf)", whole=True)
        assert taken == value and isinstance(taken, int)
    for value in (2.5, "2", False, np.nan, np.inf):
        with rejects(ValueError, "x must be a whole number, got "):
            names.check_range("x", value, "[1, inf)", whole=True)


def limited(scale: float = 1.0, count: int | None = None, exact: bool = True, name: str = ""):
    return scale


@pytest.mark.parametrize(
    "option, value, wanted",
    [
        ("scale", float("nan"), "a number, got nan"),
        ("scale", "x", "a number, got 'x'"),
        ("scale", True, "a number, got True"),
        ("scale", None, "a number, got None"),
        ("count", 1.5, "a whole number or None, got 1.5"),
        ("count", "1", "a whole number or None, got '1'"),
        ("exact", 1, "True or False, got 1"),
        ("name", 1, "a text, got 1"),
    ],
)
def test_values_have_the_type_of_their_parameter(option, value, wanted):
    with rejects(ValueError, f"{option} of map must be {wanted}"):
        names.check_options(limited, {option: value}, "map")


def test_scalars_of_arrays_are_numbers():
    names.check_options(limited, {"scale": np.array(2.0), "exact": np.True_}, "map")
    names.check_range("x", np.array(2), "[1, 3]", whole=True)


def test_values_that_fit_their_parameter():
    for value in (1, 1.0, np.float32(2), np.int64(3), float("inf")):
        names.check_options(limited, {"scale": value}, "map")
    for value in (1, 2.0, None, np.int64(3)):
        taken = names.check_options(limited, {"count": value}, "map")["count"]
        assert taken == value and not isinstance(taken, float)
    assert names.check_options(limited, {"scale": 2.0}, "map")["scale"].hex()  # still a float
    names.check_options(limited, {"exact": False, "name": "a"}, "map")


def test_infinity_and_nan_are_read_as_numbers():
    assert names.parse_value("nan") != names.parse_value("nan") and names.parse_value("inf") > 1


@pytest.mark.parametrize("text, number", [("7", 7), ("2.0", 2), ("1e3", 1000), ("007", 7)])
def test_whole_numbers_of_a_command_line(text, number):
    assert names.whole_number(text) == number
    parser = command_line.Parser()
    parser.add_argument("--num", type=int)
    assert parser.parse_args([f"--num={text}"]).num == number


@pytest.mark.parametrize("text", ["2.5", "", "two", "nan", "inf", "True", "None", "[1]"])
def test_what_is_no_whole_number(text, capsys):
    parser = command_line.Parser()
    parser.add_argument("--num", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--num={text}"])
    assert "--num: must be a whole number, got" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--nmu=3"], "there is no --nmu=3 (did you mean 'num'?)"),
        (["--kind=c"], "--kind must be one of 'a', 'b', got 'c'"),
        (["--num"], "--num: expected one argument"),
    ],
)
def test_a_wrong_flag_ends_in_one_line(flags, said, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ddim_jax/serve/__main__.py"])
    parser = command_line.Parser()
    parser.add_argument("--num", type=int)
    parser.add_argument("--kind", choices=("a", "b"))
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(flags)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"serve: {said}; serve --help lists the flags\n"


def test_a_file_of_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = command_line.Parser()
    parser.add_argument("--out")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("images", nargs="*")
    found = parser.parse_args(["--out=~/a.png", "--folder=~/b", "~/c.png", "npz:d~/e"])
    assert found.out == "/home/me/a.png" and found.folder == Path("/home/me/b")
    assert found.images == ["/home/me/c.png", "npz:d~/e"]


WHOLE = [
    lambda n: recipe.Recipe(steps=n).table(COSINE),
    lambda n: recipe.Recipe().replace(steps=n).table(COSINE),
    lambda n: recipe.Recipe("lms", solver_options={"order": n}).table(COSINE),
    lambda n: schedules.ddpm_linear(n).level(np.array([0.25, 0.5])),
    *(lambda n, s=s: s(COSINE, n, lam_min=-4.0) for s in strides.STRIDES.values()),
    lambda n: strides.uniform(schedules.ddpm_linear(), 2, among=n),
    lambda n: restoration.repaint(COSINE, strides.uniform(COSINE, 8), n, n),
]


@pytest.mark.parametrize("make", WHOLE)
def test_two_is_two_however_it_is_written(make):
    jax.tree.map(np.testing.assert_array_equal, make(4.0), make(4))
    for wrong in (2.5, "4", np.nan, True):
        with pytest.raises(ValueError, match="must be"):
            make(wrong)


def test_a_config_may_write_its_counts_as_floats():
    config = tiny(digits.get_config())
    with config.unlocked(), config.ignore_type():
        config.train.update(steps=2.0, batch_size=4.0, log_every=1e0, keep=2.0)
        config.update(seed=0.0)
        config.model.update(channels=8.0, num_blocks=1.0)
        config.data.update(resize=8.0, image_shape=(8.0, 8, 1.0))
        config.sample.update(steps=2.0, num_samples=2.0)
        config.optimizer.warmup_steps = 1.0
    built = experiment.build(config)
    assert repr(built.config.train.to_dict()) == repr(tiny(digits.get_config()).train.to_dict())
    assert built.config.data.image_shape == (8, 8, 1) and built.config.sample.num_samples == 2
    assert built.network.channels == 8 and type(built.network.channels) is int
