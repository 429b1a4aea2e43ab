"""Parameters of ours from a published network's tensors, and back, by a list of entries.

Convolutions are [O, I, 3, 3] there and [3, 3, I, O] here; dense layers are transposed; those of
queries, keys and values lie side by side here; blocks that are compiled once are stacked here.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Array = Any
DTYPES = ("float32", "bfloat16", "float16")
"""Of parameters, by name."""


def check_dtype(dtype: str | None, known: Collection[str] = DTYPES) -> None:
    """Raises ValueError for what is no dtype of parameters; None, the files' own, is one."""
    if dtype is not None and dtype not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {dtype!r}")


class Entry(NamedTuple):
    """One of our parameters and the tensors that it is made of.

    Attributes:
        ours: path of the parameter, parts joined by "/"; "" for a constant that files hold.
        theirs: names of the tensors: of q, k and v, that lie side by side; of one block after the
            other; or one.
        blocks: how many blocks are stacked; 0 for none.
        copies: whether the tensors must be equal, and one is kept.
        pointwise: whether a dense layer is a 1x1 convolution there.
        patch: of a dense layer of patches that is a convolution there, their size; 0 for others.
        turned: whether a kernel is [I, O] there, as here.
    """

    ours: str
    theirs: tuple[str, ...]
    blocks: int = 0
    copies: bool = False
    pointwise: bool = False
    patch: int = 0
    turned: bool = False


class EveryName:
    """Stands for a file of which nothing is known: holds every name."""

    def __contains__(self, name: str) -> bool:
        """True."""
        return True


def renamed(entries: Iterable[Entry], rename: Callable[[str], str]) -> Iterator[Entry]:
    """The entries, of tensors by other names."""
    for entry in entries:
        yield entry._replace(theirs=tuple(rename(name) for name in entry.theirs))


def to_ours(
    entries: Iterable[Entry], tensors: Mapping[str, Array], dtype: Any = np.float32
) -> dict[str, Any]:
    """Our parameters of a network's tensors.

    Tensors are asked for one parameter after the other, so that beside the parameters memory holds
    those of one, if the mapping reads them then (`tensor_files.Tensors`).

    Args:
        entries: of the network.
        tensors: name -> array.
        dtype: of the parameters; None: of the tensors.

    Raises:
        ValueError: a tensor is missing, is left over, differs from what must equal it, or holds
            numbers that are not finite.
    """
    left, flat = set(tensors), {}
    for entry in entries:
        missing = [name for name in entry.theirs if name not in left]
        if missing:
            raise ValueError(f"the file lacks {missing[0]}, which the network asks for")
        left.difference_update(entry.theirs)
        if entry.ours:
            value = _read(entry, [np.asarray(tensors[name]) for name in entry.theirs])
            flat[entry.ours] = cast(value, dtype, entry.theirs[0])
    if left:
        raise ValueError(f"the file holds {min(left)}, for which the network has no place")
    return unflatten_dict(flat, sep="/")


def cast(value: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """A tensor in a dtype, None its own; ValueError names one with numbers that are not finite."""
    own = value.dtype
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype)  # a view stays one: JAX turns it faster
    if not np.isfinite(value).all():
        if np.float16 in (own, value.dtype):
            way_out = "float16 ends at 65,504; take the float32 files, and bfloat16 for their size"
        else:
            way_out = "the file is damaged, or its training diverged"
        raise ValueError(f"{name} holds numbers that are not finite in {value.dtype}: {way_out}")
    return value


def to_theirs(entries: Iterable[Entry], params: Any) -> dict[str, np.ndarray]:
    """A network's tensors of our parameters, in the dtype of these; mostly views of them.

    Args:
        entries: of the network, of a file of which nothing is known: those whose parameter is not
            there (shortcuts) are left out.
        params: of the network.

    Raises:
        ValueError: a parameter has no place there.
    """
    flat, tensors = flatten_dict(params, sep="/"), {}
    for entry in entries:
        if entry.ours in flat:
            values = _write(entry, np.asarray(flat.pop(entry.ours)))
            tensors |= dict(zip(entry.theirs, values, strict=True))
    if flat:
        raise ValueError(f"there is no tensor for the parameter {min(flat)}")
    return tensors


def _read(entry: Entry, values: list[np.ndarray]) -> np.ndarray:
    if entry.copies:
        values = [_alike(entry, values)]
    if entry.blocks:
        size, single = len(values) // entry.blocks, entry._replace(blocks=0)
        groups = [values[i : i + size] for i in range(0, len(values), size)]
        return np.stack([_read(single, group) for group in groups])
    if entry.ours.endswith("kernel") and not entry.turned:
        values = [_read_kernel(entry, value) for value in values]
    return np.concatenate(values, axis=-1) if len(values) > 1 else values[0]


def _read_kernel(entry: Entry, value: np.ndarray) -> np.ndarray:
    if value.ndim == 2:
        return value.T
    value = value.transpose(2, 3, 1, 0)
    if entry.patch:
        return value.reshape(-1, value.shape[-1])  # patches row by row, channels last
    return value[0, 0] if value.shape[:2] == (1, 1) else value


def _write(entry: Entry, value: np.ndarray) -> list[np.ndarray]:
    if entry.copies:
        one = entry._replace(copies=False, theirs=entry.theirs[:1])
        return _write(one, value) * len(entry.theirs)
    if entry.blocks:
        size, single = len(entry.theirs) // entry.blocks, entry._replace(blocks=0)
        single = single._replace(theirs=entry.theirs[:size])
        return [tensor for block in value for tensor in _write(single, block)]
    parts = np.split(value, len(entry.theirs), axis=-1)
    if entry.ours.endswith("kernel") and not entry.turned:
        parts = [_write_kernel(entry, part) for part in parts]
    return parts


def _write_kernel(entry: Entry, value: np.ndarray) -> np.ndarray:
    if entry.patch:
        value = value.reshape(entry.patch, entry.patch, -1, value.shape[-1])
    elif entry.pointwise:
        value = value[None, None]
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _alike(entry: Entry, values: list[np.ndarray]) -> np.ndarray:
    if any(not np.array_equal(values[0], value) for value in values):
        raise ValueError(f"{entry.theirs[0]} and its copies differ; our network has one for all")
    return values[0]
