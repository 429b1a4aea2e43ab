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

Each is imported when it is first used: JAX takes seconds, which `--help` need not wait for.
"""

import importlib

from ddim_jax import interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ddim_jax import denoisers, guidance, predictions, sampling, schedules, solvers, strides
    from ddim_jax.checkpoints import load
    from ddim_jax.data import save_clips, save_grid
    from ddim_jax.model import Model
    from ddim_jax.recipe import Recipe

interrupts.begin_command()

__all__ = [
    "Model",
    "Recipe",
    "denoisers",
    "guidance",
    "load",
    "predictions",
    "sampling",
    "save_clips",
    "save_grid",
    "schedules",
    "solvers",
    "strides",
]

_BY_NAME = (
    *("checkpoints", "data", "editing", "evaluation", "experiment", "inputs", "losses", "model"),
    *("networks", "planning", "recipe", "training"),
)
"""Modules that need no import of their own, as `ddim_jax.data`."""
_HOMES = {
    **{"Model": "model", "Recipe": "recipe", "load": "checkpoints"},
    **{"save_clips": "data", "save_grid": "data"},
}


def __getattr__(name: str):
    """Imports what is asked for."""
    if name not in (*__all__, *_BY_NAME):
        raise AttributeError(f"module 'ddim_jax' has no attribute {name!r}")
    if name not in _HOMES:
        return importlib.import_module(f"ddim_jax.{name}")
    return getattr(importlib.import_module(f"ddim_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """What there is, imported or not."""
    return sorted({*globals(), *__all__})
