"""MeanFlow: the network is the mean velocity of the flow over an interval.

u(x, r, t), with `scalars=("interval",)` that is told t - r, jumps `x_r = x_t - (t - r) u` (noise is
at t = 1). Differentiating `(t - r) u = integral of v from r to t` along the flow gives its target,

    u = v - (t - r) du/dt,      du/dt = v . grad_x u + d_t u   (r fixed), by one JVP

The improved form takes the derivative along the network's own velocity u(x, t, t) in place of the
data's eps - x0, and so regresses on data alone, `v = u + (t - r) du/dt`. Its guidance scale w may
be an input, drawn with a density of 1 / w: the velocity is then

    v + (1 - 1/w) (u(x, t, t; w, label) - u(x, t, t; 1, null))

whose fixed point is the guided one, `w v(label) + (1 - w) v(null)`.

With prediction `x0` the network answers with a picture y, and u = (x - y) / max(t, 0.05) ("pixel
MeanFlow"): what one step draws is y itself, and no noise has to be undone in it. The velocity of
the data is (x - x0) / max(t, 0.05) then.

Sources: Geng et al. 2025 (arXiv:2505.13447), section 4 and algorithm 1; Geng et al. 2025
(arXiv:2512.02012), the improved form; Lu et al. 2026 (arXiv:2601.22158), in pixels.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.dropping import is_null, nulled
from ddim_jax.losses.loss import (
    VELOCITY,
    Loss,
    Net,
    add_noise,
    check_can_guide,
    check_dropout,
    check_flow,
    check_guidance,
    conditions,
    split,
)
from ddim_jax.names import check_range
from ddim_jax.predictions import expand
from ddim_jax.schedules import NoiseLevel

Array = Any
PREDICTIONS = VELOCITY | {"x0": (1.0, 0.0)}
LEAST_TIME = 0.05
"""Below it an error of a picture counts for no larger error of the velocity."""


def mean_flow(
    net: Net,
    *,
    mean: float = -0.4,
    std: float = 1.0,
    same: float = 0.75,
    power: float = 1.0,
    floor: float = 0.01,
    omega: float = 1.0,
    kappa: float = 0.0,
    guided_times: tuple[float, float] = (0.0, 1.0),
    improved: bool = False,
    guidance: tuple[float, float] | None = None,
    label_dropout: float = 0.0,
) -> Loss:
    """The MeanFlow identity as a regression.

    Args:
        net: the network, which takes "interval"; on `rectified_flow` without shift, with
            prediction `flow` or `x0`.
        mean: of logit(t) and logit(r); the greater of the two is t.
        std: of both.
        same: share of rows with r = t, which is flow matching.
        power: p of the adaptive weight `1 / (|error|^2 + floor)^p`.
        floor: of that weight.
        omega: guidance that is trained in: the velocity is `omega v + (1 - omega - kappa) u(null) +
            kappa u(label)`, whose effective scale is `omega / (1 - kappa)`; 1 with kappa 0: none.
        kappa: see omega.
        guided_times: (low, high), both included: at other t there is no guidance.
        improved: take the derivative along the network's own velocity.
        guidance: (low, high), range of the scale that the network takes as an input, above 0; of
            the improved form. None for none.
        label_dropout: probability that the inputs of a row become null.

    Raises:
        ValueError: another schedule or prediction, a share or time out of range, guidance of a
            network whose inputs are never dropped.
    """
    check_dropout(label_dropout)
    of_pictures = check_flow(net, "mean_flow", PREDICTIONS) == "x0"
    check_range("config.loss.mean", mean, "[-50, 50]")
    check_range("config.loss.std", std, "[0, 50]")
    check_range("config.loss.same", same, "[0, 1]", "0.75 is the paper's")
    check_range("config.loss.power", power, "[0, 10]", "1 is usual")
    check_range("config.loss.floor", floor, "(0, inf)", "0.01 is usual")
    check_range("config.loss.omega", omega, "[-1000, 1000]", "1 is none")
    check_range("config.loss.kappa", kappa, "[-1000, 1]", "its guidance is omega / (1 - kappa)")
    low, high = _check_times(guided_times)
    check_guidance(guidance, net.null)
    guided = omega != 1 or kappa != 0
    if guidance is not None:
        check_range("the lower end of config.loss.guidance", guidance[0], "(0, inf)", "1 is none")
        if guided or not improved:
            raise ValueError(
                "config.loss.guidance is of the improved form, without omega and kappa: set "
                "config.loss.improved=True"
            )
    if guided or guidance is not None:
        options = f"config.loss.omega={omega} and config.loss.kappa={kappa} need"
        if guidance is not None:
            options = f"config.loss.guidance={tuple(guidance)} needs"
        check_can_guide(net, label_dropout, options)

    def velocity_of(x, t, velocity, inputs, u):
        """The velocity of x along the flow, guided at `guided_times` in rows that are not null."""
        if not guided and guidance is None:
            return velocity
        without, a, b = nulled(inputs, net.null), omega, kappa
        if guidance is not None:
            a, b = 1.0, expand(1 - 1 / inputs["guidance"], x)
            without |= {"guidance": jnp.ones_like(t)}
        conditional, null = (u(x, t, 0 * t, told) for told in (inputs, without))
        mixed = a * velocity + (1 - a - b) * null + b * conditional
        kept = ~is_null(inputs, net.null) & (low <= t) & (t <= high)
        return jnp.where(expand(kept, x), mixed, velocity)

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        time_key, same_key, eps_key, drop_key, dropout_keys, scale_key = split(keys, 6)
        t, r = _interval(time_key, same_key, mean, std, same)
        eps = net.noise(eps_key, x0)
        x = add_noise(x0, eps, NoiseLevel(t, 1 - t, t, t))
        inputs = conditions(batch, drop_key, net.null, label_dropout)
        if guidance is not None:
            q = jax.vmap(jax.random.uniform)(scale_key)
            inputs |= {"guidance": guidance[0] * (guidance[1] / guidance[0]) ** q}

        def u(params, x, t, interval, inputs=inputs):
            time = net.schedule.level(t).model_time
            answer = net.apply(params, x, time, inputs | {"interval": interval}, dropout_keys)
            return _toward(answer, x, t) if of_pictures else answer

        fixed = functools.partial(u, jax.lax.stop_gradient(params))
        of_data = _toward(x0, x, t) if of_pictures else eps - x0
        velocity = velocity_of(x, t, of_data, inputs, fixed)
        along = fixed(x, t, 0 * t) if improved else velocity
        tangents = (along, jnp.ones_like(t), jnp.ones_like(t))
        _, change = jax.jvp(fixed, (x, t, t - r), tangents)
        target = jax.lax.stop_gradient(velocity - expand(t - r, x) * change)
        error = u(params, x, t, t - r) - target
        squared = jnp.sum(error**2, axis=tuple(range(1, x.ndim)))
        weight = jax.lax.stop_gradient(1 / (squared + floor) ** power)
        value = jnp.mean(weight * squared)
        return value, {"loss": value, "mse_flow": jnp.mean(squared) / x0[0].size}

    return Loss(compute)


def _toward(picture: Array, x: Array, t: Array) -> Array:
    """The velocity at x, t that leads back to a picture."""
    return (x - picture) / expand(jnp.maximum(t, LEAST_TIME), x)


def _check_times(given: Any) -> tuple[float, float]:
    """(low, high), if 0 <= low < high <= 1; else raises ValueError."""
    ends = np.asarray(given)
    if ends.shape != (2,) or ends.dtype.kind not in "iuf" or not 0 <= ends[0] < ends[1] <= 1:
        raise ValueError(
            f"config.loss.guided_times must be (low, high) with 0 <= low < high <= 1, got {given}; "
            "(0, 1) guides everywhere"
        )
    return float(ends[0]), float(ends[1])


def _interval(
    time_keys: Array, same_keys: Array, mean: float, std: float, same: float
) -> tuple[Array, Array]:
    """Draws t and r [B], r <= t: logit-normal both, r = t in a share `same` of the rows."""
    both = jax.vmap(lambda key: jax.random.normal(key, (2,)))(time_keys)
    both = jax.nn.sigmoid(mean + std * both)
    t, r = both.max(axis=1), both.min(axis=1)
    return t, jnp.where(jax.vmap(jax.random.uniform)(same_keys) < same, t, r)
