"""Flow maps against the exact one of Gaussians, on straight paths and on the cosine schedule.

The data are N(.3, .5^2); the numbers that are expected are of closed forms, in float64.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from ddim_jax import (
    denoisers,
    dropping,
    experiment,
    losses,
    predictions,
    sampling,
    schedules,
    solvers,
    strides,
)
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.losses import Net
from ddim_jax.predictions import expand
from tests.errors import rejects
from tests.tiny import tiny

module = importlib.import_module("ddim_jax.losses.flow_map")
FLOW, COSINE = schedules.rectified_flow(), schedules.cosine()
M, STD = 0.3, 0.5
X, T, S = 0.7, 0.9, 0.25
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(64))
NULL = {"label": 3}


def spread(t):
    return jnp.sqrt(((1 - t) * STD) ** 2 + t**2)


def jump(x, t, s):
    """The exact map."""
    return (1 - s) * M + spread(s) / spread(t) * (x - (1 - t) * M)


def velocity(x, t):
    return (t - (1 - t) * STD**2) / spread(t) ** 2 * (x - (1 - t) * M) - M


def mean_velocity(x, t, s):
    """The exact U, with its limit at s = t."""
    far = jnp.abs(t - s) > 1e-3
    return jnp.where(far, (x - jump(x, t, s)) / jnp.where(far, t - s, 1), velocity(x, (t + s) / 2))


def bump(x, t, s):
    return jnp.sin(2 * x + t - s / 2)


def flow_apply(p, x, model_time, inputs, keys=None):
    t = (model_time / 1000)[:, None]
    if not inputs:  # the teacher
        return velocity(x, t)
    s = t - inputs["interval"][:, None]
    return mean_velocity(x, t, s) + p * bump(x, t, s)


def cosine_apply(p, x, model_time, inputs, keys=None):
    """The same map for a network that predicts v: U = (2 t - 1) / n^2 x + v / n."""
    t_of = lambda clock: module._t_of(COSINE.level(clock))[:, None]  # noqa: E731
    t = t_of(model_time / 1000)
    n = jnp.sqrt(t**2 + (1 - t) ** 2)
    x = n * x
    s = t_of(model_time / 1000 - inputs["interval"]) if inputs else t
    u = mean_velocity(x, t, s) + p * bump(x, t, s) if inputs else velocity(x, t)
    return n * (u - (2 * t - 1) / n**2 * x)


NETS = {
    "flow": Net(flow_apply, FLOW, predictions.flow),
    "cosine": Net(cosine_apply, COSINE, predictions.v),
}


def at_one_point(monkeypatch, net, p, **options):
    """The loss at x = .7, t = .9, s = .25, with the exact teacher."""
    monkeypatch.setattr(module, "_pair", lambda *_: (jnp.full(1, T), jnp.full(1, S)))
    monkeypatch.setattr(Net, "noise", lambda self, keys, x: jnp.full((1, 1), 0.7))
    loss = losses.flow_map(net, distil=True, **options)
    frozen = {"teacher": None, "target": jnp.float32(p)}
    batch = {"image": jnp.full((1, 1), (X - T * 0.7) / (1 - T))}
    return loss(jnp.float32(p), frozen, batch, KEYS[:1], 0)[0]


def test_the_oracle_is_the_one_that_is_known():
    found = [jump(X, T, S), mean_velocity(X, T, S), velocity(X, T), velocity(jump(X, T, S), S)]
    np.testing.assert_allclose(found, [0.56, 0.2153846154, 0.4215384615, -0.1969230769], rtol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", module.KINDS)
def test_the_exact_map_has_no_loss(kind, name, monkeypatch):
    assert at_one_point(monkeypatch, NETS[name], 0.0, kind=kind) < 2e-10


def point_mass_apply(p, x, model_time, inputs, keys=None):
    """Exact at s = t where the data are M alone: eps - x0 is the velocity in each row."""
    t, h = (model_time / 1000)[:, None], inputs["interval"][:, None]
    return (x - M) / t + p[0] * h * x + p[1] * h * jnp.sin(t * x)


def of_points(loss, monkeypatch, t=(T, 0.99), s=(S, 0.0)):
    """Value and gradient of two rows from t to s."""
    pair = jnp.array(t), jnp.array(s)
    mean_flow = importlib.import_module("ddim_jax.losses.mean_flow")
    monkeypatch.setattr(module, "_pair", lambda *_: pair)
    monkeypatch.setattr(mean_flow, "_interval", lambda *_: pair)
    monkeypatch.setattr(Net, "noise", lambda *_: jnp.array([[0.7], [-1.1]]))
    p, batch = jnp.array([0.4, -0.3]), {"image": jnp.full((2, 1), M)}
    evaluate = jax.value_and_grad(lambda q: loss(q, {"target": p}, batch, KEYS[:2], 0)[0])
    return np.concatenate([np.ravel(part) for part in evaluate(p)])


POINTS = Net(point_mass_apply, FLOW, predictions.flow)


@pytest.mark.parametrize("improved", [False, True])
def test_mean_flow_is_the_eulerian_map(improved, monkeypatch):
    """Where eps - x0 is the velocity, both forms are; beside their times and weights."""
    other = losses.mean_flow(POINTS, power=0.0, improved=improved)
    found = of_points(losses.flow_map(POINTS, kind="esd"), monkeypatch)
    np.testing.assert_allclose(found, of_points(other, monkeypatch), rtol=1e-5)
    assert np.abs(found).min() > 1e-3


def test_shortcut_models_are_the_map_by_halves(monkeypatch):
    """The longest of their jumps, the only one of `finest=2`."""
    whole = (1.0, 1.0), (0.0, 0.0)
    found = of_points(losses.flow_map(POINTS, kind="psd"), monkeypatch, *whole)
    other = of_points(losses.shortcut(POINTS, finest=2, every=1), monkeypatch)
    np.testing.assert_allclose(found, other, rtol=1e-5)
    assert np.abs(found).min() > 1e-3


@pytest.mark.parametrize("kind", ["lsd", "esd"])
def test_jumps_to_an_index_of_a_schedule_of_steps_have_a_loss(kind, monkeypatch):
    """Times on an index, as the clean end is, where the clock is put on it exactly."""
    ddpm = schedules.ddpm_linear()

    def apply(p, x, model_time, inputs, keys=None):
        return p * x

    ends = [module._t_of(ddpm.level(np.float32([i / 1000]))) for i in (500, 0)]
    monkeypatch.setattr(module, "_pair", lambda *_: [jnp.asarray(end) for end in ends])
    loss = losses.flow_map(Net(apply, ddpm, predictions.v), kind=kind, distil=True)
    batch = {"image": jnp.full((1, 1), 0.3)}
    value = lambda p: loss(p, {"teacher": jnp.float32(0.5)}, batch, KEYS[:1], 0)[0]  # noqa: E731
    found, slope = jax.value_and_grad(value)(jnp.float32(0.2))
    assert np.isfinite(found) and np.isfinite(slope) and slope != 0


RESIDUALS = {"lsd": 0.2408732883, "esd": -0.0427088017}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", RESIDUALS)
def test_a_wrong_map_has_the_known_residual(kind, name, monkeypatch):
    value = at_one_point(monkeypatch, NETS[name], 0.3, kind=kind)
    np.testing.assert_allclose(np.sqrt(value), abs(RESIDUALS[kind]), rtol=2e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
def test_the_tangent_of_align_your_flow(share, name, monkeypatch):
    """g / (|g| + .1) of the known residual at r = 1, and of U - v at r = 0; linear between."""
    bump_here = np.sin(2 * X + T - S / 2)
    g = (1 - share) * (0.2153846154 + 0.3 * bump_here - 0.4215384615) - share * RESIDUALS["esd"]
    options = dict(kind="esd", derivative=share, tangent_floor=0.1)
    value = lambda p: at_one_point(monkeypatch, NETS[name], p, **options)  # noqa: E731
    found, slope = jax.value_and_grad(value)(0.3)
    np.testing.assert_allclose(found, (g / (abs(g) + 0.1)) ** 2, rtol=2e-4)
    np.testing.assert_allclose(slope, 2 * g / (abs(g) + 0.1) * bump_here, rtol=2e-4)
    if share == 1:
        assert value(0.0) < 1e-9


def test_the_tangent_warms_up(monkeypatch):
    """r is 0 at first, half of its end half-way, and stays there in the end."""
    shares = [module._share(0.99, step, 100) for step in (0, 50, 100, 1000)]
    np.testing.assert_allclose(shares, [0, 0.495, 0.99, 0.99], rtol=1e-6)
    assert module._share(1.0, 0, 0) == 1.0
    first = at_one_point(monkeypatch, NETS["flow"], 0.3, kind="esd", warmup_steps=10)
    plain = at_one_point(monkeypatch, NETS["flow"], 0.3, kind="esd", derivative=0.0)
    np.testing.assert_allclose(first, plain, rtol=1e-6)


def test_psd_of_a_wrong_map(monkeypatch):
    """By hand, of halves that meet at t = .575."""
    u = lambda x, t, s: mean_velocity(x, t, s) + 0.3 * bump(x, t, s)  # noqa: E731
    r = (T + S) / 2
    first = u(X, T, r)
    second = u(X - (T - r) * first, r, S)
    expected = u(X, T, S) - (first + second) / 2
    for net in NETS.values():
        value = at_one_point(monkeypatch, net, 0.3, kind="psd")
        np.testing.assert_allclose(value, expected**2, rtol=1e-3)


def test_a_denoiser_is_its_own_velocity_on_every_schedule():
    """U at s = t of exact denoisers of several predictions is v, before any training."""
    x, t = jnp.linspace(-2, 2, 5)[:, None], jnp.array([0.05, 0.3, 0.5, 0.8, 0.97])
    for schedule in (FLOW, COSINE, schedules.edm(), schedules.vp_linear()):
        for prediction in ("v", "flow", "edm", "x0"):
            parameterization = predictions.PREDICTIONS[prediction]()
            clock = module._clock(schedule, t)
            level = schedule.level(clock)

            def apply(p, x_in, model_time, inputs, keys, level=level, of=parameterization):
                v = velocity(x, t[:, None])
                exact = predictions.Prediction(x - t[:, None] * v, x + (1 - t[:, None]) * v)
                return predictions.target(of, exact, level)

            net = Net(apply, schedule, parameterization)
            found = module._velocity(net, None, x, clock, {})
            np.testing.assert_allclose(found, velocity(x, t[:, None]), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", NETS)
def test_ddim_draws_with_the_jumps_that_were_learned(name):
    """One step and three on the uniform stride, whose length the network is told."""
    net = NETS[name]
    noise = sampling.initial_noise(sampling.sample_keys(0, np.arange(8)), (1,))
    keys = sampling.sample_keys(0, np.arange(8))
    sample = sampling.make_sampler(net.apply, net.parameterization, clip="none")
    for steps in (1, 3):
        table = solvers.ddim()(net.schedule, strides.uniform(net.schedule, steps))
        told = {"interval": jnp.full(8, 1 / steps)}
        found = sample(jnp.float32(0), table, noise, keys, told).x
        np.testing.assert_allclose(found, jump(noise, 1.0, 0.0), rtol=0, atol=3e-3)


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 4), ("tcd", 4), ("lcm", 3), ("tcd", 1)])
def test_a_network_is_told_where_each_row_goes(solver, steps):
    """Between s and the next time there is noise alone, of which it is not told; guided or not."""
    config = tiny(digits.get_config(), levels=1)
    config.model.scalars = ("interval",)
    model = experiment.build(config)
    recipe = model.recipe.replace(solver=solver, steps=steps, guidance_scale=2.0)
    table = recipe.table(model.schedule)
    given = model.conditions(2, recipe, np.array([1, 2]), table)
    assert (dropping.SLOPE in given["inputs"]) == (solver != "ddim" and steps > 1)
    told = lambda p, x, t, inputs: expand(inputs["interval"], x) + 0 * x  # noqa: E731
    net = classifier_free(
        denoisers.network(told, None), model._nulled(given["inputs"]), Guidance(2.0)
    )
    gamma, x = {"ddim": 0.0, "tcd": 0.3, "lcm": 1.0}[solver], jnp.zeros((2, 8, 8, 1))
    nodes = np.append(table.level.t, table.end.t)
    for k in range(steps):
        level = schedules.NoiseLevel(*(field[k] for field in table.level))
        found = net(x, level, given["inputs"])
        expected = nodes[k] - (1 - gamma) * nodes[k + 1]
        np.testing.assert_allclose(found, np.full(x.shape, expected), atol=1e-6)


@pytest.mark.parametrize("kind", module.KINDS)
def test_only_the_network_that_is_trained_has_a_gradient(kind):
    for distil in (True, False):
        loss = losses.flow_map(NETS["flow"], kind=kind, distil=distil)
        trees = {"params": jnp.float32(0.3), "target": jnp.float32(0.3)}
        batch = {"image": jnp.ones((64, 1))}

        def value(trees, loss=loss, batch=batch):
            frozen = {"teacher": None, "target": trees["target"]}
            return loss(trees["params"], frozen, batch, KEYS, 0)[0]

        before, grads = jax.value_and_grad(value)(trees)
        assert grads["target"] == 0 and abs(grads["params"]) > 1e-3
        moved = abs(value(trees | {"target": jnp.float32(0.9)}) - before)
        assert (moved > 1e-3) == (loss.target_decay is not None)
        assert loss.needs_teacher == distil
        assert (loss.target_decay is None) == (distil and kind != "psd")


def test_rows_of_no_length_are_flow_matching():
    """Whatever the kind; the network's velocity is wrong by a bump."""
    batch = {"image": jnp.asarray(np.random.default_rng(0).normal(size=(64, 1)), jnp.float32)}
    frozen, found = {"target": jnp.float32(9.0)}, []
    for kind in module.KINDS:
        loss = losses.flow_map(NETS["flow"], kind=kind, same=1.0)
        value, metrics = loss(jnp.float32(0.3), frozen, batch, KEYS, 0)
        found.append(value)
        assert metrics["loss_jumps"] == 0
    np.testing.assert_allclose(found, found[0], rtol=1e-5)
    assert found[0] > 0.05


