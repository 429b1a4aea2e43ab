"""Multistep sampling for models that answer with the end of their trajectory.

A consistency model maps any point straight to a clean image, so a step is: take that image, add
fresh noise up to the next level, ask again.

    x' = alpha' (x0 + sqrt((sigma' / alpha')^2 - sigma_min^2) z)

where sigma_min is the noise ratio at which the model is the identity. To evaluate it there, or next
to it, would change nothing, so the strides of this sampler skip the cleanest level (their terminal
is "skip"): two steps on EDM's grid look at sigma = 80 and 2.5. The same rows sample a denoiser, of
which x0 is only the mean: blurred, but a useful baseline.

Sources: Song et al. 2023 (arXiv:2303.01469), algorithm 1; Luo et al. 2023 (latent consistency
models, arXiv:2310.04378), algorithm 3.
"""

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.rows import NOISE, Rows
from ddim_jax.solvers.solver import Solver
from ddim_jax.solvers.table import SolverTable

CM = "Song et al. 2023, arXiv:2303.01469"
LCM = "Luo et al. 2023, arXiv:2310.04378"


def consistency(sigma_min: float = 0.002) -> Solver:
    """Multistep consistency sampling. Source: Song et al. 2023, algorithm 1.

    Args:
        sigma_min: sigma / alpha at which the model is the identity; 0 for latent consistency
            models, which re-noise to the full level.

    Raises:
        ValueError: sigma_min is negative.
    """
    if sigma_min < 0:
        raise ValueError(f"sigma_min must be at least 0, got {sigma_min}; EDM's is 0.002")

    def make_table(schedule: Schedule, times: np.ndarray) -> SolverTable:
        rows, after = Rows(schedule, times), schedule.level(times[1:])
        std = np.sqrt(np.maximum(after.sigma**2 - (after.alpha * sigma_min) ** 2, 0))
        for k, t in enumerate(times[:-1]):
            x0 = rows.predict(t, x0=1.0)
            rows.move(after.alpha[k] * x0 + std[k] * NOISE)
        return rows.table()

    return Solver(
        make_table=make_table,
        stochastic=True,
        terminal="skip",
        source=CM if sigma_min else LCM,
        name="consistency",
    )
