"""Distribution matching: what a student draws has, under noise, the score of the teacher's data.

A student x = D(noise) draws in one call, or in K. A critic, which starts as the teacher, learns to
denoise what the student draws; where critic and teacher differ the student is off. All are trained
in one step, on a sum of terms each of which stops the gradient of the others' parameters:

    x_t = alpha x + sigma eps,   R = teacher's x0 at x_t,  F = critic's,  d = R - F,
    w = 1 / (mean |x - R| + 1e-5)                                    held, of each sample
    student, dmd    mean (x - held(x + h w d))^2 / 2                 R, F, d are held
    student, sid    mean w d (R - x - a d)                           gradients go through x_t
    critic          denoising of held(x)
    head            softplus(l(x_t)) + softplus(-l(x'_t)),  x' real  l: of the teacher's features
    student, head   gan * softplus(-l(x_t))

h = 1 is the reverse KL divergence of the noised distributions; another divergence f has
h = r^2 f''(r) of the density ratio r = exp(l) (f-distill). a = 1/2 is half the gradient of the
Fisher divergence E d^2 (SiD). The metric `rho` = E d (R - x) / E d^2 is 1 where the critic is
right; far from 1 it lags, and the student is led astray.

A student of K steps is asked at fixed times, at each after its own calls before, whose picture is
noised again to the next time ("backward simulation"): it sees what it will see in drawing. At the
first it is given what sampling starts from.

Sources: Yin et al. 2024 (arXiv:2311.18828, DMD; arXiv:2405.14867, DMD2); Zhou et al. 2024
(arXiv:2404.04057, SiD); Xu et al. 2025 (arXiv:2502.15681, f-distill).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.dropping import nulled
from ddim_jax.guidance import Guidance, classifier_free
from ddim_jax.losses.loss import (
    STUDENT,
    Loss,
    Net,
    Parts,
    add_noise,
    check_dropout,
    check_guidance,
    conditions_with_scale,
    regress,
    split,
)
from ddim_jax.losses.time_samplers import TimeSampler, uniform
from ddim_jax.losses.weightings import Weighting
from ddim_jax.names import check_range, lookup
from ddim_jax.networks.discriminator import Discriminator
from ddim_jax.predictions import Prediction, expand, predict
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.strides import uniform as uniform_stride

Array = Any
CRITIC, HEAD = "critic", "head"
PARTS = (STUDENT, CRITIC, HEAD)
"""What is trained; the head only where it is needed."""
OBJECTIVES = ("dmd", "sid")
DIVERGENCES: dict[str, Callable[[Array], Array]] = {
    "reverse_kl": jnp.ones_like,
    "forward_kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "hellinger": jnp.sqrt,
    "jeffreys": lambda r: 1 + r,
}
"""h(r) = r^2 f''(r) of f-divergences, by name. Source: Xu et al. 2025, table 1."""
LEAST_RATIO, GREATEST_RATIO, BINS = 0.1, 20.0, 10
held = jax.lax.stop_gradient


def distribution_matching(
    net: Net,
    *,
    objective: str = "dmd",
    alpha: float = 1.0,
    divergence: str = "reverse_kl",
    gan: float = 0.0,
    normalise: bool = True,
    steps: int = 1,
    start: float | None = None,
    simulated: bool = True,
    every: int = 1,
    alternate: bool = False,
    times: TimeSampler | None = None,
    critic_times: TimeSampler | None = None,
    weighting: Weighting | None = None,
    guidance_scale: float = 1.0,
    guidance: tuple[float, float] | None = None,
    label_dropout: float = 0.0,
    head: Any = None,
    teacher: Net | None = None,
) -> Loss:
    """A student of a teacher, by a critic, and by a head that looks at real data.

    Args:
        net: the student, on any schedule.
        objective: "dmd" or "sid".
        alpha: a of sid; 1/2 is the gradient of the divergence, 1 and 1.2 are the paper's.
        divergence: of dmd, a name in DIVERGENCES; all but reverse_kl need a head, and weigh rows by
            the density ratio among those that are taken together.
        gan: weight of the head's term in the student's; 0: none.
        normalise: whether there is a w; else it is 1.
        steps: K, how many calls the student draws in.
        start: sigma / alpha of its first time, and of the stride uniform from there to the clean
            end; None: the schedule's noisy end.
        simulated: after its first time the student sees its own pictures, renoised; else real ones.
        every: the student's turn comes once in so many steps.
        alternate: on its turn the others rest.
        times: keys [B] -> t [B], at which student and critic are compared with the teacher;
            default uniform, on the teacher's schedule.
        critic_times: at which the critic learns; None: at the same, of the same noise, which saves
            dmd an evaluation of the critic.
        weighting: of the critic's error in x0, by lam; None is the plain mean over F.
        guidance_scale: g by which the teacher is guided, in two evaluations; 1: none.
        guidance: range of the scale that all networks take as an input (see `guided`); None: none.
        label_dropout: probability that the inputs of a row become null, for all networks.
        head: flax module (features, t [B]) -> logits [B]; default `Discriminator()`.
        teacher: if another network than the student's, or one that predicts something else; critics
            are as it is.

    Returns:
        The loss, with the parts student, critic, and head where one is needed. Metrics are
        "loss_student" and "rho", NaN where the student rests, "loss_critic", "loss_head".

    Raises:
        ValueError: an unknown objective or divergence, a number out of its range, options that
            exclude each other, guidance without classes, a start beyond the schedule's.

    Source: Yin et al. 2024, algorithm 1; Zhou et al. 2024, equation 23; Xu et al. 2025, theorem 1.
    """
    teacher, head = teacher or net, head or Discriminator()
    ratio = lookup(DIVERGENCES, divergence, "divergence")
    _check(objective, alpha, divergence, gan, every, alternate, label_dropout)
    _check_guidance(guidance_scale, guidance, net)
    nodes = _nodes(net.schedule, steps, start)
    times = times or uniform(teacher.schedule)
    shares = critic_times is None and objective == "dmd"
    headed = gan > 0 or divergence != "reverse_kl"
    if headed and teacher.features is None:
        raise ValueError("config.loss.gan and divergence need a teacher that says its features")
    on_turn = lambda step: step % every == 0  # noqa: E731

    def real_x0(point, x):
        """The teacher's x0, guided."""

        def output(x, level, inputs):
            return teacher.output(point.frozen["teacher"], x, level, inputs)

        if guidance_scale != 1:
            null = nulled(point.inputs, teacher.null)
            output = classifier_free(output, null, Guidance(guidance_scale))
        answer = output(x, point.level, point.inputs)
        return predict(teacher.parameterization, x, point.level, answer).x0

    def logits(params, point, x):
        h = teacher.middle(point.frozen["teacher"], x, point.level, point.inputs)
        return head.apply({"params": params}, h, _flow_time(point.level))

    def critic_term(params, made, point, learns):
        """The critic's loss, and its output."""
        x, level = add_noise(made, point.eps, point.level), point.level
        answer = _derived_if(learns, lambda p: teacher.output(p, x, level, point.inputs))(params)
        lam, wanted = teacher.schedule.half_log_snr(level.t), Prediction(made, point.eps)
        value = regress(answer, teacher.parameterization, level, lam, wanted, weighting)[0]
        return value, held(answer)

    def head_term(params, made, data, keys, point, learns):
        """The head's loss, and the weight of the divergence that it tells."""
        fake_x = add_noise(made, point.eps, point.level)
        true_x = add_noise(data, teacher.noise(keys, data), point.level)
        judge = _derived_if(learns, lambda p: [logits(p, point, x) for x in (fake_x, true_x)])
        fake, true = judge(params)
        h = jnp.ones_like(fake)
        if divergence != "reverse_kl":
            h = ratio_weight(held(fake), point.level, ratio)
        return jnp.mean(jax.nn.softplus(fake) + jax.nn.softplus(-true)), h

    def student_term(params, x, answer, h, point):
        """The student's loss by critic and head, whose parameters are held, and the gauge."""
        x_t = add_noise(x, point.eps, point.level)
        at = x_t if objective == "sid" else held(x_t)
        if answer is None:
            fake = teacher.predict(params[CRITIC], at, point.level, point.inputs).x0
        else:
            fake = predict(teacher.parameterization, at, point.level, answer).x0
        terms, rho = matching(x, real_x0(point, at), fake, h, objective, alpha, normalise)
        value = jnp.mean(terms)
        if gan:
            value += gan * jnp.mean(jax.nn.softplus(-logits(params[HEAD], point, x_t)))
        return value, rho

    def compute(params, frozen, batch, keys, step):
        data = batch["image"]
        z_key, t_key, eps_key, inputs_key, data_key, critic_key, dropout_keys = split(keys, 7)
        inputs = conditions_with_scale(batch, inputs_key, net.null, label_dropout, guidance)
        # the student's turn, and that of the others; without rests True, which compiles no choice
        on = True if every == 1 else on_turn(step)
        off = ~on if alternate else True
        given = z_key, data, inputs, nodes, simulated, step, dropout_keys
        x = _derived_if(on, lambda p: drawn(net, p, *given))(params[STUDENT])
        made = held(x)
        point = _Point(teacher.schedule.level(times(t_key)), teacher.noise(eps_key, data), inputs)
        point = own = point._replace(frozen=held(frozen))
        if critic_times is not None:
            t_key, eps_key = split(critic_key, 2)
            level = teacher.schedule.level(critic_times(t_key))
            own = point._replace(level=level, eps=teacher.noise(eps_key, data))
        loss_critic, answer = critic_term(params[CRITIC], made, own, off)
        value, metrics, h = loss_critic, {"loss_critic": loss_critic}, jnp.ones(len(data))
        if headed:
            loss_head, h = head_term(params[HEAD], made, data, data_key, point, off)
            value, metrics = value + loss_head, metrics | {"loss_head": loss_head}
        others = held({name: params[name] for name in PARTS[1:] if name in params})

        def turn(x):
            return student_term(others, x, answer if shares else None, h, point)

        rest = lambda x: (jnp.float32(0), jnp.float32(jnp.nan))  # noqa: E731
        student, rho = turn(x) if on is True else jax.lax.cond(on, turn, rest, x)
        told = {"loss_student": jnp.where(on, student, jnp.nan), "rho": rho}
        return value + student, metrics | told | {"loss": value + student}

    def init(key, teacher_params, example):
        others = {CRITIC: jax.tree.map(jnp.copy, teacher_params)}
        if headed:
            features = jax.eval_shape(teacher.features, teacher_params, *example)
            others[HEAD] = head.init(key, jnp.zeros(features.shape), jnp.ones(1))["params"]
        return others

    turns = {} if every == 1 else {STUDENT: on_turn}
    if alternate:
        turns |= dict.fromkeys((CRITIC, HEAD), lambda step: step % every != 0)
    parts = Parts(PARTS if headed else PARTS[:2], init, turns)
    return Loss(compute, needs_teacher=True, parts=parts, nodes=nodes)