# --- improved MeanFlow ----------------------------------------------------------------------------

MEAN_FLOW = importlib.import_module("ddim_jax.losses.mean_flow")
NOISE = {
    # t, s -> E of the squared residual of the exact map, along the data's velocity and its own
    (0.99999, 0.0): (0.0625, 0.25),
    (0.7, 0.4): (0.237954, 0.487805),
    (0.3, 0.0): (1.384083, 1.176471),
}


def picture_apply(p, x, model_time, inputs, keys=None):
    """The picture whose velocity is that of `flow_apply`."""
    return x - (model_time / 1000)[:, None] * flow_apply(p, x, model_time, inputs)


NETS_OF_MEAN_FLOW = {
    "flow": NETS["flow"],
    "x0": Net(picture_apply, FLOW, predictions.x0),
}


@pytest.mark.parametrize("name", NETS_OF_MEAN_FLOW)
@pytest.mark.parametrize("times", NOISE)
def test_the_noise_of_the_exact_mean_flow(times, name, monkeypatch):
    """Of a residual that is linear in data and noise: the mean over signs of both is exact."""
    z, eps = (jnp.array(signs)[:, None] for signs in ([1.0, 1, -1, -1], [1.0, -1, 1, -1]))
    monkeypatch.setattr(MEAN_FLOW, "_interval", lambda *_: [jnp.full(4, time) for time in times])
    monkeypatch.setattr(Net, "noise", lambda self, keys, x: eps)
    for improved, expected in zip((False, True), NOISE[times], strict=True):
        loss = losses.mean_flow(NETS_OF_MEAN_FLOW[name], power=0.0, improved=improved)
        found = loss(jnp.float32(0), None, {"image": M + STD * z}, KEYS[:4], 0)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_pictures_of_the_mean_flow(monkeypatch):
    """Of a jump of no length the mean of the data at x, of one to the end what is drawn."""
    x, time = jnp.full((1, 1), 0.5), jnp.full(1, 500.0)
    for h, expected in ((0.0, 0.44), (0.5, 0.613050)):
        found = picture_apply(0.0, x, time, {"interval": jnp.full(1, h)})
        np.testing.assert_allclose(found, expected, atol=1e-6)
    level, told = FLOW.level(jnp.full(1, 0.5)), {"interval": jnp.full(1, 0.5)}
    seen = NETS_OF_MEAN_FLOW["x0"].predict(0.0, x, level, told)
    np.testing.assert_allclose(seen.x0, jump(0.5, 0.5, 0.0), atol=1e-6)
    monkeypatch.setattr(MEAN_FLOW, "_interval", lambda *_: (jnp.full(1, 0.02), jnp.full(1, 0.02)))
    net = Net(lambda p, x, *_: p + 0 * x, FLOW, predictions.x0)
    loss = losses.mean_flow(net, power=0.0)
    value, slope = jax.value_and_grad(
        lambda p: loss(p, None, {"image": jnp.full((1, 1), 0.3)}, KEYS[:1], 0)[0]
    )(jnp.float32(0.4))
    np.testing.assert_allclose([value, slope], [(0.1 / 0.05) ** 2, 2 * 0.1 / 0.05**2], rtol=1e-4)


