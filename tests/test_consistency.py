"""Consistency losses: grids against the papers' numbers, and Gaussian data, with known maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import predictions, schedules
from ddim_jax.losses import Net, level_pairs, weightings
from ddim_jax.losses.consistency import consistency, heun
from ddim_jax.losses.continuous_consistency import continuous_consistency, tangent_of
from ddim_jax.predictions import expand

COUNT = 4096
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(COUNT))
EDM = schedules.edm()
MEAN, STD, LEAST = 0.3, 0.7, 0.002
IMAGES = jnp.asarray(np.random.default_rng(0).normal(MEAN, STD, (COUNT, 2)), jnp.float32)


def exact_map(y, s):
    """The consistency function of N(MEAN, STD^2): spec'd at s = LEAST, where it is the identity."""
    return MEAN + (y - MEAN) * jnp.sqrt((STD**2 + LEAST**2) / (STD**2 + s**2))


def exact_eps(y, s):
    return s * (y - MEAN) / (STD**2 + s**2)


def output_for(parameterization, x, s, clean):
    """What a network must return so that x0 is `clean`."""
    s = s[0] if s.ndim else s
    row = parameterization(schedules.NoiseLevel(s, 1.0, s, s))
    det = row.eps_weight - s * row.x0_weight
    return (row.eps_weight / det * x - clean) * det / (s * row.output_scale)


def network(parameterization):
    """params "student" knows the map, "teacher" the score; both take EDM's scaled input."""

    def one(p, x, log_s):
        s = jnp.exp(4 * log_s)
        row = parameterization(schedules.NoiseLevel(s, 1.0, s, s))
        y = x / row.input_scale
        clean = exact_map(y, s) if p == "student" else y - s * exact_eps(y, s)
        det = row.eps_weight - s * row.x0_weight
        scale = jnp.where(abs(row.output_scale) < 1e-6, 1.0, row.output_scale)
        return (row.eps_weight / det * y - clean) * det / (s * scale)

    def apply(p, x, model_time, inputs, keys=None):
        return jax.vmap(lambda x, t: one(p, x, t))(x, model_time)

    return apply


PREDICTION = predictions.consistency(0.5, LEAST)


def test_the_exact_map_has_less_loss_the_finer_the_teachers_steps():
    """Heun's error is of third order a step, so the squared distance falls as N^-6."""
    values = []
    for count in (20, 40, 80):
        loss = consistency(
            Net(network(PREDICTION), EDM, PREDICTION),
            pairs=level_pairs.grid(level_pairs.constant(count)),
            distance="l2",
            weight="uniform",
            distil=True,
            teacher=Net(network(predictions.edm(0.5)), EDM, predictions.edm(0.5)),
        )
        values.append(float(loss("student", {"teacher": "teacher"}, {"image": IMAGES}, KEYS, 0)[0]))
    slopes = np.log2(np.array(values[:-1]) / values[1:])
    assert values[-1] < 2e-7 and slopes[0] > 5, (values, slopes)


def test_every_network_of_a_guided_distillation_is_told_one_scale():
    seen = {}

    def apply(p, x, model_time, inputs, keys=None):
        seen.setdefault(p, []).append(np.asarray(inputs["guidance"]))
        return 0 * x

    loss = consistency(
        Net(apply, schedules.cosine(), predictions.v, {"label": 3}),
        pairs=level_pairs.grid(level_pairs.constant(8), sigma_min=0.0, sigma_max=20.0),
        distil=True,
        guidance=(1.0, 2.0),
    )
    batch = {"image": IMAGES, "label": jnp.zeros(COUNT, jnp.int32)}
    loss("student", {"teacher": "teacher"}, batch, KEYS, 0)
    told = seen["teacher"] + seen["student"]
    assert len(seen["teacher"]) == len(seen["student"]) == 2
    for scale in told:
        np.testing.assert_array_equal(scale, told[0])
    assert told[0].min() < 1.01 and told[0].max() > 1.99


