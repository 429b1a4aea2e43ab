"""Every config, shrunk, trains; at full size it has the published shapes; errors are clear."""

import functools
import importlib
import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from flax.traverse_util import flatten_dict

from ddim_jax import checkpoints, experiment, parallel
from ddim_jax.commands import configs, train
from ddim_jax.data.images import save_png
from ddim_jax.recipe import Recipe
from ddim_jax.training import loop, method, resume, stages, teacher
from ddim_jax.training.sample_grid import SampleGrid
from tests import published_pipelines as published
from tests.errors import rejects
from tests.selection import slow_but
from tests.tiny import tiny, without_lpips

ROOT = Path(__file__).parent.parent
WITHOUT_NETWORK = {"sd_lora", "sd_lcm_lora", "sd_dmd2", "imagenet256_dmd2"}
"""Configs whose network is that of `start_from`, which a user gives."""
NAMES = sorted({file.stem for file in (ROOT / "configs").glob("*.py")} - WITHOUT_NETWORK)


def get(name="digits"):
    return importlib.import_module(f"configs.{name}").get_config()


TWO_LEVELS = ("imagenet64", "mnist")
"""One config for each way of resampling; a second level doubles what is compiled."""


def made_by(start_from, tiny=lambda config: config):
    """The config of a run, "runs/NAME", or of one stage of it, "runs/NAME/STAGE"."""
    _, name, *stage = Path(start_from).parts
    config = tiny(get(name))
    if not stage:
        return config
    return {folder.name: part for folder, part in stages.split(config, Path("runs"))}[stage[0]]


def started(config, start):
    """The config with what `start` trained for it: its network, its autoencoder."""
    config.start_from = start(config.start_from)
    if config.get("codec"):
        config.codec.start_from = start(config.codec.start_from)
    return config


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """What a config starts from, "digits" or the "runs/NAME" of another, as a tiny network."""
    trained = {"": ""}

    def train(start_from):
        if start_from not in trained:
            workdir = tmp_path_factory.mktemp("start")
            _, name, *stage = Path(f"runs/{start_from.removeprefix('runs/')}").parts
            stages.train(started(tiny(get(name), levels=1), train), workdir)
            trained[start_from] = str(workdir.joinpath(*stage))
        return trained[start_from]

    return train


