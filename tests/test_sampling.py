"""The jitted loop against the numpy reference; one program for many tables; keys; devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddim_jax import predictions, sampling, schedules, solvers, strides
from ddim_jax.guidance import Guidance
from ddim_jax.keys import Purpose, purpose_keys
from ddim_jax.sampling import make_sampler, run, sample_keys
from ddim_jax.solvers import SOLVERS, State
from tests.oracles import Mixture

pytestmark = pytest.mark.usefixtures("strict_dtypes")

VP = schedules.vp_linear()
SHAPE = (4, 4, 2)
PARAMS = {"gain": jnp.float32(0.7)}


def apply(params, x, model_time, inputs):
    """A small v network without meaning, that mixes pixels and uses all its inputs."""
    time = (model_time / 1000).reshape(-1, 1, 1, 1)
    out = jnp.tanh(params["gain"] * x + time) - 0.3 * jnp.roll(x, 1, axis=1)
    return out if inputs is None else out + inputs.reshape(-1, 1, 1, 1)


def keys_of(batch):
    return sample_keys(0, jnp.arange(batch))


def start(batch=3):
    return sampling.initial_noise(keys_of(batch), SHAPE)


def table_of(name="ddim", steps=6, schedule=VP, **options):
    info = SOLVERS[name]
    return info.make(**options)(schedule, strides.uniform(schedule, steps, lam_min=info.lam_min))


def loop_noise(keys, rows):
    """[1 + rows, B, ...]: normal(fold_in(fold_in(key of sample, SOLVER_NOISE), 0 .. rows))."""

    def draw(key, row):
        key = jax.random.fold_in(jax.random.fold_in(key, int(Purpose.SOLVER_NOISE)), row)
        return jax.random.normal(key, SHAPE)

    per_sample = jax.vmap(draw, in_axes=(0, None))
    return np.asarray(jax.vmap(per_sample, in_axes=(None, 0))(keys, jnp.arange(rows + 1)))


@pytest.fixture(scope="module")
def sampler():
    return make_sampler(apply, predictions.v, clip="none")


@pytest.fixture(scope="module")
def padded_sampler():
    """For tables padded to one shape: one program for every solver and schedule."""
    return make_sampler(apply, predictions.v, clip="none")


@pytest.fixture(scope="module")
def mixture_run():
    """The loop on the mixture, for tables padded to one shape: compiled once for many tests."""
    call = jax.jit(lambda table, state, keys: run(Mixture(), table, state, keys))

    return lambda table, state: call(table.pad(48, 6), state, keys_of(3))


def host(x):
    return np.asarray(x, np.float64)


# --- the loop is the reference --------------------------------------------------------------------


def network_on_the_host(x, level):
    """`apply` and its v prediction in float64 numpy."""
    F = np.tanh(0.7 * x + level.model_time / 1000) - 0.3 * np.roll(x, 1, axis=1)
    n2 = level.alpha**2 + level.sigma**2
    return (
        (level.alpha * x - level.sigma * F) / n2,
        (level.sigma * x + level.alpha * F) / n2,
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", [VP, schedules.edm()], ids=lambda s: s.name)
def test_scan_agrees_with_numpy(name, schedule, padded_sampler):
    """Every solver, on a network, with the loop's own noise; all in one program."""
    table, x, keys = table_of(name, 12, schedule), start(), keys_of(3)
    got = padded_sampler(PARAMS, table.pad(48, 6), x, keys).x
    noise = loop_noise(keys, table.nfe)
    exact = table.run_numpy(network_on_the_host, host(x), noise[1:], start_noise=noise[0])
    np.testing.assert_allclose(got, exact, atol=1e-4 * np.abs(exact).max())
    assert padded_sampler._cache_size() == 1


def test_the_whole_chain_of_ddim_with_eta_1_is_ddpm_in_float32():
    schedule = schedules.ddpm_linear()
    times = strides.uniform(schedule, 1000)
    call = jax.jit(lambda table, x: run(Mixture(), table, x, keys_of(3)).x)
    ends = [
        call(solver(schedule, times), start()) for solver in (solvers.ddim(1.0), solvers.ddpm())
    ]
    np.testing.assert_allclose(*ends, atol=1e-5)
    assert call._cache_size() == 1


def test_start_scales_and_noises_with_key_zero(mixture_run):
    table, x = table_of()._replace(start=np.array([0.5, 0.25])), start()
    keys = purpose_keys(keys_of(3), Purpose.SOLVER_NOISE, 0)
    z = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    exact = table.run_numpy(Mixture(), host(x), start_noise=host(z))
    np.testing.assert_allclose(mixture_run(table, State(x, x)).x, exact, atol=5e-6)


