"""What a workdir keeps beside its network: the autoencoder, the text encoders, the tokenizers.

They do not change while a network trains, so one file in the workdir holds them, written once:
tensors "codec/..." and "text_0/...", and in its metadata the config's sections `codec` and `text`
and the tokenizers.
"""

import json
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax.checkpoints import tensor_files
from ddim_jax.checkpoints.parts import Pipeline
from ddim_jax.networks.tokenizer import Tokenizer

FILE = "around.safetensors"


def save(workdir: Path, pipeline: Pipeline) -> None:
    """Writes the file, unless it is there.

    Args:
        workdir: of the run.
        pipeline: whose own network is not looked at.

    Raises:
        OSError: it could not be written.
    """
    if (workdir / FILE).exists():
        return
    parts = {f"text_{i}": params for i, params in enumerate(pipeline.text_params)}
    if pipeline.codec_params is not None:
        parts["codec"] = pipeline.codec_params
    flat = {k: np.asarray(v) for k, v in flatten_dict(jax.device_get(parts), sep="/").items()}
    config = json.loads(pipeline.config.to_json())
    content = {name: config[name] for name in ("codec", "text") if config.get(name)}
    content["tokenizers"] = [tokenizer.options() for tokenizer in pipeline.tokenizers]
    tensor_files.save(workdir / FILE, flat, {k: json.dumps(v) for k, v in content.items()})


def read(workdir: Path) -> Pipeline | None:
    """What `save` wrote, with a config of the sections `codec` and `text` alone; None: no file.

    Raises:
        ValueError: it is damaged.
    """
    file = workdir / FILE
    if not file.exists():
        return None
    with tensor_files.reading(file):
        import safetensors

        with safetensors.safe_open(file, framework="numpy") as opened:
            content = {name: json.loads(text) for name, text in opened.metadata().items()}
            flat = {name: opened.get_tensor(name) for name in opened.keys()}
    tokenizers = tuple(Tokenizer(**options) for options in content.pop("tokenizers"))
    parts = unflatten_dict(flat, sep="/")
    codec = parts.pop("codec", None)
    config = ml_collections.ConfigDict(content)
    text = tuple(parts.get(f"text_{i}", {}) for i in range(len(tokenizers)))
    return Pipeline(config, None, codec, text, tokenizers)
