"""Restoration of Gaussian data, whose conditional mean is known; operators; RePaint's jumps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import schedules, strides
from ddim_jax.editing import restoration
from ddim_jax.editing.restoration import Known
from ddim_jax.predictions import Prediction
from ddim_jax.sampling import run, sample_keys
from ddim_jax.solvers import ddim, ddnm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SCHEDULE = schedules.cosine()
RNG = np.random.default_rng(0)
MIX = np.array([[0.5, 0.0, 0.0], [0.35, 0.3, 0.0], [0.1, -0.2, 0.4]])
COVARIANCE = MIX @ MIX.T
MEAN = np.array([0.3, -0.2, 0.1])


def gaussian(x, level):
    """The denoiser of three correlated pixels [B, 1, 3, 1]."""
    mean, covariance = jnp.asarray(MEAN[None], x.dtype), jnp.asarray(COVARIANCE, x.dtype)
    total = level.alpha**2 * covariance + level.sigma**2 * jnp.eye(3, dtype=x.dtype)
    above = jnp.linalg.solve(total, (x[:, 0, :, 0] - level.alpha * mean).T).T
    x0 = mean + level.alpha * above @ covariance
    return Prediction(x0[:, None, :, None], (level.sigma * above)[:, None, :, None])


def conditional(known, values):
    """Mean and covariance of the other pixels."""
    other = np.setdiff1d(np.arange(3), known)
    gain = COVARIANCE[np.ix_(other, known)] @ np.linalg.inv(COVARIANCE[np.ix_(known, known)])
    mean = MEAN[other] + gain @ (values - MEAN[known])
    return mean, COVARIANCE[np.ix_(other, other)] - gain @ COVARIANCE[np.ix_(known, other)]


def complete(task, table, count=4000):
    """Samples with the first pixel known to be 0.9: [count, 3]."""
    mask = np.zeros((count, 1, 3, 1), np.float32)
    mask[:, :, 0] = 1
    y = 0.9 * mask
    keys = sample_keys(0, np.arange(count))
    noise = jax.random.normal(jax.random.key(1), (count, 1, 3, 1))
    wrap, constrain = task

    @jax.jit
    def draw(x, known):
        denoise = gaussian if wrap is None else wrap(gaussian, known)
        hook = constrain and (lambda x, level, keys: constrain(x, level, keys, known))
        return run(denoise, table, x, keys, constrain=hook).x

    return np.asarray(draw(noise, Known(y, mask)))[:, 0, :, 0]


def table(steps=100, eta=1.0):
    return ddim(eta)(SCHEDULE, strides.uniform(SCHEDULE, steps))


@pytest.mark.parametrize(
    "task, steps",
    [
        pytest.param(
            restoration.replacement(),
            restoration.repaint(SCHEDULE, strides.uniform(SCHEDULE, 60), 6),
            marks=pytest.mark.slow,
        ),
        (restoration.dps(restoration.masking()), table()),
    ],
    ids=["repaint", "dps"],
)
def test_the_conditional_mean_of_gaussian_data(task, steps):
    found = complete(task, steps)
    mean, covariance = conditional(np.array([0]), np.array([0.9]))
    np.testing.assert_array_equal(found[:, 0], np.float32(0.9))
    shift = mean - MEAN[1:]  # what the known pixel changes
    assert np.abs(shift).min() > 0.1
    np.testing.assert_allclose(found[:, 1:].mean(0) - MEAN[1:], shift, rtol=0.05, atol=0.015)
    np.testing.assert_allclose(np.cov(found[:, 1:].T), covariance, atol=0.05)  # 0.21, 0.15 before


def test_the_scale_of_dps_is_a_share_of_the_way():
    x = jnp.asarray(RNG.normal(size=(5, 1, 3, 1)), jnp.float32)
    mask = jnp.zeros_like(x).at[:, :, 0].set(1)
    level = jax.tree.map(jnp.float32, SCHEDULE.level(0.4))

    def shift(scale):
        task = restoration.dps(restoration.masking(), scale)
        return task.wrap(gaussian, Known(0.9 * mask, mask))(x, level).x0 - gaussian(x, level).x0

    whole = np.asarray(shift(1.0))
    assert np.abs(whole).min() > 1e-3
    np.testing.assert_allclose(shift(0.5), whole / 2, atol=1e-6)
    assert not shift(0.0).any()


def test_replaced_pixels_have_the_noise_of_their_level():
    level, count = SCHEDULE.level(0.4), 4000
    mask = np.zeros((count, 1, 3, 1), np.float32)
    mask[:, :, 0] = 1
    keys, x = sample_keys(0, np.arange(count)), jnp.full((count, 1, 3, 1), 7.0)
    found = restoration.replacement().constrain(x, level, keys, Known(0.9 * mask, mask))
    np.testing.assert_array_equal(found[:, :, 1:], 7)
    noisy = np.asarray(found)[:, 0, 0, 0]
    np.testing.assert_allclose(noisy.mean(), 0.9 * level.alpha, atol=0.03)
    np.testing.assert_allclose(noisy.std(), level.sigma, rtol=0.03)


@pytest.mark.slow
def test_repaint_agrees_better_than_replacement_alone():
    mean, _ = conditional(np.array([0]), np.array([0.9]))
    plain, again = (
        np.abs(
            complete(
                restoration.replacement(),
                restoration.repaint(SCHEDULE, strides.uniform(SCHEDULE, 60), 6, resamplings),
            )[:, 1:].mean(0)
            - mean
        ).max()
        for resamplings in (1, 10)
    )
    assert again < plain / 2


@pytest.mark.parametrize("task", [restoration.ddnm(restoration.masking())])
def test_ddnm_keeps_what_is_known_and_moves_the_rest_towards_it(task):
    found = complete(task, ddnm()(SCHEDULE, strides.uniform(SCHEDULE, 100)))
    mean, _ = conditional(np.array([0]), np.array([0.9]))
    np.testing.assert_array_equal(found[:, 0], np.float32(0.9))
    moved = (found[:, 1:].mean(0) - MEAN[1:]) / (mean - MEAN[1:])
    assert (moved > 0.5).all() and (moved < 1.2).all()


def test_ddnms_eta_is_a_share_of_the_whole_noise():
    """`x' = alpha' x0 + sigma' (sqrt(1 - eta^2) eps + eta z)`; DDIM's eta gives half of that."""
    times = strides.uniform(SCHEDULE, 50)
    fresh, after = ddnm(0.85)(SCHEDULE, times), SCHEDULE.level(times[1:])
    np.testing.assert_allclose(fresh.noise[:, 0], 0.85 * after.sigma)
    np.testing.assert_allclose(fresh.store[:, 0], after.alpha)
    np.testing.assert_allclose(fresh.store[:, 1], after.sigma * np.sqrt(1 - 0.85**2))
    assert np.median(table(50, 0.85).noise[:-1, 0] / fresh.noise[:-1, 0]) < 0.6


