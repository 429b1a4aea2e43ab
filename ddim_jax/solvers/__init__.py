"""Solvers as tables: `(schedule, times) -> SolverTable`, float64 numpy, no JAX.

`SOLVERS` lists them by name; the command line, the README and the tests read it. To add one, write
a function that returns a solver in the file of its family, and a line here.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ddim_jax.solvers.ddim import Solver, ddim, ddpm
from ddim_jax.solvers.runge_kutta import SPACES, euler, heun
from ddim_jax.solvers.table import SolverTable, State, concatenate

SIGMA_SPACE_LIMIT = -5.1
"""The lam below which sigma-space integration is useless; DPM-Solver's clipping (its code)."""


class SolverInfo(NamedTuple):
    """What is known of a solver.

    Attributes:
        make: options -> solver.
        order: order of convergence on the probability-flow ODE; None for stochastic solvers.
        evaluations: network evaluations of a step that does not end at sigma = 0.
        stochastic: whether it draws noise.
        lam_min: half log-SNR below which it cannot start; strides clip to it. None: no limit.
        paper: where it was published.
    """

    make: Callable[..., Solver]
    order: int | None
    evaluations: int
    stochastic: bool
    lam_min: float | None
    paper: str

    def nfe(self, steps: int, terminal: str = "zero") -> int:
        """Network evaluations of `steps` steps; the step to sigma = 0 takes one."""
        return self.evaluations * (steps - 1) + (1 if terminal == "zero" else self.evaluations)


SOLVERS: dict[str, SolverInfo] = {
    "ddim": SolverInfo(ddim, 1, 1, False, None, "Song et al. 2021, arXiv:2010.02502"),
    "ddpm": SolverInfo(ddpm, None, 1, True, None, "Ho et al. 2020, arXiv:2006.11239"),
    "ddpm_large": SolverInfo(
        partial(ddpm, variance="large"), None, 1, True, None, "Song et al. 2021, App. D.3"
    ),
    "euler": SolverInfo(euler, 1, 1, False, SIGMA_SPACE_LIMIT, "Karras et al. 2022"),
    "heun": SolverInfo(heun, 2, 2, False, SIGMA_SPACE_LIMIT, "Karras et al. 2022, alg. 1"),
    "heun_flow": SolverInfo(
        partial(heun, space="flow"), 2, 2, False, None, "Karras et al. 2022, Liu et al. 2022"
    ),
    "heun_angle": SolverInfo(
        partial(heun, space="angle"), 2, 2, False, None, "Salimans & Ho 2022 (v over angle)"
    ),
}
"""Solvers by name."""

__all__ = [
    "SOLVERS",
    "SPACES",
    "Solver",
    "SolverInfo",
    "SolverTable",
    "State",
    "concatenate",
    "ddim",
    "ddpm",
    "euler",
    "heun",
]
