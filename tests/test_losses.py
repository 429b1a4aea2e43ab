"""The denoising loss: targets and weightings against the papers' formulas, times, label dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import losses, sampling, schedules
from ddim_jax.losses.diffusion import diffusion
from ddim_jax.losses.loss import Net, conditions, conditions_with_scale
from ddim_jax.losses.time_samplers import log_normal, logit_normal, nodes, u_shaped, uniform
from ddim_jax.losses.weightings import WEIGHTINGS
from ddim_jax.predictions import PREDICTIONS
from tests.errors import rejects

pytestmark = pytest.mark.usefixtures("strict_dtypes")

KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(6))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, 4, 4, 1)), jnp.float32)
T = np.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])


def apply(params, x, model_time, inputs, dropout_keys):
    return params * x + 0.1


def fixed_times(keys):
    return jnp.asarray(T, jnp.float32)


def evaluate(prediction, schedule, weighting=None, distance=None):
    """The loss, and (x0_hat, x0, eps_hat, eps, alpha, sigma) worked out by hand in float64."""
    loss = diffusion(
        Net(apply, schedule, PREDICTIONS[prediction]()),
        times=fixed_times,
        weighting=weighting,
        distance=distance,
    )
    value, metrics = loss(jnp.float32(0.3), None, {"image": IMAGES}, KEYS, 0)
    level = schedule.level(T)
    a, s = (f.reshape(-1, 1, 1, 1) for f in (level.alpha, level.sigma))
    eps_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(KEYS)
    eps = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(eps_keys), np.float64)
    x0 = np.asarray(IMAGES, np.float64)
    x = a * x0 + s * eps
    output = lambda x: 0.3 * x + 0.1  # noqa: E731
    if prediction == "eps":
        x0_hat = (x - s * output(x)) / a
    elif prediction == "x0":
        x0_hat = output(x)
    elif prediction == "v":
        x0_hat = a * x - s * output(x)
    elif prediction == "flow":
        x0_hat = (x - s * output(x)) / (a + s)
    else:  # EDM's D(y, sig) with sigma_data 1/2
        y, sig, sd = x / a, s / a, 0.5
        root = np.sqrt(sig**2 + sd**2)
        x0_hat = sd**2 / root**2 * y + sig * sd / root * output(y / root)
    return float(value), metrics, (x0_hat - x0) ** 2, (a / s) ** 2


VP, FLOW = schedules.cosine(), schedules.rectified_flow()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("name", ["truncated_snr", "snr_plus_one", "flow", "min_snr", "edm"])
def test_a_weighting_means_the_same_for_every_prediction(prediction, name):
    value, metrics, error, snr = evaluate(prediction, VP, WEIGHTINGS[name]())
    weight = {
        "truncated_snr": np.maximum(snr, 1),
        "snr_plus_one": snr + 1,
        "flow": np.minimum(np.sqrt(snr) + 1, 20) ** 2,
        "min_snr": np.minimum(snr, 5),
        "edm": (1 / snr + 0.25) / (0.25 / snr),  # (sig^2 + sd^2) / (sig sd)^2, sig^2 = 1 / SNR
    }[name]
    np.testing.assert_allclose(value, (weight * error).mean(), rtol=2e-4)
    np.testing.assert_allclose(metrics["mse_x0"], error.mean(), rtol=2e-4)


@pytest.mark.parametrize(
    "prediction, weight",
    [
        ("eps", lambda snr: snr),
        ("x0", lambda snr: 1),
        ("v", lambda snr: snr + 1),
        ("edm", lambda snr: (1 / snr + 0.25) / (0.25 / snr)),
    ],
)
def test_simple_is_the_plain_error_of_the_output(prediction, weight):
    value, _, error, snr = evaluate(prediction, VP)
    np.testing.assert_allclose(value, (weight(snr) * error).mean(), rtol=2e-4)


def test_simple_flow_on_the_straight_path_weighs_x0_by_one_over_t_squared():
    value, _, error, _ = evaluate("flow", schedules.rectified_flow())
    np.testing.assert_allclose(value, (error / T.reshape(-1, 1, 1, 1) ** 2).mean(), rtol=2e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "edm"])
def test_a_perfect_network_has_no_loss(prediction):
    """Point-mass data: the best prediction is known, so every target must be met."""
    schedule = VP

    def perfect(params, x, model_time, inputs, dropout_keys):
        level = schedule.level(fixed_times(None))
        a, s = (f.reshape(-1, 1, 1, 1) for f in (level.alpha, level.sigma))
        n = jnp.sqrt(s**2 + a**2 / 4)
        x = x * n if prediction == "edm" else x
        eps = (x - a * 0.5) / s
        return {
            "eps": eps,
            "x0": 0.5 * jnp.ones_like(x),
            "v": a * eps - s * 0.5,
            "flow": eps - 0.5,
            "edm": (0.5 - 0.25 * a / n**2 * x) * n / (0.5 * s),
        }[prediction]

    loss = diffusion(Net(perfect, schedule, PREDICTIONS[prediction]()), times=fixed_times)
    batch = {"image": jnp.full((6, 4, 4, 1), 0.5)}
    assert loss(None, None, batch, KEYS, 0)[0] < 1e-8


def test_each_sample_has_its_own_randomness_whatever_its_place():
    loss = diffusion(Net(apply, VP, PREDICTIONS["v"]()))
    one = lambda rows: loss(jnp.float32(0.3), None, {"image": IMAGES[rows]}, KEYS[rows], 0)[0]  # noqa: E731
    rows = jnp.array([4, 0, 5, 2, 1, 3])
    np.testing.assert_allclose(one(rows), one(jnp.arange(6)), rtol=1e-6)
    np.testing.assert_allclose(
        np.mean([one(rows[i : i + 1]) for i in range(6)]), one(rows), rtol=1e-6
    )


MANY = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(20000))


def test_uniform_times_of_a_discrete_schedule_hit_every_index():
    schedule = schedules.ddpm_linear(num_steps=10)
    index = np.asarray(uniform(schedule)(MANY)) * 10 - 1
    np.testing.assert_allclose(index, index.round(), atol=1e-5)
    counts = np.bincount(index.round().astype(int), minlength=10)
    assert len(counts) == 10 and abs(counts - 2000).max() < 5 * np.sqrt(1800)


def test_uniform_times_may_leave_out_the_ends():
    schedule = schedules.ddpm_linear(100)
    index = np.asarray(uniform(schedule, 0.02, 0.98)(MANY)) * 100 - 1
    assert np.isclose(index.min(), 2, atol=1e-3) and np.isclose(index.max(), 97, atol=1e-3)
    t = np.asarray(uniform(VP, 0.25, 0.5)(MANY))
    assert 0.25 <= t.min() < 0.26 and 0.49 < t.max() < 0.501  # VP's times end at 0.001
    with rejects(ValueError, "config.loss.times needs low < high, got 0.5 and 0.2"):
        uniform(VP, 0.5, 0.2)


def test_uniform_times_of_a_continuous_schedule_span_it():
    t = np.asarray(uniform(VP)(MANY))
    assert t.min() >= VP.t_min and t.max() <= 1
    assert abs(t.mean() - (1 + VP.t_min) / 2) < 5 * 0.29 / np.sqrt(len(t))


def test_log_normal_times_have_edms_noise_levels():
    schedule = schedules.edm()
    log_sigma = np.log(np.asarray(log_normal(schedule)(MANY)))
    assert abs(log_sigma.mean() + 1.2) < 0.05 and abs(log_sigma.std() - 1.2) < 0.05


def test_logit_normal_times():
    t = np.asarray(logit_normal(schedules.rectified_flow(), 0.5, 0.8)(MANY))
    logit = np.log(t / (1 - t))
    assert abs(logit.mean() - 0.5) < 0.03 and abs(logit.std() - 0.8) < 0.03
    with pytest.raises(
        ValueError, match="logit_normal' needs a schedule over .0, 1.*use log_normal"
    ):
        logit_normal(schedules.edm())


def test_u_shaped_times_have_their_density():
    t = np.asarray(u_shaped(schedules.rectified_flow(), 4.0)(MANY))
    inside, edges = np.histogram(t, 10, (0, 1))
    rise = lambda t: np.exp(4 * t) - np.exp(4 * (1 - t))  # noqa: E731
    expected = np.diff(rise(edges)) / (rise(1) - rise(0)) * len(t)
    assert (abs(inside - expected) < 5 * np.sqrt(expected)).all()
    with pytest.raises(ValueError, match="config.loss.times.rate must be positive, got 0"):
        u_shaped(schedules.rectified_flow(), 0)


def test_nodes_are_where_a_sampler_evaluates():
    assert set(np.asarray(nodes(schedules.rectified_flow())(MANY))) == {1.0}
    t, counts = np.unique(np.asarray(nodes(schedules.cosine(), 4)(MANY)), return_counts=True)
    np.testing.assert_allclose(t, [0.25, 0.5, 0.75, 1.0])
    assert abs(counts - 5000).max() < 5 * np.sqrt(5000)


def test_a_distance_takes_the_place_of_the_square():
    absolute = lambda a, b: jnp.mean(jnp.abs(a - b), axis=(1, 2, 3))  # noqa: E731
    value, metrics, squared, _ = evaluate("v", VP, distance=absolute)
    np.testing.assert_allclose(value, np.sqrt(squared).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse_x0"], squared.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="lpips:FILE, without a weighting, got 'l2' and no weigh"):
        evaluate("v", VP, distance="l2")


def test_coupled_pairs_are_noised_with_the_noise_they_were_drawn_from():
    """A network that knows the noise of every pair, and finds the straight line through it."""
    keys = sampling.sample_keys(11, np.arange(6))
    noise = sampling.initial_noise(keys, (4, 4, 1))
    knows = lambda params, x, t, inputs, keys: noise - IMAGES  # noqa: E731
    loss = diffusion(Net(knows, schedules.rectified_flow(), PREDICTIONS["flow"]()))
    batch = {"image": IMAGES, "noise_key": jax.random.key_data(keys)}
    assert loss(None, None, batch, KEYS, 0)[0] < 1e-12
    assert loss(None, None, {"image": IMAGES}, KEYS, 0)[0] > 0.5


def test_conditions_are_the_inputs_of_the_batch_dropped_at_the_given_rate():
    batch = {"image": None, "label": np.arange(len(MANY), dtype=np.int32) % 10}
    label = np.asarray(conditions(batch, MANY, {"label": 10}, 0.1)["label"])
    dropped = label == 10
    assert abs(dropped.mean() - 0.1) < 5 * np.sqrt(0.09 / len(MANY))
    np.testing.assert_array_equal(label[~dropped], batch["label"][~dropped])
    assert conditions(batch, MANY, {}, 0.1) == {}
    with pytest.raises(ValueError, match=r"takes 'tokens', and batches hold \['image', 'label'\]"):
        conditions(batch, MANY, {"tokens": 0}, 0.1)


def test_guidance_scales_are_uniform_and_independent_of_what_is_dropped():
    batch = {"label": jnp.zeros(len(MANY), jnp.int32)}
    inputs = conditions_with_scale(batch, MANY, {"label": 10}, 0.5, (2.0, 6.0))
    scale, dropped = np.asarray(inputs["guidance"]), np.asarray(inputs["label"]) == 10
    assert scale.min() >= 2 and scale.max() <= 6
    for part in (scale[dropped], scale[~dropped]):
        assert abs(part.mean() - 4) < 5 * 4 / np.sqrt(12 * len(part))
    assert "guidance" not in conditions_with_scale(batch, MANY, {"label": 10}, 0.5, None)


CONDITIONED = sorted(set(losses.LOSSES) - {"autoencoder"})  # that one is of images alone


def evaluate_of(name, student, teacher, null, **options):
    """A loss by its name, of the images, with a label in every row."""
    flow = name in ("mean_flow", "shortcut")
    parts = (FLOW, PREDICTIONS["flow"]()) if flow else (VP, PREDICTIONS["v"]())
    options |= {
        "consistency": dict(pairs=losses.PAIRS["shrinking"](every=9), distil=True),
        "continuous_consistency": dict(distil=True),
        "progressive": dict(steps=2),
        "moment_matching": dict(group=3),
    }.get(name, {})
    taught = ("guided", "progressive", "consistency", "continuous_consistency")
    if name in (*taught, "distribution_matching"):
        options["teacher"] = Net(teacher, *parts, null)
    loss = losses.LOSSES[name](Net(student, *parts, null), **options)
    params = jnp.float32(0.3)
    each = params if loss.parts is None else dict.fromkeys(loss.parts.names, params)
    batch = {"image": IMAGES, "label": jnp.arange(6, dtype=jnp.int32)}
    return loss(each, loss.freeze(params, params), batch, KEYS, 0)


@pytest.mark.parametrize("name", CONDITIONED)
def test_students_have_a_dropout_key_for_each_row_and_teachers_none(name):
    seen = []

    def student(params, x, model_time, inputs, dropout_keys):
        seen.append(dropout_keys)
        return params * x

    def teacher(params, x, model_time, inputs, dropout_keys):
        assert dropout_keys is None
        return params * x

    evaluate_of(name, student, teacher, {})
    keys = [jax.random.key_data(keys) for keys in seen if keys is not None]
    assert keys and len(np.unique(np.asarray(keys[0]), axis=0)) == len(IMAGES)
    for other in keys[1:]:
        np.testing.assert_array_equal(other, keys[0])
    assert name in ("shortcut", "flow_map") or len(keys) == len(seen)  # averages have none


@pytest.mark.parametrize("name", CONDITIONED)
def test_labels_are_dropped_at_the_rate_of_the_loss_for_all_networks(name):
    """Of a row for students and teachers alike; a shortcut's first row keeps its own."""
    asked = [(0.0, [0] * 6, {}), (1.0, [1] * 6, {}), (0.5, None, {})]
    if name == "continuous_consistency":  # which asks in another way with a scale
        asked.append((1.0, [1] * 6, {"guidance": (1.0, 2.0)}))
    for rate, rows, options in asked:
        seen = []

        def network(params, x, model_time, inputs, dropout_keys, seen=seen):
            if len(x) == len(IMAGES):
                seen.append(inputs["label"] == 10)
            return params * x

        evaluate_of(name, network, network, {"label": 10}, label_dropout=rate, **options)
        first = np.asarray(seen[0], int).tolist()
        assert all(np.array_equal(other, first) for other in seen[1:])
        if rows is None:
            assert 0 < sum(first) < 6
        else:
            assert first == ([0] + rows[1:] if name == "shortcut" else rows)


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_label_dropout_is_a_probability(rate):
    with pytest.raises(ValueError, match=rf"config.loss.label_dropout must be in .* got {rate}"):
        diffusion(Net(apply, VP, PREDICTIONS["v"]()), label_dropout=rate)


