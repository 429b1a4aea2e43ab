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
right; far from 1 it lags, and the student is led astray. The terms are in `matching_terms`.

A student of K steps is asked at fixed times, at each after its own calls before, whose picture is
noised again to the next time ("backward simulation"): it sees what it will see in drawing. At the
first it is given what sampling starts from (`rollout`).

Sources: Yin et al. 2024 (arXiv:2311.18828, DMD; arXiv:2405.14867, DMD2); Zhou et al. 2024
(arXiv:2404.04057, SiD); Xu et al. 2025 (arXiv:2502.15681, f-distill).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddim_jax.losses.guides import classifier_free
from ddim_jax.losses.loss import (
    STUDENT,
    Loss,
    Net,
    Parts,
    check_dropout,
    check_guidance,
    conditions_with_scale,
    split,
)
from ddim_jax.losses.matching_terms import (
    CRITIC,
    DIVERGENCES,
    HEAD,
    OBJECTIVES,
    Point,
    Terms,
    derived_if,
    held,
    valued_if,
)
from ddim_jax.losses.rollout import drawn
from ddim_jax.losses.rollout import nodes as nodes_of
from ddim_jax.losses.time_samplers import TimeSampler, uniform
from ddim_jax.losses.weightings import Weighting
from ddim_jax.names import check_range, lookup
from ddim_jax.networks.discriminator import Discriminator

Array = Any
PARTS = (STUDENT, CRITIC, HEAD)
"""What is trained; the head only where it is needed."""

SEEN = {"features": False, "both": True}
"""What the head looks at: whether at pictures too."""


def distribution_matching(
    net: Net,
    *,
    objective: str = "dmd",
    alpha: float = 1.0,
    divergence: str = "reverse_kl",
    gan: float = 0.0,
    gan_sees: str = "features",
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
        gan_sees: what the head looks at: "features", what the teacher makes of a noised picture
            half-way; "both", these and the picture.
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
        head: flax module (features, t [B]) -> logits [B], and with "both" (features, t, pictures);
            default `Discriminator()`.
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
    critic, head = (teacher or net).alone, head or Discriminator()
    lookup(DIVERGENCES, divergence, "divergence")
    _check(objective, alpha, divergence, gan, every, alternate, label_dropout)
    _check_guidance(guidance_scale, guidance, net, teacher)
    teacher = classifier_free(teacher or net, guidance_scale) if guidance_scale != 1 else teacher
    both = lookup(SEEN, gan_sees, "config.loss.gan_sees")
    terms = Terms(
        teacher or net, critic, head, both, objective, alpha, divergence, gan, normalise, weighting
    )
    if both and not terms.headed:
        raise ValueError(
            f"config.loss.gan_sees={gan_sees!r} is of a head, and config.loss.gan=0 has none; set "
            "config.loss.gan=0.003, or leave it out"
        )
    if terms.headed and terms.teacher.features is None:
        raise ValueError("config.loss.gan and divergence need a teacher that says its features")
    nodes, turns = nodes_of(net.schedule, steps, start), _Turns(every, alternate)
    times = times or uniform(critic.schedule)

    def compute(params, frozen, batch, keys, step):
        data, (on, off) = batch["image"], turns.at(step)
        z_key, t_key, eps_key, inputs_key, data_key, critic_key, dropout_keys = split(keys, 7)
        inputs = conditions_with_scale(batch, inputs_key, net.null, label_dropout, guidance)

        def point(times, t_key, eps_key):
            level, eps = critic.schedule.level(times(t_key)), critic.noise(eps_key, data)
            return Point(level, eps, inputs, held(frozen))

        given = z_key, data, inputs, nodes, simulated, step, dropout_keys
        x = derived_if(on, lambda p: drawn(net, p, *given))(params[STUDENT])
        made, here = held(x), point(times, t_key, eps_key)
        there = here if critic_times is None else point(critic_times, *split(critic_key, 2))
        loss_critic, answer = terms.critic_loss(params[CRITIC], made, there, off)
        if critic_times is not None or objective == "sid":
            answer = None
        value, metrics, h = loss_critic, {"loss_critic": loss_critic}, jnp.ones(len(data))
        if terms.headed:
            loss_head, h = terms.head_loss(params[HEAD], made, data, data_key, here, off)
            value, metrics = value + loss_head, metrics | {"loss_head": loss_head}
        others = held({name: params[name] for name in PARTS[1:] if name in params})

        def turn(x):
            return terms.student_loss(others, x, answer, h, here)

        student, rho = valued_if(on, turn)(x)
        told = {"loss_student": jnp.where(on, student, jnp.nan), "rho": rho}
        return value + student, metrics | told | {"loss": value + student}

    return Loss(compute, needs_teacher=True, parts=_parts(terms, turns), nodes=nodes)


class _Turns(NamedTuple):
    """Whose turn it is: the student's once in `every` steps, when the others may rest."""

    every: int
    alternate: bool

    def at(self, step: Array) -> tuple[Any, Any]:
        """Whether it is the student's, the others'; True, which compiles no choice, if always."""
        on = True if self.every == 1 else step % self.every == 0
        return on, ~on if self.alternate else True

    @property
    def of_parts(self) -> dict[str, Callable[[Array], Array]]:
        """Those of the parts that rest at times, see `Parts`."""
        turns = {} if self.every == 1 else {STUDENT: lambda step: step % self.every == 0}
        if self.alternate:
            turns |= dict.fromkeys((CRITIC, HEAD), lambda step: step % self.every != 0)
        return turns


def _parts(terms: Terms, turns: _Turns) -> Parts:
    """The critic, which starts as the teacher, and the head, if there is one."""

    def init(key, teacher_params, example):
        others = {CRITIC: jax.tree.map(jnp.copy, terms.teacher.own(teacher_params))}
        if terms.headed:
            params = terms.teacher.own(teacher_params)
            features = jax.eval_shape(terms.teacher.features, params, *example)
            zeros = jnp.zeros(features.shape), jnp.ones(1)
            zeros += (jnp.zeros(example[0].shape),) if terms.both else ()
            others[HEAD] = terms.head.init(key, *zeros)["params"]
        return others

    return Parts(PARTS if terms.headed else PARTS[:2], init, turns.of_parts)


def _check(objective, alpha, divergence, gan, every, alternate, label_dropout) -> None:
    check_dropout(label_dropout)
    if objective not in OBJECTIVES:
        raise ValueError(
            f"config.loss.objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}"
        )
    check_range("config.loss.alpha", alpha, "[-10, 10]", "0.5 to 1.2 are usual")
    check_range("config.loss.gan", gan, "[0, inf)", "0 is none, 0.003 is DMD2's")
    check_range("config.loss.every", every, "[1, inf)", "1 to 10 are usual", whole=True)
    if objective == "dmd" and alpha != 1:
        raise ValueError(f"config.loss.alpha={alpha} belongs to objective 'sid'; leave it out")
    if objective == "sid" and divergence != "reverse_kl":
        raise ValueError(
            f"config.loss.divergence={divergence!r} belongs to objective 'dmd'; leave it out"
        )
    if alternate and every == 1:
        raise ValueError(
            "config.loss.alternate leaves the critic no step with every=1; set config.loss.every=5"
        )


def _check_guidance(scale: float, guidance: tuple | None, net: Net, teacher: Net | None) -> None:
    check_guidance(guidance, net.null, teacher)
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
