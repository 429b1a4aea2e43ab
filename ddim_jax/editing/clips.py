"""Reads the clips, first frames and moving masks that commands are given."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import experiment
from ddim_jax.data import clip_files, folders, npz
from ddim_jax.data.clip_files import Timeline
from ddim_jax.data.clip_writers import MOVING
from ddim_jax.data.clips import fit_frames, read_taken
from ddim_jax.data.frame_choice import ALIKE, Cut, Windows
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
    return np.concatenate([_read(model, path, resize, _first, True)[:, 0] for path in paths])


def whole(model: Model, paths: Sequence[str], resize: bool, fits: Callable[[int], Any]) -> Array:
    """The clips in files, uint8 [P, K, H, W, C].

    Args:
        model: as of `first_frames`.
        paths: as of `first_frames`.
        resize: as of `first_frames`.
        fits: raises ValueError for a number of frames that is of no use, before they are read.

    Raises:
        ValueError: as `first_frames`; also clips of different numbers of frames; a still picture.
        OSError: as `first_frames`.
    """

    def frames_of(file: Path) -> list[Any]:
        return _all(file, lambda found: fits(len(found.ends)))

    found = [_read(model, path, resize, frames_of) for path in paths]
    counts = sorted({one.shape[1] for one in found})
    if len(counts) > 1:
        raise ValueError(
            f"clips must have one number of frames, got {counts[0]} to {counts[-1]}: draw on from "
            "them in several commands"
        )
    return np.concatenate(found)


def rate_of(paths: Sequence[str]) -> float | None:
    """Frames a second of clips in files; None where they do not say it.

    Raises:
        ValueError: they differ.
    """
    rates = []
    for file in (Path(path).expanduser() for path in paths):
        if file.suffix.lower() == ".npz":
            count = len(npz.read(file, "train")[0])
            own = npz.read_frame_rates(file, "train", count)
            rates += [] if own is None else own.tolist()
        elif rate := clip_files.inspect(file).rate:
            rates.append(rate)
    if rates and max(rates) > ALIKE * min(rates):
        raise ValueError(
            f"clips must have one rate, got {min(rates):g} to {max(rates):g} frames a second: draw "
            f"on from them in several commands, or at frame_rate={min(rates):.4g}"
        )
    return rates[0] if rates else None


def read_file(model: Model, path: Path, resize: bool) -> Array:
    """The clip in a file, its first frames, as a clip of the model: uint8 [1, T, H, W, C].

    They are taken as in training: by `config.data.frame_rate` or `frame_stride`.

    Raises:
        ValueError: fewer frames than the model's clips have; otherwise as `whole`.
    """
    frames, chosen = model.codec.frames, experiment.cut(model.config)
    cut = Cut.of(frames, chosen["frame_rate"], chosen["frame_stride"])

    def frames_of(file: Path) -> list[Any]:
        found = _inspect(file, cut.timed)
        if (count := cut.available(found)) < frames:
            how = f" at {cut.rate:g} a second" if cut.timed else ""
            how = f" by taking every {cut.stride}th" if cut.stride > 1 else how
            raise ValueError(
                f"{path} has {count} frames{how}, and clips of {model.name} {frames}: draw on from "
                f"it by sample.py --from_clip={path}"
            )
        return read_taken(file, found, Windows(str(path), [found], cut))

    return _read(model, str(path), resize, frames_of)


def _read(
    model: Model,
    path: str,
    resize: bool,
    frames_of: Callable[[Path], list[Any]],
    first: bool = False,
) -> Array:
    """The clips in a file, uint8 [P, K, H, W, C].

    Args:
        model: as of `first_frames`.
        path: of the file.
        resize: as of `first_frames`.
        frames_of: the Pillow images of a file or a folder of frames, but an npz file.
        first: take of an npz file the first frames, or pictures, which are clips of one frame.
    """
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
        arrays = np.stack([fit_pil(one, size, kind) for one in frames_of(file)])[None]
        if channels == 1 and np.all(arrays == arrays[..., :1]):
            arrays = arrays[..., :1]
    if arrays.shape[2:] != (height, width, channels):
        raise ValueError(
            f"{path} holds frames of shape {list(arrays.shape[2:])}, {model.name} draws "
            f"{[height, width, channels]}; --resize crops and resizes them"
        )
    return arrays


def _first(file: Path) -> list[Any]:
    """The picture in a file, or the first frame of what moves."""
    if file.suffix.lower() in clip_files.VIDEOS or file.is_dir():
        return clip_files.read(file, _inspect(file), [0])
    folders.check_files(file.parent, [file])
    return [to_pil(folders.read_file(file, None, 3))]


def _all(file: Path, check: Callable[[Timeline], Any]) -> list[Any]:
    """All frames of a file or a folder of frames, Pillow images, once their number is checked."""
    found = _inspect(file, uneven=False)
    check(found)
    return clip_files.read(file, found, range(len(found.ends)))


def _inspect(file: Path, uneven: bool = True) -> Timeline:
    """What a file says of its frames; `uneven`: they may be shown for different times.

    Raises:
        ValueError: it cannot be taken as a clip.
    """
    try:
        found = clip_files.inspect(file)
        same = uneven or found.steady
        problem = "" if same else "its frames are shown for different times: write it at one rate"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{file} cannot be taken as a clip: {problem}")
    return found


def known_frames(text: str, count: int) -> Array:
    """Which of `count` frames are known, bool [T], where a text like 4-11,15 or odd names the rest.

    Raises:
        ValueError: something else, or frames that clips do not have.
    """
    known = np.ones(count, bool)
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            if part == "odd":
                known[1::2] = False
                continue
            first, last = int(first), int(last or first)
            if not 0 <= first <= last < count:
                raise ValueError
            known[first : last + 1] = False
    except ValueError:
        raise ValueError(
            f"--mask=frames:{text} must name frames to draw, 0..{count - 1}, like frames:4-11,15 "
            "or frames:odd"
        ) from None
    return known


def moves(path: str) -> bool:
    """Whether a path is of a clip, and not of a still picture."""
    file = Path(path)
    if not file.exists() or not (file.is_dir() or clip_files.is_clip(file)):
        return False
    try:
        return bool(clip_files.inspect(file))
    except ValueError:
        return False


def moving_mask(path: Path, shape: tuple[int, int, int], resize: bool) -> Array:
    """A mask in a file, one picture for each frame: bool [T, H, W], white is known.

    Raises:
        ValueError: another number of frames, or another size without `resize`.
    """
    size = shape[1:] if resize else None

    def check(found: Timeline) -> None:
        if (own := (len(found.ends), *(size or found.size[::-1]))) != shape:
            raise ValueError(
                f"--mask {path} is {_times(own)}, and the clips are {_times(shape)}, frames, "
                "height and width; give as many frames, --resize crops and resizes both; a still "
                "mask holds for all frames"
            )

    return np.stack([fit_pil(one, size, 1)[..., 0] for one in _all(path, check)]) > 127


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def digest(known: Mapping[str, Any]) -> str | None:
    """sha256 of the pictures that are known; None if there are none."""
    arrays = [known[name] for name in ("first_frame", "from_clip") if name in known]
    if not arrays:
        return None
    return hashlib.sha256(np.ascontiguousarray(arrays[0]).tobytes()).hexdigest()
