"""Real or made? A logit for each sample, from what another network makes of it half-way.

Source: Yin et al. 2024 (arXiv:2405.14867), section 4.3, whose layers are of larger maps.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ddim_jax.networks.layers import Conv3x3, GroupNorm, fan_avg

FREQUENCIES = (1, 2, 4)
"""Of the features of t, in half turns over its range."""


class Discriminator(nn.Module):
    """Two strided convolutions, the mean over space, a dense layer; told the noise level.

    Attributes:
        channels: of the convolutions.
    """

    channels: int = 96

    @nn.compact
    def __call__(self, h, t):
        """Logits [B] of features h [B, H, W, C] at sigma / (alpha + sigma) t [B]."""
        angles = np.pi * t[:, None] * jnp.asarray(FREQUENCIES, jnp.float32)[None]
        told = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        told = nn.Dense(self.channels, kernel_init=fan_avg, name="time")(told)
        h = Conv3x3(self.channels, stride=2, padding="symmetric", name="conv_0")(h)
        h = nn.swish(GroupNorm(name="norm")(h + told[:, None, None]))
        h = Conv3x3(self.channels, stride=2, padding="symmetric", name="conv_1")(h)
        return nn.Dense(1, kernel_init=fan_avg, name="out")(nn.swish(h).mean(axis=(1, 2)))[:, 0]
