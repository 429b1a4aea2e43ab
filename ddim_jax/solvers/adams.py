"""Multistep methods of Adams-Bashforth type on the probability flow in sigma space.

With `y = x / alpha` and `u = sigma / alpha` the flow is `dy/du = eps`, so a step is

    x' = alpha' (x / alpha + sum_j c_j eps_j)

over the last predictions eps_0 (newest), eps_1, ...; one evaluation a step. They differ in c:

    ipndm                (u' - u) times the Adams-Bashforth numbers of equal steps
    lms, deis rhoAB      the integral over u of the Lagrange polynomial in u: unequal steps
    deis tAB             the integral over u of the Lagrange polynomial in t
    deis log rho         the integral over u of the Lagrange polynomial in log u

The fixed numbers are second order at best on steps that are unequal in u (and all useful strides
are); the integrals have the order of their history. eps cannot be followed from alpha = 0: strides
start at the solvers' `lam_min`. The step to the clean end is first order, DDIM's, unless asked.

Sources: Zhang & Chen 2023 (DEIS, arXiv:2204.13902), whose rhoAB of order p is k-diffusion's LMS of
order p + 1; Zhou et al. 2024 (iPNDM_v in diff-sampler, arXiv:2312.00094).
"""

from collections.abc import Callable

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.dpm_solver_multistep import step_orders
from ddim_jax.solvers.pndm import ADAMS_BASHFORTH
from ddim_jax.solvers.rows import POINT, Combination, Rows, combine
from ddim_jax.solvers.solver import LIMIT, MakeTable, Solver
from ddim_jax.solvers.table import SolverTable

DEIS = "Zhang & Chen 2023, arXiv:2204.13902"
IPNDM_V = "Zhou et al. 2024, arXiv:2312.00094"

Coefficients = Callable[[Schedule, np.ndarray, np.ndarray], np.ndarray]
"""(schedule, times of the predictions newest first then the target's, u likewise) -> c."""


def _multistep(
    order: int, coefficients: Coefficients, lower_order_final: bool | int | None
) -> MakeTable:
    """The common loop: the order grows with the history."""

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        rows = Rows(schedule, times)
        seen: list[Combination] = []
        with np.errstate(divide="ignore", invalid="ignore"):
            level = schedule.level(times)
            u = level.sigma / level.alpha
            orders = _orders(order, len(times) - 1, u[-1] == 0, lower_order_final, coefficients)
            for k, t in enumerate(times[:-1]):
                if u[k + 1] == 0 and orders[k] == 1:
                    rows.into_clean(t)
                    break
                seen = [rows.predict(t, eps=1.0), *seen][:order]
                used = seen[: orders[k]]
                nodes = [*range(k, k - len(used), -1), k + 1]
                c = coefficients(schedule, times[nodes], u[nodes])
                rows.move(level.alpha[k + 1] * (POINT / level.alpha[k] + combine(c, used)))
        return rows.table()

    return make_table


def _orders(order, steps, clean, lower_order_final, coefficients) -> list[int]:
    """The greatest order of every step; None lowers only a step to the clean end."""
    if lower_order_final is None:
        return [*[order] * (steps - 1), 1 if clean else order]
    no_end = clean and coefficients is _polynomial_in_log_u  # log u has none at u = 0
    return step_orders(order, steps, no_end, lower_order_final)


def _adams(
    name: str,
    source: str,
    coefficients: Coefficients,
    order: int,
    lower_order_final: bool | int | None = None,
) -> Solver:
    """The solver of one kind of coefficients."""
    if order not in ADAMS_BASHFORTH:
        raise ValueError(f"order must be 1..{len(ADAMS_BASHFORTH)}, got {order}")
    return Solver(
        make_table=_multistep(order, coefficients, lower_order_final),
        order=min(order, 2) if coefficients is _equal_steps else order,
        lam_min=LIMIT,
        source=source,
        name=name,
    )


def _equal_steps(schedule: Schedule, times: np.ndarray, u: np.ndarray) -> np.ndarray:
    return (u[-1] - u[0]) * np.array(ADAMS_BASHFORTH[len(u) - 1])