TRACED = (
    "digits", "digits_dmd", "digits_vae", "imagenet256_dit", "moving_digits", "video256_dit",
)  # fmt: skip
"""One of each network; tests of losses and of stages trace or train the rest."""
LARGE = (
    "imagenet64", "lsun", "cifar10_", "ucf101", "celeba64", "distill_clips", "moving_digits_cd",
    "digits_reflow",
)  # fmt: skip
"""Beginnings of the names of configs that take a second or more to be traced at full size."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_config_trains_two_steps_saves_and_draws(name, tmp_path, start):
    config = started(tiny(get(name), levels=2 if name in TWO_LEVELS else 1), start)
    state = stages.train(config, tmp_path)
    assert int(state.step) == 2
    if config.get("stages"):
        tmp_path = tmp_path / config.stages[-1]["name"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["grad_norm"] > 0  # where a student still is its teacher, sCD's first is zero
    assert (tmp_path / "checkpoints" / "2").is_dir()
    assert (tmp_path / "samples" / "step_0000002.png").stat().st_size > 100


@pytest.mark.parametrize("name", slow_but(NAMES, TRACED))
def test_the_train_step_of_a_config_can_be_traced(name, tmp_path):
    """Of every stage; nothing is compiled."""
    config = tiny(get(name), levels=1)
    chain = (
        [part for _, part in stages.split(config, tmp_path)] if config.get("stages") else [config]
    )
    name = config.start_from and f"runs/{config.start_from.removeprefix('runs/')}"
    before = made_by(name, lambda config: tiny(config, levels=1)) if name else None
    start, mesh = before and experiment.build(before), parallel.make_mesh()
    start = start and start.replace(params=jax.eval_shape(start.init, jax.random.key(0)))
    for part in chain:
        model = experiment.build(part)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        built = method.build(part, start, mesh)
        state = loop.abstract_state(part, built, start, mesh)
        kind = np.float32 if part.get("codec") else np.uint8
        batch = {"image": jax.ShapeDtypeStruct((4, *model.sample_shape), kind)}
        batch |= {
            name: jax.ShapeDtypeStruct((4, *put.shape), put.dtype)
            for name, put in model.inputs.declared.items()
        }
        after, metrics = jax.eval_shape(built.step, state, batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        assert metrics["loss"].shape == ()
        start = model.replace(params=shapes)


@pytest.mark.slow
def test_a_config_without_a_network_takes_that_of_what_it_starts_from(tmp_path):
    folder = published.write(tmp_path / "folder", "sd")
    for i in range(3):
        save_png(tmp_path / "photos" / f"{i}.png", np.full((16, 16, 3), 80 * i, np.uint8))
        (tmp_path / "photos" / f"{i}.txt").write_text("a photo of my dog")
    changes = {"start_from": str(folder), "data.name": f"folder:{tmp_path / 'photos'}"}
    changes |= {"data.resize": "16", "train.steps": "2", "train.log_every": "1"}
    changes |= {"train.sample_every": "0", "train.batch_size": "2", "train.lora.rank": "2"}
    config = configs.load("sd_lora", list(changes.items()))
    loop.train(config, tmp_path / "run")
    before, after = checkpoints.load(folder), checkpoints.load(tmp_path / "run")
    assert after.recipe == before.recipe and after.network == before.network
    assert after.inputs.encode.tokenizers[0](["my dog"])[0, 1] > 0
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.params, after.params)
    paths = {path for path, moved in flatten_dict(changed, sep="/").items() if moved}
    assert paths and all("attention" in path for path in paths)
    with rejects(ValueError, "the config has no section model", "start_from names a network"):
        loop.train(configs.load("sd_lora"), tmp_path / "none")


PUBLISHED = {
    "cifar10": 35_746_307,  # Ho et al. 2020: 35.7M
    "lsun_bedroom256": 113_673_219,  # Ho et al. 2020: 114M
    "imagenet64": 295_899_267 + 768,  # Dhariwal & Nichol 2021: 296M; and our null label
    "imagenet256_dit": 674_834_720,  # Peebles & Xie 2022: 675M, and so Ma et al. 2024
    "imagenet256_sit": 674_834_720,
    "imagenet256_mean_flow": 131_165_248,  # Geng et al. 2025: B/4 131M, XL/2 676M
    "imagenet256_mean_flow:xl_2": 676_440_592,
    "imagenet256_shortcut": 676_440_592,
    "imagenet256_vae": 83_653_863,  # Rombach et al. 2022: Stable Diffusion's
}
"""Parameters of networks that are published; of other configs nothing is known to compare with."""


def test_published_sizes_are_of_configs():
    """A number of no config would be compared with nothing."""
    assert {name for name in PUBLISHED if ":" not in name} <= set(NAMES)


def count(shapes):
    """How many numbers a tree holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def test_help_says_what_a_config_trains(tmp_path, capsys):
    with flagsaver.flagsaver():
        train.main(["--config=emoji:unet", "--config.train.steps=3", "-h"])
        named = capsys.readouterr().out
    assert "--workdir: where to" in named and "emoji:unet: Emoji drawn from a name" in named
    with flagsaver.flagsaver():
        with pytest.raises(SystemExit, match="no config 'emojo'.*did you mean 'emoji'"):
            train.main(["--help", "--config=emojo"])
    damaged = tmp_path / "damaged.py"
    damaged.write_text("def")
    with pytest.raises(ValueError, match="damaged.py cannot be used as a config: invalid syntax"):
        configs.about(str(damaged))


def test_the_size_of_a_network_is_an_argument():
    name = "imagenet256_mean_flow:xl_2"
    config = configs.load(name, [("train.steps", "7")])
    shapes = jax.eval_shape(experiment.build(config).init, jax.random.key(0))
    assert count(shapes) == PUBLISHED[name]
    assert (config.loss.omega, config.train.steps) == (0.2, 7)
    with pytest.raises(ValueError, match="unknown size 'xl2' .did you mean 'xl_2'"):
        configs.load("imagenet256_dit:xl2")


