"""A noise level for each frame of clips: in predictions, losses, tables; known frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import sampling, schedules, solvers, strides
from ddim_jax.editing.frames import KnownFrames, known_frames
from ddim_jax.frame_noise import FRAME_NOISES
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.losses import LOSSES, WEIGHTINGS, LevelPairs
from ddim_jax.losses.loss import Net, add_noise, regress, with_known
from ddim_jax.losses.time_samplers import of_frames, uniform
from ddim_jax.predictions import PREDICTIONS, Prediction, predict, target
from ddim_jax.schedules import NoiseLevel
from ddim_jax.solvers.staggered import staggered

B, T = 4, 3
SCHEDULE = schedules.cosine()
COVARIANCE = np.array([[0.30, 0.24, 0.15], [0.24, 0.40, 0.30], [0.15, 0.30, 0.50]])
"""Of the frames of a clip of one pixel, whose mean is 0."""


def gaussian(x, level):
    """Predicts clips [B, T, 1, 1, 1] of that covariance, at levels that broadcast to [B, T]."""
    alpha, sigma = (jnp.broadcast_to(jnp.asarray(f), (len(x), T)) for f in level[1:3])
    flat, cov = x.reshape(len(x), T), jnp.asarray(COVARIANCE)
    inner = alpha[:, :, None] * cov[None] * alpha[:, None, :]
    inner += jnp.eye(T)[None] * (sigma**2 + 1e-9)[:, :, None]
    weights = jnp.linalg.solve(inner, flat[..., None])[..., 0]
    x0 = jnp.einsum("fg,bg->bf", cov, alpha * weights)
    return Prediction(x0.reshape(x.shape), (sigma * weights).reshape(x.shape))


def clips(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, T, 1, 1, 1)), jnp.float32)


def keys(count=B):
    return sampling.sample_keys(0, np.arange(count))


def times_of(steps):
    return strides.uniform(SCHEDULE, steps, lam_min=-5.0)


def linear_map(table, task=None, known=None):
    """The matrix [T, T] that takes what T clips start from to what they become."""
    x = jnp.eye(T)[:, :, None, None, None]
    denoise = gaussian if task is None else task.wrap(gaussian, known)
    hook = task and (lambda x, level, keys: task.constrain(x, level, keys, known))
    run = jax.jit(lambda table: sampling.run(denoise, table, x, keys(T), constrain=hook).x)
    return np.asarray(run(table)).reshape(T, T).T


# --- levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PREDICTIONS))
def test_levels_of_frames_that_are_equal_are_the_level_of_the_clip(name):
    row = PREDICTIONS[name]()
    x0, eps, output = clips(0), clips(1), clips(2)
    t = jnp.array([0.1, 0.4, 0.7, 0.9])
    one = SCHEDULE.level(t)
    each = SCHEDULE.level(jnp.broadcast_to(t[:, None], (B, T)))
    lam = SCHEDULE.half_log_snr
    for weighting in (None, WEIGHTINGS["min_snr"](5.0)):
        found = [
            (add_noise(x0, eps, level), target(row, Prediction(x0, eps), level))
            + tuple(predict(row, x0, level, output))
            + (regress(output, row, level, lam(level.t), Prediction(x0, eps), weighting)[0],)
            for level in (one, each)
        ]
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(PREDICTIONS))
def test_known_frames_are_what_they_are_and_have_no_loss(name):
    row = PREDICTIONS[name]()
    x0, eps, output = clips(0), clips(1), clips(2)
    t = jnp.broadcast_to(jnp.array([0.0, 0.3, 0.6]), (B, T))  # the first frame is known
    level = SCHEDULE.level(t)
    x = add_noise(x0, eps, level)
    np.testing.assert_array_equal(x[:, 0], x0[:, 0])
    found = predict(row, x, level, output)
    np.testing.assert_array_equal(found.x0[:, 0], x0[:, 0])
    assert np.all(np.isfinite(found.eps))

    def loss(output, weighting):
        wanted, lam = Prediction(x0, eps), SCHEDULE.half_log_snr(t)
        return regress(output, row, level, lam, wanted, weighting)[0]

    for weighting in (None, WEIGHTINGS["min_snr"](5.0), WEIGHTINGS["snr_plus_one"]()):
        gradient = jax.grad(loss)(output, weighting)
        assert np.all(gradient[:, 0] == 0) and np.all(gradient[:, 1:] != 0)
    rest = NoiseLevel(*(f[:, 1:] for f in level))
    wanted = Prediction(x0[:, 1:], eps[:, 1:])
    alone = regress(output[:, 1:], row, rest, SCHEDULE.half_log_snr(rest.t), wanted, None)[0]
    np.testing.assert_allclose(loss(output, None), alone, rtol=1e-6)


def test_frames_have_one_level_or_some_are_known_or_each_has_its_own():
    many, frames = 4000, 8
    sample = of_frames(SCHEDULE, uniform(SCHEDULE), (0.55, 0.25))
    t = np.asarray(jax.jit(lambda keys: sample(keys, frames))(keys(many)))
    known = t == SCHEDULE.t_span[1]
    count = known.sum(1)
    assert count.max() < frames
    others = np.where(known, np.nan, t)
    same = np.nanmax(others, 1) == np.nanmin(others, 1)
    assert abs(np.mean(same & (count == 0)) - 0.55) < 0.03
    assert abs(np.mean(count > 0) - 0.25) < 0.03
    assert np.all(same[count > 0])
    first = known[count > 0] == (np.arange(frames) < 1)
    assert abs(np.mean(first.all(1)) - (1 / 4 + 1 / 16)) < 0.06
    assert abs(np.nanmean(others) - 0.5) < 0.02
    one = sample(keys(many)[7:9], frames)  # of its key alone
    np.testing.assert_allclose(one, t[7:9], rtol=1e-6)
    for shares in ((0.8, 0.4), 0.5, (0.2, -0.1)):
        with pytest.raises(ValueError, match="config.loss.frame_levels must be"):
            of_frames(SCHEDULE, uniform(SCHEDULE), shares)


def test_some_frames_of_a_share_of_clips_are_known():
    """At the clean end, the others at the level of their clip, which differs from row to row."""
    many, frames = 2000, 8
    level = SCHEDULE.level(jnp.linspace(0.1, 0.9, many))
    assert with_known(level, SCHEDULE, keys(many), frames, 0.0) is level
    for rate in (0.3, 1.0):
        found = with_known(level, SCHEDULE, keys(many), frames, rate)
        known = np.asarray(found.sigma) == 0
        count = known.sum(1)
        assert count.max() < frames
        none = 0.5 * (0.9**9 - 0.4**9) / 9 / 0.5  # of any frame at .1 to .6 each, in half of them
        expected = rate * (1 - none)
        assert abs(np.mean(count > 0) - expected) < 5 * np.sqrt(0.25 / many)
        clean = SCHEDULE.level(jnp.float32(SCHEDULE.t_span[1]))
        for field, of, at_end in zip(found, level, clean, strict=True):
            wanted = np.where(known, at_end, np.asarray(of)[:, None])
            np.testing.assert_array_equal(field, wanted)


@pytest.mark.parametrize("name", ["guided", "progressive", "consistency"])
def test_all_networks_of_a_distillation_know_the_same_frames(name):
    """Whose pictures every call is given without noise, those in the middle of a step too."""
    seen, ones = [], jnp.ones(B)
    clean = SCHEDULE.level(np.float32(SCHEDULE.t_span[1])).model_time

    def apply(p, x, model_time, inputs, keys=None):
        seen.append((np.asarray(model_time) == clean, np.asarray(x)))
        return p * x

    options = {
        "guided": {},
        "progressive": dict(steps=4),
        "consistency": dict(pairs=LevelPairs(lambda *_: (2 * ones, ones), 0.0), distil=True),
    }[name]
    net, batch = Net(apply, SCHEDULE, PREDICTIONS["v"]()), {"image": clips()}
    loss = LOSSES[name](net, known=1.0, **options)
    loss(jnp.float32(0.3), {"teacher": jnp.float32(0.4)}, batch, keys(), 0)
    known = seen[0][0]
    assert known.shape == (B, T) and known.any() and not known.all(1).any()
    for also, x in seen:
        np.testing.assert_array_equal(also, known)
        np.testing.assert_allclose(x[known], np.asarray(batch["image"])[known], atol=1e-6)
    assert len(seen) == {"guided": 2, "progressive": 3, "consistency": 4}[name]


def test_guidance_takes_levels_of_frames():
    def net(x, level, told):
        t = jnp.broadcast_to(level.model_time, x.shape[:2])
        return x * (t + told["label"][:, None])[..., None, None, None]

    told, null = ({"label": jnp.full(B, value)} for value in (2.0, 1.0))
    x = clips()
    for t in (jnp.array([[0.2, 0.4, 0.6]]), jnp.linspace(0.1, 0.9, B * T).reshape(B, T)):
        level = SCHEDULE.level(t)
        found = classifier_free(net, null, Guidance(3.0))(x, level, told)
        a, b = net(x, level, told), net(x, level, null)
        np.testing.assert_allclose(found, b + 3 * (a - b), rtol=1e-5)


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "heun", "unipc_3"])
def test_frames_that_are_not_delayed_are_drawn_at_once(name):
    table = solvers.SOLVERS[name](SCHEDULE, times_of(6))
    run = lambda table: sampling.run(gaussian, table, clips(), keys()).x  # noqa: E731
    apart = staggered(table, [0] * T, SCHEDULE).validate()
    grown = apart.pad(len(apart.slot) + 2, apart.history.shape[2] + 1)
    np.testing.assert_allclose(run(grown), run(table), atol=1e-6)


@pytest.mark.parametrize(("name", "delay"), [("ddim", 7), ("unipc_3", 7), ("unipc_3", 60)])
def test_frames_behind_each_other_have_the_distribution_of_the_data(name, delay):
    """The flow of a Gaussian is linear: its matrix M has M M^T equal to the covariance."""
    table = solvers.SOLVERS[name](SCHEDULE, times_of(60))
    found = linear_map(staggered(table, delay * np.arange(T), SCHEDULE))
    error = 0.03 if name == "ddim" else 0.01
    np.testing.assert_allclose(found @ found.T, COVARIANCE, atol=error)
    if delay == 60:  # a frame after the other: the later, noise still, decide next to nothing
        assert np.all(np.abs(np.triu(found, 1)) < np.exp(-5))
        np.testing.assert_allclose(np.abs(found), np.abs(np.linalg.cholesky(COVARIANCE)), atol=0.01)


def test_delays_and_tables_that_cannot_be_are_refused():
    table = solvers.SOLVERS["ddim"](SCHEDULE, times_of(3))
    for delays in ([1, 2], [0, -1], [0.0, 1.0], [], 3):
        with pytest.raises(ValueError, match="delays must be rows, one whole number a frame"):
            staggered(table, delays, SCHEDULE)
    for odd in (table.pad(9, 2), staggered(table, [0, 1], SCHEDULE)):
        with pytest.raises(ValueError, match="takes a table of pictures that is not padded"):
            staggered(odd, [0, 1], SCHEDULE)


# --- known frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [[True, False, False], [True, False, True]])
def test_frames_are_drawn_as_the_known_ones_say(known):
    known = np.array(known)
    given = KnownFrames(clips(3)[:T], jnp.broadcast_to(known, (T, T)))
    task, table = known_frames(SCHEDULE), solvers.SOLVERS["unipc_3"](SCHEDULE, times_of(60))
    nothing = given._replace(clip=jnp.zeros_like(given.clip))
    centred = linear_map(table, task, nothing)
    hidden, seen = COVARIANCE[~known][:, ~known], COVARIANCE[~known][:, known]
    gain = seen @ np.linalg.inv(COVARIANCE[known][:, known])
    np.testing.assert_allclose(
        (centred @ centred.T)[~known][:, ~known], hidden - gain @ seen.T, atol=0.01
    )
    found = linear_map(table, task, given).T
    of_clip = np.asarray(given.clip).reshape(T, T)
    np.testing.assert_array_equal(found[:, known], of_clip[:, known])
    means = (found - centred.T)[:, ~known]
    np.testing.assert_allclose(means, of_clip[:, known] @ gain.T, atol=0.02)


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FRAME_NOISES)
def test_noise_of_frames_is_standard_normal_and_as_correlated_as_it_says(name):
    noise = FRAME_NOISES[name](0.6)
    wanted = {
        "mixed": [[1, 0.6, 0.6], [0.6, 1, 0.6], [0.6, 0.6, 1]],
        "progressive": [[1, 0.6, 0.36], [0.6, 1, 0.6], [0.36, 0.6, 1]],
    }[name]
    np.testing.assert_allclose(noise.covariance(3), wanted, rtol=1e-12)
    net = Net(None, SCHEDULE, None, frame_noise=noise)
    for z in (
        net.noise(keys(2000), jnp.zeros((2000, 3, 4, 1, 1))),
        sampling.initial_noise(keys(2000), (3, 4, 1, 1), noise),
    ):
        lines = np.asarray(z).swapaxes(1, 2).reshape(-1, 3)
        np.testing.assert_allclose(lines.T @ lines / len(lines), wanted, atol=0.05)
    short = sampling.initial_noise(keys(2), (2, 4, 1, 1), noise)
    assert short.shape == (2, 2, 4, 1, 1)
    for correlation in (1.0, -0.1):
        with pytest.raises(ValueError, match="config.frame_noise.correlation must be in"):
            FRAME_NOISES[name](correlation)


def test_samplers_add_noise_that_is_correlated_too():
    """Into a clip of noise alone nothing but the noise of the rows remains."""
    noise, many = FRAME_NOISES["mixed"](0.5), 2000
    table = solvers.SOLVERS["ddpm"](SCHEDULE, times_of(8))
    table = table._replace(active=np.arange(8) < 1, state=0 * table.state)  # its noise alone
    nothing = lambda x, level: Prediction(0 * x, 0 * x)  # noqa: E731
    x = jnp.zeros((many, T, 1, 1, 1))
    found = sampling.run(nothing, table, x, keys(many), frame_noise=noise).x.reshape(many, T)
    found = np.asarray(found) / found.std()
    np.testing.assert_allclose(found.T @ found / many, noise.covariance(T), atol=0.06)
