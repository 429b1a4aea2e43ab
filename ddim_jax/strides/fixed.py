"""Strides chosen by formula: `(schedule, steps, **options) -> times`, float64 [steps + 1].

All take these, beside options of their own, and raise ValueError for a value that is out of range:

    schedule  the forward process
    steps     intervals, at least 1
    terminal  "zero": the last point is exactly clean (alpha = 1, sigma = 0); "min": it is the
              cleanest trained level, `schedule.t_min`; "skip": as "min", but clean in its place, so
              that no evaluation is at `t_min`. Some take two more: "zero_to_min" has the points of
              "zero", the last of them replaced by the cleanest trained level; "repeat" the last
              replaced by the one before. Where it coincides with the point before, the last step
              leaves the sample as it is, but for UniPC's correction and for solvers whose every
              step adds noise (ddnm, lcm, tcd)
    lam_min   moves the noisy end to the first trained level above this half log-SNR, for solvers
              that cannot start from pure noise; None leaves it

Times are strictly monotone. On a discrete schedule the index strides (uniform, quadratic) visit
whole indices n at t = (n + 1) / T and hold at most T steps; the others interpolate, and
need a finite log-SNR: give them `lam_min` where the schedule ends at alpha = 0.

Sources: Song et al. 2021 (arXiv:2010.02502), appendix D.2 (uniform, quadratic); Lin et al. 2024
(arXiv:2305.08891), table 2 (leading, linspace, trailing); Karras et al. 2022 (arXiv:2206.00364),
equation 5; Lu et al. 2022 (arXiv:2206.00927), section 3.3 (log-SNR); k-diffusion (code;
polyexponential); Sabour et al. 2024 (arXiv:2404.14507) (align your steps).
"""

from collections.abc import Callable

import numpy as np

from ddim_jax.strides.by_index import quadratic, uniform
from ddim_jax.strides.by_noise import (
    align_your_steps,
    beta,
    karras,
    log_snr,
    poly_exponential,
)

STRIDES: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "karras": karras,
    "log_snr": log_snr,
    "exponential": log_snr,  # k-diffusion's name for it
    "beta": beta,
    "poly_exponential": poly_exponential,
    "align_your_steps": align_your_steps,
}
"""Fixed strides by name."""
