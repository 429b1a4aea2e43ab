"""Trained models: from a training workdir, a `.safetensors` file, a diffusers folder, or by name.

    model = checkpoints.load("digits")            # also ddim_jax.load
    checkpoints.save("digits.safetensors", model)

`weights_file.py` reads and writes the files, `workdir.py` what training leaves, `diffusers.py` the
folders. `python -m ddim_jax.checkpoints` converts between them.
"""

import importlib.resources
from pathlib import Path

import jax
import jax.numpy as jnp

from ddim_jax import experiment
from ddim_jax.checkpoints import diffusers, weights_file
from ddim_jax.checkpoints.tensors import DTYPES
from ddim_jax.checkpoints.weights_file import save
from ddim_jax.model import Model

__all__ = ["DTYPES", "bundled", "load", "save"]


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    folder = importlib.resources.files("ddim_jax.assets")
    return sorted(
        file.name.removesuffix(".safetensors")
        for file in folder.iterdir()
        if file.name.endswith(".safetensors")
    )


def load(checkpoint: str | Path) -> Model:
    """Loads a model.

    Args:
        checkpoint: a training workdir, a `.safetensors` file of `save`, a folder of a diffusers
            UNet2DModel, or a name in `bundled()`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or its parameters are not those of its config.
    """
    if not isinstance(checkpoint, (str, Path)) or not str(checkpoint):
        raise ValueError(
            f"a checkpoint is a path or a name ({', '.join(bundled())}), got {checkpoint!r}"
        )
    path = Path(checkpoint).expanduser()
    if path.is_dir() and diffusers.is_folder(path):
        config, params = diffusers.read(path)
        params = jax.tree.map(jnp.asarray, params)
        return experiment.build(config).replace(params=params, name=path.resolve().name)
    if path.is_dir():
        from ddim_jax.checkpoints import workdir  # orbax takes a second to import

        return workdir.read(path)
    if path.is_file():
        return weights_file.read(path, path.stem)
    if str(checkpoint) in bundled():
        file = importlib.resources.files("ddim_jax.assets") / f"{checkpoint}.safetensors"
        with importlib.resources.as_file(file) as path:
            return weights_file.read(path, str(checkpoint))
    raise FileNotFoundError(
        f"no checkpoint {str(checkpoint)!r}: it must be a training workdir, a .safetensors file, "
        f"a diffusers folder, or a model in the package: {', '.join(bundled())}"
    )
