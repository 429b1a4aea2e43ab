"""Codecs: what a network sees (samples) to and from what a person sees (uint8 pictures).

`encode(params, pictures, key)` makes samples `[B, *sample_shape]`, `decode(params, x)` makes uint8
pictures `[B, *picture_shape]`. Both run inside jit. Samplers, losses and solvers see samples only
and never know which codec made them.

`pixels` is the codec of networks that work on the pixels themselves: 0 <-> -1 and 255 <-> 1.
`to_unit_range` and `to_uint8` are its formulas. They take numpy or JAX arrays and return the same
kind, and `to_uint8(to_unit_range(u)) == u` exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any


class Codec(NamedTuple):
    """How samples and pictures are converted into each other.

    Attributes:
        sample_shape: of one sample, without the batch.
        picture_shape: of one picture, (H, W, C), without the batch.
        encode: `(params, pictures, key) -> x`, uint8 [B, *picture_shape] to float
            [B, *sample_shape]; the key is for codecs that draw, None for those that do not.
        decode: `(params, x) -> pictures`, float [B, *sample_shape] to uint8 [B, *picture_shape].
        params: the first argument of both; None for a codec without parameters.
    """

    sample_shape: tuple[int, ...]
    picture_shape: tuple[int, ...]
    encode: Callable[[Any, Array, Array | None], Array]
    decode: Callable[[Any, Array], Array]
    params: Any = None


def pixels(image_shape: tuple[int, ...]) -> Codec:
    """Returns the codec of samples that are the pictures themselves, in [-1, 1].

    `encode` converts uint8 with `to_unit_range` and returns floating point arrays as they are:
    they are samples already. `decode` is `to_uint8`. Neither uses parameters or a key. Both raise
    ValueError for arrays that do not end in `image_shape`.

    Args:
        image_shape: (H, W, C) of one picture.
    """
    shape = tuple(image_shape)

    def encode(params: Any, pictures: Array, key: Array | None = None) -> Array:
        _check_shape(pictures, shape, "pictures")
        return to_unit_range(pictures) if pictures.dtype.kind in "biu" else pictures

    def decode(params: Any, x: Array) -> Array:
        _check_shape(x, shape, "samples")
        return to_uint8(x)

    return Codec(shape, shape, encode, decode)


def to_unit_range(image: Array) -> Array:
    """Converts a uint8 array of any shape to float32 in [-1, 1].

    Args:
        image: numpy or JAX array, uint8.

    Raises:
        ValueError: `image` is not uint8 (it may have been converted already).
    """
    if image.dtype != np.uint8:
        raise ValueError(
            f"to_unit_range takes uint8 images, got {image.dtype}; "
            "images in [-1, 1] need no conversion, others convert with .astype('uint8') first"
        )
    return image.astype(np.float32) / 127.5 - 1


def to_uint8(x: Array) -> Array:
    """Converts a float array of any shape, in [-1, 1], to uint8: rounds and clips.

    Args:
        x: numpy or JAX array, floating point; values outside [-1, 1] are clipped.

    Raises:
        ValueError: `x` is not floating point (it may have been converted already).
    """
    # numpy gives bfloat16 the kind "V", so the check names the integer kinds
    if x.dtype.kind in "biu":
        raise ValueError(
            f"to_uint8 takes floating point images in [-1, 1], got {x.dtype}; "
            "integer images in 0..255 need no conversion"
        )
    xp = x.__array_namespace__()
    return xp.clip(xp.round((x.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def _check_shape(array: Array, shape: tuple[int, ...], what: str) -> None:
    if tuple(array.shape[array.ndim - len(shape) :]) != shape or array.ndim < len(shape):
        raise ValueError(
            f"{what} must be [..., {', '.join(map(str, shape))}], got {list(array.shape)}; "
            "crop and resize them first"
        )
