"""Null-text inversion: the null text of each step under which guided DDIM comes back to a picture.

Without guidance, DDIM draws a picture through the points p_0 (the noise, which an inversion finds),
..., p_S (the picture). Guided, from y_0 = p_0, each step has a null text of its own,

    n_k = argmin |p_{k+1} - ddim(y_k, guided away from n)|^2,    y_{k+1} = ddim(y_k, ... n_k),

by Adam from n_{k-1}, of which the best is kept; n_{-1} is the model's null text. Text, pooled text
and weights stay as they are. `fit` and `sampler` are samplers for `batch_loop.Generator`; what is
found goes from one to the other as `NullTexts`.

The paper's points are those of the naive inversion, which DDIM does not draw through; here the
fixed point of every step is found first.

Source: Mokady et al. 2022 (arXiv:2211.09794), algorithm 1; learning rates of the authors' code.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddim_jax import denoisers, programs, sampling
from ddim_jax.denoisers import Network
from ddim_jax.dropping import Nulled
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.predictions import Parameterization
from ddim_jax.sampling import RunResult
from ddim_jax.schedules import NoiseLevel
from ddim_jax.solvers import SolverTable

Array = Any
RATE = 1e-2
"""Adam's step at the first time of the stride; half as much at the last."""


class NullTexts(NamedTuple):
    """Null texts by level, for each row.

    Attributes:
        t: [N, S] the times of the levels.
        text: [N, S, L, W] features of the null text at each.
    """

    t: Array
    text: Array

    def at(self, t: Array) -> Array:
        """[N, L, W] of the level nearest to a time."""
        return self.text[:, jnp.argmin(jnp.abs(self.t[0] - t))]


def guided(net: Network, null_inputs: Any, guidance: Guidance, nulls: NullTexts) -> Network:
    """A network guided away from the null text of the level that it is asked at."""

    def call(x: Array, level: NoiseLevel, inputs: Any) -> Array:
        chosen = null_inputs | {"text": nulls.at(level.t)}
        return classifier_free(net, chosen, guidance)(x, level, inputs)

    return call


@functools.lru_cache(maxsize=4)
def sampler(
    network: Any, parameterization: Parameterization, null: Nulled
) -> Callable[..., RunResult]:
    """The jitted sampler under `NullTexts`, which it takes as `known`."""
    apply = programs.apply_of(network)

    def sample(params, table, x, keys, inputs, guidance, known: NullTexts) -> RunResult:
        net = guided(denoisers.network(apply, params), null(inputs), guidance, known)
        return sampling.run(denoisers.denoiser(net, parameterization, inputs), table, x, keys)

    return jax.jit(sample)


@functools.lru_cache(maxsize=4)
def fit(
    network: Any, parameterization: Parameterization, null: Nulled, iterations: int
) -> Callable[..., NullTexts]:
    """The jitted search for `NullTexts`: `(params, table of DDIM, x, ..., known) -> NullTexts`.

    Args:
        network: the network.
        parameterization: what it predicts.
        null: its inputs where they are dropped.
        iterations: of Adam in each step.

    `x` is [B, ...] the noise, `known` [B, S, ...] the points after each step.
    """
    apply = programs.apply_of(network)

    def search(params, table: SolverTable, x, keys, inputs, guidance, known) -> NullTexts:
        net, null_inputs = denoisers.network(apply, params), null(inputs)
        axes = tuple(range(1, x.ndim))

        def step(y, level, end, text):
            away = classifier_free(net, null_inputs | {"text": text}, guidance)
            x0, eps = denoisers.denoiser(away, parameterization, inputs)(y, level)
            return end[0] * x0 + end[1] * eps

        def row(carry, per_row):
            y, text = carry
            level, end, goal, rate = per_row
            optimizer = optax.adam(rate)

            def errors(text):
                found = step(y, level, end, text)
                each = jnp.mean((found - goal) ** 2, axes)
                return jnp.sum(each), (each, found)

            def improve(carry, _):
                text, state, best = carry
                (_, (each, found)), slope = jax.value_and_grad(errors, has_aux=True)(text)
                best = _better((each, text, found), best)
                change, state = optimizer.update(slope, state)
                return (text + change, state, best), None

            first = jnp.full(y.shape[:1], jnp.inf, y.dtype), text, y
            start = text, optimizer.init(text), first
            (_, _, (_, text, y)), _ = jax.lax.scan(improve, start, None, iterations)
            return (y, text), text

        table = sampling.cast(table, x.dtype)
        level, count = table.level, len(table.slot)
        both = jax.tree.map(lambda each, last: jnp.append(each[1:], last), level, table.end)
        ends = jnp.stack([both.alpha, both.sigma], 1)
        rates = RATE * (1 - 0.5 * jnp.arange(count, dtype=x.dtype) / count)
        first = table.start[0] * x, null_inputs["text"]
        rows = level, ends, jnp.moveaxis(known, 1, 0), rates
        _, texts = jax.lax.scan(row, first, rows)
        times = jnp.broadcast_to(level.t[None], (len(x), count))
        return NullTexts(times, jnp.moveaxis(texts, 0, 1))

    return jax.jit(search)


def _better(new: tuple, old: tuple) -> tuple:
    """Of two (error [B], ...) the rows with the smaller error."""
    smaller = new[0] < old[0]

    def chosen(a, b):
        return jnp.where(smaller.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return tuple(chosen(a, b) for a, b in zip(new, old, strict=True))
