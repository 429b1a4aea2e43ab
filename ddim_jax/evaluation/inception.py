"""The Inception network of 2015-12-05, the ruler that FIDs are measured with.

Inception v3 as Google released it, with two oddities that later versions lack: its average pooling
leaves the padding out, and its last block pools by maximum. It gives

    pool      [B, 2048]  mean of the last map, 8 x 8            FID, KID, precision and recall
    logits    [B, 1008]  of the last layer, without its bias    Inception score
    spatial   [B, 2023]  7 channels of a map of 17 x 17         sFID

The weights, `pt_inception-2015-12-05-6726825d.pth`, are not in this package. Torch reads them;
where it is not installed, take a file that was written once where it is:

    python -m ddim_jax.evaluation.inception pt_inception-2015-12-05-6726825d.pth OUT.safetensors

Sources: Szegedy et al. 2015 (arXiv:1512.00567), figures 5, 6, 7 and 10; Heusel et al. 2017
(arXiv:1706.08500), FID; Nash et al. 2021 (arXiv:2103.03841), sFID; Salimans et al. 2016
(arXiv:1606.03498), Inception score.
"""

import argparse
import hashlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ddim_jax.evaluation.features import Features

Array = Any
HIGHEST = jax.lax.Precision.HIGHEST  # a ruler must not depend on the device

SIZE, CLASSES, SPATIAL_CHANNELS = 299, 1008, 7
BATCH_NORM_EPS = 1e-3
RESIZES = {"pytorch_fid": 127.5, "tensorflow": 128.0}
"""Ways to feed an image, and the grey level that becomes 0."""

SHA256_PREFIX = "6726825d"
GET = (
    f"get pt_inception-2015-12-05-{SHA256_PREFIX}.pth (its SHA-256 begins with {SHA256_PREFIX}) "
    "from https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
)


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
    """Images as the network takes them: bilinear to 299 x 299, never antialiased, and scaled.

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
    """float32 [299, size]: in each row the weights of two neighbours, which sum to 1."""
    places, scale = np.arange(SIZE), np.float32(size / SIZE)
    half = np.float32(0.5 if convention == "pytorch_fid" else 0)
    at = np.maximum((places.astype(np.float32) + half) * scale - half, 0)  # float32: as theirs
    low = at.astype(int)
    matrix = np.zeros((SIZE, size), np.float32)
    matrix[places, low] = 1 - (at - low)
    matrix[places, np.minimum(low + 1, size - 1)] += at - low
    return matrix


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors that are read, sorted by name; the `.pth` holds the bias of `fc` too."""
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    layers = jax.eval_shape(Inception().init, jax.random.key(0), x)["params"]
    shapes = {"fc.weight": layers.pop("fc")["kernel"].shape[::-1]}
    for name, layer in layers.items():
        *size, inputs, outputs = layer["kernel"].shape
        shapes[f"{name}.conv.weight"] = (outputs, inputs, *size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (outputs,)
    return dict(sorted(shapes.items()))


def load(path: str | Path, *, sha256_prefix: str | None = SHA256_PREFIX) -> tuple[Any, str]:
    """Reads the weights.

    Args:
        path: the `.pth`, which torch must be installed for, or a `.safetensors` of `convert`.
        sha256_prefix: how the SHA-256 of the `.pth` must begin; None takes any weights, and what
            is then measured is no FID.

    Returns:
        The parameters of Inception, float32, and the SHA-256 of the `.pth`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other weights, an unreadable file, or a `.pth` without torch.
    """
    tensors, sha256 = _read(Path(path).expanduser(), sha256_prefix)
    shapes, params = torch_shapes(), {}
    for name, shape in shapes.items():
        found = tensors[name].shape if name in tensors else "missing"
        if found != shape:
            raise ValueError(f"{path}: tensor {name} must be {shape}, is {found}; {GET}")
    for name in (key.removesuffix(".conv.weight") for key in shapes if ".conv." in key):
        gain, shift, mean, variance = (
            tensors[f"{name}.bn.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain /= np.sqrt(variance + BATCH_NORM_EPS)
        kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        params[name] = {"kernel": kernel * gain, "bias": shift - mean * gain}
    params["fc"] = {"kernel": tensors["fc.weight"].T}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params), sha256


def _read(path: Path, sha256_prefix: str | None) -> tuple[dict[str, np.ndarray], str]:
    """The tensors by PyTorch's names, and the SHA-256 of the file they were published in."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {path}; {GET}, put it anywhere and give its path "
            "(--features=inception:PATH). For digits, 'digits' (FDD) needs no such file"
        )
    if path.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"Inception weights are a .pth or a .safetensors file, got {path}")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                sha256 = (file.metadata() or {}).get("source_sha256", sha256)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if not sha256.startswith(sha256_prefix or ""):
        raise ValueError(
            f"{path} holds other weights: their SHA-256 must begin with {sha256_prefix}, is "
            f"{sha256}; {GET}"
        )
    if path.suffix == ".safetensors":
        return safetensors.numpy.load(content), sha256
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs torch, which is not installed; where it is, run once python -m "
            f"ddim_jax.evaluation.inception {path.name} OUT.safetensors, and use that file here"
        ) from error
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name: tensor.detach().numpy() for name, tensor in state.items()}, sha256


def convert(
    source: str | Path, target: str | Path, *, sha256_prefix: str | None = SHA256_PREFIX
) -> str:
    """Writes the weights to a file that needs no torch, and returns the SHA-256 of the source.

    Args:
        source: the `.pth`.
        target: ends in .safetensors; must not exist.
        sha256_prefix: as in `load`.

    Raises:
        FileExistsError: the target exists.
        FileNotFoundError: no source.
        ValueError: another ending, or as in `load`.
    """
    target = Path(target).expanduser()
    if target.suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, got {target}")
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name, or remove it")
    tensors, sha256 = _read(Path(source).expanduser(), sha256_prefix)
    target.write_bytes(safetensors.numpy.save(tensors, {"source_sha256": sha256}))
    return sha256


def main(argv: list[str] | None = None) -> None:
    """Converts the weights of the FID network from .pth to .safetensors; needs torch."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", metavar="IN.pth", help=GET.removeprefix("get "))
    parser.add_argument("target", metavar="OUT.safetensors", help="to write; must not exist")
    args = parser.parse_args(argv)
    try:
        sha256 = convert(args.source, args.target)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"{args.target}: weights with SHA-256 {sha256}")


if __name__ == "__main__":
    main()
