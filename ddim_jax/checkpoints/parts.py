"""A whole pipeline: a diffusion network, and the autoencoder and text encoders that go with it.

    config.codec     name "autoencoder_kl" or "autoencoder_tiny", and the module's arguments; its
                     scale and shift make latents of what it encodes
    config.text      encoders: arguments of `ClipText` each, with take, "last" or "penultimate", and
                     pooled, whether its pooled features are the input "vector"; features of several
                     lie side by side. null: what the absent text is, "encode": "", or "zeros"
    config.extra     channels that the network is given beside the latents, and their kind
    config.published what a folder says beside: its pipeline's class, its scheduler_config.json

Sections that are not needed are absent.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax import experiment
from ddim_jax.checkpoints import architecture
from ddim_jax.model import Model
from ddim_jax.networks.clip import ClipText, Tokens
from ddim_jax.networks.tokenizer import Tokenizer

EXTRA_KINDS = {1: "depth", 3: "upscale", 4: "edit", 5: "inpaint"}
"""What further channels of a network of latents are, by their number: a depth map, a small picture,
the latents of a picture, a mask and the latents of what is kept."""


class Pipeline(NamedTuple):
    """A config and the parameters of its networks.

    Attributes:
        config: see the module, and `experiment`.
        params: of the network that `config.model` names.
        codec_params: of the autoencoder; None without one.
        text_params: of each text encoder.
        tokenizers: of each text encoder.
    """

    config: ml_collections.ConfigDict
    params: Any
    codec_params: Any = None
    text_params: tuple[Any, ...] = ()
    tokenizers: tuple[Tokenizer, ...] = ()


def model_of(pipeline: Pipeline, name: str) -> Model:
    """The model of a pipeline."""
    return experiment.build(pipeline.config).with_parts(*pipeline[1:]).replace(name=name)


def pipeline_of(model: Model) -> Pipeline:
    """The pipeline of a model."""
    texts = model.inputs.encode
    encoders = (texts.params, texts.tokenizers) if texts else ((), ())
    return Pipeline(model.config, model.params, model.codec.params, *encoders)


class Networks(NamedTuple):
    """The modules of a pipeline."""

    model: nn.Module
    codec: nn.Module | None
    text: tuple[ClipText, ...]


def networks(config: ml_collections.ConfigDict) -> Networks:
    """The modules that a config's sections `model`, `codec` and `text` describe."""
    codec = experiment.build_autoencoder(config.codec) if config.get("codec") else None
    texts = experiment.build_texts(config.get("text"))
    return Networks(experiment.build_network(config.model), codec, texts.networks if texts else ())


def shapes_of(config: ml_collections.ConfigDict) -> Pipeline:
    """The pipeline of a config, with `jax.ShapeDtypeStruct` for arrays and without tokenizers."""
    nets, shape = networks(config), experiment.check_shape(config)
    if nets.codec:
        factor = nets.codec.factor
        shape = (shape[0] // factor, shape[1] // factor, nets.codec.latent_channels)
    channels = shape[-1] + (config.get("extra") or {}).get("channels", 0)
    frames = experiment.num_frames(config)
    sample = (*((frames,) if frames else ()), *shape[:2], channels)
    return Pipeline(
        config,
        network_shapes(nets.model, sample),
        network_shapes(nets.codec, tuple(config.data.image_shape)) if nets.codec else None,
        tuple(network_shapes(net, ()) for net in nets.text),
    )


@functools.lru_cache(maxsize=64)
def network_shapes(net: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Shapes of a network's parameters.

    Args:
        net: a diffusion network, an autoencoder or a text encoder.
        shape: of one sample or picture, [H, W, C], or clip, [T, H, W, C]; () of a text encoder.
    """
    empty = jax.ShapeDtypeStruct
    if isinstance(net, ClipText | Tokens):
        args = (empty((1, 3), jnp.int32),)
    elif hasattr(net, "inputs"):
        told = {name: empty((1, *put.shape), put.dtype) for name, put in net.inputs.items()}
        args = (empty((1, *shape), "float32"), empty((1,), "float32"), told)
    else:
        args = (empty((1, *shape), "float32"),)
    return jax.eval_shape(lambda *args: net.init(jax.random.key(0), *args).get("params", {}), *args)


def flat(pipeline: Pipeline) -> dict[str, Any]:
    """All parameters by their paths: of the network, "codec/..." and "text_0/..."."""
    found = flatten_dict(pipeline.params, sep="/")
    others = {"codec": pipeline.codec_params or {}}
    others |= {f"text_{i}": params for i, params in enumerate(pipeline.text_params)}
    for place, params in others.items():
        found |= {f"{place}/{k}": v for k, v in flatten_dict(params, sep="/").items()}
    return found


def of_flat(config: ml_collections.ConfigDict, found: dict[str, Any]) -> Pipeline:
    """The pipeline, without tokenizers, whose parameters are `flat`."""
    params = unflatten_dict(found, sep="/")
    codec = params.pop("codec", None)
    count = len((config.get("text") or {}).get("encoders", ()))
    text = tuple(params.pop(f"text_{i}", {}) for i in range(count))
    return Pipeline(config, params, codec, text)


def check(pipeline: Pipeline, where: str) -> None:
    """Checks that parameters are those of the config, and that the networks fit each other.

    Args:
        pipeline: what was read.
        where: a name for messages.

    Raises:
        ValueError: they are not.
    """
    config, nets = pipeline.config, networks(pipeline.config)
    if differs := architecture.difference(flat(shapes_of(config)), flat(pipeline)):
        raise ValueError(
            f"{where} does not fit its own config: parameter {differs[0]} should be {differs[1]}, "
            f"is {differs[2]}"
        )
    if nets.codec and nets.codec.latent_channels != nets.model.out_channels:
        raise ValueError(
            f"{where}: the autoencoder has {nets.codec.latent_channels} latent channels, the "
            f"network {nets.model.out_channels}; take the autoencoder that it was trained with"
        )
    if nets.text:
        _check_text(nets, config, pipeline.tokenizers, where)


def _check_text(nets: Networks, config: Any, tokenizers: tuple, where: str) -> None:
    width = sum(net.width for net in nets.text)
    if width != nets.model.context_dim:
        raise ValueError(
            f"{where}: the text encoders give {width} features, the network takes "
            f"{nets.model.context_dim}"
        )
    pooled = [
        net.projection or net.width
        for net, encoder in zip(nets.text, config.text["encoders"], strict=True)
        if encoder.get("pooled", False)
    ]
    vector = getattr(nets.model, "vector_dim", 0)
    if sum(pooled) != vector:
        raise ValueError(
            f"{where}: the text encoders give {sum(pooled)} pooled features, the network takes "
            f"{vector}; the refiner of Stable Diffusion XL is not supported"
        )
    for net, tokenizer in zip(nets.text, tokenizers, strict=bool(tokenizers)):
        if tokenizer.end != net.end or tokenizer.length > net.length:
            raise ValueError(
                f"{where}: the tokenizer's texts end with {tokenizer.end} and have "
                f"{tokenizer.length} tokens, the text encoder's with {net.end} and at most "
                f"{net.length}; take the tokenizer that it was trained with"
            )
