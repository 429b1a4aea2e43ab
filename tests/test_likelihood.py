"""Likelihoods against closed forms: Gaussians, mixtures; the estimator; the bound term by term."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from ddim_jax import (
    adaptive_sampling,
    checkpoints,
    data,
    predictions,
    sampling,
    schedules,
    strides,
)
from ddim_jax.adaptive_sampling import Tolerance, noisy_end
from ddim_jax.evaluation import bound, density, likelihood
from ddim_jax.model import Model
from ddim_jax.predictions import Prediction, expand
from tests.oracles import GaussianData, Mixture

FLOW = schedules.rectified_flow(model_time=lambda sigma: sigma)
VP = schedules.vp_linear(model_time=lambda t: t)
EDM = schedules.edm()
X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
DATA = GaussianData(np.float32([[0.3, -0.2, 0.1]]), np.float32([[0.5, 0.2, 1.0]]))
CASES = {
    "vp": (schedules.ddpm_cosine(), -5.1, DATA, X),
    "flow": (FLOW, -9.0, DATA, X),
    "edm": (  # the levels of the flow, in [0, 1]
        schedules.edm(FLOW.t_min / (1 - FLOW.t_min) / 2, np.exp(9)),
        -9.0,
        GaussianData((DATA.mean + 1) / 2, DATA.std / 2),
        (X + 1) / 2,
    ),
}
KEYS = sampling.sample_keys(0, np.arange(4))
PROGRAMS = {}  # compiling is most of the time of these tests


def name(value):
    return getattr(value, "name", None)


def ends(schedule, lam_min):
    return schedule.level(schedule.t_min), noisy_end(schedule, lam_min)


def log_densities(denoise, schedule, x, probes, *, tolerance=1e-6, **options):
    """[N] of x [N, D], probes [P, D] for all or [N, P, D]; and the integrations."""
    probes = jnp.broadcast_to(jnp.asarray(probes, jnp.float32), (len(x), *np.shape(probes)[-2:]))

    def one(tolerance, x, probes):
        return density.log_density(denoise, schedule, tolerance, x, probes, **options)

    which = id(denoise), schedule, *options.items()
    call = PROGRAMS.setdefault(which, jax.jit(jax.vmap(one, in_axes=(None, 0, 0))))
    return jax.device_get(call(Tolerance(tolerance, tolerance), x, probes))


class Turned:
    """Data of independent dimensions along a basis, so that Jacobians are not diagonal."""

    def __init__(self, data, basis):
        self.data, self.basis = data, basis

    def __call__(self, x, level):
        basis = jnp.asarray(self.basis, x.dtype)
        return Prediction(*(field @ basis.T for field in self.data(x @ basis, level)))


BASIS = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
CORRELATED = Turned(GaussianData(0.0, np.float32([[0.2, 0.5, 1.2]])), BASIS)
MIXTURE = Turned(Mixture(), np.array([[0.8, -0.6], [0.6, 0.8]]))


# --- the probability flow -------------------------------------------------------------------------


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize(("schedule", "lam_min", "data", "x"), CASES.values(), ids=CASES)
@pytest.mark.slow
def test_gaussian_data_have_their_density_with_one_probe(schedule, lam_min, data, x):
    """The Jacobian is diagonal, so any Rademacher probe is exact."""
    log_p, result = log_densities(data, schedule, x, [[1, -1, -1]], lam_min=lam_min)
    first, last = ends(schedule, lam_min)
    at_last = data.flow(first.alpha * x.astype(np.float64), first, last)
    std = schedule.prior_std(last.t)
    growth = np.sqrt(data.variance(last) / data.variance(first)) * first.alpha
    exact = norm(0, std).logpdf(at_last).sum(1) + np.log(growth).sum()
    np.testing.assert_allclose(log_p, exact, atol=1e-4)
    np.testing.assert_allclose(result.x, at_last / std, atol=1e-4)
    true = norm(data.mean, np.hypot(data.std, first.sigma / first.alpha)).logpdf(x).sum(1)
    left = 0.05 if lam_min > -9 else 1e-3  # of the mean, at the noisy end
    np.testing.assert_allclose(log_p, true, atol=left)


@pytest.mark.usefixtures("strict_dtypes")
def test_bits_do_not_depend_on_the_schedule_nor_on_where_the_data_lie():
    """Flow in [-1, 1], EDM in [0, 1]: the same lam, other densities and bins, the same bits."""
    flow, edm = (
        log_densities(data, schedule, x, [[1, -1, -1]], lam_min=lam_min)[0]
        for schedule, lam_min, data, x in (CASES["flow"], CASES["edm"])
    )
    assert np.min(np.abs(flow - edm)) > 2
    bits = density.bits_per_dim(flow, 3), density.bits_per_dim(edm, 3, 1 / 256)
    np.testing.assert_allclose(*bits, atol=1e-3)
    assert density.bits_per_dim(-5 * np.log(2), 5) == pytest.approx(8)  # uniform on [-1, 1]


@pytest.mark.usefixtures("strict_dtypes")
def test_an_estimate_is_the_quadratic_form_of_its_probe():
    """`J = B diag B^T` all along the path; the trace is estimated as `r M r`, M = int J dlam."""
    schedule = dataclasses.replace(FLOW, t_min=float(FLOW.time_of(1.5)))
    first, last = ends(schedule, -1.0)  # where the scales of y and z differ
    n = [np.hypot(level.alpha, level.sigma) for level in (first, last)]
    before, after = (CORRELATED.data.variance(level)[0] for level in (first, last))
    growth = np.sqrt(after / before) * n[0] / n[1]  # of z
    m = BASIS @ np.diag(np.log(growth)) @ BASIS.T
    cos, scale = first.alpha / n[0], last.sigma / n[1]
    latent = cos / scale * (X[0].astype(np.float64) @ BASIS * growth)
    rest = norm.logpdf(latent).sum() + 3 * np.log(cos / scale)

    signs = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]])
    many = np.reshape(density.rademacher(jax.random.key(1), 4000, (3,)), (1000, 4, 3))
    one = np.repeat(many[:, :1], 4, axis=1)
    probes = np.concatenate([np.repeat(signs[:, None], 4, axis=1), signs[None], one, many])
    x = np.broadcast_to(X[:1], (len(probes), 3))
    log_p, _ = log_densities(CORRELATED, schedule, x, probes, lam_min=-1.0)

    np.testing.assert_allclose(log_p[:4], [rest + r @ m @ r for r in signs], atol=1e-4)
    exact = rest + np.trace(m)
    assert log_p[4] == pytest.approx(exact, abs=1e-4)  # the mean of all probes that there are
    off_diagonal = 2 * np.sum((m - np.diag(np.diag(m))) ** 2)
    for count, estimates in ((1, log_p[5:1005]), (4, log_p[1005:])):
        assert np.var(estimates) == pytest.approx(off_diagonal / count, rel=0.2)
        assert np.mean(estimates) == pytest.approx(
            exact, abs=4 * float(np.std(estimates)) / 1000**0.5
        )


@pytest.mark.usefixtures("strict_dtypes")
def test_a_mixture_has_its_density_by_the_exact_trace():
    probes = density.every_direction((2,))
    log_p, _ = log_densities(MIXTURE, FLOW, X[:, :2], probes, lam_min=-9.0)
    weights, means, stds = (np.array(field) for field in MIXTURE.data)
    stds = np.hypot(stds, np.exp(-FLOW.half_log_snr(FLOW.t_min)))
    along = (X[:, :2] @ MIXTURE.basis)[..., None]
    exact = logsumexp(np.log(weights) + norm(means, stds).logpdf(along), axis=-1).sum(1)
    np.testing.assert_allclose(log_p, exact, atol=1e-3)
    one_probe, _ = log_densities(MIXTURE, FLOW, X[:, :2], [[1, 1], [1, 1]], lam_min=-9.0)
    assert np.max(np.abs(one_probe - exact)) > 0.1


def test_a_small_part_of_the_state_meets_the_tolerance_too():
    def slope(lam, state):
        return 0 * state[0], jnp.cos(3 * lam)

    state = jnp.zeros(3000), jnp.zeros(())
    tolerance = Tolerance(0.0, 1e-3)
    result, after = jax.jit(lambda: adaptive_sampling.solve(slope, state, 4.0, -5.0, tolerance))()
    assert result.x[1] == pytest.approx((np.sin(-15) - np.sin(12)) / 3, abs=2e-3)
    assert after[1] == pytest.approx(np.cos(-15), abs=1e-5)


@pytest.mark.usefixtures("strict_dtypes")
def test_a_tolerance_that_is_not_met_leaves_no_number():
    log_p, result = log_densities(DATA, FLOW, X, [[1, 1, 1]], tolerance=1e-12, lam_min=-9.0)
    assert np.all(np.isnan(log_p)) and np.all(np.isnan(result.x))
    with pytest.raises(ValueError, match="4 of 4 samples did not meet the tolerance in 1000 steps"):
        result.validate()


def test_dequantisation_stays_in_the_bin():
    images = np.arange(256, dtype=np.uint8)
    x = np.stack([density.dequantise(key, images) for key in KEYS])
    assert x.dtype == np.float32 and x.min() >= -1 and x.max() < 1
    np.testing.assert_array_equal(np.floor((x + 1) * 128), np.broadcast_to(images, x.shape))
    assert np.std((x + 1) * 128 - images) == pytest.approx(12**-0.5, rel=0.05)


# --- networks -------------------------------------------------------------------------------------


def gaussian_network(schedule):
    """N(mean, params^2) as a network for x0, whose clock is t or EDM's; mean is an input or 0."""

    def apply(params, x, model_time, inputs):
        level = schedule.level(jnp.exp(4 * model_time) if schedule.name == "edm" else model_time)
        alpha, sigma = (expand(field, x) for field in (level.alpha, level.sigma))
        mean = expand(inputs["mean"], x) if inputs else 0.0
        gain = alpha * params**2 / ((alpha * params) ** 2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return apply


def gaussian_images(count, mean=0.0, std=0.25):
    """uint8 [count, 16, 16, 1] of normals in [-1, 1], and their bits per dimension."""
    edges = np.append(np.arange(256) - 0.5, 255.5) / 127.5 - 1
    edges[[0, -1]] = -np.inf, np.inf
    mass = np.diff(norm(mean, std).cdf(edges))
    images = np.random.default_rng(2).choice(256, (count, 16, 16, 1), p=mass).astype(np.uint8)
    return images, -np.log2(mass)[images].mean((1, 2, 3))


@pytest.mark.usefixtures("strict_dtypes")
def test_a_network_has_the_bits_of_its_data():
    images, exact = gaussian_images(4, mean=0.2)
    call = density.make_flow_bits(gaussian_network(FLOW), predictions.x0, FLOW)

    def bits(rows, mean=0.2):
        tolerance = Tolerance(1e-4, 1e-4)
        inputs = {"mean": np.full(len(rows), mean, np.float32)}
        result = call(np.float32(0.25), tolerance, images[rows], KEYS[rows], inputs)
        return jax.device_get((result["bits"], result["integration"]))

    values, result = bits(np.arange(4))
    np.testing.assert_allclose(values, exact, atol=0.02)
    assert np.all(bits(np.arange(4), mean=-0.2)[0] > values + 0.5)
    again, others = bits(np.array([2, 2, 0, 2]))  # whatever the batch mates
    np.testing.assert_allclose(again, values[[2, 2, 0, 2]], atol=1e-5)
    assert others.nfe[0] == result.nfe[2] and call._cache_size() == 1


# --- the bound ------------------------------------------------------------------------------------


def divergence(mean, variance, other_mean, other_variance):
    """KL of two normals, summed over all but the first axis."""
    terms = variance / other_variance + (mean - other_mean) ** 2 / other_variance - 1
    return 0.5 * np.sum(terms + np.log(other_variance / variance), axis=(1, 2, 3))


def known_errors(levels, images, keys, index):
    """As `make_errors` of a denoiser whose estimate depends on the level's number alone."""
    x0 = images / 127.5 - 1
    errors = [
        [np.sum((x - estimate(i)) ** 2) for i in row] for x, row in zip(x0, index, strict=True)
    ]
    return {"errors": np.array(errors), "x0": np.full_like(x0, estimate(index[0, -1]))}


def estimate(index):
    return 0.1 + 0.05 * int(index)


def variational_bound(errors, schedule, times, images, keys, **options):
    """The bound of images by `errors(levels, images, keys, index)`."""
    chain = bound.Chain(schedule, times, **options)
    index = chain.choose(keys)
    result = jax.device_get(errors(chain.levels, images, keys, index))
    return chain.bound(images, index, result["errors"], result["x0"])


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", [VP, EDM, FLOW, schedules.ddpm_linear()], ids=name)
def test_every_term_is_the_divergence_of_two_normals(schedule, variance):
    """Posteriors by Bayes' rule from q(x_j | x0) and q(x_i | x_j), at any x_i."""
    times = strides.log_snr(schedule, 6, lam_min=-5.0)
    images, _ = gaussian_images(4)
    x0 = images / 127.5 - 1
    terms = variational_bound(known_errors, schedule, times, images, KEYS, variance=variance)
    level, nats = schedule.level(times), x0[0].size * np.log(2)
    for i in range(5):
        shrink = level.alpha[i] / level.alpha[i + 1]
        forward = level.sigma[i] ** 2 - (shrink * level.sigma[i + 1]) ** 2
        posterior = 1 / (1 / level.sigma[i + 1] ** 2 + shrink**2 / forward)

        def mean(clean, i=i, shrink=shrink, forward=forward, posterior=posterior):
            prior = level.alpha[i + 1] * clean / level.sigma[i + 1] ** 2
            return posterior * (prior + shrink * 0.7 / forward)

        model = posterior if variance == "small" else forward
        exact = divergence(mean(x0), posterior, mean(np.full_like(x0, estimate(i))), model)
        np.testing.assert_allclose(nats * terms.steps[:, i], exact, rtol=1e-9)
    std = schedule.prior_std(times[0])
    exact = divergence(level.alpha[0] * x0, level.sigma[0] ** 2, 0.0, std**2)
    np.testing.assert_allclose(nats * terms.prior, exact, rtol=1e-9)
    mass = bound.log_bin(images, np.full_like(x0, estimate(5)), level.sigma[5] / level.alpha[5])
    np.testing.assert_allclose(nats * terms.decoder, -mass.sum((1, 2, 3)), rtol=1e-9)
    total = terms.prior + terms.steps.sum(1) + terms.decoder
    np.testing.assert_allclose(terms.total, total, rtol=1e-12)


def test_a_random_choice_of_steps_stands_for_all():
    images, keys = np.repeat(gaussian_images(1)[0], 100, 0), sampling.sample_keys(3, np.arange(100))
    times = strides.log_snr(FLOW, 12, lam_min=-5.0)

    def call(terms):
        return variational_bound(known_errors, FLOW, times, images, keys, terms=terms)

    whole, shuffled, some = call(None), call(11), call(3)
    np.testing.assert_allclose(shuffled.total, whole.total, rtol=1e-9)
    assert some.index.shape == some.steps.shape == (100, 3)
    assert all(len(set(row)) == 3 for row in some.index) and set(some.index.ravel()) == {*range(11)}
    np.testing.assert_allclose(some.steps, np.take_along_axis(whole.steps, some.index, 1))
    error = np.std(some.total) / 10
    assert np.mean(some.total) == pytest.approx(whole.total[0], abs=4 * error)
    assert error < 0.1 * whole.total[0]


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("schedule", [VP, EDM, FLOW], ids=name)
def test_the_bound_of_gaussian_data_falls_to_their_bits(schedule):
    """Down to noise of about a bin: at less the grid shows, of which this network knows nothing."""
    schedule = dataclasses.replace(schedule, t_min=float(schedule.time_of(5.0)))
    images, exact = gaussian_images(16)
    call = bound.make_errors(gaussian_network(schedule), predictions.x0, clip="none")
    errors = lambda *at: call(np.float32(0.25), *at[:3], {}, None, at[3])  # noqa: E731
    keys, totals = sampling.sample_keys(0, np.arange(16)), []
    for steps in (8, 600):
        times = strides.log_snr(schedule, steps, lam_min=-5.1)
        terms = variational_bound(errors, schedule, times, images, keys)
        totals.append(terms.total.mean())
        s2 = np.exp(-2 * schedule.half_log_snr(times[:-1]))
        mse = 0.25**2 * s2 / (0.25**2 + s2)  # of x0 given x, expected
        expected = (1 / s2[1:] - 1 / s2[:-1]) * mse[:-1] / 2 / np.log(2)
        np.testing.assert_allclose(terms.steps.mean(0), expected, rtol=0.15)
        assert terms.steps.mean(0).sum() == pytest.approx(expected.sum(), rel=0.02)
        if steps == 8 and schedule.name == "edm":
            back = variational_bound(errors, schedule, times, images[::-1], keys[::-1])
            np.testing.assert_allclose(back.total[::-1], terms.total, rtol=1e-5)
            some = variational_bound(errors, schedule, times, images, keys, terms=3)
            same = np.take_along_axis(terms.steps, some.index, 1)
            np.testing.assert_allclose(some.steps, same, rtol=1e-4)
    assert totals[0] > totals[1] + 1
    assert 0 < totals[1] - exact.mean() < 0.1


@pytest.mark.parametrize("std", [1e-4, 1.6e-3, 0.05, 3.0])
def test_the_decoder_is_a_distribution_over_256_values(std):
    images = np.arange(256, dtype=np.uint8)
    for mean in (-2.0, -1.0, 0.1234, 1.0, 1.3):
        log_mass = bound.log_bin(images, np.full(256, mean), std)
        assert logsumexp(log_mass) == pytest.approx(0, abs=1e-9)
        np.testing.assert_allclose(
            log_mass, bound.log_bin(images, np.full(256, -mean), std)[::-1], rtol=1e-6, atol=1e-12
        )
        edges = (np.arange(257) - 0.5) / 127.5 - 1
        edges[[0, -1]] = -np.inf, np.inf
        mass = np.diff(norm(mean, std).cdf(edges))
        plain = mass > 1e-9
        np.testing.assert_allclose(np.exp(log_mass[plain]), mass[plain], rtol=1e-5)
    far = bound.log_bin(np.uint8([128]), np.float64([0.9]), 0.01)  # 1e-12 would be -28
    assert -4100 < far[0] < -3900


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: bound.Chain(FLOW, t[:-1]), "ends at the clean image"),
        (lambda t: bound.Chain(FLOW, t, 5), "terms must be 1..4.* got 5"),
        (lambda t: bound.Chain(FLOW, t, 0), "terms must be 1..4.* got 0"),
        (lambda t: bound.Chain(FLOW, t, None, "learned"), "'small'.*or 'large'.*'learned'"),
        (lambda t: log_densities(DATA, FLOW, X, X[:1], method="euler"), "unknown method"),
        (lambda t: log_densities(DATA, FLOW, X, X[:1], lam_min=7.0), "lam_min must be"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(strides.uniform(FLOW, 5))


# --- the command ----------------------------------------------------------------------------------


def run(out, *options):
    likelihood.main([*options, f"--out={out}"])
    return json.loads(out.read_text())


@pytest.fixture
def stand_in(monkeypatch):
    """A network that is quickly compiled; it answers by label."""

    def apply(self, params, x, model_time, inputs):
        return x * expand(0.1 * jnp.asarray(inputs["label"], x.dtype), x)

    monkeypatch.setattr(Model, "apply", apply)


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    "options", [["--tolerance=0.1"], ["--method=vlb", "--steps=8", "--stride=log_snr"]]
)
def test_the_command_writes_what_it_measured(options, tmp_path, capsys):
    report = run(tmp_path / "deep" / "a.json", *options, "--num_images=6", "--batch_size=4")
    said = capsys.readouterr().out
    assert "6 images of digits, split train (training images" in said
    bits, index = np.array(report["bits"]), np.array(report["index"])
    assert len(bits) == 6 and np.all(np.isfinite(bits)) and len(set(index)) == 6
    mean, error = report["bits_per_dim"].values()
    assert mean == pytest.approx(bits.mean()) and f"{mean:.4f} +- {error:.4f} bits" in said
    assert error == pytest.approx(bits.std(ddof=1) / 6**0.5)
    model = checkpoints.load("digits")
    assert report["weights"] == model.fingerprint
    assert report["training_images"] and report["step"] == model.step
    assert report["settings"]["seed"] == 0 and "jax" in report["versions"]
    if "--method=vlb" not in options:
        assert report["nfe"]["min"] > 1 and "with 1 jvp" in said
        assert 0 < report["lost_at_the_noisy_end_at_most"] < 1e-4
        return
    terms = report["terms"]
    assert sum(terms["steps"]) + terms["prior"] + terms["decoder"] == pytest.approx(mean)
    assert report["nfe"]["mean"] == 8 and "6 images x 8 network evaluations, no jvp" in said
    images, labels = read_digits(index)
    call, inputs = bound.make_errors(model.apply, model.parameterization), {"label": labels}
    errors = lambda *at: call(model.params, *at[:3], inputs, None, at[3])  # noqa: E731
    times, keys = strides.log_snr(model.schedule, 8), sampling.sample_keys(0, index)
    again = variational_bound(errors, model.schedule, times, images, keys)
    np.testing.assert_allclose(again.total, bits, rtol=1e-5)  # each with its own label and key
    few = run(tmp_path / "b.json", *options, "--num_images=4", "--terms=2")
    assert few["nfe"]["mean"] == 3 and None in few["terms"]["steps"]
    np.testing.assert_array_equal(few["index"], index[:4])


