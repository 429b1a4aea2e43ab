"""One-step integrators of the probability-flow ODE, in a space of choice.

Along the flow `dx` is straightest in different coordinates for different schedules, so a space is a
triple: the norm n that the sample is divided by, the clock u, and the slope `dz/du` of `z = x / n`
as weights of (x0, eps):

    sigma   n = alpha            u = sigma / alpha             slope eps                  (EDM)
    flow    n = alpha + sigma    u = sigma / (alpha + sigma)   slope eps - x0             (flow)
    angle   n = |alpha, sigma|   u = atan2(sigma, alpha)       slope v / n                (DDIM's v)

A fixed prediction (x0, eps) draws z on a straight line over u in the first two, on a circle over
the angle. Euler's step follows it, `z' = z + du slope` or `z' = cos(du) z + sin(du) slope`: it is
DDIM in all three, and exactly x0 at the clean end, where a straight step in the angle would leave
noise. In sigma space alpha = 0 cannot be reached and lam below about -5 integrates badly (u is
exponentially large there); flow and angle hold at both ends.

Sources: Karras et al. 2022 (arXiv:2206.00364), algorithm 1; Song et al. 2021 (arXiv:2010.02502).
"""

from collections.abc import Callable

import numpy as np

from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.solvers.ddim import Solver
from ddim_jax.solvers.table import SolverTable, empty


def _sigma(level: NoiseLevel):
    with np.errstate(divide="ignore"):
        return level.alpha, level.sigma / level.alpha, (0.0, 1.0)


def _flow(level: NoiseLevel):
    n = level.alpha + level.sigma
    return n, level.sigma / n, (-1.0, 1.0)


def _angle(level: NoiseLevel):
    n = np.hypot(level.alpha, level.sigma)
    return n, np.arctan2(level.sigma, level.alpha), (-level.sigma / n, level.alpha / n)


SPACES: dict[str, Callable] = {"sigma": _sigma, "flow": _flow, "angle": _angle}
"""Space by name: level -> (norm, clock, slope weights)."""


def _space(name: str) -> Callable:
    if name not in SPACES:
        raise ValueError(f"unknown space {name!r}; the spaces are {', '.join(SPACES)}")
    return SPACES[name]


def _euler(space: str, du: float) -> tuple[float, float]:
    """Weights of (z, slope) in the step that is exact for a fixed prediction."""
    return (np.cos(du), np.sin(du)) if space == "angle" else (1.0, du)


def euler(space: str = "sigma") -> Solver:
    """Explicit Euler; the same map as DDIM in every space. One evaluation per step, order 1.

    Args:
        space: what is integrated, "sigma", "flow" or "angle".
    """
    coordinates = _space(space)

    def solver(schedule: Schedule, times: np.ndarray) -> SolverTable:
        table = empty(schedule, times, times[:-1], slots=1)
        for k in range(len(times) - 1):
            n, u, slope = coordinates(schedule.level(times[k]))
            n_next, u_next, _ = coordinates(schedule.level(times[k + 1]))
            keep, move = _euler(space, u_next - u)
            table.store[k] = slope
            table.state[k, :, 0] = keep * n_next / n
            table.history[k, :, 0] = move * n_next
        return table

    return solver


def heun(space: str = "sigma") -> Solver:
    """Heun's trapezoid: two evaluations per step, order 2; the step to sigma = 0 is Euler's.

    Args:
        space: what is integrated; "sigma" is EDM's sampler, "flow" that of rectified flow.

    Source: Karras et al. 2022, algorithm 1 (sigma space).
    """
    coordinates = _space(space)

    def solver(schedule: Schedule, times: np.ndarray) -> SolverTable:
        at = []  # two rows a step, one for a step to the clean end
        for t, s in zip(times[:-1], times[1:], strict=True):
            at += [t] if schedule.level(s).sigma == 0 else [t, s]
        table = empty(schedule, times, np.array(at), slots=2)
        k = 0
        for t, s in zip(times[:-1], times[1:], strict=True):
            n, u, slope = coordinates(schedule.level(t))
            n_next, u_next, slope_next = coordinates(schedule.level(s))
            scale, step = n_next / n, n_next * (u_next - u)
            first, second = k % 2, (k + 1) % 2
            table.store[k] = slope
            if schedule.level(s).sigma == 0:
                keep, move = _euler(space, u_next - u)
                table.state[k, :, 0] = keep * scale
                table.history[k, :, first] = move * n_next
                break
            table.state[k] = [[scale, 0], [1, 0]]
            table.history[k, 0, first] = step
            table.store[k + 1] = slope_next
            table.state[k + 1] = [[0, scale], [0, scale]]
            table.history[k + 1, :, [first, second]] = step / 2
            k += 2
        return table

    return solver
