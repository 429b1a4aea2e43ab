"""Pairs of noise ratios s = sigma / alpha at which a consistency loss compares a trajectory.

A `LevelPairs` draws them, from a grid of N points or not; `Points` say how N grows with the step.

Sources: Song et al. 2023 (arXiv:2303.01469), appendix C; Song & Dhariwal 2023 (arXiv:2310.14189),
section 3.4 and 3.5; Geng et al. 2024 (arXiv:2406.14548), section 3.2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.names import check_range

Array = Any


class LevelPairs(NamedTuple):
    """A sampler of pairs of noise ratios.

    Attributes:
        sample: (keys [B], step) -> (high [B], low [B]), noise ratios, high > low >= 0.
        lowest: the least ratio it can draw, where the network must be the identity.
        points: step -> N, of a grid; None if there is no grid.
    """

    sample: Callable[[Array, Array], tuple[Array, Array]]
    lowest: float
    points: Callable[[Array], Array] | None = None


Points = Callable[[Array], Array]
"""step -> N, the number of points of a grid."""


def constant(points: int = 18) -> Points:
    """A constant number; 18 for CIFAR-10, 40 otherwise. Source: Song et al. 2023, appendix C."""
    name = "config.loss.pairs.points"
    check_range(name, points, "[2, inf)", "CIFAR-10 used 18", whole=True)
    return lambda step: jnp.float32(points)


def growing(total_steps: int, start: int = 2, end: int = 150) -> Points:
    """`ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1`. Source: Song et al. 2023, app. C."""
    _check_growth(total_steps, start, end)

    def points(step):
        part = jnp.minimum(jnp.asarray(step, jnp.float32) / total_steps, 1.0)
        root = jnp.sqrt(part * ((end + 1) ** 2 - start**2) + start**2)
        return jnp.maximum(1.0, jnp.ceil(root - 1)) + 1

    return points


def doubling(total_steps: int, start: int = 10, end: int = 1280) -> Points:
    """Doubles every K' steps, `min(s0 2^floor(k / K'), s1) + 1`. Source: iCT, equation 14."""
    _check_growth(total_steps, start, end)
    every = int(total_steps // (np.log2(end // start) + 1))

    def points(step):
        doublings = jnp.floor(jnp.asarray(step, jnp.float32) / max(every, 1))
        return jnp.minimum(start * 2.0**doublings, end) + 1

    return points


def adaptive_decay(points: Points, start: int = 2, initial: float = 0.9) -> Callable:
    """Decay mu of the moving target, which grows with the grid: `exp(s0 log(mu0) / (N - 1))`.

    Source: Song et al. 2023, appendix C.
    """
    check_range("config.loss.target_decay.start", start, "[1, inf)", whole=True)
    check_range("config.loss.target_decay.initial", initial, "(0, 1]", "0.9 is usual")
    return lambda step: jnp.exp(start * np.log(initial) / (points(step) - 1))


def _check_growth(total_steps, start, end):
    for name, value in (("total_steps", total_steps), ("start", start), ("end", end)):
        check_range(f"config.loss.pairs.points.{name}", value, whole=True)
    if total_steps < 1 or not 0 < start <= end:
        raise ValueError(
            "config.loss.pairs.points needs total_steps >= 1 and 0 < start <= end, got "
            f"{total_steps}, {start} and {end}"
        )


POINTS: dict[str, Callable[..., Points]] = {
    "constant": constant,
    "growing": growing,
    "doubling": doubling,
}
"""Numbers of points by the name that configs use."""


def grid(
    points: Points | None = None,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    log_normal: tuple[float, float] | None = None,
) -> LevelPairs:
    """Neighbouring points of EDM's grid of N points, evenly spaced in `s^(1/rho)`.

    Args:
        points: step -> N; default `constant()`.
        sigma_min: least ratio; 0 for networks that are the identity there (v, flow, edm).
        sigma_max: greatest ratio.
        rho: 7 crowds points at low noise.
        log_normal: (mean, std) of log s, the density by which a pair is drawn (iCT: -1.1, 2.0);
            None: every pair with the same probability.

    Raises:
        ValueError: not 0 <= sigma_min < sigma_max.
    """
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        check_range(f"config.loss.pairs.{name}", value)
    check_range("config.loss.pairs.rho", rho, "(0, inf)", "7 is usual")
    for value, within in zip(log_normal or (), ("(-inf, inf)", "(0, inf)"), strict=False):
        check_range("config.loss.pairs.log_normal's mean or std", value, within)
    if not 0 <= sigma_min < sigma_max:
        raise ValueError(
            f"config.loss.pairs needs 0 <= sigma_min < sigma_max, got {sigma_min} and {sigma_max}"
        )
    points = points or constant()
    low_root, high_root = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def ratio(n, count):
        part = n / (count - 1)
        value = (low_root + part * (high_root - low_root)) ** rho
        return jnp.where(n <= 0, sigma_min, value)

    def index(keys, count):
        u = jax.vmap(jax.random.uniform)(keys)
        if log_normal is None:
            return jnp.floor(u * (count - 1))
        mean, std = log_normal
        low, high = (
            jax.scipy.stats.norm.cdf((jnp.log(s) - mean) / std) for s in (sigma_min, sigma_max)
        )
        log_s = mean + std * jax.scipy.stats.norm.ppf(low + u * (high - low))
        place = (jnp.exp(log_s / rho) - low_root) / (high_root - low_root)
        return jnp.floor(place * (count - 1))

    def sample(keys, step):
        count = points(step)
        n = jnp.clip(index(keys, count), 0, count - 2)
        return ratio(n + 1, count), ratio(n, count)

    return LevelPairs(sample, sigma_min, points)


def shrinking(
    *,
    every: int,
    base: float = 2.0,
    slope: float = 8.0,
    rate: float = 1.0,
    mean: float = -1.1,
    std: float = 2.0,
    sigma_max: float = np.inf,
) -> LevelPairs:
    """Log-normal high ratios s; low ratios `max(0, s (1 - base^-(stage+1) n(s)))`.

    `n(s) = 1 + slope sigmoid(-rate s)`; the stage grows by 1 every `every` steps, so that the gap
    shrinks. Where the low ratio is 0 the loss is plain denoising: so training begins at low noise.

    Args:
        every: number of steps of a stage.
        base: q of the paper, 2 for CIFAR-10, 4 for ImageNet 64 x 64; 256 with one stage.
        slope: k of the paper; 0 for a gap in constant proportion to s.
        rate: b of the paper.
        mean: of log s.
        std: of log s.
        sigma_max: greatest ratio.

    Source: Geng et al. 2024, section 3.2 and the authors' code.
    """
    check_range("config.loss.pairs.every", every, "[1, inf)", whole=True)
    check_range("config.loss.pairs.base", base, "(1, inf)")
    check_range("config.loss.pairs.slope", slope, "[0, inf)")
    check_range("config.loss.pairs.rate", rate)
    check_range("config.loss.pairs.mean", mean, "[-50, 50]")
    check_range("config.loss.pairs.std", std, "[0, 50]")
    if sigma_max != np.inf:
        check_range("config.loss.pairs.sigma_max", sigma_max, "(0, inf)")

    def sample(keys, step):
        high = jnp.exp(mean + std * jax.vmap(jax.random.normal)(keys))
        high = jnp.minimum(high, sigma_max)
        stage = jnp.floor(jnp.asarray(step, jnp.float32) / every)
        share = base ** -(stage + 1) * (1 + slope * jax.nn.sigmoid(-rate * high))
        return high, jnp.maximum(high * (1 - share), 0.0)

    return LevelPairs(sample, 0.0)


PAIRS: dict[str, Callable[..., LevelPairs]] = {"grid": grid, "shrinking": shrinking}
"""Samplers of pairs by the name that configs use."""
