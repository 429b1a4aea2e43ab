"""One row of a solver's table as a pure function: a network evaluation and the row's arithmetic.

A row is 29 numbers, enough for every solver: the level at which the network is evaluated, and
the weights of a linear combination.

    alpha, sigma, model_time | store 2 | slot 6, one-hot | state 4 | history 12 | noise 2

With two points and six predictions kept, `(point, base, history)`, a row does

    (x0, eps)         = denoise(point, level)
    history[slot]    <- store[0] x0 + store[1] eps
    (point, base)    <- state (point, base) + history_weights history + noise z

which is `solvers/table.py`, row by row, and agrees with `sampling.run` to rounding. Every sample
has its own row: samples of different solvers and numbers of steps share one evaluation. A row of
zeros is padding, which clients leave out and `unpack` marks as such.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import sampling
from ddim_jax.denoisers import Denoiser
from ddim_jax.guidance import Guidance
from ddim_jax.keys import Purpose, normal
from ddim_jax.model import Model
from ddim_jax.predictions import expand
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import NoiseLevel
from ddim_jax.solvers import SolverTable

Array = Any
SLOTS = 6
"""Of history: no solver with default options needs more."""
COLUMNS = {"level": 3, "store": 2, "slot": SLOTS, "state": 4, "history": 2 * SLOTS, "noise": 2}
"""Parts of a row and how many numbers each has, in their order."""
WIDTH = sum(COLUMNS.values())


class Carry(NamedTuple):
    """What goes from row to row.

    Attributes:
        point: [B, *sample_shape], where the network is evaluated; after the last row the sample.
        base: [B, *sample_shape], where a multi-stage step began.
        history: [B, SLOTS, *sample_shape], the stored predictions.
    """

    point: Array
    base: Array
    history: Array


def pack(table: SolverTable) -> np.ndarray:
    """A table's rows as float32 [E, 29].

    Raises:
        ValueError: the solver keeps more predictions than a row has room for.
    """
    count, slots = table.history.shape[0], table.history.shape[-1]
    if slots > SLOTS:
        raise ValueError(
            f"the solver keeps {slots} predictions, and a row has room for {SLOTS}: give it a "
            "lower order"
        )
    table = table.pad(count, SLOTS)
    parts = [
        np.stack([table.level.alpha, table.level.sigma, table.level.model_time], 1),
        table.store,
        np.eye(SLOTS)[table.slot],
        table.state.reshape(count, -1),
        table.history.reshape(count, -1),
        table.noise,
    ]
    rows = np.concatenate(parts, 1).astype(np.float32)
    return np.where(table.active[:, None], rows, np.float32(0))


def unpack(rows: Array, start: Array) -> SolverTable:
    """The table of rows [E, 29] and its start [2], inside jit; its times are not in them, but 0."""
    level, store, slot, state, history, noise = _parts(rows)
    zeros = jnp.zeros_like(level[:, 0])
    return SolverTable(
        level=NoiseLevel(zeros, *(level[:, i] for i in range(3))),
        store=store,
        slot=jnp.argmax(slot, axis=1),
        state=state.reshape(-1, 2, 2),
        history=history.reshape(-1, 2, SLOTS),
        noise=noise,
        active=level[:, 0] + level[:, 1] > 0,
        start=start,
        end=NoiseLevel(*(jnp.zeros_like(start[0]) for _ in range(4))),
    )


def _parts(rows: Array) -> list[Array]:
    ends = np.cumsum([0, *COLUMNS.values()])
    return [rows[:, a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]


def begin(x: Array, start: Array, noise: Array | None = None) -> Carry:
    """What the first row is given.

    Args:
        x: [B, *sample_shape] standard normals, float32.
        start: [2] or [B, 2], a table's `start`.
        noise: shaped like x, needed where `start[1]` is not 0.
    """
    start = jnp.asarray(start, jnp.float32).reshape(-1, 2)
    start = start * jnp.ones_like(x.reshape(x.shape[0], -1)[:, :1])
    point = expand(start[:, 0], x) * x
    if noise is not None:
        point = point + expand(start[:, 1], x) * noise
    slots = jnp.zeros_like(point)[:, None]
    return Carry(point, point, jnp.concatenate([slots] * SLOTS, 1))


def row_noise(keys: Array, numbers: Array, shape: tuple[int, ...]) -> Array:
    """[B, *shape] the standard normals of each sample's own row, those of `sampling.run`.

    Args:
        keys: [B], one a sample, of `keys.sample_keys`.
        numbers: int32 [B], 1 for a table's first row; 0 for its start.
        shape: of one sample.
    """

    def of_row(key, number):
        return jax.random.fold_in(jax.random.fold_in(key, int(Purpose.SOLVER_NOISE)), number)

    return normal(jax.vmap(of_row)(keys, numbers), shape)


def is_guidable(model: Model) -> bool:
    """Whether a guidance scale changes what a network draws."""
    dropped = model.inputs.null and model.config.loss.get("label_dropout", 0) != 0
    return bool(model.inputs.takes("guidance") or dropped)


def make_denoiser(
    model: Model, recipe: Recipe | None = None, *, branches: bool = True
) -> Callable[..., Denoiser]:
    """Returns `f(params, inputs, guidance=None) -> Denoiser`, guided sample by sample.

    Args:
        model: whose network it is; its weights are an argument.
        recipe: of clip, guidance's interval, rescale and channels; default the model's own.
        branches: leave out the second forward pass of guidance where all scales are 1; False for
            formats without branches, and where scales are never 1.
    """
    recipe = recipe or model.recipe
    own, guidable = model.inputs.takes("guidance"), is_guidable(model)
    null = model.inputs.nulled if model.inputs.null else None
    make = sampling.make_denoiser(model.apply, model.parameterization, null, recipe.clip, None)
    where = (recipe.guidance_interval, recipe.guidance_rescale, recipe.guidance_channels)

    def of(params, inputs, guidance=None):
        if own:
            return make(params, inputs | {"guidance": guidance})
        plain = make(params, inputs)
        if guidance is None or not guidable:
            return plain
        guided = make(params, inputs, Guidance(guidance, *where))
        if not branches:
            return guided

        def either(x, level):
            return jax.lax.cond(jnp.all(guidance == 1.0), plain, guided, x, level)

        return either

    return of


def make_evaluate(
    model: Model, recipe: Recipe | None = None, *, branches: bool = True
) -> Callable[..., tuple[Carry, Array]]:
    """Returns `evaluate(params, rows, carry, noise, inputs, guidance=None) -> (Carry, x0)`.

    It is pure and can be jitted. `rows` float32 [B, 29]; `carry`, see `Carry`; `noise`
    [B, *sample_shape], standard normals, used where a row has a multiple of them; `inputs`: name ->
    [B, ...], what the network is told beside guidance scales, such as label int32 [B]; `guidance`
    float32 [B], which networks that cannot be guided ignore. `x0` [B, *sample_shape] is the clean
    estimate, for pictures of the way. Arguments as of `make_denoiser`.
    """
    denoiser = make_denoiser(model, recipe, branches=branches)

    def evaluate(params, rows, carry, noise, inputs, guidance=None):
        level, store, slot, state, history, multiples = _parts(rows)
        level = NoiseLevel(jnp.zeros_like(level[:, 0]), *(level[:, i] for i in range(3)))
        point = carry.point
        x0, eps = denoiser(params, inputs, guidance)(point, level)
        stored = expand(store[:, 0], point) * x0 + expand(store[:, 1], point) * eps
        here = slot.reshape(slot.shape + (1,) * (point.ndim - 1)) > 0.5
        kept = jnp.where(here, stored[:, None], carry.history)
        seen = jnp.concatenate([point[:, None], carry.base[:, None], kept, noise[:, None]], 1)
        weights = jnp.concatenate(
            [state.reshape(-1, 2, 2), history.reshape(-1, 2, SLOTS), multiples[:, :, None]], 2
        )
        flat = seen.reshape(*seen.shape[:2], -1)
        points = jnp.matmul(weights, flat, precision="highest").reshape(-1, 2, *point.shape[1:])
        return Carry(points[:, 0], points[:, 1], kept), x0

    return evaluate
