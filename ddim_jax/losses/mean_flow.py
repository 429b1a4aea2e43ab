"""MeanFlow: the network is the mean velocity of the flow over an interval.

u(x, r, t), with `scalars=("interval",)` that is told t - r, jumps `x_r = x_t - (t - r) u` (noise is
at t = 1). Differentiating `(t - r) u = integral of v from r to t` along the flow gives its target,

    u = v - (t - r) du/dt,      du/dt = v . grad_x u + d_t u   (r fixed), by one JVP

Source: Geng et al. 2025 (arXiv:2505.13447), section 4 and algorithm 1.
"""

import jax
import jax.numpy as jnp

from ddim_jax.denoisers import Apply
from ddim_jax.losses.loss import Loss, add_noise, check_dropout, labels, normal_like, split
from ddim_jax.predictions import Parameterization, expand
from ddim_jax.schedules import NoiseLevel, Schedule


def mean_flow(
    apply: Apply,
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    mean: float = -0.4,
    std: float = 1.0,
    same: float = 0.75,
    power: float = 1.0,
    floor: float = 0.01,
    omega: float = 1.0,
    kappa: float = 0.0,
    num_classes: int = 0,
    label_dropout: float = 0.0,
) -> Loss:
    """The MeanFlow identity as a regression.

    Args:
        apply: the network, `(params, x, model_time, cond, dropout_key) -> F`; cond has "interval".
        schedule: `rectified_flow` without shift.
        parameterization: `flow`.
        mean: of logit(t) and logit(r); the greater of the two is t.
        std: of both.
        same: share of samples with r = t, which is flow matching.
        power: p of the adaptive weight `1 / (|error|^2 + floor)^p`.
        floor: of that weight.
        omega: guidance that is trained in: the velocity is `omega v + (1 - omega - kappa) u(null) +
            kappa u(label)`, whose effective scale is `omega / (1 - kappa)`; 1 with kappa 0: none.
        kappa: see omega.
        num_classes: of a class-conditional network, whose null label is num_classes; 0 if without.
        label_dropout: probability with which a label becomes the null label.

    Raises:
        ValueError: another schedule or prediction, a share out of range, guidance without classes.
    """
    check_dropout(label_dropout)
    check_flow(schedule, parameterization, "mean_flow")
    if not 0 <= same <= 1:
        raise ValueError(f"loss.same must be in [0, 1], got {same}; 0.75 is the paper's")
    guided = omega != 1 or kappa != 0
    if guided and not (num_classes and label_dropout):
        raise ValueError("loss.omega and loss.kappa need num_classes and label_dropout > 0")

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        time_key, same_key, eps_key, label_key, dropout_key = split(keys, 5)
        both = jax.vmap(lambda key: jax.random.normal(key, (2,)))(time_key)
        both = jax.nn.sigmoid(mean + std * both)
        t, r = both.max(axis=1), both.min(axis=1)
        r = jnp.where(jax.vmap(jax.random.uniform)(same_key) < same, t, r)
        eps = normal_like(eps_key, x0)
        x, velocity = add_noise(x0, eps, NoiseLevel(t, 1 - t, t, t)), eps - x0
        cond = labels(batch, label_key, num_classes, label_dropout)

        def mean_velocity(params, x, t, interval, cond=cond):
            cond = (cond or {}) | {"interval": interval}
            return apply(params, x, schedule.level(t).model_time, cond, dropout_key[0])

        still = jax.lax.stop_gradient(params)
        if guided:
            null = {"label": jnp.full_like(cond["label"], num_classes)}
            now, nothing = (
                mean_velocity(still, x, t, 0 * t),
                mean_velocity(still, x, t, 0 * t, null),
            )
            mixed = omega * velocity + (1 - omega - kappa) * nothing + kappa * now
            has_label = expand((cond["label"] < num_classes).astype(x.dtype), x)
            velocity = velocity + has_label * (mixed - velocity)
        tangents = (velocity, jnp.ones_like(t), jnp.ones_like(t))
        _, change = jax.jvp(lambda *at: mean_velocity(still, *at), (x, t, t - r), tangents)
        wanted = jax.lax.stop_gradient(velocity - expand(t - r, x) * change)
        error = mean_velocity(params, x, t, t - r) - wanted
        squared = jnp.sum(error**2, axis=tuple(range(1, x.ndim)))
        weight = jax.lax.stop_gradient(1 / (squared + floor) ** power)
        value = jnp.mean(weight * squared)
        return value, {"loss": value, "mse_flow": jnp.mean(squared) / x0[0].size}

    return Loss(compute)


def check_flow(schedule: Schedule, parameterization: Parameterization, name: str) -> None:
    """Raises ValueError unless the network predicts the velocity of an unshifted straight path."""
    level = schedule.level(schedule.t_span[0] / 2)
    row = parameterization(level)
    straight = schedule.t_span == (1.0, 0.0) and abs(level.alpha - 0.5) < 1e-6
    straight = straight and abs(level.sigma - 0.5) < 1e-6
    if not straight or (row.x0_weight, row.eps_weight) != (-1.0, 1.0):
        raise ValueError(
            f"loss '{name}' needs schedule 'rectified_flow' with shift 1 and prediction 'flow', "
            f"got schedule {schedule.name!r}"
        )
