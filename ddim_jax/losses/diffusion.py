"""Denoising: regress what the network predicts, at random noise levels.

    t ~ times,  eps ~ N(0, I),  x = alpha x0 + sigma eps,  loss = weight * mean (F - target)^2

A weighting is given as a weight on `|x0_hat - x0|^2`, a function of lam, which every
parameterization turns into a weight on its own output, `x0_hat - x0 = -(sigma s / det) (F - F*)`,
so that "truncated_snr" means the same for eps, x0, v, flow and EDM's F; "simple" is the plain mean
over F, whatever F is.

Sources: Ho et al. 2020 (arXiv:2006.11239); Salimans & Ho 2022 (arXiv:2202.00512), section 4;
Hang et al. 2023 (arXiv:2303.09556, min-SNR); Karras et al. 2022 (arXiv:2206.00364), table 1;
Esser et al. 2024 (arXiv:2403.03206, logit-normal times); Ho & Salimans 2022 (arXiv:2207.12598).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddim_jax.denoisers import Apply
from ddim_jax.predictions import Parameterization, Prediction, expand, target
from ddim_jax.schedules import Schedule

Array = Any
TimeSampler = Callable[[Array], Array]
"""keys [B] -> t [B]."""
Weighting = Callable[[Array], Array]
"""lam [B] -> weight on the squared error of x0 [B]."""


# --- times ----------------------------------------------------------------------------------------


def uniform(schedule: Schedule) -> TimeSampler:
    """Every index alike on a discrete schedule, every time alike on a continuous one."""
    noise = schedule.t_span[0]

    def sample(keys: Array) -> Array:
        if schedule.num_steps is not None:
            total = schedule.num_steps
            index = jax.vmap(lambda key: jax.random.randint(key, (), 0, total))(keys)
            return (index + 1).astype(jnp.float32) / total
        u = jax.vmap(jax.random.uniform)(keys)
        return schedule.t_min + (noise - schedule.t_min) * u

    return sample


def log_normal(schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """`log(sigma / alpha) ~ N(mean, std^2)`. Source: Karras et al. 2022, table 1."""

    def sample(keys: Array) -> Array:
        lam = -(mean + std * jax.vmap(jax.random.normal)(keys))
        return jnp.clip(schedule.time_of(lam), schedule.t_min, schedule.t_span[0])

    return sample


def logit_normal(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """`t = sigmoid(N(mean, std^2))`, for [0, 1] clocks. Source: Esser et al. 2024, eq. 19."""
    if schedule.t_span != (1.0, 0.0):
        raise ValueError(
            f"logit_normal times need a schedule over [0, 1], {schedule.name} has "
            f"{schedule.t_span}; use log_normal"
        )

    def sample(keys: Array) -> Array:
        t = jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))
        return jnp.maximum(t, schedule.t_min)

    return sample


TIMES: dict[str, Callable[..., TimeSampler]] = {
    "uniform": uniform,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
}
"""Time samplers by name."""


# --- weightings -----------------------------------------------------------------------------------


def truncated_snr() -> Weighting:
    """max(SNR, 1): the larger of the errors in x0 and eps. Source: Salimans & Ho 2022, eq. 9."""
    return lambda lam: jnp.maximum(jnp.exp(2 * lam), 1.0)


def snr_plus_one() -> Weighting:
    """SNR + 1: the plain error in v. Source: Salimans & Ho 2022, equation 10."""
    return lambda lam: jnp.exp(2 * lam) + 1.0


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma). Source: Hang et al. 2023, section 3.4."""
    return lambda lam: jnp.minimum(jnp.exp(2 * lam), gamma)


def edm(sigma_data: float = 0.5) -> Weighting:
    """`SNR + 1 / sigma_data^2`: EDM's `(s^2 + sd^2) / (s sd)^2`, the plain error in its F."""
    return lambda lam: jnp.exp(2 * lam) + 1 / sigma_data**2


WEIGHTINGS: dict[str, Callable[..., Weighting] | None] = {
    "simple": None,
    "truncated_snr": truncated_snr,
    "snr_plus_one": snr_plus_one,
    "min_snr": min_snr,
    "edm": edm,
}
"""Weightings by name; "simple" is the plain mean of the network's own error."""


# --- the loss -------------------------------------------------------------------------------------


def diffusion(
    apply: Apply,
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    times: TimeSampler | None = None,
    weighting: Weighting | None = None,
    num_classes: int = 0,
    label_dropout: float = 0.0,
) -> Callable:
    """The denoising loss.

    Args:
        apply: the network, `(params, x, model_time, cond, dropout_key) -> F`.
        schedule: the forward process.
        parameterization: what the network predicts.
        times: keys [B] -> t [B]; default `uniform(schedule)`.
        weighting: weight on the squared error of x0, by lam; None is "simple".
        num_classes: of a class-conditional network, whose null label is num_classes; 0 if without.
        label_dropout: probability with which a label becomes the null label.

    Returns:
        A `Loss`; its metrics are "loss" and "mse_x0", the unweighted mean error of x0.

    Raises:
        ValueError: label_dropout outside [0, 1].

    Source: Ho et al. 2020, equation 14; Salimans & Ho 2022, section 4.
    """
    if not 0 <= label_dropout <= 1:
        raise ValueError(f"label_dropout must be in [0, 1], got {label_dropout}; 0.1 is usual")
    times = times or uniform(schedule)

    def loss(params, frozen, batch, keys, step):
        x0 = batch["image"]
        t_key, eps_key, label_key, dropout_key = (
            jax.vmap(lambda key, p=purpose: jax.random.fold_in(key, p))(keys)
            for purpose in range(4)
        )
        level = schedule.level(times(t_key))
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], x0.dtype))(eps_key)
        x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps
        row = parameterization(level)
        cond = labels(batch, label_key, num_classes, label_dropout)
        output = apply(
            params, expand(row.input_scale, x) * x, level.model_time, cond, dropout_key[0]
        )
        error = output - target(parameterization, Prediction(x0, eps), level)
        squared = jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))
        det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
        to_x0 = (level.sigma * row.output_scale / det) ** 2
        weight = 1.0 if weighting is None else weighting(schedule.half_log_snr(level.t)) * to_x0
        value = jnp.mean(weight * squared)
        return value, {"loss": value, "mse_x0": jnp.mean(to_x0 * squared)}

    return loss


def labels(batch: dict, keys: Array, num_classes: int, dropout: float) -> dict | None:
    """The condition of a class-conditional network, each label dropped with that probability."""
    if not num_classes:
        return None
    drop = jax.vmap(jax.random.uniform)(keys) < dropout
    return {"label": jnp.where(drop, num_classes, batch["label"])}