def test_from_data_the_exact_map_is_a_minimum_only_in_the_limit():
    """CT's two points differ by the noise's share that is not along the flow: first order."""
    values = [
        float(
            consistency(
                Net(network(PREDICTION), EDM, PREDICTION),
                pairs=level_pairs.grid(level_pairs.constant(count)),
                distance="l2",
                weight="uniform",
            )("student", None, {"image": IMAGES}, KEYS, 0)[0]
        )
        for count in (100, 200)
    ]
    assert 3.5 < values[0] / values[1] < 4.5


def test_at_the_lowest_ratio_the_target_is_the_data_itself():
    """Two points: f(x_high) against x at the least noise, whatever the network says there."""
    apply = lambda p, x, t, inputs, keys=None: 7.0 + 0 * x  # noqa: E731
    only = level_pairs.LevelPairs(
        lambda keys, step: (jnp.full(COUNT, 2.0), jnp.full(COUNT, LEAST)), LEAST
    )
    loss = consistency(Net(apply, EDM, PREDICTION), pairs=only, distance="l2", weight="uniform")
    value = loss(None, None, {"image": IMAGES}, KEYS, 0)[0]
    eps_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(KEYS)
    eps = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (2,)))(eps_keys))
    x, s = np.asarray(IMAGES), 2.0
    skip = 0.25 / ((s - LEAST) ** 2 + 0.25)
    out = 0.5 * (s - LEAST) / np.sqrt(s**2 + 0.25)
    expected = (skip * (x + s * eps) + out * 7.0 - (x + LEAST * eps)) ** 2
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)


def test_where_the_low_ratio_is_zero_it_is_denoising():
    apply = lambda p, x, t, inputs, keys=None: p * x  # noqa: E731
    only = level_pairs.LevelPairs(lambda keys, step: (jnp.full(COUNT, 0.5), jnp.zeros(COUNT)), 0.0)
    for prediction in (predictions.v, predictions.flow, predictions.edm(0.5)):
        schedule = EDM if prediction not in (predictions.v,) else schedules.cosine()
        loss = consistency(
            Net(apply, schedule, prediction), pairs=only, distance="l2", weight="uniform"
        )
        value, metrics = loss(jnp.float32(0.3), None, {"image": IMAGES}, KEYS, 0)
        np.testing.assert_allclose(value, metrics["mse_x0"], rtol=1e-5)


def test_distances_and_weights():
    apply = lambda p, x, t, inputs, keys=None: p * x  # noqa: E731
    only = level_pairs.LevelPairs(
        lambda keys, step: (jnp.full(COUNT, 1.0), jnp.full(COUNT, 0.6)), 0.0
    )

    def evaluate(**options):
        loss = consistency(Net(apply, EDM, predictions.edm(0.5)), pairs=only, **options)
        return np.float64(loss(jnp.float32(0.3), None, {"image": IMAGES}, KEYS, 0)[0])

    plain = evaluate(distance="l2", weight="uniform")
    np.testing.assert_allclose(evaluate(distance="l2", weight="gap"), plain / 0.4, rtol=1e-5)
    by_snr = evaluate(distance="l2", weight=weightings.edm(0.5))  # 1 / 1^2 + 1 / 0.5^2
    np.testing.assert_allclose(by_snr, 5 * plain, rtol=1e-5)
    norms = evaluate(distance=lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2, -1)), weight="uniform")
    np.testing.assert_allclose(evaluate(huber=0.0, weight="uniform"), norms, rtol=1e-5)
    c = 0.00054 * np.sqrt(2)
    assert norms - c < evaluate(weight="uniform") < norms
    # far below c it is the square over 2 c
    wide = evaluate(huber=1e3, weight="uniform")
    np.testing.assert_allclose(wide, 2 * plain / 2e3, rtol=0.1)


def test_the_gradient_of_a_plain_norm_is_finite_where_nothing_is_apart():
    apply = lambda p, x, t, inputs, keys=None: p * x  # noqa: E731
    same = level_pairs.LevelPairs(lambda keys, step: (jnp.full(COUNT, 1.0),) * 2, 0.0)
    loss = consistency(
        Net(apply, EDM, predictions.edm(0.5)), pairs=same, huber=0.0, weight="uniform"
    )
    value = lambda p: loss(p, None, {"image": IMAGES}, KEYS, 0)[0]  # noqa: E731
    assert np.isfinite(jax.grad(value)(jnp.float32(0.3)))