def ipndm(order: int = 4, variable: bool = False) -> Solver:
    """iPNDM: Adams-Bashforth without warm-up, the order grows 1, 2, 3, 4; steps evaluations.

    Args:
        order: 1..4.
        variable: iPNDM_v, the numbers of unequal steps; the same map as `lms`. (The released code
            of iPNDM_v departs from these integrals from order 3 on: its weights of order 3 are
            second order, those of order 4 do not sum to 1.)

    Source: Zhang & Chen 2023, section 4; Zhou et al. 2024 (code) for unequal steps.
    """
    if variable:
        return _adams("ipndm_v", IPNDM_V, _polynomial_in_u, order)
    return _adams("ipndm", DEIS, _equal_steps, order)


def lms(order: int = 4, *, lower_order_final: bool | int | None = None) -> Solver:
    """Linear multistep over sigma / alpha: the variable-step Adams-Bashforth method.

    Args:
        order: 1..4; the number of predictions used.
        lower_order_final: None makes only a step to the clean end first order, False none; others
            as of `multistep`.

    Source: k-diffusion's LMS (code); Zhang & Chen 2023, rhoAB of order `order - 1`.
    """
    return _adams("lms", f"k-diffusion; {DEIS}", _polynomial_in_u, order, lower_order_final)


def deis(
    order: int = 3, space: str = "t", *, lower_order_final: bool | int | None = None
) -> Solver:
    """DEIS: exponential integration with a polynomial through earlier predictions.

    Args:
        order: 0..3, the polynomial's degree; the method converges with `order + 1`.
        space: "t" is tAB, the polynomial is in the schedule's own clock; "rho" is rhoAB, in
            sigma / alpha (the same as `lms(order + 1)`); "log_rho" has it in log(sigma / alpha)
            (diffusers).
        lower_order_final: as of `lms`; in "log_rho" a step to the clean end is always first order.

    Source: Zhang & Chen 2023, equations 15 (tAB) and 17 (rhoAB).
    """
    if order not in range(4):
        raise ValueError(f"order must be 0..3 (the polynomial's degree), got {order}")
    spaces = {"t": _polynomial_in_t, "rho": _polynomial_in_u, "log_rho": _polynomial_in_log_u}
    if space not in spaces:
        raise ValueError(f"space must be 't' (tAB), 'rho' (rhoAB) or 'log_rho', got {space!r}")
    return _adams("deis", DEIS, spaces[space], order + 1, lower_order_final)


def _lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[nodes, at] the Lagrange basis of the nodes."""
    basis = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        basis.append(np.prod((at[:, None] - others) / (node - others), axis=1))
    return np.array(basis)


_GAUSS = np.polynomial.legendre.leggauss(32)


def _polynomial_in_u(schedule: Schedule, times: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Integrals of the Lagrange basis in u; the Gauss rule is exact for polynomials."""
    half = (u[-1] - u[0]) / 2
    return half * _lagrange(u[:-1], u[0] + half * (_GAUSS[0] + 1)) @ _GAUSS[1]


def _polynomial_in_log_u(schedule: Schedule, times: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Integrals over u of the Lagrange basis in v = log u, `int l(v) e^v dv`."""
    v = np.log(u)
    half = (v[-1] - v[0]) / 2
    at = v[0] + half * (_GAUSS[0] + 1)
    return half * (_lagrange(v[:-1], at) * np.exp(at)) @ _GAUSS[1]


def _polynomial_in_t(schedule: Schedule, times: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Integrals over u of the Lagrange basis in t, by parts: `[l u] - int l'(t) u(t) dt`.

    They sum to `u' - u`, whatever the error of the quadrature.
    """
    half = (times[-1] - times[0]) / 2
    at = times[0] + half * (_GAUSS[0] + 1)
    level = schedule.level(at)
    powers = np.vander(times[:-1] - times[0], increasing=True)
    monomials = np.linalg.inv(powers)  # [power, node]
    degree = np.arange(len(times) - 1)
    slopes = degree * (at[:, None] - times[0]) ** np.maximum(degree - 1, 0)  # of t^degree
    by_parts = half * (_GAUSS[1] * level.sigma / level.alpha) @ slopes
    rise = u[-1] * (times[-1] - times[0]) ** degree - u[0] * 0.0**degree
    return (rise - by_parts) @ monomials
