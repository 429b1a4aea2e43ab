"""Classifier-free guidance: identities, closed form, interval, rescale, no recompilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import denoisers, predictions, schedules, solvers, strides
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.predictions import PREDICTIONS, expand, in_pairs, target
from tests.oracles import GaussianData

pytestmark = pytest.mark.usefixtures("strict_dtypes")

B = 3
NULL, STD = -0.4, 0.5
MEANS = jnp.float32([0.3, 0.6, -0.8])
LEVEL = schedules.vp_linear().level(jnp.float32(0.4))


def gaussian_net(parameterization):
    """The exact network for classes N(m_c, std^2) of one variance; the condition is the mean."""

    def net(x, level, cond):
        x = x / expand(parameterization(level).input_scale, x)
        level = level._replace(alpha=expand(level.alpha, x), sigma=expand(level.sigma, x))
        exact = GaussianData(expand(cond, x), STD)(x, level)
        return target(parameterization, exact, schedules.NoiseLevel(*map(jnp.squeeze, level)))

    return net


def noisy():
    return jax.random.normal(jax.random.key(1), (B, 4, 4, 2))


def guided(guidance, name="eps"):
    return classifier_free(gaussian_net(PREDICTIONS[name]()), jnp.full(B, NULL), guidance)


def alone(cond, name="eps", level=LEVEL):
    return gaussian_net(PREDICTIONS[name]())(noisy(), level, cond)


def test_scale_one_is_the_conditional_pass_bit_for_bit():
    both = guided(Guidance(1.0))(noisy(), LEVEL, MEANS)
    np.testing.assert_array_equal(both, alone(MEANS))


def test_scale_zero_is_the_unconditional_pass():
    both = guided(Guidance(0.0))(noisy(), LEVEL, MEANS)
    np.testing.assert_allclose(both, alone(jnp.full(B, NULL)), atol=1e-6)


def test_the_first_channels_alone_are_guided():
    """As the code of DiT does: what is not guided is the conditional pass."""
    both, some = guided(Guidance(3.0)), guided(Guidance(3.0, channels=1))
    found, whole = some(noisy(), LEVEL, MEANS), both(noisy(), LEVEL, MEANS)
    np.testing.assert_array_equal(found[..., :1], whole[..., :1])
    np.testing.assert_array_equal(found[..., 1:], alone(MEANS)[..., 1:])
    assert np.abs(whole - found).max() > 0.1


@pytest.mark.parametrize("name", PREDICTIONS)
def test_every_parameterization_guides_alike(name):
    """Classes of one variance: guidance by g has the mean m_null + g (m_c - m_null), exactly."""
    g = 2.5
    net = guided(Guidance(g), name)
    x0, eps = denoisers.denoiser(net, PREDICTIONS[name](), MEANS)(noisy(), LEVEL)
    mean = expand(NULL + g * (MEANS - NULL), noisy())
    exact = GaussianData(mean, STD)(noisy(), LEVEL)
    np.testing.assert_allclose(x0, exact.x0, atol=2e-5)
    np.testing.assert_allclose(eps, exact.eps, atol=2e-5)


def test_guided_ddim_ends_at_the_closed_form():
    """The flow of N(m_null + g (m_c - m_null), std^2), down to the cleanest level."""
    schedule, g = schedules.vp_linear(), 3.0
    denoise = denoisers.denoiser(guided(Guidance(g)), predictions.eps, MEANS)
    times = strides.log_snr(schedule, 100, terminal="min")
    table = solvers.heun("flow")(schedule, times)

    def host(x, level):
        level = schedules.NoiseLevel(*(jnp.float32(f) for f in level))
        return tuple(np.asarray(f, np.float64) for f in denoise(jnp.float32(x), level))

    x = np.asarray(noisy(), np.float64)
    mean = np.asarray(NULL + g * (MEANS - NULL), np.float64).reshape(B, 1, 1, 1)
    exact = GaussianData(mean, STD).flow(x, schedule.level(times[0]), schedule.level(times[-1]))
    np.testing.assert_allclose(table.run_numpy(host, x), exact, atol=2e-3)


def test_scale_may_differ_by_sample():
    scales = jnp.float32([1.0, 0.0, 4.0])
    together = guided(Guidance(scales))(noisy(), LEVEL, MEANS)
    for i, g in enumerate(scales):
        np.testing.assert_allclose(
            together[i], guided(Guidance(g))(noisy(), LEVEL, MEANS)[i], atol=1e-6
        )


@pytest.mark.parametrize(
    ("sigma", "inside"), [(0.5, False), (0.501, True), (2.0, True), (2.001, False)]
)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_interval_is_half_open_in_the_noise_ratio(sigma, alpha, inside):
    level = LEVEL._replace(alpha=jnp.float32(alpha), sigma=jnp.float32(alpha * sigma))
    got = guided(Guidance(3.0, (0.5, 2.0)))(noisy(), level, MEANS)
    plain = guided(Guidance(3.0 if inside else 1.0))(noisy(), level, MEANS)
    np.testing.assert_allclose(got, plain, atol=1e-6)


def test_interval_holds_at_pure_noise():
    level = LEVEL._replace(alpha=jnp.float32(0.0), sigma=jnp.float32(1.0))
    plain = guided(Guidance(3.0), "v")(noisy(), level, MEANS)
    assert not np.allclose(plain, alone(MEANS, "v", level))
    cut = guided(Guidance(3.0, (0.0, 5.0)), "v")(noisy(), level, MEANS)
    np.testing.assert_array_equal(cut, alone(MEANS, "v", level))


def test_an_interval_from_zero_holds_at_the_clean_end():
    """Where losses ask for a velocity, and samplers never do."""
    clean = LEVEL._replace(alpha=jnp.float32(1.0), sigma=jnp.float32(0.0))
    net = lambda x, level, cond: 0 * x + expand(cond, x)  # noqa: E731
    for low, scale in ((0.0, 3.0), (1e-3, 1.0)):
        found = classifier_free(net, jnp.full(B, NULL), Guidance(3.0, (low, 5.0)))
        expected = NULL + scale * (MEANS - NULL)
        np.testing.assert_allclose(found(noisy(), clean, MEANS)[:, 0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescale(phi):
    """F (phi std(F_cond) / std(F) + 1 - phi), stds per sample (Lin et al. 2024, section 3.4)."""
    rng = np.random.default_rng(0)
    null, cond = rng.standard_normal((2, B, 4, 4, 2)).astype(np.float32)
    net = lambda x, level, cond: in_pairs(null, cond["image"][1::2])  # noqa: E731
    both = classifier_free(net, {"image": jnp.zeros_like(cond)}, Guidance(4.0, rescale=phi))
    got = both(noisy(), LEVEL, {"image": jnp.asarray(cond)})
    full = null + 4 * (cond - null)
    for i in range(B):
        ratio = cond[i].std() / full[i].std()
        np.testing.assert_allclose(got[i], full[i] * (phi * ratio + 1 - phi), rtol=1e-4, atol=1e-6)


def test_levels_of_a_batch_are_doubled_with_it():
    batch = schedules.vp_linear().level(jnp.float32([0.2, 0.5, 0.8]))
    together = guided(Guidance(2.0, (0.1, 1.0)))(noisy(), batch, MEANS)
    for i in range(B):
        level = schedules.NoiseLevel(*(f[i] for f in batch))
        single = guided(Guidance(2.0, (0.1, 1.0)))(noisy(), level, MEANS)
        np.testing.assert_allclose(together[i], single[i], atol=1e-6)


@pytest.mark.parametrize("frames", [4, B])
def test_scales_of_clips_are_one_for_each_not_for_each_frame(frames):
    """Scales [B] and levels [B, T], or [1, T] of all."""
    null, cond, x = jax.random.normal(jax.random.key(2), (3, B, frames, 2, 2, 1))

    def net(x, level, which):
        at_cond, at_null = expand(which, x), expand(1 - which, x)
        return at_cond * in_pairs(cond, cond) + at_null * in_pairs(null, null)

    scales = jnp.float32([1.0, 0.0, 4.0])
    wanted = null + expand(scales, x) * (cond - null)
    for rows in (B, 1):
        sigma = jnp.full((rows, frames), 0.5).at[:, 0].set(2.0)  # out of the interval
        level = schedules.NoiseLevel(*[jnp.ones((rows, frames))] * 2, sigma, sigma)
        found = classifier_free(net, jnp.zeros(B), Guidance(scales, (0.0, 1.0)))
        found = found(x, level, jnp.ones(B))
        np.testing.assert_allclose(found[:, 1:], wanted[:, 1:], atol=1e-5)
        np.testing.assert_allclose(found[:, 0], cond[:, 0], atol=1e-5)


def test_new_strengths_do_not_recompile():
    call = jax.jit(lambda x, guidance: guided(guidance)(x, LEVEL, MEANS))
    for strength in (Guidance(2.0), Guidance(7.5, (0.2, 3.0), 0.7), Guidance(1.0, rescale=0.1)):
        call(noisy(), strength)
    assert call._cache_size() == 1
