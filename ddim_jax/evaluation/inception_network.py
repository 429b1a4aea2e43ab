"""The layers of the Inception network of 2015-12-05, for FIDs, and how it is fed pictures.

Inception v3 as Google released it, with two oddities that later versions lack: its average pooling
leaves the padding out, and its last block pools by maximum. It gives

    pool      [B, 2048]  mean of the last map, 8 x 8            FID, KID, precision and recall
    logits    [B, 1008]  of the last layer, without its bias    Inception score
    spatial   [B, 2023]  7 channels of a map of 17 x 17         sFID

Sources: Szegedy et al. 2015 (arXiv:1512.00567), figures 5, 6, 7 and 10; Heusel et al. 2017
(arXiv:1706.08500), FID; Nash et al. 2021 (arXiv:2103.03841), sFID; Salimans et al. 2016
(arXiv:1606.03498), Inception score.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.evaluation.features import Features

Array = Any
HIGHEST = jax.lax.Precision.HIGHEST  # so that FIDs do not depend on the device

SIZE, CLASSES, SPATIAL_CHANNELS = 299, 1008, 7
RESIZES = {"pytorch_fid": 127.5, "tensorflow": 128.0}
"""Ways to feed an image, and the grey level that becomes 0."""


class Conv(NamedTuple):
    """Convolution, batch normalisation, ReLU."""

    features: int
    height: int = 1
    width: int = 1
    stride: int = 1
    padding: str = "SAME"


average_pool = partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)
max_pool = partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
halving_pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))

# A branch is a column of the paper's figures, from input to output; a list in it is a fork, whose
# outputs are joined, as those of the branches are, in the order written. Names are PyTorch's.
Branch = list[Conv | list[Conv] | Callable[[Array], Array]]
Block = dict[str, Branch]


def block_a(pooled: int) -> Block:
    """Figure 5, whose column of one 3x3 has a 5x5 here."""
    return {
        "branch1x1": [Conv(64)],
        "branch5x5": [Conv(48), Conv(64, 5, 5)],
        "branch3x3dbl": [Conv(64), Conv(96, 3, 3), Conv(96, 3, 3)],
        "branch_pool": [average_pool, Conv(pooled)],
    }


def block_c(c: int) -> Block:
    """Figure 6 for n = 7."""
    return {
        "branch1x1": [Conv(192)],
        "branch7x7": [Conv(c), Conv(c, 1, 7), Conv(192, 7, 1)],
        "branch7x7dbl": [Conv(c), Conv(c, 7, 1), Conv(c, 1, 7), Conv(c, 7, 1), Conv(192, 1, 7)],
        "branch_pool": [average_pool, Conv(192)],
    }


def block_e(pool: Callable[[Array], Array]) -> Block:
    """Figure 7."""
    fork = [Conv(384, 1, 3), Conv(384, 3, 1)]
    return {
        "branch1x1": [Conv(320)],
        "branch3x3": [Conv(384), fork],
        "branch3x3dbl": [Conv(448), Conv(384, 3, 3), fork],
        "branch_pool": [pool, Conv(192)],
    }


# Figure 10, from 35 x 35 to 17 x 17 and, with a 7x7 before the 3x3, from there to 8 x 8.
BLOCK_B: Block = {
    "branch3x3": [Conv(384, 3, 3, 2, "VALID")],
    "branch3x3dbl": [Conv(64), Conv(96, 3, 3), Conv(96, 3, 3, 2, "VALID")],
    "branch_pool": [halving_pool],
}
BLOCK_D: Block = {
    "branch3x3": [Conv(192), Conv(320, 3, 3, 2, "VALID")],
    "branch7x7x3": [Conv(192), Conv(192, 1, 7), Conv(192, 7, 1), Conv(192, 3, 3, 2, "VALID")],
    "branch_pool": [halving_pool],
}
BLOCKS = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": BLOCK_B,
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": BLOCK_D,
    "Mixed_7b": block_e(average_pool),
    "Mixed_7c": block_e(max_pool),
}


class Inception(nn.Module):
    """The FID network, for inference: batch normalisation is folded into the convolutions."""

    @nn.compact
    def __call__(self, x: Array) -> Features:
        """Maps x float32 [B, 299, 299, 3] in [-1, 1] to its features."""
        chex.assert_shape(x, (None, SIZE, SIZE, 3))
        x = _convolve(Conv(32, 3, 3, 2, "VALID"), x, "Conv2d_1a_3x3")
        x = _convolve(Conv(32, 3, 3, 1, "VALID"), x, "Conv2d_2a_3x3")
        x = halving_pool(_convolve(Conv(64, 3, 3), x, "Conv2d_2b_3x3"))
        x = _convolve(Conv(80), x, "Conv2d_3b_1x1")
        x = halving_pool(_convolve(Conv(192, 3, 3, 1, "VALID"), x, "Conv2d_4a_3x3"))
        for name, block in BLOCKS.items():
            columns = [_follow(branch, x, f"{name}.{key}") for key, branch in block.items()]
            x = jnp.concatenate(columns, axis=-1)
            if name == "Mixed_6d":  # ADM's mixed_6/conv:0: the 1x1 branch, which comes first
                spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
        pool = x.mean(axis=(1, 2))
        logits = nn.Dense(CLASSES, use_bias=False, precision=HIGHEST, name="fc")(pool)
        return Features(pool, logits, spatial)


def _follow(branch: Branch, x: Array, name: str) -> Array:
    numbered = sum(not callable(step) for step in branch) > 1
    for number, step in enumerate(branch, 1):
        label = f"{name}_{number}" if numbered else name
        if callable(step):
            x = step(x)
        elif isinstance(step, Conv):
            x = _convolve(step, x, label)
        else:
            forked = [_convolve(conv, x, label + "ab"[i]) for i, conv in enumerate(step)]
            x = jnp.concatenate(forked, axis=-1)
    return x


def _convolve(conv: Conv, x: Array, name: str) -> Array:
    size = (conv.height, conv.width)
    layer = nn.Conv(conv.features, size, conv.stride, conv.padding, precision=HIGHEST, name=name)
    return nn.relu(layer(x))


def preprocess(images: Array, convention: str) -> Array:
    """Resizes images to 299 x 299, bilinear and never antialiased, and scales them.

    "pytorch_fid" has pixel centres at i + 1/2 and sends 0..255 to [-1, 1]; "tensorflow", the graph
    as released (torch-fidelity, ADM's evaluator), has them at i and takes (x - 128) / 128.

    Args:
        images: uint8 [B, H, W, 3], or [B, H, W, 1] whose channel is repeated.
        convention: one of RESIZES; their FIDs differ by some tenths.

    Returns:
        float32 [B, 299, 299, 3].

    Raises:
        ValueError: other images or an unknown convention.
    """
    if convention not in RESIZES:
        raise ValueError(f"unknown resize {convention!r}; it must be one of {', '.join(RESIZES)}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 [B, H, W, 3] or [B, H, W, 1], got {images.dtype} of shape "
            f"{images.shape}; data.to_uint8 rounds floats in [-1, 1]"
        )
    down, across = (resize_matrix(size, convention) for size in images.shape[1:3])
    x = jnp.einsum("yh,bhwc->bywc", down, images.astype(jnp.float32), precision=HIGHEST)
    x = jnp.einsum("xw,bywc->byxc", across, x, precision=HIGHEST)
    grey = RESIZES[convention]
    return jnp.broadcast_to((x - grey) / grey, (*x.shape[:3], 3))


def resize_matrix(size: int, convention: str) -> np.ndarray:
    """Returns float32 [299, size]: in each row the weights of two neighbours, which sum to 1."""
    places, scale = np.arange(SIZE), np.float32(size / SIZE)
    half = np.float32(0.5 if convention == "pytorch_fid" else 0)
    at = np.maximum((places.astype(np.float32) + half) * scale - half, 0)  # float32 as in theirs
    low = at.astype(int)
    matrix = np.zeros((SIZE, size), np.float32)
    matrix[places, low] = 1 - (at - low)
    matrix[places, np.minimum(low + 1, size - 1)] += at - low
    return matrix
