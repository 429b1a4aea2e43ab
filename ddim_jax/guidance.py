"""Guidance: Network -> Network, away from a prediction that is worse.

Classifier-free guidance goes away from what a network says without its condition, autoguidance from
what a worse network says with it. Both with the convention `F = F_null + g (F_cond - F_null)`:
g = 1 is the conditional network, g = 0 the unconditional one (Ho & Salimans' w is g - 1). At a
fixed (x, t) every parameterization is affine in every other, so guiding F guides x0, eps, v and the
flow alike; only the rescale depends on which, and acts on F.

Sources: Ho & Salimans 2022 (arXiv:2207.12598); interval: Kynkaanniemi et al. 2024
(arXiv:2404.07724); autoguidance: Karras et al. 2024 (arXiv:2406.02507); rescale: Lin et al. 2024
(arXiv:2305.08891), section 3.4; channels: the code of Peebles & Xie 2023 (arXiv:2212.09748), which
guides three of four.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.denoisers import Network
from ddim_jax.predictions import expand, in_pairs, split_pairs
from ddim_jax.schedules import NoiseLevel

Array = Any


class Guidance(NamedTuple):
    """Strength of guidance; all traced, so that new values do not recompile.

    Attributes:
        scale: [B] or scalar, g; 1 is conditional only, 0 unconditional.
        interval: (low, high] in `sigma / alpha` (EDM's sigma) outside of which g is 1; a low end of
            0 is inside.
        rescale: in [0, 1], how far the output's std is brought back to the conditional one's.
        channels: how many of the first channels are guided, as DiT's and SiT's code does; None for
            all.
    """

    scale: Array
    interval: tuple[Array, Array] = (0.0, np.inf)
    rescale: Array = 0.0
    channels: Array | None = None


def classifier_free(net: Network, null_inputs: Any, guidance: Guidance) -> Network:
    """Guides a network away from its null condition, in one batch of twice the size.

    Args:
        net: a network trained with conditions dropped.
        null_inputs: what it was told where they were dropped; shaped like inputs.
        guidance: strength.
    """

    def guided(x: Array, level: NoiseLevel, inputs: Any) -> Array:
        both = jax.tree.map(in_pairs, null_inputs, inputs)
        double = NoiseLevel(*(_twice(f) for f in level))
        null, conditional = split_pairs(net(in_pairs(x, x), double, both))
        return _away(conditional, null, level, guidance)

    return guided


def autoguidance(net: Network, weak: Network, guidance: Guidance) -> Network:
    """Guides a network away from a worse one: smaller, or trained for a shorter time.

    Args:
        net: the better network.
        weak: the worse one, which predicts the same on the same schedule.
        guidance: strength.

    Source: Karras et al. 2024, equation 3.
    """

    def guided(x: Array, level: NoiseLevel, inputs: Any) -> Array:
        return _away(net(x, level, inputs), weak(x, level, inputs), level, guidance)

    return guided


def _away(better: Array, worse: Array, level: NoiseLevel, guidance: Guidance) -> Array:
    """`worse + g (better - worse)`, inside the interval, in the channels, rescaled."""
    low, high = guidance.interval
    # sigma / alpha in (low, high], or from 0 on, without dividing by an alpha of 0
    above = (level.sigma > low * level.alpha) | (jnp.asarray(low) <= 0)
    inside = above & ~(level.sigma > high * level.alpha)
    # each by itself: scales are [B], levels of clips [B, T]
    excess = jnp.where(expand(inside, better) > 0, expand(guidance.scale, better) - 1, 0.0)
    if guidance.channels is not None:
        places = jnp.arange(better.shape[-1]).reshape(*[1] * (better.ndim - 1), -1)
        excess = jnp.where(places < guidance.channels, excess, 0.0)
    output = better + excess * (better - worse)
    axes = tuple(range(1, better.ndim))
    std, wanted = (jnp.std(f, axis=axes, keepdims=True) for f in (output, better))
    ratio = jnp.where(std > 0, wanted / jnp.where(std > 0, std, 1.0), 1.0)
    return output * (1 + jnp.asarray(guidance.rescale, better.dtype) * (ratio - 1))


def _twice(field: Array) -> Array:
    """A level's field for a batch of twice the size: a scalar and [1, T] are of all rows."""
    rank = jnp.ndim(field)
    of_all = rank == 0 or (rank > 1 and field.shape[0] == 1)
    return field if of_all else in_pairs(field, field)