def test_a_moving_target_is_what_is_compared_with():
    apply = lambda p, x, t, inputs, keys=None: p * x  # noqa: E731
    only = level_pairs.LevelPairs(
        lambda keys, step: (jnp.full(COUNT, 1.0), jnp.full(COUNT, 0.9)), 0.0
    )
    loss = consistency(Net(apply, EDM, predictions.edm(0.5)), pairs=only, target_decay=0.9)
    frozen = loss.freeze(jnp.float32(1.0))
    assert frozen == {"target": 1.0}
    values = [
        loss(jnp.float32(0.3), {"target": t}, {"image": IMAGES}, KEYS, 0)[0] for t in (0.3, 1)
    ]
    assert abs(values[0] - values[1]) > 1e-3
    moved = loss.update_frozen(frozen, jnp.float32(0.0), 1)
    np.testing.assert_allclose(moved["target"], 0.9, rtol=1e-6)


# --- pairs ----------------------------------------------------------------------------------------


def test_the_grid_is_edms_from_end_to_end():
    high, low = (
        np.asarray(s, np.float64)
        for s in level_pairs.grid(level_pairs.constant(18)).sample(KEYS, 0)
    )
    n = np.arange(18) / 17
    expected = (0.002 ** (1 / 7) + n * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    np.testing.assert_allclose(np.unique(low.round(7)), expected[:-1], rtol=2e-4)
    np.testing.assert_allclose(np.unique(high.round(5)), expected[1:], rtol=2e-3)
    place = np.searchsorted(expected * 1.001, low)
    np.testing.assert_allclose(expected[place + 1], high, rtol=1e-4)
    assert abs(np.bincount(place) - COUNT / 17).max() < 5 * np.sqrt(COUNT / 17)


@pytest.mark.parametrize(
    "step, count, mu",
    [(0, 2, 0.81), (100_000, 54, 0.99603), (400_000, 107, 0.99801), (800_000, 151, 0.99860)],
)
def test_cts_schedules(step, count, mu):
    points = level_pairs.growing(800_000)
    assert points(step) == count
    np.testing.assert_allclose(level_pairs.adaptive_decay(points)(step), mu, atol=1e-5)


def test_icts_schedules():
    points = level_pairs.doubling(400_000)
    found = [float(points(k)) for k in range(0, 400_001, 50_000)]
    assert found == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    sample = level_pairs.grid(lambda step: jnp.float32(11), log_normal=(-1.1, 2.0)).sample
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(200_000))
    _, low = sample(keys, 0)
    _, counts = np.unique(np.asarray(low).round(6), return_counts=True)
    wanted = [0.0626, 0.1817, 0.2455, 0.2135, 0.1424, 0.0806, 0.0411, 0.0196, 0.0089, 0.0040]
    np.testing.assert_allclose(counts / 200_000, wanted, atol=3e-3)


def test_ects_gap_shrinks_by_stages_and_starts_as_denoising():
    sample = level_pairs.shrinking(every=100).sample
    high, low = (np.asarray(s, np.float64) for s in sample(KEYS, 0))
    share = 0.5 * (1 + 8 / (1 + np.exp(high)))
    np.testing.assert_allclose(low, np.maximum(high * (1 - share), 0), rtol=1e-5, atol=1e-6)
    assert (low[high < 1] == 0).all() and (low[high > 3] > 0).all()
    log_s = np.log(high)
    assert abs(log_s.mean() + 1.1) < 0.2 and abs(log_s.std() - 2) < 0.15
    later = np.asarray(sample(KEYS, 350)[1], np.float64)
    np.testing.assert_allclose(later, high * (1 - share / 8), rtol=1e-4)


