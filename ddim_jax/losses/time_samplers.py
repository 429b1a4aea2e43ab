"""Samplers of the times at which a loss is evaluated, `keys [B] -> t [B]`.

Sources: Ho et al. 2020 (arXiv:2006.11239); Karras et al. 2022 (arXiv:2206.00364), table 1; Esser et
al. 2024 (arXiv:2403.03206, logit-normal); Lee et al. 2024 (arXiv:2405.20320, U-shaped); Liu et al.
2022 (arXiv:2209.03003, section 3.2: the nodes of k steps); Chen et al. 2024 (arXiv:2407.01392, one
for each frame).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.names import check_range
from ddim_jax.schedules import Schedule
from ddim_jax.strides import uniform as uniform_stride

Array = Any
TimeSampler = Callable[[Array], Array]
"""keys [B] -> t [B]."""


def uniform(schedule: Schedule, low: float = 0.0, high: float = 1.0) -> TimeSampler:
    """Uniform over the indices of a discrete schedule, over the times of a continuous one.

    Args:
        schedule: of the network.
        low: share of the times, from the clean end, below which none is drawn.
        high: share above which none is.
    """
    noise = schedule.t_span[0]
    check_range("config.loss.times.low", low, "[0, 1)", "0 is none")
    check_range("config.loss.times.high", high, "(0, 1]", "1 is none")
    if not low < high:
        raise ValueError(f"config.loss.times needs low < high, got {low} and {high}")

    def sample(keys: Array) -> Array:
        if schedule.num_steps is not None:
            total = schedule.num_steps
            first, last = int(low * total), max(int(low * total) + 1, round(high * total))
            index = jax.vmap(lambda key: jax.random.randint(key, (), first, last))(keys)
            return (index + 1).astype(jnp.float32) / total
        u = low + (high - low) * jax.vmap(jax.random.uniform)(keys)
        return schedule.t_min + (noise - schedule.t_min) * u

    return sample


def log_normal(
    schedule: Schedule,
    mean: float = -1.2,
    std: float = 1.2,
    low: float = 0.0,
    high: float = math.inf,
) -> TimeSampler:
    """`log(sigma / alpha) ~ N(mean, std^2)`. Source: Karras et al. 2022, table 1.

    Args:
        schedule: of the network.
        mean: of the logarithm.
        std: of the logarithm.
        low: least sigma / alpha; what is drawn below is taken there.
        high: greatest one, likewise.
    """
    _check_normal(mean, std)
    check_range("config.loss.times.low", low, "[0, inf)", "0 is none")
    if not low < high:
        raise ValueError(f"config.loss.times needs low < high, got {low} and {high}")

    def sample(keys: Array) -> Array:
        lam = -(mean + std * jax.vmap(jax.random.normal)(keys))
        lam = jnp.clip(lam, -np.log(high), -np.log(low) if low else np.inf)
        return jnp.clip(schedule.time_of(lam), schedule.t_min, schedule.t_span[0])

    return sample


def karras(
    schedule: Schedule,
    low: float = 0.0,
    high: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> TimeSampler:
    """Uniform along EDM's grid of sigma / alpha.

    `s = (u sigma_max^(1/rho) + (1 - u) sigma_min^(1/rho))^rho` at u uniform in [low, high].

    Args:
        schedule: of the network.
        low: least u, in [0, 1).
        high: greatest u, in (0, 1].
        sigma_min: s at u = 0.
        sigma_max: s at u = 1.
        rho: 7 crowds low noise.

    Source: Karras et al. 2022, equation 5; Yin et al. 2024 (arXiv:2405.14867) and their code.
    """
    for name, value in {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}.items():
        check_range(f"config.loss.times.{name}", value, "(0, inf)")
    if not 0 <= low < high <= 1:
        raise ValueError(f"config.loss.times needs 0 <= low < high <= 1, got {low} and {high}")
    first, last = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def sample(keys: Array) -> Array:
        u = low + (high - low) * jax.vmap(jax.random.uniform)(keys)
        lam = -rho * jnp.log(first + u * (last - first))
        return jnp.clip(schedule.time_of(lam), schedule.t_min, schedule.t_span[0])

    return sample


def logit_normal(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """`t = sigmoid(N(mean, std^2))`, for [0, 1] clocks. Source: Esser et al. 2024, eq. 19."""
    _check_unit_clock(schedule, "logit_normal")
    _check_normal(mean, std)

    def sample(keys: Array) -> Array:
        t = jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))
        return jnp.maximum(t, schedule.t_min)

    return sample


def u_shaped(schedule: Schedule, rate: float = 4.0) -> TimeSampler:
    """Density proportional to `exp(rate t) + exp(rate (1 - t))`, for a second rectified flow.

    After Lee et al. 2024, section 4.2 (a symmetric form of their density).
    """
    _check_unit_clock(schedule, "u_shaped")
    check_range("config.loss.times.rate", rate, "(0, inf)", "4 is usual")

    def sample(keys: Array) -> Array:
        side, u = (jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)).T
        t = jnp.log1p(u * jnp.expm1(rate)) / rate  # inverse of the cumulative of exp(rate t)
        return jnp.maximum(jnp.where(side < 0.5, t, 1 - t), schedule.t_min)

    return sample


def nodes(schedule: Schedule, steps: int = 1) -> TimeSampler:
    """The times at which a sampler of `steps` uniform steps evaluates; with 1, t of pure noise.

    Source: Liu et al. 2022, section 3.2 (distillation of a rectified flow to k steps).
    """
    steps = check_range("config.loss.times.steps", steps, "[1, 10000]", whole=True)
    times = uniform_stride(schedule, steps)[:-1]

    def sample(keys: Array) -> Array:
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, steps))(keys)
        return jnp.asarray(times, jnp.float32)[index]

    return sample


def of_frames(
    schedule: Schedule, times: TimeSampler, shares: tuple[float, float]
) -> Callable[[Array, int], Array]:
    """Times of the frames of clips, of three kinds, from each of which a network learns a task.

        share       times of the frames                           the network learns to
        shares[0]   one for all                                   draw a clip
        shares[1]   the clean end for some, one for the others    go on from frames, fill in
        the rest    one for each                                  draw a frame behind the other

    Which are known says `some_known`.

    Args:
        schedule: its clean end.
        times: of which each time is drawn.
        shares: of the first two kinds.

    Returns:
        (keys [B], T) -> t [B, T].

    Raises:
        ValueError: shares that are none.
    """
    if not isinstance(shares, (tuple, list)) or len(shares) != 2:
        raise ValueError(f"config.loss.frame_levels must be two shares, got {shares}; (0.55, 0.25)")
    for share in (*shares, sum(shares)):
        check_range("config.loss.frame_levels", share, "[0, 1]", "(0.55, 0.25) is usual")
    joint, known = shares[0], sum(shares)

    def sample(keys: Array, frames: int) -> Array:
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        own = jax.vmap(fold, in_axes=(0, None))(keys, jnp.arange(frames))
        t = times(own.reshape(-1)).reshape(own.shape)
        kind_keys, known_keys = (
            jax.vmap(lambda key, p=p: jax.random.fold_in(key, frames + p))(keys) for p in range(2)
        )
        kind = jax.vmap(jax.random.uniform)(kind_keys)[:, None]
        t = jnp.where(kind < known, t[:, :1], t)
        some = (kind >= joint) & (kind < known) & some_known(known_keys, frames)
        return jnp.where(some, schedule.t_span[1], t)

    return sample


def some_known(keys: Array, frames: int) -> Array:
    """Which frames of clips are known, bool [B, T]: the first, the first few, or any; never all.

    A quarter of the clips begin with one frame, a quarter with up to half of all; of the others
    each frame is known with a probability of .1 to .6.
    """

    def one(key: Array) -> Array:
        u = jax.random.uniform(key, (4,))
        few = jnp.where(u[1] < 0.5, 1, 1 + jnp.floor(u[2] * (frames // 2)))
        any_of = jax.random.uniform(jax.random.fold_in(key, 1), (frames,)) < 0.1 + 0.5 * u[3]
        known = jnp.where(u[0] < 0.5, jnp.arange(frames) < few, any_of)
        return known & ~known.all()

    return jax.vmap(one)(keys)


def _check_normal(mean: float, std: float) -> None:
    check_range("config.loss.times.mean", mean, "[-50, 50]")
    check_range("config.loss.times.std", std, "[0, 50]")


def _check_unit_clock(schedule: Schedule, name: str) -> None:
    if schedule.t_span != (1.0, 0.0):
        raise ValueError(
            f"config.loss.times.name='{name}' needs a schedule over [0, 1], {schedule.name} has "
            f"{schedule.t_span}; use log_normal"
        )


TIMES: dict[str, Callable[..., TimeSampler]] = {
    "uniform": uniform,
    "log_normal": log_normal,
    "karras": karras,
    "logit_normal": logit_normal,
    "u_shaped": u_shaped,
    "nodes": nodes,
}
"""Time samplers by the name that configs use."""
