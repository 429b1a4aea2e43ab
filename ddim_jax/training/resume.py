"""Whether a run may go on with a config: it must say what the workdir's says, and so must the data.

The length of the run may change, and with it that of the decay of the learning rate.
"""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections

from ddim_jax import files
from ddim_jax.checkpoints.workdir import CONFIG_FILE, load_config
from ddim_jax.names import few
from ddim_jax.networks import NETWORKS
from ddim_jax.recipe import Recipe
from ddim_jax.training import fields, metrics
from ddim_jax.training import optimizer as optimizers

SAME_ON_RESUME = (
    *("data", "model", "schedule", "prediction", "loss", "optimizer", "ema", "seed"),
    *("train.batch_size", "train.lora", "start_weights", "teacher_weights"),
    *("codec", "text", "frame_noise", "guide", "weak_weights", "teacher_dtype"),
)
DATA, CAPTIONS = "data_fingerprint", "captions_fingerprint"
"""Compared on a resume too; workdirs of earlier versions lack them."""


def save_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Writes the workdir's config; on a resume checks that it is the same experiment.

    Raises:
        ValueError: the workdir holds a run of another experiment, or of other data.
    """
    file = workdir / CONFIG_FILE
    if file.exists():
        check(file, files.read_json(file), json.loads(config.to_json()))
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(file, json.loads(config.to_json()))


def checkpoint_every(workdir: Path, config: ml_collections.ConfigDict) -> int:
    """Steps from checkpoint to checkpoint so far, before `save_config`."""
    file = workdir / CONFIG_FILE
    return (load_config(workdir) if file.exists() else config).train.checkpoint_every


def check_not_lost(workdir: Path, every: int) -> None:
    """Raises ValueError where a workdir without a checkpoint tells of steps that had one.

    Args:
        workdir: of the run.
        every: of `checkpoint_every`.
    """
    told = metrics.last_step(workdir)
    if told > 2 * every:  # one may be cut off while it writes the first
        raise ValueError(
            f"{workdir} has no checkpoint, though metrics.jsonl there goes to step {told}: put its "
            "folder checkpoints back, or choose another --workdir (to start afresh in this one, "
            "remove it)"
        )


def notes(workdir: Path, config: ml_collections.ConfigDict) -> list[str]:
    """What is other than before in a run that goes on, in words: its length, its pictures."""
    if not (workdir / CONFIG_FILE).exists():
        return []
    before, found = load_config(workdir), []
    was, now = (optimizers.decay_steps(one) for one in (before, config))
    if was != now:
        found.append(
            f"the learning rate now falls to 0 at step {now}, it was {was}; the run goes on by the "
            "new rule, other than one of that length from the beginning"
        )
    was, now = (dataclasses.asdict(Recipe.of(one)) for one in (before, config))
    changed = [
        f"{name}={now[name]!r}, it was {was[name]!r}" for name in was if was[name] != now[name]
    ]
    if changed:
        found.append(f"the run's pictures are now drawn with config.sample.{', '.join(changed)}")
    return found


def check(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Checks that a config is of the same experiment as that in a workdir.

    Args:
        file: of the workdir's config, for messages.
        old: what it says.
        new: the config of the run that is to go on.

    Raises:
        ValueError: it is another experiment, or of other data; the message names what changed.
    """
    if old["data"]["name"] == new["data"]["name"]:
        _check_data(file, old, new)
    _check_settings(file.parent, _settings(old, new), _settings(new, old))
    _check_data(file, old, new)


