"""Data distributions whose denoiser, and probability flow, are known in closed form.

    x = alpha x0 + sigma eps,   x0 ~ sum_i w_i N(m_i, s_i^2),   v_i = alpha^2 s_i^2 + sigma^2
    E[x0 | x] = sum_i r_i (m_i + alpha s_i^2 (x - alpha m_i) / v_i)
    E[eps | x] = sum_i r_i sigma (x - alpha m_i) / v_i,         r_i ~ w_i N(x; alpha m_i, v_i)

All are denoisers `(x, level) -> Prediction` for numpy (float64) and jax alike, at scalar levels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.predictions import Prediction
from ddim_jax.schedules import NoiseLevel


def _numpy_like(x):
    return jnp if isinstance(x, jax.Array) else np


def level_of(alpha, sigma) -> NoiseLevel:
    """A level given by its two coefficients; it has no clock."""
    return NoiseLevel(np.nan, np.asarray(alpha, float), np.asarray(sigma, float), np.nan)


class GaussianData(NamedTuple):
    """N(mean, std^2) in every dimension; std = 0 is a point mass. Fields may be arrays like x."""

    mean: float
    std: float

    def variance(self, level):
        return (level.alpha * self.std) ** 2 + level.sigma**2

    def __call__(self, x, level) -> Prediction:
        above = (x - level.alpha * self.mean) / self.variance(level)
        return Prediction(self.mean + level.alpha * self.std**2 * above, level.sigma * above)

    def flow(self, x, start, end):
        """Along the flow (x - alpha m) / sqrt(alpha^2 std^2 + sigma^2) is constant."""
        growth = np.sqrt(self.variance(end) / self.variance(start))
        return end.alpha * self.mean + (x - start.alpha * self.mean) * growth


class Mixture(NamedTuple):
    """A mixture of Gaussians, in every dimension independently."""

    weights: tuple = (0.3, 0.7)
    means: tuple = (-1.0, 0.6)
    stds: tuple = (0.35, 0.25)

    def __call__(self, x, level) -> Prediction:
        xp = _numpy_like(x)
        w, m, s = (xp.asarray(f, dtype=x.dtype) for f in self)
        shape = (1,) * x.ndim + (len(self.weights),)
        w, m, s = w.reshape(shape), m.reshape(shape), s.reshape(shape)
        variance = (level.alpha * s) ** 2 + level.sigma**2
        above = x[..., None] - level.alpha * m
        log_r = xp.log(w) - xp.log(variance) / 2 - above**2 / (2 * variance)
        largest = log_r.max(-1, keepdims=True)  # a constant: derivatives do not depend on it
        r = xp.exp(log_r - (largest if xp is np else jax.lax.stop_gradient(largest)))
        r = r / r.sum(-1, keepdims=True)
        x0 = (r * (m + level.alpha * s**2 * above / variance)).sum(-1)
        return Prediction(x0, (r * level.sigma * above / variance).sum(-1))

    def flow(self, x, start, end, steps=2000):
        """`reference_flow` of an array, once for the same arguments."""
        ends = (float(part) for level in (start, end) for part in (level.alpha, level.sigma))
        return _flow(self, x.shape, np.float64(x).tobytes(), *ends, steps).copy()


@functools.cache
def _flow(data, shape, x, alpha, sigma, end_alpha, end_sigma, steps):
    ends = level_of(alpha, sigma), level_of(end_alpha, end_sigma)
    return reference_flow(data, np.frombuffer(x).reshape(shape), *ends, steps)


def reference_flow(denoise, x, start, end, steps=2000):
    """The probability flow by classical RK4 over the angle atan2(sigma, alpha), in float64.

    With `z = x / |alpha, sigma|`, `dz = (cos(angle) eps - sin(angle) x0) d angle`.
    """

    def slope(z, angle):
        x0, eps = denoise(z, level_of(np.cos(angle), np.sin(angle)))
        return np.cos(angle) * eps - np.sin(angle) * x0

    first, last = (np.arctan2(level.sigma, level.alpha) for level in (start, end))
    h = (last - first) / steps
    z = x / np.hypot(start.alpha, start.sigma)
    for k in range(steps):
        angle = first + k * h
        k1 = slope(z, angle)
        k2 = slope(z + h / 2 * k1, angle + h / 2)
        k3 = slope(z + h / 2 * k2, angle + h / 2)
        k4 = slope(z + h * k3, angle + h)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z * np.hypot(end.alpha, end.sigma)
