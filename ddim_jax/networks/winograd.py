"""Winograd's 3x3 convolution, F(2 x 2, 3 x 3): 2.25 times fewer multiplications, for CPUs.

Tiles of 4 x 4 pixels, 2 apart, and kernels are each transformed to 16 numbers; then a convolution
is 16 matrix products over tiles, whose 16 results make 2 x 2 pixels. Kernels are transformed once,
before sampling (`Model.prepared`): flax keeps them in a collection of their own, which
`Conv3x3` uses where it is given. In float32 the result is that of the plain convolution to 3e-6 of
the greatest. Of a network of 128 and more channels it takes 0.65 to 0.8 of the time
(`benchmarks/sampling.py`), of Stable Diffusion's 0.5; of narrower ones it gains nothing. Kernels
are kept both ways, 16 / 9 more numbers: 6 GB of Stable Diffusion's in place of 3.4.

Source: Lavin & Gray 2016, arXiv:1509.09308, section 4.1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any

COLLECTION = "winograd"
"""Of flax's variables: `kernel` [16, I, O] of the convolutions that have one."""
LEAST_CHANNELS = 128
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
"""G of the paper."""


def any_suits(params: Any) -> bool:
    """Returns whether a network of these parameters may have a convolution that `suits`."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    return any(len(s) == 4 and s[:2] == (3, 3) and _worth(*s[2:]) for s in shapes)


def _worth(channels: int, features: int) -> bool:
    """Whether the kernel is large enough to gain time."""
    return min(channels, features) >= LEAST_CHANNELS


def suits(x: Array, features: int, stride: int) -> bool:
    """Returns whether Winograd's method serves a convolution of x [B, H, W, I] to `features`."""
    _, height, width, channels = x.shape
    even = height % 2 == width % 2 == 0
    fits = _worth(channels, features) and x.dtype == jnp.float32
    return even and fits and stride == 1


def transform(kernel: Array) -> Array:
    """Transforms a kernel [3, 3, I, O] to [16, I, O]."""
    return jnp.einsum("ai,bj,ijco->abco", KERNEL, KERNEL, kernel).reshape(16, *kernel.shape[2:])


def convolve(x: Array, kernel: Array) -> Array:
    """Convolves x [B, H, W, I], H and W even, with a transformed kernel [16, I, O], at stride 1.

    Outside of x are zeros (SAME padding).
    """
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tiles = [part for row in _to_tiles(padded, 1) for part in _to_tiles(row, 2)]
    tiles = jnp.stack(tiles).reshape(16, -1, channels)
    products = jax.lax.dot_general(tiles, kernel, (((2,), (1,)), ((0,), (0,))))
    products = products.reshape(4, 4, batch, height // 2, width // 2, -1)
    pixels = jnp.stack([jnp.stack(_to_pixels(row), 3) for row in _to_pixels(products)], 2)
    return pixels.reshape(batch, height, width, -1)


def _to_tiles(x: Array, axis: int) -> list[Array]:
    """B^T of the paper along an axis: four arrays, of a number for each tile."""
    last = x.shape[axis] - 3
    a, b, c, d = (jax.lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(4))
    return [a - c, b + c, c - b, b - d]


def _to_pixels(x: Array) -> list[Array]:
    """A^T of the paper over the first axis: two arrays, of the first and the second pixel."""
    return [x[0] + x[1] + x[2], x[1] - x[2] - x[3]]
