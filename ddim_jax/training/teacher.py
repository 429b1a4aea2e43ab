"""What a run starts from: a trained model, which is the teacher too, and the data it is told of.

`config.start_from` names the network: a training workdir, a `.safetensors` file or a bundled one.
It must be of the same images and classes, a teacher of the same schedule too, and its parameters
must fit; inputs that only the new network has (`scalars`) start at zero effect, and so do layers
that mix frames, where a network of pictures becomes one of clips. What it predicts may differ.
`config.teacher` names another teacher, for losses that train a critic of it; that may be of another
schedule. The workdir keeps fingerprints of data and networks, so that a resume can compare.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax import checkpoints, experiment
from ddim_jax.checkpoints import architecture
from ddim_jax.checkpoints.workdir import BASE_FILE
from ddim_jax.data import Source, noise_pairs
from ddim_jax.inputs import FRAME_RATE
from ddim_jax.model import Model
from ddim_jax.networks.frames import is_added
from ddim_jax.recipe import whole_path

SECTIONS = ("model", "schedule", "prediction")
"""Of a config, what its network is."""
DTYPES = ("float32", "bfloat16")
"""Of the parameters of a teacher."""
NEEDED = (
    *("data", "data.name", "loss", "loss.name", "optimizer", "ema", "train"),
    *("train.steps", "train.batch_size", "train.log_every", "train.checkpoint_every"),
    *("train.sample_every", "train.keep"),
)
"""Sections and fields that every config has."""
OTHERWISE = {"seed": 0, "parallel": "jit", "sample": {}, "data.flip": False}
"""What a config says where it has no such section or field."""
ADDED = ("scalars", "interval_scale", "time_scale", "dropout", "remat", "dtype")
"""Fields of a section model that change no parameter that is taken over."""


def load(config: ml_collections.ConfigDict, workdir: Path | None = None) -> Model | None:
    """The model that a config starts from, if it names one.

    Args:
        config: of the run.
        workdir: of the run, which may hold a copy, see `checkpoints/workdir.py`.

    Returns:
        The model; a published one in float32 on every device, as it is to be trained.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: it is damaged.
    """
    name = config.get("start_from", "")
    try:
        return checkpoints.load(name, accelerated=False) if name else None
    except FileNotFoundError:
        copy = workdir and config.train.get("lora") and workdir / BASE_FILE
        if not copy or not copy.exists():
            raise
        return checkpoints.load(copy)


def of(config: ml_collections.ConfigDict, start: Model | None) -> Model | None:
    """The model that a run learns from: that of `config.teacher`, else what it starts from.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: it is damaged, or of other images or classes.
    """
    name = config.get("teacher", "")
    if not name:
        return start
    teacher = checkpoints.load(name, accelerated=False)
    check_same(config, teacher.config, "config.teacher")
    return teacher


def note(place: str, model: Model | None) -> str | None:
    """What to say of a network to learn from, if it is of a run that has not reached its end."""
    if not place or model is None or not model.config or not Path(place).is_dir():
        return None
    steps = model.config.get("train", {}).get("steps", 0)
    if model.step >= steps:
        return None
    return (
        f"{place} is at step {model.step:,} of {steps:,}, and this run learns from that state for "
        "good; to wait for its end, stop this one, and choose another --workdir then"
    )


def resolve(config: ml_collections.ConfigDict, start: Model | None) -> ml_collections.ConfigDict:
    """The config with what it leaves open: as what it starts from, or as its data, are.

    Autoencoder and text encoders are those of what it starts from, if that has any. A config
    without a section `model`, or with one that has only fields in `ADDED`, takes all other sections
    of the network from there, and its recipe.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: a section is missing; see `experiment.resolve`.
    """
    needed = ("data", "data.name") if config.get("stages") else NEEDED  # stages may say the rest
    for name in (*needed, *(() if start else ("model",))):
        section, _, field = name.rpartition(".")
        if field not in (config[section] if section else config):
            raise ValueError(
                f"the config has no {'field' if section else 'section'} {name}, as "
                "configs/digits.py has; model, schedule and prediction may be left out together "
                "where start_from names a network"
            )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name, value in OTHERWISE.items():
            section, _, field = name.rpartition(".")
            if field not in (holder := config[section] if section else config):
                holder[field] = value
    if start is None:
        return experiment.resolve(config)
    with config.unlocked():
        theirs, names = start.config or {}, ["codec", "text"]
        added = config.get("model", {})
        if set(added) <= set(ADDED):
            names += [name for name in SECTIONS if name == "model" or name not in config]
            config.sample = _recipe(theirs.get("sample", {}), config.get("sample", {}))
        for name in names:
            if section := theirs.get(name):
                config[name] = ml_collections.ConfigDict(section)
        counted = theirs.get("model", {}).get("vocabulary")
        if counted and theirs.get("text") and config.get("model", {}).get("vocabulary"):
            config.model.vocabulary = counted  # of the tokenizer that is taken over
        if added and "model" in names:
            with config.model.ignore_type():
                config.model.update(added)
    shape, classes = start.codec.picture_shape[-3:], start.inputs.num_classes
    return experiment.resolve(config, Source(start.name, shape, classes, 0, None))


def _recipe(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """A section `sample` over another; a solver or stride that is named has its own options."""
    replaced = {f"{name}_options" for name in ("solver", "stride") if name in mine}
    kept = {name: value for name, value in dict(theirs).items() if name not in replaced}
    return {**kept, **dict(mine)}


def check(
    config: ml_collections.ConfigDict, start: ml_collections.ConfigDict, needs_teacher: bool
) -> None:
    """Raises ValueError where a run of one config cannot start from a network of the other."""
    mine, theirs = (dict(c.get("frame_noise") or {}) for c in (config, start))
    if needs_teacher and mine != theirs:
        raise ValueError(
            f"what config.start_from names was trained with config.frame_noise={theirs or None}, "
            f"the config says {mine or None}; a teacher's must be the student's"
        )
    mine, theirs = config.schedule.to_dict(), start.schedule.to_dict()
    if needs_teacher and mine != theirs and not config.get("teacher"):
        raise ValueError(
            f"what config.start_from names was trained on the schedule {theirs}, the config says "
            f"{mine}; a teacher's must be the student's"
        )
    check_same(config, start, "config.start_from")
    if config.loss.name == start.loss.name == "progressive":
        steps, before = config.loss.steps, start.loss.steps
        if before != 2 * steps:
            raise ValueError(
                f"a student of {steps} steps needs a teacher of {2 * steps}, this one takes "
                f"{before}; halve that: loss.steps={before // 2}"
            )


def check_same(
    config: ml_collections.ConfigDict, start: ml_collections.ConfigDict, name: str
) -> None:
    """Raises ValueError unless two networks draw images of one shape and as many classes.

    Args:
        config: of the run.
        start: of the other network.
        name: the field that names that, for messages.
    """
    mine, theirs = (tuple(c.data.image_shape) for c in (config, start))
    if mine != theirs:
        raise ValueError(
            f"{name} draws images of shape {theirs}, this config's are {mine}; set "
            "config.data.image_shape, or choose another"
        )
    mine, theirs = (c.model.get("num_classes", 0) for c in (config, start))
    if mine != theirs:
        raise ValueError(
            f"{name} has {theirs} classes, this config {mine}; set "
            f"config.model.num_classes={theirs}, or choose another"
        )


def take_over(start: Model, model: Model) -> dict[str, Any]:
    """The parameters of `start` for the network of `model`, flat; those it lacks are left out.

    Raises:
        ValueError: they are of another architecture.
    """
    wanted = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    taken = flatten_dict(start.params, sep="/")
    new_inputs = set(model.inputs.declared) - set(start.inputs.declared)
    layers = {f"{name}_{k}" for name in new_inputs for k in range(2)} | new_inputs
    needed = {
        name: leaf
        for name, leaf in wanted.items()
        if name in taken or not (name.split("/")[0] in layers or is_added(name))
    }
    if differs := architecture.difference(needed, taken):
        raise ValueError(
            f"{start.name} is of another architecture: parameter {differs[0]} is {differs[2]} "
            f"there and {differs[1]} in the config; give the config the same section model"
        )
    return taken


def new_parameters(shapes: Any, taken: dict[str, Any]) -> list[str]:
    """Paths of the parameters that a network has and what it starts from has not.

    Args:
        shapes: of the network's parameters.
        taken: of `take_over`.
    """
    return sorted(set(flatten_dict(shapes, sep="/")) - set(taken))


def cast(params: Any, dtype: str) -> Any:
    """A teacher's parameters as they are kept; "bfloat16" takes half the memory.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"config.teacher_dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
    whole = lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    return jax.tree.map(whole, params)


