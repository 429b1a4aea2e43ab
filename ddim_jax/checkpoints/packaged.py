"""The models that come with the package, and files that hold only what differs from one of them.

    held = less(tensors, "emoji")             # of a student of it, whose autoencoder is the same
    tensors = whole(held, reference("emoji"), "student.safetensors")

A kernel that is a low-rank change of theirs, by `networks/low_rank.py` once or several times, is
held as two factors, "a/kernel:down" and "a/kernel:up".
"""

import contextlib
import importlib.resources
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ddim_jax import fingerprints
from ddim_jax.checkpoints import eight_bits, tensor_files
from ddim_jax.checkpoints.tensor_files import SUFFIX
from ddim_jax.checkpoints.tensors import cast

DOWN, UP = ":down", ":up"


def names() -> list[str]:
    """Names of the models that come with the package."""
    folder = importlib.resources.files("ddim_jax.assets")
    files = [file.name for file in folder.iterdir() if file.name.endswith(SUFFIX)]
    return sorted(file.removesuffix(SUFFIX) for file in files)


@contextlib.contextmanager
def file_of(name: str) -> Iterator[Path]:
    """The file of one of `names`, while the context is open."""
    file = importlib.resources.files("ddim_jax.assets") / f"{name}{SUFFIX}"
    with importlib.resources.as_file(file) as path:
        yield path


def reference(name: str) -> dict[str, str]:
    """What a file says of the model that it differs from.

    Args:
        name: of a model in the package.

    Raises:
        ValueError: there is no such model; it is itself held as what differs from another.
    """
    if name not in names():
        raise ValueError(f"a base is a model in the package ({', '.join(names())}), got {name!r}")
    with file_of(name) as path:
        if "base" in tensor_files.Tensors([path]).metadata:
            raise ValueError(f"{name} is held as what differs from another; take that as the base")
        return {"name": name, "sha256": fingerprints.of_file(path)}


def less(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The tensors without those that the model in the package has too.

    Args:
        tensors: name -> array, float32.
        name: of the model in the package.

    Raises:
        ValueError: no change of the model, which has tensors beside.
    """
    base = _tensors(name)
    if missing := base.keys() - tensors.keys():
        raise ValueError(
            f"this is no change of {name}, which has {min(missing)} beside; save it without a base"
        )
    held = {}
    for path, value in tensors.items():
        if path not in base:
            held[path] = value
        elif factors := _factors(value, base[path]):
            held |= {path + DOWN: factors[0], path + UP: factors[1]}
        elif not np.array_equal(value, base[path]):
            held[path] = value
    return held


def _factors(value: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Down and up [..., I, r] and [..., r, O] of a change of low rank; None of any other.

    Singular values below what adding in float32 rounds away count as 0.
    """
    if value.ndim < 2 or value.shape != base.shape or np.array_equal(value, base):
        return None
    left, middle, right = np.linalg.svd(value - base, full_matrices=False)
    size = np.maximum(*(np.linalg.norm(kernel, axis=(-2, -1)) for kernel in (base, value)))
    smallest = 8 * np.finfo(np.float32).eps * size
    rank = int((middle > smallest[..., None]).sum(-1).max())
    if rank * sum(value.shape[-2:]) >= value.shape[-2] * value.shape[-1]:
        return None
    root = np.sqrt(middle[..., :rank])
    return left[..., :rank] * root[..., None, :], root[..., None] * right[..., :rank, :]


def whole(
    held: Mapping[str, np.ndarray], said: Mapping[str, str], where: str
) -> dict[str, np.ndarray]:
    """All tensors, float32, of what `less` made.

    Args:
        held: name -> array.
        said: by the file, as `reference` made it.
        where: name of the file for messages.

    Raises:
        ValueError: the package has no such model, or another one under that name.
    """
    if reference(said["name"])["sha256"] != said["sha256"]:
        raise ValueError(
            f"{where} holds what differs from another {said['name']} than this version of ddim_jax "
            "brings; load it with the version that wrote it, and save it there without a base"
        )
    tensors = _tensors(said["name"])
    for name in held:
        if name.endswith(UP):
            continue
        value = np.asarray(held[name], np.float32)
        if name.endswith(DOWN):
            kernel = name.removesuffix(DOWN)
            tensors[kernel] = tensors[kernel] + value @ np.asarray(held[kernel + UP], np.float32)
        else:
            tensors[name] = value
    return tensors


def _tensors(name: str) -> dict[str, np.ndarray]:
    with file_of(name) as path:
        held = tensor_files.Tensors([path])
        found = eight_bits.unpack(held) if eight_bits.is_packed(held.metadata) else held
        return {name: cast(found[name], np.float32, name) for name in found}
