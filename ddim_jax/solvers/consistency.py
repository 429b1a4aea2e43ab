"""Multistep sampling for models that answer with the end of their trajectory.

A consistency model maps any point straight to a clean image, so a step is: take that image, add
fresh noise up to the next level, ask again.

    x' = alpha' (x0 + sqrt((sigma' / alpha')^2 - sigma_min^2) z)

where sigma_min is the noise ratio at which the model is the identity. To evaluate it there, or next
to it, would change nothing, so the strides of this sampler skip the cleanest level (their terminal
is "skip"): two steps on EDM's grid look at sigma = 80 and 2.5. The same rows sample a denoiser, of
which x0 is only the mean: blurred, but a useful baseline. A model of whole trajectories goes on to
a level between, (alpha_s, sigma_s) at s = (1 - gamma) t', before it adds noise:

    x' = k (alpha_s x0 + sigma_s eps) + sqrt(sigma'^2 - k^2 sigma_s^2) z,    k = alpha' / alpha_s

That is gamma-sampling: DDIM at 0, the row above at 1, and exact in mean and variance at any gamma
where the model is. Noise repairs the contraction that errors of the model leave; 0.2 to 0.3 is
usual from 4 steps on. A network that is told how far to jump is told s, see `solvers.jumps`.

Sources: Song et al. 2023 (arXiv:2303.01469), algorithm 1; Luo et al. 2023 (latent consistency
models, arXiv:2310.04378), algorithm 3; Zheng et al. 2024 (trajectory consistency distillation,
arXiv:2402.19159), algorithm 4; Wang et al. 2024 (phased consistency models, arXiv:2405.18407),
which are sampled by the same rows, at gamma 0 between their phases.
"""

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.rows import NOISE, Rows
from ddim_jax.solvers.solver import Solver
from ddim_jax.solvers.table import SolverTable

CM = "Song et al. 2023, arXiv:2303.01469"
LCM = "Luo et al. 2023, arXiv:2310.04378"
TCD = "Zheng et al. 2024, arXiv:2402.19159"


def consistency(sigma_min: float = 0.002, *, gamma: float = 1.0) -> Solver:
    """Multistep consistency sampling. Source: Song et al. 2023, algorithm 1.

    Args:
        sigma_min: sigma / alpha at which the model is the identity; 0 for latent consistency
            models, which re-noise to the full level.
        gamma: 1 adds all noise afresh; below 1 a step follows eps to (1 - gamma) of the next time,
            a whole index on a discrete schedule, and adds noise from there (needs sigma_min=0).

    Raises:
        ValueError: sigma_min is negative; gamma outside [0, 1], or below 1 with a sigma_min.
    """
    if not 0 <= gamma <= 1 or (gamma < 1 and sigma_min):
        raise ValueError(
            f"gamma must be in [0, 1], and 1 unless sigma_min is 0, got {gamma} with {sigma_min}"
        )
    if sigma_min < 0:
        raise ValueError(f"sigma_min must be at least 0, got {sigma_min}; EDM's is 0.002")

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        rows, after = Rows(schedule, times), schedule.level(times[1:])
        if gamma < 1:
            return _between(gamma, schedule, times).table()
        std = np.sqrt(np.maximum(after.sigma**2 - (after.alpha * sigma_min) ** 2, 0))
        for k, t in enumerate(times[:-1]):
            x0 = rows.predict(t, x0=1.0)
            rows.move(after.alpha[k] * x0 + std[k] * NOISE)
        return rows.table()

    return Solver(
        make_table=make_table,
        stochastic=gamma > 0,
        terminal="skip",
        source=TCD if gamma < 1 else CM if sigma_min else LCM,
        name="consistency",
    )


def _between(gamma: float, schedule: Schedule, times: np.ndarray) -> Rows:
    """The rows of gamma-sampling."""
    rows, after, total = Rows(schedule, times), schedule.level(times[1:]), schedule.num_steps
    if total is None:
        clean = schedule.t_span[1]
        middle = schedule.level(clean + (1 - gamma) * (times[1:] - clean))
    else:
        index = np.floor((1 - gamma) * (times[1:] * total - 1) + 1e-6)
        middle = schedule.level(np.maximum(index + 1, 0) / total)
    keep = after.alpha / middle.alpha
    std = np.sqrt(np.maximum(after.sigma**2 - (keep * middle.sigma) ** 2, 0.0))
    for k, t in enumerate(times[:-1]):
        at = rows.predict(t, x0=after.alpha[k], eps=keep[k] * middle.sigma[k])
        rows.move(at + std[k] * NOISE)
    return rows
