"""A recipe says how to draw: solver, stride, steps, guidance, clipping.

A config's section `sample` holds one, the flags of `sample.py` replace its fields, a sweep measures
many, and a stride is learned for one. Names become functions here and in `experiment.py`:

    recipe = Recipe.of(config).replace(solver="unipc_2", steps=8)
    table = recipe.table(schedule)                  # the solver's table on the stride's times
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import ml_collections
import numpy as np

from ddim_jax import solvers
from ddim_jax.adaptive_sampling import Tolerance
from ddim_jax.denoisers import CLIPS
from ddim_jax.guidance import Guidance
from ddim_jax.names import check_options, check_range, lookup, parse_options
from ddim_jax.schedules import Schedule
from ddim_jax.solvers import SOLVERS, Solver, SolverTable
from ddim_jax.strides import STRIDES, learned

ADAPTIVE = "adaptive"
"""The solver that is no table: it chooses its own steps, see `adaptive_sampling`."""
DEFAULT_STEPS = 20
MOST_STEPS = 10_000
MOST_GUIDANCE = 1000
"""Beyond it nothing is left of what the network says; 1 to 10 is usual."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to draw.

    Attributes:
        solver: a name in `SOLVERS`, or "adaptive", whose option is `tolerance`.
        stride: a name in `STRIDES`, or a `.json` file of a learned one; None: the solver's own.
        steps: intervals of the stride, 20 by default; a learned stride knows its own.
        solver_options: of the solver; `analytical_first_step`, a standard deviation of the data,
            saves the first evaluation of any solver that keeps one point; `lam_min` moves the half
            log-SNR that any solver starts at or above, None lifts it.
        stride_options: of the stride; `lam_min` and `terminal` are the solver's own unless given.
        guidance_scale: g; 1 is conditional only, 0 unconditional.
        guidance_interval: (low, high] in sigma / alpha; outside of it there is no guidance.
        guidance_rescale: in [0, 1], see `Guidance`.
        guidance_channels: how many of a sample's first channels are guided; None: all.
        clip: a name in `denoisers.CLIPS`, applied to the clean estimate.

    Raises:
        ValueError: an unknown clip; steps or a guidance value out of range.
    """

    solver: str = "ddim"
    stride: str | None = None
    steps: int | None = None
    solver_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stride_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, np.inf)
    guidance_rescale: float = 0.0
    guidance_channels: int | None = None
    clip: str = "static"

    def __post_init__(self):
        """Checks what does not depend on a schedule."""
        lookup(CLIPS, self.clip, "clip")
        for name in ("solver", "stride"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "solver"):
                raise ValueError(
                    f"a recipe's {name} must be a name, got {type(value).__name__}; a {name} of "
                    "your own makes a table for sampling.run"
                )
        for name in ("solver_options", "stride_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be a dict of options, got {getattr(self, name)!r}")
        if self.steps is not None:
            steps = check_range("steps", self.steps, f"[1, {MOST_STEPS}]", whole=True)
            object.__setattr__(self, "steps", steps)
        within = f"[-{MOST_GUIDANCE}, {MOST_GUIDANCE}]"
        check_range("guidance_scale", self.guidance_scale, within, "1 is none")
        check_range("guidance_rescale", self.guidance_rescale, "[0, 1]")
        if self.guidance_channels is not None:
            check_range("guidance_channels", self.guidance_channels, "[1, 65536]", whole=True)
        check_interval(self.guidance_interval)

    @staticmethod
    def of(config: ml_collections.ConfigDict) -> "Recipe":
        """The recipe in a config's section `sample`, which holds more, such as `num_samples`.

        Raises:
            ValueError: as of a recipe.
        """
        section = dict(config.get("sample") or {})
        known = [field.name for field in dataclasses.fields(Recipe)]
        section = {name: value for name, value in section.items() if name in known}
        for name in ("solver_options", "stride_options"):
            section[name] = _options(section.get(name), f"config.sample.{name}")
        if "guidance_interval" in section:
            check_interval(section["guidance_interval"])
            section["guidance_interval"] = tuple(section["guidance_interval"])
        return Recipe(**section)

    def replace(self, **changes: Any) -> "Recipe":
        """The recipe with other values; None leaves a value as it is.

        Naming a solver drops the options of the one before, and another solver brings its own
        stride; naming a stride drops the options of the one before, and a learned one brings its
        own number of steps.

        Raises:
            ValueError: a field that no recipe has.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        solver = SOLVERS.get(changes.get("solver", self.solver))
        options = inspect.signature(solver.make).parameters if solver and solver.make else {}
        for name in changes.keys() - {field.name for field in dataclasses.fields(self)}:
            if name in options:
                given = f"solver_options={{{name!r}: {changes[name]!r}}}"
                raise ValueError(f"{name} is an option of the solver: give {given}")
        changes = check_options(Recipe, changes, "a recipe")
        reset: dict[str, Any] = {}
        if "solver" in changes:
            reset["solver_options"] = {}
            if changes["solver"] != self.solver:
                reset |= {"stride": None, "stride_options": {}}
                reset |= {"steps": None} if changes["solver"] == ADAPTIVE else {}
        if "stride" in changes:
            reset["stride_options"] = {}
            reset |= {"steps": None} if _is_file(changes["stride"]) else {}
        return dataclasses.replace(self, **(reset | changes))

    @property
    def guidance(self) -> Guidance | None:
        """Classifier-free guidance as samplers take it; None where the scale is 1."""
        if self.guidance_scale == 1:
            return None
        where = (self.guidance_interval, self.guidance_rescale, self.guidance_channels)
        return Guidance(self.guidance_scale, *where)

    def make_solver(self) -> Solver:
        """The solver with its options.

        Raises:
            ValueError: an unknown name or option.
        """
        named, options = lookup(SOLVERS, self.solver, "solver"), dict(self.solver_options)
        data_std = options.pop("analytical_first_step", None)
        limit = {name: options.pop(name) for name in ("lam_min",) if name in options}
        if data_std is not None:
            check_range("analytical_first_step", data_std, "(0, 1000]", "images have about 0.5")
        if limit.get("lam_min") is not None:
            check_range("lam_min", limit["lam_min"], hint="None lifts it")
        options = check_options(named.make, options, f"solver {self.solver!r}")
        solver = dataclasses.replace(named.make(**options), **limit)
        return solver if data_std is None else solvers.analytical_first_step(solver, data_std)

    def times(self, schedule: Schedule) -> np.ndarray:
        """[steps + 1] the times that are visited, noise to clean.

        Raises:
            ValueError: an unknown name or option, steps out of range, a stride file of another
                schedule.
        """
        if _is_file(self.stride):
            return self._learned(self.stride).times_on(schedule)
        solver = self.make_solver()
        options = {"lam_min": solver.lam_min, "terminal": solver.terminal}
        options |= self.stride_options
        return make_times(schedule, self.stride or solver.stride, self.steps, options)

    def bare_times(self, schedule: Schedule, what: str) -> np.ndarray:
        """`times`, for what makes tables of its own on them.

        Args:
            schedule: the forward process.
            what: makes them, for the message.

        Raises:
            ValueError: as `times`; a stride file with coefficients, which would be lost.
        """
        if _is_file(self.stride) and self._learned(self.stride).history is not None:
            raise ValueError(
                f"{self.stride} holds coefficients of a drawing from noise by one solver, and "
                f"{what} makes another table; learn a stride without --coefficients, or use uniform"
            )
        return self.times(schedule)

    def table(self, schedule: Schedule) -> SolverTable | Tolerance:
        """The solver's table on the stride's times; of "adaptive" its tolerance.

        Raises:
            ValueError: as `times`; a stride that the solver cannot start from.
        """
        if self.solver == ADAPTIVE:
            return self._tolerance()
        if _is_file(self.stride):
            return self._learned(self.stride).table(schedule, self.make_solver())
        return self.make_solver()(schedule, self.times(schedule))

    def _learned(self, path: str) -> learned.LearnedStride:
        stride = learned.load(path)
        if self.stride_options or self.steps not in (None, stride.steps):
            raise ValueError(
                f"{self.stride} holds {stride.steps} steps from its own noisy end; give neither "
                "steps nor stride options with it, or name another stride"
            )
        return stride

    def _tolerance(self) -> Tolerance:
        given = {"steps": self.steps, "stride": self.stride, "stride_options": self.stride_options}
        for name, value in given.items():
            if value:
                raise ValueError(
                    f"solver adaptive chooses its own steps and takes no {name}; say how exact it "
                    "must be with tolerance"
                )
        unknown = sorted(set(self.solver_options) - {"tolerance"})
        if unknown:
            raise ValueError(f"solver adaptive has one option, tolerance; got {unknown[0]!r}")
        tolerance = self.solver_options.get("tolerance", 1e-3)
        return Tolerance(tolerance, tolerance).validate()

    @property
    def stride_name(self) -> str:
        """The stride and its options as text, like quadratic:fraction=1; of a file its name."""
        stride = self.stride or self.make_solver().stride
        stride = Path(stride).name if _is_file(stride) else stride
        return ":".join([stride, *(f"{k}={v}" for k, v in self.stride_options.items())])

    def describe(self, table: SolverTable | Tolerance) -> str:
        """The recipe in a few words, for reports."""
        if isinstance(table, Tolerance):
            return f"adaptive, tolerance {table.rtol:g}"
        options = [f"{k}={v}" for k, v in self.solver_options.items()]
        return f"{':'.join([self.solver, *options])}, {self.stride_name} stride, {table.nfe} NFE"