def read_digits(index):
    source = data.load("digits")
    images, labels = zip(*(source[i].values() for i in index), strict=True)
    return np.stack(images), np.array(labels)


@pytest.mark.slow
def test_the_bundled_digits_have_few_bits(tmp_path):
    """A pixel of 8 bits is told in 2; both methods say so, of the very images it has learned."""
    for method, spent in (("ode", 30), ("vlb", 1000)):
        report = run(tmp_path / f"{method}.json", f"--method={method}", "--num_images=8")
        assert 1.3 < report["bits_per_dim"]["mean"] < 2.6 and report["nfe"]["min"] >= spent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=5"], "--steps belongs to --method=vlb, got ode"),
        (["--method=vlb", "--probes=2"], "--probes belongs to --method=ode, got vlb"),
        (["--num_images=1"], "--num_images must be at least 2, got 1"),
        (["--probes=0"], "--probes must be at least 1, got 0"),
        (["--method=vlb", "--steps=0"], "steps must be a whole number >= 1, got 0"),
        (["--out=a.txt"], "--out must end in .json, got a.txt"),
        (["--num_images=5001"], "at most 5000, all of digits, split train, got 5001"),
        (["--tolerance=0"], "tolerance must be positive, got 0.0"),
        (["--method=vlb", "--stride=unform"], "unknown stride 'unform' .did you mean 'uniform'"),
        (["--method=vlb", "--steps=5", "--terms=9"], "terms must be 1..4"),
        (["--split=test"], "digits has only the split 'train'"),
        (["--data=npz:absent.npz"], "npz file absent.npz does not exist"),
        (["--checkpoint=absent"], "no checkpoint 'absent'"),
    ],
)
def test_the_command_checks_before_any_work(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        likelihood.main([f"--out={tmp_path / 'a.json'}", *arguments])
    assert not list(tmp_path.iterdir())


def test_the_command_stops_at_an_image_without_a_number(tmp_path, monkeypatch):
    def apply(self, params, x, model_time, inputs):
        return x * expand(jnp.where(inputs["label"] == 0, jnp.nan, 1.0), x)

    monkeypatch.setattr(Model, "apply", apply)
    options = ["--method=vlb", "--steps=2", "--num_images=40", f"--out={tmp_path / 'a.json'}"]
    with pytest.raises(SystemExit, match="image [0-9]*0 has no finite value"):
        likelihood.main(options)  # digits are in the order of their labels


def test_the_command_keeps_what_is_there_and_knows_its_data(tmp_path):
    (tmp_path / "a.json").write_text("")
    with pytest.raises(SystemExit, match="exists; choose another name, or pass --overwrite"):
        likelihood.main([f"--out={tmp_path / 'a.json'}"])
    out = f"--out={tmp_path / 'b.json'}"
    images = np.zeros((3, 28, 28), np.uint8)
    for arrays, message in (
        ({"x": images[:, :8]}, "takes images of shape .28, 28, 1., .* has .8, 28, 1."),
        ({"x": images}, "told each image's label, one of 10, .* has 0 classes"),
        ({"x": images, "y": np.array([0, 1, 10])}, "one of 10, .* has 11 classes"),
    ):
        np.savez(tmp_path / "data.npz", **arrays)
        with pytest.raises(SystemExit, match=message):
            likelihood.main([f"--data=npz:{tmp_path / 'data.npz'}", "--num_images=2", out])
