"""Eight Gaussians on a ring in the plane: exact velocities, a small network, energy distances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import schedules
from ddim_jax.training import state as states
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import make_step

FLOW = schedules.rectified_flow()
ANGLES = 2 * np.pi * jnp.arange(8) / 8
CENTRES, STD = jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], 1), 0.15
WIDTH, COUNT = 128, 4096


def draw_data(key, count):
    which, where = jax.random.split(key)
    centre = CENTRES[jax.random.randint(which, (count,), 0, 8)]
    return centre + STD * jax.random.normal(where, (count, 2))


def velocity(x, t):
    """The exact E[eps - x0 | x] at x [B, 2], t [B]."""
    a, t = (1 - t)[:, None], t[:, None]
    variance = (a * STD) ** 2 + t**2
    d = x[:, None] - a[..., None] * CENTRES[None]
    p = jax.nn.softmax(-jnp.sum(d**2, 2) / (2 * variance), axis=1)
    inner = jnp.sum(p[..., None] * d, 1) * (t - a * STD**2) / variance
    return inner - p @ CENTRES


def init(key, inputs):
    """Of a network of that many inputs; the last layer is 0."""
    sizes = [inputs, WIDTH, WIDTH, WIDTH, 2]
    keys = jax.random.split(key, len(sizes))
    return [
        {"w": jax.random.normal(k, (a, b)) / np.sqrt(a) * (b > 2), "b": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]


def network(params, x, *times):
    """Features of x [B, 2] and of numbers [B] each, slow in them."""
    waves = [wave(k * t) for t in times for k in (1, 2, 4) for wave in (jnp.sin, jnp.cos)]
    h = jnp.concatenate([x, jnp.stack([*times, *waves], 1)], axis=1)
    for k, layer in enumerate(params):
        h = h @ layer["w"] + layer["b"][None]
        h = jax.nn.silu(h) if k < len(params) - 1 else h
    return h


FAST = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}


@functools.partial(
    jax.jit, static_argnames=("loss", "optimizer", "steps", "rows", "decay"), compiler_options=FAST
)
def train(loss, optimizer, params, frozen, steps, rows, seed=1, decay=0.99):
    """The student's moving average after so many steps of so many rows, and metrics [steps]."""
    step = make_step(loss, optimizer, states.constant_ema(decay, warmup=False))
    ema = jax.tree.map(jnp.copy, loss.student(params))
    opt_state = optimizer.init(params)
    state = TrainState(jnp.int32(0), params, ema, opt_state, jax.random.key(seed), frozen)

    def body(state, key):
        return step(state, {"image": draw_data(key, rows)})

    state, metrics = jax.lax.scan(body, state, jax.random.split(jax.random.key(seed + 1), steps))
    return state.ema, metrics


@functools.partial(jax.jit, compiler_options=FAST)
def energy(x, y):
    """1000 times the unbiased energy distance of two sets."""

    def apart(a, b, own):
        total = jnp.sum(jnp.sqrt(jnp.sum((a[:, None] - b[None]) ** 2, 2) + 1e-12))
        return total / (len(a) * (len(b) - own))

    return 1000 * (2 * apart(x, y, 0) - apart(x, x, 1) - apart(y, y, 1))


def modes(x):
    """How many of the eight have more than 4% of the samples."""
    nearest = np.argmin(((np.asarray(x)[:, None] - np.asarray(CENTRES)) ** 2).sum(-1), 1)
    return int((np.bincount(nearest, minlength=8) > 0.04 * len(nearest)).sum())