def test_the_improved_form_regresses_on_the_velocity_of_the_data(monkeypatch):
    """V = u + h held(du/dt), whose derivative by the parameter is that of u; the network is off."""

    def apply(p, x, model_time, inputs, keys=None):
        t, h = model_time[:, None] / 1000, inputs["interval"][:, None]
        return mean_velocity(x, t, t - h) + p * h * bump(x, t, t - h)

    u = lambda p, x, t, s: mean_velocity(x, t, s) + p * (t - s) * bump(x, t, s)  # noqa: E731
    eps, x0 = 0.7, (X - T * 0.7) / (1 - T)
    du = jax.jvp(lambda *at: u(0.3, *at), (X, T, S), (velocity(X, T), 1.0, 0.0))[1]
    error = u(0.3, X, T, S) + (T - S) * du - (eps - x0)
    monkeypatch.setattr(MEAN_FLOW, "_interval", lambda *_: (jnp.full(1, T), jnp.full(1, S)))
    monkeypatch.setattr(Net, "noise", lambda self, keys, x: jnp.full((1, 1), eps))
    loss = losses.mean_flow(Net(apply, FLOW, predictions.flow), power=0.0, improved=True)
    value, slope = jax.value_and_grad(
        lambda p: loss(p, None, {"image": jnp.full((1, 1), x0)}, KEYS[:1], 0)[0]
    )(jnp.float32(0.3))
    np.testing.assert_allclose(value, error**2, rtol=1e-4)
    np.testing.assert_allclose(slope, 2 * error * (T - S) * bump(X, T, S), rtol=1e-4)


