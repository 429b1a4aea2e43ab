"""Flow maps: one network jumps from any time to any cleaner one along the probability flow.

In the coordinate x / (alpha + sigma) every schedule is a straight path, with t = sigma / (alpha +
sigma), velocity v = eps - x0. A network with `scalars=("interval",)`, told how far its jump goes on
the schedule's own clock, answers with x0 and eps, which one step of DDIM takes to s:

    f(x, t, s) = (1 - s) x0 + s eps = x - (t - s) U,   U = eps - x0

so U is the mean velocity of a jump, at s = t the velocity itself, and any denoiser that can say x0
at pure noise is such a U of jumps of no length. What makes it a flow map, with h = t - s:

    lsd   | d_s f - v(f, s) |^2,  d_s f = U - h d_s U               by a derivative in s alone
    esd   | U - held(v - h dU/dt) |^2,  along (v, 1, 0) in (x, t, s)     MeanFlow's, sCM's
    psd   | U - held(mean of two jumps that meet half-way) |^2             shortcut models'

v is a teacher's velocity, or that of a moving average of the network, which learns it from data in
rows with s = t. lsd needs no derivative by t and x: the embedding of time may be as fast as ever.

Sources: Boffi et al. 2025 (arXiv:2505.18825: lsd, esd, psd); Sabour et al. 2025 (arXiv:2506.14603).
"""

from typing import Any

import jax
import jax.numpy as jnp

from ddim_jax.losses.guides import classifier_free
from ddim_jax.losses.loss import (
    Loss,
    Net,
    add_noise,
    check_dropout,
    check_guidance,
    conditions_with_scale,
    split,
)
from ddim_jax.names import check_range
from ddim_jax.predictions import expand
from ddim_jax.schedules import NoiseLevel, Schedule

Array = Any
KINDS = ("lsd", "esd", "psd")
held = jax.lax.stop_gradient


def flow_map(
    net: Net,
    *,
    kind: str = "lsd",
    distil: bool = False,
    same: float | None = None,
    to_data: float = 0.25,
    target_decay: float = 0.99,
    guidance_scale: float = 1.0,
    guidance: tuple[float, float] | None = None,
    label_dropout: float = 0.0,
    teacher: Net | None = None,
) -> Loss:
    """A flow map, distilled or trained.

    Args:
        net: the network, which takes "interval"; on any schedule, with a prediction that says x0 at
            its noisy end.
        kind: "lsd", "esd" or "psd".
        distil: velocities are a teacher's, not those of data and of the network's average.
        same: share of rows with s = t; default a half, and none of lsd and esd with a teacher,
            which hold there too.
        to_data: share of the other rows with s = 0.
        target_decay: mu of the moving average that velocities and halves are taken from.
        guidance_scale: g by which a teacher is guided, in two evaluations; 1: none.
        guidance: range of the scale that all networks take as an input (see `guided`); None: none.
        label_dropout: probability that the inputs of a row become null, for all networks.
        teacher: if another network than the student's, or one that predicts something else.

    Raises:
        ValueError: an unknown kind, a share out of range, guidance without a teacher or classes, a
            prediction that says nothing about x0 at pure noise.

    Source: Boffi et al. 2025, equations 15 to 18.
    """
    same = (0.0 if distil and kind != "psd" else 0.5) if same is None else same
    _check(net, kind, distil, same, to_data, target_decay, guidance_scale, guidance, label_dropout)
    teacher, schedule = teacher or net, net.schedule
    teacher = classifier_free(teacher, guidance_scale) if guidance_scale != 1 else teacher
    averaged = kind == "psd" or not distil

    def compute(params, frozen, batch, keys, step):
        data = batch["image"]
        pair_key, eps_key, inputs_key, dropout_keys = split(keys, 4)
        clock_t, clock_s = (_clock(schedule, time) for time in _pair(pair_key, same, to_data))
        t, s = (_t_of(schedule.level(clock)) for clock in (clock_t, clock_s))
        h, eps = t - s, net.noise(eps_key, data)
        inputs = conditions_with_scale(batch, inputs_key, net.null, label_dropout, guidance)
        x = add_noise(data, eps, NoiseLevel(t, 1 - t, t, t))

        def mean(params, x, clock, interval):
            told = inputs | {"interval": interval}
            return _velocity(net, params, x, clock, told, dropout_keys)

        def velocity(x, clock):
            if distil:
                return _velocity(teacher, frozen["teacher"], x, clock, inputs)
            told = inputs | {"interval": 0 * clock}
            return _velocity(net, frozen["target"], x, clock, told)

        now = velocity(x, clock_t) if distil and (kind == "esd" or same) else eps - data
        if kind == "lsd":
            at = lambda interval: mean(params, x, clock_t, interval)  # noqa: E731
            u, slope = jax.jvp(at, (clock_t - clock_s,), (jnp.ones_like(t),))
            change = u + expand(h / _pace(schedule, clock_s), x) * slope
            there = velocity(held(x - expand(h, x) * u), clock_s)
            error = change - held(jnp.where(expand(h == 0, x), now, there))
        elif kind == "esd":
            if not distil:
                now = jnp.where(expand(h == 0, x), now, velocity(x, clock_t))
            pace, one = _pace(schedule, clock_t), jnp.ones_like(t)
            fixed = lambda x, clock, gap: mean(held(params), x, clock, gap)  # noqa: E731
            along = (expand(pace, x) * held(now), one, one)
            slope = jax.jvp(fixed, (x, clock_t, clock_t - clock_s), along)[1]
            wanted = now - expand(h / pace, x) * slope
            error = mean(params, x, clock_t, clock_t - clock_s) - held(wanted)
        else:
            halves = _halves(net, frozen["target"], x, t, s, inputs)
            wanted = jnp.where(expand(h == 0, x), now, halves)
            error = mean(params, x, clock_t, clock_t - clock_s) - held(wanted)
        squared = jnp.mean(error**2, axis=tuple(range(1, x.ndim)))
        value = jnp.mean(squared)
        return value, {"loss": value, "loss_jumps": jnp.mean(jnp.where(h > 0, squared, 0))}

    decay = (lambda step: target_decay) if averaged else None
    return Loss(compute, needs_teacher=distil, target_decay=decay)


