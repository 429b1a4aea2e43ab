"""Solvers: `(schedule, times) -> SolverTable`, float64 numpy, no JAX.

`SOLVERS` lists them by name; the command line, the README and the tests read it. To add one, write
a function that returns a `Solver` in the file of its family, and a line here.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial

from ddim_jax.solvers.adams import deis, ipndm, lms
from ddim_jax.solvers.consistency import consistency
from ddim_jax.solvers.ddim import ddim, ddnm, ddpm
from ddim_jax.solvers.dpm_solver import fast, sde_singlestep, singlestep
from ddim_jax.solvers.dpm_solver_multistep import multistep
from ddim_jax.solvers.first_step import analytical_first_step
from ddim_jax.solvers.pndm import plms, pndm
from ddim_jax.solvers.runge_kutta import SPACES, euler, heun, heun_churn, midpoint, rk4
from ddim_jax.solvers.solver import LIMIT, Solver
from ddim_jax.solvers.table import SolverTable, State, concatenate
from ddim_jax.solvers.unipc import unipc


def _named(name: str, make: Callable[..., Solver]) -> Solver:
    """The solver with default options, that can be made again with others under its name."""

    @functools.wraps(make)
    def again(*args, **options) -> Solver:
        return dataclasses.replace(make(*args, **options), name=name, make=again)

    return again()


# what a name fixes is bound by position; what it only presets by keyword, and stays an option
_MAKERS: dict[str, Callable[..., Solver]] = {
    "ddim": ddim,
    "ddnm": ddnm,
    "ddpm": ddpm,
    "ddpm_large": partial(ddpm, variance="large"),
    "euler": euler,
    "euler_ancestral": partial(ddim, eta=1.0),
    "heun": heun,
    "heun_flow": partial(heun, space="flow"),
    "heun_angle": partial(heun, space="angle"),
    "heun_churn": heun_churn,
    "midpoint": midpoint,
    "rk4": rk4,
    "plms": plms,
    "s_pndm": partial(plms, order=2),
    "pndm": pndm,
    "ipndm": ipndm,
    "ipndm_v": partial(ipndm, variable=True),
    "deis": deis,
    "deis_rho": partial(deis, space="rho"),
    "lms": lms,
    "dpm_solver_1": partial(singlestep, 1),
    "dpm_solver_2": partial(singlestep, 2),
    "dpm_solver_3": partial(singlestep, 3),
    "dpm_solver_fast": fast,
    "dpm_solver++_2s": partial(singlestep, 2, "data"),
    "dpm_solver++_3s": partial(singlestep, 3, "data"),
    "dpm_solver++_fast": partial(fast, "data"),
    "dpm_solver++_2m": partial(multistep, 2),
    "dpm_solver++_3m": partial(multistep, 3),
    "sde_dpm_solver++_1": partial(multistep, 1, eta=1.0),
    "sde_dpm_solver++_2m": partial(multistep, 2, eta=1.0),
    "sde_dpm_solver++_2s": sde_singlestep,
    "unipc_1": partial(unipc, 1),
    "unipc_2": partial(unipc, 2),
    "unipc_3": partial(unipc, 3),
    "consistency": consistency,
    "lcm": partial(consistency, sigma_min=0.0),
    "tcd": partial(consistency, sigma_min=0.0, gamma=0.3),
}

SOLVERS: dict[str, Solver] = {name: _named(name, make) for name, make in _MAKERS.items()}
"""Solvers by name, with default options; `SOLVERS["ddim"].make(eta=0.2)` has others."""

__all__ = [
    "LIMIT", "SOLVERS", "SPACES", "Solver", "SolverTable", "State", "analytical_first_step",
    "concatenate", "consistency", "ddim", "ddnm", "ddpm", "deis", "euler", "fast", "heun",
    "heun_churn", "ipndm", "lms", "midpoint", "multistep", "plms", "pndm", "rk4", "sde_singlestep",
    "singlestep", "unipc",
]  # fmt: skip
