"""All metrics of a set of samples, with what is needed to draw and to measure it again."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax import data
from ddim_jax.data import Source
from ddim_jax.evaluation import features, metrics, references
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.evaluation.references import Reference
from ddim_jax.model import Model

FEW = 10_000
"""Samples below which a Frechet distance is not comparable with published ones."""

PACKAGES = ("ddim_jax", "jax", "jaxlib", "flax", "diffrax", "numpy")


class Evaluator(NamedTuple):
    """What samples are measured with.

    Attributes:
        network: of the features.
        reference: statistics of data, for Frechet distances.
        real: [M, D] features of real images, for KID, precision and recall; None for none of these.
        real_name: of the real images.
        further: of real clips, what the network keeps for its `compare`; None for none.
    """

    network: FeatureNetwork
    reference: Reference
    real: np.ndarray | None = None
    real_name: str | None = None
    further: Features | None = None


def find_data(
    network: FeatureNetwork,
    reference: str | None,
    real: str | None,
    image_shape: tuple[int, ...],
    cut: Mapping[str, Any] | None = None,
) -> tuple[Reference | None, Source | None]:
    """Opens what to compare samples with and checks it; nothing is measured yet.

    Args:
        network: of the features.
        reference: an npz of statistics; None for those of the real images, or, for digits, of
            MNIST's 60,000 training images, or those of the features' own gallery.
        real: real images as `data.load` takes them; None for none, or, for digits, the 5,000 in
            the package, for moving digits their test clips. Clips are resized to the samples.
        image_shape: of the samples.
        cut: of clips frame_rate, frame_stride and data_dir, as `data.load` takes them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing to compare with; statistics of another network, resize or dimension;
            images of another shape.
    """
    network.check(image_shape)
    if network.name == "digits":
        real, reference = real or "digits", reference or references.BUNDLED[0]
    if network.name == "moving_digits":
        real = real or "moving_digits"
    if network.gallery is not None and reference is None and real is None:
        return _of_gallery(network), None
    if reference is None and real is None:
        raise ValueError(
            "there is nothing to compare samples with: give --reference=FILE.npz of statistics, or "
            "--real with the data, like npz:PATH or folder:PATH"
        )
    statistics = None if reference is None else _check(references.load(reference), network)
    source = None if real is None else _real(real, image_shape, cut or {})
    if source is not None and source.shape != tuple(image_shape):
        raise ValueError(
            f"real images must have the samples' shape {tuple(image_shape)}, {real} has "
            f"{source.shape}; prepare them in that size"
        )
    return statistics, source


def _real(name: str, shape: tuple[int, ...], cut: Mapping[str, Any]) -> Source:
    """Real images; real clips of a shape, of moving digits of digits that nobody trains on."""
    if len(shape) == 3:
        return data.load(name)
    split = "test" if name == "moving_digits" else "train"
    frames, *size, channels = shape
    options = {**cut, "frames": frames, "image_size": tuple(size), "channels": channels}
    return data.load(name, split, **options)


def make_evaluator(
    network: FeatureNetwork,
    reference: Reference | None,
    source: Source | None,
    folder: Path | None = None,
    **progress: Any,
) -> Evaluator:
    """Makes an evaluator of what `find_data` returns; measures the real images.

    Without a reference the real images' statistics are taken; without real images the features of
    the network's gallery, if it has one, stand for them. In the folder, if any, their features
    are kept for the next time. `progress` is the `update` of `FeatureNetwork.extract`.
    """
    if source is None and network.gallery is not None:
        kept = _of_gallery(network)
        return Evaluator(network, reference or kept, network.gallery.pool, kept.name)
    if source is None:
        return Evaluator(network, reference)
    real = _real_features(network, source, folder, **progress)
    name = f"{source.name}, {len(real.pool)} {source.noun}"
    if reference is None:
        spatial = None if real.spatial is None else metrics.moments(real.spatial)
        pool = metrics.moments(real.pool)
        reference = Reference(name, pool, spatial, network.sha256, network.resize)
    further = real if network.compare else None
    return Evaluator(network, reference, real.pool, name, further)


def _of_gallery(network: FeatureNetwork) -> Reference:
    """Statistics of the real pictures that a network came with."""
    pool = network.gallery.pool
    name = f"gallery of {network.name}, {len(pool)} images"
    return Reference(name, metrics.moments(pool), None, network.sha256, network.resize)


def _real_features(
    network: FeatureNetwork, source: Source, folder: Path | None, **progress: Any
) -> Features:
    """Features of real images: those in the folder if they are there, else computed and kept."""
    images = features.read_images(source)[0]
    if folder is None:
        return network.extract(images, **progress)
    digest = hashlib.sha256(images.tobytes() + f"{network.sha256} {network.resize}".encode())
    path = folder / f"real_{digest.hexdigest()[:16]}.npz"
    if (kept := features.read(path)) is not None:
        return kept
    real = network.extract(images, **progress)
    folder.mkdir(parents=True, exist_ok=True)
    features.write(path, real)
    return real


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
                f"features, {ours}; make the statistics again"
            )
    return reference


def score(
    samples: Features,
    evaluator: Evaluator,
    labels: np.ndarray | None = None,
    prompts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Computes all metrics of a set of samples, by name; what does not apply is left out.

    The labels [N] and the prompts are those that the samples were drawn for. Where the network has
    a gallery, labels are its styles, and top1 and top5 say how many samples are found in it.

    Raises:
        ValueError: fewer samples than feature dimensions.
    """
    network, reference, real = evaluator[:3]
    count, (frechet, kernel, classes) = len(samples.pool), network.names
    distance = metrics.frechet_distance(metrics.moments(samples.pool), reference.pool)
    scores = {"num_samples": count, frechet: distance}
    if samples.spatial is not None and reference.spatial is not None:
        spatial = metrics.moments(samples.spatial)
        scores[f"s{frechet}"] = metrics.frechet_distance(spatial, reference.spatial)
    if real is not None:
        size = min(1000, count, len(real))
        mean, deviation = metrics.kid(samples.pool, real, subset_size=size)
        scores |= {kernel: mean, f"{kernel}_deviation": deviation}
        scores |= metrics.manifold(real, samples.pool)._asdict()
    order = np.random.default_rng(0).permutation(count)  # the splits must not follow the labels
    mean, deviation = metrics.inception_score(samples.logits[order])
    scores |= {classes: mean, f"{classes}_deviation": deviation}
    if network.compare and evaluator.further is not None:
        scores |= network.compare(samples, evaluator.further, labels)
    if labels is not None and network.num_classes:
        scores["accuracy"] = float(np.mean(samples.logits.argmax(axis=1) == labels))
    if network.gallery is not None and labels is not None and prompts is not None:
        scores |= network.gallery.found(samples.pool, prompts, labels)
    return scores


def provenance(model: Model, evaluator: Evaluator) -> dict[str, Any]:
    """Says whose samples are measured and with what; JSON."""
    config = json.loads(model.config.to_json())
    return {
        "checkpoint": model.name,
        "weights_sha256": model.fingerprint,
        "training_steps": model.step,
        "ema": config.get("ema"),
        "features": evaluator.network.name,
        "features_sha256": evaluator.network.sha256,
        "resize": evaluator.network.resize,
        "reference": evaluator.reference.name,
        "reference_count": evaluator.reference.pool.count,
        "real": evaluator.real_name,
        "versions": versions(),
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def versions() -> dict[str, str]:
    """Returns the versions of the packages that numbers depend on."""
    found = dict.fromkeys(PACKAGES, "not installed")
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
