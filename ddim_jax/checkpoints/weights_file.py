"""One `.safetensors` file: the flax parameters by path, and the config in its metadata.

The tensors are named by their paths joined with "/"; the metadata holds "config" (JSON), "step" and
"format". Of a whole pipeline the file holds the autoencoder's and the text encoders' parameters
too, under "codec/" and "text_0/", "text_1/", and the metadata "tokenizers" (JSON). In 8 bits
(`eight_bits.py`) tensors are two each, and the format ends in " int8". A file that holds only what
differs from a model in the package (`packaged.py`) has "base" (JSON) in its metadata.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import experiment, files
from ddim_jax.checkpoints import eight_bits, packaged, parts, tensor_files, tensors
from ddim_jax.checkpoints.parts import Pipeline
from ddim_jax.model import Model
from ddim_jax.networks.tokenizer import Tokenizer

__all__ = ["DTYPES", "read", "read_pipeline", "save", "save_pipeline"]

FORMAT, WHOLE = "ddim_jax 1", "ddim_jax 2"
"""Of a network alone, and of a pipeline."""
DTYPES = (*tensors.DTYPES, eight_bits.NAME)
"""That files are written in."""


def read(path: Path, name: str) -> Model:
    """Reads a file that `save` wrote.

    Args:
        path: the file.
        name: of the model.

    Raises:
        ValueError: it is damaged, of another format, or does not fit its own config.
    """
    pipeline, step = read_pipeline(path, "float32")
    if pipeline.codec_params is None:  # small: ready for drawing
        pipeline = pipeline._replace(params=jax.tree.map(jnp.asarray, pipeline.params))
    with files.interpreting(path):
        return parts.model_of(pipeline, name).replace(step=step)


def read_pipeline(path: Path, dtype: str | None = None) -> tuple[Pipeline, int]:
    """All that a file holds, with numpy arrays, and the step at which it was saved.

    Args:
        path: the file.
        dtype: of the parameters; None keeps the file's own.

    Raises:
        ValueError: it is damaged, of another format, or does not fit its own config.
    """
    tensors.check_dtype(dtype)
    held = tensor_files.Tensors([path])
    metadata = held.metadata
    if metadata.get("format", "").removesuffix(f" {eight_bits.NAME}") not in (FORMAT, WHOLE):
        raise ValueError(
            f"{path} was not written by ddim_jax (its format is {metadata.get('format')!r}, not "
            f"{FORMAT!r}); export a workdir with python -m ddim_jax.checkpoints, or give the "
            "folder that diffusers wrote"
        )
    with files.interpreting(path):
        config = experiment.resolve(experiment.of_file(json.loads(metadata["config"])))
        values = eight_bits.unpack(held) if eight_bits.is_packed(metadata) else held
        if "base" in metadata:
            values = packaged.whole(values, json.loads(metadata["base"]), str(path))
        found = {name: tensors.cast(values[name], dtype, name) for name in values}
        made = json.loads(metadata.get("tokenizers", "[]"))
        tokenizers = tuple(Tokenizer(**options) for options in made)
        pipeline = parts.of_flat(config, found)._replace(tokenizers=tokenizers)
        parts.check(pipeline, str(path))
        return pipeline, int(metadata["step"])


def save(
    path: str | Path, model: Model, dtype: str | None = "float32", base: str | None = None
) -> None:
    """Writes a model to one file.

    Args:
        path: ending in .safetensors; must not exist.
        model: what to write.
        dtype: "float32"; "bfloat16" or "float16" for half the size, "int8" for a quarter, which
            is read as float32; None: the parameters' own.
        base: name of a model in the package; the file holds only what differs from it.

    Raises:
        FileExistsError: the file exists.
        ValueError: another ending or dtype; numbers that are not finite in it; no such base, or a
            model that is no change of it.
    """
    save_pipeline(path, parts.pipeline_of(model), dtype, model.step, base)


def save_pipeline(
    path: str | Path,
    pipeline: Pipeline,
    dtype: str | None = None,
    step: int = 0,
    base: str | None = None,
) -> None:
    """Writes a pipeline to one file.

    Args:
        path: as of `save`.
        pipeline: what to write.
        dtype: as of `save`.
        step: of training.
        base: as of `save`.

    Raises:
        FileExistsError: as `save`.
        ValueError: as `save`.
    """
    path = files.check_new(path, what="the file", suffixes=(".safetensors",), overwrite=None)
    tensors.check_dtype(dtype, DTYPES)
    reference = packaged.reference(base) if base else None
    packed = dtype == eight_bits.NAME
    found = jax.device_get(parts.flat(pipeline))
    values = {name: np.asarray(value) for name, value in found.items()}
    if base:
        values = {name: tensors.cast(value, np.float32, name) for name, value in values.items()}
        values = packaged.less(values, base)
    values, dtype = (eight_bits.pack(values), None) if packed else (values, dtype)
    config = json.loads(pipeline.config.to_json())
    kind, colon, place = config["data"]["name"].partition(":")
    # folders are this machine's alone
    config["data"]["name"] = kind + colon + Path(place).name
    if "data_dir" in config["data"]:
        config["data"]["data_dir"] = ""
    for section in (config, config.get("codec"), config.get("text")):
        if section and section.get("start_from"):
            section["start_from"] = Path(section["start_from"]).name
    config["version"] = experiment.version()
    whole = pipeline.codec_params is not None or pipeline.text_params
    kind = (WHOLE if whole else FORMAT) + (f" {eight_bits.NAME}" if packed else "")
    metadata = {"format": kind, "step": str(step)}
    metadata |= {"config": json.dumps(config)}
    if base:
        metadata["base"] = json.dumps(reference)
    if pipeline.tokenizers:
        made = [tokenizer.options() for tokenizer in pipeline.tokenizers]
        metadata["tokenizers"] = json.dumps(made, separators=(",", ":"))
    tensor_files.save(path, values, metadata, dtype)
