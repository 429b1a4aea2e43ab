"""Inductive moment matching: its kernel and weights by closed forms, its groups on every device."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from ddim_jax import losses, parallel, predictions, schedules
from ddim_jax.losses import LevelPairs, Net
from ddim_jax.training import method
from ddim_jax.training import state as states
from ddim_jax.training.optimizer import make_optimizer
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import make_step
from tests.errors import rejects
from tests.tiny import tiny

module = importlib.import_module("ddim_jax.losses.moment_matching")
FLOW, COSINE = schedules.rectified_flow(), schedules.cosine()
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(64))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (64, 3)), jnp.float32)
NULL = {"label": 3}


def apply(p, x, model_time, inputs, keys=None):
    """Of everything it is told."""
    told = p * model_time / 1000 + inputs.get("interval", 0.0)
    return jnp.sin(p * x + told[:, None])


NET = Net(apply, COSINE, predictions.v)


def at(monkeypatch, t, r, s, kernel=None):
    """Fixes R of all groups; a kernel of squared distances, without weights."""
    fixed = lambda keys, *_: [jnp.full(len(keys), of) for of in (t, r, s)]  # noqa: E731
    monkeypatch.setattr(module, "_ratios", fixed)
    if kernel is not None:
        monkeypatch.setattr(module, "_laplace", lambda width: kernel)
        monkeypatch.setattr(module, "_weight", lambda ratio, *_: jnp.ones_like(ratio))


def value(p, net=NET, batch=None, keys=KEYS, **options):
    loss = losses.moment_matching(net, sigma_data=1.0, **options)
    return loss(p, None, batch or {"image": IMAGES}, keys, 0)[0]


# --- what is compared -----------------------------------------------------------------------------


def test_equal_times_have_no_loss(monkeypatch):
    at(monkeypatch, 2.0, 2.0, 0.3)
    assert value(0.7) == 0
    at(monkeypatch, 2.0, 1.8, 0.3)
    assert value(0.7) > 1e-6


def test_one_row_and_the_square_are_twice_consistency_training(monkeypatch):
    """The loss, and its gradient."""
    at(monkeypatch, 2.0, 1.5, 0.0, kernel=lambda squared: -squared)
    fixed = lambda keys, step: [jnp.full(len(keys), of) for of in (2.0, 1.5)]  # noqa: E731

    def consistency_net(p, x, model_time, inputs, keys=None):  # jumps to the data
        return apply(p, x, model_time, {"interval": model_time / 1000}, keys)

    consistency = losses.consistency(
        NET._replace(apply=consistency_net),
        pairs=LevelPairs(fixed, 0.0), distance="l2", weight="uniform",
    )  # fmt: skip
    each = jax.value_and_grad(lambda p: consistency(p, None, {"image": IMAGES}, KEYS, 0)[0])(0.7)
    found = jax.value_and_grad(lambda p: value(p, group=1))(0.7)
    np.testing.assert_allclose(found, 2 * 3 * np.array(each), rtol=1e-4)  # of 3 numbers, summed


def test_the_square_of_more_rows_sees_their_means_alone():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    found = module._discrepancy(x, y, lambda squared: -squared)
    means = 2 * ((x.mean(axis=1) - y.mean(axis=1)) ** 2).sum(axis=-1)
    np.testing.assert_allclose(found, means, rtol=1e-4)


def test_the_loss_is_the_module_docstrings(monkeypatch):
    """Of one batch in groups of two: w times the discrepancy by that kernel, on a cosine."""
    seen, drawn = [], module._ratios
    monkeypatch.setattr(module, "_ratios", lambda *of: seen.append((drawn(*of), of)) or seen[0][0])
    z, count, bias, power, sigma_data = np.asarray(IMAGES)[::-1], 3, 3.0, 2.0, 0.5
    net = Net(lambda p, x, *told: jnp.sin(p * x), schedules.cosine(-4.0), predictions.v)
    loss = losses.moment_matching(
        net._replace(frame_noise=lambda noise: jnp.asarray(z)), group=2, log_normal=None,
        halvings=3, bias=bias, power=power, sigma_data=sigma_data,
    )  # fmt: skip
    found = loss(0.7, None, {"image": IMAGES}, KEYS, 0)[0]
    (ratios, (_, _, most, gap)), end = seen[0], np.exp(2.0) / sigma_data  # at a log-SNR of -4
    np.testing.assert_allclose([most, gap], [end, end / 8], rtol=1e-5)
    R_t, R_r, R_s = (np.asarray(ratio, np.float64) for ratio in ratios)
    assert ((R_s < R_r) & (R_r < R_t)).sum() > 5 and (R_s == R_r).sum() > 5
    t, r, s = (np.arctan(sigma_data * ratio)[:, None, None] for ratio in (R_t, R_r, R_s))  # angles
    data, z = (np.asarray(of, np.float64).reshape(-1, 2, count) for of in (IMAGES, z))

    def jump(angle):
        x = np.cos(angle) * data + np.sin(angle) * z
        return np.cos(angle - s) * x - np.sin(angle - s) * np.sin(0.7 * x)

    def k(a, b):
        squared = ((a[:, :, None] - b[:, None]) ** 2).sum(axis=-1)
        distance = np.sqrt(np.maximum(squared, module.NEAREST))
        return np.exp(-distance / (np.abs(np.sin(t - s)) * count)).mean(axis=(1, 2))

    y_t, y_r, tau = jump(t), jump(r), R_t / (1 + R_t)
    w = 0.5 / (1 + np.exp(-2 * np.log(R_t) - bias)) * 2 / (tau * (1 - tau))
    w *= (1 - tau) ** power / ((1 - tau) ** 2 + tau**2)
    wanted = np.mean(w * (k(y_t, y_t) + k(y_r, y_r) - 2 * k(y_t, y_r)))
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_the_exact_map_of_gaussians_is_left_with_the_noise_of_small_groups(monkeypatch):
    """N(.3, .5^2), straight path, width .4: pairs of one datum and noise, and sets apart."""
    spread = lambda t: jnp.sqrt(((1 - t) * 0.5) ** 2 + t**2)  # noqa: E731

    def exact(p, x, model_time, inputs, keys=None):
        t = (model_time / 1000)[:, None]
        s = t - inputs["interval"][:, None]
        jump = (1 - s) * 0.3 + spread(s) / spread(t) * (x - (1 - t) * 0.3)
        return (x - jump) / (t - s)

    seen, discrepancy = [], module._discrepancy
    at(monkeypatch, 9.0, 7 / 3, 0.25)
    monkeypatch.setattr(module, "_reach", lambda *_: jnp.full(4000, 0.4))
    monkeypatch.setattr(module, "_weight", lambda ratio, *_: 1.0)
    monkeypatch.setattr(
        module, "_discrepancy", lambda *args: seen.append(args) or discrepancy(*args)
    )
    images = 0.3 + 0.5 * jax.random.normal(jax.random.key(0), (16_000, 1))
    keys = jax.random.split(jax.random.key(1), 16_000)
    net = Net(exact, FLOW, predictions.flow)
    np.testing.assert_allclose(value(None, net, {"image": images}, keys), 0.0623, rtol=0.04)
    x, y, kernel = seen[0]
    np.testing.assert_allclose(
        discrepancy(x, jnp.roll(x, 1, axis=0), kernel).mean(), 0.3052, rtol=0.04
    )


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2])
def test_the_weight_is_the_papers(power):
    """Equation 13 in the time of a straight path; finite at both ends."""
    tau = np.array([0.01, 0.2, 0.5, 0.9, 0.99])
    log_snr = lambda tau: 2 * (np.log1p(-tau) - np.log(tau))  # noqa: E731
    slope = (log_snr(tau + 1e-6) - log_snr(tau - 1e-6)) / 2e-6
    expected = 0.5 / (1 + np.exp(log_snr(tau) - 4)) * -slope
    expected *= (1 - tau) ** power / ((1 - tau) ** 2 + tau**2)
    found = module._weight(jnp.asarray(tau / (1 - tau), jnp.float32), 4.0, power)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    ends = module._weight(jnp.array([0.0, 160.0]), 4.0, power)
    np.testing.assert_allclose(ends, [0, 160.0 ** (1 - power)], rtol=0.05, atol=1e-6)


def test_the_reach_of_a_jump_is_that_of_the_networks_output():
    """Of a velocity t - s; of v the sine of the angle between; of EDM's F as the authors say."""
    t, s = FLOW.level(jnp.array([0.9, 0.5])), FLOW.level(jnp.array([0.2, 0.5]))
    flow = module._reach(Net(None, FLOW, predictions.flow), t, s)
    np.testing.assert_allclose(flow, [0.7, 0.0], atol=1e-6)
    edm = module._reach(Net(None, FLOW, predictions.edm(1.0)), t, s)
    np.testing.assert_allclose(edm, [(0.8 * 0.9 - 0.1 * 0.2) / np.hypot(0.1, 0.9), 0], atol=1e-6)
    t, s = COSINE.level(jnp.array([0.9])), COSINE.level(jnp.array([0.2]))
    v = module._reach(NET, t, s)
    np.testing.assert_allclose(v, np.sin(0.7 * np.pi / 2), rtol=1e-3)