def test_a_scale_that_is_an_input_guides_to_its_own_fixed_point():
    """v = .8 of the label and -.3 of none: at w = 3 the network must say 3."""
    seen = []

    def apply(p, x, model_time, inputs, keys=None):
        w, none = inputs["guidance"][:, None], (inputs["label"] == 3)[:, None]
        seen.append(w)
        return 0 * x + jnp.where(none, -0.3, w * 0.8 + (1 - w) * -0.3) + p

    net = Net(apply, FLOW, predictions.flow, NULL)
    batch = {"image": jnp.zeros((64, 1)), "label": jnp.zeros(64, jnp.int32)}
    with pytest.MonkeyPatch.context() as patch:  # so that eps - x0 is .8
        patch.setattr(Net, "noise", lambda self, keys, x: jnp.full((64, 1), 0.8))
        options = dict(improved=True, label_dropout=1e-9, power=0.0)
        loss = losses.mean_flow(net, guidance=(1.0, 8.0), **options)
        slope = jax.grad(lambda p: loss(p, None, batch, KEYS, 0)[0])(jnp.float32(0))
        assert abs(slope) < 1e-5
        assert abs(jax.grad(lambda p: loss(p, None, batch, KEYS, 0)[0])(jnp.float32(0.1))) > 0.1
        seen.clear()
        loss(jnp.float32(0), None, batch, KEYS, 0)
    share = np.log(np.asarray(seen[0])) / np.log(8)  # uniform, of a density of 1 / w
    np.testing.assert_allclose(
        np.quantile(share, (0, 0.25, 0.5, 0.75, 1)), np.arange(5) / 4, atol=0.12
    )
    with rejects(ValueError, "is of the improved form", "set config.loss.improved=True"):
        losses.mean_flow(net, guidance=(1.0, 8.0))
    with rejects(ValueError, "the lower end of config.loss.guidance"):
        losses.mean_flow(net, guidance=(0.0, 8.0), improved=True)
    with rejects(ValueError, "config.loss.guidance=(1.0, 8.0) needs", "label_dropout > 0"):
        losses.mean_flow(net, guidance=(1.0, 8.0), improved=True)


