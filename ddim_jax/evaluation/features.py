"""From pictures to vectors: the networks that distances between sets of pictures are taken in.

    network = features.load("digits")                     # comes with the package: FDD
    network = features.load("inception:pt_inception.pth")  # the FID network, by path: FID
    pool = network.extract(images).pool

A distance is named after its network: FID, KID and IS (Frechet and kernel Inception distance,
Inception score) for the Inception of 2015-12-05 alone; FDD, KDD and DS (digit) for the digit
classifier. Pictures are uint8: a float picture is rounded first, as it would be in a file.
"""

import functools
import hashlib
import importlib.resources
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax import data, files, parallel
from ddim_jax.data import Source
from ddim_jax.evaluation import digits

Array = Any
INCEPTIONS = {"inception": "pytorch_fid", "inception_tensorflow": "tensorflow"}
"""Names of the FID network and how it is fed pictures: FIDs of the two differ by some tenths."""

NAMES = "digits, digits:PATH.npz, or " + " or ".join(f"{name}:PATH" for name in INCEPTIONS)


class Features(NamedTuple):
    """What a network says about N pictures; float32.

    Attributes:
        pool: [N, D], what Frechet distance, KID, precision and recall are taken of.
        logits: [N, K] class scores, for the Inception score.
        spatial: [N, S] for sFID; None where the network has none.
    """

    pool: np.ndarray
    logits: np.ndarray
    spatial: np.ndarray | None = None

    def first(self, count: int) -> "Features":
        """Those of the first pictures."""
        return jax.tree.map(lambda leaf: leaf[:count], self)

    @staticmethod
    def join(parts: "list[Features]") -> "Features":
        """Those of several sets, one after the other."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class FeatureNetwork(NamedTuple):
    """A network that distances are taken in.

    Attributes:
        name: "digits", "inception".
        dimensions: D.
        names: what its Frechet distance, kernel distance and class score are called.
        sha256: of its weights.
        resize: how pictures are brought to its size.
        image_shape: (H, W, C) it takes, None where any is resized.
        num_classes: K, if its classes are those of the data; 0 if not.
        apply: uint8 [B, H, W, C] -> Features, on the device.
    """

    name: str
    dimensions: int
    names: tuple[str, str, str]
    sha256: str
    resize: str
    image_shape: tuple[int | None, int | None, int | None]
    num_classes: int
    apply: Callable[[Array], Features]

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError if it cannot look at pictures of this shape."""
        wanted = self.image_shape
        if any(w not in (None, got) for w, got in zip(wanted, image_shape, strict=True)):
            raise ValueError(
                f"features {self.name!r} are of images of shape {wanted}, got {image_shape}; use "
                "inception:PATH, which resizes"
            )

    def extract(
        self,
        images: np.ndarray,
        batch_size: int = 250,
        update: Callable[[int], None] = lambda count: None,
    ) -> Features:
        """The features of a set, spread over all devices of this process.

        Args:
            images: uint8 [N, H, W, C].
            batch_size: pictures at a time, rounded up to a multiple of the devices.
            update: called with the number of pictures of each finished batch.

        Raises:
            ValueError: pictures that are not uint8, or of a shape it does not take.
        """
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, H, W, C], got {images.dtype} of shape {images.shape}; "
                "data.to_uint8 rounds floats in [-1, 1]"
            )
        self.check(images.shape[1:])
        mesh = parallel.make_mesh(jax.local_devices())
        size, found = -(-min(batch_size, len(images)) // mesh.size) * mesh.size, []
        for first in range(0, len(images), size):
            part = images[first : first + size]
            whole = np.resize(part, (size, *part.shape[1:]))
            result = jax.device_get(self.apply(parallel.shard(whole, mesh)))
            found.append(result.first(len(part)))
            update(len(part))
        return Features.join(found)


def load(name: str) -> FeatureNetwork:
    """A feature network by name.

    Args:
        name: "digits" for the classifier that comes with the package, "digits:PATH.npz" for
            another of its kind, "inception:PATH" for the FID network's weights fed as pytorch-fid
            does, "inception_tensorflow:PATH" as torch-fidelity and ADM do (`inception.py`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, or a file with other contents.
    """
    kind, _, path = name.partition(":")
    if name == "digits":
        file = importlib.resources.files("ddim_jax.assets") / "digit_classifier.npz"
        with importlib.resources.as_file(file) as path:
            return _digits(path)
    if kind == "digits" and path:
        return _digits(Path(path))
    if kind in INCEPTIONS:
        return _inception(path, INCEPTIONS[kind])
    raise ValueError(f"unknown features {name!r}; they are {NAMES}")


def _digits(path: Path) -> FeatureNetwork:
    params = digits.load(path)

    @jax.jit
    def apply(images: Array) -> Features:
        x = data.to_unit_range(images)
        return Features(*digits.DigitClassifier().apply({"params": params}, x))

    return FeatureNetwork(
        name="digits",
        dimensions=digits.FEATURES,
        names=("FDD", "KDD", "DS"),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        resize="none",
        image_shape=(28, 28, 1),
        num_classes=10,
        apply=apply,
    )


def _inception(path: str, resize: str) -> FeatureNetwork:
    from ddim_jax.evaluation import inception

    params, sha256 = inception.load(path)

    @jax.jit
    def apply(params: Any, images: Array) -> Features:
        x = inception.preprocess(images, resize)
        return inception.Inception().apply({"params": params}, x)

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


def read_images(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """All of a source: (uint8 [N, H, W, C], int labels [N])."""
    examples = [source[i] for i in range(len(source))]
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def write(path: Path, found: Features) -> None:
    """Keeps features in an npz, which appears whole or not at all."""
    given = {name: value for name, value in found._asdict().items() if value is not None}
    files.replace(path, lambda file: np.savez(file, **given))


def read(path: Path) -> Features | None:
    """Features that were kept; None if there are none, or none that can be read."""
    try:
        with np.load(path) as file:
            return Features(**file)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        return None
