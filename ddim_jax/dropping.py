"""Inputs that are dropped: their null values, in some rows to train, in all of them to guide.

Source: Ho & Salimans 2022 (arXiv:2207.12598), section 3.2 (dropping the label to a null label).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
NULL = "null"
"""Key of a dict in `inputs`: values that stand where an input is dropped."""
AUGMENT = "augment"
"""Input that says how a picture was changed, see `data/augmentation.py`; never dropped. Zeros, for
not at all, are told wherever pictures are drawn."""

ALONE = "alone"
"""Input that says whether the frames of a clip are cut apart, each a picture of its own; never
dropped. Where it is not told they belong together."""

SLOPE = "interval_slope"
"""Where steps are not equally long: by how much "interval" grows for each unit of t. It is no input
of a network, see `denoisers.network`."""


def nulled(inputs: dict[str, Array], null: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs with every row of those in `null` replaced by its null value.

    That is the value under `NULL`, if there is one.

    Args:
        inputs: name -> [B, ...].
        null: name -> null value.
    """
    own = inputs.get(NULL, {})
    fixed = {name: value for name, value in null.items() if name not in own}
    return inputs | {name: _null_like(inputs[name], value) for name, value in fixed.items()} | own


class Nulled:
    """`nulled` with its second argument given; equal for equal null values."""

    def __init__(self, null: Mapping[str, Any]):
        """Keeps the null values: name -> number or array."""
        self.null = dict(null)

    def __call__(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns the inputs, nulled."""
        return nulled(inputs, self.null)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.null)))

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, Nulled)
            and set(self.null) == set(other.null)
            and all(np.array_equal(value, other.null[name]) for name, value in self.null.items())
        )


def is_null(inputs: dict[str, Array], null: Mapping[str, Any]) -> Array:
    """Whether all inputs of a row that can be dropped have their null values.

    Args:
        inputs: name -> [B, ...].
        null: name -> null value, of one input or more.

    Returns:
        bool [B].
    """
    equal = [inputs[name] == _null_like(inputs[name], value) for name, value in null.items()]
    rows = [jnp.all(one.reshape(len(one), -1), axis=1) for one in equal]
    return jnp.all(jnp.stack(rows), axis=0)


def drop(
    inputs: dict[str, Array], null: Mapping[str, Any], keys: Array, rate: float
) -> dict[str, Array]:
    """The inputs with those in `null` dropped in some rows, all of a row together.

    Args:
        inputs: name -> [B, ...].
        null: name -> null value of what is dropped.
        keys: [B], one key a row.
        rate: probability in [0, 1] that a row is dropped.
    """
    if not null or not rate:
        return inputs
    dropped = jax.vmap(jax.random.uniform)(keys) < rate

    def mixed(value: Array, value_null: Any) -> Array:
        rows = dropped.reshape(-1, *[1] * (value.ndim - 1))
        return jnp.where(rows, _null_like(value, value_null), value)

    return inputs | {name: mixed(inputs[name], value) for name, value in null.items()}


def _null_like(value: Array, null: Any) -> Array:
    return jnp.broadcast_to(jnp.asarray(null, value.dtype), value.shape)
