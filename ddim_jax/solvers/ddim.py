"""DDPM and DDIM: the family of samplers that share DDPM's marginals.

One step from (alpha, sigma) to the cleaner (alpha', sigma'), with `h = lam' - lam`:

    x' = alpha' x0 + sqrt(sigma'^2 - std^2) eps + std z,     std = eta sigma' sqrt(1 - e^{-2h})

which for variance-preserving schedules is DDIM's equation 12 with its own eta (equation 16):
`std = eta sqrt((1 - P) / (1 - A)) sqrt(1 - A / P)`, A and P being alpha^2 before and after. eta = 0
is deterministic, eta = 1 is DDPM's posterior (small) variance. DDNM's eta is another one, the share
of the whole noise: `std = eta sigma'`. Rows are finite at both ends.

Many names mean one of these maps: Euler's step on the probability flow, flow matching's Euler step,
DPM-Solver-1 and DEIS of order 0 are eta = 0; Euler ancestral and SDE-DPM-Solver++ of order 1 are
eta = 1. The tests show it.

Sources: Ho et al. 2020 (arXiv:2006.11239), Song et al. 2021 (arXiv:2010.02502), Wang et al. 2023
(arXiv:2212.00490, DDNM).
"""

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.rows import NOISE, POINT, Rows
from ddim_jax.solvers.solver import Solver
from ddim_jax.solvers.table import SolverTable

DDPM = "Ho et al. 2020, arXiv:2006.11239"
DDIM = "Song et al. 2021, arXiv:2010.02502"
DDNM = "Wang et al. 2023, arXiv:2212.00490"


def ddim(
    eta: float = 0.0, *, landing: str | int = "next", inverse: bool = False, divided: bool = False
) -> Solver:
    """DDIM. Source: Song et al. 2021, equations 12 and 16.

    Args:
        eta: 0 (deterministic) to 1 (DDPM's posterior variance).
        landing: where a step ends, see `landings`.
        inverse: runs the steps backwards, from a picture to noise, each with the network told the
            time that the step ends at (DDIMInverse of diffusers); `editing.inversion` has better.
        divided: ends at x / alpha, as samplers do that keep it (diffusers' Euler).

    Raises:
        ValueError: eta outside [0, 1], or not 0 with inverse; an unknown landing.
    """
    check_landing(landing)
    if eta and inverse:
        raise ValueError(f"inverse=True needs eta=0, got {eta}")
    if not 0 <= eta <= 1:
        raise ValueError(
            f"eta must be in [0, 1], got {eta}; 0 is deterministic DDIM, 1 is DDPM's posterior, "
            "and ddpm(variance='large') is the noisier sigma-hat"
        )

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        lands = landings(schedule, times, landing)
        if inverse:
            return _upwards(schedule, times, lands)
        share = eta**2 * _lost(schedule, times[:-1], lands) if eta else np.zeros(len(lands))
        return _renoised(schedule, times, lands, share, divided)

    return Solver(
        make_table=make_table,
        order=None if eta else 1,
        stochastic=eta > 0,
        source=DDIM,
        name="ddim",
    )


