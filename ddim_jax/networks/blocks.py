"""Residual blocks of the convolutional networks: features [B, H, W, C] plus what a block adds."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from ddim_jax.networks.layers import (
    Conv3x3,
    Dropout,
    GroupNorm,
    attention,
    average_pool,
    fan_avg,
    fan_avg_qkv,
    upsample,
    zeros,
)

RESAMPLE = {"none": lambda x: x, "up": upsample, "down": average_pool}
"""Changes of resolution inside a block, by name."""


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions of a feature map, [B, H, W, C] -> same."""

    num_heads: int = 1
    norm_eps: float = 1e-6
    group_channels: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        """Returns x plus its attention; `qkv` holds q, k, v in thirds, each split into heads."""
        b, height, width, c = x.shape
        norm = GroupNorm(self.norm_eps, self.group_channels, self.dtype, name="norm")
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

    @nn.compact
    def __call__(self, x, emb, dropout_keys=None):
        """Maps x [B, H, W, C] and the activated embedding emb [B, E] to [B, H', W', features]."""
        resample = RESAMPLE[self.resample]
        norm = functools.partial(GroupNorm, self.norm_eps, self.group_channels, self.dtype)
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
