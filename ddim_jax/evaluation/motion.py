"""How well places follow a straight line that bounces between walls, as moving digits do.

    place(f) = fold(p + v f; room) + c          least squares, each axis on its own

`data/moving_digits.py` makes clips that follow such a line exactly; what is left of their centroids
is their rounding to half a pixel. Names: N clips of T frames; places in pixels, speeds in pixels a
frame.
"""

import numpy as np

from ddim_jax.data.moving_digits import fold

FASTEST = 2.0
"""Pixels a frame, the highest speed that is tried; real digits move at 0.5 to 1.5."""
FINE = 4
"""Rounds of search, each four times as fine as the one before."""
WORST = 9.0
"""Pixels: what a residual counts at most, and that of a clip in which nothing is seen."""


def bounce_fit(places: np.ndarray, rooms: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Fits bouncing lines to places.

    Args:
        places: [N, T, 2], NaN where nothing is seen.
        rooms: how far a place can move along each axis.

    Returns:
        Residuals [N], root mean square over frames of the distance, at most `WORST`; and speeds
        [N]. Of a clip in which less than half of the frames show something, `WORST` and 0.
    """
    seen = np.isfinite(places[..., 0])
    squares, velocities = zip(
        *(_fit_axis(places[..., axis], seen, room) for axis, room in enumerate(rooms)), strict=True
    )
    residual, speed = np.sqrt(sum(squares)), np.sqrt(sum(v**2 for v in velocities))
    enough = 2 * seen.sum(axis=1) >= places.shape[1]
    return np.where(enough, np.minimum(residual, WORST), WORST), np.where(enough, speed, 0)


def _fit_axis(x: np.ndarray, seen: np.ndarray, room: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares [N] that are left of places [N, T] on one axis, and velocities [N]."""
    weights = seen / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    x = np.where(seen, x, 0)
    steps = np.array([max(0.25, room / 40), 0.05])
    grid = np.stack(
        np.meshgrid(np.arange(0, 2 * room, steps[0]), np.arange(0, FASTEST + 1e-9, steps[1])), -1
    ).reshape(-1, 2)
    lines = fold(grid[:, :1] + grid[:, 1:] * np.arange(x.shape[1]), room)
    mean = (weights * x).sum(axis=1, keepdims=True) - weights @ lines.T
    left = weights @ (lines**2).T - 2 * (weights * x) @ lines.T - mean**2  # and what all share
    at, best = grid[left.argmin(axis=1)], np.full(len(x), np.inf)
    around = np.stack(np.meshgrid(*[np.linspace(-1, 1, 9)] * 2), -1).reshape(-1, 2)
    for level in range(FINE - 1):
        tried = at[:, None] + around * steps / 4**level
        squares, found = _best(x, weights, tried, room)
        better = squares < best
        best, at = np.where(better, squares, best), np.where(better[:, None], found, at)
    return best, at[:, 1]


def _best(x: np.ndarray, weights: np.ndarray, tried: np.ndarray, room: float) -> tuple:
    """Of phases and velocities [N, K, 2] the best of each clip: mean squares [N], and [N, 2]."""
    lines = fold(tried[..., :1] + tried[..., 1:] * np.arange(x.shape[1]), room)
    weights, gap = weights[:, None], x[:, None] - lines
    left = (weights * gap**2).sum(-1) - (weights * gap).sum(-1) ** 2
    row, k = np.arange(len(x)), left.argmin(axis=1)
    return np.maximum(left[row, k], 0), tried[row, k]


def jerk(places: np.ndarray) -> np.ndarray:
    """The median length of the third difference of places [N, T, 2], in pixels, [N].

    NaN of a clip in which no four frames in a row show something.
    """
    lengths = np.linalg.norm(np.diff(places, n=3, axis=1), axis=-1)
    found = np.isfinite(lengths).any(axis=1)
    return np.where(found, np.nanmedian(np.where(found[:, None], lengths, 0), axis=1), np.nan)


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """The distance W1 of two samples of numbers, by their quantiles."""
    levels = np.linspace(0.005, 0.995, 100)
    return float(np.abs(np.quantile(a, levels) - np.quantile(b, levels)).mean())
