"""One-step integrators of the probability-flow ODE, in a space of choice.

Along the flow `dx` is straightest in different coordinates for different schedules, so a space is
the norm n that the sample is divided by, the clock u, and the slope `dz/du` of `z = x / n` as
weights of (x0, eps):

    sigma   n = alpha            u = sigma / alpha             slope eps                  (EDM)
    flow    n = alpha + sigma    u = sigma / (alpha + sigma)   slope eps - x0             (flow)
    angle   n = |alpha, sigma|   u = atan2(sigma, alpha)       slope v / n                (DDIM's v)

A fixed prediction (x0, eps) draws z on a straight line over u in the first two, on a circle over
the angle. Euler's step follows it, `z' = z + du slope` or `z' = cos(du) z + sin(du) slope`: it is
DDIM in all three, and exactly x0 at the clean end, where a straight step in the angle would leave
noise. The step to the clean end is Euler's in every solver here. In sigma space alpha = 0 cannot be
reached and lam below about -5 integrates badly (u is exponentially large there); flow and angle
hold at both ends.

Sources: Karras et al. 2022 (arXiv:2206.00364), algorithms 1 and 2; Song et al. 2021
(arXiv:2010.02502); Liu et al. 2022 (arXiv:2209.03003).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.solvers.rows import BASE, NOISE, POINT, Combination, Rows
from ddim_jax.solvers.solver import LIMIT, Solver
from ddim_jax.solvers.table import SolverTable

EDM = "Karras et al. 2022, arXiv:2206.00364"


class Knot(NamedTuple):
    """A time in a space: the norm n, the clock u, the slope's weights of (x0, eps)."""

    t: float
    n: float
    u: float
    slope: tuple[float, float]


def _sigma(level: NoiseLevel) -> Knot:
    with np.errstate(divide="ignore"):
        return Knot(level.t, level.alpha, level.sigma / level.alpha, (0.0, 1.0))


def _flow(level: NoiseLevel) -> Knot:
    n = level.alpha + level.sigma
    return Knot(level.t, n, level.sigma / n, (-1.0, 1.0))


def _angle(level: NoiseLevel) -> Knot:
    n = np.hypot(level.alpha, level.sigma)
    slope = (-level.sigma / n, level.alpha / n)
    return Knot(level.t, n, np.arctan2(level.sigma, level.alpha), slope)


SPACES = {"sigma": _sigma, "flow": _flow, "angle": _angle}
"""Spaces by name."""

_LAM_AT = {  # u -> lam
    "sigma": lambda u: -np.log(u),
    "flow": lambda u: np.log1p(-u) - np.log(u),
    "angle": lambda u: -np.log(np.tan(u)),
}

Step = Callable[[Rows, Knot, Knot, Callable[[float], Knot]], None]
"""Writes the rows of one step between two knots; the last argument finds the knot at a clock u."""


def _one_step(name: str, space: str, stages: int, step: Step, **facts: Any) -> Solver:
    """The solver that takes a step of order `stages` everywhere but into the clean end."""
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}; the spaces are {', '.join(SPACES)}")

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        rows = Rows(schedule, times)

        def knot_at(u: float) -> Knot:
            return SPACES[space](schedule.level(schedule.time_of(_LAM_AT[space](u))))

        knots = [SPACES[space](schedule.level(t)) for t in times]
        for now, after in zip(knots[:-1], knots[1:], strict=True):
            if after.u == 0:
                _euler_step(space, rows, now, after)
            else:
                step(rows, now, after, knot_at)
        return rows.table()

    facts.setdefault("source", EDM)
    facts.setdefault("order", stages)
    lam_min = LIMIT if space == "sigma" else None
    return Solver(make_table=make_table, stages=stages, lam_min=lam_min, name=name, **facts)


def _slope(rows: Rows, at: Knot) -> Combination:
    return rows.predict(at.t, x0=at.slope[0], eps=at.slope[1])


def _along(point: Combination, start: Knot, end: Knot, slope: Combination) -> Combination:
    """`x' / n' = x / n + (u' - u) slope`."""
    return end.n / start.n * point + end.n * (end.u - start.u) * slope


def _euler_step(space: str, rows: Rows, now: Knot, after: Knot, knot_at=None) -> None:
    """The step that is exact for a fixed prediction."""
    slope = _slope(rows, now)
    if space == "angle":
        du = after.u - now.u
        rows.move(after.n * (np.cos(du) / now.n * POINT + np.sin(du) * slope))
    else:
        rows.move(_along(POINT, now, after, slope))


def euler(space: str = "sigma") -> Solver:
    """Explicit Euler; the same map as DDIM in every space. One evaluation per step, order 1.

    Args:
        space: what is integrated, "sigma", "flow" or "angle".
    """
    return _one_step("euler", space, 1, partial(_euler_step, space))


def _heun_step(
    rows: Rows, now: Knot, after: Knot, knot_at=None, finish=lambda point: point
) -> None:
    first = _slope(rows, now)
    rows.move(_along(POINT, now, after, first), base=POINT)
    second = _slope(rows, after)
    rows.move(finish(_along(BASE, now, after, (first + second) / 2)))


def heun(space: str = "sigma") -> Solver:
    """Heun's trapezoid: two evaluations per step, order 2.

    Args:
        space: what is integrated; "sigma" is EDM's sampler, "flow" that of rectified flow.

    Source: Karras et al. 2022, algorithm 1 (sigma space).
    """
    stride = "karras" if space == "sigma" else "uniform"
    return _one_step("heun", space, 2, _heun_step, stride=stride)


