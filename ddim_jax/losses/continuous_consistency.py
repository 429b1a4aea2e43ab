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

from ddim_jax.denoisers import Apply
from ddim_jax.losses.consistency import check_boundary
from ddim_jax.losses.loss import Loss, Net, check_dropout, labels, normal_like, split
from ddim_jax.predictions import Parameterization, expand
from ddim_jax.schedules import Schedule

Array = Any


def continuous_consistency(
    apply: Apply,
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    sigma_data: float = 0.5,
    mean: float = -1.0,
    std: float = 1.4,
    warmup_steps: int = 10_000,
    tangent_floor: float = 0.1,
    distil: bool = False,
    num_classes: int = 0,
    label_dropout: float = 0.0,
    teacher: Net | None = None,
) -> Loss:
    """sCM: training (sCT) or distillation (sCD).

    Args:
        apply: the network, `(params, x, model_time, cond, dropout_key) -> F`; differentiable in x
            and model_time, and best with an embedding of low frequencies of the latter.
        schedule: the forward process.
        parameterization: what the network predicts; its x0 is the consistency function.
        sigma_data: standard deviation of the data.
        mean: of log(sigma / alpha).
        std: of log(sigma / alpha).
        warmup_steps: in which r rises to 1.
        tangent_floor: c, added to the norm that the tangent is divided by.
        distil: the trajectory's direction is the teacher's, not that of the data and noise.
        num_classes: of a class-conditional network, whose null label is num_classes; 0 if without.
        label_dropout: probability with which all networks see the null label.
        teacher: if another network than the student's, or one that predicts something else.

    Raises:
        ValueError: a probability out of range, or a parameterization that is not the identity at
            the clean end.
    """
    check_dropout(label_dropout)
    check_boundary(schedule, parameterization, 0.0)
    student = Net(apply, parameterization)
    teacher = teacher or student

    def velocity(net, params, x, angle, cond, dropout_key=None):
        """F at x [B, ...] of unit scale and angles [B]."""
        level = schedule.level(schedule.time_of(-jnp.log(sigma_data * jnp.tan(angle))))
        scale = jnp.sqrt((sigma_data * level.alpha) ** 2 + level.sigma**2)
        x = expand(scale, x) * x
        x0, eps = net.predict(params, x, level, cond, dropout_key)
        cos, sin = expand(jnp.cos(angle), x), expand(jnp.sin(angle), x)
        return cos * eps - sin * x0 / sigma_data

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"] / sigma_data
        time_key, eps_key, label_key, dropout_key = split(keys, 4)
        ratio = jnp.exp(mean + std * jax.vmap(jax.random.normal)(time_key))
        angle = jnp.arctan(ratio / sigma_data)
        eps = normal_like(eps_key, x0)
        cos, sin = expand(jnp.cos(angle), x0), expand(jnp.sin(angle), x0)
        x = cos * x0 + sin * eps
        cond = labels(batch, label_key, num_classes, label_dropout)
        slope = cos * eps - sin * x0
        if distil:
            slope = velocity(teacher, frozen["teacher"], x, angle, cond)

        def own(params, x, angle):
            return velocity(student, params, x, angle, cond, dropout_key[0])

        directions = (cos * sin * slope, (cos * sin).reshape(angle.shape))
        still = jax.lax.stop_gradient(params)
        frozen_output, change = jax.jvp(lambda *at: own(still, *at), (x, angle), directions)
        r = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / max(warmup_steps, 1))
        tangent = tangent_of(frozen_output, change, x, slope, angle, r)
        norm = jnp.sqrt(jnp.sum(tangent**2, axis=tuple(range(1, x.ndim)), keepdims=True))
        wanted = jax.lax.stop_gradient(frozen_output + tangent / (norm + tangent_floor))
        output = own(params, x, angle)
        value = jnp.mean((output - wanted) ** 2)
        clean = sigma_data * (cos * x - sin * output)
        squared = jnp.mean((clean - batch["image"]) ** 2)
        return value, {"loss": value, "mse_x0": squared, "tangent": jnp.mean(norm)}

    return Loss(compute, needs_teacher=distil)


def tangent_of(output: Array, change: Array, x: Array, slope: Array, angle: Array, r: Array):
    """`cos(a) df/da` with its unstable part times r; all [B, ...] but angle [B].

    Source: Lu & Song 2024, equation 8 and section 4.1.
    """
    cos, sin = expand(jnp.cos(angle), x), expand(jnp.sin(angle), x)
    return -(cos**2) * (output - slope) - r * (cos * sin * x + change)
