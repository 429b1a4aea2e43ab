"""What training starts from: data, and perhaps a trained network, which is then the teacher too.

`config.start_from` names the network: a training workdir, a `.safetensors` file or a bundled one.
It must be of the same images and classes, a teacher of the same schedule too, and its parameters
must fit; inputs that only the new network has (`scalars`) start at zero effect. What it predicts
may differ. The workdir keeps fingerprints of data and network, so that a resume can compare.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax.data import pairs
from ddim_jax.experiment import Experiment
from ddim_jax.models import pretrained
from ddim_jax.models.pretrained import Pretrained


def load(config: ml_collections.ConfigDict) -> Pretrained | None:
    """The network that a config starts from, if it names one.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: it is damaged.
    """
    name = config.get("start_from", "")
    return pretrained.load(name) if name else None


def check(
    config: ml_collections.ConfigDict, start: ml_collections.ConfigDict, needs_teacher: bool
) -> None:
    """Raises ValueError where a run of one config cannot start from a network of the other."""
    mine, theirs = config.schedule.to_dict(), start.schedule.to_dict()
    if needs_teacher and mine != theirs:
        raise ValueError(
            f"what config.start_from names was trained on the schedule {theirs}, the config says "
            f"{mine}; a teacher's must be the student's"
        )
    mine, theirs = (tuple(c.data.image_shape) for c in (config, start))
    if mine != theirs:
        raise ValueError(
            f"config.start_from draws images of shape {theirs}, this config's are {mine}; set "
            "config.data.image_shape, or choose another"
        )
    mine, theirs = (c.model.get("num_classes", 0) for c in (config, start))
    if mine != theirs:
        raise ValueError(
            f"config.start_from has {theirs} classes, this config {mine}; set "
            f"config.model.num_classes={theirs}, or choose another"
        )
    if config.loss.name == start.loss.name == "progressive":
        steps, before = config.loss.steps, start.loss.steps
        if before != 2 * steps:
            raise ValueError(
                f"a student of {steps} steps needs a teacher of {2 * steps}, this one takes "
                f"{before}; halve that: loss.steps={before // 2}"
            )


def take_over(start: Pretrained, parts: Experiment) -> Any:
    """The parameters of `start` for the network of `parts`, flat, without those it lacks.

    Raises:
        ValueError: they are of another architecture.
    """
    wanted = flatten_dict(jax.eval_shape(parts.init, jax.random.key(0)), sep="/")
    found = flatten_dict(start.params, sep="/")
    own = {f"{name}_{k}" for name in parts.model.scalars for k in range(2)}
    for name in sorted(wanted.keys() | found.keys()):
        mine, theirs = (tuple(t[name].shape) if name in t else None for t in (wanted, found))
        if mine != theirs and not (theirs is None and name.split("/")[0] in own):
            raise ValueError(
                f"{start.name} is of another architecture: parameter {name} is "
                f"{theirs or 'absent'} there and {mine or 'absent'} in the config; give the config "
                "the same section model"
            )
    return found


def merge(params: Any, taken: dict | None) -> Any:
    """Fresh parameters, and over them those that were taken over."""
    if taken is None:
        return params
    return unflatten_dict(flatten_dict(params, sep="/") | taken, sep="/")


def record(config: ml_collections.ConfigDict, start: Pretrained | None, source: Any) -> Any:
    """The config with the fingerprints of what it starts from, so that a resume can compare."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data_fingerprint = fingerprint(source)
        if start is not None:
            config.start_weights = pretrained.fingerprint(start.params)
    return config


def fingerprint(source: Any, records: int = 16) -> str:
    """What a source holds, in words, and a hash of some of its records, evenly spaced.

    Pairs may be extended, so theirs is of what drew them.
    """
    shape = " x ".join(map(str, source.image_shape))
    digest = hashlib.sha256()
    if isinstance(source, pairs.PairSource):
        about = json.loads((Path(source.name.partition(":")[2]) / pairs.ABOUT).read_text())
        about.pop("count")
        digest.update(json.dumps(about, sort_keys=True).encode())
        return f"pairs of {shape}, drawn as {digest.hexdigest()[:16]}"
    for index in np.linspace(0, len(source) - 1, min(records, len(source))).astype(int):
        example = source[index]
        digest.update(np.ascontiguousarray(example["image"]).tobytes())
        digest.update(np.int64(example["label"]).tobytes())
    return (
        f"{len(source):,} images of {shape} in {source.num_classes} classes, "
        f"some of which hash to {digest.hexdigest()[:16]}"
    )