def _velocity(net: Net, params, x: Array, clock: Array, inputs: dict, dropout_keys=None) -> Array:
    """eps - x0 at x [B, ...] of a straight path and times [B] of the network's schedule."""
    level = net.schedule.level(clock)
    x0, eps = net.predict(
        params, expand(level.alpha + level.sigma, x) * x, level, inputs, dropout_keys
    )
    return eps - x0


def _halves(net: Net, params, x: Array, t: Array, s: Array, inputs: dict) -> Array:
    """The mean velocity of two jumps, from t to half-way and on to s."""
    r = (t + s) / 2
    times = [_clock(net.schedule, time) for time in (t, r, s)]
    first = _velocity(net, params, x, times[0], inputs | {"interval": times[0] - times[1]})
    x = x - expand(t - r, x) * first
    second = _velocity(net, params, x, times[1], inputs | {"interval": times[1] - times[2]})
    return (first + second) / 2


def _pair(keys: Array, same: float, to_data: float) -> tuple[Array, Array]:
    """t and s [B], uniform over 0 <= s <= t <= 1; in some rows s is t, in some of the others 0."""
    u = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)
    t, s = u[:, :2].max(axis=1), u[:, :2].min(axis=1)
    s = jnp.where(u[:, 3] < to_data, 0.0, s)
    return t, jnp.where(u[:, 2] < same, t, s)


def _clock(schedule: Schedule, t: Array) -> Array:
    """The schedule's times at which sigma / (alpha + sigma) is t [B]."""
    inside = jnp.clip(t, 1e-6, 1 - 1e-6)
    clock = schedule.time_of(jnp.log1p(-inside) - jnp.log(inside))
    return jnp.where(t <= 0, schedule.t_span[1], clock)


def _t_of(level: NoiseLevel) -> Array:
    return level.sigma / (level.alpha + level.sigma)


def _pace(schedule: Schedule, clock: Array) -> Array:
    """The derivative of sigma / (alpha + sigma) by the schedule's time, [B]."""
    clock = jnp.maximum(clock, schedule.t_min)
    return jax.jvp(lambda c: _t_of(schedule.level(c)), (clock,), (jnp.ones_like(clock),))[1]


def _check(net, kind, distil, same, to_data, decay, scale, guidance, label_dropout) -> None:
    check_dropout(label_dropout)
    check_guidance(guidance, net.null)
    if kind not in KINDS:
        raise ValueError(f"config.loss.kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check_range("config.loss.same", same, "[0, 1]", "0.5 is usual")
    check_range("config.loss.to_data", to_data, "[0, 1]", "0.25 is usual")
    check_range("config.loss.target_decay", decay, "[0, 1)", "0.99 is usual")
    check_range("config.loss.guidance_scale", scale, "[-1000, 1000]", "1 is none")
    if not distil and (scale != 1 or guidance is not None):
        raise ValueError(
            "config.loss.guidance_scale and config.loss.guidance are a teacher's: set "
            "config.loss.distil=True, or leave them out"
        )
    if scale != 1 and (guidance is not None or not net.null):
        raise ValueError(
            f"config.loss.guidance_scale={scale} needs a class-conditional network, and no "
            "config.loss.guidance, which is the input of a network that guides by itself"
        )
    level = net.schedule.level(net.schedule.t_span[0])
    row = net.parameterization(level)
    det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
    if abs(det) < 1e-6 * abs(level.sigma * row.output_scale):
        raise ValueError(
            "this prediction says nothing about x0 at pure noise, where a flow map begins; use 'v',"
            " 'flow' or 'edm'"
        )
