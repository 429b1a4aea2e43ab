"""Noise schedules: how much signal and how much noise there is at a time.

Every family is one forward process, `x_t = alpha(t) * x0 + sigma(t) * eps`, `eps ~ N(0, I)`. A
`Schedule` gives the `NoiseLevel` at a time; DDPM's discrete tables, the cosine, EDM and rectified
flow are constructors of it, not code paths. Time runs from `t_span[0]` (noise) to `t_span[1]`
(clean data, exactly `alpha = 1, sigma = 0`); `t_min` is the cleanest level a network is asked at.

    lam(t) = log(alpha / sigma)        half the log-SNR; `log_snr = 2 * lam`

The functions accept numpy (float64, on the host: strides and solver tables) and jax arrays (inside
losses), and answer in kind. Discrete schedules put index n = 0..T-1 at t = (n + 1) / T, so that
t = 0 is the clean image, and interpolate log alpha between indices (DPM-Solver, arXiv:2206.00927).

Sources: DDPM (arXiv:2006.11239), improved DDPM (arXiv:2102.09672), ScoreSDE (arXiv:2011.13456),
VDM (arXiv:2107.00630), simple diffusion (arXiv:2301.11093), EDM (arXiv:2206.00364),
rectified flow (arXiv:2209.03003), SD3 (arXiv:2403.03206), zero terminal SNR (arXiv:2305.08891).
"""

from collections.abc import Callable

from ddim_jax.schedules.continuous import CLEANEST_TIME, cosine, edm, rectified_flow, vp_linear
from ddim_jax.schedules.discrete import (
    ddpm_cosine,
    ddpm_linear,
    ddpm_scaled_linear,
    ddpm_sigmoid,
    from_betas,
    trained_betas,
    zero_terminal_snr,
)
from ddim_jax.schedules.schedule import MODEL_TIMES, PRIORS, NoiseLevel, Schedule

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "ddpm_linear": ddpm_linear,
    "ddpm_scaled_linear": ddpm_scaled_linear,
    "ddpm_cosine": ddpm_cosine,
    "ddpm_sigmoid": ddpm_sigmoid,
    "trained_betas": trained_betas,
    "vp_linear": vp_linear,
    "cosine": cosine,
    "edm": edm,
    "rectified_flow": rectified_flow,
}
"""Schedules by the name that configs use."""

__all__ = [
    "CLEANEST_TIME", "MODEL_TIMES", "NoiseLevel", "PRIORS", "SCHEDULES", "Schedule", "cosine",
    "ddpm_cosine", "ddpm_linear", "ddpm_scaled_linear", "ddpm_sigmoid", "edm", "from_betas",
    "rectified_flow", "trained_betas", "vp_linear", "zero_terminal_snr",
]  # fmt: skip
