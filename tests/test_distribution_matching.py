"""Distribution matching of Gaussians, against closed forms; turns, several steps, bad options.

The data are N(.3, .5^2), the student draws N(-.2, .8^2) and the critic knows it, at t = .6 of a
flow. The numbers that are expected are integrals of closed forms, by quadrature in float64.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from ddim_jax import losses, parallel, predictions, sampling, schedules, solvers, strides
from ddim_jax.losses import Net, rollout
from ddim_jax.losses import matching_terms as terms
from ddim_jax.networks.discriminator import Discriminator
from ddim_jax.predictions import expand
from ddim_jax.training import state as states
from ddim_jax.training.optimizer import make_optimizers
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import make_step
from tests.errors import rejects
from tests.selection import slow_but

FLOW = schedules.rectified_flow()
DATA, MADE, T = jnp.array([0.3, 0.5]), jnp.array([-0.2, 0.8]), 0.6
A, S = 1 - T, T
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
Z, E = (jnp.asarray(grid.ravel(), jnp.float32) for grid in np.meshgrid(POINTS, POINTS))
W = np.outer(WEIGHTS, WEIGHTS).ravel() / WEIGHTS.sum() ** 2


def denoise(p, x, model_time, inputs, keys=None):
    """E[x0 | x] of N(p[0], p[1]^2)."""
    t = expand(model_time / 1000, x)
    return p[0] + (1 - t) * p[1] ** 2 * (x - (1 - t) * p[0]) / (((1 - t) * p[1]) ** 2 + t**2)


def generate(p, x, model_time, inputs, keys=None):
    return p[0] + p[1] * x


def ratio(p, x):
    """log of data's density over the student's, noised."""
    (m, s), (mu, c) = DATA, MADE
    vp, vq = (A * s) ** 2 + S**2, (A * c) ** 2 + S**2
    return (jnp.log(vq / vp) - (x - A * m) ** 2 / vp + (x - A * mu) ** 2 / vq) / 2


class Head:
    """The exact logit, plus a parameter; of pictures where it is given these."""

    def init(self, key, h, t, x=None):
        return {"params": jnp.float32(0)}

    def apply(self, variables, h, t, x=None):
        return ratio(None, h if x is None else x)[:, 0] + variables["params"]


STUDENT = Net(generate, FLOW, predictions.x0)
TEACHER = Net(denoise, FLOW, predictions.x0, features=lambda p, x, t, inputs: x)
PARAMS = {"student": MADE, "critic": MADE, "head": jnp.float32(0)}
FROZEN = {"teacher": DATA}
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(256))


def make(**options):
    options = {"times": lambda keys: jnp.full(len(keys), T), "normalise": False} | options
    return losses.distribution_matching(STUDENT, teacher=TEACHER, head=Head(), **options)


@pytest.fixture
def exact(monkeypatch):
    """(value, gradients of the parts, metrics) of a loss, expectations instead of draws."""

    def evaluate(**options):
        loss = make(**options)

        def row(params, z, e):
            last = z if "critic_times" in options else e  # of the critic; of the data
            draws = iter([e, z, last])  # of what the student drew, of the student, and that
            monkeypatch.setattr(Net, "noise", lambda *_: jnp.full((1, 1), next(draws)))
            batch = {"image": jnp.full((1, 1), DATA[0] + DATA[1] * z)}
            return loss(params, FROZEN, batch, KEYS[:1], 0)

        rows = jax.jit(jax.vmap(jax.value_and_grad(row, has_aux=True), (None, 0, 0)))
        (value, metrics), grads = rows(PARAMS, Z, E)
        mean = lambda tree: jax.tree.map(lambda v: np.tensordot(W, np.float64(v), 1), tree)  # noqa: E731
        return mean(value), mean(grads), mean(metrics)

    return evaluate


def close(found, expected, tolerance=2e-6):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_the_student_follows_the_gradient_of_the_divergence(exact):
    _, grads, metrics = exact()
    close(grads["student"] * (A / S) ** 2, (-0.2, 0.04318339))
    close(grads["student"], (-0.45, 0.09716263))
    close(grads["head"], 0)
    # what the student draws is what the exact critic knows: its own term is at its least
    close(grads["critic"], (0, 0))
    close(metrics["loss_critic"], (MADE[1] * S) ** 2 / ((A * MADE[1]) ** 2 + S**2))


def test_the_critic_may_learn_at_other_times_than_the_student_is_judged_at(exact):
    """The exact critic is right at any level: what the student learns is the same."""
    plain, found = exact(), exact(critic_times=lambda keys: jnp.full(len(keys), 0.3))
    close(found[1]["student"], plain[1]["student"])
    close(found[1]["critic"], (0, 0))
    var = lambda t: (MADE[1] * t) ** 2 / (((1 - t) * MADE[1]) ** 2 + t**2)  # noqa: E731
    close(found[2]["loss_critic"], var(0.3))
    assert abs(var(0.3) - var(T)) > 0.05


J = 0.2451301038
SID = {
    0.0: (-0.45965398, 0.17489273),
    0.5: (-0.405, 0.16309201),
    1.0: (-0.35034602, 0.15129129),
    1.2: (-0.32848443, 0.14657100),
}


@pytest.mark.parametrize("alpha", SID)
def test_score_identity_distillation(alpha, exact):
    _, grads, metrics = exact(objective="sid", alpha=alpha)
    close(metrics["loss_student"], (1 - alpha) * J)
    close(grads["student"], SID[alpha])
    close(grads["critic"], (0, 0))


def surrogate(divergence):
    """Gradient of the matching term with the exact ratio in h, times (alpha / sigma)^2."""
    h = terms.DIVERGENCES[divergence](jnp.exp(ratio(None, 0 * Z + noised(MADE)[1])))

    def value(p):
        x, x_t = noised(p)
        at = jnp.full(len(x), 1000 * T)
        real, fake = (denoise(q, jax.lax.stop_gradient(x_t), at, {})[:, None] for q in (DATA, MADE))
        rows, rho = terms.matching(x[:, None], real, fake, h, "dmd", 1.0, False)
        return jnp.sum(jnp.asarray(W, jnp.float32) * rows)

    return (A / S) ** 2 * jax.grad(value)(MADE)


def noised(p):
    x = p[0] + p[1] * Z
    return x, A * x + S * E


def test_other_divergences():
    """Forward KL, and twice Jensen-Shannon."""
    close(surrogate("reverse_kl"), (-0.2, 0.04318339))
    close(surrogate("forward_kl"), (-0.17301038, 0.01340980))
    close(surrogate("js"), (-0.09004397, 0.01196318))


@pytest.mark.parametrize("name", terms.DIVERGENCES)
def test_the_weight_of_a_divergence_is_of_its_second_derivative(name):
    """h(r) = r^2 f''(r), up to a factor that is the same at every r."""
    f = {
        "reverse_kl": lambda r: -jnp.log(r),
        "forward_kl": lambda r: r * jnp.log(r),
        "js": lambda r: r * jnp.log(r) - (1 + r) * jnp.log((1 + r) / 2),
        "hellinger": lambda r: (1 - jnp.sqrt(r)) ** 2,
        "jeffreys": lambda r: (r - 1) * jnp.log(r),
    }[name]
    r = jnp.array([0.1, 0.5, 1.0, 3.0, 20.0])
    wanted = r**2 * jax.vmap(jax.grad(jax.grad(f)))(r)
    found = terms.DIVERGENCES[name](r)
    close(found / wanted, np.full(5, found[0] / wanted[0]), 1e-4)


def test_ratios_are_relative_to_rows_of_their_noise_level():
    t = jnp.array([0.05, 0.06, 0.5, 0.51])
    logit = jnp.log(jnp.array([1.0, 3.0, 10.0, 10.0]))
    h = terms.ratio_weight(logit, FLOW.level(t), terms.DIVERGENCES["forward_kl"])
    close(h, (0.5, 1.5, 1, 1))
    alone = jnp.array([0.05, 0.3, 0.5, 0.9])  # each the only one of its level
    h = terms.ratio_weight(logit, FLOW.level(alone), terms.DIVERGENCES["forward_kl"])
    close(h, np.array([1, 3, 10, 10]) / 6)
    far = terms.ratio_weight(jnp.array([-50.0, 50.0]), FLOW.level(t[:2]), lambda r: r)
    close(far, np.array([0.1, 20.0]) / 10.05)


@pytest.mark.parametrize("sees", ["features", "both"])
def test_a_head_with_the_exact_logit(exact, sees):
    plain, with_head = exact(), exact(gan=1.0, gan_sees=sees)
    close(with_head[0] - plain[0], 0.7367978827 + 1.3609190236, 1e-5)
    close(with_head[2]["loss_head"], 1.3609190236, 1e-5)
    close(with_head[1]["student"] - plain[1]["student"], (-0.10995603, 0.03122021))
    close(with_head[1]["head"], 0)  # its own term is at its least
    close(with_head[1]["critic"], plain[1]["critic"])


def test_a_head_that_sees_pictures_adds_a_logit_of_their_own():
    h, t, x = jnp.ones((2, 7, 7, 8)), jnp.array([0.1, 0.4]), jnp.ones((2, 28, 28, 1))
    head, key = Discriminator(channels=16), jax.random.key(0)
    params = head.init(key, h, t, x)["params"]
    own = {name for name in params if name.startswith("picture_")}
    assert set(head.init(key, h, t)["params"]) == set(params) - own  # a head's file stays as it was
    logits = lambda *given: head.apply({"params": params}, *given)  # noqa: E731
    added = logits(h, t, x) - logits(h, t)
    close(logits(2 * h, t, x) - logits(2 * h, t), added)
    assert np.abs(logits(h, t, -x) - logits(h, t, x)).min() > 1e-3


def test_the_teacher_is_guided_and_the_critic_is_not():
    """Of a teacher whose x0 is its label, 3 for none; the student draws its own number."""
    seen = []

    def apply(p, x, model_time, inputs, keys=None):
        seen.append(len(x))
        return 0 * x + inputs["label"][:, None] + p

    net = Net(apply, FLOW, predictions.x0, {"label": 3})
    params = {"student": jnp.float32(5), "critic": jnp.float32(0.25)}
    batch = {"image": jnp.ones((4, 1)), "label": jnp.array([0, 1, 2, 1])}
    for scale in (1.0, 2.5):
        loss = losses.distribution_matching(net, normalise=False, guidance_scale=scale)
        grad = jax.grad(
            lambda p, loss=loss: loss(p, {"teacher": jnp.float32(0)}, batch, KEYS[:4], 0)[0]
        )
        label = np.array([0, 1, 2, 1])
        d = 3 + scale * (label - 3) - (label + 0.25)
        np.testing.assert_allclose(grad(params)["student"], -d.mean(), rtol=1e-5)
    assert seen == [4, 4, 4, 4, 4, 8]


def test_the_weight_is_of_the_distance_to_the_teacher():
    x, real, fake = (jnp.asarray(np.random.default_rng(k).normal(size=(3, 2, 5))) for k in range(3))
    step = lambda normalise: jax.grad(  # noqa: E731
        lambda x: terms.matching(x, real, fake, jnp.ones(3), "dmd", 1.0, normalise)[0].sum()
    )(x)
    w = 1 / (np.abs(x - real).mean((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(step(True), w * step(False), rtol=1e-5)
    np.testing.assert_allclose(step(False), -(real - fake) / 10, rtol=1e-5)


@pytest.mark.parametrize("objective", terms.OBJECTIVES)
def test_the_gauge_is_one_where_the_critic_is_right(objective, exact):
    x, x_t = noised(MADE)
    at = jnp.full(len(x), 1000 * T)
    real, fake = (denoise(q, x_t, at, {}) for q in (DATA, MADE))
    d = np.float64(real - fake)
    close((W * d * np.float64(real - x)).sum() / (W * d**2).sum(), 1, 1e-5)
    rows = [v[:, None] for v in (x, real, fake)]
    found = terms.matching(*rows, jnp.ones(len(x)), objective, 1.0, True)[1]
    np.testing.assert_allclose(found, (d * np.float64(real - x)).sum() / (d**2).sum(), rtol=1e-4)


# --- turns ----------------------------------------------------------------------------------------

TURNS = {
    "every": (dict(every=5), [0, 5], range(6)),
    "alternate": (dict(every=3, alternate=True), [0, 3], [1, 2, 4, 5]),
    "sid": (dict(every=2, objective="sid"), [0, 2, 4], range(6)),
}
BATCH = {"image": jnp.asarray(np.random.default_rng(0).normal(size=(256, 1)), jnp.float32)}


def optimizer_of(loss, **options):
    section = {"learning_rate": 1e-2, "b1": 0.5, **options}
    config = ml_collections.ConfigDict({"optimizer": section, "train": {"steps": 10}})
    return make_optimizers(config, loss.parts)


@pytest.mark.parametrize("name", slow_but(TURNS, ["alternate"]))
def test_a_part_that_rests_has_no_gradient_and_keeps_its_moments(name):
    options, student, others = TURNS[name]
    loss = make(gan=0.1, times=None, **options)
    optimizer = optimizer_of(loss, decay="linear")
    step, state = jax.jit(make_step(loss, optimizer, states.constant_ema())), first(loss, optimizer)
    turns = {"student": student, "critic": list(others), "head": list(others)}
    grad = jax.jit(jax.grad(lambda *a: loss(*a)[0]))
    moved = {part: [] for part in turns}
    for k in range(6):
        gradient = grad(state.params, FROZEN, BATCH, KEYS, jnp.int32(k))
        new, metrics = step(state, BATCH)
        assert np.isnan(metrics["rho"]) == (k not in student) and np.isfinite(metrics["loss"])
        for part in turns:
            rests = k not in turns[part]
            assert (np.abs(gradient[part]).max() == 0) == rests
            moments = [s.opt_state.inner_states[part] for s in (state, new)]
            kept = [jax.tree.leaves(m) for m in moments]
            same = [np.array_equal(*pair) for pair in zip(*kept, strict=True)]
            large = [np.size(leaf) == np.size(state.params[part]) > 1 for leaf in kept[0]]
            if rests:
                assert all(s for s, big in zip(same, large, strict=True) if big), (part, k)
            if not np.array_equal(new.params[part], state.params[part]):
                moved[part].append(k)
        state = new
    assert moved == turns
    np.testing.assert_array_equal(state.ema.shape, MADE.shape)


@pytest.mark.parametrize("objective", ["dmd", "sid"])
def test_choices_hand_on_no_activations(objective):
    """Compilers for GPUs would gather them from all devices."""

    def wide(p, x, *rest):
        return jnp.tanh(x * p * jnp.ones((1, 50))).mean(1, keepdims=True)

    net = Net(wide, FLOW, predictions.x0, features=lambda p, x, t, inputs: wide(p, x))
    options = dict(objective=objective, gan=0.1, every=3, alternate=True, head=Head())
    loss = losses.distribution_matching(net, **options)
    params, frozen = dict.fromkeys(loss.parts.names, jnp.float32(0.5)), {"teacher": 0.5}
    gradient = jax.grad(lambda p: loss(p, frozen, BATCH, KEYS, jnp.int32(0))[0])
    found = [eqn for eqn in jax.make_jaxpr(gradient)(params).eqns if eqn.primitive.name == "cond"]
    assert len(found) > 4  # forward and backward
    assert max(np.prod(out.aval.shape) for eqn in found for out in eqn.outvars) == len(KEYS)


def first(loss, optimizer):
    params = jax.tree.map(jnp.copy, {name: PARAMS[name] for name in loss.parts.names})
    frozen = loss.freeze(params["student"], DATA)
    ema, opt_state = jnp.copy(params["student"]), optimizer.init(params)
    return TrainState(jnp.int32(0), params, ema, opt_state, jax.random.key(5), frozen)


def test_the_rate_of_a_part_that_rests_falls_with_the_run():
    loss = make(every=5)
    optimizer = optimizer_of(loss, decay="linear", clip_norm=0.0, parts={"critic": {"b1": 0.0}})
    params = {name: jnp.ones(2) for name in loss.parts.names}
    opt_state, sizes = optimizer.init(params), {name: [] for name in params}
    for _ in range(10):
        updates, opt_state = optimizer.update(params, opt_state, params)
        for name in params:
            sizes[name].append(-float(updates[name][0]))
    np.testing.assert_allclose(sizes["critic"], 1e-2 * (1 - np.arange(10) / 10), rtol=1e-3)
    expected = [1e-2, 0, 0, 0, 0, 0.5e-2, 0, 0, 0, 0]
    np.testing.assert_allclose(sizes["student"], expected, rtol=1e-3, atol=1e-9)


def test_parts_are_clipped_apart():
    loss = make()
    optimizer = optimizer_of(loss, parts={"critic": {"clip_norm": 0.0}})
    state = optimizer.init({"student": jnp.zeros(2), "critic": jnp.zeros(2)})
    grads = {"student": jnp.array([3.0, 4.0]), "critic": jnp.array([300.0, 400.0])}
    _, state = optimizer.update(grads, state, grads)
    first = {name: optax.tree.get(one, "mu")[name] for name, one in state.inner_states.items()}
    np.testing.assert_allclose(first["student"], (0.3, 0.4), rtol=1e-5)  # half of the gradient
    np.testing.assert_allclose(first["critic"], (150, 200), rtol=1e-5)


# --- however it is run ----------------------------------------------------------------------------


def test_parts_train_alike_however_the_devices_are_used(monkeypatch):
    """One device, parameters split over two, pmap, and a batch taken in two parts."""
    monkeypatch.setattr(parallel, "SPLIT_FROM", 2)
    loss = make(gan=0.1, times=None, every=2, start=5.0)
    optimizer, mesh, found = optimizer_of(loss), parallel.make_mesh(), {}
    for name in ("plain", "fsdp", "pmap", "accumulated"):

        def make_mode(axis=None, gather=None, parts=1 + (name == "accumulated")):
            return make_step(loss, optimizer, states.constant_ema(0.9), axis, gather, parts)

        mode = name if name in parallel.MODES else "jit"
        state, alone = first(loss, optimizer), name in ("plain", "pmap")
        if name != "pmap" and not alone:
            state = jax.device_put(state, parallel.layout(state, mesh, mode))
        step = jax.jit(make_mode()) if name == "plain" else None
        step = step or parallel.parallelise_step(make_mode, mode, mesh)
        rows, curve = jax.device_get(BATCH), []
        for _ in range(4):
            state, metrics = step(state, rows if alone else parallel.shard(rows, mesh))
            curve.append([float(metrics[m]) for m in ("loss", "loss_critic", "loss_head")])
        if name == "fsdp":
            assert state.params["critic"].addressable_shards[0].data.shape == (1,)
        found[name] = curve, jax.device_get((state.params, state.ema))
    for name in found:
        np.testing.assert_allclose(found[name][0], found["plain"][0], rtol=1e-4, err_msg=name)
        both = (found[name][1], found["plain"][1])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), *both)


# --- several steps --------------------------------------------------------------------------------


def test_a_student_of_several_steps_sees_what_it_will_see_in_drawing():
    """Of pictures N(0, .5^2) that do not depend on the noise; std of what each call is given."""
    seen = {}

    def apply(p, x, model_time, inputs, keys=None):
        seen[round(float(model_time[0]))] = x
        return p * jax.random.normal(jax.random.key(round(float(model_time[0]))), x.shape)

    net = Net(apply, FLOW, predictions.x0)
    times = strides.uniform(FLOW, 4)
    table = solvers.consistency(sigma_min=0.0)(FLOW, times)
    np.testing.assert_allclose(table.level.t, times[:-1])
    expected = {1000: 1, 750: 0.760345, 500: 0.559017, 250: 0.450694}
    keys, data = jax.random.split(jax.random.key(1), 4096), jnp.zeros((4096, 1))
    counts = []
    with jax.disable_jit():
        for step in range(10):
            seen.clear()
            rollout.drawn(net, jnp.float32(0.5), keys, data, {}, times, True, jnp.int32(step))
            counts.append(len(seen))
            for t, x in seen.items():
                np.testing.assert_allclose(np.std(x), expected[t], rtol=0.04)
    assert max(counts) == 4 and min(counts) < 4


@pytest.mark.parametrize("simulated", [True, False])
def test_what_a_second_call_is_given(simulated):
    """Its own picture, of -2, or a real one, of 5, noised to the level that it is asked at."""
    seen = []

    def apply(p, x, model_time, inputs, keys=None):
        seen.append((round(float(model_time[0])), np.asarray(x)))
        return 0 * x + p

    net = Net(apply, FLOW, predictions.x0)
    data, times = jnp.full((4, 1), 5.0), strides.uniform(FLOW, 2)
    noise = [jax.vmap(lambda key, k=k: jax.random.fold_in(key, k))(KEYS[:4]) for k in range(2)]
    noise = [np.asarray(net.noise(keys, data)) for keys in noise]
    with jax.disable_jit():
        for step in range(6):
            rollout.drawn(net, -2.0, KEYS[:4], data, {}, times, simulated, jnp.int32(step))
    assert {t for t, _ in seen} == {1000, 500}
    for t, x in seen:
        wanted = noise[0] if t == 1000 else 0.5 * (-2.0 if simulated else 5.0) + 0.5 * noise[1]
        np.testing.assert_allclose(x, wanted, rtol=1e-5)


def test_a_student_that_jumps_is_asked_for_the_clean_end():
    seen = []

    def apply(p, x, model_time, inputs, keys=None):
        seen.append((round(float(model_time[0])), round(1000 * float(inputs["interval"][0]))))
        return p * x

    net = Net(apply, FLOW, predictions.x0, jumps=True)
    times, data = strides.uniform(FLOW, 3), jnp.zeros((4, 1))
    with jax.disable_jit():
        for step in range(6):
            rollout.drawn(net, jnp.float32(0.5), KEYS[:4], data, {}, times, True, jnp.int32(step))
    assert {t for t, _ in seen} == {1000, 667, 333} and all(t == long for t, long in seen)


@pytest.mark.parametrize("simulated", [True, False])
def test_only_the_last_call_has_a_derivative(simulated):
    """x0 = p x: at the second call d x0 / d p is its input, whose own p is held."""
    net, keys = Net(lambda p, x, *rest: p * x, FLOW, predictions.x0), KEYS[:4]
    data, times = jnp.ones((4, 1)), strides.uniform(FLOW, 2)

    def x0(p, step):
        return rollout.drawn(net, p, keys, data, {}, times, simulated, step)

    for step in range(4):
        value, slope = jax.jvp(lambda p, k=step: x0(p, jnp.int32(k)), (0.7,), (1.0,))
        np.testing.assert_allclose(slope, value / 0.7, rtol=1e-5)


def test_drawing_is_what_the_student_was_trained_for():
    """In one step, from the level that training starts at, on a schedule that keeps variance."""
    cosine = schedules.cosine()
    net = Net(lambda p, x, t, inputs, keys=None: p * x, cosine, predictions.v)
    times = strides.uniform(cosine, 1, lam_min=-np.log(5.0))
    keys = sampling.sample_keys(0, np.arange(4))
    noise = sampling.initial_noise(keys, (3,))
    sample = sampling.make_sampler(net.apply, predictions.v, clip="none")
    table = solvers.consistency(sigma_min=0.0)(cosine, times)
    expected = sample(jnp.float32(0.3), table, cosine.prior_std(times[0]) * noise, keys).x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Net, "noise", lambda self, keys, x: noise)
        found = rollout.drawn(net, jnp.float32(0.3), KEYS[:4], noise, {}, times, True, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- what cannot be -------------------------------------------------------------------------------

BAD = {
    "objective": (dict(objective="dmd2"), "must be one of dmd, sid, got 'dmd2'"),
    "divergence": (dict(divergence="kl"), "unknown divergence 'kl'"),
    "sid's": (dict(objective="sid", divergence="js"), "belongs to objective 'dmd'"),
    "dmd's": (dict(alpha=0.5), "config.loss.alpha=0.5 belongs to objective 'sid'"),
    "no head": (dict(gan_sees="both"), "is of a head, and config.loss.gan=0 has none"),
    "ratio": (dict(every=0), "config.loss.every must be at least 1, got 0"),
    "alone": (dict(alternate=True), "leaves the critic no step with every=1"),
    "gan": (dict(gan=-1.0), "config.loss.gan must be"),
    "steps": (dict(steps=0), "config.loss.steps must be in"),
    "start": (dict(start=0.0), "config.loss.start must be"),
    "classes": (dict(guidance_scale=2.0), "needs a class-conditional network"),
    "dropout": (dict(label_dropout=2), "label_dropout must be in"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name):
    options, message = BAD[name]
    with rejects(ValueError, message):
        make(**options)


def test_a_start_beyond_the_schedule_is_refused():
    edm = Net(generate, schedules.edm(), predictions.x0)
    with rejects(ValueError, "config.loss.start must be at most 80", "got 81"):
        losses.distribution_matching(edm, start=81.0)
    with rejects(ValueError, "need a teacher that says its features"):
        losses.distribution_matching(edm, gan=1.0)
