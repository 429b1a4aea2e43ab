"""The loop: `run` carries a sample along a solver table, one `lax.scan` step per row.

The table is an argument of the jitted sampler, so that solvers of equal (nfe, H), strides, eta and
guidance strengths swap without recompiling, and the network is traced once. Noise is drawn under a
scalar `lax.cond`: a deterministic table draws none. Every sample has its own key (`keys.py`), so
that it is the same picture (to rounding) whatever the batch size, device or process count.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddim_jax import denoisers
from ddim_jax.denoisers import Apply, Denoiser
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.keys import Purpose, initial_noise, normal, purpose_keys, sample_keys
from ddim_jax.predictions import Parameterization
from ddim_jax.schedules import NoiseLevel
from ddim_jax.solvers.table import SolverTable, State

__all__ = ["RunResult", "Task", "initial_noise", "make_sampler", "run", "sample_keys"]

Array = Any
Constraint = Callable[[Array, NoiseLevel, Array], Array]


class Task(NamedTuple):
    """What samples have to agree with: hooks, to which every call gives its data, `known`.

    Attributes:
        wrap: (denoise, known) -> Denoiser, before any clipping; None for none.
        constrain: (x, level, keys [B], known) -> x, as in `run`; None for none.
    """

    wrap: Callable[[Denoiser, Any], Denoiser] | None = None
    constrain: Callable[[Array, NoiseLevel, Array, Any], Array] | None = None


class RunResult(NamedTuple):
    """What a run returns.

    Attributes:
        x: [B, ...] the sample.
        state: the (evaluate, base) pair at the end; exact inversion needs both.
        collected: name -> [E, B, ...], as asked for by `collect`.
    """

    x: Array
    state: State
    collected: dict[str, Array]


def run(
    denoise: Denoiser,
    table: SolverTable,
    x: Array | State,
    keys: Array,
    *,
    constrain: Constraint | None = None,
    collect: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    frame_noise: Callable[[Array], Array] | None = None,
) -> RunResult:
    """Samples (or edits) along a table.

    Args:
        denoise: (x, level) -> Prediction.
        table: rows to run, see `solvers.table`.
        x: [B, ...] a standard normal, an image in [-1, 1], or a `State` of two such.
        keys: [B], one per sample.
        constrain: (x, level, keys [B]) -> x, applied to `evaluate` before every evaluation with
            that row's level, and once at the end.
        collect: any of "x" (the sample after each row) and "x0" (the clean estimate in each row).
        progress: called on the host with the number of each finished row.
        frame_noise: makes the noise of the frames of clips correlated; None: it is not.

    Raises:
        ValueError: an unknown name in `collect`.
    """
    unknown = set(collect) - {"x", "x0"}
    if unknown:
        raise ValueError(f"collect takes 'x' and 'x0', got {sorted(unknown)}")
    state = x if isinstance(x, State) else State(x, x)
    chex.assert_equal_shape([state.evaluate, state.base])
    chex.assert_shape(keys, (state.evaluate.shape[0],))
    state = jax.tree.map(jnp.asarray, state)
    table = cast(table, state.evaluate.dtype)
    add_noise = functools.partial(_add_noise, keys=keys, frame_noise=frame_noise)
    scale, noise = table.start
    state = jax.tree.map(lambda x: scale * x, state)
    state = add_noise(jnp.stack([noise, noise]), state, row=0)
    slots = table.history.shape[2]
    history = jnp.zeros((slots,) + state.evaluate.shape, state.evaluate.dtype)

    def evaluate_row(carry, row: int, table_row: SolverTable):
        state, history = carry
        point = state.evaluate
        if constrain is not None:
            point = constrain(
                point, table_row.level, purpose_keys(keys, Purpose.CONSTRAINT, row + 1)
            )
        prediction = denoise(point, table_row.level)
        stored = table_row.store[0] * prediction.x0 + table_row.store[1] * prediction.eps
        history = history.at[table_row.slot].set(stored)
        state = _combine(table_row, State(point, state.base), history)
        state = add_noise(table_row.noise, state, row=row + 1)
        return (state, history), prediction.x0

    def body(carry, scanned):
        row, table_row = scanned
        carry, x0 = jax.lax.cond(
            table_row.active,
            lambda c: evaluate_row(c, row, table_row),
            lambda c: (c, jnp.zeros_like(c[0].evaluate)),
            carry,
        )
        if progress is not None:
            jax.debug.callback(progress, row)
        seen = {"x": carry[0].evaluate, "x0": x0}
        return carry, {name: seen[name] for name in collect}

    rows = jnp.arange(table.slot.shape[0])
    per_row = table._replace(start=None, end=NoiseLevel(None, None, None, None))
    (state, _), collected = jax.lax.scan(body, (state, history), (rows, per_row))
    final = state.evaluate
    if constrain is not None:
        end_keys = purpose_keys(keys, Purpose.CONSTRAINT, 0)
        final = constrain(final, table.end, end_keys)
        state = State(final, state.base)
    return RunResult(final, state, collected)


def cast(table: SolverTable, dtype: Any) -> SolverTable:
    """The table's float64 numbers as `dtype`; slots and flags as they are."""

    def one(leaf):
        return jnp.asarray(leaf) if leaf.dtype.kind in "ib" else jnp.asarray(leaf, dtype)

    return jax.tree.map(one, table)