def test_state_in_and_out(mixture_run):
    """Both points go in and come out; Heun's second row reads `base`."""
    table = table_of("heun_flow", 4)
    points = State(start(), 0.5 * start())
    result = mixture_run(table, points)
    exact = table.run_numpy_state(Mixture(), State(*map(host, points)))
    np.testing.assert_allclose(result.state.evaluate, exact.evaluate, atol=5e-6)
    np.testing.assert_allclose(result.state.base, exact.base, atol=5e-6)
    np.testing.assert_array_equal(result.x, result.state.evaluate)


def test_padded_rows_do_nothing(sampler):
    table, x, keys = table_of("ddpm"), start(), keys_of(3)
    plain, padded = (sampler(PARAMS, t, x, keys).x for t in (table, table.pad(9, 4)))
    np.testing.assert_allclose(plain, padded, atol=1e-6)


# --- one program ----------------------------------------------------------------------------------


def test_numbers_do_not_recompile_and_the_network_is_traced_once():
    traced = []

    def counted(params, x, model_time, inputs):
        traced.append(x.shape)
        return apply(params, x, model_time, inputs)

    call = make_sampler(counted, predictions.v, null_inputs=jnp.zeros_like, clip="none")
    inputs = jnp.float32([1, 2, 3])

    def sample(table, scale, interval=(0.0, np.inf)):
        guidance = Guidance(jnp.full(3, scale, jnp.float32), interval)
        return call(PARAMS, table.pad(11, 2), start(), keys_of(3), inputs, guidance).x

    ends = [
        sample(table_of("heun_flow", 6), 2.0),
        sample(table_of("heun_angle", 6), 2.0),
        sample(table_of("heun_flow", 5), 3.0),
        sample(table_of("ddim", 11), 3.0),
        sample(table_of("ddim", 11, eta=0.3), 3.0),
        sample(table_of("ddim", 7, eta=1.0), 3.0, (0.1, 2.0)),
        sample(solvers.ddpm("large")(VP, strides.log_snr(VP, 9)), 3.0),
        sample(table_of("ddim", 11, schedules.edm()), 1.0),
    ]
    assert call._cache_size() == 1
    assert traced == [(6, *SHAPE)]
    for i, end in enumerate(ends):
        assert all(not np.allclose(end, other, atol=1e-4) for other in ends[:i])


def test_the_program_does_not_grow_with_the_rows(sampler):
    def instructions(table):
        lowered = sampler.lower(PARAMS, table, start(), keys_of(3))
        return lowered.compile().as_text().count(" = ")

    ten, thousand = instructions(table_of("ddim", 10)), instructions(table_of("ddim", 1000))
    assert ten == thousand


def test_guidance_none_runs_the_network_on_the_batch_alone():
    sizes = []

    def counted(params, x, model_time, inputs):
        sizes.append(len(x))
        return apply(params, x, model_time, inputs)

    inputs = jnp.float32([1, 2, 3])
    call = make_sampler(counted, predictions.v, null_inputs=jnp.zeros_like, clip="none")
    for guidance in (None, Guidance(1.0)):
        jax.eval_shape(call, PARAMS, table_of(), start(), keys_of(3), inputs, guidance)
    assert sizes == [3, 6]


# --- keys, batches, devices -----------------------------------------------------------------------


def test_deterministic_tables_ignore_the_keys(sampler):
    other = sample_keys(1, jnp.arange(3))
    ends = {
        eta: [
            sampler(PARAMS, table_of("ddim", eta=eta), start(), keys).x
            for keys in (keys_of(3), other)
        ]
        for eta in (0.0, 1.0)
    }
    np.testing.assert_array_equal(*ends[0.0])
    assert not np.allclose(*ends[1.0], atol=1e-2)


def test_deterministic_tables_draw_nothing(monkeypatch):
    """Every draw sits in a branch of a cond: poisoned with NaN, it shows only where it is taken."""
    monkeypatch.setattr(
        sampling, "normal", lambda keys, shape, dtype: jnp.full((len(keys), *shape), jnp.nan)
    )
    call = jax.jit(lambda table: run(Mixture(), table, jnp.ones((3, *SHAPE)), keys_of(3)))
    assert jnp.all(jnp.isfinite(call(table_of("ddim")).x))
    assert jnp.all(jnp.isnan(call(table_of("ddpm")).x))


