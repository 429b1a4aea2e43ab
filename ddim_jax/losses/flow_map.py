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

"Align your flow" (AYF) takes esd's residual g as `g / (|g| + 0.1)`, with r h dU/dt where r rises
from 0 to 0.99: it begins as flow matching, which stays in part.

v is a teacher's velocity, or that of a moving average of the network, which learns it from data in
rows with s = t. lsd needs no derivative by t and x: the embedding of time may be as fast as ever.

Sources: Boffi et al. 2025 (arXiv:2505.18825: lsd, esd, psd); Sabour et al. 2025 (arXiv:2506.14603).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
    silent,
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
    jumps: tuple[float, float] | None = None,
    derivative: float = 1.0,
    warmup_steps: int = 0,
    tangent_floor: float | None = None,
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
        jumps: mean and std of logit(h), and s is uniform below 1 - h; None: t and s are uniform.
        derivative: r, how much of esd's derivative counts.
        warmup_steps: of esd, in which r rises from 0.
        tangent_floor: of esd, c of `g / (|g| + c)`, |g| over the whole sample; None: g as it is.
        target_decay: mu of the moving average that velocities and halves are taken from.
        guidance_scale: g by which a teacher is guided, in two evaluations; 1: none.
        guidance: range of the scale that all networks take as an input (see `guided`); None: none.
        label_dropout: probability that the inputs of a row become null, for all networks.
        teacher: if another network than the student's, or one that predicts something else.

    Raises:
        ValueError: an unknown kind, a share out of range, guidance without a teacher or classes, a
            prediction that says nothing about x0 at pure noise.

    Source: Boffi et al. 2025, equations 15 to 18; Sabour et al. 2025 (AYF).
    """
    same = (0.0 if distil and kind != "psd" else 0.5) if same is None else same
    _check(
        net, teacher, kind, distil, same, to_data, target_decay, guidance_scale, guidance,
        label_dropout,
    )  # fmt: skip
    teacher, schedule = teacher or net, net.schedule
    teacher = classifier_free(teacher, guidance_scale) if guidance_scale != 1 else teacher
    _check_tangent(kind, jumps, derivative, warmup_steps, tangent_floor)
    floor, averaged = tangent_floor, kind == "psd" or not distil

    def compute(params, frozen, batch, keys, step):
        data = batch["image"]
        pair_key, eps_key, inputs_key, dropout_keys = split(keys, 4)
        pair = _pair(pair_key, same, to_data, jumps)
        jump = _Jump.between(schedule, *(_clock(schedule, time) for time in pair))
        eps = net.noise(eps_key, data)
        inputs = conditions_with_scale(batch, inputs_key, net.null, label_dropout, guidance)
        x = add_noise(data, eps, NoiseLevel(jump.t, 1 - jump.t, jump.t, jump.t))

        def mean(params, x, clock, interval):
            told = inputs | {"interval": interval}
            return _velocity(net, params, x, clock, told, dropout_keys)

        def velocity(x, clock):
            if distil:
                return _velocity(teacher, frozen["teacher"], x, clock, inputs)
            told = inputs | {"interval": 0 * clock}
            return _velocity(net, frozen["target"], x, clock, told)

        u = functools.partial(mean, params)
        now = velocity(x, jump.clock_t) if distil and (kind == "esd" or same) else eps - data
        if kind == "lsd":
            error = _lsd(u, velocity, now, x, jump)
        elif kind == "esd":
            if not distil:
                now = jnp.where(expand(jump.h == 0, x), now, velocity(x, jump.clock_t))
            share = _share(derivative, step, warmup_steps)
            error = _esd(u, functools.partial(mean, held(params)), now, x, jump, share, floor)
        else:
            halves = _halves(net, frozen["target"], x, jump.t, jump.s, inputs)
            wanted = jnp.where(expand(jump.h == 0, x), now, halves)
            error = u(x, jump.clock_t, jump.interval) - held(wanted)
        squared = jnp.mean(error**2, axis=tuple(range(1, x.ndim)))
        value = jnp.mean(squared)
        return value, {"loss": value, "loss_jumps": jnp.mean(jnp.where(jump.h > 0, squared, 0))}

    decay = (lambda step: target_decay) if averaged else None
    return Loss(compute, needs_teacher=distil, target_decay=decay)


class _Jump(NamedTuple):
    """From t to s, [B] each, and both by the schedule's clock; the derivatives of t and s by it."""

    t: Array
    s: Array
    clock_t: Array
    clock_s: Array
    pace_t: Array
    pace_s: Array

    @classmethod
    def between(cls, schedule: Schedule, clock_t: Array, clock_s: Array) -> "_Jump":
        t, s = (_t_of(schedule.level(clock)) for clock in (clock_t, clock_s))
        return cls(t, s, clock_t, clock_s, *(_pace(schedule, c) for c in (clock_t, clock_s)))

    @property
    def h(self) -> Array:
        """How far it is."""
        return self.t - self.s

    @property
    def interval(self) -> Array:
        """The same by the clock, as the network is told."""
        return self.clock_t - self.clock_s


