"""Weights in 8 bits, for files that are passed on: half of float16, to one part in a hundred.

    packed = eight_bits.pack(tensors)  # "a/kernel" int8 and "a/kernel:largest" float16
    eight_bits.unpack(packed)          # name -> float32

A kernel [..., I, O] is whole numbers of -127..127, where 127 stands for the largest of the I
numbers that go to an output. Biases, those of blocks in a row too, and kernels of few inputs are
float16.
"""

from collections.abc import Mapping

import numpy as np

from ddim_jax.checkpoints.tensors import cast

NAME = "int8"
"""As a dtype of files."""
LARGEST = ":largest"
"""After the name of a tensor: what 127 stands for."""
FEWEST = 16
"""Inputs of a kernel that is packed."""
FLOAT16 = ("bias", "scale")
"""Ends of names that are not packed, though blocks in a row stack them to matrices [blocks, O]."""


def pack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a file in 8 bits.

    Args:
        tensors: name -> array of floating point numbers.

    Raises:
        ValueError: numbers that are not finite in float16.
    """
    packed = {}
    for name, value in tensors.items():
        value = cast(value, np.float32, name)
        if value.ndim < 2 or value.shape[-2] < FEWEST or name.endswith(FLOAT16):
            packed[name] = cast(value, np.float16, name)
            continue
        largest = cast(np.abs(value).max(axis=-2, keepdims=True), np.float16, name)
        unit = largest.astype(np.float32) / 127
        unit = np.where(unit == 0, 1, unit)
        packed[name] = np.clip(np.round(value / unit), -127, 127).astype(np.int8)
        packed[name + LARGEST] = largest
    return packed


def is_packed(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a file say that it is in 8 bits."""
    return metadata["format"].endswith(f" {NAME}")


def unpack(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `pack` made into 8 bits as float32; other tensors as they are.

    Raises:
        ValueError: what 127 stands for is missing.
    """
    tensors = {}
    for name in packed:
        if name.endswith(LARGEST):
            continue
        value = packed[name]
        if value.dtype == np.int8:
            if name + LARGEST not in packed:
                raise ValueError(f"the file lacks {name + LARGEST}, the unit of {name}")
            value = value * (packed[name + LARGEST].astype(np.float32) / 127)
        tensors[name] = value
    return tensors
