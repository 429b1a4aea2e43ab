"""What a network is told beside the noisy sample and its time: class labels, guidance scales.

A network declares its inputs by name (`network.inputs`), each an array of B rows. The same names
are the keys of the dict `inputs` that networks, losses, samplers and the data pipeline pass on; the
dict of a network without inputs is empty. Some inputs can be dropped: such an input has a null
value, which training puts in its place in some rows and guidance puts in all of them.

Source: Ho & Salimans 2022 (arXiv:2207.12598), section 3.2 (dropping the label to a null label).
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.names import as_whole, few, parse_value

Array = Any
UNLABELLED = "guidance_scale=0 draws without a label"


class Input(NamedTuple):
    """One input of a network, an array [B, *shape].

    Attributes:
        shape: of one row.
        dtype: name of the dtype.
        null: its value where it is dropped, a number or an array [*shape]; None if it never is.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    null: Any = None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of one network, and how they are made from numbers and names.

    Attributes:
        declared: name -> `Input`, as the network declares them.
        class_names: names of the classes in the order of their labels; () if they have none.

    Raises:
        ValueError: not one name for each class.
    """

    declared: Mapping[str, Input]
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must name all {self.num_classes} classes of the network, got "
                f"{len(self.class_names)} names"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for a network without labels. The null label is num_classes."""
        return self.declared["label"].null if self.takes("label") else 0

    def describe(self) -> str:
        """The classes in words."""
        names = f" ({few(self.class_names)})" if self.class_names else ""
        return f"{self.num_classes} classes{names}" if self.num_classes else "without classes"

    @property
    def null(self) -> dict[str, Any]:
        """Name -> null value, of the inputs that can be dropped; {} for none."""
        return {name: put.null for name, put in self.declared.items() if put.null is not None}

    def takes(self, name: str) -> bool:
        """Whether the network has an input of this name."""
        return name in self.declared

    def nulled(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """The inputs with every row of what can be dropped replaced by its null value."""
        return nulled(inputs, self.null)

    def labels(self, given: Any, count: int) -> np.ndarray | None:
        """Labels of `count` samples, the given ones in rotation.

        Args:
            given: a label, or a list of them, each a number in 0..num_classes - 1, such a number
                as a string, or a class name; None or an empty list means all classes.
            count: N, how many labels to return.

        Returns:
            int32 [N]; None for a network without labels.

        Raises:
            ValueError: labels for a network that takes none, a number out of range, an unknown
                name.
        """
        given = _listed(given)
        if not self.num_classes:
            if given:
                raise ValueError(f"this network is unconditional and takes no labels, got {given}")
            return None
        if not given:
            return (np.arange(count) % self.num_classes).astype(np.int32)
        return np.resize(np.array([self._label(one) for one in given], np.int32), count)

    def _label(self, given: Any) -> int:
        """The number of one class, given by its number or name."""
        names = {name.casefold(): number for number, name in enumerate(self.class_names)}
        if isinstance(given, str) and given.strip() in self.class_names:  # Dog beside dog
            return self.class_names.index(given.strip())
        if isinstance(given, str) and given.strip().casefold() in names:
            return names[given.strip().casefold()]
        number = _whole_number(given)
        if number is not None and 0 <= number < self.num_classes:
            return number
        close = difflib.get_close_matches(str(given).casefold(), names, 1)
        hint = f" (did you mean {self.class_names[names[close[0]]]!r}?)" if close else ""
        or_name = " or a class name" if names else ""
        raise ValueError(
            f"labels must be 0..{self.num_classes - 1}{or_name}, got {given}{hint}; {UNLABELLED}"
        )

    def arrays(
        self, labels: Array | None, guidance: Array = 1.0, interval: Array | None = None
    ) -> dict[str, np.ndarray]:
        """The network's inputs as numpy arrays [N]; what it does not take is left out.

        Args:
            labels: int [N], of a class-conditional network.
            guidance: scalar or [N], the guidance scale; of a network distilled from a guided one.
            interval: scalar or [N], the length of the sampler's steps in t; of a network that is
                told how far to jump.

        Returns:
            Name -> [N]. N is 1 if all values are scalars.

        Raises:
            ValueError: an input of the network is missing, or lengths differ.
        """
        given = {"label": labels, "guidance": guidance, "interval": interval}
        given = {name: given.get(name) for name in self.declared}
        for name, value in given.items():
            if value is None:
                raise ValueError(_missing(name))
        arrays = {
            name: np.atleast_1d(np.asarray(value, self.declared[name].dtype))
            for name, value in given.items()
        }
        sizes = {name: len(array) for name, array in arrays.items()}
        count = max(sizes.values(), default=0)
        if not set(sizes.values()) <= {1, count}:
            raise ValueError(f"inputs must have one length, got {sizes}; scalars are repeated")
        return {name: np.resize(array, count) for name, array in arrays.items()}


def nulled(inputs: dict[str, Array], null: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs with every row of those in `null` replaced by its null value.

    Args:
        inputs: name -> [B, ...].
        null: name -> null value.
    """
    return inputs | {name: _null_like(inputs[name], value) for name, value in null.items()}


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


def _missing(name: str) -> str:
    """Why an input must be given, and how."""
    if name == "interval":
        return f"this network takes {name!r} as an input: sample it over equal steps"
    if name == "label":
        return "this network is class-conditional: give the label of every sample"
    return f"this network takes {name!r} as an input, and it is not given"


def _listed(given: Any) -> list:
    """One label or several as a list."""
    if given is None:
        return []
    if isinstance(given, str) or not (isinstance(given, Sequence) or np.ndim(given)):
        return [given]
    return list(given)


def _whole_number(given: Any) -> int | None:
    """The integer that a number or a string stands for; None if it stands for none."""
    number = as_whole(parse_value(given) if isinstance(given, str) else given)
    number = number.item() if np.ndim(number) == 0 and hasattr(number, "item") else number
    return number if isinstance(number, int) and not isinstance(number, bool) else None
