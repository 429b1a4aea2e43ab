"""Real or made? A logit for each sample, from what another network makes of it half-way.

Source: Yin et al. 2024 (arXiv:2405.14867), section 4.3, whose layers are of larger maps; the noised
pictures themselves as well: Xiao et al. 2022 (arXiv:2112.07804), section 4.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ddim_jax.networks.layers import Conv3x3, GroupNorm, fan_avg

FREQUENCIES = (1, 2, 4)
"""Of the features of t, in half turns over its range."""


class Discriminator(nn.Module):
    """Two strided convolutions, the mean over space, a dense layer; told the noise level.

    Given pictures too, its logit is the sum of two, each of such a stack; that of pictures has
    three convolutions.

    Attributes:
        channels: of the convolutions.
    """

    channels: int = 96

    @nn.compact
    def __call__(self, h, t, x=None):
        """Logits [B] of features h [B, H, W, C] at sigma / (alpha + sigma) t [B].

        Args:
            h: features.
            t: noise levels.
            x: [B, H, W, C] noised pictures; None: features alone.
        """
        logits = self._stack(h, t, "", 2)
        return logits if x is None else logits + self._stack(x, t, "picture_", 3)

    def _stack(self, h, t, name, convolutions):
        angles = np.pi * t[:, None] * jnp.asarray(FREQUENCIES, jnp.float32)[None]
        told = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        told = nn.Dense(self.channels, kernel_init=fan_avg, name=f"{name}time")(told)
        for i in range(convolutions):
            if i:
                h = nn.swish(h)
            h = Conv3x3(self.channels, stride=2, padding="symmetric", name=f"{name}conv_{i}")(h)
            if i < convolutions - 1:
                norm = f"norm_{i}" if i else "norm"
                h = GroupNorm(name=f"{name}{norm}")(h + told[:, None, None])
        h = nn.swish(h).mean(axis=(1, 2))
        return nn.Dense(1, kernel_init=fan_avg, name=f"{name}out")(h)[:, 0]
