"""The analytical first step: a solver that spares its first evaluation.

Next to pure noise the denoiser of any data of standard deviation s is known without a network,

    x0 = alpha s^2 x / n^2,    eps = sigma x / n^2,    n^2 = alpha^2 s^2 + sigma^2

(exact for Gaussian data of mean zero), so the first row of a table is a linear map of the initial
noise: it goes into the table's start, and what it stored is a multiple of the sample, which `base`
carries for as long as later rows use it.

Source: Dockhorn et al. 2022 (GENIE, arXiv:2210.05475), section 3.3; Zhou et al. 2024
(arXiv:2312.00094, "AFS").
"""

import dataclasses

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.solver import Solver
from ddim_jax.solvers.table import SolverTable


def analytical_first_step(solver: Solver, data_std: float = 0.5) -> Solver:
    """The same solver with one evaluation less; its facts are the solver's but for the count.

    Args:
        solver: deterministic and single-stage (ddim, multistep DPM-Solver, DEIS, iPNDM, ...).
        data_std: standard deviation of the data, 0.5 for images in [-1, 1].

    Raises:
        ValueError: data_std is not positive; when a table is made: the solver draws noise, uses
            the second point itself, or the stride has one step only.
    """
    if not 0 < data_std < np.inf:
        raise ValueError(
            f"data_std must be positive and finite, got {data_std}; images have about 0.5"
        )

    def spared(schedule: Schedule, times: np.ndarray) -> SolverTable:
        table = solver.make_table(schedule, times)
        if table.nfe < 2:
            raise ValueError("an analytical first step needs at least 2 evaluations, got 1")
        single_stage = not np.any(table.state[:, :, 1]) and np.all(
            table.state[:, 0] == table.state[:, 1]
        )
        if not table.deterministic or not single_stage:
            raise ValueError(
                "an analytical first step needs a deterministic solver that keeps one point, such "
                "as ddim, dpm_solver++_2m, deis, ipndm"
            )
        alpha, sigma = table.level.alpha[0], table.level.sigma[0]
        n2 = (alpha * data_std) ** 2 + sigma**2
        stored = (table.store[0, 0] * alpha * data_std**2 + table.store[0, 1] * sigma) / n2
        first = table.slot[0]
        scale = table.state[0, 0, 0] + table.history[0, 0, first] * stored
        return _with_base(table, first, stored / scale)._replace(
            start=np.array([table.start[0] * scale, 0.0])
        )

    extra, *later = solver.warm_up or (0,)
    return dataclasses.replace(solver, make_table=spared, warm_up=(extra - 1, *later), make=None)


def _with_base(table: SolverTable, first: int, multiple: float) -> SolverTable:
    """The table without row 0, whose prediction is `multiple` times `base` while it is used."""
    rest = {
        name: getattr(table, name)[1:].copy()
        for name in ("store", "slot", "state", "history", "noise", "active")
    }
    overwritten = np.flatnonzero(rest["slot"] == first)
    known = rest["history"][: overwritten[0] if len(overwritten) else None, 0, first]
    rows_using = np.flatnonzero(known)
    for k in range(rows_using[-1] + 1 if len(rows_using) else 0):
        weight = rest["history"][k, 0, first]
        rest["state"][k, :, 1] += multiple * weight
        rest["history"][k, :, first] = 0
        if k < rows_using[-1]:
            rest["state"][k, 1], rest["history"][k, 1] = [0, 1], 0
    return table._replace(**rest, level=type(table.level)(*(f[1:] for f in table.level)))
