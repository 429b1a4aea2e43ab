"""UNet2DConditionModel's config.json as the arguments of `TextUNet`, and back."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from ddim_jax.checkpoints.diffusers import their_time_embedding, time_embedding
from ddim_jax.checkpoints.scheduler_options import Options
from ddim_jax.networks.text_unet import TextUNet

Arguments = dict[str, Any]
XL_SIZES = 6
FIXED = {
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "mid_block_scale_factor": 1,
    "mid_block_only_cross_attention": False,
    "act_fn": "silu",
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "cross_attention_norm": None,
}
"""What our network has no other value of."""
PLAIN, CROSS = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


def arguments(o: Options) -> Arguments:
    """Ours of a config.json; every option is asked for, or refused by name.

    Raises:
        ValueError: an option has a value that our network does not have.
    """
    o.only(**FIXED)
    for name in ("upcast_attention", "addition_embed_type_num_heads", "use_linear_projection"):
        o.get(name)  # softmax is in float32 always; which layers lead in, the tensors tell
    widths = tuple(o.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(widths)
    o.only(time_embedding_dim=None if o.get("time_embedding_dim") is None else 4 * widths[0])
    crosses = _crosses(o, levels)
    layers = o.get("transformer_layers_per_block", 1)
    depths = _all_levels(o, "transformer_layers_per_block", layers, levels)
    heads = _all_levels(o, "attention_head_dim", o.get("attention_head_dim", 8), levels)
    return dict(
        out_channels=o.get("out_channels", 4),
        widths=widths,
        num_blocks=_one(o, "layers_per_block", o.get("layers_per_block", 2), levels),
        depths=tuple(depth if yes else 0 for depth, yes in zip(depths, crosses, strict=True)),
        mid_depth=depths[-1],
        heads=heads,
        text_only=_text_only(o, levels),
        context_dim=_one(o, "cross_attention_dim", o.get("cross_attention_dim", 1280), levels),
        guidance_dim=o.get("time_cond_proj_dim") or 0,
        num_classes=o.get("num_class_embeds") or 0,
        time_embedding=time_embedding(o),
        dropout=o.get("dropout", 0.0),
        norm_eps=o.get("norm_eps", 1e-5),
        groups=o.get("norm_num_groups", 32),
        down_padding="symmetric" if o.get("downsample_padding", 1) else "same",
        **_added(o),
    )


def _crosses(o: Options, levels: int) -> list[bool]:
    """Which levels attend to the text."""
    down = o.get("down_block_types", (CROSS[0],) * 3 + (PLAIN[0],))
    up = o.get("up_block_types", (PLAIN[1],) + (CROSS[1],) * 3)
    for kind in (*down, *up):
        if kind not in PLAIN + CROSS:
            raise ValueError(
                f"{o.name}: block {kind} is not supported, only {', '.join(PLAIN + CROSS)}"
            )
    found = [kind in CROSS for kind in down]
    if found != [kind in CROSS for kind in reversed(up)] or len(found) != levels:
        raise ValueError(
            f"{o.name}: {down} and {up} are not supported, only one block for each of {levels} "
            "levels, with attention at the same ones down and up"
        )
    return found


def _text_only(o: Options, levels: int) -> tuple[bool, ...]:
    given = o.get("only_cross_attention", False)
    if given is True:  # of the middle too
        o.refuse("only_cross_attention", given, "false, or a list of one truth per level")
    found = _all_levels(o, "only_cross_attention", given, levels)
    return found if any(found) else ()


def _added(o: Options) -> Arguments:
    """Pooled text and sizes of Stable Diffusion XL."""
    total, dim = o.get("projection_class_embeddings_input_dim"), o.get("addition_time_embed_dim")
    if o.choice("addition_embed_type", None, {None: False, "text_time": True}):
        if time_embedding(o) != "adm":  # by which the sizes are embedded, too
            raise ValueError(
                f"{o.name}: with addition_embed_type='text_time' freq_shift and flip_sin_to_cos "
                f"must be 0 and true, got {o.get('freq_shift')} and {o.get('flip_sin_to_cos')}"
            )
        return dict(vector_dim=total - XL_SIZES * dim, sizes=XL_SIZES, size_dim=dim)
    return {}


def options(net: TextUNet) -> Arguments:
    """A config.json of ours.

    Raises:
        ValueError: diffusers has no such network.
    """
    check_only(net, scalars=(), time_scale=1.0)
    levels = [bool(depth) for depth in net.depths]
    layers = [depth or 1 for depth in net.depths[:-1]] + [net.mid_depth]
    if net.depths[-1] not in (0, net.mid_depth):
        raise ValueError(
            f"diffusers has no network with depths={net.depths} and mid_depth={net.mid_depth}; "
            "its middle is as deep as the last level"
        )
    added = {}
    if net.vector_dim:
        check_only(net, sizes=XL_SIZES, time_embedding="adm")
        total = net.vector_dim + net.sizes * net.size_dim
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": net.size_dim}
        added |= {"projection_class_embeddings_input_dim": total}
    return {
        "_class_name": "UNet2DConditionModel",
        "out_channels": net.out_channels,
        "block_out_channels": list(net.widths),
        "layers_per_block": net.num_blocks,
        "down_block_types": [(PLAIN, CROSS)[yes][0] for yes in levels],
        "up_block_types": [(PLAIN, CROSS)[yes][1] for yes in reversed(levels)],
        "transformer_layers_per_block": layers,
        "attention_head_dim": list(net.heads),
        "only_cross_attention": list(net.text_only) or False,
        "cross_attention_dim": net.context_dim,
        "time_cond_proj_dim": net.guidance_dim or None,
        "num_class_embeds": net.num_classes or None,
        "dropout": net.dropout,
        "norm_eps": net.norm_eps,
        "norm_num_groups": net.groups,
        "downsample_padding": int(net.down_padding == "symmetric"),
        **their_time_embedding(net.time_embedding),
        **added,
    }


def check_only(net: nn.Module, **values: Any) -> None:
    """Raises ValueError where a network has a value that diffusers has no other of."""
    for name, value in values.items():
        if getattr(net, name) != value:
            raise ValueError(
                f"diffusers has no network with {name}={getattr(net, name)!r}, only {value!r}; "
                "keep it in a .safetensors file of ddim_jax"
            )


def _all_levels(o: Options, name: str, value: Any, levels: int) -> tuple:
    """One value for each level of an option that is one for all or a list."""
    if not isinstance(value, Sequence):
        return (value,) * levels
    if len(value) != levels or any(isinstance(one, Sequence) for one in value):
        o.refuse(name, value, f"a number, or a list of {levels} numbers, one per level")
    return tuple(value)


def _one(o: Options, name: str, value: Any, levels: int) -> Any:
    """The value of an option that is one for all levels, which a list may say."""
    values = _all_levels(o, name, value, levels)
    if len(set(values)) > 1:
        o.refuse(name, value, "one number for all levels")
    return values[0]
