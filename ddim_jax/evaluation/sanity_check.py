"""Measures the distance of real pictures, unchanged and altered, to the training pictures.

    python -m ddim_jax.evaluation.sanity_check
    python -m ddim_jax.evaluation.sanity_check --data=npz:mnist.npz --split=test

A distance can be trusted if it is small for real pictures that it has not seen (no model gets below
that at this number of samples), grows with every blur and every noise, and grows where classes are
missing. It does not look at labels: pictures under wrong labels are as near as before, so a
class-conditional model needs its accuracy beside it. What needs classes is left out of data without
any, and so is a part of the data with no more pictures than the features have dimensions. Where the
features come with a gallery and the data with captions, it also says how many pictures are found by
their captions.

    python -m ddim_jax.evaluation.sanity_check --features=moving_digits --num_samples=1000

Of clips a part is compared with the part after it, unchanged and damaged (`clip_damage.py`).
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from ddim_jax import command_line, data
from ddim_jax.data import Source
from ddim_jax.evaluation import clip_damage, feature_networks, features, metrics, retrieval, scores
from ddim_jax.evaluation.features import FeatureNetwork

BLURS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Standard deviations of Gaussian blurs, in pixels."""

NOISES = (8, 16, 32, 64)
"""Standard deviations of Gaussian noises, of 255."""


def blur(images: np.ndarray, deviation: float) -> np.ndarray:
    """Blurs uint8 [N, H, W, C] by a Gaussian of a standard deviation in pixels."""
    blurred = ndimage.gaussian_filter(images.astype(np.float32), (0, deviation, deviation, 0))
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


def noise(images: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """Adds Gaussian noise of a standard deviation in grey levels to uint8 [N, H, W, C]."""
    eps = np.random.default_rng(seed).normal(scale=deviation, size=images.shape)
    return np.clip(np.rint(images + eps), 0, 255).astype(np.uint8)


def altered(
    images: np.ndarray,
    labels: np.ndarray | None,
    captions: Sequence[str] = (),
    seed: int = 0,
    least: int = 1,
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, Sequence[str]]]:
    """Yields (name, images, labels, captions) of the sets to measure: whole, fewer, and altered.

    Args:
        images: uint8 [N, H, W, C].
        labels: int [N]; None: there are none, and no sets by them.
        captions: N texts, or none.
        seed: of all random numbers.
        least: pictures in a part of them, which is left out where it has fewer.
    """
    rng, texts = np.random.default_rng(seed), np.array(captions)

    def some(rows):
        own = labels if labels is None else labels[rows]
        return images[rows], own, texts[rows] if len(texts) else texts

    yield "real", images, labels, texts
    for count in (5000, 2000, 1000):
        if least <= count < len(images):
            yield f"real, {count} of them", *some(rng.choice(len(images), count, replace=False))
    for deviation in BLURS:
        yield f"blurred by {deviation} pixels", blur(images, deviation), labels, texts
    for deviation in NOISES:
        yield f"noise of {deviation}/255", noise(images, deviation), labels, texts
    if labels is not None:
        yield "labels shuffled", images, rng.permutation(labels), texts
    if len(texts):
        yield "captions shuffled", images, labels, rng.permutation(texts)
    if labels is not None and (half := labels < (labels.max() + 1) // 2).sum() >= least:
        yield "half of the classes alone", *some(half)
    yield "mirrored", images[:, :, ::-1], labels, texts


def check_clips(network: FeatureNetwork, source: Source, count: int | None = None) -> None:
    """Prints what a network's measures say of real and of damaged clips.

    Args:
        network: of clips.
        source: of clips; the first are what the next are compared with.
        count: in each of these parts; None for half of them.

    Raises:
        ValueError: pictures, or not enough of them.
    """
    network.check(source.shape)
    count = count or len(source) // 2
    if 2 * count > len(source):
        raise ValueError(
            f"--num_samples must be at most half of the {len(source):,} clips of {source.name}, "
            f"got {count}"
        )
    metrics.check_count(count, network.dimensions)
    real, other = (range(first, first + count) for first in (0, count))
    theirs = network.extract(features.read_images(source, real)[0])
    reference = metrics.moments(theirs.pool)
    clips, labels = features.read_images(source, other)
    labels = labels if source.num_classes else None
    rng = np.random.default_rng(0)
    print(f"{source.name}, {count} clips of shape {source.shape} beside {count} others\n")
    for name, change in {"other clips": lambda clips, rng: clips, **clip_damage.DAMAGES}.items():
        found = network.extract(change(clips, rng))
        distance = metrics.frechet_distance(metrics.moments(found.pool), reference)
        record = network.compare(found, theirs, labels) | {network.names[0]: distance}
        if name == "other clips":
            print(f"| set | {' | '.join(record)} |\n|{'---|' * (len(record) + 1)}")
        shown = [f"{value:.4g}" for value in record.values()]
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Prints the metrics of every set as a markdown table."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="real images, as data.load takes them; default digits")
    parser.add_argument("--split", help="default train, of moving digits test")
    parser.add_argument("--resize", type=int, help="of clips: pixels of a side")
    parser.add_argument("--frames", type=int, help="of clips: how many each has")
    parser.add_argument("--num_samples", type=int, help="of clips: in each part; default half")
    parser.add_argument("--features", default="digits", help=feature_networks.NAMES)
    parser.add_argument("--reference", help="npz of statistics; default digits_train")
    parser.add_argument("--real", help="real images to compare pictures with, like npz:PATH")
    args = parser.parse_args(argv)
    command_line.run("sanity_check", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Checks, measures and prints."""
    network = feature_networks.load(args.features)
    moving = network.name == "moving_digits"
    args.data = args.data or ("moving_digits" if moving else "digits")
    args.split = args.split or ("test" if args.data == "moving_digits" else "train")
    source = data.load(args.data, args.split, image_size=args.resize, frames=args.frames)
    if network.compare:
        check_clips(network, source, args.num_samples)
        return
    statistics, real = scores.find_data(network, args.reference, args.real, source.image_shape)
    metrics.check_count(len(source) // 2, network.dimensions)
    if statistics is None and real is not None:
        metrics.check_count(len(real), network.dimensions)
    numbers = np.arange(source.num_classes)
    if network.gallery is not None:
        numbers = retrieval.styles_of(network.gallery, source, numbers)
    evaluator = scores.make_evaluator(network, statistics, real)
    print(f"{args.data}, {args.split}, against {evaluator.reference.name}\n")
    names = (*network.names, "precision", "recall", "density", "coverage")
    names += ("accuracy",) if source.num_classes and network.num_classes else ()
    found = network.gallery is not None and source.captions and source.num_classes
    names += ("top1", "top5") if found else ()
    print(f"| set | N | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
    images, labels = features.read_images(source)
    labels, least = numbers[labels] if source.num_classes else None, network.dimensions + 1
    for name, changed, own, texts in altered(images, labels, source.captions, least=least):
        asked = texts.tolist() if len(texts) else None
        record = scores.score(network.extract(changed), evaluator, own, asked)
        shown = [f"{record[key]:.4g}" if key in record else "" for key in names]
        print(f"| {name} | {len(changed)} | {' | '.join(shown)} |", flush=True)
    halves = np.array_split(np.random.default_rng(0).permutation(len(images)), 2)
    a, b = (metrics.moments(network.extract(images[rows]).pool) for rows in halves)
    distance = metrics.frechet_distance(a, b)
    print(f"\n{network.names[0]} of {a.count} of them to the other {b.count}: {distance:.4g}")


if __name__ == "__main__":
    main()
