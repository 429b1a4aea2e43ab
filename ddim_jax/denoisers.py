"""Network -> Denoiser, and wrappers Denoiser -> Denoiser that act on the clean estimate.

A denoiser answers `Prediction(x0, eps)` with `x = alpha x0 + sigma eps`. A wrapper that changes x0
re-derives eps from it, `eps = (x - alpha x0) / sigma`, so that the identity holds after it too;
`rederive_eps=False` keeps the network's eps, as some published samplers do (DDIM's own code does
not clip at all, improved diffusion clips and re-derives).

Sources: Ho et al. 2020 (arXiv:2006.11239, clipping); Saharia et al. 2022 (arXiv:2205.11487,
dynamic thresholding).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from ddim_jax.dropping import SLOPE
from ddim_jax.predictions import Parameterization, Prediction, expand, predict, split_known
from ddim_jax.schedules import NoiseLevel

Array = Any
Apply = Callable[..., Array]
"""`(params, x [B, ...], model_time [B] or [B, T], inputs[, dropout_keys [B]]) -> F`: the network
as a function; with dropout keys, one a row, it is in training mode."""
Network = Callable[[Array, NoiseLevel, Any], Array]
"""`(x, level, inputs) -> F`; guidance wraps here."""
Denoiser = Callable[[Array, NoiseLevel], Prediction]
"""`(x, level) -> Prediction`; clipping and thresholds wrap here."""


def network(apply: Apply, params: Any) -> Network:
    """Binds parameters, and spreads the level's model time over the batch.

    Model time is [B], or [B, T] where each frame of clips has a level of its own. Of a network that
    is told how far to jump, inputs may hold by how much further it is from t, see `dropping.SLOPE`.
    """

    def call(x: Array, level: NoiseLevel, inputs: Any) -> Array:
        ones = jnp.ones_like(x.reshape(x.shape[0], -1)[:, 0])
        if jnp.ndim(level.model_time) > 1:
            ones = ones[:, None]
        if isinstance(inputs, Mapping) and SLOPE in inputs:
            inputs = dict(inputs)
            slope = inputs.pop(SLOPE)
            inputs |= {"interval": inputs["interval"] + slope * (level.t * ones)}
        return apply(params, x, level.model_time * ones, inputs)

    return call


def denoiser(net: Network, parameterization: Parameterization, inputs: Any = None) -> Denoiser:
    """A denoiser from a network and what it predicts.

    Args:
        net: the network.
        parameterization: see `predictions`; its input scale is applied here.
        inputs: what the network is told, a pytree of [B, ...] arrays, or None.
    """

    def denoise(x: Array, level: NoiseLevel) -> Prediction:
        scale = expand(parameterization(level).input_scale, x)
        output = net(scale * x, level, inputs).astype(x.dtype)
        return predict(parameterization, x, level, output)

    return denoise


def _with_x0(x: Array, level: NoiseLevel, old: Prediction, x0: Array, rederive: bool) -> Prediction:
    if not rederive:
        return Prediction(x0, old.eps)
    level, _ = split_known(level)
    return Prediction(x0, (x - expand(level.alpha, x) * x0) / expand(level.sigma, x))


def clip(denoise: Denoiser, low: float = -1.0, high: float = 1.0, rederive_eps: bool = True):
    """Clips the clean estimate to the range of the data; not for latents, not for inversion.

    Args:
        denoise: the denoiser to wrap.
        low: least value of the data.
        high: greatest value of the data.
        rederive_eps: see the module.

    Source: Ho et al. 2020 (code).
    """

    def clipped(x: Array, level: NoiseLevel) -> Prediction:
        old = denoise(x, level)
        return _with_x0(x, level, old, jnp.clip(old.x0, low, high), rederive_eps)

    return clipped


def dynamic_threshold(
    denoise: Denoiser, quantile: float = 0.995, floor: float = 1.0, rederive_eps: bool = True
) -> Denoiser:
    """Clips each sample's x0 at a quantile of its magnitude, at least `floor`, and rescales it.

    For pixel models at high guidance. Source: Saharia et al. 2022, section 2.3.

    Args:
        denoise: the denoiser to wrap.
        quantile: in (0, 1), of |x0| over one sample.
        floor: least threshold; the magnitude of the data.
        rederive_eps: see the module.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be in (0, 1), got {quantile}; Imagen uses 0.995")

    def thresholded(x: Array, level: NoiseLevel) -> Prediction:
        old = denoise(x, level)
        axes = tuple(range(1, x.ndim))
        limit = jnp.quantile(jnp.abs(old.x0), quantile, axis=axes, keepdims=True)
        limit = jnp.maximum(limit, floor)
        x0 = jnp.clip(old.x0, -limit, limit) * (floor / limit)
        return _with_x0(x, level, old, x0, rederive_eps)

    return thresholded


CLIPS: dict[str, Callable[..., Denoiser]] = {
    "none": lambda denoise: denoise,
    "static": clip,
    "static_x0": functools.partial(clip, rederive_eps=False),
    "dynamic": dynamic_threshold,
}
"""Treatments of the clean estimate by the name that configs use."""
