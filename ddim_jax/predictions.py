"""What a network's output means: the only home of parameterizations.

A network is trained to output some combination of the clean image and the noise,

    output_scale * F = c * x0 + d * eps          x = alpha * x0 + sigma * eps

so both fields come from one 2 x 2 inverse, straight from (x, F), with `det = alpha d - sigma c`:

    x0 = (d x - sigma output_scale F) / det      eps = (alpha output_scale F - c x) / det

    eps          c = 0, d = 1
    x0           c = 1, d = 0
    v            c = -sigma, d = alpha                        (Salimans & Ho 2022)
    flow         c = -1, d = 1, the velocity eps - x0         (Liu et al. 2022)
    data_flow    c = 1, d = -1, the velocity the other way    (Ma et al. 2024)
    edm          F of Karras et al. 2022: c = sigma / (sd n), d = -alpha sd / n, input x / n,
                 n^2 = sigma^2 + alpha^2 sd^2; equal to -v where alpha^2 + sigma^2 = 1 = sd
    consistency  x0 = c_skip y + c_out F in EDM's coordinate y = x / alpha (Song et al. 2023)

Everything else sees `Prediction(x0, eps)` only. v, flow, edm and consistency with sigma_min = 0 are
finite at both ends; eps cannot say what x0 is at alpha = 0, nor x0 and consistency with another
sigma_min what eps is at sigma = 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ddim_jax.names import check_range
from ddim_jax.schedules import NoiseLevel

Array = Any


class Prediction(NamedTuple):
    """What a denoiser answers; both fields are shaped like x, and `x = alpha x0 + sigma eps`."""

    x0: Array
    eps: Array


class Row(NamedTuple):
    """One parameterization at one noise level; scalars or arrays that broadcast with the level.

    `output_scale * F = x0_weight * x0 + eps_weight * eps`, where F is the network's output on the
    input `input_scale * x`.
    """

    x0_weight: Array
    eps_weight: Array
    input_scale: Array = 1.0
    output_scale: Array = 1.0


Parameterization = Callable[[NoiseLevel], Row]


def eps(level: NoiseLevel) -> Row:
    """The network outputs the noise. Source: Ho et al. 2020, equation 12."""
    return Row(0.0, 1.0)


def x0(level: NoiseLevel) -> Row:
    """The network outputs the clean image."""
    return Row(1.0, 0.0)


def v(level: NoiseLevel) -> Row:
    """The network outputs `v = alpha eps - sigma x0`. Source: Salimans & Ho 2022, appendix D."""
    return Row(-level.sigma, level.alpha)


def flow(level: NoiseLevel) -> Row:
    """The network outputs the velocity `eps - x0`. Source: Liu et al. 2022, equation 1."""
    return Row(-1.0, 1.0)


def data_flow(level: NoiseLevel) -> Row:
    """The network outputs `x0 - eps`. Source: SiT, Ma et al. 2024 (arXiv:2401.08740), section 2."""
    return Row(1.0, -1.0)


def edm(sigma_data: float = 0.5) -> Parameterization:
    """EDM's preconditioned F. Source: Karras et al. 2022, table 1.

    Args:
        sigma_data: standard deviation of the data, in (0, 1000]; 0.5 for images in [-1, 1].

    Raises:
        ValueError: it is out of range.
    """
    check_range("sigma_data", sigma_data, "(0, 1000]", "0.5 is usual")

    def row(level: NoiseLevel) -> Row:
        n = jnp.sqrt(level.sigma**2 + (level.alpha * sigma_data) ** 2)
        return Row(level.sigma / (sigma_data * n), -level.alpha * sigma_data / n, 1 / n)

    return row


def consistency(sigma_data: float = 0.5, sigma_min: float = 0.002) -> Parameterization:
    """A consistency function: exactly the identity at noise ratio `sigma / alpha = sigma_min`.

    Source: Song et al. 2023, appendix C: `c_skip = sd^2 / ((s - s_min)^2 + sd^2)`,
    `c_out = sd (s - s_min) / sqrt(s^2 + sd^2)` with `s = sigma / alpha`; input as in `edm`.

    Args:
        sigma_data: standard deviation of the data, in (0, 1000].
        sigma_min: the noise ratio at which the boundary condition holds, in [0, 1]; 0 for the clean
            end.

    Raises:
        ValueError: one of them is out of range.
    """
    check_range("sigma_data", sigma_data, "(0, 1000]", "0.5 is usual")
    check_range("sigma_min", sigma_min, "[0, 1]", "0.002 is usual")

    def row(level: NoiseLevel) -> Row:
        # times alpha^2 throughout, so that alpha = 0 is finite too, and divided by sigma
        alpha, above = level.alpha, level.sigma - level.alpha * sigma_min
        share = above / level.sigma if sigma_min else 1.0  # 1 at the clean end too
        n = jnp.sqrt(level.sigma**2 + (alpha * sigma_data) ** 2)
        m2 = above**2 + (alpha * sigma_data) ** 2
        skip = alpha * sigma_data**2 / m2  # multiplies x = alpha y
        return Row(share * above / m2, -skip, 1 / n, sigma_data * share / n)

    return row


PREDICTIONS: dict[str, Callable[..., Parameterization]] = {
    "eps": lambda: eps,
    "x0": lambda: x0,
    "v": lambda: v,
    "flow": lambda: flow,
    "data_flow": lambda: data_flow,
    "edm": edm,
    "consistency": consistency,
}
"""Parameterizations by the name that configs use; called with their options."""


def expand(coefficient: Array, x: Array) -> Array:
    """Shapes a coefficient to multiply `x`: a scalar, [B], or of clips [B, T] or [1, T]."""
    coefficient = jnp.asarray(coefficient, x.dtype)
    if not coefficient.ndim:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def in_pairs(a: Array, b: Array) -> Array:
    """[2B, ...]: a row of `a`, one of `b`, in turn, so that none leaves the device that has it."""
    # a batch whose size is not known, as in exported graphs, can be reshaped and not split
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def split_pairs(rows: Array) -> tuple[Array, Array]:
    """The two [B, ...] that `in_pairs` put together."""
    both = rows.reshape(-1, 2, *rows.shape[1:])
    return both[:, 0], both[:, 1]


def split_known(level: NoiseLevel) -> tuple[NoiseLevel, Array | None]:
    """Parts clips' levels, one for each frame, into what to compute with and what is known.

    Args:
        level: scalars or [B], which are returned with None; or [B, T].

    Returns:
        The level, with a sigma of 1 where it was 0, and bool [B, T], where it was: there is no
        noise, and the clean frame is x itself.
    """
    if jnp.ndim(level.sigma) < 2:
        return level, None
    known = level.sigma == 0
    return level._replace(sigma=jnp.where(known, 1.0, level.sigma)), known


def predict(
    parameterization: Parameterization, x: Array, level: NoiseLevel, F: Array
) -> Prediction:  # noqa: N803
    """Turns a network's output into the clean image and the noise.

    Args:
        parameterization: what the network was trained to output.
        x: [B, ...] the noisy sample (not scaled by `input_scale`).
        level: scalars or [B]; of clips also [B, T], one for each frame.
        F: [B, ...] the network's output on `input_scale * x`.

    Returns:
        x0 and eps; of frames whose own level has no noise x itself and zeros.
    """
    level, known = split_known(level)
    row = parameterization(level)
    det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
    scale = row.output_scale
    found = Prediction(
        x0=expand(row.eps_weight / det, x) * x - expand(level.sigma * scale / det, x) * F,
        eps=expand(level.alpha * scale / det, x) * F - expand(row.x0_weight / det, x) * x,
    )
    if known is None:
        return found
    known = expand(known, x) > 0
    return Prediction(jnp.where(known, x, found.x0), jnp.where(known, 0.0, found.eps))


def target(parameterization: Parameterization, prediction: Prediction, level: NoiseLevel) -> Array:
    """What the network should output so that `predict` returns `prediction`."""
    row = parameterization(level)
    like = prediction.x0
    return (
        expand(row.x0_weight / row.output_scale, like) * prediction.x0
        + expand(row.eps_weight / row.output_scale, like) * prediction.eps
    )
