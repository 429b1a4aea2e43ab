"""The data of a run: are they what its config says, and which numbers have their classes?

Pictures of another shape would not fit; classes that the data lack would never be trained, and be
drawn all the same. A run that starts from a network (`config.start_from`) takes data of some of its
classes, found by their names, and pictures without any, which are told none. A network without
classes takes all data.
"""

from typing import Any

import ml_collections

from ddim_jax import abilities, experiment
from ddim_jax.model import Model
from ddim_jax.names import few


def check(config: ml_collections.ConfigDict, source: Any, start: Model | None = None) -> None:
    """Checks that data fit a run.

    Args:
        config: resolved.
        source: the data.
        start: what the run starts from, if anything.

    Raises:
        ValueError: they are of another shape, are no clips or are some, have other classes.
    """
    name, shape = config.data.name, tuple(config.data.image_shape)
    frames = experiment.num_frames(config)
    if (found := getattr(source, "frames", 0)) != frames:
        ways = f"frames={found}, with a network of clips" if found else "frames=0"
        ways = f"set config.data.{ways}, or choose other data"
        held, wanted = (f"clips of {n} frames" if n else "pictures" for n in (found, frames))
        raise ValueError(f"{name} holds {held}, the config says {wanted}; {ways}")
    if tuple(source.image_shape) != shape:
        raise ValueError(_other_shape(config, source, shape))
    if config.model.get("num_classes", 0):
        _numbers(config, source, start)


def numbered(config: ml_collections.ConfigDict, source: Any, start: Model | None = None) -> Any:
    """The data of a run with the labels that its network is told.

    Args:
        config: resolved, with the names of its classes; the data fit it (`check`).
        source: the data.
        start: what the run starts from, if anything.
    """
    if not config.model.get("num_classes", 0):
        return source
    numbers = _numbers(config, source, start)
    return source if numbers == list(range(len(numbers))) else source.renumbered(numbers)


def note(config: ml_collections.ConfigDict, source: Any) -> str:
    """That pictures are told no class, of a network that has some; "" where they have classes."""
    if source.num_classes or not config.model.get("num_classes", 0):
        return ""
    return f"{config.data.name} has no classes: its {source.noun} are told none"


def _numbers(config: ml_collections.ConfigDict, source: Any, start: Model | None) -> list[int]:
    """The network's number of each class of the data; of data without, of none, the null label.

    Raises:
        ValueError: the network has other classes.
    """
    classes, name = config.model.num_classes, config.data.name
    own, theirs = tuple(config.data.get("class_names") or ()), source.class_names
    free = start is not None and abilities.knows_null(start)
    free = free and experiment.data_kind(config) != "pairs"  # which were drawn with their labels
    if free and not source.num_classes:
        return [classes]
    all_there = start is not None or len(theirs) == len(own)
    if own and theirs and set(theirs) <= set(own) and all_there:
        return [own.index(one) for one in theirs]
    if source.num_classes == classes and not (own and theirs):
        return list(range(classes))
    held = f"{source.num_classes} classes{f' ({few(theirs)})' if theirs else ''}"
    wanted = f"{classes}{f' ({few(own)})' if own else ''}"
    if start is not None:
        known = "; give them names among those of the network" if own else ""
        or_none = ", or leave classes out, and they are told none" if free else ""
        raise ValueError(
            f"{name} has {held}, the network of {config.start_from} {wanted}"
            f"{known or '; give them as many'}{or_none}"
        )
    if source.num_classes == classes:
        raise ValueError(
            f"the classes of {name} are {few(theirs)}, those of the network {few(own)}; name them "
            "alike"
        )
    ignored = "0 and loss.label_dropout=0"
    raise ValueError(
        f"{name} has {held}, the network {wanted}; set config.model.num_classes="
        f"{source.num_classes or ignored}, or leave it to the data by None; 0 ignores classes"
    )


def _other_shape(config: ml_collections.ConfigDict, source: Any, shape: tuple) -> str:
    """The message for pictures of another shape."""
    ways = ["choose other data"]
    if source.image_shape[:2] != shape[:2]:
        size = shape[0] if shape[0] == shape[1] else f"({shape[0]}, {shape[1]})"
        ways.append(f"set config.data.resize={size}")
    if source.image_shape[2] != shape[2]:
        ways.append(f"set config.data.channels={shape[2]}")
    held = f"{config.data.name} holds images of shape {tuple(source.image_shape)}"
    if start := config.get("start_from", ""):
        return (
            f"{held}, the network of {start} draws {shape}; name the data that it learned, by "
            "config.data.name and config.data.resize as they were, or others of that shape: "
            f"{', '.join(ways)}"
        )
    return (
        f"{held}, the config says {shape}; {', '.join(ways)}, or leave config.data.image_shape and "
        "model.out_channels to the data by None"
    )