def test_streams_are_separate():
    keys = keys_of(2)
    draws = [
        jax.random.normal(key, (1000,))
        for purpose in Purpose
        for row in (None, 0, 1)
        for key in purpose_keys(keys, purpose, row)
    ]
    correlation = np.corrcoef(np.asarray(draws)) - np.eye(len(draws))
    assert np.max(np.abs(correlation)) < 0.2


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun_angle"])
def test_a_sample_is_the_same_in_any_batch_and_on_any_device(name, sampler):
    table, x, keys = table_of(name).pad(11, 2), start(8), keys_of(8)
    together = np.asarray(sampler(PARAMS, table, x, keys).x)
    alone = np.asarray(sampler(PARAMS, table, start(1), keys_of(1)).x)
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    last = sample_keys(0, jnp.array([7]))
    alone = sampler(PARAMS, table, sampling.initial_noise(last, SHAPE), last).x
    np.testing.assert_allclose(together[7:], alone, atol=1e-5)
    assert len(jax.devices()) >= 2, "conftest.py asks for two host devices"
    halves = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data"))
    sharded = sampler(PARAMS, table, *jax.device_put((x, keys), halves)).x
    assert len(sharded.sharding.device_set) == 2
    np.testing.assert_allclose(together, sharded, atol=1e-5)


# --- hooks and results ----------------------------------------------------------------------------


def test_collect_holds_every_row():
    table, x = table_of("ddim", 5), start()
    result = run(Mixture(), table, x, keys_of(3), collect=("x", "x0"))
    assert set(result.collected) == {"x", "x0"}
    assert all(values.shape == (5, 3, *SHAPE) for values in result.collected.values())
    np.testing.assert_array_equal(result.collected["x"][-1], result.x)
    points = [x, *result.collected["x"]]
    for k in range(5):
        level = schedules.NoiseLevel(*(f[k] for f in table.level))
        exact = Mixture()(host(points[k]), level).x0
        np.testing.assert_allclose(result.collected["x0"][k], exact, atol=5e-6)


def test_constraint_acts_before_every_evaluation_and_at_the_end():
    """Known pixels held at alpha * known: with each row's level and key, and once at `end`."""
    table, known = table_of("heun_flow", 3), jnp.float32(0.9)
    seen, held = [], []

    def constrain(x, level, keys):
        note = lambda t, key: seen.append((float(t), tuple(key)))  # noqa: E731
        jax.debug.callback(note, level.t, jax.random.key_data(keys[0]), ordered=True)
        return x.at[:, :2].set(level.alpha * known)

    def denoise(x, level):
        jax.debug.callback(held.append, jnp.all(x[:, :2] == level.alpha * known))
        return Mixture()(x, level)

    result = run(denoise, table, start(), keys_of(3), constrain=constrain)
    jax.effects_barrier()
    times, keys = zip(*seen, strict=True)
    np.testing.assert_allclose(times, [*table.level.t, table.end.t], rtol=1e-6)
    rows = [*range(1, table.nfe + 1), 0]
    expected = [purpose_keys(keys_of(1), Purpose.CONSTRAINT, row)[0] for row in rows]
    np.testing.assert_array_equal(keys, [jax.random.key_data(key) for key in expected])
    assert len(held) == table.nfe and all(held)
    np.testing.assert_array_equal(result.x[:, :2], known)
    np.testing.assert_array_equal(result.x, result.state.evaluate)


def test_progress_counts_the_rows():
    seen = []
    call = make_sampler(apply, predictions.v, progress=lambda row: seen.append(int(row)))
    call(PARAMS, table_of("ddim", 5), start(), keys_of(3))
    jax.effects_barrier()
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("clip", "options", "largest"),
    [("static", {"low": -0.2, "high": 0.2}, 0.2), ("dynamic", {}, 1.0)],
)
def test_clips_bound_the_result(clip, options, largest):
    call = make_sampler(apply, predictions.v, clip=clip, clip_options=options)
    bounded = call(PARAMS, table_of("ddim", 3), 3 * start(), keys_of(3)).x
    assert jnp.max(jnp.abs(bounded)) == pytest.approx(largest, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: run(Mixture(), table_of(), start(), keys_of(3), collect=("eps",)),
            r"collect takes 'x' and 'x0', got \['eps'\]",
        ),
        (lambda: make_sampler(apply, predictions.v, clip="soft"), "unknown clip 'soft'; it is one"),
        (
            lambda: make_sampler(apply, predictions.v)(
                PARAMS, table_of(), start(), keys_of(3), jnp.zeros(3), Guidance(2.0)
            ),
            "guidance needs null_inputs",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
