"""What a student of K calls draws while it is trained, at the times that sampling asks it at.

At the first time it is given pure noise of that level. At the k-th it is given its own k - 1 calls
before, noised again to that level ("backward simulation"), as in sampling; or real data, noised. A
network that is told how far to jump, such as a flow map, is asked for jumps to the clean end.

Source: Yin et al. 2024 (arXiv:2405.14867), sections 4.4 and 4.5.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.losses.loss import Net, add_noise
from ddim_jax.names import check_range
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.strides import uniform as uniform_stride

Array = Any
held = jax.lax.stop_gradient


def nodes(schedule: Schedule, steps: int, start: float | None) -> np.ndarray:
    """The times of a student of K steps and the clean end, float64 [K + 1].

    Args:
        schedule: the student's.
        steps: K.
        start: sigma / alpha of the first; None: the schedule's noisy end.

    Raises:
        ValueError: no steps, or a start beyond the schedule's.
    """
    steps = check_range("config.loss.steps", steps, "[1, 1000]", "1 to 4 are usual", whole=True)
    if start is None:
        return uniform_stride(schedule, steps)
    check_range("config.loss.start", start, "(0, inf)", "2.5 is SiD's, 80 is DMD2's")
    lam, most = -np.log(start), -schedule.half_log_snr(schedule.t_span[0])
    if lam < -most - 1e-6:
        raise ValueError(
            f"config.loss.start must be at most {np.exp(most):.5g}, sigma / alpha at the noisy end "
            f"of {schedule.name}, got {start}; None starts there"
        )
    return uniform_stride(schedule, steps, lam_min=lam)


def drawn(
    net: Net, params: Any, keys: Array, data: Array, inputs: dict, nodes: np.ndarray,
    simulated: bool, step: Array, dropout_keys: Array | None = None,
) -> Array:  # fmt: skip
    """What the student draws, [B, ...]; of K calls up to the k-th, k the same for a whole batch.

    Args:
        net: the student.
        params: its parameters; the last call alone has a derivative by them.
        keys: [B].
        data: [B, ...] real samples.
        inputs: of the network.
        nodes: [K + 1] times.
        simulated: the calls before are the student's own; else it is given noised data.
        step: updates done, which k is drawn by.
        dropout_keys: [B] of the last call; None for no dropout.
    """
    levels = [jnp.asarray(field, jnp.float32) for field in net.schedule.level(nodes[:-1])]

    def at(k):
        return NoiseLevel(*(jnp.full(len(data), field[k]) for field in levels))

    def told(k):
        return inputs | ({"interval": at(k).t - net.schedule.t_span[1]} if net.jumps else {})

    def noise(k):
        return net.noise(jax.vmap(lambda key: jax.random.fold_in(key, k))(keys), data)

    def again(k, x):
        x0 = net.predict(held(params), x, at(k), told(k)).x0
        return add_noise(x0, noise(k + 1), at(k + 1))

    x, k, calls = float(net.schedule.prior_std(nodes[0])) * noise(0), 0, len(nodes) - 1
    if calls > 1:
        k = jax.random.randint(jax.random.fold_in(jax.random.key(0), step), (), 0, calls)
        if simulated:
            x = jax.lax.fori_loop(0, k, again, x)
        else:
            x = jnp.where(k > 0, add_noise(data, noise(k), at(k)), x)
    return net.predict(params, x, at(k), told(k), dropout_keys).x0