def test_one_resampling_is_ddpm():
    times = strides.uniform(SCHEDULE, 20)
    plain, painted = ddim(1.0)(SCHEDULE, times), restoration.repaint(SCHEDULE, times, 5, 1)
    x, noise = RNG.normal(size=7), RNG.normal(size=(20, 7))
    answer = lambda x, level: (0.3 * x, (x - level.alpha * 0.3 * x) / level.sigma)  # noqa: E731
    ours, theirs = (t.run_numpy(answer, x, noise) for t in (painted, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_repaints_evaluations():
    """The published schedule of jumps: 250 steps, 24 jump points, 9 times 10 steps back."""
    times = strides.uniform(SCHEDULE, 250)
    painted = restoration.repaint(SCHEDULE, times, 10, 10)
    assert painted.nfe == 250 + 24 * 9 * 10 == 2410
    back = np.diff(painted.level.t) > 0
    assert back.sum() == 24 * 9
    steps = np.round(250 * np.diff(painted.level.t)).astype(int)
    assert set(steps) == {-1, 9}  # one step on, or on and ten back
    np.testing.assert_array_equal(painted.level.t[-1:], times[-2:-1])


def test_going_back_gives_the_noise_level_it_goes_to():
    """On a point mass at 0 the sample is pure noise, whose std is sigma in every row."""
    painted = restoration.repaint(SCHEDULE, strides.uniform(SCHEDULE, 12), 3, 4)
    zero = lambda x, level: (0 * x, x / level.sigma)  # noqa: E731
    x = RNG.normal(size=20_000)
    for row in range(1, painted.nfe):
        part = painted._replace(active=np.arange(painted.nfe) < row)
        found = part.run_numpy(zero, x, RNG.normal(size=(painted.nfe, 20_000)))
        np.testing.assert_allclose(found.std(), painted.level.sigma[row], rtol=0.03)


OPERATORS = {
    "masking": restoration.masking(),
    "average": restoration.average(2),
    "grey": restoration.grey(),
    "blur": restoration.blur(0.7),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_pseudo_inverse_is_one(name):
    operator = OPERATORS[name]
    x = jnp.asarray(RNG.normal(size=(2, 8, 6, 3)), jnp.float32)
    mask = jnp.asarray(RNG.integers(0, 2, (2, 8, 6, 1)), jnp.float32)
    y = operator.forward(x, mask)
    again = operator.forward(operator.inverse(y, mask), mask)
    np.testing.assert_allclose(again, y, atol=0.03 if name == "blur" else 1e-5)
    back = operator.inverse(y, mask)
    np.testing.assert_allclose(
        operator.inverse(operator.forward(back, mask), mask), back, atol=1e-4
    )
    seen, unseen = back, x - back  # orthogonal parts: A+ A projects
    assert abs(float(jnp.sum(seen * unseen))) < 1e-3 * float(jnp.sum(x**2))


def test_a_blur_is_a_gaussian_of_that_width():
    x = np.zeros((1, 33, 33, 1), np.float32)
    x[0, 16, 16] = 1
    y = np.asarray(restoration.blur(2.0, floor=1e-9).forward(jnp.asarray(x)))[0, :, :, 0]
    place = np.arange(33) - 16
    np.testing.assert_allclose(y.sum(), 1, rtol=1e-4)
    np.testing.assert_allclose((y.sum(0) * place**2).sum(), 4, rtol=0.02)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: restoration.average(1), "factor must be in .2, 4096., got 1"),
        (lambda: restoration.blur(0), "std must be positive, got 0"),
        (
            lambda: restoration.repaint(SCHEDULE, np.linspace(1, 0, 5), 0),
            "jump_length must be at l",
        ),
        (
            lambda: restoration.average(4).forward(jnp.ones((1, 6, 8, 1))),
            "6 x 8 pixels are not div",
        ),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
