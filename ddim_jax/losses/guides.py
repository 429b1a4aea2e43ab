"""Teachers that are guided: whatever loss asks one gets the guided prediction, and knows nothing.

    teacher = classifier_free(teacher, 1.5)         # by 1.5
    teacher = classifier_free(teacher)              # by inputs["guidance"], row by row
    teacher = autoguidance(teacher, weak, 2.0)      # away from a worse network

Where the scale is the inputs', the student learns guidance in one evaluation: it is told the scale
where it takes such an input (guidance distillation), and otherwise learns the mean over the range.

Sources: Ho & Salimans 2022 (arXiv:2207.12598); Meng et al. 2023 (arXiv:2210.03142, the scale as an
input); Karras et al. 2024 (arXiv:2406.02507, autoguidance); Kynkaanniemi et al. 2024
(arXiv:2404.07724, the interval).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ddim_jax import guidance
from ddim_jax.dropping import nulled
from ddim_jax.guidance import Guidance
from ddim_jax.losses.loss import Net
from ddim_jax.names import check_range
from ddim_jax.predictions import target
from ddim_jax.schedules import NoiseLevel

Array = Any
OWN, WEAK = "own", "weak"
"""Of a teacher's parameters where another network guides it: a dict of both."""
EVERYWHERE = (0.0, math.inf)


def classifier_free(
    net: Net, scale: float | None = None, interval: tuple[float, float] = EVERYWHERE
) -> Net:
    """A teacher that is guided away from its null inputs, in a batch of twice the size.

    Args:
        net: the teacher, with inputs that can be dropped.
        scale: g; None: each row by `inputs["guidance"]`, which the teacher itself is not told.
        interval: (low, high] in sigma / alpha; elsewhere there is no guidance.

    Raises:
        ValueError: a teacher without classes, or that is guided already; a number out of range.
    """
    _check(net, scale, interval)
    if not net.null:
        raise ValueError(
            "config.guide='classifier_free' needs a class-conditional network; set config.model."
            "num_classes, or leave it out"
        )

    def output(params: Any, x: Array, level: NoiseLevel, inputs: dict) -> Array:
        strength, inputs = _strength(scale, interval, inputs)
        one = lambda x, level, inputs: net.output(params, x, level, inputs)  # noqa: E731
        return guidance.classifier_free(one, nulled(inputs, net.null), strength)(x, level, inputs)

    return net._replace(guided=output)


def autoguidance(
    net: Net, weak: Net, scale: float | None = None, interval: tuple[float, float] = EVERYWHERE
) -> Net:
    """A teacher that is guided away from a worse network, in one evaluation of each.

    Args:
        net: the teacher; parameters of what is returned are `{"own": its, "weak": weak's}`.
        weak: the worse network, on the same schedule, with the same inputs; what it predicts may be
            another thing.
        scale: g; None: each row by `inputs["guidance"]`, which the networks are not told.
        interval: (low, high] in sigma / alpha; elsewhere there is no guidance.

    Raises:
        ValueError: a teacher that is guided already, a number out of range.
    """
    _check(net, scale, interval)

    def output(params: Any, x: Array, level: NoiseLevel, inputs: dict) -> Array:
        strength, inputs = _strength(scale, interval, inputs)

        def better(x, level, inputs):
            return net.output(params[OWN], x, level, inputs)

        def worse(x, level, inputs):
            found = weak.predict(params[WEAK], x, level, inputs)
            return target(net.parameterization, found, level)

        return guidance.autoguidance(better, worse, strength)(x, level, inputs)

    return net._replace(guided=output, own=lambda params: params[OWN])


GUIDES: dict[str, Callable[..., Net]] = {
    "classifier_free": classifier_free,
    "autoguidance": autoguidance,
}
"""Ways to guide a teacher by the name that configs use."""


def _strength(
    scale: float | None, interval: tuple[float, float], inputs: dict
) -> tuple[Guidance, dict]:
    """How strongly to guide, and the inputs without that."""
    if scale is not None:
        return Guidance(scale, interval), inputs
    told = {name: value for name, value in inputs.items() if name != "guidance"}
    return Guidance(inputs["guidance"], interval), told


def _check(net: Net, scale: float | None, interval: tuple[float, float]) -> None:
    if net.guided is not None:
        raise ValueError(
            "the teacher is guided twice: leave out config.guide or config.loss.guidance_scale"
        )
    if scale is not None:
        check_range("config.guide.scale", scale, "[-1000, 1000]", "1 is none")
    ends = np.asarray(interval)
    if ends.shape != (2,) or ends.dtype.kind not in "iuf" or not 0 <= ends[0] < ends[1]:
        raise ValueError(
            f"config.guide.interval must be (low, high) with 0 <= low < high, got {interval}; "
            f"{EVERYWHERE} guides everywhere"
        )