@pytest.mark.parametrize("name", slow_but(NAMES, lambda name: not name.startswith(LARGE)))
def test_a_config_builds_at_full_size(name, monkeypatch):
    """With as many parameters as are published, where some are."""
    load = teacher.load

    def load_or_build(config, workdir=None):  # of a run that another config makes
        of_a_run = config.start_from.startswith("runs/")
        return experiment.build(made_by(config.start_from)) if of_a_run else load(config, workdir)

    monkeypatch.setattr(teacher, "load", load_or_build)
    config = without_lpips(get(name))
    parts = experiment.build(config)
    shapes = jax.eval_shape(parts.init, jax.random.key(0))
    if name in PUBLISHED:
        assert count(shapes) == PUBLISHED[name]
    if config.get("stages"):
        stages.check(stages.split(config, Path("runs") / name))
    else:
        assert method.build_loss(config, parts, teacher.load(config))
    if not config.optimizer.get("parts"):
        assert jax.eval_shape(method.build_optimizer(config).init, shapes)
    assert method.build_ema(config)
    SampleGrid.check(parts)
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert f"train.py --config={name}" in doc or name == "digits"
    assert "python train.py" in doc


def parts_of(config):
    """The model of a config, or those of its stages."""
    stage_configs = stages.split(config, Path("runs")) if config.get("stages") else [("", config)]
    return [experiment.build(part) for _, part in stage_configs]


@functools.cache
def consistency_models():
    """Of every config."""
    models = [model for name in NAMES for model in parts_of(get(name))]
    return [model for model in models if model.recipe.solver == "consistency"]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_consistency_model_is_never_asked_where_it_is_the_identity(steps):
    """There, and next to it, the weight of the network's output in x0 is next to nothing."""
    assert len(consistency_models()) == 14
    for model in consistency_models():

        def weight(level, model=model):
            row = model.parameterization(level)
            det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
            return np.abs(level.sigma * row.output_scale / det)

        table = model.recipe.replace(steps=steps).table(model.schedule)
        assert table.nfe == steps and np.all(weight(table.level) > 0.01)
        assert weight(model.schedule.level(model.schedule.t_min)) < 0.01


