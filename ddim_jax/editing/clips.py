"""Reads the clips, first frames and moving masks that commands are given, and writes clips."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import experiment
from ddim_jax.data import clip_files, folders, npz
from ddim_jax.data.clip_writers import MOVING
from ddim_jax.data.clips import Cut, fit_frames
from ddim_jax.data.images import fit_pil, to_pil
from ddim_jax.model import Model

Array = np.ndarray
ENDINGS = (*MOVING, ".png")
"""Of files that show clips."""


def first_frames(model: Model, paths: Sequence[str], resize: bool) -> Array:
    """The first frames in files, uint8 [P, H, W, C], of the size of a model's frames.

    Args:
        model: of clips.
        paths: pictures, animations and videos, one each; and npz files of pictures or clips.
        resize: crop and resize them.

    Raises:
        ValueError: a file that cannot be read, or of another size or kind without `resize`.
        OSError: a file that is not there.
    """
    return np.concatenate([_read(model, path, resize, first=True)[:, 0] for path in paths])


def whole(model: Model, paths: Sequence[str], resize: bool) -> Array:
    """The clips in files, uint8 [P, K, H, W, C]; arguments and errors as of `first_frames`.

    Raises:
        ValueError: also clips of different numbers of frames; a still picture.
    """
    found = [_read(model, path, resize) for path in paths]
    counts = sorted({one.shape[1] for one in found})
    if len(counts) > 1:
        raise ValueError(
            f"clips must have one number of frames, got {counts[0]} to {counts[-1]}: draw on from "
            "them in several commands"
        )
    return np.concatenate(found)


def read_file(model: Model, path: Path, resize: bool) -> Array:
    """The clip in a file, its first frames, as a clip of the model: uint8 [1, T, H, W, C].

    Raises:
        ValueError: fewer frames than the model's clips have; otherwise as `whole`.
    """
    found, frames = _read(model, str(path), resize), model.codec.frames
    if found.shape[1] < frames:
        raise ValueError(
            f"{path} has {found.shape[1]} frames, and clips of {model.name} {frames}: draw on from "
            f"it by sample.py --clip={path}"
        )
    return found[:, :frames]


def _read(model: Model, path: str, resize: bool, first: bool = False) -> Array:
    """The clips in a file, uint8 [P, K, H, W, C]; a picture is one of one frame, if `first`."""
    file, (height, width, channels) = Path(path).expanduser(), model.codec.picture_shape[-3:]
    if not model.codec.frames:
        raise ValueError(f"{model.name} draws pictures, and {path} needs a network of clips")
    if not file.exists():
        raise FileNotFoundError(f"there is no file {path} of frames")
    size = (height, width) if resize else None
    if file.suffix.lower() == ".npz":
        arrays = npz.read(file, "train")[0]
        if arrays.ndim == 4 and not first:
            raise ValueError(f"{path} holds pictures: give them by first_frame={path}")
        arrays = arrays[:, None] if arrays.ndim == 4 else arrays[:, :1] if first else arrays
        if resize:
            arrays = np.stack([fit_frames(one, size, channels) for one in arrays])
    else:
        kind = channels if resize else 3
        arrays = np.stack([fit_pil(one, size, kind) for one in _frames(file, first)])[None]
        if channels == 1 and np.all(arrays == arrays[..., :1]):
            arrays = arrays[..., :1]
    if arrays.shape[2:] != (height, width, channels):
        raise ValueError(
            f"{path} holds frames of shape {list(arrays.shape[2:])}, {model.name} draws "
            f"{[height, width, channels]}; --resize crops and resizes them"
        )
    return arrays


def _frames(file: Path, first: bool) -> list[Any]:
    """Pillow images: the frames of a file or a folder of frames, or the first of them."""
    video = file.suffix.lower() in clip_files.VIDEOS
    if first and not video and not file.is_dir():
        folders.check_files(file.parent, [file])
        return [to_pil(folders.read_file(file, None, 3))]
    try:
        found = clip_files.inspect(file)
        problem = "" if first else Cut().problem(found)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{file} cannot be taken as a clip: {problem}")
    return clip_files.read(file, found, [0] if first else range(len(found.ends)))


def digest(known: Mapping[str, Any]) -> str | None:
    """sha256 of the pictures that are known; None if there are none."""
    arrays = [known[name] for name in ("first_frame", "clip") if name in known]
    if not arrays:
        return None
    return hashlib.sha256(np.ascontiguousarray(arrays[0]).tobytes()).hexdigest()


def frame_rate(model: Model, interpolate: int | None = None) -> float:
    """Frames a second at which clips of a model are shown."""
    return experiment.frame_rate(model.config) * (interpolate or 1)
