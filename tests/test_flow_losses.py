"""MeanFlow and shortcut models: flows whose jumps are known, and the papers' identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import predictions, schedules
from ddim_jax.losses.loss import Net
from ddim_jax.losses.mean_flow import mean_flow
from ddim_jax.losses.shortcut import shortcut
from ddim_jax.predictions import expand

FLOW = schedules.rectified_flow()
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(256))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (256, 3)), jnp.float32)
NULL = {"label": 3}
PLAIN = Net(None, FLOW, predictions.flow)
BATCH = {"image": IMAGES, "label": jnp.arange(256, dtype=jnp.int32) % 3}


def growth(t):
    """The field v(x, t) = growth'(t) x moves x by exp(growth)."""
    return 0.8 * t + 0.3 * jnp.sin(3 * t)


def jump(p, x, model_time, inputs, keys=None):
    """The exact jump from t to t - interval of that field; p scales it."""
    t = model_time / 1000
    d = jnp.maximum(inputs["interval"], 1e-3)
    factor = jnp.expm1(growth(t - d) - growth(t)) / -d
    return p * expand(factor, x) * x


def smooth(p, x, model_time, inputs, keys=None):
    """The same, with its limit at interval 0, differentiable there."""
    t, d = model_time / 1000, inputs["interval"]
    nodes, weights = np.polynomial.legendre.leggauss(8)
    slope = lambda s: 0.8 + 0.9 * jnp.cos(3 * s)  # noqa: E731
    mean = sum(
        w / 2 * slope(t - d * (1 + n) / 2) * jnp.exp(growth(t - d * (1 + n) / 2) - growth(t))
        for n, w in zip(nodes, weights, strict=True)
    )
    return p * expand(mean, x) * x


def test_the_exact_mean_velocity_has_no_loss():
    """omega 0 and kappa 1 put the network's own velocity in place of the data's."""
    loss = mean_flow(
        Net(smooth, FLOW, predictions.flow, NULL),
        omega=0.0,
        kappa=1.0,
        label_dropout=1e-9,
        same=0.0,
    )
    value = lambda p: loss(jnp.float32(p), None, BATCH, KEYS, 0)[1]["mse_flow"]  # noqa: E731
    assert value(1.0) < 1e-8

    def wrong(p, x, model_time, inputs, keys=None):
        return smooth(p, x, model_time, {"interval": 0.8 * inputs["interval"]})

    off = mean_flow(
        Net(wrong, FLOW, predictions.flow, NULL), omega=0.0, kappa=1.0, label_dropout=1e-9
    )
    assert off(jnp.float32(1.0), None, BATCH, KEYS, 0)[1]["mse_flow"] > 1e-5


def rows_of_flow_matching():
    """The x of the batch at the times that are drawn, and eps - x0."""
    purposes = [jax.vmap(lambda key, p=p: jax.random.fold_in(key, p))(KEYS) for p in (0, 2)]
    normals = jax.vmap(lambda key: jax.random.normal(key, (2,)))(purposes[0])
    t = np.asarray(jax.nn.sigmoid(-0.4 + normals), np.float64).max(1)[:, None]
    eps = jax.vmap(lambda key: jax.random.normal(key, (3,)))(purposes[1])
    x0, eps = np.asarray(IMAGES, np.float64), np.asarray(eps, np.float64)
    return (1 - t) * x0 + t * eps, eps - x0


