"""DPM-Solver and DPM-Solver++: exponential integrators in the half log-SNR.

From level s to level t with `h = lam_t - lam_s` the flow's linear part is solved exactly. In the
eps form (DPM-Solver) and the data form (DPM-Solver++), with m = eps or m = x0, it is one formula:

    x_t = r x_s - c (q1 m + q2 D1 + q3 D2),    q1 = expm1(z), q2 = q1 / z - 1, q3 = q2 / z - 1 / 2

    eps form    z =  h    r = alpha_t / alpha_s    c = sigma_t
    data form   z = -h    r = sigma_t / sigma_s    c = alpha_t

D1 and D2 are estimates of the derivatives of m over lam, times h and h^2, from evaluations inside
the step (singlestep) or before it (multistep). With `z = -(1 + eta) h`, r times `exp(-eta h)` and a
fresh normal times `sigma_t sqrt(1 - exp(-2 eta h))` the data form integrates the reverse SDE
(SDE-DPM-Solver++; eta = 1 is the reverse of the forward process, whose order 1 is DDIM's eta = 1;
between 0 and 1 this eta is not DDIM's).

The data form starts from alpha = 0 (a prediction there has no log-SNR and is used once); the eps
form and inner evaluations need a finite log-SNR. The step to the clean end is first order.

Sources: Lu et al. 2022 (DPM-Solver, arXiv:2206.00927), Lu et al. 2022 (DPM-Solver++,
arXiv:2211.01095) and their code.
"""

from collections.abc import Sequence

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.rows import BASE, NOISE, POINT, Combination, Rows
from ddim_jax.solvers.table import Solver, SolverTable

DERIVATIVES = ("midpoint", "taylor")


class Exponential:
    """The formula's parts in one of the two forms, for any two times of a schedule."""

    def __init__(self, schedule: Schedule, form: str):
        self.schedule, self.data = schedule, form == "data"

    def predict(self, rows: Rows, t: float) -> Combination:
        """Begins a row that stores m."""
        return rows.predict(t, x0=float(self.data), eps=float(not self.data))

    def z(self, h: float) -> float:
        """The signed step."""
        return -h if self.data else h

    def q(self, h: float) -> tuple[float, float, float]:
        """q1, q2, q3."""
        q1 = np.expm1(self.z(h))
        q2 = q1 / self.z(h) - 1
        return q1, q2, q2 / self.z(h) - 1 / 2

    def base(self, point: Combination, s: float, t: float) -> tuple[Combination, float]:
        """(r x_s, c)."""
        now, after = self.schedule.level(s), self.schedule.level(t)
        if self.data:
            return after.sigma / now.sigma * point, after.alpha
        with np.errstate(divide="ignore", invalid="ignore"):
            return after.alpha / now.alpha * point, after.sigma

    def h(self, s: float, t: float) -> float:
        """lam_t - lam_s."""
        lam = self.schedule.half_log_snr(np.array([s, t]))
        return lam[1] - lam[0]

    def inside(self, s: float, t: float, part: float) -> float:
        """The time between s and t at `lam_s + part * h`."""
        lam = self.schedule.half_log_snr(np.array([s, t]))
        if np.isneginf(lam[0]):
            raise ValueError(
                f"singlestep solvers need a finite log-SNR, and alpha is 0 at t = {s}; give the "
                "stride lam_min, or use a multistep solver"
            )
        return float(self.schedule.time_of(lam[0] + part * (lam[1] - lam[0])))


def check_form(form: str) -> None:
    """Raises ValueError for a form that is neither "data" nor "eps"."""
    if form not in ("data", "eps"):
        raise ValueError(f"form must be 'data' (DPM-Solver++) or 'eps' (DPM-Solver), got {form!r}")


def _check_derivative(derivative: str) -> None:
    if derivative not in DERIVATIVES:
        raise ValueError(f"derivative must be 'midpoint' or 'taylor', got {derivative!r}")


# --- singlestep -----------------------------------------------------------------------------------


def _block(
    line: Exponential, rows: Rows, s: float, inner: Sequence[float], t: float, derivative: str
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
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    _check_derivative(derivative)
    check_form(form)
    parts = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}[order]

    def solver(schedule: Schedule, times: np.ndarray) -> SolverTable:
        line, rows = Exponential(schedule, form), Rows(schedule, times)
        for s, t in zip(times[:-1], times[1:], strict=True):
            if schedule.level(t).sigma == 0:
                rows.into_clean(s)
            else:
                inner = [line.inside(s, t, part) for part in parts]
                _block(line, rows, s, inner, t, derivative)
        return rows.table()

    return solver


def fast_orders(evaluations: int) -> list[int]:
    """DPM-Solver-fast: blocks of order 3, then 2 and 1, that use up a budget of evaluations.

    Source: Lu et al. 2022 (DPM-Solver), appendix D.3 and its code.
    """
    threes, rest = divmod(evaluations, 3)
    if rest == 0:
        return [3] * (threes - 1) + [2, 1] if threes else []
    return [3] * threes + [rest]


