"""Trained models: from a workdir, a `.safetensors` file, a published pipeline's folder, or by name.

    model = checkpoints.load("digits")            # also ddim_jax.load
    checkpoints.save("digits.safetensors", model)

`weights_file.py` reads and writes the files, `workdir.py` what training leaves, `pipelines.py` the
folders, `lora.py` changes of weights. `python -m ddim_jax.checkpoints` converts between them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ddim_jax import codecs, experiment, fingerprints
from ddim_jax.checkpoints import diffusers, hub, parts, pipelines, single_file, weights_file
from ddim_jax.checkpoints import lora as loras
from ddim_jax.checkpoints.packaged import file_of
from ddim_jax.checkpoints.packaged import names as bundled
from ddim_jax.checkpoints.weights_file import DTYPES, save
from ddim_jax.codecs import Codec
from ddim_jax.model import Model
from ddim_jax.names import few
from ddim_jax.networks import AUTOENCODERS

__all__ = ["DTYPES", "bundled", "load", "load_codec", "save"]

PUBLISHED = ("diffusers", "original")
"""Kinds of data that configs of published networks name."""


def load(
    checkpoint: str | Path,
    *,
    dtype: Any = None,
    lora: str | Path | Sequence[str] = (),
    accelerated: bool | None = None,
) -> Model:
    """Loads a model.

    Args:
        checkpoint: a training workdir, a `.safetensors` file of `save`, a folder of diffusers (a
            network, or a whole pipeline), a name in `bundled()`, or "shapes:NAME" of a published
            pipeline without its weights, see `pipelines.shapes`, to plan with.
        dtype: of the weights of all its networks, and of computation, "float32" or "bfloat16", or
            such a dtype; default float32, and bfloat16 for published pipelines of latents on GPU
            and TPU.
        lora: files merged into the weights, each as FILE or FILE:scale.
        accelerated: whether it will run on GPU or TPU, for the default dtype; None: if it does now.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or its parameters are not those of its config; another dtype.
    """
    dtype = dtype if dtype is None or isinstance(dtype, str) else jnp.dtype(dtype).name
    if dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    given = [lora] if isinstance(lora, (str, Path)) else lora
    if isinstance(given, dict) or not all(isinstance(one, (str, Path)) for one in given):
        raise ValueError(f"lora must be FILE, FILE:scale or a list of these, got {lora!r}")
    merged = [loras.parse(str(one)) for one in given]
    for path, _ in merged:
        loras.find(path)
    fast = jax.default_backend() != "cpu" if accelerated is None else accelerated
    model = _load(checkpoint, dtype, "bfloat16" if fast else "float32")
    model = model if dtype is None else _cast(model, dtype)
    for path, scale in merged:
        model = _merged(model, path, scale)
    return model


def _load(checkpoint: str | Path, dtype: str | None, published: str) -> Model:
    """The model; without a dtype a published pipeline in that of its kind."""
    if not isinstance(checkpoint, (str, Path)) or not str(checkpoint):
        raise ValueError(
            f"a checkpoint is a path or a name ({', '.join(bundled())}), got {checkpoint!r}"
        )
    path = Path(checkpoint).expanduser()
    if str(checkpoint).startswith("shapes:"):
        name = str(checkpoint).removeprefix("shapes:")
        return _cast(parts.model_of(pipelines.shapes(name), name), dtype or published)
    if str(checkpoint).startswith(hub.PREFIX):
        path = hub.folder(str(checkpoint), dtype)
    if path.is_dir() and (pipelines.is_folder(path) or diffusers.is_folder(path)):
        latents = (path / "model_index.json").exists() and not diffusers.is_folder(path)
        kept = dtype or (published if latents else "float32")
        return _cast(parts.model_of(pipelines.read(path, kept), path.resolve().name), kept)
    if path.is_dir():
        from ddim_jax.checkpoints import workdir  # orbax takes a second to import

        return workdir.read(path)
    if path.is_file() and single_file.is_original(path):
        raise ValueError(
            f"{path} is an original single file, which says little; convert it once: python -m "
            f"ddim_jax.checkpoints {path} {single_file.converted_to(path)}"
        )
    if path.is_file():
        model = weights_file.read(path, path.stem)
        own = model.draws_latents and experiment.data_kind(model.config) in PUBLISHED
        return _cast(model, dtype or published) if own else model
    if str(checkpoint) in bundled():
        with file_of(str(checkpoint)) as path:
            return weights_file.read(path, str(checkpoint))
    held = sorted(config.parent.name for config in path.parent.glob("*/config.json"))
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(checkpoint)) and path.suffix != ".safetensors"
    hint = f"; hf:{checkpoint} is the one of the Hugging Face hub" if on_hub else ""
    hint = f"; {path.parent} holds {few(held)}" if held else hint
    raise FileNotFoundError(
        f"no checkpoint {str(checkpoint)!r}: it must be a training workdir, a .safetensors file, "
        f"a diffusers folder, or a model in the package: {', '.join(bundled())}{hint}"
    )


def load_codec(folder: str | Path, size: tuple[int, int] = (256, 256)) -> Codec:
    """Loads a published autoencoder as a codec: pictures to latents and back.

    Args:
        folder: of the autoencoder itself, or of a pipeline that has one in `vae/`; "hf:ORG/NAME".
        size: (height, width) of the pictures.

    Raises:
        FileNotFoundError: there is none.
        ValueError: as of `pipelines.read`; a size that it cannot encode.
    """
    folder = hub.local(str(folder), "float32")
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    found = pipelines.read_component(folder, "float32")
    if found.kind.name not in AUTOENCODERS:
        raise ValueError(f"{folder} holds a {found.kind.name}, no autoencoder")
    net = found.kind.module(**found.arguments)
    return codecs.latents(net, (*size, net.channels), found.params)


def _merged(model: Model, path: Path, scale: float) -> Model:
    """The model with a LoRA in the weights of its network and its text encoders."""
    texts: Any = model.inputs.encode
    encoders = zip(texts.params, texts.networks, strict=True) if texts else ()
    params, text_params = loras.apply(path, scale, model.params, model.network, encoders)
    model = model.with_parts(
        params, model.codec.params, text_params, texts.tokenizers if texts else ()
    )
    sha256 = fingerprints.of_file(loras.find(path))
    merged = {"path": str(path.expanduser().absolute()), "scale": scale, "sha256": sha256}
    return model.replace(loras=(*model.loras, merged))


def _cast(model: Model, dtype: str) -> Model:
    """The model with the weights of its networks, and computation, in another dtype."""

    def cast(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)

    texts = model.inputs.encode
    parts = model.params, model.codec.params, getattr(texts, "params", ())
    params, codec, of_texts = jax.tree.map(cast, parts)
    model = model.with_parts(params, codec, of_texts, getattr(texts, "tokenizers", ()))
    return model.replace(network=model.network.clone(dtype=dtype))