def midpoint(
    space: str = "sigma", *, ancestral: bool = False, exact_middle: bool = False
) -> Solver:
    """The midpoint method: two evaluations per step, order 2.

    Args:
        space: what is integrated; in "sigma" the middle is the geometric mean, as in the sampler
            known as DPM-2, in the others that of the clock.
        ancestral: steps in sigma space to where fresh noise leads back to the next level, DDIM's
            eta = 1 (DPM-2 ancestral).
        exact_middle: tells the network the middle's own index on a discrete schedule, even one that
            rounds its model times (diffusers).

    Raises:
        ValueError: an unknown space; ancestral in another than "sigma".

    Source: Karras et al. 2022 and its k-diffusion code (sigma space).
    """
    if ancestral and space != "sigma":
        raise ValueError(f"ancestral=True needs space='sigma', got {space!r}")

    def step(rows: Rows, now: Knot, after: Knot, knot_at: Callable[[float], Knot]) -> None:
        share = (after.u / now.u) ** 2 if ancestral else 1.0  # of the variance that is kept
        down = after._replace(u=after.u * np.sqrt(share)) if ancestral else after
        u = np.sqrt(now.u * down.u) if space == "sigma" else (now.u + down.u) / 2
        middle = knot_at(u)
        rows.move(_along(POINT, now, middle, _slope(rows, now)), base=POINT)
        told = rows.schedule.indices("exact_middle") * middle.t - 1 if exact_middle else None
        slope = rows.predict(middle.t, x0=middle.slope[0], eps=middle.slope[1], told=told)
        to = _along(BASE, now, down, slope)
        std = after.n * after.u * np.sqrt(1 - share)
        rows.move(to + std * NOISE if ancestral else to)

    facts = {"order": None, "stochastic": True} if ancestral else {}
    return _one_step("midpoint", space, 2, step, **facts)


def rk4(space: str = "angle") -> Solver:
    """The classical Runge-Kutta method: four evaluations per step, order 4.

    Args:
        space: what is integrated.
    """

    def step(rows: Rows, now: Knot, after: Knot, knot_at: Callable[[float], Knot]) -> None:
        middle = knot_at((now.u + after.u) / 2)
        first = _slope(rows, now)
        rows.move(_along(POINT, now, middle, first), base=POINT)
        second = _slope(rows, middle)
        rows.move(_along(BASE, now, middle, second), base=BASE)
        third = _slope(rows, middle)
        rows.move(_along(BASE, now, after, third), base=BASE)
        fourth = _slope(rows, after)
        rows.move(_along(BASE, now, after, (first + 2 * second + 2 * third + fourth) / 6))

    source = "Runge, Kutta" + "; over the angle" * (space == "angle")
    return _one_step("rk4", space, 4, step, source=source)


def heun_churn(
    churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003
) -> Solver:
    """EDM's stochastic sampler: noise is added before every Heun step in sigma space.

    Before a step at `sigma / alpha` in [s_min, s_max] the level is raised by the factor
    `1 + min(churn / steps, sqrt(2) - 1)`, but not beyond the schedule's noisy end.

    Args:
        churn: S_churn, the amount of noise; the defaults are the paper's for ImageNet-64.
        s_min: S_min, in sigma / alpha.
        s_max: S_max.
        s_noise: S_noise, standard deviation of the noise, a little above 1 against lost detail.

    Raises:
        ValueError: negative numbers, or an empty range.

    Source: Karras et al. 2022, algorithm 2 and table 5.
    """
    if not (churn >= 0 and 0 <= s_noise < np.inf and 0 <= s_min <= s_max):
        raise ValueError(
            "need churn >= 0, s_noise >= 0 and 0 <= s_min <= s_max, got "
            f"{churn}, {s_noise}, {s_min}, {s_max}; churn=0 is deterministic Heun"
        )

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        knots = [_sigma(schedule.level(t)) for t in times]
        gamma = min(churn / (len(times) - 1), np.sqrt(2) - 1)

        def raise_level(knot: Knot) -> tuple[Knot, Callable[[Combination], Combination]]:
            last = knot.t == knots[-1].t  # no step would take the noise out again
            if last or not gamma or not s_min <= knot.u <= s_max:
                return knot, lambda point: point
            # time_of stops at the schedule's noisy end
            high = _sigma(schedule.level(schedule.time_of(-np.log(knot.u * (1 + gamma)))))
            std = high.n * s_noise * np.sqrt(max(high.u**2 - knot.u**2, 0.0))
            return high, lambda point: high.n / knot.n * point + std * NOISE

        now, noised = raise_level(knots[0])
        start = noised(POINT).weights
        scale = schedule.prior_std(times[0]) * start["point"]
        rows = Rows(schedule, times, (scale, start.get("noise", 0.0)))
        for after in knots[1:]:
            if after.u == 0:
                _euler_step("sigma", rows, now, after)
                break
            high, noised = raise_level(after)
            _heun_step(rows, now, after, finish=noised)
            now = high
        return rows.table()

    return Solver(
        make_table=make_table,
        order=None if churn else 2,
        stages=2,
        stochastic=churn > 0 and s_noise > 0,
        lam_min=LIMIT,
        stride="karras",
        source=EDM,
        name="heun_churn",
    )
