"""Clips of one bouncing digit each, made when they are asked for; their paths are known exactly.

    place(f) = fold(p + v f; room) + c       on each axis, in pixels, in frame f

A digit of the package, at half its size (ink about 10 x 10), moves at a constant speed v and turns
round at the walls, where its blank margin hangs over by `OVER` pixels. It is placed at twice the
frame's resolution and averaged, so that places are exact to half a pixel. Clip i of a split is
decided by the split and i alone. The digits of "train" and "test" are disjoint.

Frames are 32 x 32; in smaller or larger ones the digit keeps its size and has less or more room.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddim_jax.data import captions, digits
from ddim_jax.data.frame_choice import Cut
from ddim_jax.data.images import Size, height_width

SPLITS = {"train": (slice(0, 4000), 100_000), "test": (slice(4000, None), 2000)}
"""Which of the package's digits move, and the number of clips."""
BOX, OVER = 28, 3
SIDE, FRAMES = 32, 16
SPEED = (0.5, 1.5)
"""Pixels a frame."""
RATE = 8.0
"""Frames a second."""
LEAST = 12
"""Pixels of a side; of 11 the digit fills it, and cannot move."""


def room(side: int) -> int:
    """How far the digit's box can move along a side of so many pixels, in half pixels."""
    return 2 * side + 2 * OVER - BOX


def fold(x: np.ndarray, length: float | np.ndarray) -> np.ndarray:
    """A straight line that turns round at 0 and at `length`: a triangle wave of slope 1."""
    x = np.mod(x, 2 * length)
    return np.where(x > length, 2 * length - x, x)


@functools.cache
def of_split(split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The digits uint8 [N, 28, 28] of a split, their labels [N] and captions.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"moving_digits has the splits {' and '.join(SPLITS)}, got {split!r}")
    images, labels = digits.read("train")
    texts, rows = captions.of_digits(images, labels), SPLITS[split][0]
    return images[rows, ..., 0], labels[rows].astype(np.int32), texts[rows]


def which(count: int, seed: int, index: int) -> tuple[int, np.random.Generator]:
    """Which of `count` digits moves in a clip, and what draws the rest of it."""
    rng = np.random.default_rng([seed, index])
    return int(rng.integers(count)), rng


def path(
    rng: np.random.Generator, frames: int, size: tuple[int, int] = (SIDE, SIDE), step: float = 1.0
) -> np.ndarray:
    """Corners of the digit's box, int [T, 2] (y, x), in half pixels from `OVER` outside the frame.

    Args:
        rng: draws place, direction and speed.
        frames: T.
        size: (height, width) of the frame in pixels.
        step: time between frames; 1 is a frame of `RATE`.
    """
    rooms = np.array([room(side) for side in size])
    start, angle, speed = rng.uniform(0, rooms), rng.uniform(0, 2 * np.pi), rng.uniform(*SPEED)
    velocity = 2 * speed * np.array([np.sin(angle), np.cos(angle)])
    places = start + step * np.arange(frames)[:, None] * velocity
    return np.rint(fold(places, rooms)).astype(int)


def clip(digit: np.ndarray, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames uint8 [T, H, W, 1] of a digit uint8 [28, 28] along a `path`."""
    height, width = size
    canvas = np.zeros((len(corners), 2 * (height + OVER), 2 * (width + OVER)), np.uint8)
    for frame, (y, x) in zip(canvas, corners, strict=True):
        frame[y : y + BOX, x : x + BOX] = digit
    canvas = canvas[:, OVER:-OVER, OVER:-OVER]
    means = canvas.reshape(-1, height, 2, width, 2).mean((2, 4))
    return np.rint(means).astype(np.uint8)[..., None]


def read(
    split: str,
    index: int,
    *,
    seed: int = 0,
    frames: int = FRAMES,
    size: tuple[int, int] = (SIDE, SIDE),
    step: float = 1.0,
) -> tuple[np.ndarray, int]:
    """Clip uint8 [T, H, W, 1] and label; arguments as of `which` and `path`."""
    images, labels, _ = of_split(split)
    row, rng = which(len(images), seed, index)
    return clip(images[row], path(rng, frames, size, step), size), labels[row]


class Captions(Sequence):
    """Texts such as "a bold seven" of a split's clips, found when they are asked for."""

    def __init__(self, split: str, seed: int = 0):
        """Finds nothing yet."""
        self._texts, self._seed, self._count = of_split(split)[2], seed, SPLITS[split][1]

    def __len__(self) -> int:
        """The number of clips."""
        return self._count

    def __getitem__(self, index: int) -> str:
        """The text of a clip."""
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._texts[which(len(self._texts), self._seed, index % self._count)[0]]


def open_clips(split: str, cut: Cut, size: Size, channels: int | None) -> dict[str, Any]:
    """Fields of a `Source` of a split's clips.

    Args:
        split: "train" or "test".
        cut: how many frames there are, and how far apart.
        size: of the frames; None for 32 x 32.
        channels: 1 or None for grey, 3 for RGB.

    Raises:
        ValueError: there is no such split; frames in which no digit can move.
    """
    height, width = height_width(size or SIDE)
    if min(height, width) < LEAST:
        raise ValueError(
            f"a digit moves in frames of {LEAST} x {LEAST} or more, got {height} x {width}; 16 and "
            "32 are usual"
        )
    rate = float(cut.rate) if cut.timed else RATE / cut.stride
    options = {"frames": cut.frames or FRAMES, "size": (height, width), "step": RATE / rate}
    of_split(split)  # is there such a split?
    count = SPLITS[split][1]

    def made(index: int) -> tuple[np.ndarray, int]:
        clip, label = read(split, index, **options)
        return (clip.repeat(3, axis=-1) if channels == 3 else clip), label

    return {
        "image_shape": (height, width, channels or 1),
        "num_classes": 10,
        "count": count,
        "frames": options["frames"],
        "read": made,
        "captions": Captions(split),
        "told": {"frame_rate": np.full(count, rate, np.float32)},
    }
