"""Consistency models in continuous time: the derivative of f along the trajectory goes to zero.

In TrigFlow's coordinates, where tan(a) = sigma / (alpha sigma_data) and x, x0 and eps have unit
scale, `x = cos(a) x0 + sin(a) eps`; the network's angular velocity is `F = cos(a) eps - sin(a) x0`
whatever it predicts, and its consistency function is `f = cos(a) x - sin(a) F`, the identity at
a = 0. With dx/da from the data (training) or from a teacher (distillation),

    cos(a) df/da = -cos(a)^2 (F - dx/da) - r (cos(a) sin(a) x + T)
    T = the derivative of F along (cos(a) sin(a) dx/da, cos(a) sin(a)), by one JVP
    loss = |F - stop_gradient(F + g)|^2,   g = cos(a) df/da / (|cos(a) df/da| + 0.1)

where r rises from 0 to 1 in the first steps.

Source: Lu & Song 2024 (arXiv:2410.11081), sections 3 and 4 and algorithm 1, without the learned
weight of the loss.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ddim_jax.losses.loss import (
    Loss,
    Net,
    check_boundary,
    check_dropout,
    check_guidance,
    conditions,
    conditions_with_scale,
    split,
)
from ddim_jax.names import check_range
from ddim_jax.predictions import expand

Array = Any


def continuous_consistency(
    net: Net,
    *,
    sigma_data: float = 0.5,
    mean: float = -1.0,
    std: float = 1.4,
    warmup_steps: int = 10_000,
    tangent_floor: float = 0.1,
    distil: bool = False,
    guidance: tuple[float, float] | None = None,
    label_dropout: float = 0.0,
    teacher: Net | None = None,
) -> Loss:
    """sCM: training (sCT) or distillation (sCD).

    Args:
        net: the network; its x0 is the consistency function. It must be differentiable in x and
            model_time, and does best with an embedding of low frequencies of the latter.
        sigma_data: standard deviation of the data.
        mean: of log(sigma / alpha).
        std: of log(sigma / alpha).
        warmup_steps: in which r rises to 1.
        tangent_floor: c, added to the norm that the tangent is divided by.
        distil: the trajectory's direction is the teacher's, not that of the data and noise.
        guidance: range of the scale that all networks take as an input (see `guided`), for
            distillation from a teacher that is told it, or guided by it; None: none.
        label_dropout: probability that the inputs of a row become null, for all networks.
        teacher: if another network than the student's, or one that predicts something else.

    Raises:
        ValueError: a probability out of range, guidance without a teacher or classes, or a
            parameterization that is not the identity at the clean end.
    """
    check_dropout(label_dropout)
    check_guidance(guidance, net.null, teacher)
    if guidance is not None and not distil:
        raise ValueError(
            "config.loss.guidance is what a teacher was told: set config.loss.distil=True"
        )
    check_range("config.loss.sigma_data", sigma_data, "(0, 1000]", "0.5 is usual")
    check_range("config.loss.mean", mean, "[-50, 50]")
    check_range("config.loss.std", std, "[0, 50]")
    check_range("config.loss.warmup_steps", warmup_steps, "[0, inf)", whole=True)
    check_range("config.loss.tangent_floor", tangent_floor, "(0, inf)", "0.1 is usual")
    check_boundary(net, 0.0)
    teacher = teacher or net

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"] / sigma_data
        time_key, eps_key, drop_key, dropout_keys = split(keys, 4)
        ratio = jnp.exp(mean + std * jax.vmap(jax.random.normal)(time_key))
        angle = jnp.arctan(ratio / sigma_data)
        eps = net.noise(eps_key, x0)
        cos, sin = expand(jnp.cos(angle), x0), expand(jnp.sin(angle), x0)
        x = cos * x0 + sin * eps
        if guidance is None:  # whose keys go on as in runs that began without this option
            inputs = conditions(batch, drop_key, net.null, label_dropout)
        else:
            inputs = conditions_with_scale(batch, drop_key, net.null, label_dropout, guidance)
        slope = cos * eps - sin * x0
        if distil:
            slope = _velocity(teacher, frozen["teacher"], sigma_data, x, angle, inputs)

        def velocity(params, x, angle):
            return _velocity(net, params, sigma_data, x, angle, inputs, dropout_keys)

        directions = (cos * sin * slope, (cos * sin).reshape(angle.shape))
        fixed = jax.lax.stop_gradient(params)
        fixed_output, change = jax.jvp(lambda *at: velocity(fixed, *at), (x, angle), directions)
        r = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / max(warmup_steps, 1))
        tangent = tangent_of(fixed_output, change, x, slope, angle, r)
        norm = jnp.sqrt(jnp.sum(tangent**2, axis=tuple(range(1, x.ndim)), keepdims=True))
        target = jax.lax.stop_gradient(fixed_output + tangent / (norm + tangent_floor))
        output = velocity(params, x, angle)
        value = jnp.mean((output - target) ** 2)
        x0_hat = sigma_data * (cos * x - sin * output)
        squared = jnp.mean((x0_hat - batch["image"]) ** 2)
        return value, {"loss": value, "mse_x0": squared, "tangent": jnp.mean(norm)}

    return Loss(compute, needs_teacher=distil)


def _velocity(net, params, sigma_data, x, angle, inputs, dropout_keys=None) -> Array:
    """Angular velocity `cos(a) eps - sin(a) x0` at x [B, ...] of unit scale and angles [B]."""
    level = net.schedule.level(net.schedule.time_of(-jnp.log(sigma_data * jnp.tan(angle))))
    scale = jnp.sqrt((sigma_data * level.alpha) ** 2 + level.sigma**2)
    x = expand(scale, x) * x
    x0, eps = net.predict(params, x, level, inputs, dropout_keys)
    cos, sin = expand(jnp.cos(angle), x), expand(jnp.sin(angle), x)
    return cos * eps - sin * x0 / sigma_data


def tangent_of(output: Array, change: Array, x: Array, slope: Array, angle: Array, r: Array):
    """`cos(a) df/da` with its unstable part times r; all [B, ...] but angle [B].

    Source: Lu & Song 2024, equation 8 and section 4.1.
    """
    cos, sin = expand(jnp.cos(angle), x), expand(jnp.sin(angle), x)
    return -(cos**2) * (output - slope) - r * (cos * sin * x + change)