def _combine(row: SolverTable, state: State, history: Array) -> State:
    """New (evaluate, base) from the old ones and the history, summed in the order of the slots."""
    points = []
    for target in range(2):
        x = row.state[target, 0] * state.evaluate + row.state[target, 1] * state.base
        for slot in range(history.shape[0]):
            x = x + row.history[target, slot] * history[slot]
        points.append(x)
    return State(*points)


def _add_noise(
    multiples: Array,
    state: State,
    *,
    keys: Array,
    row: Array,
    frame_noise: Callable[[Array], Array] | None,
) -> State:
    """Adds a fresh normal, times its multiples, to the two points; draws none if both are 0."""

    def draw(state: State) -> State:
        row_keys = purpose_keys(keys, Purpose.SOLVER_NOISE, row)
        z = normal(row_keys, state.evaluate.shape[1:], state.evaluate.dtype)
        z = z if frame_noise is None else frame_noise(z)
        return State(state.evaluate + multiples[0] * z, state.base + multiples[1] * z)

    return jax.lax.cond(jnp.any(multiples != 0), draw, lambda state: state, state)


def make_sampler(
    apply: Apply,
    parameterization: Parameterization,
    *,
    null_inputs: Callable[[Any], Any] | None = None,
    clip: str = "static",
    clip_options: dict | None = None,
    task: Task | None = None,
    collect: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    frame_noise: Callable[[Array], Array] | None = None,
) -> Callable[..., RunResult]:
    """A jitted `f(params, table, x, keys, inputs=None, guidance=None, known=None) -> RunResult`.

    Everything that changes between calls is an argument; what is fixed here decides the program.

    Args:
        apply: the network, `(params, x, model_time, inputs) -> F`.
        parameterization: what it predicts.
        null_inputs: inputs -> what the network was told where inputs were dropped; needed for
            guidance.
        clip: "static" (to [-1, 1]), "dynamic" or "none", see `denoisers.CLIPS`.
        clip_options: of the clip, e.g. `{"rederive_eps": False}`.
        task: hooks that use `known`, a pytree of [B, ...] arrays.
        collect: see `run`.
        progress: see `run`.
        frame_noise: see `run`.

    Raises:
        ValueError: unknown clip; guidance given without `null_inputs`.
    """
    wrap, constrain = task or Task()
    denoiser = make_denoiser(apply, parameterization, null_inputs, clip, clip_options, wrap)

    def sample(
        params, table, x, keys, inputs=None, guidance: Guidance | None = None, known: Any = None
    ) -> RunResult:
        denoise = denoiser(params, inputs, guidance, known)
        hook = None if constrain is None else functools.partial(_with_known, constrain, known)
        options: dict[str, Any] = dict(collect=collect, progress=progress, frame_noise=frame_noise)
        return run(denoise, table, x, keys, constrain=hook, **options)

    return jax.jit(sample)


def _with_known(constrain: Callable, known: Any, x: Array, level: NoiseLevel, keys: Array) -> Array:
    return constrain(x, level, keys, known)


def make_denoiser(
    apply: Apply,
    parameterization: Parameterization,
    null_inputs: Callable[[Any], Any] | None,
    clip: str,
    clip_options: dict | None,
    wrap: Callable[[Denoiser, Any], Denoiser] | None = None,
) -> Callable[..., Denoiser]:
    """`(params, inputs, guidance, known=None) -> Denoiser`: guided, wrapped, then clipped.

    Arguments and errors as of `make_sampler`.
    """
    if clip not in denoisers.CLIPS:
        raise ValueError(f"unknown clip {clip!r}; it is one of {', '.join(denoisers.CLIPS)}")

    def denoiser(
        params: Any, inputs: Any, guidance: Guidance | None = None, known: Any = None
    ) -> Denoiser:
        net = denoisers.network(apply, params)
        if guidance is not None:
            if null_inputs is None:
                raise ValueError(
                    "guidance needs null_inputs: what the network is told where inputs are dropped"
                )
            net = classifier_free(net, null_inputs(inputs), guidance)
        denoise = denoisers.denoiser(net, parameterization, inputs)
        denoise = denoise if wrap is None else wrap(denoise, known)
        return denoisers.CLIPS[clip](denoise, **(clip_options or {}))

    return denoiser
