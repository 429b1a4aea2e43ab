"""Damage to clips, uint8 [N, T, H, W, C], to see which measure of `video` notices which.

Each function takes clips and a numpy random generator, and returns new clips. `reversed_` is none:
moving digits look the same backwards, and no measure may move.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

BLUR = 1.0
"""Standard deviation in pixels."""
SMEAR = 0.7
"""Standard deviation in frames."""
GAIN = 0.15
"""Standard deviation of the log of a frame's brightness."""
NOISE = 10
"""Standard deviation of 255."""


def shuffled(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frames of each clip in random order."""
    return np.stack([clip[rng.permutation(len(clip))] for clip in clips])


def independent(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each frame of another clip: what a network of single pictures draws."""
    count, frames = clips.shape[:2]
    parts = [clips[rng.permutation(count), rng.integers(0, frames, count)] for _ in range(frames)]
    return np.stack(parts, axis=1)


def frozen(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first frame, all the time."""
    return clips[:, :1].repeat(clips.shape[1], axis=1)


def blurred(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian blur of each frame."""
    return _rounded(ndimage.gaussian_filter(clips.astype(np.float32), (0, 0, BLUR, BLUR, 0)))


def smeared(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian blur over time."""
    smooth = ndimage.gaussian_filter1d(clips.astype(np.float32), SMEAR, axis=1, mode="nearest")
    return _rounded(smooth)


def reversed_(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """From the last frame to the first."""
    return clips[:, ::-1].copy()


def jittered(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each frame moved by up to a pixel along each axis."""
    moves = rng.integers(-1, 2, (*clips.shape[:2], 2))
    return np.stack(
        [
            [np.roll(frame, tuple(move), (0, 1)) for frame, move in zip(clip, way, strict=True)]
            for clip, way in zip(clips, moves, strict=True)
        ]
    )


def flickering(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each frame of another brightness."""
    gain = np.exp(GAIN * rng.normal(size=clips.shape[:2]))
    return _rounded(clips * gain[..., None, None, None])


def noisy(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise on every pixel."""
    return _rounded(clips + NOISE * rng.normal(size=clips.shape))


def cut(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another clip from the middle on."""
    changed, middle = clips.copy(), clips.shape[1] // 2
    changed[:, middle:] = np.roll(clips, 1, axis=0)[:, middle:]
    return changed


def _rounded(clips: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(clips), 0, 255).astype(np.uint8)


DAMAGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "frames shuffled": shuffled,
    "frames of different clips": independent,
    "frozen": frozen,
    "blurred": blurred,
    "smeared in time": smeared,
    "reversed": reversed_,
    "jittered by a pixel": jittered,
    "flickering": flickering,
    "noisy": noisy,
    "cut to another clip": cut,
}
"""By name."""
