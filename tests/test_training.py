"""The pure parts of training: moving averages, the optimizer, the step; jit against pmap."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits, distill_digits
from ddim_jax import codecs, experiment, losses, parallel, predictions, schedules
from ddim_jax.checkpoints import parts
from ddim_jax.checkpoints.parts import Pipeline
from ddim_jax.data.augmentation import Augmentation
from ddim_jax.dropping import AUGMENT
from ddim_jax.networks import UNet
from ddim_jax.training import fields, loop, method, stages
from ddim_jax.training import state as states
from ddim_jax.training.optimizer import make_optimizer
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import make_step
from tests.latent_networks import random
from tests.tiny import tiny


def average(ema, values):
    current = jnp.float32(values[0] * 0)
    for k, value in enumerate(values, 1):
        current = ema(current, jnp.float32(value), jnp.int32(k))
    return float(current)


def test_power_ema_weighs_step_k_by_k_to_the_gamma():
    values = np.random.default_rng(0).normal(size=40)
    gamma = states.power_gamma(0.1)
    k = np.arange(1, 41)
    # b_k = (1 - 1/k)^(gamma + 1) gives weights k^(gamma+1) - (k-1)^(gamma+1), i.e. ~ k^gamma
    weights = k ** (gamma + 1) - (k - 1) ** (gamma + 1)
    expected = (weights * values).sum() / weights.sum()
    np.testing.assert_allclose(average(states.power_ema(0.1), values), expected, rtol=1e-5)


@pytest.mark.parametrize("width, gamma", [(0.05, 16.9722), (0.10, 6.9372), (0.15, 3.5579)])
def test_power_exponents(width, gamma):
    """Karras et al. 2024: sigma_rel = sqrt((g + 1) / ((g + 2)^2 (g + 3)))."""
    found = states.power_gamma(width)
    assert abs(found - gamma) < 1e-3
    np.testing.assert_allclose(
        np.sqrt((found + 1) / ((found + 2) ** 2 * (found + 3))), width, rtol=1e-9
    )


def test_constant_ema_and_its_warmup():
    assert average(states.constant_ema(0.5, warmup=False), [1, 1, 1]) == pytest.approx(7 / 8)
    first, second = 2 / 11, 3 / 12  # min(decay, (1 + k) / (10 + k))
    expected = 1 - first * second
    assert average(states.constant_ema(0.9999), [1, 1]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: states.constant_ema(1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: states.power_ema(0.5), r"relative_std must be in \(0, 0.28\), got 0.5"),
        (
            lambda: make_optimizer("sgd"),
            "optimizer must be one of adam, adamw, radam, muon, got 'sgd'",
        ),
        (lambda: make_optimizer(weight_decay=0.1), "weight_decay=0.1 needs optimizer 'adamw' or"),
        (
            lambda: make_optimizer(warmup_steps=9, decay_steps=5),
            "warmup_steps must be below decay_steps, which are 5 .* got 9; set it to 0",
        ),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_optimizer_warms_up_decays_and_clips():
    gradient = {"w": jnp.array([300.0, 400.0])}
    optimizer = make_optimizer(learning_rate=1.0, warmup_steps=4, decay_steps=8)
    opt_state = optimizer.init(gradient)
    sizes = []
    for _ in range(9):
        update, opt_state = optimizer.update(gradient, opt_state, gradient)
        sizes.append(float(jnp.abs(update["w"]).max()))
    np.testing.assert_allclose(sizes[:5], [0, 0.25, 0.5, 0.75, 1], atol=1e-4)
    assert sizes[6] == pytest.approx(0.5, abs=1e-4) and sizes[8] == pytest.approx(0, abs=1e-6)
    optimizer = make_optimizer()
    _, opt_state = optimizer.update(gradient, optimizer.init(gradient), gradient)
    moment = optax.tree.get(opt_state, "mu")["w"]  # of a gradient of length 1
    np.testing.assert_allclose(moment, [0.1 * 0.6, 0.1 * 0.8], rtol=1e-5)


def test_muon_makes_the_step_of_each_kernel_nearly_orthogonal():
    shapes = dict(blocks=dict(kernel=(3, 8, 32), bias=(3, 32)), conv=dict(kernel=(3, 3, 2, 6)))
    shapes |= dict(token=dict(embedding=(40, 8)))
    draw = np.random.default_rng(0).normal
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    gradient = jax.tree.map(lambda s: draw(size=s).astype(np.float32), shapes, is_leaf=is_shape)
    plain, muon = (make_optimizer(name, 0.01, clip_norm=0.0) for name in ("adamw", "muon"))
    update, state = jax.jit(muon.update)(gradient, muon.init(gradient), gradient)
    state = jax.jit(muon.update)(gradient, state, gradient)[1]
    other = plain.update(gradient, plain.init(gradient), gradient)[0]
    for matrix, was in [
        *zip(update["blocks"]["kernel"], gradient["blocks"]["kernel"], strict=True),
        (update["conv"]["kernel"].reshape(18, 6), gradient["conv"]["kernel"].reshape(18, 6)),
    ]:
        u, _, vt = np.linalg.svd(was, full_matrices=False)
        sizes = np.diag(u.T @ np.asarray(matrix) @ vt.T) / (-0.01 * 0.2 * max(matrix.shape) ** 0.5)
        np.testing.assert_allclose(sizes, 1, atol=0.35)  # of five rounds of the iteration
        assert np.sqrt(np.square(matrix).mean()) == pytest.approx(0.01 * 0.2, rel=0.15)
    for name, part in ("blocks", "bias"), ("token", "embedding"):
        assert np.all(np.sign(update[name][part]) == np.sign(other[name][part]))
        assert np.ptp(np.abs(update[name][part])) < 1e-5  # Adam's first step: all of one size
    assert any(leaf.shape == (3, 8, 32) for leaf in jax.tree.leaves(state))  # the momentum


def apply(params, x, model_time, inputs, dropout_keys):
    hidden = jnp.tanh(x.reshape(len(x), -1) @ params["a"] + model_time[:, None] / 1000)
    return (hidden @ params["b"]).reshape(x.shape)


def encoder(codec):
    """As `make_step` takes it."""
    return lambda params, rows: codec.encode(params, *rows)


PIXELS = encoder(codecs.pixels((4, 4, 1)))


def make(axis=None, gather=None, accumulate=1, encode=PIXELS):
    loss = losses.diffusion(losses.Net(apply, schedules.cosine(), predictions.v))
    optimizer, ema = make_optimizer(learning_rate=1e-2), states.constant_ema(0.9)
    return make_step(loss, optimizer, ema, axis, gather, accumulate, encode)


def fresh():
    a, b = (jax.random.normal(key, (16, 16)) * 0.1 for key in jax.random.split(jax.random.key(1)))
    params = {"a": a, "b": b}
    opt_state = make_optimizer(learning_rate=1e-2).init(params)
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, ema, opt_state, jax.random.key(5))


def batch(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    return {"image": images, "label": np.zeros(8, np.int32)}


MODES = {
    "plain": None,
    "jit": make,
    "fsdp": make,
    "pmap": make,
    "accumulated": lambda axis, gather=None: make(axis, gather, accumulate=2),
}


def test_however_the_devices_are_used_training_is_alike(monkeypatch):
    """One device, two, parameters split over them, pmap, and a batch taken in two parts."""
    assert jax.device_count() >= 2
    monkeypatch.setattr(parallel, "SPLIT_FROM", 16)
    results, mesh = {}, parallel.make_mesh()
    for name, make_mode in MODES.items():
        state, mode = fresh(), name if name in parallel.MODES else "jit"
        if name == "plain":
            step = jax.jit(make())
        else:
            step = parallel.parallelise_step(make_mode, mode, mesh)
        if name not in ("plain", "pmap"):
            state = jax.device_put(state, parallel.layout(state, mesh, mode))
        curve = []
        for k in range(5):
            rows = batch(k) if name in ("plain", "pmap") else parallel.shard(batch(k), mesh)
            state, metrics = step(state, rows)
            curve.append(float(metrics["loss"]))
            if name == "fsdp":
                for leaf in (state.params["a"], state.ema["a"], state.opt_state[1][0].mu["a"]):
                    assert leaf.addressable_shards[0].data.shape == (16, 8)
        results[name] = curve, jax.device_get((state.params, state.ema)), int(state.step)
    for name in set(MODES) - {"plain"}:
        np.testing.assert_allclose(results[name][0], results["plain"][0], rtol=1e-5)
        # Adam divides by small second moments, so that rounding shows in the parameters
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
            results[name][1],
            results["plain"][1],
        )
        assert results[name][2] == 5


@pytest.mark.slow
def test_dropout_is_alike_however_the_devices_are_used(monkeypatch):
    """One device, two, parameters split over them, pmap, and a batch taken in two parts."""
    monkeypatch.setattr(parallel, "SPLIT_FROM", 16)
    options = dict(channels=4, channel_mults=(1,), num_blocks=0, num_classes=3, dropout=0.3)
    net = UNet(out_channels=1, **options)
    rows = batch() | {"label": np.arange(8, dtype=np.int32) % 3}
    example = rows["image"].astype(np.float32), np.ones(8), {"label": rows["label"]}
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *example))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape) / 3), shapes)

    def evaluate(mode, devices=None, accumulate=1):
        def make_mode(axis=None, gather=None):
            return make_step(loss, still, average, axis, gather, accumulate, PIXELS)

        apply = lambda p, *rest: net.apply({"params": p}, *rest)  # noqa: E731
        told = losses.Net(apply, schedules.cosine(), predictions.v, {"label": 3})
        loss = losses.diffusion(told, label_dropout=0.3)
        still, average = optax.sgd(0.0), states.constant_ema(0.9)
        new, ema = (jax.tree.map(jnp.asarray, params) for _ in range(2))
        state = TrainState(jnp.int32(0), new, ema, still.init(params), jax.random.key(5))
        mesh, placed = parallel.make_mesh(devices), rows
        if mode != "pmap":
            state = jax.device_put(state, parallel.layout(state, mesh, mode))
            placed = parallel.shard(rows, mesh)
        metrics = parallel.parallelise_step(make_mode, mode, mesh)(state, placed)[1]
        return [float(metrics["loss"]), float(metrics["grad_norm"])]

    plain = evaluate("jit", jax.devices()[:1])
    for mode in parallel.MODES:
        np.testing.assert_allclose(evaluate(mode), plain, rtol=1e-5, err_msg=mode)
    np.testing.assert_allclose(evaluate("jit", accumulate=2), plain, rtol=1e-5)


AUTOENCODER = dict(name="autoencoder_kl", widths=(8, 8), num_blocks=1, groups=4, attention=False)


def test_pictures_are_encoded_on_the_devices_that_have_them(monkeypatch):
    """One device, two, parameters split over them, pmap; no device gets another's pictures."""
    monkeypatch.setattr(codecs, "TOGETHER", 16)
    monkeypatch.setattr(parallel, "SPLIT_FROM", 16)
    net = experiment.build_autoencoder(AUTOENCODER)
    encode = encoder(codecs.latents(net, (4, 4, 3)))
    params = jax.tree.map(
        lambda leaf: random(str(leaf.shape), *leaf.shape), parts.network_shapes(net, (4, 4, 3))
    )
    rows, found = {"image": np.repeat(batch()["image"], 3, axis=-1)}, {}
    for name in ("one", *parallel.MODES):
        mesh = parallel.make_mesh(jax.devices()[: 1 if name == "one" else 2])
        mode = "jit" if name == "one" else name

        def make_mode(axis, gather=None, mesh=mesh):
            return make(axis, gather, encode=encode if axis else parallel.by_rows(encode, mesh))

        step, state = parallel.parallelise_step(make_mode, mode, mesh), fresh()
        fixed, placed = parallel.place(params, mesh, mode), rows
        if mode != "pmap":
            state = jax.device_put(state, parallel.layout(state, mesh, mode))
            placed = parallel.shard(rows, mesh)
        if name == "jit":
            program = step.lower(state, placed, fixed).compile().as_text()
            assert "while(" in program and not re.search(r"= u8\S* all-gather", program)
        if name == "fsdp":
            assert any(leaf.sharding.spec for leaf in jax.tree.leaves(fixed))
        metrics = step(state, placed, fixed)[1]
        found[name] = [float(metrics["loss"]), float(metrics["grad_norm"])]
    for name in parallel.MODES:
        np.testing.assert_allclose(found[name], found["one"], rtol=1e-5, err_msg=name)


