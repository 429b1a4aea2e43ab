"""LPIPS, a learned distance between images: weighted differences of the features of VGG16.

The weights are not in this package. Where torch and lpips are installed, one file of them is
written by

    import lpips, safetensors.torch
    net = lpips.LPIPS(net="vgg")
    kept = {name: v for name, v in net.state_dict().items() if not name.startswith("lins.")}
    safetensors.torch.save_file(kept, "lpips_vgg.safetensors")

Consistency models of 64 and 256 pixels were trained with average in place of max pooling.

Sources: Zhang et al. 2018 (arXiv:1801.03924), section 3 and the authors' code, version 0.1; Song et
al. 2023 (arXiv:2303.01469), authors' code (average pooling).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ddim_jax.predictions import in_pairs, split_pairs

Array = Any

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of VGG16 between its poolings."""
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
POOLINGS = {"lpips": "max", "lpips_average": "average"}
"""What configs name before `:FILE`, and its pooling."""
SIZE = 224
"""Least height and width that LPIPS sees."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of the tensors that `load` reads, in PyTorch's layout."""
    tensors, before, layer = {}, 3, 0
    for stage, (channels, count) in enumerate(STAGES):
        layer += stage > 0  # the pooling before it
        for _ in range(count):
            name = f"net.slice{stage + 1}.{layer}"
            tensors |= {f"{name}.weight": (channels, before, 3, 3), f"{name}.bias": (channels,)}
            before, layer = channels, layer + 2  # a ReLU follows
        tensors[f"lin{stage}.model.1.weight"] = (1, channels, 1, 1)
    return tensors


def load(path: str | Path, pooling: str = "max") -> Callable[[Array, Array], Array]:
    """Reads the weights and returns the distance of two batches of images.

    Images smaller than 224 are resized to it, bilinearly, as in consistency models.

    Args:
        path: the file described in this module.
        pooling: "max", as the network was trained, or "average".

    Returns:
        A function of two batches [B, H, W, 1 or 3] in [-1, 1] that returns [B].

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a safetensors file, or its tensors are others; another pooling.
    """
    if pooling not in POOLINGS.values():
        raise ValueError(f"pooling must be 'max' or 'average', got {pooling!r}")
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no LPIPS weights at {path}; ddim_jax/losses/lpips.py says how to write the file "
            "where torch is installed; another config.loss.distance, or none, needs none"
        )
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    for name, shape in shapes().items():
        got = tensors[name].shape if name in tensors else "missing"
        if got != shape:
            raise ValueError(f"{path}: tensor {name} must be {shape}, is {got}")
    params = {name: jnp.asarray(tensors[name], jnp.float32) for name in shapes()}
    return lambda a, b: distance(params, a, b, pooling)


def distance(params: dict[str, Array], a: Array, b: Array, pooling: str = "max") -> Array:
    """LPIPS [B] of two batches [B, H, W, 1 or 3] in [-1, 1], with the tensors of `shapes`."""
    both = in_pairs(a, b)
    total = 0.0
    for stage, features in enumerate(_features(params, _prepare(both), pooling)):
        norm = jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-20)
        first, second = split_pairs(features / (norm + 1e-10))
        weight = params[f"lin{stage}.model.1.weight"].reshape(1, 1, 1, -1)
        total = total + jnp.mean(jnp.sum((first - second) ** 2 * weight, axis=-1), axis=(1, 2))
    return total


def _prepare(x: Array) -> Array:
    if x.shape[-1] not in (1, 3):
        raise ValueError(f"LPIPS takes images of 1 or 3 channels, got {x.shape[-1]}")
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    if min(x.shape[1:3]) < SIZE:
        x = jax.image.resize(x, (len(x), SIZE, SIZE, 3), "bilinear", antialias=False)
    return (x - SHIFT.reshape(1, 1, 1, 3)) / SCALE.reshape(1, 1, 1, 3)


def _features(params: dict[str, Array], x: Array, pooling: str) -> list[Array]:
    """Returns the last feature map of every stage, after its ReLU."""
    features, layer = [], 0
    for stage, (_, count) in enumerate(STAGES):
        if stage:
            b, h, w, c = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
            x = x.max(axis=(2, 4)) if pooling == "max" else x.mean(axis=(2, 4))
            layer += 1
        for _ in range(count):
            name = f"net.slice{stage + 1}.{layer}"
            kernel = params[f"{name}.weight"].transpose(2, 3, 1, 0)
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + params[f"{name}.bias"].reshape(1, 1, 1, -1))
            layer += 2
        features.append(x)
    return features
