"""The variational bound of a network as DDPM's chain, in bits per dimension.

Over the levels 0..S-1 of a stride, noise to clean, with `s = sigma / alpha` and x0hat the network's
estimate at level i, the bound on `-log P(u)` of an image u (x0 in [-1, 1]) is the sum of

    prior     KL(q(x_0 | x0) || N(0, prior_std^2 I)) at level 0
    steps     KL(q(x_j | x_i, x0) || q(x_j | x_i, x0hat)), j = i + 1,
              = (1 / s_j^2 - 1 / s_i^2) |x0 - x0hat|^2 / 2
    decoder   -log P(u | x0hat) at level S-1: Gaussian noise, bins of 2/255, the outer ones open

That is for the posterior's variance. With that of the forward step, a step is
`k KL + D (k - 1 - log k) / 2`, `k = (sigma_j / sigma_i)^2`. The decoder's variance is s^2 at its
level, again the forward step's (beta_1 of DDPM; the released code takes the posterior's of the step
before, which is far too small where steps are). Any x0hat gives a bound, a clipped one too.

Sources: Ho et al. 2020 (arXiv:2006.11239), equations 5 and 13; Nichol & Dhariwal 2021
(arXiv:2102.09672), section 2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_ndtr

from ddim_jax import data, sampling
from ddim_jax.denoisers import Apply
from ddim_jax.predictions import Parameterization, expand
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.strides.adaptive import elbo_costs

Array = Any


class Bound(NamedTuple):
    """The terms of the variational bound, in bits per dimension of each image.

    Attributes:
        prior: [B].
        steps: [B, M], of the steps `index`.
        decoder: [B].
        index: int [B, M], 0 for the noisiest step; all of them, or a random choice.
        total: [B], the bound; the chosen steps stand for all.
    """

    prior: np.ndarray
    steps: np.ndarray
    decoder: np.ndarray
    index: np.ndarray
    total: np.ndarray


def make_errors(
    apply: Apply, parameterization: Parameterization, *, clip: str = "static"
) -> Callable[..., tuple[Array, Array]]:
    """A jitted `f(params, images, keys, index, levels, cond=None) -> (errors [R, B], x0 [B, ...])`.

    For the images uint8 [B, H, W, C] noised to `levels[index[r, b]]`, R rounds in one scan: the
    squared errors of x0 summed over dimensions, and x0 itself in the last round. An image's noise
    at a level depends on its key alone. Levels are a NoiseLevel of float32 [S].

    Args:
        apply: the network, `(params, x, model_time, cond) -> F`.
        parameterization: what it predicts.
        clip: of the clean estimate, see `denoisers.CLIPS`.
    """
    clipped = sampling.make_denoiser(apply, parameterization, None, clip, None)

    def errors(params, images, keys, index, levels: NoiseLevel, cond=None):
        denoise, x0 = clipped(params, cond, None), data.to_unit_range(images)

        def evaluate(_, which):
            level = jax.tree.map(lambda field: field[which], levels)
            own = jax.vmap(jax.random.fold_in)(keys, which)
            eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], x0.dtype))(own)
            guess = denoise(expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps, level).x0
            return guess, jnp.sum((x0 - guess) ** 2, axis=tuple(range(1, x0.ndim)))

        guess, squared = jax.lax.scan(evaluate, jnp.zeros_like(x0), index)
        return squared, guess

    return jax.jit(errors)


def variational_bound(
    errors: Callable[..., tuple[Array, Array]],
    schedule: Schedule,
    times: np.ndarray,
    images: Array,
    keys: Array,
    *,
    terms: int | None = None,
    variance: str = "small",
) -> Bound:
    """The variational bound of images, with one noise for each of its terms.

    Args:
        errors: of `make_errors`, with parameters and condition bound:
            `(images, keys, index, levels)`.
        schedule: the forward process.
        times: [S + 1] noise to clean, the stride of the chain.
        images: uint8 [B, H, W, C].
        keys: [B].
        terms: M, how many of the S - 1 steps to take, chosen for each image; None for all.
        variance: "small" is the posterior's, "large" the forward step's, see `solvers.ddpm`.

    Raises:
        ValueError: a stride that does not end at the clean image; terms or variance out of range.

    Source: Ho et al. 2020, equation 5 and section 3.3; Nichol & Dhariwal 2021, section 2.
    """
    total_steps = check_bound(schedule, times, terms, variance)
    level, count, images = schedule.level(times[:-1]), len(images), np.asarray(images)
    index = np.broadcast_to(np.arange(total_steps), (count, total_steps))
    if terms is not None:
        random = map(np.random.default_rng, np.asarray(jax.random.key_data(keys)))
        index = np.stack([rng.choice(total_steps, terms, replace=False) for rng in random])
    rounds = np.append(index, np.full((count, 1), total_steps), 1).T  # the last: the decoder
    levels = NoiseLevel(*(np.asarray(field, np.float32) for field in level))
    mse, x0 = jax.device_get(errors(images, keys, jnp.asarray(rounds), levels))
    with np.errstate(divide="ignore"):
        ratio = level.sigma / level.alpha
    size, cost = images[0].size, np.diagonal(elbo_costs(ratio, np.ones_like(ratio)), 1)
    k = (level.sigma[1:] / level.sigma[:-1]) ** 2 if variance == "large" else np.ones_like(cost)
    steps = (size * (k - 1 - np.log(k)) / 2)[index] + (k * cost)[index] * mse[:-1].T
    decoder = -np.sum(log_bin(images, x0, ratio[-1]), axis=tuple(range(1, x0.ndim)))
    prior = prior_divergence(schedule, times[0], images)
    total = prior + decoder + total_steps * (steps.mean(1) if total_steps else 0.0)
    to_bits = 1 / (size * np.log(2))
    return Bound(to_bits * prior, to_bits * steps, to_bits * decoder, index, to_bits * total)


def check_bound(schedule: Schedule, times: np.ndarray, terms: int | None, variance: str) -> int:
    """How many steps there are before the decoder; raises ValueError, see `variational_bound`."""
    if variance not in ("small", "large"):
        raise ValueError(
            f"variance must be 'small' (posterior) or 'large' (sigma-hat), got {variance!r}"
        )
    if times[-1] != schedule.t_span[1]:
        raise ValueError(
            f"the bound's chain ends at the clean image, t = {schedule.t_span[1]}, got "
            f"{times[-1]}; use a stride with terminal='zero'"
        )
    total_steps = len(times) - 2
    if terms is not None and not 1 <= terms <= total_steps:
        raise ValueError(
            f"terms must be 1..{total_steps}, the steps before the decoder's, got {terms}; leave "
            "it out for all"
        )
    return total_steps


def prior_divergence(schedule: Schedule, t: float, images: np.ndarray) -> np.ndarray:
    """[B] nats, `KL(q(x_t | x0) || N(0, prior_std^2))` of uint8 images [B, ...]."""
    level, std = schedule.level(t), schedule.prior_std(t)
    x0 = np.asarray(images, np.float64).reshape(len(images), -1) / 127.5 - 1
    k = (level.sigma / std) ** 2
    return np.sum(k - 1 - np.log(k) + (level.alpha * x0 / std) ** 2, 1) / 2


def log_bin(image: np.ndarray, mean: np.ndarray, std: float) -> np.ndarray:
    """Log of the mass that N(mean, std^2) has in each pixel's bin of 2/255; outer ones are open.

    In float64, and exact in the tails, where the published codes take at least 1e-12.
    Source: Ho et al. 2020, equation 13.

    Args:
        image: uint8.
        mean: like the image, in [-1, 1] or not.
        std: standard deviation, above 0.
    """
    away = np.asarray(image, np.float64) / 127.5 - 1 - mean
    low = np.where(image == 0, -np.inf, away - 1 / 255) / std
    high = np.where(image == 255, np.inf, away + 1 / 255) / std
    low, high = np.where(low > 0, (-high, -low), (low, high))  # where the cdf is not near 1
    below, above = log_ndtr(low), log_ndtr(high)
    return above + np.log(-np.expm1(below - above))