def test_the_autoencoder_is_an_argument_of_the_step():
    config = tiny(digits.get_config(), levels=1)
    config.data.update(image_shape=(8, 8, 3), channels=3)
    config.codec, config.model.out_channels = dict(AUTOENCODER), 4
    params = jax.tree.map(
        lambda leaf: random(str(leaf.shape), *leaf.shape), parts.shapes_of(config).codec_params
    )
    mesh, whole = parallel.make_mesh(), Pipeline(config, None, params, (), ())
    built = method.build(config, None, mesh, whole)
    state = loop.abstract_state(config, built, None, mesh)
    rows = parallel.shard(
        {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.zeros(4, np.int32)}, mesh
    )
    text = built.step.lower(state, rows, parallel.place(params, mesh, "jit")).as_text()
    constants = re.findall(r'dense<"0x([0-9A-F]*)"', text)
    assert all(len(constant) < 1000 for constant in constants)
    assert "manual_computation" in text  # on each device for its own rows


def test_averages_are_of_the_parameters_that_a_step_made():
    """The moving average and the target: of the student alone, after the update."""
    names = ("student", "critic")

    def compute(params, frozen, batch, keys, step):
        value = sum((params[name]["w"] - 1) ** 2 for name in names)
        return value, {"loss": value}

    parts = losses.Parts(names, lambda *_: None)
    loss = losses.Loss(compute, target_decay=lambda k: 0.3 * k, parts=parts)
    params = {"student": {"w": jnp.float32(5.0)}, "critic": {"w": jnp.float32(-2.0)}}
    own = [{"w": jnp.float32(value)} for value in (7.0, 11.0)]
    state = fresh().replace(params=params, ema=own[0], frozen={"target": own[1], "other": 2.0})
    optimizer = optax.sgd(0.25)
    state = state.replace(opt_state=optimizer.init(params))
    after = make_step(loss, optimizer, states.constant_ema(0.9))(state, batch())[0]
    assert (after.params["student"]["w"], after.params["critic"]["w"]) == (3.0, -0.5)
    b = 2 / 11  # min(0.9, (1 + k) / (10 + k)) of the first update
    np.testing.assert_allclose(after.ema["w"], b * 7 + (1 - b) * 3, rtol=1e-6)
    np.testing.assert_allclose(after.frozen["target"]["w"], 0.3 * 11 + 0.7 * 3, rtol=1e-6)
    assert after.frozen["other"] == 2


