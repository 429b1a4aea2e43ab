"""Parameterizations: round trips, published conversions, both ends, broadcasting."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import predictions, schedules
from ddim_jax.predictions import PREDICTIONS, Prediction, predict, target
from ddim_jax.schedules import NoiseLevel

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LEVELS = {
    "vp": (0.8, 0.6),
    "vp, noisy": (0.05, 0.9987492),
    "flow": (0.7, 0.3),
    "edm": (1.0, 5.0),
    "edm, clean": (1.0, 0.05),
}
SHAPE = (3, 4, 4, 2)


def level_of(alpha, sigma):
    return NoiseLevel(*(jnp.asarray(x, jnp.float32) for x in (0.0, alpha, sigma, 0.0)))


def draw(*names, shape=SHAPE):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in names]


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("place", LEVELS)
def test_predict_inverts_target(name, place):
    parameterization, level = PREDICTIONS[name](), level_of(*LEVELS[place])
    x0, eps = draw("x0", "eps")
    x = level.alpha * x0 + level.sigma * eps
    F = target(parameterization, Prediction(x0, eps), level)
    back = predict(parameterization, x, level, F)
    scale = max(1, level.sigma / level.alpha)  # eps says little of x0 where there is much noise
    np.testing.assert_allclose(back.x0, x0, atol=1e-5 * scale)
    np.testing.assert_allclose(back.eps, eps, atol=1e-5 * (1 + level.alpha / level.sigma))


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("place", LEVELS)
def test_any_output_satisfies_the_forward_process(name, place):
    level = level_of(*LEVELS[place])
    x, F = draw("x", "F")
    x0, eps = predict(PREDICTIONS[name](), x, level, F)
    size = 1 + float(jnp.max(jnp.abs(level.alpha * x0)))
    np.testing.assert_allclose(level.alpha * x0 + level.sigma * eps, x, atol=2e-6 * size)


def published(name, x, a, s, F):
    """x0 by the formula of the paper that introduced each parameterization."""
    match name:
        case "eps":  # Ho et al. 2020, equation 15
            return (x - s * F) / a
        case "x0":
            return F
        case "v":  # Salimans & Ho 2022: alpha x - sigma v, where alpha^2 + sigma^2 = 1
            return (a * x - s * F) / (a**2 + s**2)
        case "flow":  # Liu et al. 2022: x - t u, where alpha = 1 - t, sigma = t
            return (x - s * F) / (a + s)
        case "data_flow":  # Ma et al. 2024: x + (1 - t) u on a clock from noise at 0 to data at 1
            return (x + s * F) / (a + s)
        case "edm":  # Karras et al. 2022, table 1, on y = x / alpha
            y, sd = x / a, 0.5
            skip = sd**2 / ((s / a) ** 2 + sd**2)
            return skip * y + (s / a) * sd / np.sqrt((s / a) ** 2 + sd**2) * F
        case "consistency":  # Song et al. 2023, appendix C, on y = x / alpha
            y, sd, low = x / a, 0.5, 0.002
            skip = sd**2 / ((s / a - low) ** 2 + sd**2)
            return skip * y + sd * (s / a - low) / np.sqrt((s / a) ** 2 + sd**2) * F


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("place", LEVELS)
def test_published_conversions(name, place):
    alpha, sigma = LEVELS[place]
    x, F = draw("x", "F")
    x0 = predict(PREDICTIONS[name](), x, level_of(alpha, sigma), F).x0
    np.testing.assert_allclose(
        x0, published(name, x, alpha, sigma, F), rtol=1e-4, atol=1e-5 * (1 + sigma / alpha)
    )


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("eps", (0, 1)),
        ("x0", (1, 0)),
        ("v", (-0.6, 0.8)),
        ("flow", (-1, 1)),
        ("data_flow", (1, -1)),
    ],
)
def test_targets(name, weights):
    x0, eps = draw("x0", "eps")
    F = target(PREDICTIONS[name](), Prediction(x0, eps), level_of(0.8, 0.6))
    np.testing.assert_allclose(F, weights[0] * x0 + weights[1] * eps, rtol=1e-6)


FINITE = {name: PREDICTIONS[name]() for name in ("v", "flow", "edm")}
FINITE["consistency"] = predictions.consistency(sigma_min=0.0)


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("alpha, sigma", [(1.0, 0.0), (0.0, 1.0), (1.0, 80.0)])
def test_finite_and_right_at_both_ends(name, alpha, sigma):
    level = level_of(alpha, sigma)
    x0, eps = draw("x0", "eps")
    x = alpha * x0 + sigma * eps
    parameterization = FINITE[name]
    F = target(parameterization, Prediction(x0, eps), level)
    back = predict(parameterization, x, level, F)
    np.testing.assert_allclose(back.x0, x0, atol=1e-6 * (1 + 20 * sigma))
    np.testing.assert_allclose(back.eps, eps, atol=1e-5)


def test_edm_preconditioning():
    """c_skip, c_out and c_in of Karras et al. 2022, table 1; targets of unit variance."""
    sigma, sd = 3.0, 0.5
    level, row = level_of(1.0, sigma), predictions.edm(sd)(level_of(1.0, sigma))
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / np.sqrt(sigma**2 + sd**2)
    assert row.input_scale == pytest.approx(1 / np.sqrt(sigma**2 + sd**2))
    x0, eps = draw("x0", "eps")
    F = target(predictions.edm(sd), Prediction(sd * x0, eps), level)
    x = sd * x0 + sigma * eps
    np.testing.assert_allclose(F, (sd * x0 - c_skip * x) / c_out, atol=1e-5)
    variance_of_target = (row.x0_weight * sd) ** 2 + row.eps_weight**2
    assert variance_of_target == pytest.approx(1, rel=1e-6)


def test_edm_is_minus_v_for_unit_data():
    level = level_of(0.8, 0.6)
    row, v = predictions.edm(1.0)(level), predictions.v(level)
    np.testing.assert_allclose([-row.x0_weight, -row.eps_weight], v[:2], rtol=1e-6)
    assert row.input_scale == pytest.approx(1)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_consistency_is_the_identity_at_its_boundary(alpha):
    """f(y, sigma_min) = y whatever the network says: exactly, in EDM's coordinate."""
    x, F = draw("x", "F")
    level = level_of(alpha, alpha * 0.002)
    x0 = predict(predictions.consistency(), x, level, 1e3 * F).x0
    if alpha == 1:
        np.testing.assert_array_equal(x0, x)
    np.testing.assert_allclose(x0, x / alpha, rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_consistency_at_the_clean_end_is_the_identity_there(alpha):
    """With sigma_min = 0 there c_skip = 1 and c_out = 0; eps is the limit, -F."""
    x, F = draw("x", "F")
    found = predict(predictions.consistency(sigma_min=0.0), x, level_of(alpha, 0.0), F)
    np.testing.assert_allclose(found.x0, x / alpha, rtol=1e-6)
    np.testing.assert_allclose(found.eps, -F, rtol=1e-6)


@pytest.mark.parametrize(("sigma_data", "sigma_min"), [(0.0, 0.002), (-1.0, 0.0), (0.5, -0.1)])
def test_a_consistency_function_out_of_range(sigma_data, sigma_min):
    with pytest.raises(ValueError, match="sigma_(data|min) must be in"):
        predictions.consistency(sigma_data, sigma_min)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_levels_broadcast_from_the_left(name):
    """A [B] level acts on sample i as its i-th scalar; B equal to the last axis would hide it."""
    schedule, parameterization = schedules.vp_linear(), PREDICTIONS[name]()
    batch = schedule.level(jnp.float32([0.2, 0.5, 0.9]))
    x, F = draw("x", "F", shape=(3, 4, 4, 3))
    together = predict(parameterization, x, batch, F)
    goal = target(parameterization, together, batch)
    for i, t in enumerate([0.2, 0.5, 0.9]):
        level = schedule.level(jnp.float32(t))
        alone = predict(parameterization, x[i : i + 1], level, F[i : i + 1])
        np.testing.assert_allclose(together.x0[i], alone.x0[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(together.eps[i], alone.eps[0], rtol=1e-6, atol=1e-6)
        again = target(parameterization, alone, level)
        np.testing.assert_allclose(goal[i], again[0], rtol=1e-5, atol=1e-5)
