"""UniPC: a predictor and a corrector of any order from one evaluation a step.

With `h = lam_t - lam_s`, z = -h in the data form (m = x0, r = sigma_t / sigma_s, c = alpha_t) and
z = h in the eps form (m = eps, r = alpha_t / alpha_s, c = sigma_t), `B = z` (bh1) or `expm1(z)`
(bh2), and the differences `D_j = (m_{i-j} - m_i) / r_j`, `r_j = (lam_{i-j} - lam_i) / h`:

    predict    x_t  = r x_s - c expm1(z) m_i - c B sum_{j < p} rho_j D_j                  (UniP-p)
    correct    x_t' = r x_s - c expm1(z) m_i - c B (sum_{j < p} rho'_j D_j + rho'_p (m_t - m_i))

where m_t was evaluated at the predicted x_t; it is not evaluated again after the correction. rho
solves `sum_j r_j^{q-1} rho_j = b_q` with the integrals b_q of the monomials. UniPC-p converges with
order p + 1; UniP-2 with bh2 is DPM-Solver++ 2M, UniP-3 is its exact 3M.

Source: Zhao et al. 2023 (arXiv:2302.04867), algorithms 5 to 8, and its code.
"""

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.dpm_solver_multistep import step_orders
from ddim_jax.solvers.exponential import Exponential, check
from ddim_jax.solvers.rows import BASE, POINT, Combination, Rows, combine
from ddim_jax.solvers.solver import LIMIT, Solver
from ddim_jax.solvers.table import SolverTable

UNIPC = "Zhao et al. 2023, arXiv:2302.04867"


def unipc(
    order: int = 2,
    form: str = "data",
    *,
    variant: str = "bh2",
    corrector: bool = True,
    uncorrected: tuple[int, ...] = (),
    lower_order_final: bool | int = True,
) -> Solver:
    """UniPC-p. One evaluation a step; `base` carries the corrected point.

    Args:
        order: p, 1..3; 2 under guidance, 3 without (the authors' advice).
        form: "data" or "eps" predictions.
        variant: "bh1" or "bh2", the function B.
        corrector: False leaves UniP-p, the predictor alone.
        uncorrected: steps, counted from 0, whose end is not corrected.
        lower_order_final: the last steps fall back to orders 2 and 1, as published; a number above
            1: only in fewer steps than that.

    Raises:
        ValueError: another order, form or variant; `uncorrected` that is no tuple or list.

    Source: Zhao et al. 2023, algorithms 5 to 8.
    """
    check(order, form)
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be 'bh1' or 'bh2', got {variant!r}")
    if not isinstance(uncorrected, (tuple, list)):
        raise ValueError(f"uncorrected must be steps like (0, 1), got {uncorrected!r}")

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        line, rows, steps = Exponential(schedule, form), Rows(schedule, times), len(times) - 1
        lam, clean = schedule.half_log_snr(times), schedule.level(times[-1]).sigma == 0
        orders = step_orders(order, steps, clean, lower_order_final)
        seen: list = []  # (lam, prediction), newest first

        def step(k: int, point: Combination, seen: list, corrected_by: Combination | None = None):
            base, c = line.base(point, times[k], times[k + 1])
            z = line.z(lam[k + 1] - lam[k])
            scale = z if variant == "bh1" else np.expm1(z)
            return base - c * _change(z, scale, lam[k : k + 2], seen, corrected_by)

        for k, t in enumerate(times[:-1]):
            if clean and k == steps - 1:
                rows.into_clean(t)
                break
            m = line.predict(rows, t)
            point = POINT
            if corrector and k and seen and k - 1 not in uncorrected:
                point = step(k - 1, BASE, seen[: orders[k - 1]], corrected_by=m)
            # a prediction at alpha = 0 has no log-SNR: it serves one uncorrected step
            seen = [(lam[k], m), *seen][:order]
            rows.move(step(k, point, seen[: orders[k]]), base=point)
            if np.isinf(lam[k]):
                seen = []
        return rows.table()

    return Solver(
        make_table=make_table,
        order=order + 1 if corrector else order,
        lam_min=None if form == "data" else LIMIT,
        source=UNIPC,
        name="unipc",
    )


def _change(
    z: float, scale: float, lam: np.ndarray, seen: list, corrected_by: Combination | None
) -> Combination:
    """`expm1(z) m_i + B sum rho_j D_j` from lam[0] to lam[1]; the latter's prediction corrects."""
    h, (_, newest) = lam[1] - lam[0], seen[0]
    if h == 0:
        return 0.0 * newest
    ratios = [(past - lam[0]) / h for past, _ in seen[1:]]
    differences = [(m - newest) / r for (_, m), r in zip(seen[1:], ratios, strict=True)]
    if corrected_by is not None:
        ratios, differences = [*ratios, 1.0], [*differences, corrected_by - newest]
    change = np.expm1(z) * newest
    if not ratios:
        return change
    return change + scale * combine(_weights(np.array(ratios), z, scale), differences)


def _weights(ratios: np.ndarray, z: float, scale: float) -> np.ndarray:
    """rho of the differences at the given ratios; 1 / 2 where there is one (as published)."""
    count = len(ratios)
    if count == 1:
        return np.array([1 / 2])
    b, integral, factorial = [], np.expm1(z) / z - 1, 1.0
    for q in range(1, count + 1):
        b.append(integral * factorial / scale)
        factorial *= q + 1
        integral = integral / z - 1 / factorial
    return np.linalg.solve(ratios ** np.arange(count)[:, None], b)
