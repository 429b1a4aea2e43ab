"""A student that answers in one evaluation what its teacher says, guided or in other terms.

The first stage of guided distillation: the student takes the guidance scale g as an input (a
network with `scalars=("guidance",)`) and learns the teacher's guided prediction for every g in a
range; then one evaluation does the work of two, and progressive distillation goes on from there.
Without a range it learns the teacher's plain prediction, which is how a teacher that predicts eps
becomes a student that predicts v.

Sources: Meng et al. 2023 (arXiv:2210.03142), section 3.1 (their w is g - 1); Salimans & Ho 2022
(arXiv:2202.00512), section 4.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ddim_jax.denoisers import Apply
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.losses.loss import (
    Loss,
    Net,
    add_noise,
    check_dropout,
    labels,
    normal_like,
    regress,
    split,
)
from ddim_jax.losses.times import TimeSampler, uniform
from ddim_jax.losses.weightings import TRUNCATED_SNR, Weighting
from ddim_jax.predictions import Parameterization, predict
from ddim_jax.schedules import Schedule

Array = Any


def guided(
    apply: Apply,
    schedule: Schedule,
    parameterization: Parameterization,
    *,
    guidance: tuple[float, float] | None = None,
    times: TimeSampler | None = None,
    weighting: Weighting | None = TRUNCATED_SNR,
    num_classes: int = 0,
    label_dropout: float = 0.0,
    teacher: Net | None = None,
) -> Loss:
    """Regression on the teacher's prediction.

    Args:
        apply: the network, `(params, x, model_time, cond, dropout_key) -> F`.
        schedule: the forward process, of teacher and student.
        parameterization: what the student predicts.
        guidance: (low, high), range of the scale g, which the student takes as `cond["guidance"]`;
            None: no guidance.
        times: keys [B] -> t [B]; default `uniform(schedule)`.
        weighting: by lam; None is the plain mean over F.
        num_classes: of a class-conditional network, whose null label is num_classes; 0 if without.
        label_dropout: probability with which teacher and student see the null label.
        teacher: if another network than the student's, or one that predicts something else.

    Raises:
        ValueError: guidance without classes, or a range that is none.
    """
    check_dropout(label_dropout)
    check_guidance(guidance, num_classes)
    times = times or uniform(schedule)
    student = Net(apply, parameterization)
    teacher = teacher or student

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        t_key, eps_key, cond_key, dropout_key = split(keys, 4)
        level = schedule.level(times(t_key))
        x = add_noise(x0, normal_like(eps_key, x0), level)
        cond = conditions(batch, cond_key, num_classes, label_dropout, guidance)

        def answer(x, level, cond):
            return teacher.output(frozen["teacher"], x, level, cond)

        own = cond
        if guidance is not None:
            own = {"label": cond["label"]}
            null = {"label": jnp.full_like(cond["label"], num_classes)}
            answer = classifier_free(answer, null, Guidance(cond["guidance"]))
        wanted = predict(teacher.parameterization, x, level, answer(x, level, own))
        output = student.output(params, x, level, cond, dropout_key[0])
        lam = schedule.half_log_snr(level.t)
        return regress(
            output, parameterization, level, lam, jax.lax.stop_gradient(wanted), weighting
        )

    return Loss(compute, needs_teacher=True)


def conditions(
    batch: dict, keys: Array, num_classes: int, dropout: float, guidance: tuple | None
) -> dict | None:
    """Labels, some dropped, and a guidance scale uniform in its range, if there is one."""
    label_key, scale_key = split(keys, 2)
    cond = labels(batch, label_key, num_classes, dropout)
    if guidance is None:
        return cond
    low, high = guidance
    scale = low + (high - low) * jax.vmap(jax.random.uniform)(scale_key)
    return (cond or {}) | {"guidance": scale}


def check_guidance(guidance: tuple | None, num_classes: int) -> None:
    """Raises ValueError for a guidance range that cannot be."""
    if guidance is None:
        return
    if not num_classes:
        raise ValueError("loss.guidance needs a class-conditional network")
    if len(guidance) != 2 or not guidance[0] <= guidance[1]:
        raise ValueError(f"loss.guidance must be (low, high), got {guidance}; (1, 5) is usual")