def fast(form: str = "eps", derivative: str = "midpoint") -> Solver:
    """DPM-Solver-fast: singlestep blocks of mixed order, as many evaluations as steps.

    A block of order p spans p intervals of the stride and evaluates at their points. Into the clean
    end there is one evaluation, first order; the blocks share the others.

    Args:
        form: "eps" or "data".
        derivative: see `singlestep`.

    Source: Lu et al. 2022 (DPM-Solver), appendix D.3.
    """
    _check_derivative(derivative)
    check_form(form)

    def solver(schedule: Schedule, times: np.ndarray) -> SolverTable:
        line, rows = Exponential(schedule, form), Rows(schedule, times)
        clean = schedule.level(times[-1]).sigma == 0
        k = 0
        for order in fast_orders(len(times) - 1 - clean):
            inner = list(times[k + 1 : k + order])
            _block(line, rows, times[k], inner, times[k + order], derivative)
            k += order
        if clean:
            rows.into_clean(times[-2])
        return rows.table()

    return solver


# --- multistep ------------------------------------------------------------------------------------


def step_orders(
    order: int, steps: int, clean: bool, lower_order_final: bool, euler_at_final: bool = False
) -> list[int]:
    """The order of every step: it grows from 1, and ends with 1 at the clean end."""
    orders = [min(order, k + 1) for k in range(steps)]
    if lower_order_final:
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
    exact: bool = True,
    lower_order_final: bool = True,
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
            its second-derivative term, as all published codes do, which makes it second order.
        lower_order_final: the last two steps fall back to orders 2 and 1.
        euler_at_final: the last step is first order, even if it does not end at the clean image.

    Raises:
        ValueError: another order, form or derivative; eta outside [0, 1] or with form "eps".

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2 and section 5; published code for order 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if eta and form != "data":
        raise ValueError(f"eta = {eta} needs form='data', the SDE solvers of DPM-Solver++")
    _check_derivative(derivative)
    check_form(form)

    def solver(schedule: Schedule, times: np.ndarray) -> SolverTable:
        line, rows, steps = Exponential(schedule, form), Rows(schedule, times), len(times) - 1
        lam, level = schedule.half_log_snr(times), schedule.level(times)
        clean = level.sigma[-1] == 0
        orders = step_orders(order, steps, clean, lower_order_final, euler_at_final)
        seen = []  # (lam, prediction), newest first
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

    return solver


def _change(line: Exponential, span: float, h: float, seen: list, derivative: str, exact: bool):
    """`q1 m + q2 D1 + q3 D2` with derivatives from the history; q over `span`, steps in h."""
    q1, q2, q3 = line.q(span)
    lams, ms = zip(*seen, strict=True)
    change = q1 * ms[0]
    if len(seen) == 1:
        return change
    first = (ms[0] - ms[1]) * (h / (lams[0] - lams[1]))
    if len(seen) == 2:
        return change + (q2 if derivative == "taylor" else q1 / 2) * first
    before = (ms[1] - ms[2]) * (h / (lams[1] - lams[2]))
    second = (first - before) * (h / (lams[0] - lams[2]))  # half the second derivative
    slope = first + (lams[0] - lams[1]) / h * second
    return change + q2 * slope + (2 if exact else 1) * q3 * second


def sde_singlestep(eta: float = 1.0, part: float = 1 / 2) -> Solver:
    """SDE-DPM-Solver++ 2S: two evaluations a step of the reverse SDE.

    The second evaluation follows the same path of the noise as the step: the noise up to it is part
    of the step's, so the two are correlated as the linear SDE's.

    Args:
        eta: in (0, 1], 1 is the reverse of the forward process.
        part: where the inner evaluation is, of the log-SNR interval, in (0, 1].

    Raises:
        ValueError: eta or part out of range.

    Source: Lu et al. 2022 (DPM-Solver++), section 5; k-diffusion's dpmpp_sde for the scheme.
    """
    if not 0 < eta <= 1 or not 0 < part <= 1:
        raise ValueError(
            f"eta and part must be in (0, 1], got {eta} and {part}; "
            "singlestep(2, 'data') is the deterministic solver"
        )

    def solver(schedule: Schedule, times: np.ndarray) -> SolverTable:
        line, rows = Exponential(schedule, "data"), Rows(schedule, times)
        for s, t in zip(times[:-1], times[1:], strict=True):
            if schedule.level(t).sigma == 0:
                rows.into_clean(s)
            else:
                _sde_block(line, rows, s, t, eta, part)
        return rows.table()

    return solver


def _sde_block(line: Exponential, rows: Rows, s: float, t: float, eta: float, part: float) -> None:
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
    carried = sigma_s * np.exp(eta * h1) * std(h1)
    point = along(POINT, middle, h1, first) + sigma_m * std(h1) * NOISE
    rows.move(point, base=POINT + carried * NOISE)
    second = line.predict(rows, middle)
    mean = (1 - 1 / (2 * part)) * first + 1 / (2 * part) * second
    rows.move(along(BASE, t, h, mean) + sigma_t * std(h - h1) * NOISE)
