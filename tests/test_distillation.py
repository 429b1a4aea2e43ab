"""Progressive and guided distillation against the papers' formulas, in the papers' own form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import predictions, schedules, strides
from ddim_jax.losses.guided import guided
from ddim_jax.losses.loss import Loss, Net
from ddim_jax.losses.progressive import progressive
from ddim_jax.losses.weightings import truncated_snr
from ddim_jax.predictions import expand

KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(64))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (64, 3)), jnp.float32)
BATCH = {"image": IMAGES, "label": jnp.arange(64, dtype=jnp.int32) % 3}
COSINE = schedules.cosine()
NULL = {"label": 3}


def teacher_v(x, t):
    """Some network: bounded, not linear, different at every time."""
    return jnp.tanh(1.3 * x + jnp.sin(3 * t)) + 0.2 * t


def published_target(x, t, steps, schedule=COSINE, last=None):
    """x_target of Salimans & Ho 2022, algorithm 2, and the step of its i = 0 branch, in v."""
    u, m, s = t, t - 0.5 / steps, t - 1 / steps

    def at(t):
        level = schedule.level(jnp.clip(t, 0, 1))
        return expand(level.alpha, x), expand(level.sigma, x)

    (a_u, s_u), (a_m, s_m), (a_s, s_s) = at(u), at(m), at(s)

    def fields(z, t, a, sigma):
        v = teacher_v(z, expand(t, z))
        return a * z - sigma * v, sigma * z + a * v

    x1, e1 = fields(x, u, a_u, s_u)
    z1 = a_m * x1 + s_m * e1
    x2, e2 = fields(z1, m, a_m, s_m)
    z2 = a_s * x2 + s_s * e2
    ratio = s_s / s_u
    found = (z2 - ratio * x) / (a_s - ratio * a_u)
    return jnp.where(expand(s, x) < 1e-6, x2, found)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_student_that_answers_with_the_papers_target_has_no_loss(steps):
    def apply(params, x, model_time, inputs, dropout_keys=None):
        t = model_time / 1000
        if params == "teacher":
            return teacher_v(x, expand(t, x))
        level = COSINE.level(t)
        clean = published_target(x, t, steps)
        eps = (x - expand(level.alpha, x) * clean) / expand(level.sigma, x)
        return expand(level.alpha, x) * eps - expand(level.sigma, x) * clean

    loss = progressive(Net(apply, COSINE, predictions.v), steps=steps)
    value = loss("student", {"teacher": "teacher"}, BATCH, KEYS, 0)[0]
    assert value < 1e-8
    wrong = lambda p, *rest: apply(p, *rest) + 1e-2 * (p == "student")  # noqa: E731
    off = progressive(Net(wrong, COSINE, predictions.v), steps=steps, weighting=None)
    np.testing.assert_allclose(
        off("student", {"teacher": "teacher"}, BATCH, KEYS, 0)[0], 1e-4, rtol=2e-2
    )


@pytest.mark.parametrize("schedule", ["cosine", "ddpm_linear", "edm", "rectified_flow"])
def test_one_step_to_the_target_lands_where_two_steps_of_the_teacher_land(schedule):
    """By DDIM steps in float64, for the mean of two answers that `progressive` forms."""
    from ddim_jax.losses.progressive import _grid

    schedule = schedules.SCHEDULES[schedule]()
    stride = nested if schedule.name == "edm" else strides.uniform
    levels, share = _grid(schedule, 8, stride)
    rng = np.random.default_rng(1)
    for k in range(8):
        a, s = levels.alpha[2 * k : 2 * k + 3], levels.sigma[2 * k : 2 * k + 3]
        x, x1, x2 = rng.normal(size=3)
        middle = a[1] * x1 + s[1] * (x - a[0] * x1) / s[0]
        end = a[2] * x2 + s[2] * (middle - a[1] * x2) / s[1]
        clean = share[k] * x1 + (1 - share[k]) * x2
        np.testing.assert_allclose(a[2] * clean + s[2] * (x - a[0] * clean) / s[0], end, atol=1e-12)
    assert share[-1] == 0  # at the clean end only the second answer is left


def nested(schedule, steps):
    """Karras' points of 16 steps, and every other one of them."""
    return strides.karras(schedule, 16)[:: 16 // steps]


def test_the_weight_is_the_larger_of_the_errors_in_x0_and_eps():
    apply = lambda p, x, t, inputs, keys=None: p * jnp.ones_like(x)  # noqa: E731

    def evaluate(**options):
        loss = progressive(Net(apply, COSINE, predictions.x0), steps=4, **options)
        return loss(jnp.float32(0.5), {"teacher": jnp.float32(0.2)}, BATCH, KEYS, 0)[0]

    np.testing.assert_allclose(evaluate(weighting=None), 0.3**2, rtol=1e-6)
    t = np.array([0.25, 0.5, 0.75, 1.0])
    snr = np.exp(2 * COSINE.half_log_snr(t))
    index = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 0), (), 0, 4))(KEYS)
    counts = np.bincount(3 - np.asarray(index), minlength=4)
    expected = (counts * np.maximum(snr, 1)).sum() / 64 * 0.3**2
    np.testing.assert_allclose(evaluate(), expected, rtol=1e-5)
    assert counts.min() > 5  # every step was looked at, pure noise too


