"""Consistency models: the network's clean image is the same all along a trajectory.

Two neighbouring noise ratios s = sigma / alpha, high and low, of one trajectory:

    loss = weight * distance(f(x_high), stop_gradient(f_target(x_low)))

f is the network's x0, which must be the identity at the clean end, `x0 = x`: so it is with
prediction "consistency" at `s = sigma_min`, and with v, flow and edm at s = 0. Training from data
(CT, iCT, ECT) takes x_low from the same image and noise; distillation (CD) takes it from one Heun
step of a teacher over s. Where the teacher was distilled from a guided one, and so takes the
guidance scale as an input, the student is told the same scale. Both passes of the student have the
same dropout keys.

    method  pairs                           target              distance
    CD      grid, constant                  target_decay 0..    l2, lpips; needs a teacher
    CT      grid, growing (sqrt)            adaptive            l2, lpips
    iCT     grid, doubling, log-normal      none                pseudo-Huber, weight 1 / (gap)
    ECT     gap shrinking by stages         none                l2 norm, EDM's weight or 1 / (gap)

Sources: Song et al. 2023 (arXiv:2303.01469); Song & Dhariwal 2023 (arXiv:2310.14189, iCT); Geng et
al. 2024 (arXiv:2406.14548, ECT).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddim_jax.losses.level_pairs import LevelPairs, grid
from ddim_jax.losses.loss import (
    Loss,
    Net,
    add_noise,
    check_boundary,
    check_dropout,
    check_guidance,
    check_known,
    conditions_with_scale,
    silent,
    split,
    with_known,
)
from ddim_jax.losses.weightings import Weighting
from ddim_jax.names import check_range
from ddim_jax.predictions import expand
from ddim_jax.schedules import NoiseLevel, Schedule

Array = Any
WEIGHTS = {
    "uniform": lambda high, low: jnp.ones_like(high),
    "gap": lambda high, low: 1 / (high - low),
}
"""Weights of a pair of noise ratios."""
DISTANCES = ("l2", "huber")


def consistency(
    net: Net,
    *,
    pairs: LevelPairs | None = None,
    distance: str | Callable[[Array, Array], Array] = "huber",
    huber: float | None = None,
    weight: str | Weighting = "gap",
    distil: bool = False,
    target_decay: float | Callable[[Array], Array] | None = None,
    label_dropout: float = 0.0,
    guidance: tuple[float, float] | None = None,
    known: float = 0.0,
    teacher: Net | None = None,
) -> Loss:
    """The consistency loss, distilled or trained.

    Args:
        net: the network; its x0 is the consistency function.
        pairs: (keys [B], step) -> (high, low), noise ratios; default `level_pairs.grid()`.
        distance: "l2", the mean square; "huber", `sqrt(|d|^2 + c^2) - c` over the whole image; or
            a function of two batches of images [B, H, W, C], such as `lpips.load(path)`.
        huber: c; default 0.00054 sqrt(dimensions). 0 is the plain norm.
        weight: "uniform"; "gap", 1 / (high - low); or a weighting by lam of the high level, such as
            `weightings.edm(0.5)`, which is ECT's.
        distil: the low point is a Heun step of the teacher (CD), not data with the same noise.
        target_decay: mu of the moving average that gives the targets, or step -> mu; None: the
            network itself gives them.
        label_dropout: probability that the inputs of a row become null, for all networks.
        guidance: range of the scale that all networks take as an input (see `guided`), for
            distillation; None for none.
        known: of clips, probability that some frames are known to all networks.
        teacher: if another network than the student's, or one that predicts something else.

    Raises:
        ValueError: an unknown distance or weight, c or a probability out of range, guidance without
            a teacher or classes, a parameterization that is not the identity at the lowest ratio.
    """
    check_dropout(label_dropout)
    check_guidance(guidance, net.null, teacher)
    check_known(known)
    _check(distance, huber, weight)
    if target_decay is not None and not callable(target_decay):
        check_range("config.loss.target_decay", target_decay, "[0, 1)", "0.95 is usual")
    if guidance is not None and not distil:
        raise ValueError(
            "config.loss.guidance is what a teacher was told: set config.loss.distil=True"
        )
    pairs = pairs or grid()
    check_boundary(net, pairs.lowest)
    teacher = teacher or net
    if distil and pairs.lowest == 0 and silent(teacher, teacher.schedule.t_span[1]):
        raise ValueError(
            "a teacher that predicts x0 says nothing about the velocity at the data, where pairs "
            "with a lowest ratio of 0 end; take pairs that end above 0, or another teacher"
        )

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        pair_key, eps_key, inputs_key, dropout_keys, known_key = split(keys, 5)
        eps = net.noise(eps_key, x0)
        inputs = conditions_with_scale(batch, inputs_key, net.null, label_dropout, guidance)
        ratios = pairs.sample(pair_key, step)
        high, low = (
            with_known(_level(net.schedule, ratio), net.schedule, known_key, x0.shape[1], known)
            for ratio in ratios
        )
        x_high, x_low = add_noise(x0, eps, high), add_noise(x0, eps, low)
        if distil:

            def slope(x, level):
                return teacher.predict(frozen["teacher"], x, level, inputs).eps

            x_low = heun(slope, x_high, high, low)

        def f(params, x, level):
            return net.predict(params, x, level, inputs, dropout_keys).x0

        target_params = params if target_decay is None else frozen["target"]
        target = jax.lax.stop_gradient(f(target_params, x_low, low))
        x0_hat = f(params, x_high, high)
        apart = _distance(distance, huber)(x0_hat, target)
        weights = weight(-jnp.log(ratios[0])) if callable(weight) else WEIGHTS[weight](*ratios)
        value = jnp.mean(weights * apart)
        squared = jnp.mean((x0_hat - x0) ** 2)
        return value, {"loss": value, "mse_x0": squared, "distance": jnp.mean(apart)}

    decay = target_decay
    if isinstance(decay, (int, float)):
        decay = lambda step: target_decay  # noqa: E731
    return Loss(compute, needs_teacher=distil, target_decay=decay)


def heun(
    slope: Callable[[Array, NoiseLevel], Array], x: Array, high: NoiseLevel, low: NoiseLevel
) -> Array:
    """One Heun step of `d(x / alpha) / d(sigma / alpha) = eps(x)`, from levels [B] to levels [B].

    Source: Karras et al. 2022, algorithm 1; Song et al. 2023, equation 6.
    """
    gap = expand(low.sigma / low.alpha - high.sigma / high.alpha, x)
    y = x / expand(high.alpha, x)
    first = slope(x, high)
    second = slope(expand(low.alpha, x) * (y + gap * first), low)
    return expand(low.alpha, x) * (y + gap * (first + second) / 2)


def _level(schedule: Schedule, ratio: Array) -> NoiseLevel:
    return schedule.level(schedule.time_of(-jnp.log(ratio)))


def _check(distance, huber, weight) -> None:
    if not callable(distance) and distance not in DISTANCES:
        raise ValueError(
            f"config.loss.distance must be one of {', '.join(DISTANCES)}, lpips:FILE or "
            f"lpips_average:FILE, got {distance!r}"
        )
    if huber is not None:
        hint = "0.00054 sqrt(dimensions) is iCT's"
        check_range("config.loss.huber", huber, "[0, inf)", hint)
    if not callable(weight) and weight not in WEIGHTS:
        raise ValueError(
            f"config.loss.weight must be one of {', '.join(WEIGHTS)}, or a weighting such as "
            f'dict(name="edm"), got {weight!r}'
        )


def _distance(name: str | Callable, huber: float | None) -> Callable[[Array, Array], Array]:
    if callable(name):
        return name

    def squared(a, b):
        return jnp.sum((a - b) ** 2, axis=tuple(range(1, a.ndim)))

    def l2(a, b):
        return squared(a, b) / a[0].size

    def pseudo_huber(a, b):
        c = 0.00054 * a[0].size ** 0.5 if huber is None else huber
        total = squared(a, b)  # divided, not subtracted: exact where it is far below c^2
        return total / (jnp.sqrt(jnp.maximum(total + c**2, 1e-12)) + c)

    return {"l2": l2, "huber": pseudo_huber}[name]