def change(path, value):
    """The shrunk digits config with one field changed."""
    config = tiny(get())
    with config.unlocked(), config.ignore_type():
        *sections, field = path.split(".")
        target = config
        for section in sections:
            target = target[section]
        target[field] = value
    return config


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("schedule.name", "cosin", "unknown schedule 'cosin' .did you mean 'cosine'.*ddpm_linear"),
        ("schedule.log_snr_mim", -9, "schedule has no option 'log_snr_mim' .did you mean"),
        (
            "prediction.name",
            "epsilon",
            "unknown prediction 'epsilon'.*eps, x0, v, flow, data_flow, edm",
        ),
        ("loss.name", "diffusio", "unknown loss 'diffusio' .did you mean 'diffusion'"),
        ("loss.weighting.name", "snr", "unknown weighting 'snr'.*truncated_snr"),
        ("loss.times.name", "normal", "unknown times 'normal'.*uniform, log_normal"),
        ("loss.weighting.gamma", 5.0, "weighting 'simple' has no options, got 'gamma'"),
        ("loss.label_drop", 0.1, "loss has no option 'label_drop'"),
        ("model.chanels", 8, "model has no option 'chanels' .did you mean 'channels'"),
        ("model.dtype", "float16", "dtype must be one of .*got 'float16'"),
        ("model.channel_mults", (1, 1, 1, 1, 1), "height and width must be divisible by 16"),
        ("model.out_channels", 3, "returns 3 channels, the images have 1; set .*out_channels=1"),
        ("optimizer.name", "adm", "optimizer must be one of adam, adamw, radam, muon, got 'adm'"),
        ("optimizer.lr", 1.0, "optimizer has no option 'lr'.*learning_rate"),
        ("ema.name", "none", "unknown ema 'none'; it is one of constant, power"),
        ("sample.solver", "dpm", "unknown solver 'dpm' .did you mean 'ddpm'.*it is one of ddim"),
        ("sample.stride", "quadratc", "unknown stride 'quadratc' .did you mean 'quadratic'"),
        ("sample.steps", 0, "steps must be in .1, 10000., got 0"),
        (
            "sample.clip",
            "statik",
            "unknown clip 'statik' .did you mean 'static'.*static, static_x0, dynamic",
        ),
        ("sample.guidance_scale", 2.0, "config.sample.guidance_scale=2.0 needs a class-condit"),
        ("sample.num_samples", 0, "config.sample.num_samples must be in .1, 100000., got 0"),
        ("data.name", "digit", "digits"),
        ("data.image_shape", (10, 10, 1), "holds images of shape .8, 8, 1.*the config says"),
        ("model.null_label", False, "label_dropout=0.1 needs a null label to drop to; set"),
        ("model.num_classes", 3, "has 10 classes, the network 3; set config.model.num_classes=10"),
        ("train.batch_size", 3, "divisible by the 2 devices, got 3; use 4"),
        ("train.steps", 0, "config.train.steps must be at least 1, got 0"),
        ("train.sample_every", -1, "config.train.sample_every must be at least 0, got -1"),
        ("seed", -1, "config.seed must be a whole number in 0..2.32 - 1, got -1"),
        ("seed", 2**32, "config.seed must be a whole number in 0..2.32 - 1, got 4294967296"),
        ("train.stepz", 5, "config.train has no option 'stepz' .did you mean 'steps'"),
        ("data.resise", 5, "config.data has no option 'resise' .did you mean 'resize'"),
        ("sample.stepz", 5, "config.sample has no option 'stepz' .did you mean 'steps'"),
        ("train.steps", 2.5, "config.train.steps must be a whole number, got 2.5"),
        ("train.batch_size", float("nan"), "config.train.batch_size must be a whole number, got n"),
        ("train.keep", "2", "config.train.keep must be a whole number, got '2'"),
        ("data.flip", "yes", "config.data.flip must be True or False, got 'yes'"),
        ("data.name", 5, "config.data.name must be text, got 5"),
        ("data.image_shape", (8, 8), "config.data.image_shape must be .height, width, channels"),
        ("data.image_shape", (8, -8, 1), "config.data.image_shape must be in .*, got -8"),
        ("model.num_classes", -1, "config.model.num_classes must be in .0, 65536., got -1"),
        ("model.num_heads", 0, "config.model.num_heads must be in .1, 65536., got 0"),
        ("model.patch_size", 0, "config.model.patch_size must be in .1, 65536., got 0"),
        ("model.channel_mults", (), "channel_mults must have an entry for each level"),
        ("model.dropout", float("nan"), "dropout.* must be .*, got nan"),
        ("optimizer.learning_rate", float("nan"), "learning_rate.* must be .*, got nan"),
        ("optimizer.learning_rate", float("inf"), "learning_rate must be finite and positive, got"),
        ("optimizer.clip_norm", -1.0, "clip_norm must be at least 0, got -1.0"),
        ("optimizer.decay_steps", 1, "train.steps is 2, but the learning rate is 0 from step 1"),
        ("ema.relative_std", float("nan"), "relative_std.* must be .*, got nan"),
        ("loss.label_dropout", "0.1", "label_dropout.* must be a number, got '0.1'"),
        ("loss.label_dropout", 1.5, r"label_dropout must be in \[0, 1\], got 1.5"),
        ("optimizer.learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
        ("parallel", "pjit", "parallel must be one of jit, fsdp, pmap, got 'pjit'"),
    ],
)
def test_a_wrong_config_is_refused_before_any_work(path, value, message, tmp_path):
    config = change(path, value)
    if path == "sample.guidance_scale":
        config.model.num_classes = 0
    with pytest.raises(ValueError, match=message):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_section_sample_may_be_short():
    """As where a config writes it anew: a recipe has defaults, and so has the grid."""
    config = change("sample.steps", 4)
    config.sample = dict(steps=4)
    SampleGrid.check(experiment.build(config))


def test_a_refused_model_does_not_lock_the_workdir(tmp_path):
    """The corrected command must run in the directory that the wrong one named."""
    with pytest.raises(ValueError, match="remat must be one of"):
        loop.train(change("model.remat", "all"), tmp_path / "run")
    resume.save_config(tmp_path / "run", tiny(get()))


def test_eps_prediction_needs_a_schedule_with_signal():
    config = get()
    config.prediction.name = "eps"
    config.schedule = dict(name="rectified_flow")
    with pytest.raises(ValueError, match="'eps' says nothing about x0 where alpha = 0"):
        experiment.build(config)


def test_tables_by_name_clip_the_stride_to_the_solvers_limit():
    schedule = experiment.build(get()).schedule
    table = Recipe("heun", "uniform", 4).table(schedule)
    np.testing.assert_allclose(schedule.half_log_snr(table.level.t[0]), -5.1)
    free = Recipe("heun_angle", "uniform", 4).table(schedule)
    assert free.level.t[0] == 1
    with pytest.raises(ValueError, match="spacing=.leading. needs a discrete schedule"):
        Recipe("ddim", "karras", 4, stride_options={"spacing": "leading"}).table(schedule)
    with pytest.raises(ValueError, match="solver 'ddim' has no option 'etaa' .did you mean 'eta'"):
        Recipe("ddim", "uniform", 4, {"etaa": 1.0}).table(schedule)


