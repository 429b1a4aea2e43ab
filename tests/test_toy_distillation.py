"""End to end on a mixture in the plane with a small MLP: one step nearly as good as 64.

Distances are energy distances, `2 E|X - Y| - E|X - X'| - E|Y - Y'|`, to fresh data.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import losses, predictions, sampling, schedules, solvers, strides
from ddim_jax.losses import Net, level_pairs
from ddim_jax.predictions import expand
from ddim_jax.training import state as states
from ddim_jax.training.optimizer import make_optimizer
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import make_step

COSINE, FLOW = schedules.cosine(-12.0, 12.0), schedules.rectified_flow()
CENTRES = 0.7 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1], [0, 0]], np.float32)
WIDTH, BATCH = 64, 128
KEYS = sampling.sample_keys(0, np.arange(2000))
NOISE = sampling.initial_noise(KEYS, (2,))


def draw_data(key, count):
    which, where = jax.random.split(key)
    centre = jnp.asarray(CENTRES)[jax.random.randint(which, (count,), 0, len(CENTRES))]
    return centre + 0.08 * jax.random.normal(where, (count, 2))


def init(key):
    sizes = [2 + 17, WIDTH, WIDTH, WIDTH, 2]
    keys = jax.random.split(key, len(sizes))
    return [
        {"w": jax.random.normal(k, (a, b)) / np.sqrt(a), "b": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]


def apply(params, x, model_time, inputs=None, dropout_keys=None):
    angle = expand(model_time / 1000, x) * (np.pi * 2.0 ** jnp.arange(-2, 6)).reshape(1, -1)
    h = jnp.concatenate([x, jnp.sin(angle), jnp.cos(angle), 0 * x[:, :1] + 1], axis=-1)
    for k, layer in enumerate(params):
        h = h @ layer["w"] + layer["b"].reshape(1, -1)
        h = jax.nn.swish(h) if k < len(params) - 1 else h
    return h


FAST = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}


@functools.partial(jax.jit, static_argnames=("loss", "steps", "rate"), compiler_options=FAST)
def train(loss, params, teacher, steps, rate=2e-3, coupled=None):
    """Parameters after so many steps; coupled: images and noise keys to draw rows of."""
    optimizer = make_optimizer(learning_rate=rate, decay_steps=steps)
    step = make_step(loss, optimizer, states.constant_ema(0.99))
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731
    frozen = loss.freeze(params, teacher)
    state = TrainState(
        jnp.int32(0), params, copy(params), optimizer.init(params), jax.random.key(1), frozen
    )

    def body(state, key):
        if coupled is None:
            batch = {"image": draw_data(key, BATCH)}
        else:
            rows = jax.random.randint(key, (BATCH,), 0, len(coupled["image"]))
            batch = jax.tree.map(lambda leaf: leaf[rows], coupled)
        state, _ = step(state, batch)
        return state, None

    state, _ = jax.lax.scan(body, state, jax.random.split(jax.random.key(2), steps))
    return state.ema


@functools.partial(jax.jit, static_argnames=("parameterization",))
def run(params, table, x, keys, parameterization):
    sample = sampling.make_sampler(apply, parameterization, clip="none")
    return sample(params, table, x, keys).x


def draw(params, steps, *, schedule=COSINE, parameterization=predictions.v, x=NOISE, keys=KEYS):
    table = solvers.ddim()(schedule, strides.uniform(schedule, steps))
    return run(params, table, x, keys, parameterization)


def distance(x):
    def apart(a, b):
        a, b = np.asarray(a)[:, None], np.asarray(b)[None]
        return np.sqrt(((a - b) ** 2).sum(-1)).mean()

    data = draw_data(jax.random.key(99), 2000)
    return 2 * apart(x, data) - apart(x, x) - apart(data, data)


@pytest.fixture(scope="module")
def teacher():
    loss = losses.diffusion(Net(apply, COSINE, predictions.v))
    return train(loss, init(jax.random.key(0)), None, 4000)


@pytest.fixture(scope="module")
def reference(teacher):
    """The teacher's distance at 64 steps; in one step it is far worse."""
    found = distance(draw(teacher, 64))
    assert distance(draw(teacher, 1)) > 10 * found
    return found


@pytest.mark.slow
def test_progressive_distillation_from_32_steps_to_1(teacher, reference):
    student = teacher
    for steps in (16, 8, 4, 2, 1):
        loss = losses.progressive(Net(apply, COSINE, predictions.v), steps=steps)
        student = train(loss, student, student, 400 if steps > 2 else 800, 1e-3)
    assert distance(draw(student, 1)) < 2 * reference, reference


@pytest.mark.slow
def test_consistency_distillation_to_1_step(teacher, reference):
    grid = level_pairs.grid(level_pairs.constant(40), sigma_min=0.0, sigma_max=200.0)
    loss = losses.consistency(Net(apply, COSINE, predictions.v), pairs=grid, distil=True)
    student = train(loss, teacher, teacher, 4000, 1e-3)
    assert distance(draw(student, 1)) < 2 * reference, reference


@pytest.mark.slow
def test_reflow_and_distillation_to_1_step():
    options = dict(schedule=FLOW, parameterization=predictions.flow)
    loss = losses.diffusion(Net(apply, FLOW, predictions.flow))
    first = train(loss, init(jax.random.key(0)), None, 4000)
    keys = sampling.sample_keys(10**6, np.arange(8000))
    noise = sampling.initial_noise(keys, (2,))
    images = draw(first, 64, x=noise, keys=keys, **options)
    coupled = {"image": images, "noise_key": jax.random.key_data(keys)}
    second = train(loss, first, None, 2000, 1e-3, coupled)
    times = losses.TIMES["nodes"](FLOW, 1)
    loss = losses.diffusion(Net(apply, FLOW, predictions.flow), times=times)
    one = train(loss, second, None, 2000, 1e-3, coupled)
    reference = distance(draw(first, 64, **options))
    bent = distance(draw(first, 1, **options))
    straight = distance(draw(second, 1, **options))
    assert straight < 0.2 * bent
    assert distance(draw(one, 1, **options)) < 2 * reference, reference
