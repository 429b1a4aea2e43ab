"""One `.safetensors` file: the flax parameters by path, and the config in its metadata.

The tensors are named by their paths joined with "/"; the metadata holds "config" (JSON), "step" and
"format".
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax import experiment, files
from ddim_jax.checkpoints import architecture
from ddim_jax.model import Model

FORMAT = "ddim_jax 1"
DTYPES = ("float32", "float16")


def read(path: Path, name: str) -> Model:
    """Reads a file that `save` wrote.

    Args:
        path: the file.
        name: of the model.

    Raises:
        ValueError: it is damaged, of another format, or does not fit its own config.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} was not written by ddim_jax (its format is {metadata.get('format')!r}, not "
            f"{FORMAT!r}); export a workdir with python -m ddim_jax.checkpoints"
        )
    model = experiment.build(experiment.of_file(json.loads(metadata["config"])))
    wanted = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    if differs := architecture.difference(wanted, tensors):
        raise ValueError(
            f"{path} does not fit its own config: parameter {differs[0]} should be {differs[1]}, "
            f"is {differs[2]}"
        )
    flat = {key: jnp.asarray(value, jnp.float32) for key, value in tensors.items()}
    params = unflatten_dict(flat, sep="/")
    return model.replace(params=params, name=name, step=int(metadata["step"]))


def save(path: str | Path, model: Model, dtype: str = "float32") -> None:
    """Writes a model to one file.

    Args:
        path: ending in .safetensors; must not exist.
        model: what to write.
        dtype: "float32", or "float16" for half the size.

    Raises:
        FileExistsError: the file exists.
        ValueError: another ending or dtype.
    """
    path = files.check_new(path, what="the file", suffixes=(".safetensors",), overwrite=None)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    flat = flatten_dict(jax.device_get(model.params), sep="/")
    tensors = {key: np.asarray(value, dtype) for key, value in flat.items()}
    config = json.loads(model.config.to_json())
    kind, colon, place = config["data"]["name"].partition(":")
    # folders are this machine's alone
    config["data"]["name"] = kind + colon + Path(place).name
    config["data"]["data_dir"] = ""
    config["version"] = experiment.version()
    config["start_from"] = Path(config.get("start_from", "")).name
    metadata = {"format": FORMAT, "config": json.dumps(config), "step": str(model.step)}
    content = safetensors.numpy.save(tensors, metadata)
    files.save(path, lambda file: file.write(content))
