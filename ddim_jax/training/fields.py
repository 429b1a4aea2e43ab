"""The fields of a config: which there are, and setting one from text, as on a command line.

    override(config, "train.steps", "500")
    override(config, "stages[3].model.dropout", "0.2")

A section has the fields that are written down and all options of what it names.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from ddim_jax import losses
from ddim_jax.data.augmentation import AUGMENTATIONS
from ddim_jax.frame_noise import FRAME_NOISES
from ddim_jax.names import did_you_mean, parse_value
from ddim_jax.networks import NETWORKS
from ddim_jax.networks.low_rank import LowRank
from ddim_jax.predictions import PREDICTIONS
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import SCHEDULES
from ddim_jax.training import reflow_pairs
from ddim_jax.training.optimizer import make_optimizer
from ddim_jax.training.state import EMAS

NAMED = {
    "schedule": SCHEDULES,
    "prediction": PREDICTIONS,
    "ema": EMAS,
    "frame_noise": FRAME_NOISES,
    "guide": losses.GUIDES,
    "loss": losses.LOSSES,
    "loss.times": losses.TIMES,
    "loss.critic_times": losses.TIMES,
    "loss.weighting": losses.WEIGHTINGS,
    "loss.pairs": losses.PAIRS,
    "loss.pairs.points": losses.POINTS,
    "loss.target_decay": {"adaptive": losses.adaptive_decay},
    "data.augment": AUGMENTATIONS,
}
"""Sections whose `name` is one of a table."""
WRITTEN: dict[str, dict[str, Any]] = {
    "": {
        **{"seed": 0, "parallel": "jit", "start_from": "", "teacher": "", "guide": None},
        **{"teacher_dtype": "float32", "stages": ()},
    },
    "data": {
        **{"name": "", "split": "train", "data_dir": "", "flip": False, "skip_unreadable": False},
        **{"image_shape": None, "channels": None, "resize": None, "pad": False},
        **{"class_names": (), "cache": False, "latents": None, "caption": ""},
        **{"augment": None, "frames": 0, "frame_rate": None, "frame_stride": 1},
    },
    "train": {
        **{"steps": 1, "batch_size": 1, "accumulate": 1, "keep": 2},
        **{"log_every": 1, "checkpoint_every": 1, "sample_every": 0, "lora": None},
    },
    "sample": {"num_samples": 1, "prompts": (), "frame_rate": None},
    "codec": {"start_from": ""},
    "text": {"start_from": "", "null": "encode"},
    "model": {"name": "unet"},
    "optimizer": {"parts": None},
    "optimizer.parts": dict.fromkeys(losses.PARTS),
}
"""Further fields of sections, with a value of their type; None where that may be any."""
OPEN = ("model.out_channels", "model.num_classes", "optimizer.decay_steps")
"""Fields that may be None, for what follows from others, though their default is a number."""
HIDDEN = ("net", "teacher", "schedule", "points", "self", "name", "parent", "model", "folder")
"""Parameters that are no options."""


def override(config: ml_collections.ConfigDict, path: str, text: str | None) -> None:
    """Sets a field from text.

    Args:
        config: is changed.
        path: like "train.steps" or "stages[3].train.steps".
        text: a Python literal, or plain text where the field is text; None: True.

    Raises:
        ValueError: there is no such field, or it cannot have that value.
    """
    if not re.fullmatch(r"\w+(\[\d+\]|\.\w+)*", path):
        raise ValueError(f"--config.{path} must be like --config.train.steps=500")
    *way, last = re.findall(r"\w+|\[\d+\]", path)
    place = _Place(config, config.to_dict(), "", "config")
    with config.unlocked(), config.ignore_type():
        for part, following in itertools.pairwise([*way, last]):
            place = _enter(place, part, following)
        if last.startswith("["):
            raise ValueError(f"{place.shown}{last} is a section; set a field of it")
        known = _check_known(place, last)
        field, shown = f"{place.section}.{last}".lstrip("."), f"{place.shown}.{last}"
        if inner := known_fields(field, place.whole):
            raise ValueError(f"{shown} is a section; set a field of it: {', '.join(inner)}")
        if field == "stages":
            raise ValueError(f"{shown} holds sections; set a field of one, as in {shown}[0].name")
        like = known.get(last, inspect.Parameter.empty)
        like = place.target.get(last) if like is inspect.Parameter.empty else like
        place.target[last] = _read(text, like, shown, field in OPEN)


class _Place(NamedTuple):
    """Where in a config a path has come to: a section, the config it is of, its name there."""

    target: Any
    whole: dict[str, Any]
    section: str
    shown: str


def _enter(place: _Place, part: str, following: str) -> _Place:
    """The section or entry of a list that the next part of a path leads to."""
    target, whole, section, shown = place
    if part.startswith("["):
        target = _entry(target, int(part[1:-1]), shown)
        return _Place(target, _stage(whole, target), "", shown + part)
    _check_known(place, part)
    section, shown = f"{section}.{part}".lstrip("."), f"{shown}.{part}"
    if part not in target and known_fields(section, whole):
        target[part] = {}
    inner = target.get(part, () if following.startswith("[") else None)
    if not isinstance(inner, Mapping | ml_collections.ConfigDict | list | tuple):
        raise ValueError(f"{shown} is no section, it has no field {following!r}")
    return _Place(inner, whole, section, shown)


def _check_known(place: _Place, name: str) -> dict[str, Any]:
    """The fields of a section, of which `name` must be one."""
    known = known_fields(place.section, place.whole)
    if name not in known and name not in place.target:
        raise ValueError(
            f"{place.shown} has no field {name!r}{did_you_mean(name, known)}; it has "
            f"{', '.join(known)}"
        )
    return known


def known_fields(section: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a section, with their defaults; {} for what is no section.

    Args:
        section: like "loss.pairs"; "" for the config itself.
        config: says what the sections name.
    """
    present: Any = config
    for name in section.split(".") if section else ():
        present = present.get(name) if isinstance(present, Mapping) else None
    present = dict(present) if isinstance(present, Mapping) else {}
    functions: dict[str, Callable | None] = {
        "model": NETWORKS.get(present.get("name", "unet")),
        "optimizer": make_optimizer,
        **{f"optimizer.parts.{name}": make_optimizer for name in losses.PARTS},
        "train.lora": LowRank,
        "sample": Recipe,
        "pairs": reflow_pairs.draw,
    }
    function = functions.get(section)
    if section in NAMED and "name" in present:
        function = NAMED[section].get(present["name"])
    options = {}
    if function is not None:
        parameters = inspect.signature(function).parameters.values()
        options = {one.name: one.default for one in parameters if one.name not in HIDDEN}
    if section in NAMED or functions.get(section) is make_optimizer:
        options = {"name": ""} | options
    written = WRITTEN.get(section, {})
    return written | options | {k: v for k, v in present.items() if k not in written | options}


