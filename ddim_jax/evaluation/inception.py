"""The Inception network of 2015-12-05 as a feature network, which FIDs are measured with.

Its weights, `pt_inception-2015-12-05-6726825d.pth`, are not in this package. Torch reads them;
where it is not installed, take a file that was written once where it is:

    python -m ddim_jax.evaluation.inception pt_inception-2015-12-05-6726825d.pth OUT.safetensors
"""

import argparse
import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ddim_jax import command_line, files
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.evaluation.inception_network import SIZE, Inception, preprocess

BATCH_NORM_EPS = 1e-3
SHA256_PREFIX = "6726825d"
GET = (
    f"get pt_inception-2015-12-05-{SHA256_PREFIX}.pth (its SHA-256 begins with {SHA256_PREFIX}) "
    "from https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
)


def feature_network(path: str | Path, resize: str) -> FeatureNetwork:
    """Loads the network from a file as `load` does, for FID, KID and IS.

    Args:
        path: as of `load`.
        resize: one of `inception_network.RESIZES`.
    """
    params, sha256 = load(path)

    @jax.jit
    def apply(params: Any, images: Any) -> Features:
        return Inception().apply({"params": params}, preprocess(images, resize))

    return FeatureNetwork(
        name="inception",
        dimensions=2048,
        names=("FID", "KID", "IS"),
        sha256=sha256,
        resize=resize,
        image_shape=(None, None, None),
        num_classes=0,
        apply=functools.partial(apply, params),
    )


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors to read, sorted by name; the `.pth` holds the bias of `fc` too."""
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
        sha256_prefix: how the SHA-256 of the `.pth` must begin; None takes any weights, whose
            distances are no FIDs.

    Returns:
        The parameters of Inception, float32, and the SHA-256 of the `.pth`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other weights, an unreadable file, or a `.pth` without torch.
    """
    tensors, sha256 = _read(Path(path).expanduser(), sha256_prefix)
    shapes, params = torch_shapes(), {}
    for name, shape in shapes.items():
        actual = tensors[name].shape if name in tensors else "missing"
        if actual != shape:
            raise ValueError(f"{path}: tensor {name} must be {shape}, is {actual}; {GET}")
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
    """Reads the tensors by PyTorch's names, and the SHA-256 of the file they were published in."""
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
    """Writes the weights to a .safetensors file, which needs no torch; returns their SHA-256.

    Raises:
        FileExistsError: the target exists.
        FileNotFoundError: no source.
        ValueError: another ending, or as in `load`.
    """
    target, suffixes = Path(target).expanduser(), (".safetensors",)
    files.check_new(target, what="the file to write", suffixes=suffixes, overwrite=None)
    tensors, sha256 = _read(Path(source).expanduser(), sha256_prefix)
    content = safetensors.numpy.save(tensors, {"source_sha256": sha256})
    files.replace(target, lambda file: file.write(content))
    return sha256


def main(argv: list[str] | None = None) -> None:
    """Converts the weights of the FID network from .pth to .safetensors; needs torch."""
    parser = command_line.Parser(description=main.__doc__)
    parser.add_argument("source", metavar="IN.pth", help=GET.removeprefix("get "))
    parser.add_argument("target", metavar="OUT.safetensors", help="to write; must not exist")
    args = parser.parse_args(argv)
    command_line.run("inception", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Converts and says so."""
    sha256 = convert(args.source, args.target)
    print(f"{args.target}: weights with SHA-256 {sha256}")


if __name__ == "__main__":
    main()
