"""The models that come with the package, and files that hold only what differs from one of them.

    held = less(tensors, "emoji")             # of a student of it, whose autoencoder is the same
    tensors = whole(held, reference("emoji"), "student.safetensors")

A kernel that is a low-rank change of theirs (`networks/low_rank.py`) is held as its two factors,
"a/kernel:down" and "a/kernel:up".
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


def less(
    tensors: Mapping[str, np.ndarray],
    name: str,
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """The tensors without those that the model in the package has too.

    Args:
        tensors: name -> array, float32.
        name: of the model in the package.
        factors: of kernels that are other kernels and `down @ up`: name -> (down, up), held in the
            place of those that the model has.

    Raises:
        ValueError: no change of the model: it has tensors beside, or factors are of another.
    """
    base = _tensors(name)
    factors = {kernel: pair for kernel, pair in (factors or {}).items() if kernel in base}
    if missing := base.keys() - tensors.keys():
        raise ValueError(
            f"this is no change of {name}, which has {min(missing)} beside; save it without a base"
        )
    for kernel, (down, up) in factors.items():
        if not np.allclose(base[kernel] + down @ up, tensors[kernel], atol=1e-4):
            raise ValueError(
                f"this is no change of {name}, from which {kernel} differs by more than its "
                "factors; save it without a base"
            )
    same = {k for k, v in base.items() if np.array_equal(v, tensors[k])} | factors.keys()
    held = {k: v for k, v in tensors.items() if k not in same}
    for kernel, (down, up) in factors.items():
        held |= {kernel + DOWN: down, kernel + UP: up}
    return held


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
