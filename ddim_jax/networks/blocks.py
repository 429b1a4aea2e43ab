"""Residual blocks of the convolutional networks: features [B, H, W, C] plus what a block adds.

And the way that networks of several resolutions take through them, down and up again.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ddim_jax.networks.attention import Attention, FeedForward, LayerNorm, attention
from ddim_jax.networks.layers import (
    Conv3x3,
    Dropout,
    GroupNorm,
    average_pool,
    fan_avg,
    fan_avg_qkv,
    upsample,
    zeros,
)

Array = Any

MIDDLE = "middle"
"""Under which networks keep what they make of x half-way, for whoever asks for intermediates."""
RESAMPLE = {"none": lambda x: x, "up": upsample, "down": average_pool}
"""Changes of resolution inside a block, by name."""


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions of a feature map, [B, H, W, C] -> same."""

    num_heads: int = 1
    norm_eps: float = 1e-6
    group_channels: int = 4
    dtype: str = "float32"
    groups: int | None = None

    @nn.compact
    def __call__(self, x):
        """Returns x plus its attention; `qkv` holds q, k, v in thirds, each split into heads."""
        b, height, width, c = x.shape
        norm = GroupNorm(self.norm_eps, self.group_channels, self.dtype, self.groups, name="norm")
        h = norm(x).reshape(b, height * width, c)
        h = nn.Dense(3 * c, kernel_init=fan_avg_qkv, dtype=self.dtype, name="qkv")(h)
        h = h.reshape(b, height * width, 3, self.num_heads, c // self.num_heads)
        h = attention(h[:, :, 0], h[:, :, 1], h[:, :, 2]).reshape(b, height, width, c)
        return x + nn.Dense(c, kernel_init=zeros, dtype=self.dtype, name="out")(h)


class ResBlock(nn.Module):
    """Residual block: norm, swish, conv, embedding, norm, swish, dropout, conv.

    Source: Ho et al. 2020, appendix B; scale-shift and resampling inside the block: Dhariwal &
    Nichol 2021, section 3.
    """

    features: int
    dropout: float = 0.0
    scale_shift: bool = False
    resample: str = "none"
    norm_eps: float = 1e-6
    group_channels: int = 4
    dtype: str = "float32"
    groups: int | None = None

    @nn.compact
    def __call__(self, x, emb, dropout_keys=None):
        """Maps x [B, H, W, C] and the activated embedding emb [B, E] to [B, H', W', features]."""
        resample = RESAMPLE[self.resample]
        options = (self.norm_eps, self.group_channels, self.dtype, self.groups)
        norm = functools.partial(GroupNorm, *options)
        h = resample(nn.swish(norm(name="norm_0")(x)))
        h = Conv3x3(self.features, dtype=self.dtype, name="conv_0")(h)
        width = self.features * (2 if self.scale_shift else 1)
        emb = nn.Dense(width, kernel_init=fan_avg, dtype=self.dtype, name="emb")(emb)
        if self.scale_shift:
            h = norm(name="norm_1")(h, jnp.split(emb, 2, axis=-1))
        else:
            h = norm(name="norm_1")(h + emb[:, None, None, :])
        h = nn.swish(h)
        h = Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = Conv3x3(self.features, kernel_init=zeros, dtype=self.dtype, name="conv_1")(h)
        x = resample(x)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, kernel_init=fan_avg, dtype=self.dtype, name="skip")(x)
        return x + h


class TextBlock(nn.Module):
    """Self-attention, attention to a context, feed-forward, each after a layer norm.

    Maps x [B, N, C] to the same, of a context [B, M, D]; `text_only`: both attend to the context.
    """

    heads: int
    text_only: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, context):
        """Returns x with what the three layers add."""
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        attend = functools.partial(Attention, self.heads, dtype=self.dtype)
        first = context if self.text_only else None
        x = x + attend(name="self")(norm(name="norm_0")(x), first)
        x = x + attend(name="cross")(norm(name="norm_1")(x), context)
        return x + FeedForward(dtype=self.dtype, name="feed")(norm(name="norm_2")(x))


class SpatialTransformer(nn.Module):
    """Blocks over the positions of a feature map [B, H, W, C], which see a context [B, M, D].

    The norm's eps is 1e-6 in latent diffusion, whatever the network's own is.

    Source: Rombach et al. 2022 (arXiv:2112.10752), appendix E.2.1.
    """

    depth: int
    heads: int
    groups: int
    text_only: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, context):
        """Returns x plus what the blocks make of it."""
        c = x.shape[-1]
        h = GroupNorm(1e-6, groups=self.groups, dtype=self.dtype, name="norm")(x)
        h = nn.Dense(c, kernel_init=fan_avg, dtype=self.dtype, name="in")(h)
        h = h.reshape(x.shape[0], -1, c)
        for i in range(self.depth):
            h = TextBlock(self.heads, self.text_only, self.dtype, name=f"block_{i}")(h, context)
        h = nn.Dense(c, kernel_init=zeros, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


def descend(
    h: Array,
    levels: int,
    num_blocks: int,
    block: Callable[[str, int, Array], Array],
    down: Callable[[int, Array], Array],
) -> tuple[Array, list[Array]]:
    """Takes a feature map down through `num_blocks` blocks of each level.

    Args:
        h: [B, H, W, C].
        levels: number of resolutions.
        num_blocks: of each level.
        block: (name, level, h) -> h.
        down: (level, h) -> h of half the height and width.

    Returns:
        The coarsest feature map, and all of the way down, h included.
    """
    skips = [h]
    for level in range(levels):
        if level > 0:
            h = down(level - 1, h)
            skips.append(h)
        for i in range(num_blocks):
            h = block(f"down_{level}_{i}", level, h)
            skips.append(h)
    return h, skips


def ascend(
    h: Array,
    skips: list[Array],
    levels: int,
    num_blocks: int,
    block: Callable[[str, int, Array], Array],
    up: Callable[[int, Array, tuple[int, int]], Array],
) -> Array:
    """Takes a feature map up again, beside those of the way down; see `descend`.

    Args:
        h: the coarsest feature map.
        skips: what `descend` returned; it is used up.
        levels: number of resolutions.
        num_blocks: of each level on the way down; one more on the way up.
        block: (name, level, h) -> h.
        up: (level, h, size) -> h of twice the height and width, or of the finer level's size, where
            that is odd.
    """
    for level in reversed(range(levels)):
        for i in range(num_blocks + 1):
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = block(f"up_{level}_{i}", level, h)
        if level > 0:
            h = up(level, h, skips[-1].shape[1:3])
    return h
