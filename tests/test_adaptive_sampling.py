"""Adaptive steps against closed forms; a true count of evaluations; samples that share nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddim_jax import adaptive_sampling, predictions, schedules
from ddim_jax.adaptive_sampling import METHODS, Tolerance, integrate, make_adaptive_sampler
from ddim_jax.guidance import Guidance
from ddim_jax.schedules import NoiseLevel
from tests.oracles import GaussianData, Mixture
from tests.selection import slow_but

pytestmark = pytest.mark.usefixtures("strict_dtypes")

FLOW = schedules.rectified_flow()
STARTS = [
    (schedules.edm(), -5.1),
    (FLOW, -1.0),
    pytest.param(schedules.vp_linear(), -5.1, marks=pytest.mark.slow),
    pytest.param(schedules.ddpm_cosine(), -5.1, marks=pytest.mark.slow),
]
X = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def tolerance(value):
    return Tolerance(value, value)


def exact(data, schedule, x, lam_min=-5.1):
    """The flow from the noisy end, at lam_min at least, to t_min, and the x0 there."""
    start = schedule.t_span[0]
    if schedule.half_log_snr(start) < lam_min:
        start = schedule.time_of(lam_min)
    start, end = schedule.level(start), schedule.level(schedule.t_min)
    preserving = abs(start.alpha**2 + start.sigma**2 - 1) < 1e-9
    noise = np.asarray(x, np.float64) * (1.0 if preserving else start.sigma)
    return data(data.flow(noise, start, end), end).x0


def flow_level(sigma):
    return NoiseLevel(sigma, 1 - sigma, sigma, 1000 * sigma)


def mixture_apply(params, x, model_time, inputs):
    """The velocity of the mixture."""
    prediction = Mixture()(x, flow_level(model_time[0] / 1000))
    return prediction.eps - prediction.x0


@functools.cache  # one sampler for many tests: compiling is most of their time
def mixture_sampler():
    return make_adaptive_sampler(mixture_apply, predictions.flow, FLOW, clip="none")


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "lam_min"), STARTS, ids=lambda p: getattr(p, "name", None))
def test_gaussian_data_are_met_to_tolerance(schedule, lam_min):
    data = GaussianData(0.3, 0.5)

    def one(x):
        return integrate(data, schedule, tolerance(1e-4), x[None], lam_min=lam_min)

    result = jax.jit(jax.vmap(one))(X)
    assert not result.failed.any()
    np.testing.assert_allclose(result.x[:, 0], exact(data, schedule, X, lam_min), atol=2e-4)


@pytest.mark.parametrize("method", slow_but(METHODS, ("dopri5",)))
def test_error_falls_with_the_tolerance_and_every_evaluation_is_counted(method, monkeypatch):
    monkeypatch.setattr(adaptive_sampling, "FIRST_STEP", 8.0)  # rejected, to be tried again
    seen, errors, nfes = [], [], []

    def counted(params, x, model_time, inputs):
        jax.debug.callback(lambda time: seen.append(float(time)), model_time[0] + 0 * x[0, 0])
        return mixture_apply(params, x, model_time, inputs)

    call = make_adaptive_sampler(counted, predictions.flow, FLOW, clip="none", method=method)
    for value in (1e-2, 1e-4, 1e-6):
        seen.clear()
        result = jax.device_get(call({}, tolerance(value), X[:1]))
        jax.effects_barrier()
        assert result.rejected[0] > 0
        assert len(seen) == result.nfe[0]
        assert abs(seen[-1] - 1000 * FLOW.t_min) < 1e-3  # the last is at the clean end
        errors.append(np.max(np.abs(result.x - exact(Mixture(), FLOW, X[:1]))))
        nfes.append(result.nfe[0])
    assert errors[2] < 2e-5 and errors[1] < errors[0] / 8 and errors[2] < errors[1] / 8
    assert nfes[0] < nfes[1] < nfes[2]


def test_rtol_is_relative_and_atol_absolute():
    """Far out only one Gaussian counts and the flow is linear: rtol does not see the scale."""

    def nfe(scale, *pair):
        return np.mean(mixture_sampler()({}, Tolerance(*pair), np.float32(scale) * X).nfe)

    assert nfe(1000, 1e-3, 0.0) < 1.1 * nfe(100, 1e-3, 0.0)
    assert nfe(1000, 0.0, 1e-3) > 1.5 * nfe(100, 0.0, 1e-3)
    assert nfe(1, 1e-3, 1e-3) < min(nfe(1, 1e-3, 0.0), nfe(1, 0.0, 1e-3))


# --- the jitted sampler ---------------------------------------------------------------------------


def test_a_sample_is_the_same_with_any_batch_mates():
    x = X * np.float32([0.1, 0.5, 1, 4])[:, None]
    together = jax.device_get(mixture_sampler()({}, tolerance(1e-3), x))
    assert len(set(together.nfe)) > 1
    for i in range(len(x)):
        alone = jax.device_get(mixture_sampler()({}, tolerance(1e-3), x[i : i + 1]))
        np.testing.assert_allclose(together.x[i], alone.x[0], atol=1e-5)
        assert together.nfe[i] == alone.nfe[0]


def test_samples_spread_over_devices():
    halves = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data"))
    together = mixture_sampler()({}, tolerance(1e-3), X)
    sharded = mixture_sampler()({}, tolerance(1e-3), jax.device_put(X, halves))
    assert len(sharded.x.sharding.device_set) == 2
    np.testing.assert_allclose(together.x, sharded.x, atol=1e-5)
    np.testing.assert_array_equal(together.nfe, sharded.nfe)


def test_guidance_moves_the_mean_and_numbers_do_not_recompile():
    """Velocities are affine in the mean of the data, so guidance extrapolates it."""
    traced = []

    def velocity(params, x, model_time, inputs):
        traced.append(x.shape)
        data = GaussianData(inputs.reshape(-1, 1), params["std"])
        prediction = data(x, flow_level(model_time[0] / 1000))
        return prediction.eps - prediction.x0

    call = make_adaptive_sampler(
        velocity, predictions.flow, FLOW, null_inputs=lambda c: 0 * c - 0.2, clip="none"
    )

    def check(inputs, scale, std, value):
        params, guidance = {"std": jnp.float32(std)}, Guidance(jnp.asarray(scale))
        result = call(params, tolerance(value), X, None, jnp.asarray(inputs), guidance)
        data = GaussianData((-0.2 + scale * (inputs + 0.2))[:, None], std)
        np.testing.assert_allclose(result.x, exact(data, FLOW, X), atol=5 * value)

    inputs = np.float32([-0.5, -0.1, 0.2, 0.5])
    check(inputs, np.float32([0, 1, 2, 4]), 0.5, 1e-4)
    once = len(traced)
    check(inputs[::-1], np.float32([3, 2, 1, 0]), 0.4, 1e-5)
    assert call._cache_size() == 1 and len(traced) == once and set(traced) == {(2, 4)}
    jax.eval_shape(call, {"std": jnp.float32(0.5)}, tolerance(1e-4), X, None, inputs)
    assert set(traced[once:]) == {(1, 4)}


# --- failures -------------------------------------------------------------------------------------


def test_running_out_of_steps_is_reported_for_each_sample():
    limits = {"low": -0.2, "high": 0.2}
    call = make_adaptive_sampler(
        mixture_apply, predictions.flow, FLOW, clip_options=limits, max_steps=40
    )
    x = np.where(np.arange(4)[:, None] == 2, np.float32(np.nan), X)
    result = jax.device_get(call({}, tolerance(1e-3), x))
    np.testing.assert_array_equal(result.failed, np.arange(4) == 2)
    np.testing.assert_array_equal(np.isnan(result.x).all(1), result.failed)
    assert np.max(np.abs(result.x[~result.failed])) == pytest.approx(0.2, abs=1e-5)
    assert result.accepted[2] == 0 and result.rejected[2] == 40 and result.nfe[2] == 1 + 3 * 40
    with pytest.raises(ValueError, match="1 of 4 samples did not meet the tolerance in 40 steps"):
        result.validate()
    result = call({}, tolerance(1e-6), X)
    assert np.all(result.failed) and np.all(np.isnan(result.x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: integrate(Mixture(), FLOW, tolerance(1e-3), X, method="euler"),
            "unknown method 'euler'; it is one of bosh3, dopri5, tsit5",
        ),
        (
            lambda: integrate(Mixture(), FLOW, tolerance(1e-3), X, lam_min=7.0),
            "lam_min must be finite and below 6.91.*got 7.0",
        ),
        (
            lambda: integrate(Mixture(), FLOW, tolerance(1e-3), X, lam_min=-np.inf),
            "lam_min must be finite",
        ),
        (lambda: Tolerance(1e-3, 0.0).validate(), "tolerance must be positive, got 0.0"),
        (
            lambda: make_adaptive_sampler(mixture_apply, predictions.flow, FLOW, clip="soft"),
            "unknown clip 'soft'; it is one",
        ),
        (
            lambda: mixture_sampler()({}, tolerance(1e-3), X, None, jnp.zeros(4), Guidance(2.0)),
            "guidance needs null_inputs",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
