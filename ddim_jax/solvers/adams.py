"""Multistep methods of Adams-Bashforth type on the probability flow in sigma space.

With `y = x / alpha` and `u = sigma / alpha` the flow is `dy/du = eps`, so a step is

    x' = alpha' (x / alpha + sum_j c_j eps_j)

over the last predictions eps_0 (newest), eps_1, ...; one evaluation a step. They differ in c:

    pndm, plms, ipndm    (u' - u) times the Adams-Bashforth numbers of equal steps
    lms, deis rhoAB      the integral over u of the Lagrange polynomial in u: unequal steps
    deis tAB             the integral over u of the Lagrange polynomial in t

The fixed numbers are second order at best on steps that are unequal in u (and all useful strides
are); the integrals have the order of their history. eps cannot be followed from alpha = 0: strides
start at the solvers' `lam_min`. The step to the clean end is first order, DDIM's.

Sources: Liu et al. 2022 (PNDM, arXiv:2202.09778); Zhang & Chen 2023 (DEIS, arXiv:2204.13902), whose
rhoAB of order p is k-diffusion's LMS of order p + 1; Zhou et al. 2024 (iPNDM_v in diff-sampler,
arXiv:2312.00094).
"""

from collections.abc import Callable, Sequence

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.rows import BASE, POINT, Combination, Rows, combine
from ddim_jax.solvers.solver import LIMIT, MakeTable, Solver
from ddim_jax.solvers.table import SolverTable

PNDM = "Liu et al. 2022, arXiv:2202.09778"
DEIS = "Zhang & Chen 2023, arXiv:2204.13902"
IPNDM_V = "Zhou et al. 2024, arXiv:2312.00094"

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the newest, the one before, ...; by order."""

Coefficients = Callable[[Schedule, np.ndarray, np.ndarray], np.ndarray]
"""(schedule, times of the predictions newest first then the target's, u likewise) -> c."""


def _transfer(schedule: Schedule, t: float, s: float, point: Combination, eps: Combination):
    """DDIM's step from t to s with a given eps: the straight line in sigma space."""
    now, after = schedule.level(t), schedule.level(s)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = after.alpha / now.alpha
        return scale * point + (after.sigma - scale * now.sigma) * eps


def _multistep(order: int, coefficients: Coefficients, warm_up: Sequence[Callable]) -> MakeTable:
    """The common loop: warm-up steps first, the order grows with the history.

    A warm-up step (schedule, rows, t, s) -> eps_t writes the rows of one step and returns the
    prediction at t.
    """

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        rows, seen = Rows(schedule, times), []
        with np.errstate(divide="ignore", invalid="ignore"):
            level = schedule.level(times)
            u = level.sigma / level.alpha
            for k, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
                if level.sigma[k + 1] == 0:
                    rows.into_clean(t)
                elif k < len(warm_up):
                    seen = [warm_up[k](schedule, rows, t, s), *seen][:order]
                else:
                    seen = [rows.predict(t, eps=1.0), *seen][:order]
                    used = [*range(k, k - len(seen), -1), k + 1]
                    c = coefficients(schedule, times[used], u[used])
                    step = combine(c, seen)
                    rows.move(level.alpha[k + 1] * (POINT / level.alpha[k] + step))
        return rows.table()

    return make_table


def _adams(
    name: str,
    source: str,
    coefficients: Coefficients,
    order: int,
    warm_up: Sequence[Callable] = (),
    extra: tuple[int, ...] = (),
) -> Solver:
    """The solver of one kind of coefficients; `extra` are the evaluations of its warm-up steps."""
    if order not in ADAMS_BASHFORTH:
        raise ValueError(f"order must be 1..{len(ADAMS_BASHFORTH)}, got {order}")
    return Solver(
        make_table=_multistep(order, coefficients, warm_up),
        order=min(order, 2) if coefficients is _equal_steps else order,
        lam_min=LIMIT,
        stride="karras" if warm_up else "uniform",
        source=source,
        warm_up=extra,
        name=name,
    )


def _equal_steps(schedule: Schedule, times: np.ndarray, u: np.ndarray) -> np.ndarray:
    return (u[-1] - u[0]) * np.array(ADAMS_BASHFORTH[len(u) - 1])


def _pseudo_heun(schedule: Schedule, rows: Rows, t: float, s: float) -> Combination:
    """PNDM's improved Euler step: the mean of eps at both ends. Source: PNDM, equation 12."""
    first = rows.predict(t, eps=1.0)
    rows.move(_transfer(schedule, t, s, POINT, first), base=POINT)
    second = rows.predict(s, eps=1.0)
    rows.move(_transfer(schedule, t, s, BASE, (first + second) / 2))
    return first


def _pseudo_rk4(schedule: Schedule, rows: Rows, t: float, s: float) -> Combination:
    """PNDM's pseudo Runge-Kutta step, its middle that of the clock. Source: PNDM, equation 13."""
    middle, slopes = (t + s) / 2, []
    point = POINT
    for at, to in ((t, middle), (middle, middle), (middle, s)):
        slopes.append(rows.predict(at, eps=1.0))
        rows.move(_transfer(schedule, t, to, point, slopes[-1]), base=point)
        point = BASE
    slopes.append(rows.predict(s, eps=1.0))
    mean = (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]) / 6
    rows.move(_transfer(schedule, t, s, BASE, mean))
    return slopes[0]


def plms(order: int = 4) -> Solver:
    """PLMS: an improved Euler step first, then Adams-Bashforth; steps + 1 evaluations.

    Args:
        order: 1..4, of the Adams-Bashforth numbers; 2 is PNDM's S-PNDM.

    Source: Liu et al. 2022; the warm-up is that of Rombach et al. 2022 (code).
    """
    return _adams("plms", PNDM, _equal_steps, order, (_pseudo_heun,), (1,))


def pndm() -> Solver:
    """F-PNDM: three pseudo Runge-Kutta steps, then Adams-Bashforth 4; steps + 9 evaluations.

    The warm-up explodes where its steps are long beside the level: not for fewer than 4 steps.

    Source: Liu et al. 2022, algorithm 2.
    """
    return _adams("pndm", PNDM, _equal_steps, 4, (_pseudo_rk4,) * 3, (3, 3, 3))


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


def lms(order: int = 4) -> Solver:
    """Linear multistep over sigma / alpha: the variable-step Adams-Bashforth method.

    Args:
        order: 1..4; the number of predictions used.

    Source: k-diffusion's LMS (code); Zhang & Chen 2023, rhoAB of order `order - 1`.
    """
    return _adams("lms", f"k-diffusion; {DEIS}", _polynomial_in_u, order)


def deis(order: int = 3, space: str = "t") -> Solver:
    """DEIS: exponential integration with a polynomial through earlier predictions.

    Args:
        order: 0..3, the polynomial's degree; the method converges with `order + 1`.
        space: "t" is tAB, the polynomial is in the schedule's own clock; "rho" is rhoAB, in
            sigma / alpha (the same as `lms(order + 1)`).

    Source: Zhang & Chen 2023, equations 15 (tAB) and 17 (rhoAB).
    """
    if order not in range(4):
        raise ValueError(f"order must be 0..3 (the polynomial's degree), got {order}")
    if space not in ("t", "rho"):
        raise ValueError(f"space must be 't' (tAB) or 'rho' (rhoAB), got {space!r}")
    polynomial = _polynomial_in_t if space == "t" else _polynomial_in_u
    return _adams("deis", DEIS, polynomial, order + 1)


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
