"""What the training methods share: `Loss`, `Net`, random numbers, inputs, checks, the regression.

A loss is made from a `Net` and options, and draws everything it needs from one key per row of the
batch, so that its value is the same however the batch is spread over devices or taken in parts.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.dropping import ALONE, AUGMENT, drop
from ddim_jax.losses.time_samplers import some_known
from ddim_jax.losses.weightings import Weighting
from ddim_jax.names import check_range
from ddim_jax.predictions import Parameterization, Prediction, expand, predict, split_known, target
from ddim_jax.schedules import NoiseLevel, Schedule

Array = Any
STUDENT = "student"
"""Of several networks that are trained against each other, the one that draws."""
Apply = Callable[[Any, Array, Array, dict[str, Array], Array | None], Array]
"""`(params, x [B, ...], model_time [B], inputs, dropout_keys [B] or None) -> F [B, ...]`."""


class Parts(NamedTuple):
    """What is trained beside the student; parameters are then a dict with a tree for each part.

    The loss is a sum in which every part's term stops the gradient of the others.

    Attributes:
        names: of all parts, the student's first.
        init: `(key, teacher, example) -> name -> parameters` of the others; `example` is (x, t,
            inputs) of one sample, as networks take them.
        turns: name -> (updates done -> whether the part's turn has come), of those that rest on
            some steps: then neither their parameters nor their optimizer's moments change.
    """

    names: tuple[str, ...]
    init: Callable[[Array, Any, tuple], dict[str, Any]]
    turns: Mapping[str, Callable[[Array], Array]] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A training method: what is minimised, and what it keeps beside the parameters.

    Attributes:
        compute: `(params, frozen, batch, keys, step) -> (scalar, metrics)`. `batch` holds "image"
            [B, H, W, C] in [-1, 1] and the network's inputs by name, such as "label" int32 [B];
            `keys` [B] is one key per row.
        needs_teacher: `frozen["teacher"]` are the parameters of a trained network.
        target_decay: step -> mu, for methods whose `frozen["target"]` is a moving average of the
            parameters, `target <- mu target + (1 - mu) params`; None if there is none.
        parts: what is trained beside the student; None: `params` are those of one network.
        nodes: float64 [K + 1], the times of the only sampler that the network is trained for; None
            if it may be asked anywhere.
        group: rows of a batch, one behind the other, that are compared with each other: they lie on
            one device, and in one part of a batch that is taken in parts.
    """

    compute: Callable[[Any, Any, dict, Array, Array], tuple[Array, dict]]
    needs_teacher: bool = False
    target_decay: Callable[[Array], Array] | None = None
    parts: Parts | None = None
    nodes: np.ndarray | None = None
    group: int = 1

    def __call__(self, params, frozen, batch, keys, step):
        """Returns the loss and its metrics, among them "loss"."""
        return self.compute(params, frozen, batch, keys, step)

    def freeze(self, params: Any, teacher: Any = None) -> dict | None:
        """Returns the initial `frozen`; it holds copies, since a train step donates its state.

        Raises:
            ValueError: the method needs a teacher, and none is given.
        """
        if self.needs_teacher and teacher is None:
            raise ValueError(
                "this loss needs a teacher: set config.start_from to a training workdir, a "
                ".safetensors file or a bundled network"
            )
        frozen = {"teacher": teacher} if self.needs_teacher else {}
        frozen |= {"target": params} if self.target_decay else {}
        return jax.tree.map(jnp.copy, frozen) or None

    def student(self, params: Any) -> Any:
        """Returns the parameters of the network that draws, which moving averages follow."""
        return params if self.parts is None else params[STUDENT]

    def update_frozen(self, frozen: dict | None, params: Any, step: Array) -> dict | None:
        """Returns `frozen` after the update that made `params`, the step-th (from 1)."""
        if self.target_decay is None:
            return frozen
        mu = jnp.asarray(self.target_decay(step), jnp.float32)
        mix = lambda old, new: mu * old + (1 - mu) * new  # noqa: E731
        return frozen | {"target": jax.tree.map(mix, frozen["target"], self.student(params))}


class Net(NamedTuple):
    """A network, a student or a teacher, and what a loss has to know of it.

    Attributes:
        apply: `(params, x, model_time, inputs, dropout_keys) -> F`; dropout is off without keys.
        schedule: the forward process.
        parameterization: what F means.
        null: name -> null value of the inputs that can be dropped; {} for an unconditional network.
        frame_noise: of clips, how the noise of frames is correlated; None: it is not.
        features: `(params, x, model_time, inputs) -> h`, what the network makes of x half-way, [B,
            H, W, C] or [B, C]; None if it does not say.
        guided: `(params, x, level, inputs) -> F` of a teacher that is guided, see `guides`; None:
            it is not.
        own: of the parameters of a teacher its own, beside those of what guides it.
        jumps: whether it is told how far to jump, the input "interval".
    """

    apply: Apply
    schedule: Schedule
    parameterization: Parameterization
    null: Mapping[str, Any] = {}
    features: Callable[[Any, Array, Array, dict[str, Array]], Array] | None = None
    frame_noise: Callable[[Array], Array] | None = None
    guided: Callable[[Any, Array, NoiseLevel, dict[str, Array]], Array] | None = None
    own: Callable[[Any], Any] = lambda params: params
    jumps: bool = False

    @property
    def alone(self) -> "Net":
        """The network without what guides it."""
        return self._replace(guided=None, own=lambda params: params)

    def noise(self, keys: Array, x: Array) -> Array:
        """Draws the noise of samples x [B, ...], one key per row."""
        z = normal_like(keys, x)
        return z if self.frame_noise is None else self.frame_noise(z)

    def output(self, params, x, level: NoiseLevel, inputs, dropout_keys=None) -> Array:
        """Returns F at x [B, ...] and levels [B] or [B, T]; with dropout if keys [B] are given."""
        if self.guided is not None:
            return self.guided(params, x, level, inputs)
        scale = expand(self.parameterization(level).input_scale, x)
        t = level.model_time
        t = jnp.broadcast_to(t, (len(x), *t.shape[1:]))  # [1, T] is of all rows
        return self.apply(params, scale * x, t, inputs, dropout_keys)

    def middle(self, params, x, level: NoiseLevel, inputs) -> Array:
        """Returns the features half-way at x [B, ...] and levels [B]."""
        scale = expand(self.parameterization(level).input_scale, x)
        return self.features(self.own(params), scale * x, level.model_time, inputs)

    def predict(self, params, x, level: NoiseLevel, inputs, dropout_keys=None) -> Prediction:
        """Returns x0 and eps at x [B, ...] and levels [B] or [B, T]."""
        output = self.output(params, x, level, inputs, dropout_keys)
        return predict(self.parameterization, x, level, output)


def split(keys: Array, count: int) -> list[Array]:
    """Returns `count` independent arrays of keys [B] from keys [B]."""
    return [jax.vmap(lambda key, p=p: jax.random.fold_in(key, p))(keys) for p in range(count)]


def normal_like(keys: Array, x: Array) -> Array:
    """Draws standard normals shaped like x [B, ...], one key per row."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def add_noise(x0: Array, eps: Array, level: NoiseLevel) -> Array:
    """Returns `alpha x0 + sigma eps` at levels [B], of clips also [B, T]."""
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps


def with_known(
    level: NoiseLevel, schedule: Schedule, keys: Array, frames: int, rate: float
) -> NoiseLevel:
    """Levels [B, T] of clips at levels [B], some frames of some of which are known.

    Args:
        level: of the other frames; at rate 0 it is returned as it is.
        schedule: its clean end is the level of known frames.
        keys: [B].
        frames: T.
        rate: probability that frames of a clip are known, as `time_samplers.some_known` says.
    """
    if not rate:
        return level
    which, whether = split(keys, 2)
    known = some_known(which, frames) & (jax.vmap(jax.random.uniform)(whether) < rate)[:, None]
    clean = schedule.level(jnp.float32(schedule.t_span[1]))
    pairs = zip(clean, level, strict=True)
    return NoiseLevel(*(jnp.where(known, of, field[:, None]) for of, field in pairs))


def check_known(known: float) -> None:
    """Raises ValueError unless it is a probability."""
    check_range("config.loss.known", known, "[0, 1]", "0.3 is usual, of networks of clips")


def conditions(batch: dict, keys: Array, null: Mapping[str, Any], dropout: float) -> dict:
    """Takes a network's inputs from the batch and drops them in some rows.

    Args:
        batch: holds every name in `null`, [B, ...] each, and "augment" for networks that are told
            it, in every row; it may hold "alone" for networks of clips.
        keys: [B].
        null: of the `Net`.
        dropout: probability that the inputs of a row become null.

    Raises:
        ValueError: the batch lacks an input.
    """
    missing = sorted(set(null) - set(batch))
    if missing:
        raise ValueError(f"the network takes {missing[0]!r}, and batches hold {sorted(batch)} only")
    told = {name: batch[name] for name in (AUGMENT, ALONE) if name in batch}
    return told | drop({name: jnp.asarray(batch[name]) for name in null}, null, keys, dropout)


def conditions_with_scale(
    batch: dict,
    keys: Array,
    null: Mapping[str, Any],
    dropout: float,
    guidance: tuple[float, float] | None,
) -> dict:
    """Returns `conditions`, and with a range of guidance scales also "guidance", uniform in it."""
    drop_key, scale_key = split(keys, 2)
    inputs = conditions(batch, drop_key, null, dropout)
    if guidance is None:
        return inputs
    low, high = guidance
    return inputs | {"guidance": low + (high - low) * jax.vmap(jax.random.uniform)(scale_key)}


def check_dropout(label_dropout: float) -> None:
    """Raises ValueError unless label_dropout is a probability."""
    check_range("config.loss.label_dropout", label_dropout, "[0, 1]", "0.1 is usual")


def check_guidance(
    guidance: tuple | None, null: Mapping[str, Any], teacher: Net | None = None
) -> None:
    """Raises ValueError for a range of guidance scales that the networks cannot be told.

    Args:
        guidance: the range; None for none.
        null: of the network, what can be dropped.
        teacher: which may be guided otherwise than away from that, see `guides.py`.
    """
    if guidance is None:
        return
    if not isinstance(guidance, (list, tuple)) or len(guidance) != 2:
        raise ValueError(
            f"config.loss.guidance must be (low, high), got {guidance}; (1, 5) is usual"
        )
    if not (null or teacher is not None and teacher.guided is not None):
        raise ValueError(
            f"config.loss.guidance={tuple(guidance)} needs a class-conditional network; set "
            "config.model.num_classes, or leave it out"
        )
    for end in guidance:
        check_range("an end of config.loss.guidance", end, "[-1000, 1000]", "1 is none")
    if guidance[0] > guidance[1]:
        raise ValueError(
            f"config.loss.guidance must be (low, high), got {guidance}; (1, 5) is usual"
        )


def check_can_guide(net: Net, label_dropout: float, needs: str) -> None:
    """Raises ValueError, which begins with `needs`, for a network without a trained null input."""
    if not (net.null and label_dropout):
        raise ValueError(
            f"{needs} a class-conditional network (config.model.num_classes) and "
            "config.loss.label_dropout > 0"
        )


VELOCITY = {"flow": (-1.0, 1.0)}
"""Of x0 and eps, what a velocity of a straight path is made of."""


def check_flow(net: Net, name: str, predictions: Mapping[str, tuple] = VELOCITY) -> str:
    """What a network on an unshifted straight path predicts, of the predictions that a loss takes.

    Args:
        net: the network.
        name: of the loss.
        predictions: those it takes, their weights of x0 and eps by name.

    Raises:
        ValueError: another schedule or prediction.
    """
    schedule = net.schedule
    level = schedule.level(schedule.t_span[0] / 2)
    row = net.parameterization(level)
    straight = schedule.t_span == (1.0, 0.0) and abs(level.alpha - 0.5) < 1e-6
    straight = straight and abs(level.sigma - 0.5) < 1e-6
    found = [of for of, weights in predictions.items() if weights == tuple(row)[:2]]
    if not straight or not found:
        wanted = " or ".join(map(repr, predictions))
        raise ValueError(
            f"config.loss.name='{name}' needs schedule 'rectified_flow' with shift 1 and "
            f"prediction {wanted}, got schedule {schedule.name!r}"
        )
    return found[0]


def silent(net: Net, t: float) -> bool:
    """Whether what a network predicts leaves x0 or eps open at a time of its schedule."""
    level = net.schedule.level(t)
    row = net.parameterization(level)
    det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
    size = max(abs(level.alpha * row.output_scale), abs(level.sigma * row.output_scale))
    return bool(abs(det) < 1e-6 * size)


def check_boundary(net: Net, ratio: float) -> None:
    """Raises ValueError unless the network's x0 is x / alpha, whatever F, at a noise ratio.

    Args:
        net: the network.
        ratio: sigma / alpha.
    """
    schedule = net.schedule
    t = schedule.time_of(-jnp.log(ratio)) if ratio else jnp.float32(schedule.t_span[1])
    level = schedule.level(t)
    ones = jnp.ones((1, 1))
    zero = predict(net.parameterization, ones, level, jnp.zeros((1, 1))).x0
    one = predict(net.parameterization, ones, level, ones).x0
    if not (jnp.abs(one - zero) < 1e-3 and jnp.abs(zero * level.alpha - 1) < 1e-3):
        raise ValueError(
            f"this prediction is not the identity at sigma / alpha = {ratio}, as a consistency "
            "function must be; use prediction 'consistency' with that sigma_min, or 'v', 'flow' "
            "or 'edm' with config.loss.pairs that end at 0"
        )


def regress(
    output: Array,
    parameterization: Parameterization,
    level: NoiseLevel,
    lam: Array,
    wanted: Prediction,
    weighting: Weighting | None,
) -> tuple[Array, dict]:
    """Weighted mean squared error of a network's output F.

    The weighting, on the squared error of x0, is turned into one on F by
    `x0_hat - x0 = -(sigma s / det) (F - F*)`, where s is the output scale and det the determinant
    of what F means; None is the plain mean over F. Of clips with a level for each frame, frames
    without noise are known, and the error is the mean over the others of each clip.

    Args:
        output: [B, ...] F.
        parameterization: what the network predicts.
        level: [B] where it was evaluated; of clips also [B, T], one for each frame.
        lam: log(alpha / sigma), of the level's shape.
        wanted: the target as x0 and eps, [B, ...] each.
        weighting: lam -> weight.

    Returns:
        The loss, and metrics "loss" and "mse_x0", the unweighted mean squared error of x0.
    """
    level, known = split_known(level)
    row = parameterization(level)
    det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
    to_x0 = (level.sigma * row.output_scale / det) ** 2
    error = output - target(parameterization, wanted, level)
    squared = jnp.mean(error**2, axis=tuple(range(jnp.ndim(level.sigma) or 1, error.ndim)))
    if known is not None:  # each clip counts the same, however many of its frames are known
        lam = jnp.where(known, 0.0, lam)
        counted = known.shape[1] / jnp.maximum((~known).sum(axis=1, keepdims=True), 1)
        squared = jnp.where(known, 0.0, counted * squared)
    weight = 1.0 if weighting is None else weighting(lam) * to_x0
    value = jnp.mean(weight * squared)
    return value, {"loss": value, "mse_x0": jnp.mean(to_x0 * squared)}