def test_a_heun_step_is_third_order_on_a_gaussian():
    errors = []
    for high, low in ((1.0, 0.8), (0.9, 0.8)):
        level = lambda s: schedules.NoiseLevel(*(jnp.full(1, f) for f in (s, 1.0, s, s)))  # noqa: E731
        slope = lambda x, level: exact_eps(x, level.sigma[0])  # noqa: E731
        x = jnp.ones((1, 1)) * 2
        found = heun(slope, x, level(high), level(low))
        exact = MEAN + (2 - MEAN) * np.sqrt((STD**2 + low**2) / (STD**2 + high**2))
        errors.append(abs(float(found[0, 0]) - exact))
    assert 6 < errors[0] / errors[1] < 10


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: consistency(Net(None, EDM, predictions.x0)),
            "not the identity at sigma / alpha = 0.002",
        ),
        (
            lambda: consistency(Net(None, EDM, PREDICTION), pairs=level_pairs.shrinking(every=9)),
            "not the identity at sigma / alpha = 0.0, .*'consistency' with that sigma_min",
        ),
        (
            lambda: consistency(Net(None, EDM, PREDICTION), distance="l3"),
            "config.loss.distance must be one of l2, hub",
        ),
        (
            lambda: consistency(Net(None, EDM, PREDICTION, {"label": 3}), guidance=(1.0, 2.0)),
            "is what a teacher was told: set config.loss.distil=True",
        ),
        (
            lambda: consistency(
                Net(None, schedules.cosine(), predictions.v),
                pairs=level_pairs.grid(sigma_min=0),
                distil=True,
                teacher=Net(None, schedules.cosine(), predictions.x0),
            ),
            "a teacher that predicts x0 says nothing about the velocity at the data",
        ),
        (
            lambda: consistency(Net(None, EDM, PREDICTION), huber=-1),
            "config.loss.huber must be at least 0, got -1",
        ),
        (
            lambda: consistency(Net(None, EDM, PREDICTION), weight="snr"),
            "config.loss.weight must be one of uniform, g",
        ),
        (
            lambda: level_pairs.grid(sigma_min=-1),
            "pairs needs 0 <= sigma_min < sigma_max, got -1 and 80",
        ),
        (lambda: level_pairs.constant(1), "points must be at least 2, got 1"),
        (
            lambda: level_pairs.growing(0),
            "points needs total_steps >= 1 and 0 < start <= end, got 0, 2 and 150",
        ),
        (
            lambda: level_pairs.shrinking(every=0),
            "config.loss.pairs.every must be at least 1, got 0",
        ),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- continuous time ------------------------------------------------------------------------------

HALF = jnp.asarray(np.random.default_rng(0).normal(0, 0.5, (COUNT, 2)), jnp.float32)


def trig(t):
    """The angle of model time 1000 t of the cosine schedule, for sigma_data = 1/2."""
    level = schedules.cosine().level(t)
    return jnp.arctan(level.sigma / level.alpha / 0.5), level


def test_the_exact_consistency_function_of_a_gaussian_has_no_tangent():
    """x0 ~ N(0, sigma_data^2): the flow stands still, f = x, F = -tan(a / 2) x."""

    def apply(p, x, model_time, inputs, keys=None):
        # p is 0 for the teacher, whose dx/da is 0: x0 = cos(a) x, eps = sin(a) x
        slope = lambda angle, x: -p * jnp.tan(angle / 2) * x  # noqa: E731
        angle, level = (jax.tree.map(lambda f: expand(f, x), f) for f in trig(model_time / 1000))
        x = x / jnp.sqrt((0.5 * level.alpha) ** 2 + level.sigma**2)
        F = slope(angle, x)  # noqa: N806
        x0 = 0.5 * (jnp.cos(angle) * x - jnp.sin(angle) * F)
        eps = jnp.sin(angle) * x + jnp.cos(angle) * F
        return level.alpha * eps - level.sigma * x0

    loss = continuous_consistency(
        Net(apply, schedules.cosine(), predictions.v), sigma_data=0.5, distil=True, warmup_steps=1
    )
    value, metrics = loss(1.0, {"teacher": 0.0}, {"image": HALF}, KEYS, 1)
    assert metrics["tangent"] < 2e-2 and value < 1e-3
    # half of the way through the warm-up the parts do not cancel
    loss = continuous_consistency(
        Net(apply, schedules.cosine(), predictions.v), sigma_data=0.5, distil=True, warmup_steps=2
    )
    assert loss(1.0, {"teacher": 0.0}, {"image": HALF}, KEYS, 1)[1]["tangent"] > 0.05


