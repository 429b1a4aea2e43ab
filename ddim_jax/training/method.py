"""From a config to what a run trains with: the loss, the optimizer, the compiled step.

Strings become functions here for what only training needs; `experiment.py` builds the model. All
that can be wrong with a config is found by `build`, before any long work.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from ddim_jax import experiment, keys, losses, parallel
from ddim_jax.checkpoints.parts import Pipeline
from ddim_jax.checkpoints.workdir import BASE
from ddim_jax.data import augmentation as augmentations
from ddim_jax.dropping import AUGMENT
from ddim_jax.losses import TIMES, WEIGHTINGS, lpips
from ddim_jax.losses.distribution_matching import HEAD
from ddim_jax.losses.guides import OWN, WEAK
from ddim_jax.losses.loss import STUDENT
from ddim_jax.model import Model
from ddim_jax.names import check_names, check_options, check_range, lookup, make
from ddim_jax.networks import AUTOENCODERS, low_rank
from ddim_jax.networks.low_rank import LowRank
from ddim_jax.solvers import consistency
from ddim_jax.training import fields, guide
from ddim_jax.training import optimizer as optimizers
from ddim_jax.training import teacher as teachers
from ddim_jax.training.sample_grid import SampleGrid
from ddim_jax.training.state import EMAS, Ema
from ddim_jax.training.step import make_step


class Method(NamedTuple):
    """Everything of a run but its data and its state.

    Attributes:
        model: what is trained, without parameters.
        loss: the training method.
        optimizer: of optax.
        learning_rate: updates done -> the next one's learning rate.
        step: compiled `(state, batch, codec_params) -> (state, metrics)`.
        low_rank: the factors that are trained in place of the parameters; None: the parameters.
        teacher: what it learns from, if anything.
        weak: what the teacher is guided away from, if anything.
    """

    model: Model
    loss: losses.Loss
    optimizer: Any
    learning_rate: Callable[[int], float]
    step: Callable
    low_rank: LowRank | None = None
    teacher: Model | None = None
    weak: Model | None = None

    @property
    def teacher_params(self) -> Any:
        """The parameters of the teacher, with those of what guides it, as its loss takes them."""
        if self.weak is not None:
            return {OWN: self.teacher.params, WEAK: self.weak.params}
        return self.teacher and self.teacher.params


def build(
    config: ml_collections.ConfigDict,
    start: Model | None,
    mesh: Mesh,
    around: Pipeline | None = None,
) -> Method:
    """Builds and checks what a config names.

    Args:
        config: see `configs/`, of one stage.
        start: what the run starts from, if anything.
        mesh: of the devices that the step runs on.
        around: parameters of the autoencoder and the text encoders, see `around`.

    Raises:
        ValueError: what can be wrong with a config.
    """
    model = experiment.build(config)
    if around is not None:
        model = model.with_parts(None, *around[2:])
    check(config, model, mesh.size)
    teacher = teachers.of(config, start)
    weak = guide.weak_of(config, teacher)
    loss = build_loss(config, model, teacher, weak)
    check_loss(config, model, loss, teacher)
    check_groups(config, loss, mesh.size)
    guide.check(config, loss, teacher)
    optimizer, ema = build_optimizer(config, loss), build_ema(config)
    accumulate, sample = config.train.get("accumulate", 1), experiment.samples_latents(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))  # traces it, which checks its options
    low_rank = build_low_rank(config, model, shapes, start)
    augmentation = build_augmentation(config, model)

    def step(axis: str | None, gather: Callable | None = None) -> Callable:
        if low_rank is not None:
            gather = _merging(low_rank, loss, gather, bool(config.get("teacher")))

        def encode(codec_params: Any, rows: tuple) -> Any:
            return model.codec.encode(codec_params, *rows)

        if axis is None and model.draws_latents:
            encode = parallel.by_rows(encode, mesh)
        changed = (encode, sample, augmentation)
        return make_step(loss, optimizer, ema, axis, gather, accumulate, *changed)

    step_fn = parallel.parallelise_step(step, config.parallel, mesh)
    rate = build_learning_rate(config)
    return Method(model, loss, optimizer, rate, step_fn, low_rank, teacher, weak)


def build_low_rank(
    config: ml_collections.ConfigDict, model: Model, shapes: Any, start: Model | None
) -> LowRank | None:
    """The factors that a config's section `train.lora` says; None without one.

    Args:
        config: of the run.
        model: what is trained.
        shapes: of its parameters.
        start: what it starts from, if anything.

    Raises:
        ValueError: an option that cannot be; nothing to start from, or another architecture.
    """
    made = low_rank.of(config.train.get("lora"))
    if made is None:
        return None
    if start is None:
        raise ValueError(
            "config.train.lora changes a trained network: name it with config.start_from"
        )
    new = teachers.new_parameters(shapes, teachers.take_over(start, model))
    made = dataclasses.replace(made, whole=(*made.whole, *new))
    made.kernels(shapes)
    return made


def _merging(
    low_rank: LowRank, loss: losses.Loss, gather: Callable | None, other_teacher: bool
) -> Callable:
    """(factors, frozen) -> parameters and frozen as a loss sees them: changes of the base.

    Of several parts the student alone is one, and a teacher only if it is what the run starts from.
    """

    def merged(trees: tuple[Any, dict]) -> tuple[Any, dict]:
        params, frozen = trees if gather is None else gather(trees)
        base = frozen[BASE]
        student = low_rank.merge(base, loss.student(params))
        others = {
            name: tree if name == "teacher" and other_teacher else low_rank.merge(base, tree)
            for name, tree in frozen.items()
            if name != BASE
        }
        return student if loss.parts is None else params | {STUDENT: student}, others

    return merged


def check(config: ml_collections.ConfigDict, model: Model, devices: int) -> None:
    """Raises ValueError for a config whose values cannot be trained with."""
    for section in ("data", "train", "sample"):  # of the others, those who take them tell
        known = fields.known_fields(section, {})
        check_names(config[section], known, f"config.{section}")
    train, counts = config.train, {"accumulate": 1} | config.train.to_dict()
    for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep", "accumulate"):
        most = "1048576]" if name == "batch_size" else "inf)"
        check_range(f"config.train.{name}", counts[name], f"[1, {most}", whole=True)
    check_range("config.train.sample_every", train.sample_every, "[0, inf)", whole=True)
    keys.check_seed(config.seed, "config.seed", 2**32)
    parallel.check_batch(train.batch_size, devices)
    rows = train.batch_size // devices
    if rows % counts["accumulate"]:
        raise ValueError(
            f"config.train.accumulate must divide the {rows} images of a device, got "
            f"{counts['accumulate']}"
        )
    SampleGrid.check(model)
    if config.data.flip and experiment.data_kind(config) == "pairs":
        raise ValueError("pairs cannot be flipped: the noise would not be; set data.flip=False")
    network = config.model.get("name", "unet")
    if (network in AUTOENCODERS) != (config.loss.name == "autoencoder"):
        raise ValueError(
            "config.loss.name='autoencoder' and config.model.name='autoencoder_kl' go together, "
            f"got {config.loss.name!r} and {network!r}"
        )
    if network in AUTOENCODERS and experiment.data_kind(config) == "latents":
        raise ValueError(
            f"{config.data.name} holds latents, and an autoencoder learns from pictures; name the "
            "data that they were made of"
        )
    if not config.get("codec"):
        if experiment.data_kind(config) == "latents":
            raise ValueError(
                f"{config.data.name} needs the autoencoder that made it, to draw pictures; name it "
                "with config.codec.start_from"
            )
        if config.data.get("cache", False):
            raise ValueError(
                "config.data.cache keeps latents in memory, those of config.codec; set it to False"
            )
    if config.loss.get("label_dropout", 0) and not config.model.get("null_label", True):
        raise ValueError(
            f"config.loss.label_dropout={config.loss.label_dropout} needs a null label to drop to; "
            "set config.model.null_label=True, or label_dropout=0"
        )
    for name in ("frame_levels", "alone", "known"):
        if config.loss.get(name) and not experiment.draws_clips(config):
            raise ValueError(
                f"config.loss.{name}={config.loss[name]} is of networks of clips; leave it out, or "
                "set config.model.name='video_unet' and config.data.frames"
            )
    channels = model.sample_shape[-1]
    field = "channels" if network in AUTOENCODERS else "out_channels"
    if model.network.out_channels != channels:  # the loss would broadcast over them, unnoticed
        raise ValueError(
            f"the network returns {model.network.out_channels} channels, the images have "
            f"{channels}; set config.model.{field}={channels}"
        )


def check_loss(
    config: ml_collections.ConfigDict,
    model: Model,
    loss: losses.Loss,
    teacher: Model | None = None,
) -> None:
    """Raises ValueError for what does not go with a loss: inputs, factors, pairs, drawing."""
    if config.loss.name in losses.JUMPING and not model.inputs.takes("interval"):
        raise ValueError(
            f"config.loss.name={config.loss.name!r} tells the network how far to jump, which this "
            "one does not take; set config.model.scalars=('interval',)"
        )
    if loss.needs_teacher and teacher is not None:
        _check_teacher(config, model, loss, teacher)
    scales = config.loss.get("guidance")
    if scales and not (loss.needs_teacher or model.inputs.takes("guidance")):
        raise ValueError(
            f"config.loss.guidance={tuple(scales)} tells the network its scale, which this one "
            "does not take; set config.model.scalars=('interval', 'guidance')"
        )
    if loss.parts is None and config.get("teacher"):
        raise ValueError(
            f"config.teacher is for losses that train a critic, and config.loss.name="
            f"{config.loss.name!r} learns from what config.start_from names; leave it out"
        )
    one_copy = config.train.get("lora") and not config.get("teacher")
    if config.get("teacher_dtype", "float32") != "float32" and one_copy:
        raise ValueError(
            "config.teacher_dtype is of a teacher that is kept beside, and with config.train.lora "
            "that is the one network; leave it out"
        )
    if loss.parts is not None and experiment.data_kind(config) == "pairs" and HEAD in loss.parts[0]:
        raise ValueError(
            f"config.data.name={config.data.name!r} holds pictures that a network drew, and the "
            "head of config.loss compares with real ones; name real data, or leave out "
            "config.loss.gan and config.loss.divergence"
        )
    if loss.nodes is None:
        return
    times = model.recipe.times(model.schedule)
    fits = np.isclose(times[0], loss.nodes[0], rtol=0, atol=1e-3)
    if len(times) == len(loss.nodes):
        fits &= np.allclose(times[:-1], loss.nodes[:-1], rtol=0, atol=1e-3)
    elif not model.inputs.takes("interval"):  # which draws in any number of steps
        fits = False
    if not fits:
        first = model.schedule.half_log_snr(loss.nodes[0])
        raise ValueError(
            f"config.sample draws at the times {_times(times)}, and config.loss trains for "
            f"{_times(loss.nodes)}; set config.sample.steps={len(loss.nodes) - 1}, "
            f"config.sample.stride='uniform' and config.sample.stride_options={{'lam_min': "
            f"{first:.6g}}}"
        )
    noise = model.recipe.table(model.schedule).noise
    fresh = consistency(sigma_min=0.0)(model.schedule, times).noise
    if not (noise.shape == fresh.shape and np.allclose(noise, fresh)):
        raise ValueError(
            f"config.sample.solver={model.recipe.solver!r} goes from time to time otherwise than "
            "config.loss trains for, which adds all noise afresh; set config.sample.solver='lcm'"
        )


def _check_teacher(
    config: ml_collections.ConfigDict, model: Model, loss: losses.Loss, teacher: Model
) -> None:
    """Raises ValueError for a teacher that cannot say what the loss asks it, wherever it asks."""
    name, scales = config.loss.name, config.loss.get("guidance")
    way_out = "name one with config.teacher" if loss.parts is not None else "start from one"
    if teacher.inputs.takes("interval"):
        raise ValueError(
            f"{teacher.name} is told how far to jump, and the teacher of config.loss.name="
            f"{name!r} must be a denoiser; {way_out}"
        )
    if _one_time(teacher.config.get("loss")):
        raise ValueError(
            f"{teacher.name} draws in few steps and knows no other times, and the teacher of "
            f"config.loss.name={name!r} must be a denoiser; {way_out}"
        )
    if teacher.inputs.takes("guidance") and scales is None:
        raise ValueError(
            f"{teacher.name} is told its guidance scale, and config.loss says none; set "
            "config.loss.guidance=(1.5, 1.5), or a range that the student is told"
        )
    mixed = scales and scales[0] != scales[1] and not teacher.inputs.takes("guidance")
    if loss.parts is not None and mixed and model.inputs.takes("guidance"):
        raise ValueError(
            f"the critic is told no guidance scale, as {teacher.name} is not, so it cannot tell "
            f"apart what the student draws at those of config.loss.guidance={tuple(scales)}; make "
            "the teacher one that is told it (config.loss.name='guided'), or take one scale"
        )


def _one_time(loss: Mapping[str, Any] | None) -> bool:
    """Whether a network of this loss was trained at the few times that it draws at alone."""
    loss = loss or {}
    few = (loss.get("times") or {}).get("name") == "nodes"
    return loss.get("name") == "distribution_matching" or few


def check_groups(config: ml_collections.ConfigDict, loss: losses.Loss, devices: int) -> None:
    """Raises ValueError for rows that a device takes at a time and that make no whole groups."""
    at_once = devices * config.train.get("accumulate", 1)
    if (rows := config.train.batch_size // at_once) % loss.group:
        raise ValueError(
            f"config.loss.group={loss.group} must divide the {rows} images that each device takes "
            f"at a time; set config.train.batch_size to a multiple of {at_once * loss.group}, or "
            "another config.loss.group"
        )


def _times(times: np.ndarray) -> str:
    return ", ".join(f"{t:.4g}" for t in times[:-1])


def net(model: Model) -> losses.Net:
    """A model as losses take it; it is not told a guidance scale that it does not take."""

    def untold(function):
        if model.inputs.takes("guidance") or function is None:
            return function

        def asked(params, x, model_time, inputs, *keys):
            inputs = {name: value for name, value in inputs.items() if name != "guidance"}
            return function(params, x, model_time, inputs, *keys)

        return asked

    own = dict(features=untold(model.features), frame_noise=model.frame_noise)
    own["jumps"] = model.inputs.takes("interval")
    apply, null = untold(model.apply), model.inputs.dropped
    return losses.Net(apply, model.schedule, model.parameterization, null, **own)


def build_loss(
    config: ml_collections.ConfigDict,
    model: Model,
    teacher: Model | None = None,
    weak: Model | None = None,
) -> losses.Loss:
    """The loss that a config's section `loss` names.

    Args:
        config: of the run.
        model: what is trained.
        teacher: what it learns from, if anything.
        weak: what the teacher is guided away from, if anything.

    Raises:
        ValueError: an unknown name or option.
    """
    schedule = (teacher if config.get("teacher") else model).schedule
    options = config.loss.to_dict()
    name = options.pop("name")
    make_loss = lookup(losses.LOSSES, name, "loss")
    options = check_options(make_loss, options, "loss")
    for times in {"times", "critic_times"} & set(options):
        options[times] = make(TIMES, options[times], times, schedule)
    if "weighting" in options:
        options["weighting"] = _weighting(options["weighting"])
    if isinstance(options.get("weight"), Mapping):
        options["weight"] = _weighting(options["weight"]) or "uniform"
    if "pairs" in options:
        options["pairs"] = _pairs(options["pairs"], config.train.steps)
    if isinstance(options.get("target_decay"), Mapping):
        options["target_decay"] = _decay(options["target_decay"], options.get("pairs"))
    kind, colon, path = str(options.get("distance")).partition(":")
    if colon and kind in lpips.POOLINGS:
        options["distance"] = lpips.load(path, lpips.POOLINGS[kind])
    if teacher is not None and "teacher" in inspect.signature(make_loss).parameters:
        options["teacher"] = guide.wrapped(config, net(teacher), weak and net(weak))
    return make_loss(net(model), **options)


def _weighting(section: Mapping) -> losses.Weighting | None:
    if lookup(WEIGHTINGS, section["name"], "weighting") is not None:
        return make(WEIGHTINGS, section, "weighting")
    extra = sorted(set(section) - {"name"})
    if extra:
        raise ValueError(f"weighting {section['name']!r} has no options, got {extra[0]!r}")
    return None


def _pairs(section: Mapping, steps: int) -> losses.LevelPairs:
    options = dict(section)
    if "points" in options:
        points = dict(options["points"])
        function = losses.POINTS.get(points.get("name"))
        if function and "total_steps" in inspect.signature(function).parameters:
            points.setdefault("total_steps", steps)  # the grid grows over the whole run
        options["points"] = make(losses.POINTS, points, "points")
    return make(losses.PAIRS, options, "pairs")


def _decay(section: Mapping, pairs: losses.LevelPairs | None) -> Callable:
    if pairs is None or pairs.points is None:
        raise ValueError(
            "loss.target_decay by name needs loss.pairs on a grid, whose points it follows"
        )
    return make({"adaptive": losses.adaptive_decay}, section, "target_decay", pairs.points)


def build_augmentation(
    config: ml_collections.ConfigDict, model: Model
) -> augmentations.Augmentation | None:
    """How pictures are changed, as `config.data.augment` says; None where no network is told.

    Raises:
        ValueError: an unknown name or option; a network that is told other numbers; latents.
    """
    put, section = model.inputs.declared.get(AUGMENT), config.data.get("augment")
    size = put.shape[0] if put else 0
    if not section:
        return augmentations.none(size) if size else None
    if model.draws_latents or experiment.data_kind(config) == "pairs":
        raise ValueError("config.data.augment changes pictures, no latents or pairs; leave it out")
    augmentation = make(augmentations.AUGMENTATIONS, section, "data.augment")
    if augmentation.size != size:
        raise ValueError(
            f"config.data.augment tells the network {augmentation.size} numbers, it takes {size}; "
            f"set config.model.augment={augmentation.size}, of a unet"
        )
    return augmentation


def build_optimizer(config: ml_collections.ConfigDict, loss: losses.Loss | None = None) -> Any:
    """The optax optimizer that a config names, for what its loss trains; default one network."""
    return optimizers.make_optimizers(config, None if loss is None else loss.parts)


def build_learning_rate(config: ml_collections.ConfigDict) -> Callable[[int], float]:
    """The learning rate of a config after so many updates; of several networks, the student's."""
    rate = optimizers.make_rate(**optimizers.options(config))
    return lambda updates: float(rate(updates)) if callable(rate) else rate


def build_ema(config: ml_collections.ConfigDict) -> Ema:
    """The moving average that a config names."""
    return make(EMAS, config.ema, "ema")