def test_without_an_interval_mean_flow_is_flow_matching():
    apply = lambda p, x, t, inputs, keys=None: p * x + expand(inputs["interval"], x)  # noqa: E731
    loss = mean_flow(Net(apply, FLOW, predictions.flow), same=1.0, power=0.0)
    value, metrics = loss(jnp.float32(0.3), None, BATCH, KEYS, 0)
    x, velocity = rows_of_flow_matching()
    error = 0.3 * x - velocity
    np.testing.assert_allclose(metrics["mse_flow"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(value, (error**2).sum(1).mean(), rtol=1e-5)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_weight_of_a_row_falls_with_its_error_and_is_held(power):
    apply = lambda p, x, t, inputs, keys=None: p * x  # noqa: E731
    loss = mean_flow(Net(apply, FLOW, predictions.flow), same=1.0, power=power, floor=0.5)
    evaluate = jax.value_and_grad(lambda p: loss(p, None, BATCH, KEYS, 0)[0])
    value, slope = evaluate(jnp.float32(0.3))
    x, velocity = rows_of_flow_matching()
    error = 0.3 * x - velocity
    squared = (error**2).sum(1)
    weight = 1 / (squared + 0.5) ** power
    np.testing.assert_allclose(value, (weight * squared).mean(), rtol=1e-5)
    np.testing.assert_allclose(slope, (weight * 2 * (error * x).sum(1)).mean(), rtol=1e-4)


def test_guidance_is_trained_into_the_mean_flow_of_labelled_samples_only():
    def apply(p, x, t, inputs, keys=None):
        return p * jnp.ones_like(x) + expand(inputs["label"].astype(x.dtype), x)

    def evaluate(p, dropout, **options):
        loss = mean_flow(
            Net(apply, FLOW, predictions.flow, NULL),
            same=1.0,
            power=0.0,
            omega=0.5,
            kappa=0.25,
            label_dropout=dropout,
            **options,
        )
        return loss(jnp.float32(p), None, BATCH, KEYS, 0)[1]["mse_flow"]

    eps_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(KEYS)
    eps = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (3,)))(eps_keys))
    velocity, label = eps - np.asarray(IMAGES), np.asarray(BATCH["label"])[:, None]
    wanted = 0.5 * velocity + 0.25 * 3 + 0.25 * label
    np.testing.assert_allclose(evaluate(0.0, 1e-9), ((label - wanted) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(evaluate(0.0, 1.0), ((3 - velocity) ** 2).mean(), rtol=1e-4)
    middle = dict(mean=-50.0, std=0.0, guided_times=(0.1, 1.0))  # every t is next to 0
    unguided = ((label - velocity) ** 2).mean()
    np.testing.assert_allclose(evaluate(0.0, 1e-9, **middle), unguided, rtol=1e-4)


def test_the_exact_jump_is_consistent_at_every_length():
    loss = shortcut(Net(jump, FLOW, predictions.flow), limit=1e9)
    params = jnp.float32(1.0)
    _, metrics = loss(params, {"target": params}, BATCH, KEYS, 0)
    assert metrics["loss_shortcut"] < 1e-8
    half = {"target": jnp.float32(0.5)}
    assert loss(params, half, BATCH, KEYS, 0)[1]["loss_shortcut"] > 1e-3


def test_most_of_a_shortcut_batch_is_flow_matching_at_the_shortest_step():
    seen = {}

    def apply(p, x, model_time, inputs, keys=None):
        if len(x) == 256:
            seen.update(t=np.asarray(model_time) / 1000, d=np.asarray(inputs["interval"]), x=x)
        return 0 * x

    loss = shortcut(Net(apply, FLOW, predictions.flow), finest=16)
    value, metrics = loss(None, {"target": None}, BATCH, KEYS, 0)
    rows, rest = np.arange(256) % 8 == 0, np.arange(256) % 8 != 0
    assert (seen["d"][rest] == 1 / 16).all()
    assert set(seen["d"][rows]) == {1, 0.5, 0.25, 0.125}
    steps = seen["t"][rows] / seen["d"][rows]
    np.testing.assert_allclose(steps, steps.round(), atol=1e-5)
    assert steps.min() >= 1 and seen["t"].max() <= 1
    assert metrics["loss_shortcut"] == 0 and value > 0.5  # |eps - x0|^2 in the other rows


def test_labels_stay_in_the_rows_of_self_consistency():
    seen = []

    def apply(p, x, model_time, inputs, keys=None):
        seen.append(np.asarray(inputs["label"]))
        return 0 * x

    loss = shortcut(Net(apply, FLOW, predictions.flow, NULL), label_dropout=1.0)
    loss(None, {"target": None}, BATCH, KEYS, 0)
    first, second, all_rows = seen
    np.testing.assert_array_equal(first, np.arange(0, 256, 8) % 3)
    np.testing.assert_array_equal(all_rows[::8], first)
    assert (np.delete(all_rows, np.arange(0, 256, 8)) == 3).all()


def test_guidance_is_trained_into_the_first_doubling_of_a_shortcut():
    """A field that is the label: guided where two of the shortest steps are one, else as it is."""

    def apply(p, x, model_time, inputs, keys=None):
        return expand(inputs["label"].astype(x.dtype), x) + 0 * x

    def evaluate(finest, label):
        batch = {"image": IMAGES, "label": jnp.full(256, label, jnp.int32)}
        options = dict(finest=finest, every=1, limit=1e9, label_dropout=0.5)
        loss = shortcut(Net(apply, FLOW, predictions.flow, NULL), guidance_scale=1.5, **options)
        return float(loss(None, {"target": None}, batch, KEYS, 0)[0])

    # of finest 2 every row is the first doubling: null 3, label 1 -> 3 + 1.5 (1 - 3) = 0
    np.testing.assert_allclose(evaluate(2, 1), 1.0, rtol=1e-6)
    level_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(KEYS)
    first = np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, 3))(level_keys)) == 2
    np.testing.assert_allclose(evaluate(8, 1), first.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: mean_flow(Net(None, schedules.cosine(), predictions.v)),
            "'mean_flow' needs schedule 'rectified_flow' with shift 1 .*got schedule 'cosine'",
        ),
        (
            lambda: shortcut(Net(None, schedules.rectified_flow(3.0), predictions.flow)),
            "config.loss.name='shortcut' needs schedule 'rectified_flow' with shift 1",
        ),
        (lambda: shortcut(Net(None, FLOW, predictions.v)), "prediction 'flow',"),
        (lambda: shortcut(Net(None, FLOW, predictions.x0)), "prediction 'flow',"),
        (lambda: mean_flow(Net(None, FLOW, predictions.v)), "prediction 'flow' or 'x0',"),
        (lambda: shortcut(PLAIN, finest=100), "config.loss.finest must be a power of two.*got 100"),
        (
            lambda: shortcut(Net(None, FLOW, predictions.flow, NULL), guidance_scale=1.5),
            "guidance_scale=1.5 needs a class-conditional .* and config.loss.label_dropout > 0",
        ),
        (
            lambda: mean_flow(PLAIN, guided_times=(0.5, 0.5)),
            r"guided_times must be \(low, high\) with 0 <= low < high <= 1, got \(0.5, 0.5\)",
        ),
        (lambda: mean_flow(PLAIN, same=2), r"config.loss.same must be in \[0, 1\], got 2"),
        (
            lambda: mean_flow(PLAIN, omega=2.0, label_dropout=0.1),
            "config.loss.omega=2.0 and config.loss.kappa=0.0 need a class-conditional network",
        ),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
