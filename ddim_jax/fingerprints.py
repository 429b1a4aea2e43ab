"""Fingerprints of parameters and files, by which pictures know what drew them."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

MOST_HASHED = 2**26
"""Numbers of a model that its fingerprint looks at."""


def fingerprint(params: Any) -> str:
    """sha256 of parameters: of their names, shapes and float32 bytes.

    Of more than `MOST_HASHED` numbers some of each array, evenly spaced: all would take seconds.

    Raises:
        ValueError: they are shapes alone.
    """
    digest, flat = hashlib.sha256(), flatten_dict(params, sep="/")
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in flat.values()):
        raise ValueError("shapes without weights can be planned with alone: name a checkpoint")
    every = -(-sum(leaf.size for leaf in flat.values()) // MOST_HASHED)
    for name, value in sorted(flat.items()):
        digest.update(f"{name}{value.shape}".encode())
        some = value if every <= 1 else value.reshape(-1)[:: every | 1]
        digest.update(np.ascontiguousarray(jax.device_get(some), np.float32).tobytes())
    return digest.hexdigest()


def of_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
