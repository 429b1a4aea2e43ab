"""Shortcut models: a flow that is told how long its step is, and learns to take longer ones.

The network s(x, t, d), with `scalars=("interval",)`, jumps `x' = x - d s` from t to t - d (noise is
at t = 1). Most of a batch is flow matching at the shortest d; the rest learns that one step of d is
two of d / 2, taken by a moving average of the network:

    s(x, t, d) = (s1 + s2) / 2,   s1 = s(x, t, d / 2),   s2 = s(x - d/2 s1, t - d/2, d / 2)

Guidance is trained in where the chain of lengths begins: there s1 and s2 are guided, and every
longer step inherits it; steps of the shortest d are guided as any network is, if at all.

Source: Frans et al. 2024 (arXiv:2410.12557), algorithm 1 and the authors' code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.dropping import nulled
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.losses.loss import (
    Loss,
    Net,
    add_noise,
    check_can_guide,
    check_dropout,
    check_flow,
    conditions,
    split,
)
from ddim_jax.names import check_range
from ddim_jax.predictions import expand

Array = Any


def shortcut(
    net: Net,
    *,
    finest: int = 128,
    every: int = 8,
    limit: float = 4.0,
    target_decay: float = 0.999,
    guidance_scale: float = 1.0,
    label_dropout: float = 0.0,
) -> Loss:
    """Flow matching and self-consistency in one batch.

    Args:
        net: the network, which takes "interval"; on `rectified_flow` without shift, with
            prediction `flow`.
        finest: a power of two; the shortest step is `1 / finest`.
        every: one row in `every` is for self-consistency, of a batch, or of each part of it that is
            taken by itself (`train.accumulate`, pmap), which should hold a multiple of `every`.
        limit: to which points and targets of self-consistency are clipped.
        target_decay: mu of the moving average that gives the targets.
        guidance_scale: g, by which the targets of steps of `2 / finest` are guided; 1 for none.
        label_dropout: probability that the inputs of a row of flow matching become null.

    Raises:
        ValueError: another schedule or prediction, a `finest` that is no power of two, a
            probability out of range, guidance of a network whose inputs are never dropped.
    """
    check_dropout(label_dropout)
    finest = check_range("config.loss.finest", finest, whole=True)
    every = check_range("config.loss.every", every, "[1, inf)", "8 is usual", whole=True)
    check_range("config.loss.limit", limit, "(0, inf)", "4 is usual")
    check_range("config.loss.target_decay", target_decay, "[0, 1)", "0.999 is usual")
    check_range("config.loss.guidance_scale", guidance_scale, "[-1000, 1000]", "1 is none")
    check_flow(net, "shortcut")
    levels = _doublings(finest)
    guided = guidance_scale != 1
    if guided:
        option = f"config.loss.guidance_scale={guidance_scale} needs"
        check_can_guide(net, label_dropout, option)

    def s(params, x, t, d, inputs, dropout_keys=None):
        inputs = inputs | {"interval": d}
        return net.apply(params, x, net.schedule.level(t).model_time, inputs, dropout_keys)

    def s_target(params, x, t, d, inputs):
        """`s` by the moving average, guided at the shortest step."""
        if not guided:
            return s(params, x, t, d, inputs)

        def network(x, level, inputs):
            return net.apply(params, x, level.model_time, inputs, None)

        inputs = inputs | {"interval": d}
        scale = jnp.where(d == 1 / finest, guidance_scale, 1.0)
        guide = classifier_free(network, nulled(inputs, net.null), Guidance(scale))
        return guide(x, net.schedule.level(t), inputs)

    def two_steps(params, x, t, d, inputs):
        """The mean velocity of two steps of d / 2."""
        first = s_target(params, x, t, d / 2, inputs)
        middle = jnp.clip(x - expand(d / 2, x) * first, -limit, limit)
        second = s_target(params, middle, t - d / 2, d / 2, inputs)
        return jnp.clip((first + second) / 2, -limit, limit)

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        t_key, level_key, eps_key, drop_key, dropout_keys = split(keys, 5)
        eps = net.noise(eps_key, x0)
        k = jax.vmap(lambda key: jax.random.randint(key, (), 0, finest))(t_key)
        t, d = (k + 1).astype(x0.dtype) / finest, jnp.full(len(k), 1 / finest)
        # rows of self-consistency: 1 / d is 1, 2, ..., finest / 2 alike, t a multiple of d
        rows = slice(None, None, every)
        level = jax.vmap(lambda key: jax.random.randint(key, (), 0, levels))(level_key[rows])
        d_long = 2.0 ** -level.astype(x0.dtype)
        t = t.at[rows].set(jnp.ceil(t[rows] / d_long) * d_long)
        d = d.at[rows].set(d_long)
        x = add_noise(x0, eps, net.schedule.level(t))
        kept = {name: value[rows] for name, value in conditions(batch, keys, net.null, 0.0).items()}
        inputs = conditions(batch, drop_key, net.null, label_dropout)
        inputs = {name: value.at[rows].set(kept[name]) for name, value in inputs.items()}
        long_target = two_steps(frozen["target"], x[rows], t[rows], d_long, kept)
        target = (eps - x0).at[rows].set(long_target)
        output = s(params, x, t, d, inputs, dropout_keys)
        squared = jnp.mean((output - jax.lax.stop_gradient(target)) ** 2, tuple(range(1, x.ndim)))
        value = jnp.mean(squared)
        return value, {"loss": value, "loss_shortcut": jnp.mean(squared[rows])}

    return Loss(compute, target_decay=lambda step: target_decay)


def _doublings(finest: int) -> int:
    """How often the shortest step doubles up to 1.

    Raises:
        ValueError: finest is no power of two.
    """
    levels = int(np.log2(finest)) if finest > 0 else 0
    if levels < 1 or 2**levels != finest:
        raise ValueError(
            f"config.loss.finest must be a power of two, 2 or more, got {finest}; 128 is usual"
        )
    return levels