def _lsd(u: Callable, velocity: Callable, now: Array, x: Array, jump: _Jump) -> Array:
    """`d_s f - held(v(f, s))` with `d_s f = U - h d_s U`; at s = t, U less the velocity there."""
    at = lambda interval: u(x, jump.clock_t, interval)  # noqa: E731
    mean, slope = jax.jvp(at, (jump.interval,), (jnp.ones_like(jump.t),))  # -d_s U by the clock
    change = mean + expand(jump.h / jump.pace_s, x) * slope
    there = velocity(held(x - expand(jump.h, x) * mean), jump.clock_s)
    return change - held(jnp.where(expand(jump.h == 0, x), now, there))


def _esd(
    u: Callable, fixed: Callable, now: Array, x: Array, jump: _Jump, share: Any, floor: float | None
) -> Array:
    """`U - held(v - r h dU/dt)`, along (v, 1, 0) in (x, t, s); or that, g, as `g / (|g| + floor)`.

    Args:
        u: the network's mean velocity, of (x, clock, interval).
        fixed: the same, without a derivative by its parameters.
        now: [B, ...] the velocity v at x.
        x: [B, ...].
        jump: [B].
        share: r; 1 is whole.
        floor: added to the norm; None: there is none.
    """
    one = jnp.ones_like(jump.t)
    along = (expand(jump.pace_t, x) * held(now), one, one)
    mean, slope = jax.jvp(fixed, (x, jump.clock_t, jump.interval), along)
    wanted = now - expand(share * jump.h / jump.pace_t, x) * slope
    if floor is not None:
        g = mean - wanted
        norm = jnp.sqrt(jnp.sum(g**2, axis=tuple(range(1, x.ndim)), keepdims=True))
        wanted = mean - g / (norm + floor)
    return u(x, jump.clock_t, jump.interval) - held(wanted)


def _share(most: float, step: Array, warmup_steps: int) -> Any:
    """How much of the derivative counts, r: rises to `most`."""
    if not warmup_steps:
        return most
    return most * jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / warmup_steps)


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


def _pair(
    keys: Array, same: float, to_data: float, jumps: tuple[float, float] | None
) -> tuple[Array, Array]:
    """t and s [B], uniform over 0 <= s <= t <= 1; in some rows s is t, in some of the others 0."""
    u = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)
    t, s = u[:, :2].max(axis=1), u[:, :2].min(axis=1)
    if jumps is not None:
        z = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1)))(keys)
        h = jax.nn.sigmoid(jumps[0] + jumps[1] * z)
        s = u[:, 0] * (1 - h)
        t = s + h
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


def _check_tangent(kind, jumps, derivative, warmup_steps, floor) -> None:
    check_range("config.loss.derivative", derivative, "[0, 1]", "0.99 is AYF's, 1 all of it")
    check_range("config.loss.warmup_steps", warmup_steps, "[0, inf)", "0 is none", whole=True)
    if floor is not None:
        check_range("config.loss.tangent_floor", floor, "(0, inf)", "0.1 is usual")
    if kind != "esd" and (derivative != 1 or warmup_steps or floor is not None):
        raise ValueError(
            "config.loss.derivative, warmup_steps and tangent_floor are of kind 'esd', got "
            f"{kind!r}; leave them out"
        )
    if jumps is None:
        return
    if not isinstance(jumps, (list, tuple)) or len(jumps) != 2:
        raise ValueError(f"config.loss.jumps must be (mean, std), got {jumps}; (-0.8, 1) is AYF's")
    check_range("the mean of config.loss.jumps", jumps[0], "[-50, 50]", "-0.8 is AYF's")
    check_range("the std of config.loss.jumps", jumps[1], "[0, 50]", "1 is AYF's")


def _check(
    net, teacher, kind, distil, same, to_data, decay, scale, guidance, label_dropout
) -> None:
    check_dropout(label_dropout)
    check_guidance(guidance, net.null, teacher)
    if kind not in KINDS:
        raise ValueError(f"config.loss.kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check_range("config.loss.same", same, "[0, 1]", "0.5 is usual")
    if same == 0 and (kind == "psd" or not distil):
        raise ValueError(
            "config.loss.same=0 leaves no rows in which data or a teacher say where to go; 0.5 is "
            "usual"
        )
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
    if silent(net, net.schedule.t_span[0]):
        raise ValueError(
            "this prediction says nothing about x0 at pure noise, where a flow map begins; use 'v',"
            " 'flow' or 'edm'"
        )
    if (
        kind == "lsd"
        and to_data
        and any(silent(one, net.schedule.t_span[1]) for one in (net, teacher or net))
    ):
        raise ValueError(
            "a network that predicts x0 says nothing about the velocity at the data, where a "
            "quarter of the jumps of kind 'lsd' end; use another kind, config.loss.to_data=0, or a "
            "network that predicts 'v', 'flow' or 'edm'"
        )
