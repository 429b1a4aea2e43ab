"""Distances against closed forms, each other's definitions, and the libraries everyone quotes."""

import json

import numpy as np
import pytest
from scipy import linalg

from ddim_jax.evaluation import metrics, references
from ddim_jax.evaluation.metrics import Moments


def gaussian(rng, count, dimensions, shift=0.0):
    mix = rng.normal(size=(dimensions, dimensions))
    return rng.normal(size=(count, dimensions)) @ mix + shift


def covariance(rng, dimensions):
    root = rng.normal(size=(dimensions, dimensions))
    return root @ root.T


def test_moments_of_a_stream_are_those_of_the_whole():
    x = gaussian(np.random.default_rng(0), 1000, 8, shift=1e4).astype(np.float32)
    whole = metrics.moments(x)
    parts = metrics.moments(np.array_split(x, [1, 7, 400]))
    assert whole.count == parts.count == 1000
    np.testing.assert_allclose(whole.mean, x.mean(0, np.float64), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(x.astype(np.float64).T), rtol=1e-9)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-9)


def test_isotropic_gaussians_have_the_closed_form():
    d, m1, m2, s1, s2 = 16, 0.3, -1.1, 0.5, 2.0
    a = Moments(None, np.full(d, m1), s1**2 * np.eye(d))
    b = Moments(None, np.full(d, m2), s2**2 * np.eye(d))
    wanted = d * (m1 - m2) ** 2 + d * (s1 - s2) ** 2
    assert metrics.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-12)


def test_commuting_and_general_covariances():
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    u, v = rng.uniform(0.1, 3, 6), rng.uniform(0.1, 3, 6)
    a, b = (Moments(None, np.zeros(6), (q * w) @ q.T) for w in (u, v))
    wanted = np.sum((np.sqrt(u) - np.sqrt(v)) ** 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-10)
    s1, s2 = covariance(rng, 6), covariance(rng, 6)
    a, b = Moments(None, np.zeros(6), s1), Moments(None, np.ones(6), s2)
    wanted = 6 + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert metrics.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
    assert metrics.frechet_distance(b, a) == pytest.approx(wanted, rel=1e-9)


def test_identical_sets_and_rotations():
    rng = np.random.default_rng(2)
    x, y = gaussian(rng, 500, 12), gaussian(rng, 400, 12, 1.0)
    q, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    a, b = metrics.moments(x), metrics.moments(y)
    assert abs(metrics.frechet_distance(a, a)) < 1e-10
    turned = metrics.frechet_distance(metrics.moments(x @ q), metrics.moments(y @ q))
    assert turned == pytest.approx(metrics.frechet_distance(a, b), rel=1e-10)