def test_the_tangent_is_the_derivative_of_f_along_the_trajectory():
    """Against finite differences in float64, for a network that is no solution of anything."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, slope = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(5, 3)))
        angle = jnp.linspace(0.2, 1.4, 5)
        F = lambda x, a: jnp.sin(2 * x + 3 * expand(a, x))  # noqa: E731, N806
        f = lambda x, a: expand(jnp.cos(a), x) * x - expand(jnp.sin(a), x) * F(x, a)  # noqa: E731
        h = 1e-5
        along = [f(x + k * h * slope, angle + k * h) for k in (1, -1)]
        expected = expand(jnp.cos(angle), x) * (along[0] - along[1]) / (2 * h)
        size = expand(jnp.cos(angle) * jnp.sin(angle), x)
        directions = (size * slope, size.reshape(5))
        output, change = jax.jvp(F, (x, angle), directions)
        found = tangent_of(output, change, x, slope, angle, 1.0)
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_the_loss_goes_along_the_trajectory_of_the_data():
    """The tangent g inside the loss against finite differences, for some network and its draws.

    The gradient by a parameter that bends F by dF is -2 mean(g dF), g over its norm and the floor.
    """
    schedule = schedules.cosine()

    def apply(p, x, model_time, inputs, keys=None):
        return jnp.tanh(1.5 * x) + jnp.sin(2 * expand(model_time / 1000, x)) + p * jnp.cos(x)

    loss = continuous_consistency(
        Net(apply, schedule, predictions.v), sigma_data=0.5, warmup_steps=1
    )
    compute = jax.value_and_grad(lambda p: loss(p, None, {"image": HALF}, KEYS, 1), has_aux=True)
    (value, metrics), slope_of_loss = compute(jnp.float32(0))
    time_key, eps_key = (
        jax.vmap(lambda key, p=p: jax.random.fold_in(key, p))(KEYS) for p in range(2)
    )
    normal = np.asarray(jax.vmap(jax.random.normal)(time_key), np.float64)
    eps = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (2,)))(eps_key), np.float64)
    angle = np.arctan(np.exp(-1 + 1.4 * normal) / 0.5)[:, None]
    x0 = np.asarray(HALF, np.float64) / 0.5

    def f(x, angle):
        """x0 of the network at x = cos x0 + sin eps, in units of the data."""
        t = schedule.time_of(-np.log(0.5 * np.tan(angle)))
        level = schedule.level(t)
        x = x * np.sqrt((0.5 * level.alpha) ** 2 + level.sigma**2)
        v = np.tanh(1.5 * x) + np.sin(2 * np.clip(t, schedule.t_min, 1))
        return (level.alpha * x - level.sigma * v) / 0.5

    x, slope = (
        np.cos(angle) * x0 + np.sin(angle) * eps,
        np.cos(angle) * eps - np.sin(angle) * x0,
    )
    h = 1e-6
    along = (f(x + h * slope, angle + h) - f(x - h * slope, angle - h)) / (2 * h)
    g = np.cos(angle) * along
    norm = np.sqrt((g**2).sum(1, keepdims=True))
    np.testing.assert_allclose(metrics["tangent"], norm.mean(), rtol=2e-3)
    g = g / (norm + 0.1)
    np.testing.assert_allclose(value, (g**2).mean(), rtol=2e-3)
    level = schedule.level(schedule.time_of(-np.log(0.5 * np.tan(angle))))
    bump = np.cos(x * np.sqrt((0.5 * level.alpha) ** 2 + level.sigma**2))  # of v, and of F:
    bump = (np.cos(angle) * level.alpha + np.sin(angle) * level.sigma / 0.5) * bump
    np.testing.assert_allclose(slope_of_loss, -2 * (g * bump).mean(), rtol=5e-3)