def test_the_kernel_of_equal_and_of_far_sets():
    """Exactly: one less the mean of the kernel among a set's own rows, twice."""
    near = jnp.array([[[0.0], [0.5]]])
    kernel = module._laplace(jnp.array([0.25]))
    assert module._discrepancy(near, near, kernel) == 0
    far = module._discrepancy(near, near + 1e3, kernel)[0]
    np.testing.assert_allclose(far, 1 + np.exp(-2.0), rtol=1e-3)  # NEAREST takes the rest


# --- times ----------------------------------------------------------------------------------------

MANY = jax.random.split(jax.random.key(0), 20_000)


def test_the_times_of_groups():
    """Log-normal, cut at the top; s likewise below t; r the gap nearer, never beyond s."""
    t, r, s = (np.asarray(of) for of in module._ratios(MANY, (-1.1, 2.0), 160.0, 0.05))
    assert np.all((s <= r) & (r <= t) & (t <= 160.0 * 1.001))
    log = np.log(t)
    np.testing.assert_allclose([np.median(log), log.std()], [-1.1, 2.0], atol=0.05)
    np.testing.assert_allclose(r, np.maximum(t - np.float32(0.05), s), rtol=1e-6)
    share = np.divide(*(module.norm.cdf((np.log(of) + 1.1) / 2) for of in (s, t)))
    np.testing.assert_allclose(np.quantile(share, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02)
    t, r, s = (np.asarray(of) for of in module._ratios(MANY, None, 160.0, 0.05))
    tau = t / (1 + t)
    np.testing.assert_allclose(
        np.quantile(tau, [0.25, 0.5, 0.75]), [0.248, 0.497, 0.745], atol=0.02
    )
    np.testing.assert_allclose(np.mean(s / (1 + s) / tau), 0.5, atol=0.01)


@pytest.mark.parametrize("name", ["v", "flow", "edm"])
@pytest.mark.parametrize("times", [(0.0, 0.0, 0.0), (160.0, 160.0, 160.0), (160.0, 159.0, 0.0)])
def test_gradients_are_finite_at_the_ends(times, name, monkeypatch):
    at(monkeypatch, *times)
    for schedule in (FLOW, COSINE, schedules.edm()):
        net = Net(apply, schedule, predictions.PREDICTIONS[name]())
        assert np.isfinite(jax.value_and_grad(lambda p, net=net: value(p, net))(0.7)).all()


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_shares_its_times_and_nothing_else():
    seen = []

    def spy(p, x, model_time, inputs, keys=None):
        seen.append((model_time, inputs["interval"], inputs["label"], jax.random.key_data(keys)))
        return p * x

    labels = jnp.arange(64, dtype=jnp.int32) % 3
    net, batch = Net(spy, COSINE, predictions.v, NULL), {"image": IMAGES, "label": labels}
    value(0.7, net, batch, label_dropout=0.5)
    assert len(np.unique(seen[0][0])) == len(np.unique(seen[0][1])) == 16
    for model_time, interval, label, keys in seen:
        for told in (model_time, interval):
            rows = np.asarray(told).reshape(-1, 4)
            assert (rows == rows[:, :1]).all()
        assert len(np.unique(keys, axis=0)) == 64
        assert set(np.unique(label[::4])) == {0, 1, 2, 3}
    for first, second in zip(seen[0][2:], seen[1][2:], strict=True):  # of both jumps alike
        np.testing.assert_array_equal(first, second)
    assert (np.asarray(seen[1][0]) <= np.asarray(seen[0][0])).all()


@pytest.mark.slow
def test_a_batch_is_the_mean_of_its_groups():
    parts = [slice(i, i + 4) for i in range(0, 12, 4)]
    each = [value(0.7, batch={"image": IMAGES[of]}, keys=KEYS[of]) for of in parts]
    whole = value(0.7, batch={"image": IMAGES[:12]}, keys=KEYS[:12])
    np.testing.assert_allclose(whole, np.mean(each), rtol=1e-4)


def test_groups_are_compared_alike_however_the_devices_are_used(monkeypatch):
    """One device, two, parameters split over them, pmap, and a batch taken in two parts."""
    monkeypatch.setattr(parallel, "SPLIT_FROM", 2)

    def plane(p, x, model_time, inputs, keys=None):
        return apply(1.0, x @ p, model_time, inputs)

    loss = losses.moment_matching(Net(plane, COSINE, predictions.v))
    optimizer, mesh, found = make_optimizer(learning_rate=1e-2), parallel.make_mesh(), {}
    for name in ("plain", "jit", "fsdp", "pmap", "accumulated"):

        def make_mode(axis=None, gather=None, parts=1 + (name == "accumulated")):
            return make_step(loss, optimizer, states.constant_ema(0.9), axis, gather, parts)

        mode, alone = name if name in parallel.MODES else "jit", name in ("plain", "pmap")
        params, ema = jnp.eye(3)[:, :2] @ jnp.eye(2, 3), jnp.zeros((3, 3))
        opt_state = optimizer.init(params)
        state = TrainState(jnp.int32(0), params, ema, opt_state, jax.random.key(5))
        if not alone:
            state = jax.device_put(state, parallel.layout(state, mesh, mode))
        step = jax.jit(make_mode()) if name == "plain" else None
        step = step or parallel.parallelise_step(make_mode, mode, mesh)
        rows, curve = {"image": np.asarray(IMAGES[:16])}, []
        for _ in range(3):
            state, metrics = step(state, rows if alone else parallel.shard(rows, mesh))
            curve.append([float(metrics[m]) for m in ("loss", "grad_norm", "mse_jumps")])
        found[name] = curve
    for name, curve in found.items():
        np.testing.assert_allclose(curve, found["plain"], rtol=2e-4, err_msg=name)


def test_rows_that_make_no_whole_groups_are_refused():
    with rejects(ValueError, "config.loss.group must divide the 64 rows", "got 5"):
        value(0.7, group=5)
    config = tiny(digits.get_config(), levels=1)
    config.model.scalars = ("interval",)
    config.loss = dict(name="moment_matching")
    config.train.update(batch_size=8)
    mesh = parallel.make_mesh()
    method.build(config, None, mesh)
    config.train.accumulate = 2
    message = "config.loss.group=4 must divide the 2 images that each device takes at a time"
    with rejects(ValueError, message, "set config.train.batch_size to a multiple of 16"):
        method.build(config, None, mesh)
    config.train.update(batch_size=6, accumulate=1)
    with rejects(ValueError, "config.loss.group=4 must divide the 3 images"):
        method.build(config, None, mesh)


@pytest.mark.parametrize("name", losses.JUMPING)
def test_a_network_that_is_not_told_how_far_is_refused(name):
    """By every loss that tells it, before anything is traced."""
    config = tiny(digits.get_config(), levels=1)
    config.loss = dict(name=name)
    config.schedule, config.prediction = dict(name="rectified_flow"), dict(name="flow")
    with rejects(ValueError, f"config.loss.name='{name}' tells", "scalars=('interval',)"):
        method.build(config, None, parallel.make_mesh())


def test_bad_options():
    with rejects(ValueError, "config.loss.log_normal must be (mean, std) or None, got 0.5"):
        losses.moment_matching(NET, log_normal=0.5)
    with rejects(ValueError, "the std of config.loss.log_normal must be"):
        losses.moment_matching(NET, log_normal=(0.0, 0.0))
