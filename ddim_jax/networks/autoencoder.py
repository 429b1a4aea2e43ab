"""The autoencoder of latent diffusion: pictures to latents of an eighth of their size and back.

    network                    arguments beside the defaults                       (`AutoencoderKL`)
    Stable Diffusion 1 and 2   -
    Stable Diffusion XL        scale=0.13025
    Stable Diffusion 3         latent_channels=16, quant=False, scale=1.5305, shift=0.0609
    Flux                       latent_channels=16, quant=False, scale=0.3611, shift=0.1159

    moments = net.apply({"params": p}, images, method="encode")
    images = net.apply({"params": p}, latents, method="decode")

Latents are scaled to about unit variance, (z - shift) * scale, on the way out and back on the way
in, so that diffusion networks see and make them as they are. `strips.decode` decodes pictures whose
features memory does not hold; `AutoencoderTiny` is a small network with the same latents.

Source: Rombach et al. 2022 (arXiv:2112.10752), section 3.1.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.networks.blocks import AttentionBlock
from ddim_jax.networks.layers import Conv3x3, GroupNorm, fan_avg, upsample
from ddim_jax.networks.options import DTYPES, check_choices, check_counts

Array = Any

EPS = 1e-6


class Moments(NamedTuple):
    """A Gaussian for each latent, scaled; `mean + std * noise` is a sample of it."""

    mean: Array
    std: Array


class Coded(NamedTuple):
    """Pictures that went through an autoencoder, and the Gaussian between, not scaled."""

    pictures: Array
    mean: Array
    std: Array


class ConvBlock(nn.Module):
    """Residual block without an embedding: norm, swish, convolution, twice."""

    features: int
    groups: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        """Maps [B, H, W, C] to [B, H, W, features]."""
        h = x
        for i in range(2):
            norm = GroupNorm(EPS, groups=self.groups, dtype=self.dtype, name=f"norm_{i}")
            h = Conv3x3(self.features, dtype=self.dtype, name=f"conv_{i}")(nn.swish(norm(h)))
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, kernel_init=fan_avg, dtype=self.dtype, name="skip")(x)
        return x + h


class Middle(nn.Module):
    """Block, attention, block at the coarsest level: [B, H, W, C] -> same."""

    attention: bool
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, h):
        """Returns the features after the last block."""
        options = dict(groups=self.groups, dtype=self.dtype)
        h = ConvBlock(h.shape[-1], **options, name="block_0")(h)
        if self.attention:
            h = AttentionBlock(norm_eps=EPS, **options, name="attention")(h)
        return ConvBlock(h.shape[-1], **options, name="block_1")(h)


class Level(nn.Module):
    """Blocks of one resolution, after the step to it.

    Attributes:
        features: of the blocks.
        num_blocks: number of them.
        step: "down" or "up" by a factor of 2 before the blocks, by a convolution; "none".
        groups: of the norms.
        dtype: compute dtype.
    """

    features: int
    num_blocks: int
    step: str
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, h):
        """Maps [B, H, W, C] to [B, H', W', features]."""
        if self.step != "none":
            h = upsample(h) if self.step == "up" else h
            stride = 2 if self.step == "down" else 1
            h = Conv3x3(h.shape[-1], stride=stride, dtype=self.dtype, name="resample")(h)
        for i in range(self.num_blocks):
            h = ConvBlock(self.features, self.groups, self.dtype, name=f"block_{i}")(h)
        return h


class Coder(nn.Module):
    """One half of `AutoencoderKL`: the encoder (down), or the decoder."""

    down: bool
    out_channels: int
    widths: tuple[int, ...]
    num_blocks: int
    attention: bool
    groups: int
    dtype: str

    def setup(self):
        """Names the layers; level_0 is the finest."""
        norm = (self.groups, self.dtype)
        widths = self.widths if self.down else self.widths[::-1]
        way = "down" if self.down else "up"
        self.conv_in = Conv3x3(widths[0], dtype=self.dtype)
        self.middle = Middle(self.attention, *norm)
        levels = []
        for i, width in enumerate(widths):
            name = f"level_{i if self.down else len(widths) - 1 - i}"
            levels.append(Level(width, self.num_blocks, way if i else "none", *norm, name=name))
        self.levels = levels
        self.norm_out = GroupNorm(EPS, groups=self.groups)
        self.conv_out = Conv3x3(self.out_channels)

    def __call__(self, x):
        """Maps pictures to twice the latent channels, or latents to pictures."""
        if not self.down:
            return self.last(self.but_last(x))
        h = self.conv_in(x)
        for level in self.levels:
            h = level(h)
        return self._out(self.middle(h))

    def but_last(self, z, count=1):
        """The decoder without its `count` finest levels: latents to features."""
        h = self.middle(self.conv_in(z))
        for level in self.levels[: len(self.levels) - count]:
            h = level(h)
        return h

    def last(self, h, count=1):
        """The decoder's `count` finest levels: features to the picture."""
        for level in self.levels[len(self.levels) - count :]:
            h = level(h)
        return self._out(h)

    def _out(self, h):
        return self.conv_out(nn.swish(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """See the module; the defaults are Stable Diffusion's.

    Attributes:
        channels: of pictures.
        latent_channels: 4; 16 in SD 3 and Flux.
        widths: of the levels, from the finest; each but the last halves the size.
        num_blocks: residual blocks of a level; one more on the way up.
        attention: whether the coarsest level has it.
        quant: whether 1x1 convolutions lie beside the latent; not in SD 3 and Flux.
        scale: of latents.
        shift: of latents.
        groups: of every group norm; they divide each width.
        dtype: compute dtype, "float32" or "bfloat16"; SDXL's first weights overflow in float16.
            The last norm and convolution of each half are float32.
    """

    channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    attention: bool = True
    quant: bool = True
    scale: float = 0.18215
    shift: float = 0.0
    groups: int = 32
    dtype: str = "float32"

    def setup(self):
        """Names the two halves."""
        norm = (self.attention, self.groups, self.dtype)
        count = self.num_blocks
        self.encoder = Coder(True, 2 * self.latent_channels, self.widths, count, *norm)
        self.decoder = Coder(False, self.channels, self.widths, count + 1, *norm)
        if self.quant:
            self.quant_out = nn.Dense(2 * self.latent_channels, kernel_init=fan_avg)
            self.quant_in = nn.Dense(self.latent_channels, kernel_init=fan_avg)

    @property
    def factor(self) -> int:
        """Height of a picture in units of its latents'."""
        return 2 ** (len(self.widths) - 1)

    @property
    def out_channels(self) -> int:
        """As other networks call the channels of what they return."""
        return self.channels

    @property
    def inputs(self) -> dict[str, Any]:
        """What it is told beside pictures, as other networks declare it: nothing."""
        return {}

    def __call__(self, images, t=None, inputs=None, keys=None) -> Coded:
        """Both ways, called as other networks are.

        Args:
            images: as of `encode`.
            t: not looked at.
            inputs: not looked at.
            keys: [B], of one sample of each picture's latents; None decodes their mean.
        """
        moments = self._moments(images)
        z = moments.mean
        if keys is not None:
            shape = z.shape[1:]
            z += moments.std * jax.vmap(lambda key: jax.random.normal(key, shape, z.dtype))(keys)
        return Coded(self._decoded(z), *moments)

    def encode(self, images) -> Moments:
        """Encodes pictures.

        Args:
            images: [B, H, W, channels] float32 in [-1, 1]; H and W divisible by `factor`.

        Returns:
            `Moments`, [B, H / factor, W / factor, latent_channels] float32 each, scaled.

        Raises:
            ValueError: the shape or an attribute does not fit; raised while tracing.
        """
        mean, std = self._moments(images)
        return Moments((mean - self.shift) * self.scale, std * self.scale)

    def _moments(self, images) -> Moments:
        """Those of the latents as they are, not scaled."""
        check_pictures(self, images)
        h = self.encoder(images)
        mean, log_var = jnp.split(self.quant_out(h) if self.quant else h, 2, axis=-1)
        return Moments(mean, jnp.exp(jnp.clip(log_var, -30.0, 20.0) / 2))

    def _decoded(self, z):
        """Pictures of latents as they are, not scaled."""
        return self.decoder(self.quant_in(z) if self.quant else z)

    def decode(self, latents):
        """Decodes latents [B, h, w, latent_channels], scaled, to pictures, about -1..1, float32.

        Raises:
            ValueError: the shape or an attribute does not fit; raised while tracing.
        """
        return self.decoder(self.unscaled(latents))

    def decode_but_last(self, latents, count):
        """`decode` up to its `count` finest levels: features of the level before them."""
        return self.decoder.but_last(self.unscaled(latents), count)

    def decode_last(self, h, count):
        """The rest of `decode` after `decode_but_last`."""
        return self.decoder.last(h, count)

    def unscaled(self, latents):
        """What the decoder is given of latents."""
        check_latents(self, latents)
        z = latents / self.scale + self.shift
        return self.quant_in(z) if self.quant else z


def check_pictures(net: nn.Module, images: Array) -> None:
    """Raises ValueError where pictures or the dtype of an autoencoder do not fit."""
    check_choices(net, dtype=DTYPES)
    check_counts(net, "config.codec.")
    if images.ndim != 4 or images.shape[-1] != net.channels:
        raise ValueError(f"images must be [B, H, W, {net.channels}], got shape {images.shape}")
    _, height, width, _ = images.shape
    if height % net.factor or width % net.factor:
        raise ValueError(
            f"height and width must be divisible by {net.factor}, got {height} x {width}; crop or "
            "resize the images"
        )


def check_latents(net: nn.Module, latents: Array) -> None:
    """Raises ValueError where latents or the dtype of an autoencoder do not fit."""
    check_choices(net, dtype=DTYPES)
    check_counts(net, "config.codec.")
    if latents.ndim != 4 or latents.shape[-1] != net.latent_channels:
        wanted = f"[B, h, w, {net.latent_channels}]"
        raise ValueError(f"latents must be {wanted}, got shape {latents.shape}")
