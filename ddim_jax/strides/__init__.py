"""Strides: which times a sampler visits, `(schedule, steps, **options) -> times[steps + 1]`.

fixed              by formula, and by name in `STRIDES`; from by_index, by_noise and ends
trajectories       what strides are learned from: runs of a teacher
from_trajectories  strides derived from them
search             races strides with the actual sampler, and refines one by gradients
search_space       candidates of both kinds, between several pairs of ends, raced in rounds
learned            reads and writes learned strides as JSON
fit                the command that learns them
"""

from ddim_jax.strides import learned
from ddim_jax.strides.by_index import quadratic, uniform
from ddim_jax.strides.by_noise import (
    ALIGN_YOUR_STEPS,
    align_your_steps,
    beta,
    karras,
    log_snr,
    poly_exponential,
)
from ddim_jax.strides.fixed import STRIDES

__all__ = [
    "ALIGN_YOUR_STEPS", "STRIDES", "align_your_steps", "beta", "karras", "learned", "log_snr",
    "poly_exponential", "quadratic", "uniform",
]  # fmt: skip
