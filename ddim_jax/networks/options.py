"""What the networks of this package have in common: options, and checks of their arguments."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.names import check_range

DTYPES = ("float32", "bfloat16")
TIME_EMBEDDINGS = ("ddpm", "adm", "dit")
"""Kinds of `layers.time_embedding`."""
REMAT = {
    "none": None,
    "convolutions": lambda primitive, *_, **__: primitive.name == "conv_general_dilated",
    "products": jax.checkpoint_policies.save_from_both_policies(
        lambda primitive, *_, **__: primitive.name == "conv_general_dilated",
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""Policies of what a block keeps for the backward pass, by name; None keeps everything.

"convolutions" keeps the outputs of convolutions, "products" those of dense layers too.
"""
COUNTS = {
    "out_channels": 1, "unused_channels": 0, "channels": 0, "width": 1, "patch_size": 1,
    "group_channels": 1, "num_heads": 1, "heads": 1, "head_channels": 1, "num_classes": 0,
    "position_grid": 1, "text_length": 0, "context_dim": 0, "vocabulary": 0, "text_features": 1,
    "widths": 1, "latent_channels": 1, "hidden": 1, "projection": 0, "length": 1,
    "time_heads": 1, "window": 0,
}  # fmt: skip
"""The least of whole numbers that networks have; the most is 65536."""
DEPTHS = {
    "num_blocks": 0, "depth": 1, "depths": 0, "mid_depth": 0, "text_depth": 0, "layers": 1,
    "encoder_blocks": 0, "decoder_blocks": 0,
}  # fmt: skip
"""The same, of what is traced one by one; the most is 256."""
SCALAR_UNITS = 1000.0
"""Factor on embedded scalars: puts 1 as far from 0 as the ends of a schedule over [0, 1] are."""


def scalar(net: nn.Module, name: str, value: Any) -> Any:
    """A scalar in the units of times in 0..1000; a `time_scale` below 1 slows both.

    A `time_scale` above 1 is for times in 0..1, and leaves scalars as they are.
    """
    own = getattr(net, "interval_scale", None) if name == "interval" else None
    own = min(net.time_scale, 1.0) if own is None else own
    return SCALAR_UNITS * own / net.time_scale * value


def kept(module: type[nn.Module], remat: str, **options: Any) -> type[nn.Module]:
    """Returns a module whose backward pass recomputes what the policy `remat` does not keep."""
    policy = REMAT[remat]
    return nn.remat(module, policy=policy, **options) if policy else module


def check_text(net: nn.Module) -> None:
    """Raises ValueError unless a network is told features of a text, or learns its tokens'."""
    if bool(net.context_dim) == bool(net.vocabulary):
        raise ValueError(
            "a text's tokens have features (context_dim) or are learnt (vocabulary), give one; "
            f"got context_dim={net.context_dim}, vocabulary={net.vocabulary}"
        )


def check_choices(net: nn.Module, **known: Sequence[str]) -> None:
    """Checks attributes of a network that each have a few values.

    Args:
        net: the network.
        **known: attribute -> the values it may have.

    Raises:
        ValueError: an attribute has another value.
    """
    for name, values in known.items():
        if getattr(net, name) not in values:
            raise ValueError(f"{name} must be one of {values}, got {getattr(net, name)!r}")


def check_counts(net: nn.Module, where: str = "") -> None:
    """Checks the whole numbers of a network before anything is made of them.

    Args:
        net: the network.
        where: comes before the name of the attribute in the message.

    Raises:
        ValueError: one is out of range; it would take all memory, or hours.
    """
    counts = [(name, f"[{least}, 65536]") for name, least in COUNTS.items()]
    for name, within in counts + [(name, f"[{least}, 256]") for name, least in DEPTHS.items()]:
        value = getattr(net, name, None)
        for one in value if isinstance(value, tuple | list) else () if value is None else (value,):
            check_range(f"{where}{name}", one, within, whole=True)


def check_options(net: nn.Module, **known: Sequence[str]) -> None:
    """Checks the attributes that networks share, and others with a few values.

    Args:
        net: the network.
        **known: further attribute -> the values it may have.

    Raises:
        ValueError: an attribute is out of range.
    """
    shared = dict(dtype=DTYPES, remat=tuple(REMAT), time_embedding=TIME_EMBEDDINGS)
    check_choices(net, **shared, **known)
    check_range("dropout", net.dropout, "[0, 1)", "DDPM used 0.1")
    check_counts(net, "config.model.")
    for name, within in {
        "time_scale": "(0, 1000000]",
        "interval_scale": "(0, 1000000]",
        "norm_eps": "(0, 1)",
        "eps": "(0, 1)",
    }.items():
        if getattr(net, name, None) is not None:
            check_range(f"config.model.{name}", getattr(net, name), within)


def check_divides(name: str, count: int, width: int) -> None:
    """Raises ValueError where a number of heads or groups does not divide a width."""
    if count < 1 or width % count:
        raise ValueError(f"{name} must divide the width {width}, got {count}")


def check_inputs(
    net: nn.Module,
    x: Any,
    t: Any,
    inputs: dict[str, Any],
    dropout_keys: Any,
    *,
    factors: dict[str, int],
    decided_by: Sequence[str],
) -> None:
    """Checks the arguments of a network while tracing.

    Args:
        net: the network.
        x: wanted as [B, H, W, C].
        t: wanted as [B].
        inputs: wanted as those that the network declares, [B, *shape] each.
        dropout_keys: wanted as [B], or None.
        factors: what height and width must be divisible by the product of, and why.
        decided_by: attributes of the network that decide which inputs there are.

    Raises:
        ValueError: one does not fit.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be [B, H, W, C], got shape {x.shape}")
    batch, height, width, _ = x.shape
    if t.shape != (batch,):
        raise ValueError(f"t must have shape ({batch},), one model time per sample, got {t.shape}")
    factor = math.prod(factors.values())
    if height % factor or width % factor:
        why = " * ".join(factors)
        raise ValueError(
            f"height and width must be divisible by {factor} = {why}, got {height} x {width}; "
            f"resize the images (config.data.resize={max(1, round(height / factor)) * factor})"
            + (" or use fewer levels" if "levels" in why else "")
        )
    if dropout_keys is not None and dropout_keys.shape[:1] != (batch,):
        raise ValueError(
            f"dropout_keys must be [{batch}], one key per sample, got shape {dropout_keys.shape}"
        )
    declared = net.inputs
    options = ", ".join(f"{name}={getattr(net, name)}" for name in decided_by)
    if set(inputs) != set(declared):
        raise ValueError(
            f"inputs must have keys {sorted(declared)} ({options}), got {sorted(inputs)}"
        )
    for name, (shape, dtype, _) in declared.items():
        given = inputs[name]
        if given.shape != (batch, *shape):
            raise ValueError(
                f"inputs[{name!r}] must have shape {(batch, *shape)} ({options}), got {given.shape}"
            )
        if dtype == "int32" and not jnp.issubdtype(given.dtype, jnp.integer):
            raise ValueError(f"inputs[{name!r}] must be integers, got {given.dtype}")
