"""A student that predicts in one evaluation what its teacher predicts, guided or in other terms.

The first stage of guided distillation: the student takes the guidance scale g as an input (a
network with `scalars=("guidance",)`) and learns the teacher's guided prediction for every g in a
range; then one evaluation does the work of two, and progressive distillation goes on from there.
Without a range it learns the teacher's plain prediction, which is how a teacher that predicts eps
becomes a student that predicts v.

Sources: Meng et al. 2023 (arXiv:2210.03142), section 3.1 (their w is g - 1); Salimans & Ho 2022
(arXiv:2202.00512), section 4.
"""

import jax

from ddim_jax.losses.guides import classifier_free
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
from ddim_jax.losses.time_samplers import TimeSampler, uniform
from ddim_jax.losses.weightings import TRUNCATED_SNR, Weighting


def guided(
    net: Net,
    *,
    guidance: tuple[float, float] | None = None,
    times: TimeSampler | None = None,
    weighting: Weighting | None = TRUNCATED_SNR,
    label_dropout: float = 0.0,
    known: float = 0.0,
    teacher: Net | None = None,
) -> Loss:
    """Regression on the teacher's prediction.

    Args:
        net: the student, on the schedule of the teacher.
        guidance: (low, high), range of the scale g, which the student takes as
            `inputs["guidance"]`; None: no guidance.
        times: keys [B] -> t [B]; default `uniform(schedule)`.
        weighting: by lam; None is the plain mean over F.
        label_dropout: probability that the inputs of a row become null, for both networks.
        known: of clips, probability that some frames are known to all networks.
        teacher: if another network than the student's, or one that predicts something else. It is
            guided by the scale, unless it is guided by itself, see `guides`.

    Raises:
        ValueError: label_dropout outside [0, 1], guidance without classes, or a range that is none.
    """
    check_dropout(label_dropout)
    check_guidance(guidance, net.null, teacher)
    check_known(known)
    times = times or uniform(net.schedule)
    teacher = teacher or net
    if guidance is not None and teacher.guided is None:
        teacher = classifier_free(teacher)

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        t_key, eps_key, inputs_key, dropout_keys, known_key = split(keys, 5)
        level = net.schedule.level(times(t_key))
        level = with_known(level, net.schedule, known_key, x0.shape[1], known)
        x = add_noise(x0, net.noise(eps_key, x0), level)
        inputs = conditions_with_scale(batch, inputs_key, net.null, label_dropout, guidance)
        wanted = jax.lax.stop_gradient(teacher.predict(frozen["teacher"], x, level, inputs))
        output = net.output(params, x, level, inputs, dropout_keys)
        lam = net.schedule.half_log_snr(level.t)
        return regress(output, net.parameterization, level, lam, wanted, weighting)

    return Loss(compute, needs_teacher=True)
