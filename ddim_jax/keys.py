"""Random keys: one a sample, one a purpose, one a row of the table.

key of sample i  = fold_in(key(seed), i)
key of a purpose = fold_in(key of sample i, Purpose)       initial noise, solver noise, ...
key of a row     = fold_in(key of the purpose, row + 1)    0 is the table's start
"""

import enum
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = Any


class Purpose(enum.IntEnum):
    """What a random number is for; one stream each."""

    INITIAL_NOISE = 0
    SOLVER_NOISE = 1
    CONSTRAINT = 2


def sample_keys(seed: int, index: Array) -> Array:
    """[B] keys of the samples with global indices `index`: `fold_in(key(seed), i)`."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(index))


def purpose_keys(keys: Array, purpose: Purpose, row: Array | None = None) -> Array:
    """[B] keys for one purpose, and for one row of it."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, int(purpose)))(keys)
    return keys if row is None else jax.vmap(lambda key: jax.random.fold_in(key, row))(keys)


def normal(keys: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """[B, *shape] standard normals, one key [B] each."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), dtype))(keys)


def initial_noise(keys: Array, shape: Sequence[int]) -> Array:
    """[B, *shape] standard normals, float32: what sampling starts from."""
    return normal(purpose_keys(keys, Purpose.INITIAL_NOISE), shape)
