"""Few-step diffusion in JAX.

    model = ddim_jax.load("digits")                 # or a training workdir, a file, a folder
    ddim_jax.save_grid("digits.png", model.draw(40))

What a model is made of, and what can be swapped in it:

    schedules     how much signal and noise there is at a time
    predictions   what a network's output means
    denoisers     a network as an estimate of image and noise; clipping
    guidance      classifier-free guidance
    strides       which times a sampler visits
    solvers       a sampler as a table of numbers
    sampling      the loop that carries a table out
    recipe        solver, stride, steps, guidance, clip: how to draw
    checkpoints   loading and saving

and, imported by name: `experiment` (a config's model), `training`, `losses`, `networks`, `data`,
`editing`, `evaluation`, `planning`.
"""

from ddim_jax import (
    checkpoints,
    denoisers,
    guidance,
    predictions,
    recipe,
    sampling,
    schedules,
    solvers,
    strides,
)
from ddim_jax.checkpoints import load
from ddim_jax.data.images import save_grid
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe

__all__ = [
    "Model",
    "Recipe",
    "checkpoints",
    "denoisers",
    "guidance",
    "load",
    "predictions",
    "recipe",
    "sampling",
    "save_grid",
    "schedules",
    "solvers",
    "strides",
]
