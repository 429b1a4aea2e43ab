"""Layers that mix the frames of clips, between the blocks of networks of pictures.

Frames are folded into the batch: feature maps are [B * T, H, W, C], the frames of a clip one after
another. Every layer is residual and ends in a kernel of zeros, so that it changes nothing at first:
a network of pictures that is given such layers draws every frame as before.

    layer             a place of a frame sees                      positions
    FrameAttention    the same place in all frames                 rotary in time
      joint           all places of all frames, of coarse maps     rotary, time : row : column 2:1:1
    TimeConvolution   the same place in three frames

`alone` cuts the frames of a clip apart; `causal` keeps what is later from them. A causal network
goes on from frames that it has seen by what it kept of them, in the collection `CACHE`.

Sources: Ho et al. 2022 (arXiv:2204.03458), section 3; Su et al. 2021 (arXiv:2104.09864), rotary
positions; Blattmann et al. 2023 (arXiv:2304.08818), layers in time that begin as the identity.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ddim_jax.networks.attention import LayerNorm, attention
from ddim_jax.networks.layers import fan_avg_qkv, zeros
from ddim_jax.networks.options import check_divides

Array = Any
CACHE = "cache"
"""Of flax's variables: what causal layers keep of the frames that a network has seen."""
ADDED = ("time_attention", "joint_attention", "time_convolution")
"""How names of these layers end, by which a network of pictures lacks them."""
TIME_BASE, SPACE_BASE = 1000.0, 100.0
"""Rotary frequencies fall from 1 radian a frame or place to about the inverse of these."""
QUERIES = 32
"""Frames whose attention at a place is in memory at a time: memory is linear in frames."""


@flax.struct.dataclass
class Clips:
    """What every layer is told of the clips; the first three are fixed when it is traced.

    Attributes:
        frames: T, of each clip.
        causal: whether a frame sees itself and earlier ones only.
        window: frames that a causal one sees at most, itself among them; 0: all.
        alone: bool [B], clips whose frames are cut apart; None for none.
        first: frames seen before these, int32 or int.
    """

    frames: int = flax.struct.field(pytree_node=False)
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    window: int = flax.struct.field(pytree_node=False, default=0)
    alone: Array | None = None
    first: Array | int = 0


def is_added(path: str) -> bool:
    """Whether a parameter, names joined with "/", is of a layer that mixes frames."""
    return any(name.endswith(ADDED) for name in path.split("/"))


def clips_of(module: nn.Module, frames: int, alone: Array | None) -> Clips:
    """Clips of `frames` frames; in a network that keeps frames, those after the ones it has."""
    clips = Clips(frames, module.causal, module.window, alone)
    if not keeps(module, "frames"):
        return clips
    kept = module.variable(CACHE, "frames", lambda: jnp.int32(0))
    first = kept.value
    if module.is_mutable_collection(CACHE):
        kept.value = first + frames
    return clips.replace(first=first)


