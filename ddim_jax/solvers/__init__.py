"""Solvers as tables: `(schedule, times) -> SolverTable`, float64 numpy, no JAX.

`SOLVERS` lists them by name; the command line, the README and the tests read it. To add one, write
a function that returns a solver in the file of its family, and a line here.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ddim_jax.solvers.adams import deis, ipndm, lms, plms, pndm
from ddim_jax.solvers.consistency import consistency
from ddim_jax.solvers.ddim import ddim, ddpm
from ddim_jax.solvers.dpm_solver import fast, multistep, sde_singlestep, singlestep
from ddim_jax.solvers.first_step import analytical_first_step
from ddim_jax.solvers.runge_kutta import SPACES, euler, heun, heun_churn, midpoint, rk4
from ddim_jax.solvers.table import Solver, SolverTable, State, concatenate
from ddim_jax.solvers.unipc import unipc

LIMIT = -5.1
"""The lam below which integration in sigma space is useless; DPM-Solver's clipping (its code)."""


class SolverInfo(NamedTuple):
    """What is known of a solver.

    Attributes:
        make: options -> solver.
        order: order of convergence on the probability-flow ODE, started with an exact history;
            None for stochastic solvers.
        evaluations: network evaluations of a step that does not end at sigma = 0.
        stochastic: whether it draws noise.
        lam_min: half log-SNR below which it cannot start; strides clip to it. None: no limit.
        paper: where it was published.
        warm_up: evaluations that the first steps take beyond that.
        stride: the stride it is drawn with unless another is asked for.
    """

    make: Callable[..., Solver]
    order: int | None
    evaluations: int
    stochastic: bool
    lam_min: float | None
    paper: str
    warm_up: tuple[int, ...] = ()
    stride: str = "uniform"

    def nfe(self, steps: int, terminal: str = "zero") -> int:
        """Network evaluations of `steps` steps; the step to sigma = 0 takes one."""
        full = steps - (terminal == "zero")
        return self.evaluations * full + (terminal == "zero") + sum(self.warm_up[:full])


_DDIM, _DDPM = "Song et al. 2021, arXiv:2010.02502", "Ho et al. 2020, arXiv:2006.11239"
_EDM, _PNDM = "Karras et al. 2022, arXiv:2206.00364", "Liu et al. 2022, arXiv:2202.09778"
_DEIS, _DPM = "Zhang & Chen 2023, arXiv:2204.13902", "Lu et al. 2022, arXiv:2206.00927"
_DPMPP, _UNIPC = "Lu et al. 2022, arXiv:2211.01095", "Zhao et al. 2023, arXiv:2302.04867"
_CM, _LCM = "Song et al. 2023, arXiv:2303.01469", "Luo et al. 2023, arXiv:2310.04378"
_IPNDM_V = "Zhou et al. 2024, arXiv:2312.00094"

SOLVERS: dict[str, SolverInfo] = {
    # name: make, order, evaluations a step, stochastic, start limit in lam, paper
    "ddim": SolverInfo(ddim, 1, 1, False, None, _DDIM),
    "ddpm": SolverInfo(ddpm, None, 1, True, None, _DDPM),
    "ddpm_large": SolverInfo(partial(ddpm, variance="large"), None, 1, True, None, _DDIM),
    "euler": SolverInfo(euler, 1, 1, False, LIMIT, _EDM),
    "euler_ancestral": SolverInfo(partial(ddim, eta=1.0), None, 1, True, None, _DDIM),
    "heun": SolverInfo(heun, 2, 2, False, LIMIT, _EDM, stride="karras"),
    "heun_flow": SolverInfo(partial(heun, space="flow"), 2, 2, False, None, _EDM),
    "heun_angle": SolverInfo(partial(heun, space="angle"), 2, 2, False, None, _EDM),
    "heun_churn": SolverInfo(heun_churn, None, 2, True, LIMIT, _EDM, stride="karras"),
    "midpoint": SolverInfo(midpoint, 2, 2, False, LIMIT, _EDM),
    "rk4": SolverInfo(rk4, 4, 4, False, None, "Runge, Kutta; over the angle"),
    "plms": SolverInfo(plms, 2, 1, False, LIMIT, _PNDM, (1,), "karras"),
    "s_pndm": SolverInfo(partial(plms, order=2), 2, 1, False, LIMIT, _PNDM, (1,), "karras"),
    "pndm": SolverInfo(pndm, 2, 1, False, LIMIT, _PNDM, (3, 3, 3), "karras"),
    "ipndm": SolverInfo(ipndm, 2, 1, False, LIMIT, _DEIS),
    "ipndm_v": SolverInfo(partial(ipndm, variable=True), 4, 1, False, LIMIT, _IPNDM_V),
    "deis": SolverInfo(deis, 4, 1, False, LIMIT, _DEIS),
    "deis_rho": SolverInfo(partial(deis, space="rho"), 4, 1, False, LIMIT, _DEIS),
    "lms": SolverInfo(lms, 4, 1, False, LIMIT, "k-diffusion; " + _DEIS),
    "dpm_solver_1": SolverInfo(partial(singlestep, 1), 1, 1, False, LIMIT, _DPM),
    "dpm_solver_2": SolverInfo(partial(singlestep, 2), 2, 2, False, LIMIT, _DPM),
    "dpm_solver_3": SolverInfo(partial(singlestep, 3), 3, 3, False, LIMIT, _DPM),
    "dpm_solver_fast": SolverInfo(fast, 2, 1, False, LIMIT, _DPM, stride="log_snr"),
    "dpm_solver++_2s": SolverInfo(partial(singlestep, 2, "data"), 2, 2, False, LIMIT, _DPMPP),
    "dpm_solver++_3s": SolverInfo(partial(singlestep, 3, "data"), 3, 3, False, LIMIT, _DPMPP),
    "dpm_solver++_fast": SolverInfo(partial(fast, "data"), 2, 1, False, LIMIT, _DPMPP),
    "dpm_solver++_2m": SolverInfo(partial(multistep, 2), 2, 1, False, None, _DPMPP),
    "dpm_solver++_3m": SolverInfo(partial(multistep, 3), 3, 1, False, None, _DPMPP),
    "sde_dpm_solver++_1": SolverInfo(partial(multistep, 1, eta=1.0), None, 1, True, None, _DPMPP),
    "sde_dpm_solver++_2m": SolverInfo(partial(multistep, 2, eta=1.0), None, 1, True, None, _DPMPP),
    "sde_dpm_solver++_2s": SolverInfo(sde_singlestep, None, 2, True, LIMIT, _DPMPP),
    "unipc_1": SolverInfo(partial(unipc, 1), 2, 1, False, None, _UNIPC),
    "unipc_2": SolverInfo(partial(unipc, 2), 3, 1, False, None, _UNIPC),
    "unipc_3": SolverInfo(partial(unipc, 3), 4, 1, False, None, _UNIPC),
    "consistency": SolverInfo(consistency, None, 1, True, None, _CM),
    "lcm": SolverInfo(partial(consistency, sigma_min=0.0), None, 1, True, None, _LCM),
}
"""Solvers by name."""

__all__ = [
    "SOLVERS",
    "SPACES",
    "Solver",
    "SolverInfo",
    "SolverTable",
    "State",
    "analytical_first_step",
    "concatenate",
    "consistency",
    "ddim",
    "ddpm",
    "deis",
    "euler",
    "fast",
    "heun",
    "heun_churn",
    "ipndm",
    "lms",
    "midpoint",
    "multistep",
    "plms",
    "pndm",
    "rk4",
    "sde_singlestep",
    "singlestep",
    "unipc",
]
