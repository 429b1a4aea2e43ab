"""The networks of published pipelines: their config.json as our arguments, and back.

    kind = KINDS["UNet2DConditionModel"]
    arguments = kind.arguments(Options(file, json))      every option is understood, or refused
    net = kind.module(**arguments)
    json = kind.options(net)                             what diffusers or transformers reads back

An option that has no counterpart is refused by name and value, as one is that no class has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from ddim_jax.checkpoints import tensor_names, text_unet_config
from ddim_jax.checkpoints.scheduler_options import Options
from ddim_jax.checkpoints.text_unet_config import check_only
from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.clip import ClipText
from ddim_jax.networks.text_unet import TextUNet
from ddim_jax.networks.tiny_autoencoder import AutoencoderTiny
from ddim_jax.networks.transformer import DiT

Arguments = dict[str, Any]


# --- DiT ------------------------------------------------------------------------------------------

DIT_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "cross_attention_dim": None,
    "double_self_attention": False,
    "only_cross_attention": False,
    "num_vector_embeds": None,
    "use_linear_projection": False,
    "attention_type": "default",
    "caption_channels": None,
    "interpolation_scale": None,
    "use_additional_conditions": None,
}
"""The last nine only in files of Transformer2DModel, as diffusers called the network before."""


def _dit(o: Options) -> Arguments:
    o.only(**DIT_FIXED)
    for name in ("norm_num_groups", "upcast_attention"):
        o.get(name)
    heads, channels = o.get("num_attention_heads", 16), o.get("in_channels", 4)
    patch, size = o.get("patch_size", 2), o.get("sample_size", 32)
    return dict(
        out_channels=channels,
        unused_channels=(o.get("out_channels") or channels) - channels,
        width=heads * o.get("attention_head_dim", 72),
        depth=o.get("num_layers", 28),
        heads=heads,
        patch_size=patch,
        position_grid=size // patch,
        num_classes=o.get("num_embeds_ada_norm", 1000),
        time_embedding="dit",
        eps=o.get("norm_eps", 1e-5),
        dropout=o.get("dropout", 0.0),
    )


def _their_dit(net: DiT) -> Arguments:
    check_only(net, time_embedding="dit", scalars=(), time_scale=1.0, null_label=True)
    check_only(net, text_length=0, modulation="block")
    if not net.num_classes:
        raise ValueError("diffusers has no DiT without classes")
    return {
        "_class_name": "DiTTransformer2DModel",
        "in_channels": net.out_channels,
        "out_channels": net.out_channels + net.unused_channels,
        "num_layers": net.depth,
        "num_attention_heads": net.heads,
        "attention_head_dim": net.width // net.heads,
        "patch_size": net.patch_size,
        "num_embeds_ada_norm": net.num_classes,
        "norm_eps": net.eps,
        "dropout": net.dropout,
        **{name: DIT_FIXED[name] for name in list(DIT_FIXED)[:4]},
    }


# --- autoencoders ---------------------------------------------------------------------------------


def _autoencoder_kl(o: Options) -> Arguments:
    widths = tuple(o.get("block_out_channels", (64,)))
    levels, channels = len(widths), o.get("in_channels", 3)
    down, up = ["DownEncoderBlock2D"] * levels, ["UpDecoderBlock2D"] * levels
    o.only(down_block_types=down, up_block_types=up, act_fn="silu", out_channels=channels)
    o.only(latents_mean=None, latents_std=None)
    quant = o.get("use_quant_conv", True)
    o.only(use_post_quant_conv=quant)
    for name in ("sample_size", "force_upcast"):  # the last layers are in float32 always
        o.get(name)
    return dict(
        channels=channels,
        latent_channels=o.get("latent_channels", 4),
        widths=widths,
        num_blocks=o.get("layers_per_block", 1),
        attention=o.get("mid_block_add_attention", True),
        quant=quant,
        scale=o.get("scaling_factor", 0.18215),
        shift=o.get("shift_factor") or 0.0,
        groups=o.get("norm_num_groups", 32),
    )


def _their_autoencoder_kl(net: AutoencoderKL) -> Arguments:
    levels = len(net.widths)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": net.channels,
        "out_channels": net.channels,
        "latent_channels": net.latent_channels,
        "block_out_channels": list(net.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": net.num_blocks,
        "mid_block_add_attention": net.attention,
        "use_quant_conv": net.quant,
        "use_post_quant_conv": net.quant,
        "scaling_factor": net.scale,
        "shift_factor": net.shift or None,
        "norm_num_groups": net.groups,
    }


def _autoencoder_tiny(o: Options) -> Arguments:
    widths = [o.get(f"{half}_block_out_channels", (64,) * 4) for half in ("encoder", "decoder")]
    width = widths[0][0]
    counts = [
        tuple(o.get(f"num_{half}_blocks", default))
        for half, default in (("encoder", (1, 3, 3, 3)), ("decoder", (3, 3, 3, 1)))
    ]
    same = [width] * len(counts[0])
    o.only(encoder_block_out_channels=same, decoder_block_out_channels=same)
    o.only(act_fn="relu", upsample_fn="nearest", upsampling_scaling_factor=2, latent_magnitude=3)
    for name in ("latent_shift", "force_upcast", "block_out_channels"):
        o.get(name)  # of latents kept as bytes, and what the others say already
    channels = o.get("in_channels", 3)
    o.only(out_channels=channels)
    return dict(
        channels=channels,
        latent_channels=o.get("latent_channels", 4),
        width=width,
        encoder_blocks=counts[0],
        decoder_blocks=counts[1],
        scale=o.get("scaling_factor", 1.0),
        shift=o.get("shift_factor") or 0.0,
    )


def _their_autoencoder_tiny(net: AutoencoderTiny) -> Arguments:
    widths = [net.width] * len(net.encoder_blocks)
    return {
        "_class_name": "AutoencoderTiny",
        "in_channels": net.channels,
        "out_channels": net.channels,
        "latent_channels": net.latent_channels,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "num_encoder_blocks": list(net.encoder_blocks),
        "num_decoder_blocks": list(net.decoder_blocks),
        "scaling_factor": net.scale,
        "shift_factor": net.shift,
    }


# --- text encoders --------------------------------------------------------------------------------

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
TEXT_UNUSED = (
    "architectures attention_dropout dropout initializer_factor initializer_range model_type dtype "
    "torch_dtype transformers_version bos_token_id pad_token_id use_cache return_dict"
).split()
"""Of training, of the file itself, and of what the tokenizer says."""


def _clip_text(o: Options) -> Arguments:
    for name in TEXT_UNUSED:
        o.get(name)
    projected = o.get("architectures", ["CLIPTextModel"]) == ["CLIPTextModelWithProjection"]
    projection, vocabulary = o.get("projection_dim", 512), o.get("vocab_size", 49408)
    end = o.get("eos_token_id", 2)
    return dict(
        vocabulary=vocabulary,
        length=o.get("max_position_embeddings", 77),
        width=o.get("hidden_size", 512),
        layers=o.get("num_hidden_layers", 12),
        heads=o.get("num_attention_heads", 8),
        hidden=o.get("intermediate_size", 2048),
        activation=o.choice("hidden_act", "quick_gelu", ACTIVATIONS),
        projection=projection if projected else 0,
        end=vocabulary - 1 if end == 2 else end,  # 2 in older files: the token of highest number
        eps=o.get("layer_norm_eps", 1e-5),
    )


def _their_clip_text(net: ClipText) -> Arguments:
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "architectures": ["CLIPTextModelWithProjection" if net.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": net.vocabulary,
        "max_position_embeddings": net.length,
        "hidden_size": net.width,
        "num_hidden_layers": net.layers,
        "num_attention_heads": net.heads,
        "intermediate_size": net.hidden,
        "hidden_act": names[net.activation],
        "projection_dim": net.projection or net.width,
        "bos_token_id": net.end - 1,
        "eos_token_id": net.end,
        "layer_norm_eps": net.eps,
    }


# --- all ------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """One class of published networks.

    Attributes:
        name: of ours in a config.
        module: ours.
        arguments: reads a config.json.
        options: writes one; what a file of a pipeline adds (`sample_size`, ...) is not in it.
        entries: its function of `tensor_names`.
        stem: of its files of weights.
    """

    name: str
    module: Callable[..., nn.Module]
    arguments: Callable[[Options], Arguments]
    options: Callable[[Any], Arguments]
    entries: Callable
    stem: str = "diffusion_pytorch_model"


_DIT = Kind("dit", DiT, _dit, _their_dit, tensor_names.dit)
_CLIP = Kind("clip", ClipText, _clip_text, _their_clip_text, tensor_names.clip_text, "model")
KINDS = {
    "UNet2DConditionModel": Kind(
        "text_unet",
        TextUNet,
        text_unet_config.arguments,
        text_unet_config.options,
        tensor_names.text_unet,
    ),
    "DiTTransformer2DModel": _DIT,
    "Transformer2DModel": _DIT,
    "AutoencoderKL": Kind(
        "autoencoder_kl",
        AutoencoderKL,
        _autoencoder_kl,
        _their_autoencoder_kl,
        tensor_names.autoencoder_kl,
    ),
    "AutoencoderTiny": Kind(
        "autoencoder_tiny",
        AutoencoderTiny,
        _autoencoder_tiny,
        _their_autoencoder_tiny,
        tensor_names.autoencoder_tiny,
    ),
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
}
"""By the class's own name."""