def merge(params: Any, taken: dict | None) -> Any:
    """Fresh parameters, and over them those that were taken over."""
    if taken is None:
        return params
    return unflatten_dict(flatten_dict(params, sep="/") | taken, sep="/")


def record(
    config: ml_collections.ConfigDict,
    start: Model | None,
    source: Any,
    teacher: Model | None = None,
    weak: Model | None = None,
) -> Any:
    """The config as a workdir keeps it.

    With the version, the names of its classes, the median of its clips' frames a second, the whole
    path of a stride's file, and fingerprints that a resume can compare.
    """
    config = config.copy_and_resolve_references()
    names = source.class_names if start is None else start.inputs.class_names
    with config.unlocked():
        config.version = experiment.version()
        if stride := config.sample.get("stride"):
            config.sample.stride = whole_path(stride)
        name_classes(config, names)
        if (rate := _usual_rate(source)) and not config.sample.get("frame_rate"):
            config.sample.frame_rate = rate
        config.data_fingerprint = fingerprint(source)
        if config.get("text"):
            digest = hashlib.sha256(json.dumps(list(source.captions)).encode())
            config.captions_fingerprint = digest.hexdigest()[:16]
        if start is not None:
            config.start_weights = start.fingerprint
        if config.get("teacher"):
            config.teacher_weights = teacher.fingerprint
        if weak is not None:
            config.weak_weights = weak.fingerprint
    return config


