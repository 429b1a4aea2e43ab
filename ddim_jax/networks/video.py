"""Networks of clips [B, T, H, W, C]: those of pictures on every frame, and what mixes frames.

    network     on every frame            between its blocks, see `frames`
    VideoUNet   the blocks of `UNet`      attention over time or jointly, convolution over time
    VideoDiT    the blocks of `DiT`       attention over time

Parameters of the network of pictures keep their names and what is between begins as the identity,
so a trained network of pictures, `config.start_from`, becomes one of clips that draws every frame
as before. Model time is one for a clip, [B], or one for each frame, [B, T]: known frames are told
that they are clean. A network of clips serves any number of frames.

Sources: Ho et al. 2022 (arXiv:2204.03458); Chen et al. 2024 (arXiv:2407.01392), one noise level
for each frame; Ma et al. 2024 (arXiv:2401.03048), variant 1, blocks over space and time in turn.
"""

import functools
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.dropping import ALONE
from ddim_jax.inputs import FRAME_RATE, Input
from ddim_jax.names import check_range
from ddim_jax.networks.frames import Clips, FrameAttention, TimeConvolution, clips_of
from ddim_jax.networks.layers import two_layers, zeros
from ddim_jax.networks.options import kept, scalar
from ddim_jax.networks.transformer import DiT, DiTBlock
from ddim_jax.networks.unet import UNet

Array = Any
OCTAVES = 8
"""Frame rates up to 2 ** OCTAVES - 1 are embedded as numbers in 0..1."""


class VideoUNet(UNet):
    """`UNet` on every frame, with layers that mix frames after every block and in the middle.

    Attributes, beside those of `UNet`:
        time_heads: of attention over frames.
        joint_attention: heights of the feature maps, after patching, with attention over all places
            of all frames: of the coarse ones.
        time_attention: heights with attention over the frames at each place; None: all that have no
            joint one.
        time_convolution: heights with a convolution over three frames.
        frame_rate: whether inputs["frame_rate"] is told, frames a second; 0 is the null.
        causal: whether a frame sees itself and earlier ones only.
        window: frames that a causal one sees, itself among them; 0: all.
    """

    time_heads: int = 4
    joint_attention: tuple[int, ...] = (8,)
    time_attention: tuple[int, ...] | None = None
    time_convolution: tuple[int, ...] = (8,)
    frame_rate: bool = False
    causal: bool = False
    window: int = 0

    draws_clips = True
    """Whether x has an axis of frames."""

    @property
    def inputs(self) -> dict[str, Input]:
        """What the network is told beside x and t, by name."""
        return super().inputs | _told(self)

    @nn.compact
    def __call__(self, x, t, inputs=MappingProxyType({}), dropout_keys=None):
        """Evaluates the network.

        Args:
            x: [B, T, H, W, C] float32; H and W as of `UNet`.
            t: [B] or [B, T] float32 model time.
            inputs: name -> [B], those of `self.inputs`; "alone" may be missing.
            dropout_keys: [B], one key per sample, for training; None for no dropout.

        Returns:
            [B, T, H, W, out_channels] float32.

        Raises:
            ValueError: shapes or inputs do not fit the attributes; raised while tracing.
        """
        clips = clips_of(self, _frames(x, t), inputs.get(ALONE))
        frames, times, told, keys = _folded(x, t, inputs, dropout_keys)
        self._check(frames, times, told, keys)
        emb = self._embed(times, told)
        out = self._through(frames, emb, keys, functools.partial(self._mixed, clips))
        return out.reshape(*x.shape[:-1], -1)

    def _check(self, x, t, inputs, dropout_keys):
        super()._check(x, t, inputs, dropout_keys)
        for name in ("joint_attention", "time_attention", "time_convolution"):
            for side in getattr(self, name) or ():
                what = f"an entry of config.model.{name}"
                check_range(what, side, "[1, 65536]", "a height of feature maps", whole=True)
        _check_window(self)

    def _mixed(self, clips: Clips, name: str, h: Array) -> Array:
        """A feature map [B * T, H, W, C] after the layers over frames that follow a block."""
        side, own = h.shape[1], self.time_attention
        joint = side in self.joint_attention
        if side in self.time_convolution:
            layer = kept(TimeConvolution, self.remat)
            h = layer(self.dtype, name=f"{name}_time_convolution")(h, clips)
        attention = kept(FrameAttention, self.remat)
        if side in own if own is not None else not joint:
            layer = attention(self.time_heads, False, self.dtype, name=f"{name}_time_attention")
            h = layer(h, clips)
        if joint:
            layer = attention(self.time_heads, True, self.dtype, name=f"{name}_joint_attention")
            h = layer(h, clips)
        return h

    def _embed(self, t, inputs):
        emb = super()._embed(t, inputs)
        if not self.frame_rate:
            return emb
        features = self._features(scalar(self, FRAME_RATE, _octaves(inputs)))
        return emb + two_layers(FRAME_RATE, features, emb.shape[-1], last_init=zeros)


