"""Where each row of a table jumps to: what a network that maps from any time to any other is told.

A row whose new point is `A x0 + B eps + noise` goes to the level s with B / A = sigma_s / alpha_s,
and up again from there by noise. So DDIM jumps to the next time, consistency sampling to the clean
end, and gamma-sampling (and DDIM with eta) to a time between. Over equal steps d these jumps are
long by `base + slope t`: DDIM's d, consistency sampling's t, that of gamma `gamma t + (1 - gamma)
d`, with t counted from the clean end.

Sources: Kim et al. 2024 (arXiv:2310.02279, gamma-sampling); Zheng et al. 2024 (arXiv:2402.19159).
"""

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.table import SolverTable


def jumps(table: SolverTable, schedule: Schedule) -> np.ndarray:
    """How far each row jumps, in t: float64 [E].

    Args:
        table: whose rows take nothing from earlier ones but the point, for samples without frames.
        schedule: of the table.

    Raises:
        ValueError: rows that use earlier predictions, or keep a second point.
    """
    rows = np.arange(table.nfe)
    weights = np.array(table.history[rows, 0])
    own = weights[rows, table.slot[rows]]
    weights[rows, table.slot[rows]] = 0
    if np.any(weights) or np.any(table.state[rows, 0, 1]):
        raise ValueError(
            "this network is told how long its steps are, and rows of this table have no length of "
            "their own; use a one-stage solver such as ddim, or tcd to add noise"
        )
    level = [np.asarray(field)[rows] for field in table.level]
    kept = table.state[rows, 0, 0]  # of the point, alpha x0 + sigma eps
    x0 = own * table.store[rows, 0] + kept * level[1]
    eps = own * table.store[rows, 1] + kept * level[2]
    noisy = eps > 1e-9 * np.abs(x0)
    lam = np.log(np.maximum(x0, 1e-300)) - np.log(np.where(noisy, eps, 1.0))
    ends = np.where(noisy, schedule.time_of(np.where(noisy, lam, 0.0)), schedule.t_span[1])
    return level[0] - ends


def line(table: SolverTable, schedule: Schedule) -> tuple[float, float]:
    """(base, slope): a row at t jumps `base + slope t` far, with t counted from the clean end.

    Raises:
        ValueError: as of `jumps`; jumps that are on no line.
    """
    t, long = np.asarray(table.level.t)[: table.nfe] - schedule.t_span[1], jumps(table, schedule)
    if np.ptp(long) < 1e-6 or len(t) == 1:
        return float(long.mean()), 0.0
    slope, base = np.polyfit(t, long, 1)
    off = np.max(np.abs(base + slope * t - long))
    if off > 1e-6 + (0.0 if schedule.num_steps is None else 1.0 / schedule.num_steps):
        raise ValueError(
            "this network is told how long its steps are, and the table's differ "
            f"({long.min():.3g} to {long.max():.3g}); use a one-stage solver on the uniform "
            "stride, such as ddim, or tcd to add noise"
        )
    return float(base), float(slope)