def test_a_teacher_of_another_prediction_gives_the_same_targets():
    apply = lambda p, x, t, inputs, keys=None: p * x  # noqa: E731

    def as_flow(p, x, t, inputs, keys=None):
        level = COSINE.level(t / 1000)
        clean, eps = predictions.predict(predictions.v, x, level, p * x)
        return eps - clean

    def evaluate(**options):
        loss = progressive(Net(apply, COSINE, predictions.v), steps=4, **options)
        return loss(jnp.float32(0.5), {"teacher": jnp.float32(0.2)}, BATCH, KEYS, 0)[0]

    other = evaluate(teacher=Net(as_flow, COSINE, predictions.flow))
    np.testing.assert_allclose(other, evaluate(), rtol=1e-4)


def test_no_gradient_reaches_the_teacher():
    apply = lambda p, x, t, inputs, keys=None: p * x  # noqa: E731
    loss = progressive(Net(apply, COSINE, predictions.v), steps=4)
    value = lambda frozen: loss(jnp.float32(0.5), frozen, BATCH, KEYS, 0)[0]  # noqa: E731
    assert jax.grad(value)({"teacher": jnp.float32(0.2)})["teacher"] == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: progressive(Net(None, COSINE, predictions.v), steps=0),
            "config.loss.steps must be in .1, 10000., got 0",
        ),
        (
            lambda: progressive(
                Net(None, schedules.edm(), predictions.v), steps=16, stride=strides.karras
            ),
            "16 steps of this stride are not every other one of 32 on the edm .*use the uniform",
        ),
        (
            lambda: progressive(Net(None, COSINE, predictions.eps), steps=1),
            "next to nothing about x0 in its first step.*Use prediction 'v'.*name='guided'",
        ),
        (
            lambda: guided(Net(None, COSINE, predictions.v), guidance=(1, 4)),
            r"config.loss.guidance=\(1, 4\) needs a class-conditional network",
        ),
        (
            lambda: guided(Net(None, COSINE, predictions.v, NULL), guidance=(4, 1)),
            r"config.loss.guidance must be \(low, high\), got \(4, 1\)",
        ),
        (lambda: Loss(None, needs_teacher=True).freeze({}), "needs a teacher: set config.start_"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def conditional(p, x, t, inputs, keys=None):
    """A teacher whose v is known for every label; 3 is the null label."""
    return p * x + expand(inputs["label"].astype(x.dtype), x)


def test_a_guided_student_learns_the_guided_prediction():
    def student(p, x, t, inputs, keys=None):
        label = inputs["label"].astype(x.dtype)
        g = inputs["guidance"] + p
        return 0.3 * x + expand(3 + g * (label - 3), x)

    apply = lambda p, *rest: (student if "own" in p else teacher)(p.get("own"), *rest)  # noqa: E731
    teacher = lambda _, *rest: conditional(0.3, *rest)  # noqa: E731
    loss = guided(Net(apply, COSINE, predictions.v, NULL), guidance=(1, 5), weighting=None)
    value = lambda p: loss({"own": p}, {"teacher": {}}, BATCH, KEYS, 0)[0]  # noqa: E731
    assert value(0.0) < 1e-10
    label = np.arange(64) % 3
    np.testing.assert_allclose(value(0.1), (0.01 * (label - 3) ** 2).mean(), rtol=1e-4)


def test_guidance_scales_fill_their_range():
    seen = []

    def apply(p, x, t, inputs, keys=None):
        if "guidance" in inputs:
            seen.append(np.asarray(inputs["guidance"]))
        return p * x

    loss = guided(Net(apply, COSINE, predictions.v, NULL), guidance=(2, 6))
    loss(jnp.float32(0), {"teacher": jnp.float32(0)}, BATCH, KEYS, 0)
    assert 2 <= seen[0].min() < 2.5 and 5.5 < seen[0].max() <= 6 and len(seen) == 1


def test_without_a_range_a_student_learns_the_plain_prediction_in_its_own_terms():
    """An eps teacher becomes a v student."""

    def apply(p, x, t, inputs, keys=None):
        level = COSINE.level(t / 1000)
        eps = jnp.tanh(x)
        if p == "teacher":
            return eps
        clean = (x - expand(level.sigma, x) * eps) / expand(level.alpha, x)
        return expand(level.alpha, x) * eps - expand(level.sigma, x) * clean

    times = lambda keys: jnp.linspace(0.1, 0.9, 64)  # noqa: E731
    options = dict(times=times, weighting=truncated_snr())
    loss = guided(
        Net(apply, COSINE, predictions.v), **options, teacher=Net(apply, COSINE, predictions.eps)
    )
    assert loss("student", {"teacher": "teacher"}, BATCH, KEYS, 0)[0] < 1e-8