NUMBERS = {
    # of which function: options that must be numbers, and what they must not be beside those
    "log_normal": (lambda **o: log_normal(schedules.cosine(), **o), {"mean": [], "std": [-1]}),
    "u_shaped": (lambda **o: u_shaped(schedules.rectified_flow(), **o), {"rate": [0, -1]}),
    "nodes": (lambda **o: nodes(schedules.cosine(), **o), {"steps": [0, 1.5]}),
    "min_snr": (WEIGHTINGS["min_snr"], {"gamma": [0, -1]}),
    "edm": (WEIGHTINGS["edm"], {"sigma_data": [0]}),
    "grid": (losses.PAIRS["grid"], {"sigma_min": [-1, 90], "sigma_max": [0], "rho": [0]}),
    "shrinking": (
        lambda **o: losses.PAIRS["shrinking"](**{"every": 9} | o),
        {"every": [0, 1.5], "base": [1], "slope": [-1], "rate": [], "mean": [], "std": [-1]},
    ),
    "constant": (losses.POINTS["constant"], {"points": [1, 2.5]}),
    "growing": (
        lambda **o: losses.POINTS["growing"](**{"total_steps": 9} | o),
        {"total_steps": [0, 1.5], "start": [0], "end": [1]},
    ),
    "adaptive": (
        lambda **o: losses.adaptive_decay(lambda step: 2, **o),
        {"start": [0], "initial": [0, 2]},
    ),
    "consistency": (
        lambda **o: losses.LOSSES["consistency"](EDM_NET, **o),
        {"huber": [-1], "target_decay": [-1, 1], "label_dropout": [-1, 2]},
    ),
    "continuous_consistency": (
        lambda **o: losses.LOSSES["continuous_consistency"](FLOW_NET, **o),
        {"sigma_data": [0], "mean": [], "std": [-1], "warmup_steps": [-1, 1.5]}
        | {"tangent_floor": [0]},
    ),
    "shortcut": (
        lambda **o: losses.LOSSES["shortcut"](FLOW_NET, **o),
        {"finest": [0, 3], "every": [0], "limit": [0], "target_decay": [1], "guidance_scale": []},
    ),
    "mean_flow": (
        lambda **o: losses.LOSSES["mean_flow"](FLOW_NET, **o),
        {"mean": [], "std": [-1], "same": [2], "power": [-1], "floor": [0], "omega": []}
        | {"kappa": [1]},
    ),
    "moment_matching": (
        lambda **o: losses.LOSSES["moment_matching"](FLOW_NET, **o),
        {"group": [0, 1.5], "most": [0], "halvings": [-1, 1.5], "bias": [], "power": [-1]}
        | {"sigma_data": [0]},
    ),
    "progressive": (
        lambda **o: losses.LOSSES["progressive"](FLOW_NET, **{"steps": 4} | o),
        {"steps": [0, 1.5]},
    ),
}
FLOW_NET = Net(apply, schedules.rectified_flow(), PREDICTIONS["flow"]())
EDM_NET = Net(apply, schedules.edm(), PREDICTIONS["consistency"]())


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_losses_are_checked_before_any_step(name):
    make, options = NUMBERS[name]
    make(**({"every": 9} if name == "shrinking" else {}))
    for option, bad in options.items():
        for value in [*bad, float("nan"), float("-inf"), "1", True]:
            with pytest.raises(ValueError, match="config.loss"):
                make(**{option: value})