def test_singular_covariances_are_no_trouble():
    """Half of the features are constant, as dead units of a network are."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=(300, 4)), np.full((300, 4), 0.1)], axis=1)
    a, b = metrics.moments(x), metrics.moments(2 * x)
    wanted = np.trace(a.covariance) + np.sum(a.mean**2)
    assert metrics.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)


def test_the_bias_of_the_frechet_distance_falls_as_one_over_n():
    rng, d = np.random.default_rng(4), 16
    exact = Moments(None, np.zeros(d), np.eye(d))
    found = [
        np.mean(
            [
                metrics.frechet_distance(metrics.moments(rng.normal(size=(n, d))), exact)
                for _ in range(20)
            ]
        )
        for n in (200, 400)
    ]
    assert found[0] / found[1] == pytest.approx(2, rel=0.1)


def test_kid_is_unbiased_and_has_the_closed_form_for_its_kernel():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 2000, 4))
    mean, deviation = metrics.kid(x, y, subsets=50, subset_size=500)
    assert abs(mean) < 3 * deviation / np.sqrt(4)
    # E k over independent normals with means p, q: f . g has mean p.q = m, variance
    # v = D + |p|^2 + |q|^2 and third central moment 6 m; k is the third moment of 1 + f.g / D
    d, p, q = 4, np.zeros(4), np.full(4, 0.7)

    def expected(p, q):
        m, v = p @ q, d + p @ p + q @ q
        e = 1 + m / d
        return e**3 + 3 * e * v / d**2 + 6 * m / d**3

    wanted = expected(p, p) + expected(q, q) - 2 * expected(p, q)
    x, y = rng.normal(size=(2, 4000, d))
    found, _ = metrics.kid(x, y + q, subsets=1, subset_size=4000)
    assert found == pytest.approx(wanted, rel=0.1)
    shuffled, _ = metrics.kid(rng.permutation(x), y + q, subsets=1, subset_size=4000)
    assert shuffled == pytest.approx(found, rel=1e-9)


def test_the_draws_of_kid_stay_torch_fidelitys():
    """As recorded; the test beside torch-fidelity itself runs where that is installed."""
    x = np.sin(np.arange(120.0) ** 2).reshape(40, 3)
    y = np.cos(np.arange(90.0) ** 2).reshape(30, 3)
    found = metrics.kid(x, y, subsets=5, subset_size=12)
    np.testing.assert_allclose(found, [0.048988126754381, 0.167697842358122], rtol=1e-9)


def test_inception_score():
    sure = np.tile(50 * np.eye(10), (100, 1))
    assert metrics.inception_score(sure)[0] == pytest.approx(10, rel=1e-6)
    assert metrics.inception_score(np.zeros((100, 10)))[0] == pytest.approx(1)
    # two classes told apart with probability p: log score = log 2 - H(p)
    p = 0.9
    logits = np.log(np.tile([[p, 1 - p], [1 - p, p]], (50, 1)))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    score, deviation = metrics.inception_score(logits + 3.0, splits=10)
    assert np.log(score) == pytest.approx(np.log(2) - entropy) and deviation < 1e-12
    # each split is of the rows next to each other, and has a mean of its own
    halves = 50 * np.eye(2)[[0] * 5 + [1] * 5]
    np.testing.assert_allclose(metrics.inception_score(halves, splits=2), [1, 0], atol=1e-9)
    halves = 50 * np.eye(2)[[0] * 4 + [0, 1] * 2]
    np.testing.assert_allclose(metrics.inception_score(halves, splits=2), [1.5, 0.5])


def brute_manifold(real, fake, k, k_density):
    def radius(points, i, k):
        return np.sort(np.linalg.norm(points - points[i], axis=1))[k]

    def inside(x, points, k):
        return [np.linalg.norm(x - points[i]) <= radius(points, i, k) for i in range(len(points))]

    return metrics.Manifold(
        precision=np.mean([any(inside(x, real, k)) for x in fake]),
        recall=np.mean([any(inside(x, fake, k)) for x in real]),
        density=np.mean([sum(inside(x, real, k_density)) for x in fake]) / k_density,
        coverage=np.mean(
            [
                np.linalg.norm(fake - real[i], axis=1).min() <= radius(real, i, k_density)
                for i in range(len(real))
            ]
        ),
    )


def test_manifold_is_its_definition(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 13)
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(60, 3)), rng.normal(0.8, 0.7, size=(45, 3))
    found = metrics.manifold(real, fake, k=2, k_density=4)
    wanted = brute_manifold(real, fake, 2, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert 0 < found.recall < found.precision < 1 and found.recall != found.coverage


def test_manifold_at_its_ends():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(200, 5))
    assert metrics.manifold(x, x)[:2] == (1, 1) and metrics.manifold(x, x).coverage == 1
    assert tuple(metrics.manifold(x, x + 100)) == (0, 0, 0, 0)
    # samples that sit on a few of the data: all in, little covered
    few = np.repeat(x[:5], 40, axis=0) + 1e-6 * rng.normal(size=(200, 5))
    found = metrics.manifold(x, few)
    assert found.precision == 1 and found.recall < 0.1 and found.coverage < 0.3
    # expected density of the same distribution is 1
    same = metrics.manifold(rng.normal(size=(3000, 2)), rng.normal(size=(3000, 2)))
    assert same.density == pytest.approx(1, abs=0.05)


def test_bad_features():
    x = np.random.default_rng(8).normal(size=(10, 16))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        metrics.moments(x[:1])
    with pytest.raises(ValueError, match="must be finite"):
        metrics.moments(np.where(x > 2, np.nan, x) + np.inf)
    with pytest.raises(ValueError, match="in 16 dimensions needs at least 17 samples, got 10"):
        metrics.frechet_distance(metrics.moments(x), metrics.moments(x))
    with pytest.raises(ValueError, match="same features, got 16 and 8 dimensions"):
        metrics.frechet_distance(metrics.moments(x), metrics.moments(x[:, :8]))
    with pytest.raises(ValueError, match="at most the number of samples, 10, got 1000"):
        metrics.kid(x, x)
    with pytest.raises(ValueError, match="5 neighbours need more samples than that, got 5 and 10"):
        metrics.manifold(x[:5], x)


class Network:
    name, sha256, resize = "digits", "abc", "none"


def test_references_keep_their_numbers_and_their_origin(tmp_path):
    x = gaussian(np.random.default_rng(9), 50, 6)
    path = tmp_path / "statistics.npz"
    references.save(path, metrics.moments(x), Network, "fifty", metrics.moments(x[:, :3]))
    found = references.load(path)
    assert (found.name, found.network_sha256, found.resize) == ("fifty", "abc", "none")
    assert found.pool.count == 50 and len(found.spatial.mean) == 3
    np.testing.assert_array_equal(found.pool.covariance, metrics.moments(x).covariance)
    with pytest.raises(FileExistsError):
        references.save(path, metrics.moments(x), Network, "again")
    with np.load(path) as file:
        assert json.loads(str(file["about"]))["count"] == 50


def test_references_of_other_programs(tmp_path):
    mu, sigma = np.arange(4.0), np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma)
    found = references.load(tmp_path / "fid.npz")
    assert found.name == "fid.npz" and found.pool.count is None and found.spatial is None
    assert found.pool.covariance.dtype == np.float64
    adm = {"mu_s": mu[:2], "sigma_s": sigma[:2, :2], "arr_0": np.zeros((2, 8, 8, 3), np.uint8)}
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, **adm)
    assert len(references.load(tmp_path / "adm.npz").spatial.mean) == 2


def test_damaged_references(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(ValueError, match=r"must hold mu .* and sigma .*it has mean"):
        references.load(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"shapes \(4, 4\) and \(3,\)"):
        references.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable npz file"):
        references.load(path)
    with pytest.raises(FileNotFoundError):
        references.load(tmp_path / "none.npz")


def test_the_numbers_are_those_of_pytorch_fid_and_torch_fidelity():
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    x = np.maximum(gaussian(rng, 1500, 64), 0).astype(np.float32)
    y = np.maximum(gaussian(rng, 1200, 64, 0.3), 0).astype(np.float32)
    a, b = metrics.moments(x), metrics.moments(y)
    theirs = fid_score.calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert metrics.frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)
    scale = 1 / np.sqrt(64)
    options = {"kid_subsets": 10, "kid_subset_size": 500, "verbose": False}
    options |= {"kid_degree": 3, "kid_gamma": None, "kid_coef0": 1, "rng_seed": 2020}
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(scale * x).double(), torch.from_numpy(scale * y).double(), **options
    )
    mean, deviation = metrics.kid(scale * x, scale * y, subsets=10, subset_size=500)
    assert mean == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-6)
    assert deviation == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_STD], rel=1e-4)


def test_nearest_points():
    among = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    points = np.array([[3.0, 0.5], [0.4, 0.3], [1.0, 3.5], [4.0, 0.0]])
    assert metrics.nearest(points, among).tolist() == [1, 0, 2, 1]
