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

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_ndtr

from ddim_jax import data, sampling
from ddim_jax.denoisers import Apply
from ddim_jax.keys import normal
from ddim_jax.predictions import Parameterization, expand
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.strides.from_trajectories import elbo_costs

Array = Any


class Bound(NamedTuple):
    """The terms of the variational bound, in bits per dimension of each image: [B], steps [B, M].

    The steps are those of `index`, 0 for the noisiest: all, or a random choice, whose mean the
    total takes for that of all.
    """

    prior: np.ndarray
    steps: np.ndarray
    decoder: np.ndarray
    index: np.ndarray
    total: np.ndarray


def make_errors(
    apply: Apply, parameterization: Parameterization, *, clip: str = "static"
) -> Callable[..., dict[str, Array]]:
    """A jitted `f(params, levels, images, keys, inputs, guidance=None, index) -> {"errors", "x0"}`.

    It is called like a sampler of `sampling.make_sampler`, of which the arguments are: with the
    levels of a chain (of `Chain.levels`, S of them) for the table, images uint8 [B, H, W, C] for x,
    and `index` [B, R] for what is known. For image b noised to `levels[index[b, r]]` it answers
    with the squared errors of x0 summed over dimensions, "errors" [B, R], and with x0 itself at the
    last of them, "x0" [B, H, W, C]. An image's noise at a level depends on its key alone.
    """
    denoiser = sampling.make_denoiser(apply, parameterization, None, clip, None)

    def errors(params, levels: NoiseLevel, images, keys, inputs, guidance=None, index=None):
        denoise, x0 = denoiser(params, inputs, guidance), data.to_unit_range(images)

        def evaluate(_, which):
            level = jax.tree.map(lambda field: field[which], levels)
            eps = normal(jax.vmap(jax.random.fold_in)(keys, which), x0.shape[1:], x0.dtype)
            x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps
            estimate = denoise(x, level).x0
            return estimate, jnp.sum((x0 - estimate) ** 2, axis=tuple(range(1, x0.ndim)))

        estimate, squared = jax.lax.scan(evaluate, jnp.zeros_like(x0), index.T)
        return {"errors": squared.T, "x0": estimate}

    return jax.jit(errors)


@dataclasses.dataclass(frozen=True)
class Chain:
    """DDPM's chain over a stride, and which terms of its bound are evaluated.

        index = chain.choose(keys)                               # on the host
        result = errors(params, chain.levels, images, keys, inputs, None, index)
        bound = chain.bound(images, index, result["errors"], result["x0"])

    Attributes:
        schedule: the forward process.
        times: [S + 1] noise to clean, the stride of the chain.
        terms: M, how many of the S - 1 steps to evaluate, chosen for each image; None for all.
        variance: "small" is the posterior's, "large" the forward step's, see `solvers.ddpm`.

    Raises:
        ValueError: a stride that does not end at the clean image; terms or variance out of range.

    Source: Ho et al. 2020, equation 5 and section 3.3; Nichol & Dhariwal 2021, section 2.
    """

    schedule: Schedule
    times: np.ndarray
    terms: int | None = None
    variance: str = "small"

    def __post_init__(self):
        if self.variance not in ("small", "large"):
            raise ValueError(
                "variance must be 'small' (posterior) or 'large' (sigma-hat), got "
                f"{self.variance!r}"
            )
        clean = self.schedule.t_span[1]
        if self.times[-1] != clean:
            raise ValueError(
                f"the bound's chain ends at the clean image, t = {clean}, got {self.times[-1]}; "
                "use a stride with terminal='zero'"
            )
        if self.terms is not None and not 1 <= self.terms <= self.steps:
            raise ValueError(
                f"terms must be 1..{self.steps}, the steps before the decoder's, got {self.terms}; "
                "leave it out for all"
            )

    @property
    def steps(self) -> int:
        """Number of steps before the decoder, S - 1."""
        return len(self.times) - 2

    @property
    def nfe(self) -> int:
        """Network evaluations of an image: those of the chosen steps and of the decoder."""
        return 1 + (self.steps if self.terms is None else self.terms)

    @property
    def levels(self) -> NoiseLevel:
        """Levels of the evaluations, float32 [S]."""
        level = self.schedule.level(self.times[:-1])
        return NoiseLevel(*(np.asarray(field, np.float32) for field in level))

    def choose(self, keys: Array) -> np.ndarray:
        """Chooses the steps of each image by its key; int [N, M + 1], the decoder's level last."""
        index = np.broadcast_to(np.arange(self.steps), (len(keys), self.steps))
        if self.terms is not None:
            generators = map(np.random.default_rng, np.asarray(jax.random.key_data(keys)))
            index = np.stack(
                [rng.choice(self.steps, self.terms, replace=False) for rng in generators]
            )
        return np.append(index, np.full((len(keys), 1), self.steps), 1)

    def bound(
        self, images: np.ndarray, index: np.ndarray, errors: np.ndarray, x0: np.ndarray
    ) -> Bound:
        """Computes the variational bound, float64, of images uint8 [N, H, W, C].

        `index` [N, M + 1] is of `choose`; `errors` [N, M + 1] at these levels and `x0` [N, H, W, C]
        at the decoder's are what `make_errors` answers.
        """
        level, index = self.schedule.level(self.times[:-1]), index[:, :-1]
        with np.errstate(divide="ignore"):
            ratio = level.sigma / level.alpha
        size, cost = images[0].size, np.diagonal(elbo_costs(ratio, np.ones_like(ratio)), 1)
        k = np.ones_like(cost)
        if self.variance == "large":
            k = (level.sigma[1:] / level.sigma[:-1]) ** 2
        steps = (size * (k - 1 - np.log(k)) / 2)[index] + (k * cost)[index] * errors[:, :-1]
        decoder = -np.sum(log_bin(images, x0, ratio[-1]), axis=tuple(range(1, x0.ndim)))
        prior = prior_divergence(self.schedule, self.times[0], images)
        total = prior + decoder + self.steps * (steps.mean(1) if self.steps else 0.0)
        to_bits = 1 / (size * np.log(2))
        return Bound(to_bits * prior, to_bits * steps, to_bits * decoder, index, to_bits * total)


def prior_divergence(schedule: Schedule, t: float, images: np.ndarray) -> np.ndarray:
    """Computes `KL(q(x_t | x0) || N(0, prior_std^2))` of uint8 images [B, ...], in nats [B]."""
    level, std = schedule.level(t), schedule.prior_std(t)
    x0 = np.asarray(images, np.float64).reshape(len(images), -1) / 127.5 - 1
    k = (level.sigma / std) ** 2
    return np.sum(k - 1 - np.log(k) + (level.alpha * x0 / std) ** 2, 1) / 2


def log_bin(image: np.ndarray, mean: np.ndarray, std: float) -> np.ndarray:
    """Computes the log of the mass of N(mean, std^2) in each pixel's bin of 2/255.

    The outer bins are open. In float64, and exact in the tails, where the published codes take at
    least 1e-12. The image is uint8, its mean and standard deviation are in units of [-1, 1].

    Source: Ho et al. 2020, equation 13.
    """
    distance = np.asarray(image, np.float64) / 127.5 - 1 - mean
    low = np.where(image == 0, -np.inf, distance - 1 / 255) / std
    high = np.where(image == 255, np.inf, distance + 1 / 255) / std
    low, high = np.where(low > 0, (-high, -low), (low, high))  # to where the cdf is not near 1
    below, above = log_ndtr(low), log_ndtr(high)
    return above + np.log(-np.expm1(below - above))
