"""Progressive distillation: one step of the student does what two DDIM steps of the teacher do.

On the stride of N student steps u -> s with the teacher's extra point m between, from x at u:

    x1, e1 = teacher(x, u)     x' = alpha_m x1 + sigma_m e1     x2, e2 = teacher(x', m)

The x0 with which one DDIM step takes x at u to the teacher's point at s is a weighted mean of the
teacher's two, with r = alpha / sigma:

    x_target = w x1 + (1 - w) x2,       w = (r_m - r_u) / (r_s - r_u)

It equals the paper's `(x'' - (sigma_s / sigma_u) x) / (alpha_s - (sigma_s / sigma_u) alpha_u)`
without its cancellation; at the clean end r_s is infinite and w = 0.

A method is a chain of such stages, each from the network of the one before: 16 steps, 8, 4, 2, 1.

Source: Salimans & Ho 2022 (arXiv:2202.00512), algorithm 2 and appendix G.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.losses.loss import (
    Loss,
    Net,
    add_noise,
    check_dropout,
    check_guidance,
    check_known,
    conditions_with_scale,
    regress,
    split,
    with_known,
)
from ddim_jax.losses.weightings import TRUNCATED_SNR, Weighting
from ddim_jax.names import check_range
from ddim_jax.predictions import Parameterization, Prediction, expand, split_known
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.strides import uniform as uniform_stride

MAX_AMPLIFICATION = 20.0
"""Greatest factor by which an error in F may grow in x0 at the student's first step."""


def progressive(
    net: Net,
    *,
    steps: int,
    stride: Callable[[Schedule, int], np.ndarray] = uniform_stride,
    weighting: Weighting | None = TRUNCATED_SNR,
    label_dropout: float = 0.0,
    guidance: tuple[float, float] | None = None,
    known: float = 0.0,
    teacher: Net | None = None,
) -> Loss:
    """One halving, from a teacher that takes `2 * steps` steps.

    Args:
        net: the student, on the schedule of the teacher.
        steps: N of the student.
        stride: of which the student's N steps are every other point of 2 N.
        weighting: by lam; None is the plain mean over F.
        label_dropout: probability that the inputs of a row become null, for both networks.
        guidance: range of the scale that both networks take as an input; None for none.
        known: of clips, probability that some frames are known to all networks.
        teacher: if another network than the student's, or one that predicts something else.

    Raises:
        ValueError: steps below 1; a stride that does not halve; a student whose output hardly
            determines x0 in its first step (eps); label_dropout or guidance out of range.
    """
    check_dropout(label_dropout)
    check_guidance(guidance, net.null, teacher)
    check_known(known)
    levels, weight = _grid(net.schedule, steps, stride)
    _check_first_step(net.parameterization, levels)
    teacher = teacher or net

    def teach(params, x, index, start, middle, inputs):
        """The x0 and eps whose one DDIM step ends where two steps of the teacher end."""
        first = teacher.predict(params, x, start, inputs)
        between = add_noise(first.x0, first.eps, middle)
        second = teacher.predict(params, between, middle, inputs)
        w = expand(jnp.asarray(weight, jnp.float32)[index], x)
        x0 = w * first.x0 + (1 - w) * second.x0
        start, _ = split_known(start)
        eps = (x - expand(start.alpha, x) * x0) / expand(start.sigma, x)
        return Prediction(x0, eps)

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        index_key, eps_key, inputs_key, dropout_keys, known_key = split(keys, 5)
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, steps))(index_key)
        start, middle = (
            with_known(_rows(levels, 2 * index + k), net.schedule, known_key, x0.shape[1], known)
            for k in range(2)
        )
        x = add_noise(x0, net.noise(eps_key, x0), start)
        inputs = conditions_with_scale(batch, inputs_key, net.null, label_dropout, guidance)
        wanted = jax.lax.stop_gradient(teach(frozen["teacher"], x, index, start, middle, inputs))
        output = net.output(params, x, start, inputs, dropout_keys)
        lam = jnp.log(start.alpha) - jnp.log(start.sigma)
        return regress(output, net.parameterization, start, lam, wanted, weighting)

    return Loss(compute, needs_teacher=True)


def _rows(levels: NoiseLevel, index) -> NoiseLevel:
    """Levels [B] at places [B] of levels [N], in float32."""
    return NoiseLevel(*(jnp.asarray(field, jnp.float32)[index] for field in levels))


def _grid(schedule: Schedule, steps: int, stride: Callable) -> tuple[NoiseLevel, np.ndarray]:
    """The teacher's levels [2 N + 1] and the student's w [N], float64."""
    hint = "it counts the student's steps"
    steps = check_range("config.loss.steps", steps, "[1, 10000]", hint, whole=True)
    times = stride(schedule, 2 * steps)
    if not np.allclose(times[::2], stride(schedule, steps), rtol=0, atol=1e-9):
        raise ValueError(
            f"{steps} steps of this stride are not every other one of {2 * steps} on the "
            f"{schedule.name} schedule, so that halving has no meaning; use the uniform stride"
        )
    level = schedule.level(times)
    # (r_m - r_u) / (r_s - r_u), times sigma_s so that it is finite at the clean end
    ratio = level.alpha[:-1] / level.sigma[:-1]
    u, m = ratio[0::2], ratio[1::2]
    alpha, sigma = level.alpha[2::2], level.sigma[2::2]
    return level, sigma * (m - u) / (alpha - sigma * u)


def _check_first_step(parameterization: Parameterization, levels: NoiseLevel) -> None:
    """Raises ValueError where an error in F grows too much in x0 at the first level."""
    level = NoiseLevel(*(f[0] for f in levels))
    row = parameterization(level)
    det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
    amplification = float(abs(level.sigma * row.output_scale / det)) if det else np.inf
    if amplification > MAX_AMPLIFICATION:
        raise ValueError(
            "the student's output says next to nothing about x0 in its first step: an error "
            f"grows {amplification:.0f}-fold. Use prediction 'v', 'x0' or 'flow'; a teacher that "
            "predicts eps is converted first by a stage with config.loss.name='guided'"
        )
