"""What a training method is, and the regression that most of them end in."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddim_jax.denoisers import Apply
from ddim_jax.losses.weightings import Weighting
from ddim_jax.predictions import Parameterization, Prediction, expand, predict, target
from ddim_jax.schedules import NoiseLevel

Array = Any


@dataclasses.dataclass(frozen=True)
class Loss:
    """A training method: what is minimised, and what it keeps beside the parameters.

    Attributes:
        compute: `(params, frozen, batch, keys, step) -> (scalar, metrics)`. `batch` holds "image"
            [B, H, W, C] in [-1, 1] and, if labelled, "label" int32 [B]; `keys` [B] is one key per
            sample, so that a loss is the same however the batch is spread over devices.
        needs_teacher: `frozen["teacher"]` are the parameters of a trained network.
        target_decay: step -> mu, for methods whose `frozen["target"]` is a moving average of the
            parameters, `target <- mu target + (1 - mu) params`; None if there is none.
    """

    compute: Callable[[Any, Any, dict, Array, Array], tuple[Array, dict]]
    needs_teacher: bool = False
    target_decay: Callable[[Array], Array] | None = None

    def __call__(self, params, frozen, batch, keys, step):
        """The loss and its metrics, among them "loss"."""
        return self.compute(params, frozen, batch, keys, step)

    def freeze(self, params: Any, teacher: Any = None) -> dict | None:
        """What training starts with as `frozen`; copies, since a train step donates its state.

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

    def update_frozen(self, frozen: dict | None, params: Any, step: Array) -> dict | None:
        """`frozen` after the update that made `params`, the step-th (from 1)."""
        if self.target_decay is None:
            return frozen
        mu = jnp.asarray(self.target_decay(step), jnp.float32)
        mix = lambda old, new: mu * old + (1 - mu) * new  # noqa: E731
        return frozen | {"target": jax.tree.map(mix, frozen["target"], params)}


def split(keys: Array, count: int) -> list[Array]:
    """`count` independent [B] keys from keys [B]."""
    return [jax.vmap(lambda key, p=p: jax.random.fold_in(key, p))(keys) for p in range(count)]


def normal_like(keys: Array, x: Array) -> Array:
    """Standard normals shaped like x [B, ...], one key per sample."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def add_noise(x0: Array, eps: Array, level: NoiseLevel) -> Array:
    """`alpha x0 + sigma eps` at levels [B]."""
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps


def labels(batch: dict, keys: Array, num_classes: int, dropout: float) -> dict | None:
    """The condition of a class-conditional network, each label dropped with that probability."""
    if not num_classes:
        return None
    drop = jax.vmap(jax.random.uniform)(keys) < dropout
    return {"label": jnp.where(drop, num_classes, batch["label"])}


def check_dropout(label_dropout: float) -> None:
    """Raises ValueError unless label_dropout is a probability."""
    if not 0 <= label_dropout <= 1:
        raise ValueError(f"label_dropout must be in [0, 1], got {label_dropout}; 0.1 is usual")


class Net(NamedTuple):
    """A network and what it predicts, a student or a teacher.

    Attributes:
        apply: `(params, x, model_time, cond, dropout_key) -> F`.
        parameterization: what F means.
    """

    apply: Apply
    parameterization: Parameterization

    def output(self, params, x, level: NoiseLevel, cond, dropout_key: Array | None = None) -> Array:
        """F at x [B, ...] and levels [B]; in training mode with a dropout key."""
        scale = expand(self.parameterization(level).input_scale, x)
        return self.apply(params, scale * x, level.model_time, cond, dropout_key)

    def predict(self, params, x, level: NoiseLevel, cond, dropout_key=None) -> Prediction:
        """x0 and eps at x [B, ...] and levels [B]."""
        output = self.output(params, x, level, cond, dropout_key)
        return predict(self.parameterization, x, level, output)


def regress(
    output: Array,
    parameterization: Parameterization,
    level: NoiseLevel,
    lam: Array,
    wanted: Prediction,
    weighting: Weighting | None,
) -> tuple[Array, dict]:
    """Mean weighted square of what a network's output misses.

    The weighting, on the squared error of x0, is turned into one on the network's own output F,
    `x0_hat - x0 = -(sigma s / det) (F - F*)`; None is the plain mean over F.

    Args:
        output: [B, ...] F.
        parameterization: what the network predicts.
        level: [B] where it was evaluated.
        lam: [B] log(alpha / sigma).
        wanted: what it should have said.
        weighting: lam -> weight.

    Returns:
        The loss, and metrics "loss" and "mse_x0", the unweighted mean error of x0.
    """
    row = parameterization(level)
    det = level.alpha * row.eps_weight - level.sigma * row.x0_weight
    to_x0 = (level.sigma * row.output_scale / det) ** 2
    error = output - target(parameterization, wanted, level)
    squared = jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
    weight = 1.0 if weighting is None else weighting(lam) * to_x0
    value = jnp.mean(weight * squared)
    return value, {"loss": value, "mse_x0": jnp.mean(to_x0 * squared)}
