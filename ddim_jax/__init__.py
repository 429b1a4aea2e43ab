"""Few-step diffusion in JAX.

    model = ddim_jax.load("digits")                 # or a training workdir, a file, a folder
    ddim_jax.save_grid("digits.png", model.draw(40))

    schedules     how much signal and noise there is at a time
    predictions   what a network's output means
    denoisers     a network as an estimate of image and noise; clipping
    guidance      classifier-free guidance
    strides       which times a sampler visits
    solvers       a sampler as a table of numbers
    sampling      the loop that carries a table out

and, imported by name: `recipe`, `experiment`, `checkpoints`, `losses`, `training`, `data`,
`editing`, `evaluation`, `planning`. docs/layout.md has the rest.
"""

from ddim_jax import denoisers, guidance, predictions, sampling, schedules, solvers, strides
from ddim_jax.checkpoints import load
from ddim_jax.data import save_grid
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe

__all__ = [
    "Model",
    "Recipe",
    "denoisers",
    "guidance",
    "load",
    "predictions",
    "sampling",
    "save_grid",
    "schedules",
    "solvers",
    "strides",
]
