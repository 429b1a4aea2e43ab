"""Few-step diffusion in JAX.

    schedules     how much signal and noise there is at a time
    predictions   what a network's output means
    denoisers     a network as an estimate of image and noise; clipping
    guidance      classifier-free guidance
    strides       which times a sampler visits
    solvers       a sampler as a table of numbers
    sampling      the loop that carries a table out, and its jitted entry

and, imported by name: `experiment` (configs to parts), `generation` (many samples),
`probability_flow` (error-controlled steps), `losses`, `training`, `models`, `data`, `parallel`.
"""

from ddim_jax import denoisers, guidance, predictions, sampling, schedules, solvers, strides

__all__ = [
    "denoisers",
    "guidance",
    "predictions",
    "sampling",
    "schedules",
    "solvers",
    "strides",
]
