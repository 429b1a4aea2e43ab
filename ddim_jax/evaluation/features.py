"""Features: the vectors in which sets of pictures are compared, and what computes them.

    network = feature_networks.load("digits")
    pool = network.extract(images).pool              # [N, D]

Pictures are uint8: round a float picture first, as it would be in a file.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax import files, parallel
from ddim_jax.data import Source
from ddim_jax.evaluation.gallery import Gallery

Array = Any


class Features(NamedTuple):
    """What a network says about N pictures; float32.

    Attributes:
        pool: [N, D], for the Frechet distance, KID, precision and recall.
        logits: [N, K] class scores, for the Inception score.
        spatial: [N, S] for sFID; None where the network has none.
        further: name -> [N, ...], what else a network keeps for its `compare`; None for nothing.
    """

    pool: np.ndarray
    logits: np.ndarray
    spatial: np.ndarray | None = None
    further: dict[str, np.ndarray] | None = None

    def first(self, count: int) -> "Features":
        """Returns the features of the first pictures."""
        return jax.tree.map(lambda leaf: leaf[:count], self)

    @staticmethod
    def join(parts: "list[Features]") -> "Features":
        """Returns the features of several sets, one after the other."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class FeatureNetwork(NamedTuple):
    """A network whose features are compared.

    Attributes:
        name: "digits", "inception", or that of one's own.
        dimensions: D.
        names: of its Frechet distance, kernel distance and class score.
        sha256: of its weights.
        resize: how pictures are brought to its size.
        image_shape: (H, W, C) that it takes, (T, H, W, C) of clips; None for any size, which it
            resizes.
        num_classes: K, if its classes are those of the data; 0 if not.
        apply: uint8 [B, H, W, C] -> Features, on the device.
        gallery: features of real pictures that came with it, see `Gallery`; None for none.
        compare: (samples, real, labels or None) -> further measures by name, of networks of clips,
            see `video`; None for none.
    """

    name: str
    dimensions: int
    names: tuple[str, str, str]
    sha256: str
    resize: str
    image_shape: tuple[int | None, ...]
    num_classes: int
    apply: Callable[[Array], Features]
    gallery: Gallery | None = None
    compare: Callable[..., dict[str, float]] | None = None

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raises ValueError if it cannot take pictures, or clips, of this shape."""
        if len(self.image_shape) != len(image_shape):
            of, hint = ("clips", "clips:NAME") if len(image_shape) == 4 else ("pictures", "digits")
            raise ValueError(
                f"features {self.name!r} are not of {of}, and of these there are shape "
                f"{tuple(image_shape)}; use --features={hint} or others"
            )
        taken = zip(self.image_shape, image_shape, strict=True)
        if any(wanted not in (None, given) for wanted, given in taken):
            raise ValueError(
                f"features {self.name!r} take images of shape {self.image_shape}, got "
                f"{image_shape}; use inception:PATH, which resizes"
            )

    def extract(
        self,
        images: np.ndarray,
        batch_size: int = 100,
        update: Callable[[int], None] = lambda count: None,
    ) -> Features:
        """Computes the features of uint8 [N, H, W, C], spread over all devices of this process.

        Of clips [N, T, H, W, C] a batch has as many frames. It is rounded up to a multiple of the
        devices; `update` is called with the number of pictures of each that is finished.

        Raises:
            ValueError: pictures that are not uint8, or of a shape that it does not take.
        """
        if images.dtype != np.uint8 or images.ndim not in (4, 5):
            raise ValueError(
                f"images must be uint8 [N, H, W, C], clips [N, T, H, W, C], got {images.dtype} of "
                f"shape {images.shape}; data.to_uint8 rounds floats in [-1, 1]"
            )
        self.check(images.shape[1:])
        batch_size = -(-batch_size // (images.shape[1] if images.ndim == 5 else 1))
        mesh = parallel.make_mesh(jax.local_devices())
        size, parts = -(-min(batch_size, len(images)) // mesh.size) * mesh.size, []
        for first in range(0, len(images), size):
            batch = images[first : first + size]
            full = np.resize(batch, (size, *batch.shape[1:]))
            result = jax.device_get(self.apply(parallel.shard(full, mesh)))
            parts.append(result.first(len(batch)))
            update(len(batch))
        return Features.join(parts)


def read_images(
    source: Source, index: Iterable[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads all of a source, or these places: (uint8 [N, H, W, C], int labels [N])."""
    examples = [source[i] for i in (range(len(source)) if index is None else index)]
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def write(path: Path, features: Features) -> None:
    """Writes features to an npz, which appears whole or not at all."""
    arrays = {name: value for name, value in features._asdict().items() if value is not None}
    arrays |= {f"further/{name}": value for name, value in arrays.pop("further", {}).items()}
    files.replace(path, lambda file: np.savez(file, **arrays))


def read(path: Path) -> Features | None:
    """Reads what `write` wrote; None if there is no such file, or a damaged one."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
        names = [name for name in arrays if name.startswith("further/")]
        further = {name.removeprefix("further/"): arrays.pop(name) for name in names}
        return Features(**arrays, further=further or None)
    except (OSError, ValueError, TypeError, KeyError, *files.DAMAGED):
        return None