def _entry(target: Any, index: int, shown: str) -> Any:
    if not isinstance(target, list | tuple):
        raise ValueError(f"{shown} is no list, it has no entry [{index}]")
    if index >= len(target):
        has = f"0 to {len(target) - 1}" if target else "none"
        raise ValueError(f"{shown} has no entry [{index}]; its entries are {has}")
    return target[index]


def _stage(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a stage."""
    stage = ml_collections.ConfigDict({k: v for k, v in config.items() if k != "stages"})
    changes = ml_collections.ConfigDict(dict(changes))
    with stage.ignore_type():
        if changes.get("loss", {}).get("name", stage.loss.name) != stage.loss.name:
            stage.loss = ml_collections.ConfigDict()
        stage.update(changes)
    return stage.to_dict()


def _read(text: str | None, like: Any, shown: str, may_be_none: bool) -> Any:
    """A value of the type of another one."""
    value = True if text is None else parse_value(text)
    if value is None and (like is None or may_be_none):
        return None
    if like is None or callable(like):
        return value
    if isinstance(like, bool):
        words = {"true": True, "false": False, "1": True, "0": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise ValueError(f"{shown} must be True or False, got {text!r}")
    if isinstance(like, str) and text is not None:
        return text
    if isinstance(like, list | tuple):
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(like, float):
        try:
            return float(value if number else text)
        except (TypeError, ValueError):
            raise ValueError(f"{shown} must be a number, got {text!r}") from None
    if isinstance(like, int):
        if number and float(value).is_integer():
            return int(value)
        raise ValueError(f"{shown} must be a whole number, got {text!r}")
    return value
