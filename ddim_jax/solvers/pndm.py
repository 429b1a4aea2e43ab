"""PNDM: multistep sampling whose first steps are Runge-Kutta's, in DDIM's coordinates.

With `y = x / alpha` and `u = sigma / alpha` a step with a given eps is a straight line, DDIM's

    x_s = alpha_s (x_t / alpha_t + (u_s - u_t) eps)

and the methods take for eps the Adams-Bashforth mean of the last predictions (equal steps), after a
warm-up of an improved Euler step (PLMS) or of three pseudo Runge-Kutta steps (F-PNDM). The step to
the clean end is first order, DDIM's, unless asked.

Sources: Liu et al. 2022 (arXiv:2202.09778); Rombach et al. 2022 (code; PLMS).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.ddim import check_landing, jump_of, landings
from ddim_jax.solvers.rows import BASE, POINT, Combination, Rows, combine
from ddim_jax.solvers.solver import LIMIT, Solver
from ddim_jax.solvers.table import SolverTable

PNDM = "Liu et al. 2022, arXiv:2202.09778"

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the newest, the one before, ...; by order."""


class _Step(NamedTuple):
    """A step from t, which lands at `land`; s is the stride's next time, `jump` that of "whole"."""

    t: float
    s: float
    land: float
    jump: float | None


class _Writer:
    """Predictions and straight lines, of eps or of v."""

    def __init__(self, schedule: Schedule, rows: Rows, average: str):
        self.schedule, self.rows, self.v = schedule, rows, average == "v"

    def predict(self, t: float) -> Combination:
        if not self.v:
            return self.rows.predict(t, eps=1.0)
        level = self.schedule.level(t)
        return self.rows.predict(t, x0=-level.sigma, eps=level.alpha)

    def eps(self, t: float, point: Combination, mean: Combination) -> Combination:
        if not self.v:
            return mean
        level = self.schedule.level(t)
        n2 = level.alpha**2 + level.sigma**2
        return (level.alpha * mean + level.sigma * point) / n2

    def transfer(self, t: float, s: float, point: Combination, mean: Combination) -> Combination:
        """DDIM's step from t to s with a given mean prediction."""
        now, after = self.schedule.level(t), self.schedule.level(s)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = after.alpha / now.alpha
            return scale * point + (after.sigma - scale * now.sigma) * self.eps(t, point, mean)


def _pseudo_heun(write: _Writer, step: _Step) -> Combination:
    """PNDM's improved Euler step: the mean of eps at both ends. Source: PNDM, equation 12."""
    t, s = step.t, step.s
    first = write.predict(t)
    write.rows.move(write.transfer(t, step.land, POINT, first), base=POINT)
    second = write.predict(s)
    start = t if step.jump is None else s + step.jump
    write.rows.move(write.transfer(start, s, BASE, (first + second) / 2))
    return first


def _pseudo_rk4(write: _Writer, step: _Step) -> Combination:
    """PNDM's pseudo Runge-Kutta step, its middle that of the clock. Source: PNDM, equation 13."""
    t, s = step.t, step.s
    middle = lands = (t + s) / 2
    if step.jump is not None:
        total = write.schedule.indices("landing")
        half = round(step.jump * total) // 2 / total
        middle, lands = s + half, t - half
    slopes, point = [], POINT
    for at, to in ((t, lands), (middle, middle), (middle, s)):
        slopes.append(write.predict(at))
        write.rows.move(write.transfer(t, to, point, slopes[-1]), base=point)
        point = BASE
    slopes.append(write.predict(s))
    mean = (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]) / 6
    write.rows.move(write.transfer(t, s, BASE, mean))
    return slopes[0]


def _solver(
    name: str,
    order: int,
    warm_up: tuple[Callable[[_Writer, _Step], Combination], ...],
    extra: tuple[int, ...],
    landing: str | int,
    lower_order_final: bool,
    average: str,
) -> Solver:
    """The solver of a warm-up, whose steps take `extra` evaluations more than one."""
    if order not in ADAMS_BASHFORTH:
        raise ValueError(f"order must be 1..{len(ADAMS_BASHFORTH)}, got {order}")
    if average not in ("eps", "v"):
        raise ValueError(f"average must be 'eps' or 'v', got {average!r}")
    check_landing(landing)

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        steps, lands = len(times) - 1, landings(schedule, times, landing)
        rows = Rows(schedule, np.append(times[0], lands))
        seen: list[Combination] = []
        write = _Writer(schedule, rows, average)
        down = jump_of(schedule, steps, landing)
        jump = None if down is None else down / schedule.indices("landing")
        with np.errstate(divide="ignore", invalid="ignore"):
            level, after = schedule.level(times), schedule.level(lands)
            du = after.sigma / after.alpha - (level.sigma / level.alpha)[:-1]
        for k, t in enumerate(times[:-1]):
            if after.sigma[k] == 0 and (lower_order_final or k < len(warm_up)):
                rows.into_clean(t)
            elif k < len(warm_up):
                step = _Step(t, times[k + 1], lands[k], jump)
                seen = [warm_up[k](write, step), *seen][:order]
            else:
                seen = [write.predict(t), *seen][:order]
                c = du[k] * np.array(ADAMS_BASHFORTH[len(seen)])
                mean = write.eps(t, du[k] * POINT, combine(c, seen))
                rows.move(after.alpha[k] * (POINT / level.alpha[k] + mean))
        return rows.table()

    return Solver(
        make_table=make_table,
        order=min(order, 2) if average == "eps" else 1,  # x is that of the step's start
        lam_min=LIMIT,
        stride="karras",
        source=PNDM,
        warm_up=extra,
        name=name,
    )


def plms(
    order: int = 4,
    *,
    landing: str | int = "next",
    lower_order_final: bool = True,
    average: str = "eps",
) -> Solver:
    """PLMS: an improved Euler step first, then Adams-Bashforth; steps + 1 evaluations.

    Args:
        order: 1..4, of the Adams-Bashforth numbers; 2 is PNDM's S-PNDM.
        landing: where a step ends, see `ddim.landings`.
        lower_order_final: False keeps the history's order into the clean end (diffusers).
        average: "eps", or "v": what the mean is taken of (diffusers, for networks that predict v).
            A mean of v is made eps with the level and the point at the step's start, and so is
            first order.

    Raises:
        ValueError: another order, landing or average.

    Source: Liu et al. 2022; the warm-up is that of Rombach et al. 2022 (code).
    """
    return _solver("plms", order, (_pseudo_heun,), (1,), landing, lower_order_final, average)


def pndm(
    *, landing: str | int = "next", lower_order_final: bool = True, average: str = "eps"
) -> Solver:
    """F-PNDM: three pseudo Runge-Kutta steps, then Adams-Bashforth 4; steps + 9 evaluations.

    The warm-up explodes where its steps are long beside the level: not for fewer than 4 steps.
    Options and errors are those of `plms`.

    Source: Liu et al. 2022, algorithm 2.
    """
    warm_up = (_pseudo_rk4,) * 3
    return _solver("pndm", 4, warm_up, (3, 3, 3), landing, lower_order_final, average)