@pytest.mark.parametrize("sample", [True, False])
def test_a_loss_is_given_what_was_encoded_and_then_changed(sample):
    """And is told how; keys are of each row, other ones to encode, to change and to train."""
    seen, given, told = {}, batch(), np.arange(16.0).reshape(8, 2)

    def encode(codec_params, rows):
        seen["image"], seen["encode"] = rows
        return codec_params + rows[0].astype(np.float32)

    def change(keys, x):
        seen["change"] = keys
        return 2 * x, told

    def compute(params, frozen, rows, keys, step):
        seen.update(rows=rows, train=keys)
        value = jnp.sum(params["a"] ** 2)
        return value, {"loss": value}

    still = optax.sgd(0.0)
    step = make_step(
        losses.Loss(compute), still, states.constant_ema(), encode=encode, sample=sample,
        augmentation=Augmentation(2, change),
    )  # fmt: skip
    state = fresh()
    step(state.replace(opt_state=still.init(state.params)), given, 3.0)
    np.testing.assert_array_equal(seen["image"], given["image"])
    np.testing.assert_array_equal(seen["rows"]["image"], 2 * (3.0 + given["image"]))
    np.testing.assert_array_equal(seen["rows"][AUGMENT], told)
    np.testing.assert_array_equal(seen["rows"]["label"], given["label"])
    drawn = [seen[name] for name in ("encode", "change", "train") if seen[name] is not None]
    keys = np.concatenate([jax.random.key_data(of) for of in drawn])
    assert len(np.unique(keys, axis=0)) == len(keys) == 8 * (2 + sample)
    assert (seen["encode"] is not None) == sample


