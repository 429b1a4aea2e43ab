"""DPM-Solver and DPM-Solver++, multistep: derivatives from the predictions of earlier steps.

The formula, its two forms and its SDE are those of `exponential`; one evaluation a step.

Sources: Lu et al. 2022 (DPM-Solver++, arXiv:2211.01095) and its code.
"""

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.exponential import DPM_SOLVER_PP, Exponential, check
from ddim_jax.solvers.rows import NOISE, POINT, Rows
from ddim_jax.solvers.solver import LIMIT, Solver
from ddim_jax.solvers.table import SolverTable


def step_orders(
    order: int, steps: int, clean: bool, lower_order_final: bool | int, euler_at_final: bool = False
) -> list[int]:
    """The order of every step: it grows from 1, and ends with 1 at the clean end.

    `lower_order_final`: whether it falls to 2 and 1; a number above 1: in fewer steps than that.

    Raises:
        ValueError: a lower_order_final that is none of these.
    """
    if not 0 <= lower_order_final < np.inf or lower_order_final != int(lower_order_final):
        raise ValueError(
            "lower_order_final must be True, False, or a number of steps from which on the order "
            f"no longer falls, a whole number above 1, got {lower_order_final!r}"
        )
    orders = [min(order, k + 1) for k in range(steps)]
    if lower_order_final == 1 or steps < lower_order_final:  # 1 is True
        orders = [min(p, steps - k) for k, p in enumerate(orders)]
    if clean or euler_at_final:
        orders[-1] = 1
    return orders


def multistep(
    order: int = 2,
    form: str = "data",
    *,
    eta: float = 0.0,
    derivative: str = "midpoint",
    exact: bool | str = True,
    lower_order_final: bool | int = True,
    euler_at_final: bool = False,
) -> Solver:
    """DPM-Solver++ 2M, 3M, SDE-DPM-Solver++ 1, 2M, 3M, and DPM-Solver's multistep forms.

    One evaluation a step; the first steps are of the order that the history allows.

    Args:
        order: 1, 2 or 3.
        form: "data" (DPM-Solver++) or "eps" (DPM-Solver).
        eta: 0 integrates the flow; up to 1 the reverse SDE (form "data").
        derivative: of order 2: "midpoint", the published default, or "taylor".
        exact: of order 3: True integrates the quadratic through the history exactly; False halves
            its second-derivative term, as all published codes do, which makes it second order;
            "misprint" also has the sign of a constant wrong (diffusers' SDE of order 3).
        lower_order_final: the last two steps fall back to orders 2 and 1; a number above 1: only in
            fewer steps than that (DPM-Solver's released code: 15).
        euler_at_final: the last step is first order, even if it does not end at the clean image.

    Raises:
        ValueError: another order, form or derivative; eta outside [0, 1] or with form "eps".

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2 and section 5; published code for order 3.
    """
    check(order, form, derivative)
    if exact not in (True, False, "misprint"):
        raise ValueError(f"exact must be True, False or 'misprint', got {exact!r}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if eta and form != "data":
        raise ValueError(f"eta = {eta} needs form='data', the SDE solvers of DPM-Solver++")

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        line, rows, steps = Exponential(schedule, form), Rows(schedule, times), len(times) - 1
        lam, level = schedule.half_log_snr(times), schedule.level(times)
        clean = level.sigma[-1] == 0
        orders = step_orders(order, steps, clean, lower_order_final, euler_at_final)
        seen: list = []  # (lam, prediction), newest first
        for k in range(steps):
            s, t, h = times[k], times[k + 1], lam[k + 1] - lam[k]
            if clean and k == steps - 1:
                rows.into_clean(s)
                break
            m = line.predict(rows, s)
            seen = [(lam[k], m), *seen][:order]
            base, c = line.base(POINT, s, t)
            change = _change(line, (1 + eta) * h, h, seen[: orders[k]], derivative, exact)
            reverted = eta * h if eta else 0.0  # h is infinite where alpha = 0
            std = level.sigma[k + 1] * np.sqrt(-np.expm1(-2 * reverted))
            rows.move(np.exp(-reverted) * base - c * change + std * NOISE)
            if np.isinf(lam[k]):
                seen = []
        return rows.table()

    reached = 2 if order == 3 and exact is not True else order
    return Solver(
        make_table=make_table,
        order=None if eta else reached,
        stochastic=eta > 0,
        lam_min=None if form == "data" else LIMIT,
        source=DPM_SOLVER_PP,
        name="multistep",
    )


def _change(line: Exponential, span: float, h: float, seen: list, derivative: str, exact):
    """`q1 m + q2 D1 + q3 D2` with derivatives from the history; q over `span`, steps in h."""
    q1, q2, q3 = line.q(span)
    lams, ms = zip(*seen, strict=True)
    change = q1 * ms[0]
    if len(seen) == 1 or h == 0:
        return change
    first = (ms[0] - ms[1]) * (h / (lams[0] - lams[1]))
    if len(seen) == 2:
        return change + (q2 if derivative == "taylor" else q1 / 2) * first
    before = (ms[1] - ms[2]) * (h / (lams[1] - lams[2]))
    second = (first - before) * (h / (lams[0] - lams[2]))  # half the second derivative
    slope = first + (lams[0] - lams[1]) / h * second
    q3 = q3 + 1 if exact == "misprint" else q3
    return change + q2 * slope + (2 if exact is True else 1) * q3 * second
