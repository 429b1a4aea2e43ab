"""Metrics of two sets of pictures, given their features; float64, on the host.

With mean m and covariance S (N - 1 in the denominator) of each set,

    Frechet distance      |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))
    KID                   unbiased MMD^2 with the kernel (f . g / D + 1)^3
    Inception score       exp(mean KL(p(y|x) || mean p(y|x)))
    precision, recall     share of one set inside the k-nearest-neighbour balls of the other
    density, coverage     how many balls of real samples hold a sample; share that hold any

Heusel et al. 2017 (arXiv:1706.08500), Binkowski et al. 2018 (arXiv:1801.01401), Salimans et al.
2016 (arXiv:1606.03498), Kynkaanniemi et al. 2019 (arXiv:1904.06991), Naeem et al. 2020
(arXiv:2002.09797). All but KID are biased by the number of samples: compare equal N only.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 2000
"""Rows of a distance matrix that are held at a time."""


class Moments(NamedTuple):
    """Mean [D] and unbiased covariance [D, D], float64, of `count` samples; None: not known."""

    count: int | None
    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray | Iterable[np.ndarray]) -> Moments:
    """Computes mean and covariance of features [N, D], or of a stream of such parts.

    Parts are merged in float64 around their own means (Chan et al. 1979), so that neither the
    number of samples nor a mean far from 0 costs accuracy.

    Raises:
        ValueError: fewer than two samples, or a value that is not finite.
    """
    parts = [features] if isinstance(features, np.ndarray) else features
    count, mean, scatter = 0, 0.0, 0.0
    for part in parts:
        part = np.asarray(part, np.float64)
        if not np.isfinite(part).all():
            raise ValueError("features must be finite; the network or its input is broken")
        part_mean = part.mean(axis=0)
        delta, total = part_mean - mean, count + len(part)
        centred = part - part_mean
        between = np.outer(delta, delta) * (count * len(part) / total)
        scatter = scatter + centred.T @ centred + between
        mean, count = mean + delta * (len(part) / total), total
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {count}")
    return Moments(count, mean, scatter / (count - 1))


def check_count(count: int | None, dimensions: int) -> None:
    """Raises ValueError if a covariance would have fewer samples than dimensions."""
    if count is not None and count <= dimensions:
        raise ValueError(
            f"a Frechet distance in {dimensions} dimensions needs at least {dimensions + 1} "
            f"samples, got {count}; draw more (KID alone has no bias at any number)"
        )


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of the Gaussians with these moments.

    tr (S1 S2)^(1/2) is the sum of the singular values of R1 R2, with R the symmetric roots: no
    matrix square root of a product is taken, and singular covariances need no epsilon.

    Raises:
        ValueError: different dimensions, or fewer samples than dimensions.

    Source: Dowson & Landau 1982; Heusel et al. 2017, equation 6.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"moments must be of the same features, got {len(a.mean)} and {len(b.mean)} dimensions"
        )
    for one in (a, b):
        check_count(one.count, len(one.mean))
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    means = np.sum((a.mean - b.mean) ** 2)
    return float(means + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kid(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Kernel distance of features [N, D] and [M, D]: mean and deviation over random subsets.

    The default seed and the order of draws are torch-fidelity's, so that the numbers are.

    Raises:
        ValueError: subsets larger than a set.

    Source: Binkowski et al. 2018, equation 4 and section 3.
    """
    if subset_size > (most := min(len(a), len(b))):
        raise ValueError(
            f"subset_size must be at most the number of samples, {most}, got {subset_size}"
        )
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    rng, estimates = np.random.RandomState(seed), []
    for _ in range(subsets):
        x = a[rng.choice(len(a), subset_size, replace=False)]
        y = b[rng.choice(len(b), subset_size, replace=False)]
        estimates.append(_squared_mmd(x, y))
    return float(np.mean(estimates)), float(np.std(estimates))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate: no sample is paired with itself."""
    n = len(x)

    def kernel(f, g):
        k = f @ g.T / f.shape[1] + 1
        return k * k * k  # numpy takes several times as long for k**3

    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y)))
    return within - 2 * kernel(x, y).mean()


def inception_score(logits: np.ndarray, *, splits: int = 10) -> tuple[float, float]:
    """exp of the mutual information of picture and class: mean and deviation over splits.

    The splits of the logits [N, K] are in order, so the order of the classes must be random.

    Source: Salimans et al. 2016, section 4.
    """
    logits = np.asarray(logits, np.float64)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, splits):
        p = np.exp(part)
        log_mean = np.log(p.mean(axis=0, keepdims=True))
        scores.append(np.exp(np.mean(np.sum(p * (part - log_mean), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))


class Manifold(NamedTuple):
    """How two sets lie in each other's neighbourhoods; shares in 0..1, density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: np.ndarray, fake: np.ndarray, *, k: int = 3, k_density: int = 5) -> Manifold:
    """How samples lie among data, from features [N, D] of data and [M, D] of samples.

    The radius of a ball is the distance of the k-th neighbour; of the k_density-th for density and
    coverage.

    Raises:
        ValueError: not more samples than neighbours.

    Source: Kynkaanniemi et al. 2019, equations 1 and 2; Naeem et al. 2020, equations 4 and 7.
    """
    if min(len(real), len(fake)) <= max(k, k_density):
        raise ValueError(
            f"{max(k, k_density)} neighbours need more samples than that, got {len(real)} and "
            f"{len(fake)}"
        )
    real_radii, real_density_radii = _radii(real, (k, k_density))
    (fake_radii,) = _radii(fake, (k,))
    recalled, nearest, balls, precise = [], [], np.zeros(len(fake)), np.zeros(len(fake), bool)
    for rows, squared in _squared_distances(real, fake):
        recalled.append((squared <= fake_radii).any(axis=1))
        nearest.append(squared.min(axis=1))
        balls += (squared <= real_density_radii[rows, None]).sum(axis=0)
        precise |= (squared <= real_radii[rows, None]).any(axis=0)
    covered = np.concatenate(nearest) <= real_density_radii
    return Manifold(
        precision=float(precise.mean()),
        recall=float(np.concatenate(recalled).mean()),
        density=float(balls.mean() / k_density),
        coverage=float(covered.mean()),
    )


def nearest(points: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of `among` [M, D] is nearest to each of N points [N, D], int [N]."""
    return np.concatenate([d.argmin(axis=1) for _, d in _squared_distances(points, among)])


def _radii(points: np.ndarray, ks: tuple[int, ...]) -> list[np.ndarray]:
    """Squared distances to the k-th neighbour, the point itself not counted; one [N] for each k."""
    radii = [np.partition(d, ks, axis=1)[:, ks] for _, d in _squared_distances(points, points)]
    return list(np.concatenate(radii).T)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (rows, [rows, M]) of the matrix of squared distances, a block of rows at a time."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.sum(b**2, axis=1)
    for first in range(0, len(a), BLOCK):
        rows = slice(first, first + BLOCK)
        part = a[rows]
        squared = np.sum(part**2, axis=1)[:, None] + norms - 2 * part @ b.T
        yield rows, np.maximum(squared, 0)
