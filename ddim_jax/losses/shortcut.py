"""Shortcut models: a flow that is told how long its step is, and learns to take longer ones.

The network s(x, t, d), with `scalars=("interval",)`, jumps `x' = x - d s` from t to t - d (noise is
at t = 1). Most of a batch is flow matching at the shortest d; the rest learns that one step of d is
two of d / 2, taken by a moving average of the network:

    s(x, t, d) = (s1 + s2) / 2,   s1 = s(x, t, d / 2),   s2 = s(x - d/2 s1, t - d/2, d / 2)

Guidance is trained in where the chain of lengths begins: there s1 and s2 are guided, and every
longer step inherits it; steps of the shortest d are guided as any network is, if at all.

Source: Frans et al. 2024 (arXiv:2410.12557), algorithm 1 and the authors' code.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.denoisers import Apply
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.losses.loss import (
    Loss,
    add_noise,
    check_dropout,
    labels,
    normal_like,
    split,
)
from ddim_jax.losses.mean_flow import check_flow
from ddim_jax.predictions import Parameterization, expand
from ddim_jax.schedules import Schedule


def shortcut(
    apply: Apply,
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    finest: int = 128,
    every: int = 8,
    limit: float = 4.0,
    target_decay: float = 0.999,
    guidance_scale: float = 1.0,
    num_classes: int = 0,
    label_dropout: float = 0.0,
) -> Loss:
    """Flow matching and self-consistency in one batch.

    Args:
        apply: the network, `(params, x, model_time, cond, dropout_key) -> F`; cond has "interval".
        schedule: `rectified_flow` without shift.
        parameterization: `flow`.
        finest: a power of two; the shortest step is `1 / finest`.
        every: one row of so many of a batch is for self-consistency.
        limit: to which points and targets of self-consistency are clipped.
        target_decay: mu of the moving average that gives the targets.
        guidance_scale: g, by which the targets of steps of `2 / finest` are guided; 1 for none.
        num_classes: of a class-conditional network, whose null label is num_classes; 0 if without.
        label_dropout: probability of the null label in the rows of flow matching.

    Raises:
        ValueError: another schedule or prediction, a `finest` that is no power of two, a
            probability out of range, guidance without classes and dropped labels.
    """
    check_dropout(label_dropout)
    check_flow(schedule, parameterization, "shortcut")
    levels = int(np.log2(finest)) if finest > 0 else 0
    if levels < 1 or 2**levels != finest:
        raise ValueError(
            f"loss.finest must be a power of two, 2 or more, got {finest}; 128 is usual"
        )

    guided = guidance_scale != 1
    if guided and not (num_classes and label_dropout):
        raise ValueError(
            f"loss.guidance_scale={guidance_scale} needs num_classes and label_dropout > 0"
        )

    def jump(params, x, t, d, cond, dropout_key=None):
        cond = (cond or {}) | {"interval": d}
        return apply(params, x, schedule.level(t).model_time, cond, dropout_key)

    def wanted_jump(params, x, t, d, cond):
        if not guided:
            return jump(params, x, t, d, cond)
        net = lambda x, level, cond: apply(params, x, level.model_time, cond, None)  # noqa: E731
        null = {"label": jnp.full_like(cond["label"], num_classes), "interval": d}
        scale = jnp.where(d == 1 / finest, guidance_scale, 1.0)
        net = classifier_free(net, null, Guidance(scale))
        return net(x, schedule.level(t), cond | {"interval": d})

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        t_key, level_key, eps_key, label_key, dropout_key = split(keys, 5)
        eps = normal_like(eps_key, x0)
        k = jax.vmap(lambda key: jax.random.randint(key, (), 0, finest))(t_key)
        t, d = (k + 1.0) / finest, jnp.full(len(k), 1 / finest)
        # rows of self-consistency: 1 / d is 1, 2, ..., finest / 2 alike, t a multiple of d
        rows = slice(None, None, every)
        level = jax.vmap(lambda key: jax.random.randint(key, (), 0, levels))(level_key[rows])
        long = 2.0**-level
        t = t.at[rows].set(jnp.ceil(t[rows] / long) * long)
        d = d.at[rows].set(long)
        x = add_noise(x0, eps, schedule.level(t))
        cond = labels(batch, label_key, num_classes, label_dropout)
        some = jax.tree.map(lambda leaf: leaf[rows], labels(batch, label_key, num_classes, 0.0))
        if num_classes:
            cond = {"label": cond["label"].at[rows].set(some["label"])}
        half = expand(long / 2, x)
        first = wanted_jump(frozen["target"], x[rows], t[rows], long / 2, some)
        there = jnp.clip(x[rows] - half * first, -limit, limit)
        second = wanted_jump(frozen["target"], there, t[rows] - long / 2, long / 2, some)
        wanted = (eps - x0).at[rows].set(jnp.clip((first + second) / 2, -limit, limit))
        output = jump(params, x, t, d, cond, dropout_key[0])
        squared = jnp.mean((output - jax.lax.stop_gradient(wanted)) ** 2, tuple(range(1, x.ndim)))
        value = jnp.mean(squared)
        return value, {"loss": value, "loss_shortcut": jnp.mean(squared[rows])}

    return Loss(compute, target_decay=lambda step: target_decay)
