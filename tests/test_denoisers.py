"""Network to denoiser, and the treatments of the clean estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import denoisers, predictions, schedules
from tests.oracles import GaussianData

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LEVEL = schedules.vp_linear().level(jnp.float32(0.3))
WIDE = GaussianData(0.0, 4.0)
"""Data far outside [-1, 1], so that clips act."""


def noisy(batch=3):
    return 3 * jax.random.normal(jax.random.key(0), (batch, 4, 4, 2))


def assert_forward_process(x, prediction):
    again = LEVEL.alpha * prediction.x0 + LEVEL.sigma * prediction.eps
    np.testing.assert_allclose(again, x, atol=1e-5)


def test_network_binds_params_and_spreads_the_model_time():
    seen = {}

    def apply(params, x, model_time, cond):
        seen.update(params=params, model_time=model_time, cond=cond)
        return x

    denoisers.network(apply, "params")(noisy(), LEVEL, "cond")
    assert seen["params"] == "params" and seen["cond"] == "cond"
    np.testing.assert_allclose(seen["model_time"], np.full(3, 999 * 0.3), rtol=1e-6)
    batch = schedules.vp_linear().level(jnp.float32([0.1, 0.2, 0.3]))
    denoisers.network(apply, "params")(noisy(), batch, None)
    np.testing.assert_array_equal(seen["model_time"], batch.model_time)


def test_denoiser_scales_the_input_and_predicts():
    """The network sees x / sqrt(sigma^2 + sd^2); D = c_skip x + c_out F (Karras et al. 2022)."""
    level = schedules.edm().level(jnp.float32(2.0))
    x, norm = noisy(), np.sqrt(2.0**2 + 0.5**2)
    net = lambda x, level, inputs: inputs * x  # noqa: E731
    denoise = denoisers.denoiser(net, predictions.edm(0.5), inputs=3.0)
    expected = 0.25 / norm**2 * x + 2.0 * 0.5 / norm * (3.0 * x / norm)
    np.testing.assert_allclose(denoise(x, level).x0, expected, rtol=1e-5)


def test_half_precision_networks_answer_in_the_sample_dtype():
    net = lambda x, level, cond: x.astype(jnp.bfloat16)  # noqa: E731
    answer = denoisers.denoiser(net, predictions.v)(noisy(), LEVEL)
    assert answer.x0.dtype == answer.eps.dtype == jnp.float32


def test_static_clip_rederives_eps():
    x = noisy()
    before, after = WIDE(x, LEVEL), denoisers.clip(WIDE, -1.0, 0.5)(x, LEVEL)
    assert before.x0.min() < -1 and before.x0.max() > 0.5
    np.testing.assert_array_equal(after.x0, jnp.clip(before.x0, -1.0, 0.5))
    assert_forward_process(x, after)
    assert not np.allclose(after.eps, before.eps)


def test_clip_can_keep_the_eps_of_the_network():
    x = noisy()
    after = denoisers.clip(WIDE, rederive_eps=False)(x, LEVEL)
    np.testing.assert_array_equal(after.eps, WIDE(x, LEVEL).eps)
    np.testing.assert_array_equal(after.x0, jnp.clip(WIDE(x, LEVEL).x0, -1.0, 1.0))


@pytest.mark.parametrize("quantile, floor", [(0.9, 1.0), (0.5, 0.5), (0.9, 1000.0)])
def test_dynamic_threshold_is_per_sample(quantile, floor):
    """Imagen: s = max(quantile |x0|, floor), x0 = clip(x0, -s, s) / s, in units of the floor."""
    x = noisy() * jnp.float32([0.1, 1, 5]).reshape(3, 1, 1, 1)
    after = denoisers.dynamic_threshold(WIDE, quantile, floor)(x, LEVEL)
    for before, got in zip(np.asarray(WIDE(x, LEVEL).x0), after.x0, strict=True):
        s = max(np.quantile(np.abs(before), quantile), floor)
        np.testing.assert_allclose(got, np.clip(before, -s, s) / s * floor, rtol=1e-4, atol=1e-6)
    assert_forward_process(x, after)


def test_dynamic_threshold_names_a_percentage():
    with pytest.raises(ValueError, match=r"quantile must be in \(0, 1\), got 99.5"):
        denoisers.dynamic_threshold(WIDE, 99.5)
