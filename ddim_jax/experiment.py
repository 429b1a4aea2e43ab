"""From a config to the parts it names: the one place where strings become functions.

A config (see `configs/`) is an `ml_collections.ConfigDict` with the sections `data`, `model`,
`schedule`, `prediction`, `loss`, `optimizer`, `ema`, `train` and `sample`. A section with a `name`
is that function's options, so `schedule = {name: "cosine", log_snr_min: -15}` is
`schedules.cosine(log_snr_min=-15)`.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ddim_jax import losses, probability_flow, sampling, solvers, strides
from ddim_jax.losses import TIMES, WEIGHTINGS
from ddim_jax.models import UNet, lpips, winograd
from ddim_jax.predictions import PREDICTIONS, Parameterization
from ddim_jax.schedules import SCHEDULES, Schedule
from ddim_jax.training.state import EMAS, Ema
from ddim_jax.training.step import make_optimizer

Array = Any


class Experiment(NamedTuple):
    """The parts of a config that sampling needs.

    Attributes:
        schedule: the forward process.
        parameterization: what the network predicts.
        model: the flax network.
        image_shape: (H, W, C) of a sample.
        num_classes: 0 for an unconditional network; num_classes itself is the null label.
    """

    schedule: Schedule
    parameterization: Parameterization
    model: UNet
    image_shape: tuple[int, int, int]
    num_classes: int

    def init(self, key: Array) -> Any:
        """Fresh parameters; run it under `jax.eval_shape` for their shapes alone."""
        x, one = jnp.zeros((1, *self.image_shape)), jnp.ones(1)
        cond = self.cond(jnp.zeros(1, jnp.int32), guidance=one, interval=one)
        return self.model.init(key, x, one, cond)["params"]

    def cond(
        self,
        labels: Array | None,
        *,
        guidance: Array | None = None,
        interval: Array | None = None,
    ) -> dict | None:
        """The network's condition, of what it takes; None for a network that takes none.

        Args:
            labels: int [B].
            guidance: scalar or [B], of a guided student; default 1, none.
            interval: [B], how far each step goes, of a network that is told.

        Raises:
            ValueError: the network is to be told the interval, and it is not given.
        """
        given = {"guidance": 1.0 if guidance is None else guidance, "interval": interval}
        cond = {"label": labels} if self.num_classes else {}
        for name in self.model.scalars:
            if given[name] is None:
                raise ValueError(
                    f"this network takes {name!r} as an input: sample it over equal steps"
                )
            value = jnp.asarray(given[name], jnp.float32)
            cond[name] = value if value.ndim else jnp.full(labels.shape, value)
        return cond or None

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input: a guided evaluation is then one forward pass."""
        return "guidance" in self.model.scalars

    def interval(self, table: solvers.SolverTable, count: int) -> np.ndarray | None:
        """How far each step of a table goes, [count] alike, for a network that is told; else None.

        Raises:
            ValueError: its steps are not all alike.
        """
        if "interval" not in self.model.scalars:
            return None
        gaps = -np.diff(np.append(table.level.t, table.end.t))
        if np.ptp(gaps) > 1e-6:
            raise ValueError(
                "this network is told how long its steps are, and the table's differ "
                f"({gaps.min():.3g} to {gaps.max():.3g}); use a one-stage solver on the uniform "
                "stride, such as ddim"
            )
        return np.full(count, gaps.mean(), np.float32)

    def null_cond(self, cond: dict) -> dict:
        """What the network saw in training where labels were dropped."""
        return cond | {"label": jnp.full_like(cond["label"], self.num_classes)}

    def apply(self, params, x, model_time, cond, dropout_key: Array | None = None) -> Array:
        """The network as a function; with a dropout key it is in training mode.

        Args:
            params: its parameters, or what `prepared` made of them.
            x: [B, H, W, C].
            model_time: [B].
            cond: of `cond`.
            dropout_key: None for none.
        """
        train = dropout_key is not None and self.model.dropout > 0
        rngs = {"dropout": dropout_key} if train else None
        variables = params if winograd.COLLECTION in params else {"params": params}
        return self.model.apply(variables, x, model_time, cond, train=train, rngs=rngs)

    def prepared(self, params: Any) -> Any:
        """Parameters for many evaluations on a CPU, for `apply`: see `models/winograd.py`."""
        if not winograd.any_suits(params):
            return params

        def transformed(params):  # the network is traced for its shapes; its output is not computed
            x, one = jnp.zeros((1, *self.image_shape)), jnp.ones(1)
            cond = self.cond(jnp.zeros(1, jnp.int32), guidance=one, interval=one)
            mutable = [winograd.COLLECTION]
            return self.model.apply({"params": params}, x, one, cond, mutable=mutable)[1]

        return {"params": params, winograd.COLLECTION: {}} | jax.jit(transformed)(params)

    def sampler(self, **options) -> Callable[..., sampling.RunResult]:
        """`sampling.make_sampler` for this network; options as there."""
        null_cond = self.null_cond if self.num_classes else None
        return sampling.make_sampler(
            self.apply, self.parameterization, null_cond=null_cond, **options
        )

    def adaptive_sampler(self, **options) -> Callable[..., probability_flow.AdaptiveResult]:
        """`probability_flow.make_adaptive_sampler` for this network; options as there."""
        null_cond = self.null_cond if self.num_classes else None
        return probability_flow.make_adaptive_sampler(
            self.apply, self.parameterization, self.schedule, null_cond=null_cond, **options
        )