def rotate(x: Array, angles: Array) -> Array:
    """Turns pairs of numbers of x [B, T, N, heads, d] by angles [T, N or 1, d / 2]."""
    cos, sin = (f(angles)[None, :, :, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def angles_of(times: Array, pairs: int) -> Array:
    """Rotary angles of frames at times [T]: [T, 1, pairs]."""
    return times[:, None, None] * _frequencies(pairs, TIME_BASE)


def joint_angles_of(times: Array, height: int, width: int, pairs: int) -> Array:
    """Rotary angles of all places, [T, height * width, pairs]: time, row, column as 2 : 1 : 1."""
    few = pairs // 4
    rows, columns = jnp.divmod(jnp.arange(height * width), width)
    shape = (len(times), height * width)
    parts = [angles_of(times, pairs - 2 * few)]
    parts += [at[None, :, None] * _frequencies(few, SPACE_BASE) for at in (rows, columns)]
    return jnp.concatenate([jnp.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], axis=-1)


def _frequencies(count: int, base: float) -> Array:
    return (base ** (-jnp.arange(count) / max(count, 1)))[None, None]


class FrameAttention(nn.Module):
    """Attention over the frames at every place, or over all places of all frames.

    Attributes:
        heads: number of them; each has an even number of channels.
        joint: whether a place sees all others too.
        dtype: compute dtype.
    """

    heads: int
    joint: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, h, clips):
        """Returns h [B * T, H, W, C] plus its attention.

        Raises:
            ValueError: heads do not divide C into even parts.
        """
        n, height, width, c = h.shape
        check_divides("heads over frames, twice,", 2 * self.heads, c)
        frames, places, d = clips.frames, height * width, c // self.heads
        # a scale and shift would be those of the next layer, at twice the time of the backward pass
        x = LayerNorm(affine=False, dtype=self.dtype)(h.reshape(n, places, c))
        x = nn.Dense(3 * c, kernel_init=fan_avg_qkv, dtype=self.dtype, name="qkv")(x)
        x = x.reshape(n // frames, frames, places, 3, self.heads, d)
        times = clips.first + jnp.arange(frames)
        if self.joint:
            angles = joint_angles_of(times, height, width, d // 2)
        else:
            angles = angles_of(times, d // 2)
        q, k, v = rotate(x[:, :, :, 0], angles), rotate(x[:, :, :, 1], angles), x[:, :, :, 2]
        k, v = (with_kept(self, name, part, clips.first) for name, part in (("k", k), ("v", v)))
        x = self._over_all(q, k, v, clips) if self.joint else self._over_time(q, k, v, clips)
        x = nn.Dense(c, kernel_init=zeros, dtype=self.dtype, name="out")(x.reshape(n, places, c))
        return h + x.reshape(h.shape)

    def _over_all(self, q, k, v, clips):
        tokens = (part.reshape(len(part), -1, *part.shape[3:]) for part in (q, k, v))
        return attention(*tokens, seen=_sight(clips, k.shape[1], q.shape[2], clips.alone))

    def _over_time(self, q, k, v, clips):
        places = q.shape[2]
        lines = (part.swapaxes(1, 2) for part in (q, k, v))
        lines = (part.reshape(-1, *part.shape[2:]) for part in lines)
        alone = None if clips.alone is None else jnp.repeat(clips.alone, places)
        seen = _sight(clips, k.shape[1], 1, alone)
        mixed = attention(*lines, most=QUERIES * k.shape[1], seen=seen)
        return mixed.reshape(-1, places, *mixed.shape[1:]).swapaxes(1, 2)


class TimeConvolution(nn.Module):
    """A convolution over three frames: the ones around a frame, or with the two before it."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, h, clips):
        """Returns h [B * T, H, W, C] plus its convolution; outside of a clip are zeros."""
        n, height, width, c = h.shape
        frames, places = clips.frames, height * width
        x = nn.swish(LayerNorm(dtype=self.dtype, name="norm")(h.reshape(n, places, c)))
        x = x.reshape(n // frames, frames, places, c)
        near = x if clips.alone is None else jnp.where(clips.alone[:, None, None, None], 0, x)
        before, after = (2, 0) if clips.causal else (1, 1)
        near = jnp.pad(near, ((0, 0), (before, after), (0, 0), (0, 0)))
        if clips.causal:
            near = last_two(self, near)
        three = [near[:, i : i + frames] for i in range(3)]
        three[before] = x
        x = jnp.concatenate(three, axis=-1).reshape(n, places, 3 * c)
        x = nn.Dense(c, kernel_init=zeros, dtype=self.dtype, name="out")(x)
        return h + x.reshape(h.shape)


def _sight(clips: Clips, frames: int, places: int, alone: Array | None):
    """Which of the keys some queries see, by their places in line; None: all see all."""
    if not clips.causal and alone is None:
        return None
    key = jnp.repeat(jnp.arange(frames), places)[None, None]

    def seen(rows: Array) -> Array:  # [n] -> bool [1 or B, n, keys]
        query = (clips.first + rows // places)[None, :, None]
        sees = jnp.ones_like(key == query)
        if clips.causal:
            sees = key <= query
        if clips.window:
            sees &= key > query - clips.window
        if alone is not None:
            sees &= ~alone[:, None, None] | (key == query)
        return sees

    return seen


def keeps(module: nn.Module, name: str) -> bool:
    """Whether a module has kept something under this name, or is to do so."""
    if module.is_initializing():
        return False
    return module.has_variable(CACHE, name) or module.is_mutable_collection(CACHE)


def with_kept(module: nn.Module, name: str, value: Array, first: Array) -> Array:
    """`value` [B, T, ...] of some frames among what a layer kept of the frames before them.

    Where nothing is kept, it is returned as it is.
    """
    if not keeps(module, name):
        return value
    kept = module.variable(CACHE, name, jnp.zeros_like, value)
    whole = jax.lax.dynamic_update_slice_in_dim(kept.value, value, first, axis=1)
    if module.is_mutable_collection(CACHE):
        kept.value = whole
    return whole


def last_two(module: nn.Module, padded: Array) -> Array:
    """Frames [B, 2 + T, ...] whose first two are those that a layer kept, or zeros."""
    if not keeps(module, "last"):
        return padded
    kept = module.variable(CACHE, "last", lambda: jnp.zeros_like(padded[:, :2]))
    whole = jnp.concatenate([kept.value, padded[:, 2:]], axis=1)
    if module.is_mutable_collection(CACHE):
        kept.value = whole[:, -2:]
    return whole