def _check_data(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    was, now = (list(config["data"].get("class_names") or ()) for config in (old, new))
    if was and was != now:
        raise ValueError(
            f"the data of the run in {file.parent} have changed: the classes were {few(was)}, they "
            f"are {few(now) or 'without names'}; restore the data, or choose another --workdir"
        )
    if CAPTIONS in old and CAPTIONS in new and old[CAPTIONS] != new[CAPTIONS]:
        raise ValueError(
            f"the captions of the run in {file.parent} have changed since: restore those of "
            f"{new['data']['name']}, or choose another --workdir (to go on with these all the "
            f"same, remove {CAPTIONS} from {file})"
        )
    if DATA not in old or DATA not in new or old[DATA] == new[DATA]:
        return
    way_out = f"to go on with these all the same, remove {DATA} from {file}"
    if new["data"]["name"].startswith("folder:") and "class_names" not in old["data"]:
        way_out = (
            "version 0.1 read no .bmp, .gif and .tif, and sorted sub-folders named by numbers as "
            "text, 0, 1, 10, 2: move such images away, and name the sub-folders c0, c1, c10, c2"
        )
    raise ValueError(
        f"the data of the run in {file.parent} have changed: {new['data']['name']} was "
        f"{old[DATA]}, it is {new[DATA]}; restore the data, or choose another --workdir ({way_out})"
    )


def _check_settings(workdir: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    both = {name: (old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())}
    both = {name: values for name, values in both.items() if values[0] != values[1]}
    changed = [f"config.{name} is {was!r}, not {now!r}" for name, (was, now) in both.items()]
    if both and set(both) <= {"start_weights", "teacher_weights", "weak_weights"}:
        raise ValueError(
            f"{workdir} began from a network that has other weights now, as after training on; "
            f"remove {workdir} alone to train it anew from these, or choose another --workdir"
        )
    if changed:
        more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{workdir} holds a run whose {', '.join(changed[:3])}{more}; choose another "
            f"--workdir (there config.start_from={workdir} goes on from what was learned), or "
            "remove that one"
        )


def _settings(config: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What must be the same on a resume, by its path, with defaults for what only `other` says.

    Configs come to say more from version to version; what says the same is the same.
    """
    config = copy.deepcopy(config)
    network = NETWORKS[config["model"].get("name", "unet")]
    built = {field.name: field.default for field in dataclasses.fields(network)}
    built |= {"name": "unet", "vector_dim": 0}  # the second is of version 0.1
    config["model"] = json.loads(json.dumps(built, default=str)) | config["model"]
    config["data"] = {"resize": 0, "data_dir": "", "pad": False, "channels": None} | config["data"]
    for name, default in (("cache", False), ("latents", None), ("caption", ""), ("augment", None)):
        config["data"].setdefault(name, default)
    config["data"]["resize"] = config["data"]["resize"] or 0
    for name in ("class_names", "skip_unreadable"):  # of the data, which have a fingerprint
        config["data"].pop(name, None)
    config.setdefault("teacher_dtype", "float32")
    optimizer = config["optimizer"]
    steps = optimizer.pop("decay_steps", None)  # which follow the length of the run
    falls = optimizer.get("decay") or ("cosine" if steps else "constant")
    optimizer["decay"] = "constant" if steps == 0 else falls
    for section in (*fields.NAMED, "optimizer", "train.lora"):
        _fill(config, section, _at(other, section))
    points = (config["loss"].get("pairs") or {}).get("points") or {}
    if points.get("name") in ("growing", "doubling"):
        points.setdefault("total_steps", config["train"]["steps"])
    return dict(_leaves({name: _at(config, name) for name in SAME_ON_RESUME}, ""))


def _fill(config: dict[str, Any], section: str, other: Any) -> None:
    """Writes the defaults of what the other section says, if they are numbers, texts and so on."""
    options = _at(config, section)
    if not (isinstance(options, dict) and isinstance(other, dict)):
        return
    known = fields.known_fields(section, config)
    known.pop("decay_steps", None)  # compared by what it does
    for name, default in known.items():
        if name in other and isinstance(default, bool | int | float | str | tuple):
            options.setdefault(name, list(default) if isinstance(default, tuple) else default)


def _at(config: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _leaves(section: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(section, dict):
        yield path, section
        return
    for name, value in section.items():
        yield from _leaves(value, f"{path}.{name}" if path else name)