def name_classes(config: ml_collections.ConfigDict, names: Sequence[str]) -> None:
    """Puts the names of a network's classes into its config, where it has as many and says none."""
    if len(names) == config.model.get("num_classes", 0):
        config.data.class_names = tuple(config.data.get("class_names") or names)


def _usual_rate(source: Any) -> float | None:
    """The median of the frames a second that clips say; None where none does."""
    rates = np.asarray(getattr(source, "told", {}).get(FRAME_RATE, ()))
    return round(float(np.median(rates[rates > 0])), 3) if (rates > 0).any() else None


def fingerprint(source: Any, records: int = 16) -> str:
    """What a source holds, in words, and a hash of some of its records, evenly spaced.

    Pairs may be extended, so theirs is of what drew them.
    """
    shape = " x ".join(map(str, getattr(source, "shape", source.image_shape)))
    digest = hashlib.sha256()
    if isinstance(source, noise_pairs.PairSource):
        digest.update(json.dumps(source.about, sort_keys=True).encode())
        return f"pairs of {shape}, drawn as {digest.hexdigest()[:16]}"
    for index in np.linspace(0, len(source) - 1, min(records, len(source))).astype(int):
        example = source[index]
        digest.update(np.ascontiguousarray(example["image"]).tobytes())
        digest.update(np.int64(example["label"]).tobytes())
    return (
        f"{len(source):,} images of {shape} in {source.num_classes} classes, "
        f"some of which hash to {digest.hexdigest()[:16]}"
    )
