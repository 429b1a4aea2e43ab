"""One train step for every method: gradients of a `Loss`, optax, EMA.

A step whose loss, gradient or new parameters are not finite changes nothing, not even the step
counter, so that the last good state is what is left (and can be saved). The keys of a batch are
`fold_in(fold_in(state.key, step), row)` with the row's place in the global batch, so that one
device, many devices and many processes see the same random numbers. A batch may be taken in parts,
whose gradients are averaged: the same step in less memory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddim_jax.data.augmentation import Augmentation
from ddim_jax.dropping import AUGMENT
from ddim_jax.losses import Loss
from ddim_jax.training.state import Ema, TrainState

CODEC, CHANGES = 2**20, 2**20 + 1
"""What a row's key is folded with to encode and to augment it; losses take small numbers."""


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema: Ema,
    axis_name: str | None = None,
    gather: Callable[[Any], Any] | None = None,
    accumulate: int = 1,
    encode: Callable[[Any, tuple], Any] | None = None,
    sample: bool = False,
    augmentation: Augmentation | None = None,
) -> Callable[..., tuple[TrainState, dict]]:
    """A pure train step `(state, batch, codec_params) -> (state, metrics)`, see `parallel`.

    Args:
        loss: the training method.
        optimizer: an optax transformation.
        ema: the moving average.
        axis_name: of the pmap axis that the batch is split over; None under jit.
        gather: (params, frozen) of the state -> those of the loss: puts together what is split over
            devices, changes a base by factors; None if they are the same.
        accumulate: parts that a batch is taken in; divides its rows on every device.
        encode: (codec_params, (`batch["image"]`, keys or None)) -> samples; None: they are samples.
        sample: whether it is given keys [B], to draw anew in each step; else it takes the mean.
        augmentation: changes samples, and tells the network how; None for none.

    Returns:
        The step. `batch["row"]` are the places in the global batch, if they are not 0, 1, ...;
        `codec_params`, None by default, do not change; metrics are scalars, among them "loss",
        "grad_norm" and "finite".
    """

    def objective(params, frozen, batch, keys, step):
        if gather is not None:
            params, frozen = gather((params, frozen))
        return loss(params, frozen, batch, keys, step)

    gradient = jax.value_and_grad(objective, has_aux=True)
    compute = _accumulated(gradient, accumulate, loss.group)

    def step(state: TrainState, batch: dict, codec_params: Any = None) -> tuple[TrainState, dict]:
        keys = _row_keys(state, batch, axis_name)
        if encode is not None:
            own = _folded(keys, CODEC) if sample else None
            batch = batch | {"image": encode(codec_params, (batch["image"], own))}
        if augmentation is not None:
            changed, told = augmentation.apply(_folded(keys, CHANGES), batch["image"])
            batch = batch | {"image": changed, AUGMENT: told}
        metrics, grads = compute(state.params, state.frozen, batch, keys, state.step)
        if axis_name is not None:
            metrics, grads = jax.lax.pmean((metrics, grads), axis_name)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite &= jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
        new = state.replace(
            step=state.step + 1,
            params=params,
            ema=ema(state.ema, loss.student(params), state.step + 1),
            opt_state=opt_state,
            frozen=loss.update_frozen(state.frozen, params, state.step + 1),
        )
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        new = new.replace(
            step=keep(new.step, state.step),
            params=jax.tree.map(keep, new.params, state.params),
            ema=jax.tree.map(keep, new.ema, state.ema),
            opt_state=jax.tree.map(keep, new.opt_state, state.opt_state),
            frozen=jax.tree.map(keep, new.frozen, state.frozen),
        )
        return new, metrics | {"grad_norm": norm, "finite": finite}

    return step


def _folded(keys: Any, number: int) -> Any:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _accumulated(compute: Callable, parts: int, group: int) -> Callable:
    """(metrics, gradients) of a batch, their means over its parts.

    Part j has groups of rows j, j + parts, ...: so each device keeps the rows that it has.
    """

    def mean(params, frozen, batch, keys, step):
        def body(total, part):
            (_, metrics), grads = compute(params, frozen, *part, step)
            return jax.tree.map(jnp.add, total, (metrics, grads)), None

        def first(part):
            (_, metrics), grads = compute(params, frozen, *part, step)
            return metrics, grads

        if parts == 1:
            return first((batch, keys))

        def taken(x):
            grouped = x.reshape(-1, parts, group, *x.shape[1:])
            return jnp.moveaxis(grouped, 1, 0).reshape(parts, -1, *x.shape[1:])

        split = jax.tree.map(taken, (batch, keys))
        shapes = jax.eval_shape(first, jax.tree.map(lambda x: x[0], split))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(body, zeros, split)
        return jax.tree.map(lambda x: x / parts, total)

    return mean


def _row_keys(state: TrainState, batch: dict, axis_name: str | None) -> Any:
    row = batch.get("row")
    if row is None:
        rows = len(batch["image"])
        row = jnp.arange(rows) + (0 if axis_name is None else rows * jax.lax.axis_index(axis_name))
    key = jax.random.fold_in(state.key, state.step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(row)