class _Point(NamedTuple):
    """Where pictures are compared: the noise that is added to them, and what networks are told."""

    level: NoiseLevel
    eps: Array
    inputs: dict[str, Array]
    frozen: dict[str, Any] | None = None


def _flow_time(level: NoiseLevel) -> Array:
    return level.sigma / (level.alpha + level.sigma)


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

    def noise(k):
        return net.noise(jax.vmap(lambda key: jax.random.fold_in(key, k))(keys), data)

    def again(k, x):
        x0 = net.predict(held(params), x, at(k), inputs).x0
        return add_noise(x0, noise(k + 1), at(k + 1))

    x, k, calls = float(net.schedule.prior_std(nodes[0])) * noise(0), 0, len(nodes) - 1
    if calls > 1:
        k = jax.random.randint(jax.random.fold_in(jax.random.key(0), step), (), 0, calls)
        if simulated:
            x = jax.lax.fori_loop(0, k, again, x)
        else:
            x = jnp.where(k > 0, add_noise(data, noise(k), at(k)), x)
    return net.predict(params, x, at(k), inputs, dropout_keys).x0


def matching(
    x: Array, real: Array, fake: Array, h: Array, objective: str, alpha: float, normalise: bool
) -> tuple[Array, Array]:
    """The student's term of every row, [B], and the gauge of the critic.

    Args:
        x: [B, ...] what the student drew.
        real: [B, ...] the teacher's x0.
        fake: [B, ...] the critic's.
        h: [B] weight of the divergence.
        objective: "dmd" or "sid".
        alpha: of sid.
        normalise: whether to divide by the distance to the teacher's x0.
    """
    axes = tuple(range(1, x.ndim))
    d, w = real - fake, 1.0
    if normalise:
        w = held(1 / (jnp.mean(jnp.abs(x - real), axes, keepdims=True) + 1e-5))
    rho = held(jnp.sum(d * (real - x)) / jnp.maximum(jnp.sum(d**2), 1e-20))
    if objective == "sid":
        return jnp.mean(w * d * (real - x - alpha * d), axes), rho
    return jnp.mean((x - held(x + expand(h, x) * w * d)) ** 2, axes) / 2, rho


