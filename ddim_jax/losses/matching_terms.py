"""The terms of distribution matching, each beside its equation.

What a student drew, x, is noised; teacher and critic say what they see in it:

    x_t = alpha x + sigma eps,   R = teacher's x0 at x_t,  F = critic's,  d = R - F,
    w = 1 / (mean |x - R| + 1e-5)                                    held, of each sample

Every term holds the parameters of the parts that it does not train, so that one gradient of their
sum gives each part its own. Sources: see `distribution_matching`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddim_jax.losses.loss import Net, add_noise, regress
from ddim_jax.losses.weightings import Weighting
from ddim_jax.predictions import Prediction, expand, predict
from ddim_jax.schedules import NoiseLevel

Array = Any
CRITIC, HEAD = "critic", "head"
OBJECTIVES = ("dmd", "sid")
DIVERGENCES: dict[str, Callable[[Array], Array]] = {
    "reverse_kl": jnp.ones_like,
    "forward_kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "hellinger": jnp.sqrt,
    "jeffreys": lambda r: 1 + r,
}
"""h(r) = r^2 f''(r) of f-divergences, by name. Source: Xu et al. 2025, table 1."""
LEAST_RATIO, GREATEST_RATIO, BINS, FEWEST = 0.1, 20.0, 10, 2
held = jax.lax.stop_gradient


class Point(NamedTuple):
    """Where pictures are compared: the noise that is added to them, and what networks are told."""

    level: NoiseLevel
    eps: Array
    inputs: dict[str, Array]
    frozen: dict[str, Any]

    def noised(self, x: Array) -> Array:
        """`x_t = alpha x + sigma eps`."""
        return add_noise(x, self.eps, self.level)


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """The networks that a student is trained beside, and how it is compared with them.

    Attributes:
        teacher: what the student is to match, guided or not.
        critic: the teacher's network, whose parameters are the critic's.
        head: (features, t [B]) -> logits [B], a flax module; (features, t, x) of both.
        both: whether the head looks at noised pictures x too.
        objective: "dmd" or "sid".
        alpha: a of sid.
        divergence: of dmd, a name in `DIVERGENCES`.
        gan: weight of the head in the student's term; 0: none.
        normalise: whether there is a w; else it is 1.
        weighting: of the critic's error in x0, by lam; None is the plain mean over F.
    """

    teacher: Net
    critic: Net
    head: Any
    both: bool
    objective: str
    alpha: float
    divergence: str
    gan: float
    normalise: bool
    weighting: Weighting | None

    @property
    def headed(self) -> bool:
        """Whether a head is needed."""
        return self.gan > 0 or self.divergence != "reverse_kl"

    def critic_loss(self, params: Any, made: Array, point: Point, learns: Any) -> tuple:
        """Denoising of `made`, what the student drew: the loss, and the critic's output, held."""
        x, level, net = point.noised(made), point.level, self.critic
        answer = derived_if(learns, lambda p: net.output(p, x, level, point.inputs))(params)
        lam, wanted = net.schedule.half_log_snr(level.t), Prediction(made, point.eps)
        value = regress(answer, net.parameterization, level, lam, wanted, self.weighting)[0]
        return value, held(answer)

    def head_loss(
        self, params: Any, made: Array, data: Array, keys: Array, point: Point, learns: Any
    ) -> tuple[Array, Array]:
        """`softplus(l(x_t)) + softplus(-l(x'_t))`, x' of the data; and the weight h [B]."""
        fake_x = point.noised(made)
        true_x = add_noise(data, self.teacher.noise(keys, data), point.level)
        judge = derived_if(learns, lambda p: [self._logits(p, point, x) for x in (fake_x, true_x)])
        fake, true = judge(params)
        h = jnp.ones_like(fake)
        if self.divergence != "reverse_kl":
            h = ratio_weight(held(fake), point.level, DIVERGENCES[self.divergence])
        return jnp.mean(jax.nn.softplus(fake) + jax.nn.softplus(-true)), h

    def student_loss(
        self, params: dict, x: Array, answer: Array | None, h: Array, point: Point
    ) -> tuple[Array, Array]:
        """`matching + gan softplus(-l(x_t))`, and the gauge of the critic.

        Args:
            params: of critic and head, held.
            x: [B, ...] what the student drew; this has a derivative.
            answer: the critic's output at x_t, if it is known; None: it is asked.
            h: [B] weight of the divergence.
            point: where x is compared.
        """
        x_t, critic, level = point.noised(x), self.critic, point.level
        at = x_t if self.objective == "sid" else held(x_t)
        if answer is None:
            fake = critic.predict(params[CRITIC], at, level, point.inputs).x0
        else:
            fake = predict(critic.parameterization, at, level, answer).x0
        real = self.teacher.predict(point.frozen["teacher"], at, level, point.inputs).x0
        terms, rho = matching(x, real, fake, h, self.objective, self.alpha, self.normalise)
        value = jnp.mean(terms)
        if self.gan:
            value += self.gan * jnp.mean(jax.nn.softplus(-self._logits(params[HEAD], point, x_t)))
        return value, rho

    def _logits(self, params: Any, point: Point, x: Array) -> Array:
        """l [B]: the head's, of the teacher's features at x."""
        h = self.teacher.middle(point.frozen["teacher"], x, point.level, point.inputs)
        given = (h, flow_time(point.level), x) if self.both else (h, flow_time(point.level))
        return self.head.apply({"params": params}, *given)


