"""What strides are learned from: a teacher's trajectories, and a network's errors on noised images.

With y = x / alpha and s = sigma / alpha (EDM's coordinates) the probability flow of every schedule
is dy/ds = eps(y, s). A teacher follows it in small steps over nodes 0..M, noise to clean, s_M = 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddim_jax import sampling
from ddim_jax.schedules import Schedule
from ddim_jax.solvers.rows import BASE, NOISE, Rows
from ddim_jax.solvers.runge_kutta import heun
from ddim_jax.solvers.table import SolverTable, State
from ddim_jax.strides.by_noise import karras

Array = Any
Sample = Callable[[SolverTable, Array | State, Array, Sequence[str]], sampling.RunResult]
"""(table, x, keys, collect) -> result: a jitted sampler with its network, inputs and guidance."""


class Trajectory(NamedTuple):
    """A teacher's path along the probability flow, in EDM's coordinates.

    Attributes:
        times: [M + 1] noise to clean; the last is the clean end.
        ratio: [M + 1] sigma / alpha, descending; the last is 0.
        y: [M + 1, B, D] x / alpha at the nodes; the last are the clean samples.
        eps: [M, B, D] predictions at the noisy nodes.
    """

    times: np.ndarray
    ratio: np.ndarray
    y: np.ndarray
    eps: np.ndarray


def teacher(
    sample: Sample,
    schedule: Schedule,
    x: Array,
    keys: Array,
    *,
    nodes: int = 61,
    lam_min: float = -5.1,
) -> Trajectory:
    """Follows the flow by Heun's method over the angle on EDM's grid; 2 nodes - 1 evaluations.

    Args:
        sample: see `Sample`; with the guidance of later use.
        x: [B, ...] standard normals.
        keys: [B] of the samples.
        nodes: M, the evaluated levels, at least 2.
        lam_min: half log-SNR of the noisy end, if the schedule goes below it.

    Returns:
        Trajectory, float32, D = the size of a sample; eps follows from x and the (clipped) x0.

    Raises:
        ValueError: fewer than 2 nodes, samples that are not finite.
    """
    if nodes < 2:
        raise ValueError(f"nodes must be at least 2, got {nodes}; GITS uses 61")
    times = karras(schedule, nodes, lam_min=lam_min)
    level, table = schedule.level(times), heun("angle")(schedule, times)
    seen = sample(table, x, keys, ("x", "x0")).collected
    after, x0 = (np.asarray(seen[name]) for name in ("x", "x0"))
    # two rows a step, the second ends at a node; the step to the clean end is a single row
    points = [table.start[0] * np.asarray(x), *after[1::2], after[-1]]
    y = np.empty((nodes + 1, len(x), x0[0, 0].size), np.float32)
    eps = np.empty_like(y[:-1])
    for i, point in enumerate(points):
        point = point.reshape(y[i].shape).astype(np.float64)
        y[i] = point / level.alpha[i]
        if i < nodes:
            clean = x0[2 * i].reshape(y[i].shape)
            eps[i] = (point - level.alpha[i] * clean) / level.sigma[i]
    trajectory = Trajectory(times, level.sigma / level.alpha, y, eps)
    check(schedule, trajectory)
    return trajectory


def noising_errors(
    sample: Sample, schedule: Schedule, images: Array, keys: Array, times: np.ndarray
) -> np.ndarray:
    """Measures `E |x0 - x0hat(alpha x0 + sigma z)|^2` at each time, all in one run.

    Args:
        images: [B, ...] float32 in [-1, 1], of the data.
        keys: [B], one per image.
        times: [M] noise to clean, without the clean end.

    Returns:
        [M] float64, summed over dimensions, mean over images.

    Raises:
        ValueError: a time at the clean end.
    """
    ratio, level = noisy_ratio(schedule, times), schedule.level(times)
    rows = Rows(schedule, times, start=(1.0, 0.0))
    for k, t in enumerate(times):
        rows.predict(t, x0=1.0)
        after = min(k + 1, len(ratio) - 1)  # the image, noised afresh
        rows.move(level.alpha[after] * BASE + level.sigma[after] * NOISE, base=BASE)
    images = np.asarray(images)
    z = np.asarray(sampling.initial_noise(keys, images.shape[1:]))
    first = (level.alpha[0] * images + level.sigma[0] * z).astype(images.dtype)
    x0 = sample(rows.table(), State(first, images), keys, ("x0",)).collected["x0"]
    errors = (images - estimate.astype(np.float64) for estimate in np.asarray(x0))
    return np.array([np.sum(error**2) / len(images) for error in errors])


def between(trajectory: Trajectory, highest: float = np.inf, lowest: float = 0.0) -> Trajectory:
    """Returns the nodes with `lowest <= sigma / alpha <= highest`, and the clean end.

    Raises:
        ValueError: there is no such node.
    """
    ratio = trajectory.ratio[:-1]
    keep = (ratio <= highest * (1 + 1e-9)) & (ratio >= lowest * (1 - 1e-9))
    if not np.any(keep):
        raise ValueError(
            f"no node has sigma / alpha in {lowest:g}..{highest:g}; the trajectory runs from "
            f"{ratio[0]:.4g} to {ratio[-1]:.4g}"
        )
    times, ratio, y = (field[np.append(keep, True)] for field in trajectory[:3])
    return Trajectory(times, ratio, y, trajectory.eps[keep])


def noisy_ratio(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """sigma / alpha at some times.

    Raises:
        ValueError: a time at the clean end.
    """
    level = schedule.level(times)
    if np.any(level.sigma == 0):
        raise ValueError("errors are learned from noised images; leave the clean end out of times")
    return level.sigma / level.alpha


def check(schedule: Schedule, trajectory: Trajectory) -> None:
    """Raises ValueError for a trajectory that is not finite, or of another schedule."""
    if not (np.all(np.isfinite(trajectory.y)) and np.all(np.isfinite(trajectory.eps))):
        raise ValueError("the trajectory is not finite; raise the teacher's lam_min, or clip x0")
    level = schedule.level(trajectory.times)
    if not np.allclose(level.sigma, trajectory.ratio * level.alpha, rtol=1e-6, atol=0):
        raise ValueError(f"the trajectory's levels are not those of schedule {schedule.name}")