class VideoDiTBlock(DiTBlock):
    """`DiTBlock` over the places of every frame, then attention over the frames at each place."""

    @nn.compact
    def __call__(self, x, emb, dropout_keys=None, text=None, clips=None):
        """Returns x [B * T, N, C] of the next block and None."""
        x, _ = super().__call__(x, emb, dropout_keys, text)
        layer = FrameAttention(self.heads, dtype=self.dtype, name="time_attention")
        x = layer(x[:, :, None], clips)
        return x[:, :, 0], None


class VideoDiT(DiT):
    """`DiT` on every frame, with attention over the frames at each place after every block.

    A text is told once for a clip; its tokens join those of every frame.

    Attributes, beside those of `DiT`:
        frame_rate: as of `VideoUNet`, as are causal and window.
        causal: whether a frame sees itself and earlier ones only.
        window: frames that a causal one sees.
    """

    frame_rate: bool = False
    causal: bool = False
    window: int = 0

    draws_clips = True
    """Whether x has an axis of frames."""

    @property
    def inputs(self) -> dict[str, Input]:
        """What the network is told beside x and t, by name."""
        return super().inputs | _told(self)

    @nn.compact
    def __call__(self, x, t, inputs=MappingProxyType({}), dropout_keys=None):
        """Evaluates the network.

        Args:
            x: [B, T, H, W, C] float32; H and W divisible by patch_size.
            t: [B] or [B, T] float32 model time.
            inputs: name -> [B, ...], those of `self.inputs`; "alone" may be missing.
            dropout_keys: [B], one key per sample, for training; None for no dropout.

        Returns:
            [B, T, H, W, out_channels] float32.

        Raises:
            ValueError: shapes or inputs do not fit the attributes; raised while tracing.
        """
        count = _frames(x, t)
        clips = clips_of(self, count, inputs.get(ALONE))
        frames, times, told, keys = _folded(x, t, inputs, dropout_keys)
        self._check(frames, times, told, keys)
        text = None
        if self.text_length:
            text = jnp.repeat(self._text(inputs["text"]), count, axis=0)
        emb = self._embed(times, told, text)
        out = self._through(frames, emb, text, keys, VideoDiTBlock, (clips,))
        return out.reshape(*x.shape[:-1], -1)

    def _check(self, x, t, inputs, dropout_keys):
        super()._check(x, t, inputs, dropout_keys)
        _check_window(self)

    def _embed(self, t, inputs, text):
        emb = super()._embed(t, inputs, text)
        if not self.frame_rate:
            return emb
        octaves = scalar(self, FRAME_RATE, _octaves(inputs))
        return emb + self._number(FRAME_RATE, octaves, zeros)


def _told(net: nn.Module) -> dict[str, Input]:
    """What networks of clips are told beside what those of pictures are."""
    rate = {FRAME_RATE: Input(null=0.0)} if net.frame_rate else {}
    return rate | {ALONE: Input((), "bool")}


def _octaves(inputs: dict[str, Array]) -> Array:
    return jnp.log2(1 + inputs[FRAME_RATE]) / OCTAVES


def _check_window(net: nn.Module) -> None:
    """Raises ValueError for a window of a network that sees later frames too."""
    if net.window and not net.causal:
        raise ValueError(
            f"config.model.window={net.window} is of networks whose frames see earlier ones only: "
            "set config.model.causal=True, or window=0"
        )


def _frames(x: Array, t: Array) -> int:
    """T of clips x [B, T, H, W, C]; ValueError where x or t is none of clips."""
    if x.ndim != 5:
        raise ValueError(
            f"x must be clips [B, T, H, W, C], got shape {x.shape}; a picture is a clip of 1 frame"
        )
    if t.shape not in ((x.shape[0],), x.shape[:2]):
        raise ValueError(
            f"t must be [{x.shape[0]}], one model time per clip, or {list(x.shape[:2])}, one per "
            f"frame, got {t.shape}"
        )
    return x.shape[1]


def _folded(x: Array, t: Array, inputs: dict, keys: Array | None) -> tuple:
    """x, t, inputs and dropout keys of frames, [B * T, ...] each, as networks of pictures take."""
    batch, frames = x.shape[:2]
    told = {ALONE: jnp.zeros(batch, bool)} | dict(inputs)
    told = {name: jnp.repeat(value, frames, axis=0) for name, value in told.items()}
    t = jnp.broadcast_to(t if t.ndim == 2 else t[:, None], (batch, frames)).reshape(-1)
    if keys is not None:
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        keys = jax.vmap(fold, in_axes=(0, None))(keys, jnp.arange(frames)).reshape(-1)
    return x.reshape(-1, *x.shape[2:]), t, told, keys