# --- times ----------------------------------------------------------------------------------------


def test_pairs_of_times():
    keys = jax.random.split(jax.random.key(0), 4000)
    t, s = module._pair(keys, 0.5, 0.25, None)
    assert np.all(s <= t) and np.all(t <= 1)
    np.testing.assert_allclose(np.mean(s == t), 0.5, atol=0.03)
    np.testing.assert_allclose(np.mean((s == 0)[s < t]), 0.25, atol=0.03)
    np.testing.assert_allclose(np.mean(t), 2 / 3, atol=0.01)
    t, s = module._pair(keys, 0.0, 0.0, (-0.8, 1.0))  # AYF's
    assert np.all(s >= 0) and np.all(s < t) and np.all(t <= 1)
    np.testing.assert_allclose(np.mean(t - s), 0.34, atol=0.01)
    np.testing.assert_allclose(np.mean(s / (1 - (t - s))), 0.5, atol=0.02)


def test_bad_options():
    flow = NETS["flow"]
    with rejects(ValueError, "config.loss.kind must be one of lsd, esd, psd, got 'lmd'"):
        losses.flow_map(flow, kind="lmd")
    with rejects(ValueError, "are of kind 'esd', got 'lsd'; leave them out"):
        losses.flow_map(flow, kind="lsd", tangent_floor=0.1)
    with rejects(ValueError, "config.loss.jumps must be (mean, std), got 0.5"):
        losses.flow_map(flow, jumps=0.5)
    with rejects(ValueError, "config.loss.derivative must be in [0, 1]"):
        losses.flow_map(flow, kind="esd", derivative=2)
    with rejects(ValueError, "config.loss.same must be in [0, 1], got 2"):
        losses.flow_map(flow, same=2)
    for kind, distil in (("lsd", False), ("psd", True)):
        with rejects(ValueError, "config.loss.same=0 leaves no rows in which data or a teacher"):
            losses.flow_map(flow, kind=kind, distil=distil, same=0.0)
    with rejects(ValueError, "are a teacher's: set config.loss.distil=True"):
        losses.flow_map(flow, guidance_scale=2.0)
    with rejects(ValueError, "needs a class-conditional network"):
        losses.flow_map(flow, guidance_scale=2.0, distil=True)
    with rejects(ValueError, "says nothing about x0 at pure noise"):
        losses.flow_map(Net(None, FLOW, predictions.eps))
    with rejects(
        ValueError, "says nothing about the velocity at the data", "config.loss.to_data=0"
    ):
        losses.flow_map(flow, teacher=Net(None, FLOW, predictions.x0), distil=True)
    losses.flow_map(flow, teacher=Net(None, FLOW, predictions.x0), distil=True, to_data=0)
