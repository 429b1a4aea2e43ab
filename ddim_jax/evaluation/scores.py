"""Every number about a set of samples, with all that is needed to draw and measure it again."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax import data
from ddim_jax.data import Source
from ddim_jax.evaluation import features, metrics
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.evaluation.metrics import Reference
from ddim_jax.models.pretrained import Pretrained, fingerprint

FEW = 10_000
"""Below so many samples, a Frechet distance is not comparable with published ones."""


PACKAGES = ("ddim_jax", "jax", "jaxlib", "flax", "diffrax", "numpy")


class Ruler(NamedTuple):
    """What samples are measured with.

    Attributes:
        network: of the features.
        reference: statistics of the data, for Frechet distances.
        real: [M, D] features of data, for KID, precision and recall; None for none of these.
        real_name: of that data.
    """

    network: FeatureNetwork
    reference: Reference
    real: np.ndarray | None = None
    real_name: str | None = None


def find_data(
    network: FeatureNetwork,
    reference: str | None,
    real: str | None,
    image_shape: tuple[int, int, int],
) -> tuple[Reference | None, Source | None]:
    """What to compare samples with, checked but not yet measured.

    Args:
        network: of the features.
        reference: an npz of statistics; None for those of the real images, or, for digits, of
            MNIST's 60,000 training images.
        real: data of real images as `data.load` takes it; None for none, or, for digits, the
            5,000 in the package.
        image_shape: of the samples.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing to compare with; statistics of another network, resize or dimension;
            images of another shape.
    """
    network.check(image_shape)
    if network.name == "digits":
        real, reference = real or "digits", reference or metrics.BUNDLED[0]
    if reference is None and real is None:
        raise ValueError(
            "there is nothing to compare samples with: give --reference=FILE.npz of statistics, or "
            "--real with the data, like npz:PATH or folder:PATH"
        )
    known = None if reference is None else _check(metrics.load_reference(reference), network)
    source = None if real is None else data.load(real)
    if source is not None and source.image_shape != tuple(image_shape):
        raise ValueError(
            f"real images must have the samples' shape {tuple(image_shape)}, {real} has "
            f"{source.image_shape}; prepare them in that size"
        )
    return known, source


def make_ruler(
    network: FeatureNetwork,
    reference: Reference | None,
    source: Source | None,
    folder: Path | None = None,
    update: Callable[[int], None] = lambda count: None,
) -> Ruler:
    """A ruler from what `find_data` found.

    Args:
        network: of the features.
        reference: statistics; None for those of the real images.
        source: of real images; None for none.
        folder: where features of real images are kept for the next time; None for nowhere.
        update: called with the number of real images of each finished batch.
    """
    if source is None:
        return Ruler(network, reference)
    images = features.read_images(source)[0]
    digest = hashlib.sha256(images.tobytes() + f"{network.sha256} {network.resize}".encode())
    path = None if folder is None else folder / f"real_{digest.hexdigest()[:16]}.npz"
    found = None if path is None else features.read(path)
    if found is None:
        found = network.extract(images, update=update)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            features.write(path, found)
    name = f"{source.name}, {len(found.pool)} images"
    if reference is None:
        spatial = None if found.spatial is None else metrics.moments(found.spatial)
        pool = metrics.moments(found.pool)
        reference = Reference(name, pool, spatial, network.sha256, network.resize)
    return Ruler(network, reference, found.pool, name)


def _check(reference: Reference, network: FeatureNetwork) -> Reference:
    dimensions = len(reference.pool.mean)
    if dimensions != network.dimensions:
        raise ValueError(
            f"{reference.name} holds statistics of {dimensions} features, {network.name!r} has "
            f"{network.dimensions}; they belong to another network"
        )
    for what in ("network_sha256", "resize"):
        theirs, ours = getattr(reference, what), getattr(network, what.removeprefix("network_"))
        if theirs not in (None, ours):
            raise ValueError(
                f"{reference.name} was made with another {what}, {theirs}, than that of the "
                f"features, {ours}; make the statistics anew"
            )
    return reference


def score(found: Features, ruler: Ruler, labels: np.ndarray | None = None) -> dict[str, Any]:
    """All metrics of a set of samples, by name; what does not apply is left out.

    Args:
        found: features of the samples.
        ruler: what to compare with.
        labels: [N] that the samples were drawn for.

    Raises:
        ValueError: fewer samples than feature dimensions.
    """
    network, count = ruler.network, len(found.pool)
    frechet, kernel, classes = network.names
    distance = metrics.frechet_distance(metrics.moments(found.pool), ruler.reference.pool)
    scores = {"num_samples": count, frechet: distance}
    if found.spatial is not None and ruler.reference.spatial is not None:
        spatial = metrics.frechet_distance(metrics.moments(found.spatial), ruler.reference.spatial)
        scores[f"s{frechet}"] = spatial
    if ruler.real is not None:
        size = min(1000, count, len(ruler.real))
        mean, deviation = metrics.kid(found.pool, ruler.real, subset_size=size)
        scores |= {kernel: mean, f"{kernel}_deviation": deviation}
        scores |= metrics.manifold(ruler.real, found.pool)._asdict()
    order = np.random.default_rng(0).permutation(count)  # the splits must not follow the labels
    scores[classes], scores[f"{classes}_deviation"] = metrics.inception_score(found.logits[order])
    if labels is not None and network.num_classes:
        scores["accuracy"] = float(np.mean(found.logits.argmax(axis=1) == labels))
    return scores


def provenance(model: Pretrained, ruler: Ruler) -> dict[str, Any]:
    """Whose samples they are and what measured them; JSON."""
    config = json.loads(model.config.to_json())
    return {
        "checkpoint": model.name,
        "weights_sha256": fingerprint(model.params),
        "training_steps": model.step,
        "ema": config["ema"],
        "features": ruler.network.name,
        "features_sha256": ruler.network.sha256,
        "resize": ruler.network.resize,
        "reference": ruler.reference.name,
        "reference_count": ruler.reference.pool.count,
        "real": ruler.real_name,
        "versions": versions(),
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def versions() -> dict[str, str]:
    """Of the packages that numbers depend on."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
