"""DPM-Solver and DPM-Solver++, singlestep: derivatives from evaluations inside the step.

The formula and its two forms are those of `exponential`. A block from s to t evaluates at s and at
inner points; for the reverse SDE (`sde_singlestep`) the inner point lies on the step's own path of
the noise. Inner points need a finite log-SNR.

Sources: Lu et al. 2022 (DPM-Solver, arXiv:2206.00927), Lu et al. 2022 (DPM-Solver++,
arXiv:2211.01095) and their code.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.exponential import DPM_SOLVER_PP, PAPERS, Exponential, check
from ddim_jax.solvers.rows import BASE, NOISE, POINT, Rows
from ddim_jax.solvers.solver import LIMIT, MakeTable, Solver
from ddim_jax.solvers.table import SolverTable


def _stepwise(
    form: str, stages: int, write: Callable[[Exponential, Rows, float, float], None]
) -> MakeTable:
    """The tables whose every step, from s to t, is written alike but the one to the clean end.

    A step of no length takes its `stages` evaluations too, and moves nothing.
    """

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        line, rows = Exponential(schedule, form), Rows(schedule, times)
        for s, t in zip(times[:-1], times[1:], strict=True):
            if schedule.level(t).sigma == 0:
                rows.into_clean(s)
            elif line.h(s, t) == 0:
                for _ in range(stages):
                    line.predict(rows, s)
                    rows.move(POINT)
            else:
                write(line, rows, s, t)
        return rows.table()

    return make_table


def _block(
    line: Exponential,
    rows: Rows,
    s: float,
    inner: Sequence[float],
    t: float,
    derivative: str,
    exact_inner: bool = True,
):
    """One singlestep block from s to t with evaluations at s and at the inner times (0, 1 or 2)."""
    h = line.h(s, t)
    part = [line.h(s, time) / h for time in inner]
    q1, q2, q3 = line.q(h)
    m = line.predict(rows, s)

    def along(point, to, step):
        r, c = line.base(point, s, to)
        return r - c * step

    if not inner:
        rows.move(along(POINT, t, q1 * m))
        return
    rows.move(along(POINT, inner[0], line.q(part[0] * h)[0] * m), base=POINT)
    first = line.predict(rows, inner[0])
    slope = (first - m) / part[0]
    if len(inner) == 1:
        weight = q2 if derivative == "taylor" else q1 / 2
        rows.move(along(BASE, t, q1 * m + weight * slope))
        return
    p1, p2, _ = line.q(part[1] * h)
    p2 = p2 if exact_inner or derivative == "taylor" else p1 / 2
    rows.move(along(BASE, inner[1], p1 * m + part[1] * p2 * slope), base=BASE)
    second = line.predict(rows, inner[1])
    steeper = (second - m) / part[1]
    if derivative == "midpoint":
        rows.move(along(BASE, t, q1 * m + q2 * steeper))
        return
    d1 = (part[1] * slope - part[0] * steeper) / (part[1] - part[0])
    d2 = 2 * (steeper - slope) / (part[1] - part[0])
    rows.move(along(BASE, t, q1 * m + q2 * d1 + q3 * d2))


def singlestep(order: int = 2, form: str = "eps", derivative: str = "midpoint") -> Solver:
    """DPM-Solver-1, 2, 3 (form "eps") and DPM-Solver++ 2S, 3S (form "data").

    `order` evaluations a step, one in the step to the clean end.

    Args:
        order: 1 (DDIM), 2 (inner point at 1/2 of the log-SNR interval), 3 (at 1/3 and 2/3).
        form: what is integrated, "eps" or "data".
        derivative: "midpoint", the published default, or "taylor".

    Raises:
        ValueError: another order, form or derivative.

    Source: Lu et al. 2022 (DPM-Solver), algorithms 1 and 2; (DPM-Solver++), algorithm 1.
    """
    check(order, form, derivative)
    parts = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}[order]

    def write(line: Exponential, rows: Rows, s: float, t: float) -> None:
        _block(line, rows, s, [line.inside(s, t, part) for part in parts], t, derivative)

    return Solver(
        make_table=_stepwise(form, order, write),
        order=order,
        stages=order,
        lam_min=None if form == "data" and order == 1 else LIMIT,
        source=PAPERS[form],
        name="singlestep",
    )


def fast_orders(
    evaluations: int, order: int = 3, lower_order_final: bool | int = True
) -> list[int]:
    """DPM-Solver-fast: blocks of order 3, then 2 and 1, that use up a budget of evaluations.

    Source: Lu et al. 2022 (DPM-Solver), appendix D.3 and its code.
    """
    whole, rest = divmod(evaluations, order)
    if rest == 0 and order > 1 and lower_order_final:
        return [order] * (whole - 1) + [order - 1, 1] if whole else []
    return [order] * whole + ([rest] if rest else [])


def fast(
    form: str = "eps",
    derivative: str = "midpoint",
    *,
    order: int = 3,
    lower_order_final: bool = True,
    exact_inner: bool = True,
) -> Solver:
    """DPM-Solver-fast: singlestep blocks of mixed order, as many evaluations as steps.

    A block of order p spans p intervals of the stride and evaluates at their points. Into the clean
    end there is one evaluation, first order; the blocks share the others.

    Args:
        form: "eps" or "data".
        derivative: see `singlestep`.
        order: of the blocks, 1..3.
        lower_order_final: splits the last block where blocks of this order fit exactly.
        exact_inner: False weighs the slope at the second inner point as `derivative` says, which
            makes order 3 second order (diffusers).

    Raises:
        ValueError: another order, form or derivative.

    Source: Lu et al. 2022 (DPM-Solver), appendix D.3.
    """
    check(order, form, derivative)

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        line, rows = Exponential(schedule, form), Rows(schedule, times)
        clean = schedule.level(times[-1]).sigma == 0
        k = 0
        for block in fast_orders(len(times) - 1 - clean, order, lower_order_final):
            inner, end = list(times[k + 1 : k + block]), times[k + block]
            _block(line, rows, times[k], inner, end, derivative, exact_inner)
            k += block
        if clean:
            rows.into_clean(times[-2])
        return rows.table()

    return Solver(
        make_table=make_table,
        order=min(order, 2),
        lam_min=LIMIT,
        stride="uniform" if form == "data" else "log_snr",
        source=PAPERS[form],
        name="fast",
    )


def sde_singlestep(eta: float = 1.0, part: float = 1 / 2, *, path: str = "log_snr") -> Solver:
    """SDE-DPM-Solver++ 2S: two evaluations a step of the reverse SDE.

    The second evaluation follows the same path of the noise as the step: the noise up to it is part
    of the step's, so the two are correlated as the linear SDE's.

    Args:
        eta: in (0, 1], 1 is the reverse of the forward process.
        part: where the inner evaluation is, of the log-SNR interval, in (0, 1].
        path: the noise up to the inner point is correlated with the step's as the linear SDE has
            it, "log_snr", or as a Brownian path over sigma / alpha, "sigma" (k-diffusion).

    Raises:
        ValueError: eta or part out of range, another path.

    Source: Lu et al. 2022 (DPM-Solver++), section 5; k-diffusion's dpmpp_sde for the scheme.
    """
    if not 0 < eta <= 1 or not 0 < part <= 1:
        raise ValueError(
            f"eta and part must be in (0, 1], got {eta} and {part}; "
            "singlestep(2, 'data') is the deterministic solver"
        )

    if path not in ("log_snr", "sigma"):
        raise ValueError(f"path must be 'log_snr' or 'sigma', got {path!r}")

    return Solver(
        make_table=_stepwise("data", 2, partial(_sde_block, eta, part, path)),
        stages=2,
        stochastic=True,
        lam_min=LIMIT,
        source=DPM_SOLVER_PP,
        name="sde_singlestep",
    )


def _sde_block(
    eta: float, part: float, path: str, line: Exponential, rows: Rows, s: float, t: float
) -> None:
    middle, h = line.inside(s, t, part), line.h(s, t)
    sigma_s, sigma_m, sigma_t = (line.schedule.level(time).sigma for time in (s, middle, t))

    def along(point, to, h, m):
        base, c = line.base(point, s, to)
        return np.exp(-eta * h) * base - c * line.q((1 + eta) * h)[0] * m

    def std(h):  # of the noise gathered over h, at sigma = 1
        return np.sqrt(-np.expm1(-2 * eta * h))

    first = line.predict(rows, s)
    # the noise seen at the inner point, carried by `base` to where the step scales it
    h1 = part * h
    carried, fresh = sigma_s * np.exp(eta * h1) * std(h1), std(h - h1)
    if path == "sigma":
        share = np.expm1(-h1) / np.expm1(-h)  # of the path over sigma / alpha, in variance
        carried = sigma_s * np.exp(eta * h) * std(h) * np.sqrt(share)
        fresh = std(h) * np.sqrt(1 - share)
    point = along(POINT, middle, h1, first) + sigma_m * std(h1) * NOISE
    rows.move(point, base=POINT + carried * NOISE)
    second = line.predict(rows, middle)
    mean = (1 - 1 / (2 * part)) * first + 1 / (2 * part) * second
    rows.move(along(BASE, t, h, mean) + sigma_t * fresh * NOISE)