def matching(
    x: Array, real: Array, fake: Array, h: Array, objective: str, alpha: float, normalise: bool
) -> tuple[Array, Array]:
    """The student's term of every row, [B], and the gauge of the critic.

        dmd    mean (x - held(x + h w d))^2 / 2              its gradient at x: -h w d / size
        sid    mean w d (R - x - alpha d)                    gradients go through R and F too
        rho    E d (R - x) / E d^2

    Args:
        x: [B, ...] what the student drew.
        real: [B, ...] the teacher's x0, R.
        fake: [B, ...] the critic's, F.
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

    Density ratios r = exp(l) are taken relative to their mean among rows of about the same noise
    level, where at least `FEWEST` are taken together, or else among all.

    Source: Xu et al. 2025, section 4 and the authors' code.
    """
    r = jnp.clip(jnp.exp(jnp.clip(logit, -10, 10)), LEAST_RATIO, GREATEST_RATIO)
    bins = jax.nn.one_hot(jnp.clip(BINS * flow_time(level), 0, BINS - 1).astype(int), BINS)
    count = jnp.sum(bins, axis=0)
    means = jnp.where(count < FEWEST, jnp.mean(r), (r @ bins) / jnp.maximum(count, 1))
    h = of(r / (bins @ means))
    return h / jnp.mean(h)


def flow_time(level: NoiseLevel) -> Array:
    """sigma / (alpha + sigma), in 0..1 on every schedule."""
    return level.sigma / (level.alpha + level.sigma)


def derived_if(on: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, with a derivative where `on`; elsewhere its value alone, and no work for it.

    What the derivative needs is computed again for it: kept from one choice to the other it would
    be gathered from all devices, by compilers for GPUs.
    """
    if on is True:
        return function
    again = jax.checkpoint(function)
    return lambda tree: jax.lax.cond(on, again, lambda tree: function(held(tree)), tree)


def valued_if(on: Any, function: Callable[[Array], tuple[Array, Array]]) -> Callable:
    """The function's value and gauge, with a derivative; elsewhere 0 and NaN, and no work for it.

    Value and derivative are computed together, so that nothing is kept from one choice to another.
    """
    if on is True:
        return function

    def chosen(x: Array) -> tuple[Array, Array]:
        (value, gauge), slope = jax.value_and_grad(function, has_aux=True)(x)
        return value, gauge, slope

    def linear(x: Array) -> tuple[Array, Array]:
        rest = lambda x: (jnp.float32(0), jnp.float32(jnp.nan), jnp.zeros_like(x))  # noqa: E731
        value, gauge, slope = jax.lax.cond(on, chosen, rest, held(x))
        return value + jnp.sum(slope * (x - held(x))), gauge

    return linear