def check_interval(interval: Any) -> None:
    """Raises ValueError unless a guidance interval is (low, high) with 0 <= low < high."""
    ends = np.asarray(interval)
    if ends.shape != (2,) or ends.dtype.kind not in "iuf" or not 0 <= ends[0] < ends[1]:
        raise ValueError(
            f"guidance_interval must be low,high with 0 <= low < high, got {interval}; 0,inf "
            "guides everywhere"
        )


def parse_stride(text: str) -> dict[str, Any]:
    """`stride` and `stride_options` of text like quadratic:fraction=1, or of a `.json` path.

    Raises:
        ValueError: options that are not like name=value.
    """
    if _is_file(text):
        return {"stride": text, "stride_options": {}}
    stride, *options = text.split(":")
    return {"stride": stride, "stride_options": parse_options(options, f"options of {stride}")}


def make_times(
    schedule: Schedule, stride: str, steps: int | None = None, options: Mapping | None = None
) -> np.ndarray:
    """[steps + 1] the times of a stride by its name; 20 steps by default.

    Raises:
        ValueError: an unknown name or option, steps out of range.
    """
    steps = DEFAULT_STEPS if steps is None else steps
    make = functools.partial(lookup(STRIDES, stride, "stride"), schedule, steps)
    return make(**check_options(make, options or {}, f"stride {stride!r}"))


def whole_path(stride: str | None) -> str | None:
    """A stride by which it is found from any folder: of a file its whole path, else its name."""
    return str(Path(stride).absolute()) if _is_file(stride) else stride


def _is_file(stride: str | None) -> TypeGuard[str]:
    return stride is not None and stride.endswith(".json")


def _options(section: Any, what: str) -> dict[str, Any]:
    """A section of options, or text like eta=0.5, as a dict."""
    if section is None or isinstance(section, str):
        return parse_options(section or "", what)
    if not isinstance(section, Mapping | ml_collections.ConfigDict):
        raise ValueError(f"{what} must be options like eta=0.5, got {section!r}")
    return section.to_dict() if isinstance(section, ml_collections.ConfigDict) else dict(section)
