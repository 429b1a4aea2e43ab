"""Exponential integration in the half log-SNR: what DPM-Solver, DPM-Solver++ and UniPC share.

From level s to level t with `h = lam_t - lam_s` the flow's linear part is solved exactly. In the
eps form (DPM-Solver) and the data form (DPM-Solver++), with m = eps or m = x0, it is one formula:

    x_t = r x_s - c (q1 m + q2 D1 + q3 D2),    q1 = expm1(z), q2 = q1 / z - 1, q3 = q2 / z - 1 / 2

    eps form    z =  h    r = alpha_t / alpha_s    c = sigma_t
    data form   z = -h    r = sigma_t / sigma_s    c = alpha_t

D1 and D2 are estimates of the derivatives of m over lam, times h and h^2, from evaluations inside
the step (`dpm_solver`) or before it (`dpm_solver_multistep`). With `z = -(1 + eta) h`, r times
`exp(-eta h)` and a fresh normal times `sigma_t sqrt(1 - exp(-2 eta h))` the data form integrates
the reverse SDE (SDE-DPM-Solver++; eta = 1 is the reverse of the forward process, whose order 1 is
DDIM's eta = 1; between 0 and 1 this eta is not DDIM's).

The data form starts from alpha = 0 (a prediction there has no log-SNR and is used once); the eps
form and inner evaluations need a finite log-SNR. The step to the clean end is first order.

Sources: Lu et al. 2022 (DPM-Solver, arXiv:2206.00927), Lu et al. 2022 (DPM-Solver++,
arXiv:2211.01095) and their code.
"""

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.rows import Combination, Rows

DPM_SOLVER_PP = "Lu et al. 2022, arXiv:2211.01095"
PAPERS = {"data": DPM_SOLVER_PP, "eps": "Lu et al. 2022, arXiv:2206.00927"}
"""Where the solvers of a form were published."""


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
        """q1, q2, q3; a step of no length changes nothing."""
        if h == 0:
            return 0.0, 0.0, 0.0
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
        lam = self.schedule.half_log_snr(s) + part * self.h(s, t)
        return float(self.schedule.time_of(lam))


def check(order: int, form: str, derivative: str = "midpoint") -> None:
    """Raises ValueError for an order, form or weight of slopes (q1 / 2 or q2) that is none."""
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if derivative not in ("midpoint", "taylor"):
        raise ValueError(f"derivative must be 'midpoint' or 'taylor', got {derivative!r}")
    if form not in PAPERS:
        raise ValueError(f"form must be 'data' (DPM-Solver++) or 'eps' (DPM-Solver), got {form!r}")