def test_rows_name_their_keys():
    """A batch in another order, with its places named, is the same batch."""
    order, whole = np.array([3, 0, 7, 1, 2, 6, 5, 4]), batch()
    shuffled = {name: value[order] for name, value in whole.items()} | {"row": order}
    for one, other in ((whole, shuffled), (whole, {k: v[order] for k, v in whole.items()})):
        losses_ = [float(make()(fresh(), b)[1]["loss"]) for b in (one, other)]
        same = abs(losses_[0] - losses_[1]) < 1e-6 * losses_[0]
        assert same == ("row" in other)


def test_training_lowers_the_loss():
    step, state = jax.jit(make()), fresh()
    first = [float(step(state.replace(step=jnp.int32(k)), batch())[1]["loss"]) for k in range(20)]
    for _ in range(200):
        state, metrics = step(state, batch())
    last = [float(step(state.replace(step=jnp.int32(k)), batch())[1]["loss"]) for k in range(20)]
    assert np.mean(last) < 0.8 * np.mean(first)


def test_a_step_that_is_not_finite_changes_nothing():
    state = fresh()
    bad = batch() | {"image": np.full((8, 4, 4, 1), np.nan, np.float32)}
    after, metrics = jax.jit(make())(state, bad)
    assert not metrics["finite"] and int(after.step) == 0
    for new, old in zip(
        jax.tree.leaves((after.params, after.ema, after.opt_state)),
        jax.tree.leaves((state.params, state.ema, state.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(new, old)


def test_uint8_batches_are_scaled_to_unit_range():
    state, rows = fresh(), batch()
    scaled = rows | {"image": (rows["image"].astype(np.float32) / 127.5 - 1)}
    losses_ = [float(jax.jit(make())(state, rows)[1]["loss"]) for rows in (rows, scaled)]
    assert losses_[0] == pytest.approx(losses_[1], rel=1e-5)


# --- numbers at the edge --------------------------------------------------------------------------


def test_parameters_that_are_not_finite_after_the_update_are_not_kept():
    """The loss and its gradient are finite; the learning rate is not."""
    loss = losses.diffusion(losses.Net(apply, schedules.cosine(), predictions.v))
    state = fresh()
    for rate in (np.inf, np.nan):
        optimizer = optax.sgd(rate)
        step = make_step(loss, optimizer, states.constant_ema(), encode=PIXELS)
        bad = state.replace(opt_state=optimizer.init(state.params))
        after, metrics = jax.jit(step)(bad, batch())
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
        assert not metrics["finite"] and int(after.step) == 0
        jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
        jax.tree.map(np.testing.assert_array_equal, after.ema, state.ema)


WRONG = [float("nan"), float("inf"), -float("inf"), "1", None, True, -1]
POSITIVE_OR_ZERO = ("clip_norm", "weight_decay", "warmup_steps", "b1", "b2")


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("option", ["learning_rate", *POSITIVE_OR_ZERO])
def test_numbers_of_the_optimizer(option, value):
    name = "adamw" if option == "weight_decay" else "adam"
    with pytest.raises(ValueError, match=f"config.optimizer.{option} must be .*, got "):
        make_optimizer(name, **{option: value})


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("make", [states.constant_ema, states.power_ema])
def test_numbers_of_the_moving_average(make, value):
    with pytest.raises(ValueError, match="config.ema.* must be .*, got "):
        make(value)


def section(**changes):
    config = digits.get_config()
    with config.unlocked():
        config.optimizer.update({"warmup_steps": 0} | changes)
        config.train.steps = 10
    return config


def test_the_decay_is_as_long_as_the_run():
    """By default; a run that would go on at a learning rate of 0 is refused."""
    rate = method.build_learning_rate(section(decay="linear", learning_rate=1.0))
    np.testing.assert_allclose([rate(k) for k in (0, 5, 10)], [1, 0.5, 0])
    for steps in (10, 20):
        rate = method.build_learning_rate(section(decay_steps=steps, learning_rate=1.0))
        np.testing.assert_allclose(rate(steps // 2), 0.5)  # cosine, as ever where it is not named
    assert method.build_learning_rate(section())(9) == 1e-3
    assert method.build_learning_rate(section(decay="linear", decay_steps=0))(9) == 1e-3
    with pytest.raises(
        ValueError, match="train.steps is 10, but the learning rate is 0 from step 9"
    ):
        method.build_optimizer(section(decay_steps=9))
    with pytest.raises(
        ValueError, match="decay must be one of constant, cosine, linear, got 'exp'"
    ):
        method.build_optimizer(section(decay="exp"))


def test_a_longer_stage_decays_to_its_own_end():
    """`--config.stages[3].train.steps=5000`, as the docs have it."""
    config = distill_digits.get_config()
    fields.override(config, "stages[3].train.steps", "5000")
    _, stage = stages.split(config, Path("w"))[3]
    rate = method.build_learning_rate(stage)
    assert rate(2500) == pytest.approx(1.5e-4) and rate(5000) == 0 < rate(4999)


@pytest.mark.parametrize("name", ["growing", "doubling"])
def test_a_grid_grows_over_the_whole_run(name):
    points = {"name": name, "start": 2, "end": 16}
    pairs = method._pairs({"name": "grid", "points": points}, 1000)
    own = method._pairs({"name": "grid", "points": points | {"total_steps": 500}}, 1000)
    assert float(pairs.points(400)) < float(own.points(400)) == float(pairs.points(800))
