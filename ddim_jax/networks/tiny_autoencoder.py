"""A small autoencoder with the latents of a large one, for previews: TAESD.

Convolutions and relu alone, no norm, so that what lies far apart does not meet and little memory is
needed. Called as `AutoencoderKL` is.

Source: O. Boer Bohan, github.com/madebyollin/taesd.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from ddim_jax.networks.autoencoder import Moments, check_latents, check_pictures
from ddim_jax.networks.layers import Conv3x3, upsample


class TinyBlock(nn.Module):
    """Three convolutions, relu between them and after what they add: [B, H, W, C] -> same."""

    dtype: str

    @nn.compact
    def __call__(self, x):
        """Returns relu(x + its convolutions)."""
        h = x
        for i in range(3):
            h = h if i == 0 else nn.relu(h)
            h = Conv3x3(x.shape[-1], dtype=self.dtype, name=f"conv_{i}")(h)
        return nn.relu(x + h)


class TinyEncoder(nn.Module):
    """Pictures in [0, 1] to latents; see `AutoencoderTiny`."""

    latent_channels: int
    width: int
    blocks: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, x):
        """Maps [B, H, W, channels] to [B, h, w, latent_channels]."""
        conv = functools.partial(Conv3x3, self.width, dtype=self.dtype)
        for level, count in enumerate(self.blocks):
            step = dict(stride=2, padding="symmetric", bias=False) if level else {}
            x = conv(**step, name=f"level_{level}_in")(x)
            for i in range(count):
                x = TinyBlock(self.dtype, name=f"level_{level}_{i}")(x)
        return Conv3x3(self.latent_channels, name="conv_out")(x)


class TinyDecoder(nn.Module):
    """Latents to pictures in [0, 1]; see `AutoencoderTiny`."""

    channels: int
    width: int
    blocks: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, x):
        """Maps [B, h, w, latent_channels] to [B, H, W, channels]."""
        conv = functools.partial(Conv3x3, self.width, dtype=self.dtype)
        x = nn.relu(conv(name="conv_in")(x))
        for level, count in zip(reversed(range(len(self.blocks))), self.blocks, strict=True):
            for i in range(count):
                x = TinyBlock(self.dtype, name=f"level_{level}_{i}")(x)
            if level > 0:
                x = conv(bias=False, name=f"level_{level}_resample")(upsample(x))
        return Conv3x3(self.channels, name="conv_out")(x)


class AutoencoderTiny(nn.Module):
    """A small autoencoder with the latents of a large one, scaled as diffusion networks see them.

    Attributes:
        channels: of pictures.
        latent_channels: 4; 16 in those for SD 3 and Flux.
        width: features everywhere.
        encoder_blocks: of each level, from the finest.
        decoder_blocks: of each level, from the coarsest.
        scale: of latents.
        shift: of latents.
        dtype: compute dtype, "float32" or "bfloat16"; the last convolutions are float32.
    """

    channels: int = 3
    latent_channels: int = 4
    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scale: float = 1.0
    shift: float = 0.0
    dtype: str = "float32"

    @property
    def factor(self) -> int:
        """Height of a picture in units of its latents'."""
        return 2 ** (len(self.encoder_blocks) - 1)

    def setup(self):
        """Names the two halves."""
        self.encoder = TinyEncoder(
            self.latent_channels, self.width, self.encoder_blocks, self.dtype
        )
        self.decoder = TinyDecoder(self.channels, self.width, self.decoder_blocks, self.dtype)

    def __call__(self, images):
        """Both ways, for `init`."""
        return self.decode(self.encode(images).mean)

    def encode(self, images) -> Moments:
        """As `AutoencoderKL.encode`; std is zero."""
        check_pictures(self, images)
        mean = (self.encoder((images + 1) / 2) - self.shift) * self.scale
        return Moments(mean, jnp.zeros_like(mean))

    def decode(self, latents):
        """As `AutoencoderKL.decode`; latents far out are drawn in to -3..3."""
        check_latents(self, latents)
        z = latents / self.scale + self.shift
        return 2 * self.decoder(3 * jnp.tanh(z / 3)) - 1
