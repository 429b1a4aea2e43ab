"""Progressive distillation: one step of the student does what two DDIM steps of the teacher do.

On the stride of N student steps u -> s with the teacher's extra point m between, from x at u:

    x1, e1 = teacher(x, u)     x' = alpha_m x1 + sigma_m e1     x2, e2 = teacher(x', m)

The clean image that takes DDIM from x at u to the teacher's point at s is a mean of the teacher's
two, with r = alpha / sigma (the same as `(x'' - (sigma_s / sigma_u) x) / (alpha_s - ...)` of the
paper, without its cancellation; at the clean end r_s is infinite and x2 alone is left):

    x_target = w x1 + (1 - w) x2,       w = (r_m - r_u) / (r_s - r_u)

A method is a chain of such stages, each from the network of the one before: 16 steps, 8, 4, 2, 1.

Source: Salimans & Ho 2022 (arXiv:2202.00512), algorithm 2 and appendix G.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.denoisers import Apply
from ddim_jax.losses.guided import conditions
from ddim_jax.losses.loss import Loss, Net, add_noise, normal_like, regress, split
from ddim_jax.losses.weightings import TRUNCATED_SNR, Weighting
from ddim_jax.predictions import Parameterization, Prediction, expand
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.strides import uniform as uniform_stride

MOST_AMPLIFICATION = 20.0
"""How much of an error in F may reach x0 at the student's first step."""


def progressive(
    apply: Apply,
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    steps: int,
    stride: Callable[[Schedule, int], np.ndarray] = uniform_stride,
    weighting: Weighting | None = TRUNCATED_SNR,
    num_classes: int = 0,
    label_dropout: float = 0.0,
    guidance: tuple[float, float] | None = None,
    teacher: Net | None = None,
) -> Loss:
    """One halving, from a teacher that takes `2 * steps` steps.

    Args:
        apply: the network, `(params, x, model_time, cond, dropout_key) -> F`.
        schedule: the forward process, of teacher and student.
        parameterization: what the student predicts.
        steps: N of the student.
        stride: of which the student's N steps are every other point of 2 N.
        weighting: by lam; None is the plain mean over F.
        num_classes: of a class-conditional network, whose null label is num_classes; 0 if without.
        label_dropout: probability with which teacher and student see the null label.
        guidance: range of the scale that both networks take as an input; None for none.
        teacher: if another network than the student's, or one that predicts something else.

    Raises:
        ValueError: steps below 1; a stride that does not halve; a student that cannot say what x0
            is in its first step (eps).
    """
    levels, weight = _grid(schedule, steps, stride)
    _check_first_step(parameterization, levels)
    student = Net(apply, parameterization)
    teacher = teacher or student

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        index_key, eps_key, cond_key, dropout_key = split(keys, 4)
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, steps))(index_key)
        start, middle = (
            NoiseLevel(*(jnp.asarray(f, jnp.float32)[2 * index + k] for f in levels))
            for k in range(2)
        )
        x = add_noise(x0, normal_like(eps_key, x0), start)
        cond = conditions(batch, cond_key, num_classes, label_dropout, guidance)

        first = teacher.predict(frozen["teacher"], x, start, cond)
        between = add_noise(first.x0, first.eps, middle)
        second = teacher.predict(frozen["teacher"], between, middle, cond)
        share = expand(jnp.asarray(weight, jnp.float32)[index], x)
        clean = share * first.x0 + (1 - share) * second.x0
        noise = (x - expand(start.alpha, x) * clean) / expand(start.sigma, x)
        wanted = jax.lax.stop_gradient(Prediction(clean, noise))
        output = student.output(params, x, start, cond, dropout_key[0])
        lam = jnp.log(start.alpha) - jnp.log(start.sigma)
        return regress(output, parameterization, start, lam, wanted, weighting)

    return Loss(compute, needs_teacher=True)


def _grid(schedule: Schedule, steps: int, stride: Callable) -> tuple[NoiseLevel, np.ndarray]:
    """The teacher's levels [2 N + 1] and the student's w [N], float64."""
    if steps < 1:
        raise ValueError(f"loss.steps must be at least 1, got {steps}; it is the student's steps")
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
    level = NoiseLevel(*(f[0] for f in levels))
    row = parameterization(level)
    det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
    amplification = float(abs(level.sigma * row.output_scale / det)) if det else np.inf
    if amplification > MOST_AMPLIFICATION:
        raise ValueError(
            "what this student predicts says next to nothing about x0 in its first step: an error "
            f"grows {amplification:.0f}-fold. Use prediction 'v', 'x0' or 'flow'; a teacher that "
            "predicts eps is converted first by a stage with loss 'guided'"
        )
