"""Trained networks: from a training workdir, or one `.safetensors` file with its config inside.

    python -m ddim_jax.models.pretrained runs/digits digits.safetensors [--dtype=float16]
    python -m ddim_jax.models.pretrained runs/cifar10 cifar10-diffusers

writes such a file from the moving average of a workdir, or a folder that diffusers reads;
`sample.py --checkpoint` takes any of them. The tensors of the file are the flax parameters, named
by their paths joined with "/"; the metadata holds "config" (JSON), "step" and "format".
"""

import argparse
import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax import experiment
from ddim_jax.experiment import Experiment
from ddim_jax.models import diffusers

FORMAT = "ddim_jax 1"
DTYPES = ("float32", "float16")


class Pretrained(NamedTuple):
    """A network ready to sample from.

    Attributes:
        name: for messages and file names.
        experiment: schedule, parameterization, network, shapes.
        params: float32 parameters (the moving average).
        config: what it was trained with.
        step: training steps.
    """

    name: str
    experiment: Experiment
    params: Any
    config: ml_collections.ConfigDict
    step: int


def bundled() -> list[str]:
    """Names of the networks that come with the package."""
    folder = importlib.resources.files("ddim_jax.assets")
    return sorted(
        file.name.removesuffix(".safetensors")
        for file in folder.iterdir()
        if file.name.endswith(".safetensors")
    )


def load(checkpoint: str | Path) -> Pretrained:
    """Loads a network.

    Args:
        checkpoint: a training workdir, a `.safetensors` file of `save`, a folder of a diffusers
            UNet2DModel, or a name in `bundled()`.

    Raises:
        FileNotFoundError: there is no such thing.
        ValueError: it is damaged, or its parameters are not those of its config.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir() and diffusers.is_folder(path):
        config, params = diffusers.read(path)
        parts = experiment.build(config)
        return Pretrained(path.resolve().name, parts, jax.tree.map(jnp.asarray, params), config, 0)
    if path.is_dir():
        return _load_workdir(path)
    if path.is_file():
        return _load_file(path, path.stem)
    if str(checkpoint) in bundled():
        file = importlib.resources.files("ddim_jax.assets") / f"{checkpoint}.safetensors"
        with importlib.resources.as_file(file) as path:
            return _load_file(path, str(checkpoint))
    raise FileNotFoundError(
        f"no checkpoint {str(checkpoint)!r}: it must be a training workdir, a .safetensors file, "
        f"or one of the networks in the package: {', '.join(bundled())}"
    )


def _load_workdir(path: Path) -> Pretrained:
    from ddim_jax.training import checkpoints

    config = checkpoints.load_config(path)
    parts = experiment.build(config)
    ema, step = checkpoints.Checkpointer(path, create=False).restore_ema(_abstract(parts))
    return Pretrained(path.name or str(path), parts, ema, config, step)


def _abstract(parts: Experiment) -> Any:
    return jax.eval_shape(parts.init, jax.random.key(0))


def _load_file(path: Path, name: str) -> Pretrained:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} was not written by ddim_jax (its format is {metadata.get('format')!r}, not "
            f"{FORMAT!r}); export a workdir with python -m ddim_jax.models.pretrained"
        )
    config = ml_collections.ConfigDict(json.loads(metadata["config"]))
    parts = experiment.build(config)
    wanted = flatten_dict(_abstract(parts), sep="/")
    for key in sorted(wanted.keys() | tensors.keys()):
        shapes = [tuple(t[key].shape) if key in t else None for t in (wanted, tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} does not fit its own config: parameter {key} should be {shapes[0]}, is "
                f"{shapes[1]}"
            )
    params = {key: jnp.asarray(value, jnp.float32) for key, value in tensors.items()}
    params = unflatten_dict(params, sep="/")
    return Pretrained(name, parts, params, config, int(metadata["step"]))


def save(path: str | Path, model: Pretrained, dtype: str = "float32") -> None:
    """Writes a network to one file.

    Args:
        path: ending in .safetensors; must not exist.
        model: what to write.
        dtype: "float32", or "float16" for half the size.

    Raises:
        FileExistsError: the file exists.
        ValueError: another ending or dtype.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"the file must end in .safetensors, got {path}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another name, or remove it")
    flat = flatten_dict(jax.device_get(model.params), sep="/")
    tensors = {key: np.asarray(value, dtype) for key, value in flat.items()}
    config = json.loads(model.config.to_json())
    kind, colon, place = config["data"]["name"].partition(":")
    # folders are this machine's alone
    config["data"]["name"] = kind + colon + Path(place).name
    config["data"]["data_dir"] = ""
    config["start_from"] = Path(config.get("start_from", "")).name
    metadata = {"format": FORMAT, "config": json.dumps(config), "step": str(model.step)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


def fingerprint(params: Any) -> str:
    """sha256 of parameters: of their names, shapes and float32 bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(flatten_dict(jax.device_get(params), sep="/").items()):
        digest.update(f"{name}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> None:
    """Exports a workdir's moving average to one file, or for diffusers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("checkpoint", help="training workdir")
    parser.add_argument("file", help="to write, ending in .safetensors, or a folder for diffusers")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    args = parser.parse_args(argv)
    try:
        model = load(args.checkpoint)
        if not Path(args.file).suffix:
            diffusers.write(Path(args.file), model.config, model.params)
            print(f"{args.file}: step {model.step}, as diffusers reads it")
            return
        save(args.file, model, args.dtype)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"{args.file}: step {model.step}, {Path(args.file).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