def ratio_weight(logit: Array, level: NoiseLevel, of: Callable[[Array], Array]) -> Array:
    """h [B] of a divergence by the head's logits [B], of mean 1.

    Density ratios are taken relative to their mean among rows of about the same noise level.

    Source: Xu et al. 2025, section 4 and the authors' code.
    """
    r = jnp.clip(jnp.exp(jnp.clip(logit, -10, 10)), LEAST_RATIO, GREATEST_RATIO)
    bins = jax.nn.one_hot(jnp.clip(BINS * _flow_time(level), 0, BINS - 1).astype(int), BINS)
    means = (r @ bins) / jnp.maximum(jnp.sum(bins, axis=0), 1)
    h = of(r / (bins @ means))
    return h / jnp.mean(h)


def _derived_if(on: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, with a derivative where `on`; elsewhere its value alone, and no work for it."""
    if on is True:
        return function
    return lambda tree: jax.lax.cond(on, function, lambda tree: function(held(tree)), tree)


def _nodes(schedule: Schedule, steps: int, start: float | None) -> np.ndarray:
    """[K + 1] the times of a student of K steps."""
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


def _check(objective, alpha, divergence, gan, every, alternate, label_dropout) -> None:
    check_dropout(label_dropout)
    if objective not in OBJECTIVES:
        raise ValueError(
            f"config.loss.objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}"
        )
    check_range("config.loss.alpha", alpha, "[-10, 10]", "0.5 to 1.2 are usual")
    check_range("config.loss.gan", gan, "[0, inf)", "0 is none, 0.003 is DMD2's")
    check_range("config.loss.every", every, "[1, inf)", "1 to 10 are usual", whole=True)
    if objective == "sid" and divergence != "reverse_kl":
        raise ValueError(
            f"config.loss.divergence={divergence!r} belongs to objective 'dmd'; leave it out"
        )
    if alternate and every == 1:
        raise ValueError(
            "config.loss.alternate leaves the critic no step with every=1; set config.loss.every=5"
        )


def _check_guidance(scale: float, guidance: tuple | None, net: Net) -> None:
    check_guidance(guidance, net.null)
    check_range("config.loss.guidance_scale", scale, "[-1000, 1000]", "1 is none")
    if scale != 1 and guidance is not None:
        raise ValueError(
            f"config.loss.guidance_scale={scale} guides in two evaluations, and config.loss."
            "guidance is the input of a network that guides in one; leave out one of them"
        )
    if scale != 1 and not net.null:
        raise ValueError(
            f"config.loss.guidance_scale={scale} needs a class-conditional network; set "
            "config.model.num_classes, or leave it out"
        )
