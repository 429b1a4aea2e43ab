"""Strides: which times a sampler visits, `(schedule, steps, **options) -> times[steps + 1]`.

fixed         by formula, and by name in `STRIDES`
adaptive      learned from a model's trajectories
candidates    both kinds between several pairs of ends
search        the race with the actual sampler, and refinement by gradients
files         learned strides as JSON
fit           the command that makes them
"""

from ddim_jax.strides import files
from ddim_jax.strides.fixed import (
    ALIGN_YOUR_STEPS,
    STRIDES,
    align_your_steps,
    karras,
    log_snr,
    poly_exponential,
    quadratic,
    uniform,
)

__all__ = [
    "ALIGN_YOUR_STEPS",
    "STRIDES",
    "align_your_steps",
    "files",
    "karras",
    "log_snr",
    "poly_exponential",
    "quadratic",
    "uniform",
]
