"""Samplers of the times at which a loss is evaluated, `keys [B] -> t [B]`.

Sources: Ho et al. 2020 (arXiv:2006.11239); Karras et al. 2022 (arXiv:2206.00364), table 1; Esser et
al. 2024 (arXiv:2403.03206, logit-normal); Lee et al. 2024 (arXiv:2405.20320, U-shaped); Liu et al.
2022 (arXiv:2209.03003, section 3.2: the nodes of k steps).
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


def uniform(schedule: Schedule) -> TimeSampler:
    """Uniform over the indices of a discrete schedule, over the times of a continuous one."""
    noise = schedule.t_span[0]

    def sample(keys: Array) -> Array:
        if schedule.num_steps is not None:
            total = schedule.num_steps
            index = jax.vmap(lambda key: jax.random.randint(key, (), 0, total))(keys)
            return (index + 1).astype(jnp.float32) / total
        u = jax.vmap(jax.random.uniform)(keys)
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