def build(config: ml_collections.ConfigDict) -> Experiment:
    """The parts that a config names.

    Raises:
        ValueError: an unknown name or option, or a schedule that the prediction cannot serve.
    """
    schedule = _make(SCHEDULES, config.schedule, "schedule")
    if config.prediction.name == "eps" and schedule.level(schedule.t_span[0]).alpha == 0:
        raise ValueError(
            f"prediction 'eps' says nothing about x0 where alpha = 0, as {schedule.name} is at its "
            "noisy end; use prediction 'v' or 'flow'"
        )
    options = dict(config.model)
    check_options(UNet, options, "model")
    model = UNet(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    return Experiment(
        schedule=schedule,
        parameterization=_make(PREDICTIONS, config.prediction, "prediction"),
        model=model,
        image_shape=tuple(config.data.image_shape),
        num_classes=model.num_classes,
    )


def build_loss(
    config: ml_collections.ConfigDict, experiment: Experiment, teacher: Experiment | None = None
) -> losses.Loss:
    """The training method that a config names.

    Args:
        config: its section "loss".
        experiment: what is trained.
        teacher: what it starts from, if anything.

    Raises:
        ValueError: an unknown name or option.
    """
    options = config.loss.to_dict()
    name = options.pop("name")
    make = lookup(losses.LOSSES, name, "loss")
    check_options(make, options, "loss")
    if "times" in options:
        options["times"] = _make(TIMES, options["times"], "times", experiment.schedule)
    if "weighting" in options:
        options["weighting"] = _weighting(options["weighting"])
    if "pairs" in options:
        options["pairs"] = _pairs(options["pairs"])
    if isinstance(options.get("target_decay"), Mapping):
        options["target_decay"] = _decay(options["target_decay"], options.get("pairs"))
    if str(options.get("distance")).startswith("lpips:"):
        options["distance"] = lpips.load(options["distance"].partition(":")[2])
    if teacher is not None and "teacher" in inspect.signature(make).parameters:
        options["teacher"] = losses.Net(teacher.apply, teacher.parameterization)
    return make(
        experiment.apply,
        experiment.schedule,
        experiment.parameterization,
        num_classes=experiment.num_classes,
        **options,
    )


def _weighting(section: Mapping) -> losses.Weighting | None:
    if lookup(WEIGHTINGS, section["name"], "weighting") is not None:
        return _make(WEIGHTINGS, section, "weighting")
    extra = sorted(set(section) - {"name"})
    if extra:
        raise ValueError(f"weighting {section['name']!r} has no options, got {extra[0]!r}")
    return None


def _pairs(section: Mapping) -> losses.Pairs:
    options = dict(section)
    if "points" in options:
        options["points"] = _make(losses.POINTS, options["points"], "points")
    return _make(losses.PAIRS, options, "pairs")


def _decay(section: Mapping, pairs: losses.Pairs | None) -> Callable:
    if pairs is None or pairs.points is None:
        raise ValueError(
            "loss.target_decay by name needs loss.pairs on a grid, whose points it follows"
        )
    return _make({"adaptive": losses.adaptive_decay}, section, "target_decay", pairs.points)


def build_optimizer(config: ml_collections.ConfigDict):
    """The optax optimizer that a config names."""
    check_options(make_optimizer, config.optimizer, "optimizer")
    return make_optimizer(**config.optimizer)


def build_ema(config: ml_collections.ConfigDict) -> Ema:
    """The moving average that a config names."""
    return _make(EMAS, config.ema, "ema")


def build_table(
    schedule: Schedule,
    solver: str,
    stride: str | None = None,
    steps: int | None = None,
    *,
    solver_options: Mapping | None = None,
    stride_options: Mapping | None = None,
) -> solvers.SolverTable:
    """A checked table from names, the stride clipped to the solver's start limit.

    Args:
        schedule: the forward process.
        solver: a name in `SOLVERS`.
        stride: a name in `STRIDES`, or a `.json` file of a learned one; default the solver's own.
        steps: intervals of the stride; a file knows its own. Default 20.
        solver_options: of the solver; `analytical_first_step`, a standard deviation of the data,
            spares the first evaluation of any solver that can.
        stride_options: of the stride.

    Raises:
        ValueError: an unknown name or option, steps out of range, a file of another schedule.
    """
    info = lookup(solvers.SOLVERS, solver, "solver")
    options, stride_options = dict(solver_options or {}), dict(stride_options or {})
    data_std = options.pop("analytical_first_step", None)
    check_options(info.make, options, f"solver {solver!r}")
    make = info.make(**options)
    if data_std is not None:
        make = solvers.analytical_first_step(make, data_std)
    stride = stride or info.stride
    if stride.endswith(".json"):
        learned = strides.files.load(stride)
        if stride_options or steps not in (None, learned.steps):
            raise ValueError(
                f"{stride} holds {learned.steps} steps from its own noisy end; give neither steps "
                "nor stride options with it, or name another stride"
            )
        return learned.table(schedule, make)
    stride_options = {"lam_min": info.lam_min} | stride_options
    steps = 20 if steps is None else steps
    return make(schedule, build_times(schedule, stride, steps, stride_options)).validate()


def build_times(
    schedule: Schedule, stride: str, steps: int, options: Mapping | None = None
) -> np.ndarray:
    """[steps + 1] the times of a stride by its name.

    Raises:
        ValueError: an unknown name or option, steps out of range.
    """
    make = lookup(strides.STRIDES, stride, "stride")
    check_options(make, options or {}, f"stride {stride!r}")
    return make(schedule, steps, **(options or {}))


def lookup(known: Mapping, name: str, what: str) -> Any:
    """`known[name]`; an unknown name raises ValueError with the nearest and all known ones."""
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown {what} {name!r}{hint}; it is one of {', '.join(known)}")
    return known[name]


def _make(known: Mapping, section: Mapping, what: str, *args) -> Any:
    options = dict(section)
    make = lookup(known, options.pop("name"), what)
    check_options(make, options, what)
    return make(*args, **options)


def check_options(make: Callable, options: Mapping, what: str) -> None:
    """Raises ValueError if a function has no such options; `**options` are let through."""
    parameters = inspect.signature(make).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.name not in ("parent", "name") or what == "optimizer"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{what} has no option {unknown[0]!r}{hint}; it has {', '.join(known)}")
