"""Noise that the frames of a clip have in common in part; that of each is a standard normal still.

    mixed        eps_f = sqrt(c) shared + sqrt(1 - c) own_f        correlation c of any two frames
    progressive  eps_f = c eps_{f-1} + sqrt(1 - c^2) own_f         c^|f - g| of frames f and g

What a network is trained with it must be drawn with: losses, initial noise and the noise of
samplers all come through here. The first frames' noise is the same however many follow.

Source: Ge et al. 2023 (arXiv:2305.10474), section 4.1, whose strength a is here a correlation:
1 / (1 + a^2) of the mixed, a / sqrt(1 + a^2) of the progressive one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddim_jax.names import check_range

Array = Any


@dataclasses.dataclass(frozen=True)
class FrameNoise:
    """How the noise of frames is correlated.

    Attributes:
        correlation: of neighbouring frames, in [0, 1).
        falling: whether it falls with the distance of frames, as a power, or is that of any two.
    """

    correlation: float
    falling: bool

    def __post_init__(self):
        """Raises ValueError for another correlation."""
        hint = "0.5 is usual; leave the section out for none"
        check_range("config.frame_noise.correlation", self.correlation, "[0, 1)", hint)

    def covariance(self, frames: int) -> np.ndarray:
        """Of a number at one place in all frames, [T, T]."""
        apart = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
        return float(self.correlation) ** (apart if self.falling else np.minimum(apart, 1))

    def __call__(self, z: Array) -> Array:
        """Makes independent standard normals z [B, T, ...] correlated."""
        mix = jnp.asarray(np.linalg.cholesky(self.covariance(z.shape[1])), z.dtype)
        return jnp.einsum("fg,bg...->bf...", mix, z)


def mixed(correlation: float = 0.5) -> FrameNoise:
    """Every frame has a shared and an own part."""
    return FrameNoise(correlation, falling=False)


def progressive(correlation: float = 0.7) -> FrameNoise:
    """Every frame's noise is in part that of the frame before."""
    return FrameNoise(correlation, falling=True)


FRAME_NOISES: dict[str, Callable[..., FrameNoise]] = {"mixed": mixed, "progressive": progressive}
"""By the name that configs use."""
