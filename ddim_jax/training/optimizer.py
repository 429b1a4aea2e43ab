"""The optax optimizer that a config names: Adam and its kin, Muon, warm-up, decay, clipping.

Of a loss that trains several networks each has its own, and its own clipping:

    config.optimizer = dict(name="adam", learning_rate=5e-4, parts=dict(critic=dict(b1=0.0)))

where a section of `parts` says what is other than for the rest.
"""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax
from optax.contrib import MuonDimensionNumbers, muon

from ddim_jax.losses import Parts
from ddim_jax.losses.loss import STUDENT
from ddim_jax.names import check_names, check_options, check_range
from ddim_jax.networks.transformer import LOOP

DECAYING = ("adamw", "muon")
"""Those with weight decay."""
RMS = 0.2
"""Of Muon's steps in units of the learning rate, about that of Adam's."""
DECAYS = ("constant", "cosine", "linear")


def _muon(rate: Any, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
    """Muon of kernels, AdamW of the rest."""
    return muon(
        rate,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=RMS,
        muon_weight_dimension_numbers=_kernels,
    )


def _kernels(params: Any) -> Any:
    """How each kernel is a matrix, from all but its last axis to that; None of what is none.

    The first axis of blocks that are computed in a loop counts them: each has a matrix of its own.
    """

    def of(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        names = [getattr(key, "key", "") for key in path]
        axes = range(1 if LOOP in names else 0, jax.numpy.ndim(leaf))
        if names[-1:] != ["kernel"] or len(axes) < 2:
            return None
        return MuonDimensionNumbers(reduction_axis=tuple(axes)[:-1], output_axis=axes[-1])

    return jax.tree_util.tree_map_with_path(of, params)


OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "radam": optax.radam, "muon": _muon}


def make_optimizer(
    name: str = "adam",
    learning_rate: float = 2e-4,
    warmup_steps: int = 0,
    decay_steps: int | None = 0,
    decay: str | None = None,
    clip_norm: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Adam, AdamW, RAdam or Muon with warm-up, optional decay to 0, and global-norm clipping.

    Muon makes the momentum of every kernel, of dense layers and convolutions, nearly orthogonal
    (Jordan 2024), a step of the size of Adam's, so that Adam's learning rates serve (Liu et al.
    2025, arXiv:2502.16982, section 2.2). What is no kernel is AdamW's. A step costs some ten
    products of each kernel with itself: little beside large batches.

    Args:
        name: "adam", "adamw", "radam" or "muon".
        learning_rate: after warm-up; positive.
        warmup_steps: of a linear rise from 0.
        decay_steps: total steps of a fall to 0, warm-up included; 0: constant. Of a config that
            names a decay and leaves them out, `train.steps`, see `options`.
        decay: the shape of the fall, "cosine" or "linear"; "constant" for none. Default "cosine"
            with decay_steps, else "constant".
        clip_norm: of the whole gradient; 0: none.
        weight_decay: of adamw, and of muon's kernels; at least 0.
        b1: decay of the first moment, in [0, 1); of kernels Muon's is 0.95.
        b2: decay of the second moment, in [0, 1).

    Raises:
        ValueError: unknown name, a number out of its range, weight decay without adamw, decay
            shorter than warm-up.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    clip = "0 does not clip, 1 is usual"
    check_range("config.optimizer.clip_norm", clip_norm, "[0, inf)", clip)
    check_range("config.optimizer.weight_decay", weight_decay, "[0, inf)")
    check_range("config.optimizer.b1", b1, "[0, 1)", "0.9 is usual")
    check_range("config.optimizer.b2", b2, "[0, 1)", "0.999 is usual")
    if name not in DECAYING and weight_decay:
        raise ValueError(
            f"weight_decay={weight_decay} needs optimizer 'adamw' or 'muon', got {name!r}"
        )
    rate = make_rate(learning_rate, warmup_steps, decay_steps, decay)
    more = {"weight_decay": weight_decay} if name in DECAYING else {}
    plain = OPTIMIZERS[name](rate, b1, b2, **more)
    return optax.chain(optax.clip_by_global_norm(clip_norm), plain) if clip_norm else plain


def make_optimizers(
    config: ml_collections.ConfigDict, parts: Parts | None
) -> optax.GradientTransformation:
    """The optimizer of a config for what a loss trains.

    Args:
        config: its section `optimizer`, and `train.steps`.
        parts: of the loss; None: it trains one network.

    Raises:
        ValueError: an option that cannot be, or of a part that is not trained.
    """
    given = config.optimizer.get("parts") or {}
    if parts is None:
        if given:
            raise ValueError(
                f"config.optimizer.parts has {', '.join(given)}, and config.loss.name="
                f"{config.loss.name!r} trains one network; leave it out"
            )
        return make_optimizer(**options(config))
    check_names(given, parts.names, "config.optimizer.parts")
    each = {}
    for name in parts.names:
        try:
            each[name] = _of_part(options(config, name), parts.turns.get(name))
        except ValueError as error:
            raise ValueError(f"config.optimizer.parts.{name}: {error}") from error
    return optax.partition(each, {name: name for name in parts.names})


def _of_part(
    options: dict[str, Any], turn: Callable[[Any], Any] | None
) -> optax.GradientTransformation:
    """The optimizer of one part; where its turn has not come, its moments stay as they are.

    The learning rate goes by the steps of the run.
    """
    plain = make_optimizer(**options)
    if turn is None:
        return plain
    rate, constant = make_rate(**options), dict(warmup_steps=0, decay_steps=0, decay="constant")
    unscaled = make_optimizer(**options | constant | {"learning_rate": 1.0})
    scale = optax.scale_by_schedule if callable(rate) else optax.scale
    return optax.chain(optax.conditionally_mask(unscaled, turn), scale(rate))


def make_rate(
    learning_rate: float = 2e-4,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    decay: str | None = None,
    **_: Any,
) -> float | Callable[[Any], Any]:
    """The learning rate: linearly up, then constant or down to 0.

    Args:
        learning_rate: see `make_optimizer`.
        warmup_steps: see there.
        decay_steps: see there.
        decay: see there.
        **_: its other options, which do not matter here.

    Returns:
        A function of the updates done, or a number if it never changes.

    Raises:
        ValueError: a number out of its range, an unknown decay, decay shorter than warm-up.
    """
    check_range("config.optimizer.learning_rate", learning_rate, "(0, inf)", "DDPM uses 2e-4")
    check_range("config.optimizer.warmup_steps", warmup_steps, "[0, inf)", whole=True)
    check_range("config.optimizer.decay_steps", decay_steps, "[0, inf)", whole=True)
    decay = decay or ("cosine" if decay_steps else "constant")
    if decay not in DECAYS:
        raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")
    falls = decay_steps and decay != "constant"
    if falls and decay_steps <= warmup_steps:
        raise ValueError(
            f"config.optimizer.warmup_steps must be below decay_steps, which are {decay_steps} (by "
            f"default config.train.steps), got {warmup_steps}; set it to {decay_steps // 10}, or "
            "train longer"
        )
    rate = learning_rate
    if falls:
        length = decay_steps - warmup_steps
        linear = optax.linear_schedule(learning_rate, 0.0, length)
        rate = linear if decay == "linear" else optax.cosine_decay_schedule(learning_rate, length)
    if warmup_steps:
        rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        after = rate if falls else optax.constant_schedule(learning_rate)
        rate = optax.join_schedules([rise, after], [warmup_steps])
    return rate


def options(config: ml_collections.ConfigDict, part: str = STUDENT) -> dict[str, Any]:
    """The options of `make_optimizer` in a config, where the decay is as long as the run.

    Args:
        config: its section `optimizer`, and `train.steps`, which decay_steps are if the section
            names a decay and has none.
        part: of what is trained.

    Raises:
        ValueError: an unknown option; a run that would go on where the learning rate is 0.
    """
    section = check_options(make_optimizer, _section(config, part), "optimizer")
    length, steps = decay_steps(config, part), config.train.steps
    length = check_range("config.optimizer.decay_steps", length, "[0, inf)", whole=True)
    if 0 < length < steps:
        raise ValueError(
            f"config.train.steps is {steps}, but the learning rate is 0 from step {length} on; set "
            f"config.optimizer.decay_steps={steps}, or None, which follows config.train.steps"
        )
    return section | {"decay_steps": length}


def note(config: ml_collections.ConfigDict) -> str:
    """What is odd about the learning rate of a config, in words; "" for nothing."""
    rise, steps = config.optimizer.get("warmup_steps", 0), config.train.steps
    if rise < steps:
        return ""
    return (
        f"the learning rate rises for config.optimizer.warmup_steps={rise} steps, and the run has "
        f"{steps}: it never comes to its full height"
    )


def _section(config: ml_collections.ConfigDict, part: str) -> dict[str, Any]:
    """What a config's section `optimizer` says of a part."""
    section = config.optimizer.to_dict()
    own = (section.pop("parts", None) or {}).get(part) or {}
    if {"parts", "decay_steps"} & set(own):
        raise ValueError(
            f"config.optimizer.parts.{part} has {', '.join(own)}: the length of a run is that of "
            "all parts, set config.optimizer.decay_steps; how often a part is trained is said by "
            "config.loss"
        )
    return section | own


def decay_steps(config: ml_collections.ConfigDict, part: str = STUDENT) -> int:
    """The step at which the learning rate of a config is 0; 0 if it never falls."""
    section = _section(config, part)
    given, decay = section.get("decay_steps"), section.get("decay")
    if decay == "constant" or (given is None and decay is None):
        return 0
    return config.train.steps if given is None else given
