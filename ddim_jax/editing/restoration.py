"""Restoration: draws images that agree with a measurement `y = A x0`, A linear (inpainting, ...).

Three ways to make samples agree with y, as tasks for `sampling.make_sampler`:

    replacement   sets known pixels to `alpha y + sigma z` before every evaluation (masks only);
                  with the table of `repaint`, which goes back and forth, it is RePaint
    ddnm          replaces what A measures in every clean estimate: x0 + A+ (y - A x0)
    dps           moves every clean estimate along the gradient of its error, through the network

All of them put y into the final sample. Use a stochastic sampler, which fits the unknown part to
the known one: `ddim` with eta = 1, or for DDNM `ddnm`, whose eta of 0.85 is another number.

Sources: Song et al. 2021 (arXiv:2011.13456), appendix I.2 (replacement); Lugmayr et al. 2022
(arXiv:2201.09865, RePaint); Wang et al. 2023 (arXiv:2212.00490, DDNM); Chung et al. 2023
(arXiv:2209.14687, DPS); Song et al. 2023 (PiGDM, its covariance).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.denoisers import Denoiser
from ddim_jax.keys import normal
from ddim_jax.names import check_range
from ddim_jax.predictions import Prediction, expand
from ddim_jax.sampling import Task
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.solvers import SolverTable
from ddim_jax.solvers.ddim import posterior
from ddim_jax.solvers.rows import NOISE, POINT, Rows

Array = Any
LEAST_COSINE = 0.1
"""Least cosine between error and gradient that the line search of `dps` reckons with."""


class Known(NamedTuple):
    """What was measured of a batch: y = A x0.

    Attributes:
        y: the measurement.
        mask: of `masking`, [B, H, W, 1], 1 where it is known; of clips [B, T, H, W, 1].
        noise: of `replacement`, the normals [B, H, W, C] that known values are noised with at every
            level; None: fresh ones each time.
    """

    y: Array
    mask: Array | None = None
    noise: Array | None = None


class Operator(NamedTuple):
    """A linear map A, (x0 [B, H, W, C], mask) -> y, and its pseudo-inverse A+, (y, mask) -> x0.

    Clips [B, T, H, W, C] are mapped frame by frame.
    """

    forward: Callable[[Array, Array | None], Array]
    inverse: Callable[[Array, Array | None], Array]


def masking() -> Operator:
    """Keeps the pixels where the mask is 1: inpainting."""
    return Operator(lambda x, mask: mask * x, lambda y, mask: mask * y)


def average(factor: int) -> Operator:
    """Averages over factor x factor pixels: super-resolution.

    Raises:
        ValueError: a factor below 2; (of the maps) an image that it does not divide.
    """
    factor = check_range("factor", factor, "[2, 4096]", whole=True)

    def forward(x, mask=None):
        *which, height, width, channels = x.shape  # samples, of clips frames too
        if height % factor or width % factor:
            raise ValueError(f"{height} x {width} pixels are not divisible by factor {factor}")
        x = x.reshape(*which, height // factor, factor, width // factor, factor, channels)
        return jnp.mean(x, (-4, -2))

    def inverse(y, mask=None):
        return jnp.repeat(jnp.repeat(y, factor, -3), factor, -2)

    return Operator(forward, inverse)


def grey() -> Operator:
    """Averages the colours: colourisation."""
    return Operator(
        lambda x, mask=None: jnp.mean(x, -1, keepdims=True),
        lambda y, mask=None: jnp.repeat(y, 3, -1),
    )


def blur(std: float, floor: float = 0.02) -> Operator:
    """Blurs by a Gaussian of `std` pixels that wraps around at the edges: deblurring.

    Frequencies that are damped below the floor are neither measured nor restored.

    Raises:
        ValueError: a width that is not positive.
    """
    check_range("std", std, "(0, inf)", "1.5 is usual")

    def filtered(x, power):
        rows, columns = np.fft.fftfreq(x.shape[-3])[:, None], np.fft.rfftfreq(x.shape[-2])
        gain = np.exp(-2 * (np.pi * std) ** 2 * (rows**2 + columns**2))
        gain = np.where(gain < floor, 0.0, np.maximum(gain, floor) ** power)
        gain = gain.reshape(*[1] * (x.ndim - 3), *gain.shape, 1).astype(np.complex64)
        spectrum = jnp.fft.rfft2(x, axes=(-3, -2)) * gain
        return jnp.fft.irfft2(spectrum, s=x.shape[-3:-1], axes=(-3, -2)).astype(x.dtype)

    return Operator(lambda x, mask=None: filtered(x, 1.0), lambda y, mask=None: filtered(y, -1.0))


def replacement() -> Task:
    """Replaces known pixels, with noise of the level, before every evaluation.

    Fresh noise suits solvers that draw some in every step, noise that is kept those that draw none.

    Source: Song et al. 2021, appendix I.2.
    """

    def constrain(x: Array, level: NoiseLevel, keys: Array, known: Known) -> Array:
        z = normal(keys, x.shape[1:], x.dtype) if known.noise is None else known.noise
        noisy = expand(level.alpha, x) * known.y + expand(level.sigma, x) * z
        return known.mask * noisy + (1 - known.mask) * x

    return Task(constrain=constrain)


def ddnm(operator: Operator) -> Task:
    """Replaces what was measured in every clean estimate; eps stays the network's own.

    Source: Wang et al. 2023, algorithm 1.
    """

    def wrap(denoise: Denoiser, known: Known) -> Denoiser:
        def replaced(x: Array, level: NoiseLevel) -> Prediction:
            x0, eps = denoise(x, level)
            return Prediction(_project(operator, x0, known), eps)

        return replaced

    return Task(wrap, _at_the_end(operator))


def dps(operator: Operator, scale: float = 1.0) -> Task:
    """Moves every clean estimate towards y, along the gradient through the network.

        g = A+ (y - A x0),   p = (dx0 / dx)^T g,   x0 <- x0 + scale (|g|^2 / <g, p>) p

    `sigma^2 / alpha` times p is the posterior covariance of x0 times g, so that this is the change
    that meets y; the factor is an exact line search, and for a scalar y the result is exact on
    Gaussian data. DPS itself takes steps of a fixed length, tuned to one sampler.

    A scale of 1 meets y along p.

    Source: Chung et al. 2023, algorithm 1; the covariance: Song et al. 2023 (PiGDM), equation 7.
    """

    def wrap(denoise: Denoiser, known: Known) -> Denoiser:
        def moved(x: Array, level: NoiseLevel) -> Prediction:
            (x0, eps), back = jax.vjp(lambda x: denoise(x, level), x)
            error = _project(operator, x0, known) - x0
            (pull,) = back(Prediction(error, jnp.zeros_like(eps)))
            along, square, length = _dot(error, pull), _dot(error, error), _dot(pull, pull)
            along = jnp.maximum(along, LEAST_COSINE * jnp.sqrt(square * length))
            factor = jnp.where(along > 0, square / jnp.where(along > 0, along, 1), 0)
            x0 = x0 + scale * factor * pull
            return Prediction(x0, (x - expand(level.alpha, x) * x0) / expand(level.sigma, x))

        return moved

    return Task(wrap, _at_the_end(operator))


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, tuple(range(1, a.ndim)), keepdims=True)


def repaint(
    schedule: Schedule, times: np.ndarray, jump_length: int = 10, resamplings: int = 10
) -> SolverTable:
    """Returns DDPM's table with jumps back by `jump_length` steps, which are then drawn again.

    A jump adds noise, and is merged into the row before it. (250, 10, 10) takes 2,410 evaluations.

    Args:
        schedule: the forward process.
        times: [steps + 1] the stride, to the clean end.
        jump_length: steps of a jump back.
        resamplings: how often each stretch of steps is drawn; 1 is DDPM's sampler.

    Raises:
        ValueError: a number below 1.

    Source: Lugmayr et al. 2022, section 4.2 and appendix B (the authors' schedule of jumps).
    """
    jump_length = check_range("jump_length", jump_length, "[1, inf)", whole=True)
    resamplings = check_range("resamplings", resamplings, "[1, inf)", whole=True)
    of_x0, of_x, std = posterior(schedule, times)
    a, s = schedule.level(times)[1:3]
    rows = Rows(schedule, times)
    for here, there in _jumps(len(times) - 1, jump_length, resamplings):
        x0 = rows.predict(times[here], x0=1.0)
        back = a[there] / a[here + 1]  # 1 where nothing is gone back
        noise = np.sqrt(np.maximum(s[there] ** 2 - (back * s[here + 1]) ** 2, 0.0))
        clean = of_x0[here] * x0 + of_x[here] * POINT
        rows.move(back * clean + np.hypot(back * std[here], noise) * NOISE)
    return rows.table().validate()


def _jumps(steps: int, length: int, resamplings: int) -> Iterator[tuple[int, int]]:
    """Yields (here, there) of every evaluation: at point `here` of the stride, then at `there`."""
    left = {steps - 1 - n: resamplings - 1 for n in range(0, steps - length, length)}
    here = 0
    while here < steps:
        there = here + 1
        if left.get(there, 0) > 0:
            left[there] -= 1
            there -= length
        yield here, there
        here = there


def _project(operator: Operator, x0: Array, known: Known) -> Array:
    error = known.y - operator.forward(x0, known.mask)
    return x0 + operator.inverse(error, known.mask)


def _at_the_end(operator: Operator) -> Callable:
    def constrain(x: Array, level: NoiseLevel, keys: Array, known: Known) -> Array:
        return jnp.where(level.sigma == 0, _project(operator, x, known), x)

    return constrain