def test_settings_of_the_papers():
    """Where a config departs from the one it starts from; Ho et al. 2020, appendix B."""
    cifar, lsun = get("cifar10"), get("lsun_bedroom256")
    assert (cifar.data.flip, lsun.data.flip) == (True, False)
    assert (cifar.optimizer.learning_rate, lsun.optimizer.learning_rate) == (2e-4, 2e-5)
    assert (cifar.train.batch_size, lsun.train.batch_size) == (128, 64)
    assert (cifar.model.dropout, lsun.model.dropout) == (0.1, 0.0)
    assert cifar.ema.to_dict() == {"name": "constant", "decay": 0.9999}
    edm, celeba = experiment.build(get("cifar10_edm")), get("celeba64").sample
    assert edm.recipe.table(edm.schedule).nfe == 35
    assert (cifar.sample.stride, celeba.stride) == ("quadratic", "uniform")


AUTHORS = {
    # config, with the stage: what the authors' published code trains with
    "cifar10_edm": {
        "optimizer.learning_rate": 1e-3, "optimizer.warmup_steps": 10_000_000 // 512,
        "train.batch_size": 512, "model.dropout": 0.13, "sample.clip": "none",
        "data.flip": False, "data.augment.probability": 0.12, "model.augment": 9,
    },
    "cifar10_ect": {
        "data.flip": False, "loss.weight.name": "edm", "loss.huber": 0.0, "ema.decay": 0.9999,
        "loss.pairs.every": 250 * 12_800 // 128, "ema.warmup": False, "model.dropout": 0.2,
        "optimizer.name": "radam", "optimizer.learning_rate": 1e-4,
        "train.steps": 25_600_000 // 128, "sample.clip": "none",
    },
    "cifar10_cd": {
        "optimizer.learning_rate": 4e-4, "train.batch_size": 512, "ema.warmup": False,
        "model.dropout": 0.0, "loss.distance": "lpips:lpips_vgg.safetensors",
        "data.flip": True, "data.augment": None,
    },
    "cifar10_dmd2": {
        "optimizer.name": "adamw", "optimizer.weight_decay": 0.01, "optimizer.learning_rate": 1e-4,
        "train.batch_size": 2048, "loss.every": 5, "loss.alternate": True, "loss.start": 80.0,
        "loss.times.name": "karras", "loss.times.low": 0.02, "loss.times.high": 0.98,
        "loss.gan": 1e-3, "optimizer.clip_norm": 10.0, "ema.decay": 0.9999,
    },
    "cifar10_ct": {"optimizer.learning_rate": 2e-4, "train.steps": 800_000, "loss.distil": False},
    "cifar10_imm": {  # their sampler's; of their training third-party code, see the config
        "schedule.name": "rectified_flow", "prediction.name": "edm", "model.dropout": 0.2,
        "model.augment": 0, "model.channel_mults": (2, 2, 2), "loss.group": 4, "loss.halvings": 15,
        "loss.bias": 5.0, "loss.power": 1.0, "loss.log_normal": None, "train.batch_size": 4096,
        "optimizer.learning_rate": 1e-4, "ema.decay": 0.9999,
    },
    "cifar10_mean_flow": {
        "loss.floor": 1e-3, "ema.decay": 0.9999, "loss.same": 0.25, "loss.power": 0.75,
        "optimizer.learning_rate": 6e-4, "train.batch_size": 8 * 128, "model.dropout": 0.2,
        "data.flip": False, "data.augment.probability": 0.12,
        "data.augment.operations": ("xflip", "scale", "aniso", "translate_frac"),
    },
    "cifar10_progressive:teacher": {
        "prediction.name": "x0", "model.dropout": 0.2, "optimizer.warmup_steps": 1000,
        "optimizer.name": "adamw", "optimizer.weight_decay": 0.001, "optimizer.clip_norm": 1.0,
    },
    "cifar10_progressive:4096_step": {"loss.steps": 4096, "optimizer.weight_decay": 0.0},
    "cifar10_progressive:1_step": {
        "train.steps": 50_000, "optimizer.decay": "linear", "optimizer.learning_rate": 5e-5,
        "optimizer.warmup_steps": 0, "ema.decay": 0.0, "model.dropout": 0.0,
    },
    "cifar10_reflow:flow": {
        "model.dropout": 0.15, "ema.decay": 0.999999, "train.steps": 1_300_000,
        "optimizer.learning_rate": 2e-4, "train.batch_size": 128,
    },
    "cifar10_reflow:reflow": {"model.dropout": 0.1, "ema.decay": 0.9999, "data.flip": False},
    "imagenet256_dit": {
        "optimizer.name": "adamw", "optimizer.learning_rate": 1e-4, "train.batch_size": 256,
        "ema.decay": 0.9999, "ema.warmup": False, "loss.label_dropout": 0.1, "data.flip": True,
        "sample.guidance_channels": 3, "model.unused_channels": 4, "optimizer.clip_norm": 0.0,
    },
    "imagenet256_sit": {
        "schedule.model_time": "to_data", "prediction.name": "data_flow", "ema.decay": 0.9999,
        "loss.times.name": "uniform", "train.batch_size": 256, "sample.guidance_channels": 3,
    },
    "imagenet256_mean_flow": {
        "loss.mean": -0.4, "loss.std": 1.0, "loss.same": 0.75, "loss.power": 1.0,
        "loss.floor": 0.01, "loss.omega": 1.0, "loss.kappa": 0.5, "optimizer.b2": 0.95,
        "optimizer.learning_rate": 1e-4, "ema.decay": 0.9999, "train.batch_size": 256,
        "model.time_scale": 0.001, "model.patch_size": 4, "train.steps": 240 * 5004,
    },
    "imagenet256_shortcut": {
        "loss.finest": 128, "loss.every": 8, "loss.target_decay": 0.999, "ema.decay": 0.999,
        "loss.guidance_scale": 1.5, "loss.label_dropout": 0.1, "optimizer.weight_decay": 0.1,
        "optimizer.learning_rate": 1e-4, "train.batch_size": 256, "train.steps": 810_000,
    },
    "imagenet256_vae": {
        "optimizer.b1": 0.5, "optimizer.b2": 0.9, "optimizer.learning_rate": 24 * 4.5e-6,
        "train.batch_size": 24, "loss.kl": 1e-6, "loss.error": "l1", "data.flip": False,
        "loss.distance": "lpips:lpips_vgg.safetensors",
    },
    "imagenet64_cd:teacher": {
        "model.time_scale": 1000.0, "model.scale_shift": True, "train.batch_size": 4096,
        "optimizer.name": "radam", "optimizer.learning_rate": 1e-4, "model.dropout": 0.1,
    },
    "imagenet64_cd:cd": {
        "model.time_scale": 1000.0, "train.batch_size": 2048, "optimizer.learning_rate": 8e-6,
        "loss.distance": "lpips_average:lpips_vgg.safetensors", "loss.target_decay": 0.95,
    },
    "imagenet64_dmd2:dmd2": {
        "optimizer.name": "adamw", "optimizer.weight_decay": 0.01, "optimizer.learning_rate": 2e-6,
        "train.batch_size": 280, "loss.every": 5, "loss.start": 80.0, "loss.gan": 3e-3,
        "loss.times.low": 0.02, "loss.times.high": 0.98, "loss.critic_times.name": "karras",
        "loss.weighting.name": "edm", "optimizer.clip_norm": 10.0, "ema.decay": 0.0,
        "model.dropout": 0.0, "data.flip": False,
    },
    "sd_dmd2": {
        "optimizer.name": "adamw", "optimizer.weight_decay": 0.01, "optimizer.learning_rate": 1e-5,
        "train.batch_size": 2048, "train.steps": 40_000, "loss.every": 10, "ema.decay": 0.0,
        "loss.guidance_scale": 1.75, "loss.times.low": 0.02, "loss.times.high": 0.98,
    },
    "sd_lcm_lora": {
        "train.lora.rank": 64, "loss.guidance": (6.0, 16.0), "loss.pairs.points.points": 50,
        "train.steps": 1000, "train.batch_size": 16,
    },
    "lsun_bedroom256_cd:teacher": {"model.scale_shift": False, "train.batch_size": 256},
    "lsun_bedroom256_cd:cd": {
        "model.scale_shift": False, "train.batch_size": 256, "optimizer.learning_rate": 1e-5,
        "loss.distance": "lpips_average:lpips_vgg.safetensors",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", AUTHORS)
def test_numbers_of_the_authors_code(name):
    config, _, stage = name.partition(":")
    parts = stages.split(get(config), Path("runs")) if stage else [(Path(stage), get(config))]
    (part,) = (part for folder, part in parts if folder.name == stage)
    for path, value in AUTHORS[name].items():
        found = part
        for field in path.split("."):
            found = found[field]
        assert found == value, path
