"""Random keys: one a seed, one a sample, one a purpose, one a row of the table.

key(seed)        the two 32-bit halves of the seed: equal for equal seeds alone
key of sample i  = fold_in(key(seed), i)
key of a purpose = fold_in(key of sample i, Purpose)       initial noise, solver noise, ...
key of a row     = fold_in(key of the purpose, row + 1)    0 is the table's start
"""

import enum
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.names import as_whole

Array = Any
SEEDS = 2**64
"""How many seeds there are."""
GENERATOR = "threefry2x32"
"""JAX's own: keys of other generators would draw other samples, some by their place in a batch."""


class Purpose(enum.IntEnum):
    """What a random number is for; one stream each."""

    INITIAL_NOISE = 0
    SOLVER_NOISE = 1
    CONSTRAINT = 2
    WINDOW = 3


def check_seed(seed: Any, what: str = "seed", seeds: int = SEEDS) -> int:
    """Returns a seed as an int.

    Args:
        seed: a whole number, of Python or numpy; no bool.
        what: its name, for the message.
        seeds: how many there are: 0..seeds - 1.

    Raises:
        ValueError: another type or number; none stands for another one.
    """
    number = as_whole(seed)
    try:
        number = -1 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        number = -1
    if not 0 <= number < seeds:
        raise ValueError(
            f"{what} must be a whole number in 0..2^{seeds.bit_length() - 1} - 1, got {seed!r}"
        )
    return number


def key(seed: int) -> Array:
    """The key of a seed in 0..2^64 - 1, of JAX's own generator whatever its settings say.

    Below 2^32 it is `jax.random.key(seed)`.

    Raises:
        ValueError: another seed.
    """
    if isinstance(seed, jax.core.Tracer):  # of which the number is not known
        return jax.random.key(seed, impl=GENERATOR)
    high, low = divmod(check_seed(seed), 2**32)
    if not high:
        return jax.random.key(low, impl=GENERATOR)
    data: Any = np.array([high, low], np.uint32)  # of numpy: nothing is compiled for it
    return jax.random.wrap_key_data(data, impl=GENERATOR)


def sample_keys(seed: int, index: Array) -> Array:
    """[B] keys of the samples with global indices `index`: `fold_in(key(seed), i)`.

    Args:
        seed: in 0..2^64 - 1.
        index: int [B], in 0..2^31 - 1.

    Raises:
        ValueError: another seed, or an index of another shape, type or range.
    """
    traced = isinstance(index, jax.core.Tracer)  # of which only the shape and type are known
    places, of_seed = index if traced else np.asarray(index), key(seed)
    if places.ndim != 1 or not np.issubdtype(places.dtype, np.integer):
        raise ValueError(
            f"index must be whole numbers [B], one a sample, got {index!r}; for N samples give "
            "np.arange(N)"
        )
    if not traced and (np.any(places < 0) or np.any(places >= 2**31)):
        raise ValueError(f"index must be in 0..2^31 - 1, got {places.min()}..{places.max()}")
    return jax.vmap(lambda i: jax.random.fold_in(of_seed, i))(jnp.asarray(places, jnp.int32))


def purpose_keys(keys: Array, purpose: Purpose, row: Array | None = None) -> Array:
    """[B] keys for one purpose, and for one row of it."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, int(purpose)))(keys)
    return keys if row is None else jax.vmap(lambda key: jax.random.fold_in(key, row))(keys)


def normal(keys: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """[B, *shape] standard normals, one key [B] each."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), dtype))(keys)


def initial_noise(
    keys: Array, shape: Sequence[int], frame_noise: Callable[[Array], Array] | None = None
) -> Array:
    """[B, *shape] standard normals, float32: what sampling starts from.

    `frame_noise` makes those of the frames of clips correlated, see the module of that name.
    """
    z = normal(purpose_keys(keys, Purpose.INITIAL_NOISE), shape)
    return z if frame_noise is None else frame_noise(z)