def ddnm(eta: float = 0.85) -> Solver:
    """DDIM with noise that is fresh to a share of its own: `std = eta sigma'`.

    At 0.85 and 50 steps that is about twice the std of `ddim(eta=0.85)`; 0 is DDIM, 1 is `lcm`. It
    is meant for restoration, whose measurements keep the picture: without them it draws too little
    variance, at any number of steps.

    Args:
        eta: 0 to 1; DDNM's 0.85 restores images.

    Raises:
        ValueError: eta outside [0, 1].

    Source: Wang et al. 2023, the authors' code.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}; DDNM uses 0.85, 0 is DDIM")

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        return _renoised(schedule, times, times[1:], np.full(len(times) - 1, eta**2))

    return Solver(
        make_table=make_table,
        order=None if eta else 1,
        stochastic=eta > 0,
        source=DDNM,
        name="ddnm",
    )


LANDINGS = ("next", "whole")


def check_landing(landing: str | int) -> None:
    """Raises ValueError for an unknown one."""
    if landing not in LANDINGS and not (isinstance(landing, int) and landing > 0):
        raise ValueError(f"landing must be {' or '.join(map(repr, LANDINGS))}, got {landing!r}")


def jump_of(schedule: Schedule, steps: int, landing: str | int) -> int | None:
    """How many indices each of so many steps goes down; None for "next"."""
    if isinstance(landing, int):
        return landing
    return None if landing == "next" else schedule.indices("landing='whole'") // steps


def landings(schedule: Schedule, times: np.ndarray, landing: str | int) -> np.ndarray:
    """[steps] where the steps of a stride end.

    "next" is the stride's next time. "whole" goes down T // steps indices of a T-step schedule,
    whatever the stride, and to the stride's last time from where there are not as many (diffusers'
    DDIM and PNDM). The two differ wherever the stride's own indices are not T // steps apart. A
    number is what "whole" is for the stride of which these times are the last.

    Raises:
        ValueError: an unknown landing; "whole" on a continuous schedule.
    """
    check_landing(landing)
    if landing == "next":
        return times[1:]
    total = schedule.indices(f"landing={landing!r}")
    below = np.round(times[:-1] * total) - 1 - jump_of(schedule, len(times) - 1, landing)
    return np.where(below < 0, times[-1], (below + 1) / total)


def _renoised(
    schedule: Schedule,
    times: np.ndarray,
    lands: np.ndarray,
    share: np.ndarray,
    divided: bool = False,
) -> SolverTable:
    """Steps from times [steps + 1] to `lands`, in which a share [steps] of the noise is fresh."""
    rows, after = Rows(schedule, np.append(times[0], lands)), schedule.level(lands)
    along, std = after.sigma * np.sqrt(1 - share), after.sigma * np.sqrt(share)
    for k, t in enumerate(times[:-1]):
        to = rows.predict(t, x0=after.alpha[k], eps=along[k]) + std[k] * NOISE
        rows.move(to / after.alpha[k] if divided and k == len(lands) - 1 else to)
    return rows.table()


def _upwards(schedule: Schedule, times: np.ndarray, lands: np.ndarray) -> SolverTable:
    """DDIM's steps from where they land to where they began."""
    rows = Rows(schedule, np.array([lands[-1], times[0]]), start=(1.0, 0.0))
    level = schedule.level(times[:-1])
    for k in reversed(range(len(lands))):
        told = float(level.model_time[k])
        rows.move(rows.predict(lands[k], x0=level.alpha[k], eps=level.sigma[k], told=told))
    return rows.table()


def _lost(schedule: Schedule, times: np.ndarray, lands: np.ndarray) -> np.ndarray:
    """`1 - exp(-2h)` of every step: the share of the noise that the step replaces."""
    return -np.expm1(-2 * (schedule.half_log_snr(lands) - schedule.half_log_snr(times)))


def ddpm(variance: str = "small", *, final_noise: bool = False) -> Solver:
    """DDPM's ancestral sampling in its posterior form, over any stride.

    `x' = c0 x0 + cx x + std z` with `c0 = alpha' (1 - e^{-2h})`, `cx = (sigma' / sigma) e^{-h}`.

    Args:
        variance: "small" is the posterior's (the same as `ddim(eta=1)`); "large" is the forward
            step's, beta_t: the sigma-hat rows of DDIM's table 1. Both are 0 in a step to sigma = 0.
        final_noise: keeps the "large" noise of a step to sigma = 0 from above the cleanest trained
            level (diffusers).

    Raises:
        ValueError: another variance; final_noise with "small".

    Source: Ho et al. 2020, equations 6, 7 and section 3.2; Song et al. 2021, appendix D.3.
    """
    if variance not in ("small", "large"):
        raise ValueError(
            f"variance must be 'small' (posterior) or 'large' (sigma-hat), got {variance!r}"
        )
    if final_noise and variance == "small":
        raise ValueError("final_noise=True needs variance='large', got 'small'")

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        rows = Rows(schedule, times)
        of_x0, of_x, std = posterior(schedule, times, variance)
        above = times[-2] > schedule.t_min * (1 + 1e-6)
        if final_noise and above and schedule.level(times[-1]).sigma == 0:
            std[-1] = schedule.level(times[-2]).sigma
        for k, t in enumerate(times[:-1]):
            x0 = rows.predict(t, x0=1.0)
            rows.move(of_x0[k] * x0 + of_x[k] * POINT + std[k] * NOISE)
        return rows.table()

    return Solver(
        make_table=make_table,
        stochastic=True,
        source=DDPM if variance == "small" else DDIM,
        name="ddpm",
    )


def posterior(
    schedule: Schedule, times: np.ndarray, variance: str = "small"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights of x0, weights of x, std) of every step of `ddpm`, [steps] each."""
    before, after = schedule.level(times[:-1]), schedule.level(times[1:])
    lost = _lost(schedule, times[:-1], times[1:])
    keep = (after.sigma / before.sigma) ** 2 * before.alpha / after.alpha
    std = (after.sigma if variance == "small" else before.sigma) * np.sqrt(lost)
    return after.alpha * lost, keep, np.where(after.sigma == 0, 0.0, std)
