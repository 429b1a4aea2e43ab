"""Layers the convolutional networks share, written for XLA on CPU, GPU and TPU alike.

The 3x3 convolution, group normalisation, dropout, the embedding of time and the moves between
resolutions. Feature maps are [B, H, W, C]. Layers with a `dtype` compute in it; parameters and
normalisation statistics are float32 always.
"""

import math
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.networks import winograd
from ddim_jax.networks.options import check_divides

fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
# q, k and v share one kernel [C, 3C]: the scale undoes the larger fan-out, so that each third
# starts as a [C, C] kernel of its own would.
fan_avg_qkv = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros_init()

PADDINGS = {"same": "SAME", "symmetric": ((1, 1), (1, 1))}


def conv3x3(x, kernel, stride=1, padding="SAME"):
    """Convolves x [B, H, W, I] with kernel [3, 3, I, O] of the same dtype."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Conv3x3(nn.Module):
    """Every 3x3 convolution; parameters `kernel` [3, 3, I, O] and, unless it has none, `bias` [O].

    TF's SAME padding of a strided convolution on an even size is one row below and one column to
    the right; "symmetric" (PyTorch's padding=1) is one on each side. They agree at stride 1.
    """

    features: int
    stride: int = 1
    padding: str = "same"
    kernel_init: Any = fan_avg
    dtype: str = "float32"
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        """Maps x [B, H, W, C] to [B, H / stride, W / stride, features] in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self._by_winograd(x):
            kernel = self.variable(winograd.COLLECTION, "kernel", winograd.transform, kernel).value
            y = winograd.convolve(x, kernel)
        else:
            y = conv3x3(x, kernel, self.stride, PADDINGS[self.padding])
        if not self.bias:
            return y
        bias = self.param("bias", zeros, (self.features,))
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)

    def _by_winograd(self, x) -> bool:
        """Whether there is a transformed kernel, or a collection to put one in."""
        if self.is_initializing() or not winograd.suits(x, self.features, self.stride):
            return False
        given = self.has_variable(winograd.COLLECTION, "kernel")
        return given or self.is_mutable_collection(winograd.COLLECTION)


def group_count(channels: int, least: int = 4) -> int:
    """Returns the largest divisor of channels that is at most 32 and leaves `least` per group."""
    most = max(1, min(32, channels // least))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


class GroupNorm(nn.Module):
    """Group normalisation from per-channel statistics, in float32.

    Reducing over space first and over the channels of a group afterwards, on [B, C], avoids the
    reshape of the whole feature map to groups, which XLA compiles badly on CPU, above all for
    gradients. Two passes (mean, then squared deviations) keep the variance accurate when the mean
    is large.

    Groups have `group_channels` channels or more: 32 groups from 128 channels on, as in DDPM and
    ADM. With one channel a group the norm would erase whatever was added to the whole channel just
    before it, which is how the embedding enters a residual block without scale and shift. `groups`,
    where it is given, is the number of them instead.

    Source: Wu & He 2018, arXiv:1803.08494, equations 1 and 2.
    """

    eps: float = 1e-6
    group_channels: int = 4
    dtype: str = "float32"
    groups: int | None = None

    @nn.compact
    def __call__(self, x, film=None, statistics=None):
        """Normalises x [B, H, W, C]; film = (scale, shift), each [B, C], is applied after it.

        statistics = (mean, variance), each [B, C], are those of the channels where x is only a
        part of a feature map.

        Raises:
            ValueError: groups do not divide C.
        """
        channels = x.shape[-1]
        groups = self.groups or group_count(channels, self.group_channels)
        check_divides("groups of a norm", groups, channels)
        gain = self.param("scale", nn.initializers.ones_init(), (channels,)).reshape(1, -1)
        bias = self.param("bias", zeros, (channels,)).reshape(1, -1)

        def over_groups(stat):
            pooled = stat.reshape(-1, groups, channels // groups).mean(axis=-1)
            return jnp.repeat(pooled, channels // groups, axis=-1)

        x = x.astype(jnp.float32)
        mean = x.mean(axis=(1, 2)) if statistics is None else statistics[0]
        centre = over_groups(mean)
        centred = x - centre[:, None, None, :]
        if statistics is None:
            variance = jnp.square(centred).mean(axis=(1, 2))
        else:
            variance = statistics[1] + jnp.square(mean - centre)
        variance = over_groups(variance)
        gain = gain * jax.lax.rsqrt(variance + self.eps)
        if film is not None:
            scale, shift = (part.astype(jnp.float32) for part in film)
            gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
        return (centred * gain[:, None, None, :] + bias[:, None, None, :]).astype(self.dtype)


class Dropout(nn.Module):
    """Dropout with one key per row: each number of a row is 0 with probability `rate`.

    The mask of a row depends on the row's key and on this layer's place in the network alone, so
    that it is the same however a batch is split over devices or taken in parts.

    Attributes:
        rate: in [0, 1); the numbers that are kept are divided by 1 - rate.

    Source: Srivastava et al. 2014 (JMLR 15), in the "inverted" form of section 10.
    """

    rate: float

    def __call__(self, x, keys=None):
        """Drops numbers of x [B, ...] with keys [B]; without keys it returns x."""
        if keys is None or self.rate == 0:
            return x
        place = np.uint32(zlib.crc32("/".join(self.path).encode()))

        def kept(key):
            return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(kept)(keys), x / (1 - self.rate), 0)


def upsample(x):
    """Doubles height and width of x [B, H, W, C] by repetition (nearest neighbour)."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(
        b, 2 * h, 2 * w, c
    )


def average_pool(x):
    """Halves height and width of x [B, H, W, C], even sizes, by 2x2 means."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def time_embedding(t, channels: int, kind: str = "ddpm"):
    """Sines and cosines of t at geometrically spaced frequencies.

    Args:
        t: [B] float32 model time.
        channels: even number of outputs.
        kind: "ddpm" puts sines first and the last frequency at 1/10000; "adm" puts cosines first
            and spaces the frequencies as if one more followed, at 1/10000; "dit" puts cosines
            first and has DDPM's frequencies, as DiT has them in diffusers.

    Returns:
        [B, channels] float32.

    Source: Ho et al. 2020, appendix B, and Dhariwal & Nichol 2021 (their published code).
    """
    half = channels // 2
    spacing = math.log(10000.0) / (half if kind == "adm" else half - 1)
    frequencies = jnp.exp(-spacing * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts if kind == "ddpm" else parts[::-1], axis=-1)


def two_layers(name: str, x, width: int, first_init=fan_avg, last_init=fan_avg):
    """Maps x [B, C] to [B, width] by the layers `name`_0 and `name`_1 of the module that calls it.

    An embedding of a time or of another number passes through them in every network.
    """
    h = nn.swish(nn.Dense(width, kernel_init=first_init, name=f"{name}_0")(x))
    return nn.Dense(width, kernel_init=last_init, name=f"{name}_1")(h)


def space_to_depth(x, patch: int):
    """[B, H, W, C] -> [B, H / patch, W / patch, patch * patch * C]; patches row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x, patch: int):
    """The inverse of space_to_depth."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * patch, w * patch, c // patch**2)
