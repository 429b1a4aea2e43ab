"""Reads and writes learned strides as JSON, for `sample.py --stride=file.json`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import files
from ddim_jax.schedules import Schedule
from ddim_jax.solvers.solver import Solver
from ddim_jax.solvers.table import SolverTable

FORMAT = "ddim_jax stride 1"


@dataclasses.dataclass(frozen=True)
class LearnedStride:
    """A stride and where it comes from.

    Attributes:
        times: [steps + 1], noise to clean.
        method: what made it, such as "curvature, refined".
        scores: name -> distance to the teacher on held-out noise, of all candidates.
        solver: name of the solver that it was learned for.
        lam: [steps] half log-SNR of the evaluations, by which another schedule is noticed.
        guidance: the guidance scale.
        checkpoint: name of the network.
        weights: sha256 of its parameters.
        history: [E, 2, H] to be added to the table's history weights; None for the solver's own.
    """

    times: np.ndarray
    method: str
    scores: dict[str, float]
    solver: str
    lam: np.ndarray
    guidance: float
    checkpoint: str
    weights: str
    history: np.ndarray | None = None

    def times_on(self, schedule: Schedule) -> np.ndarray:
        """Returns its times, [steps + 1].

        Raises:
            ValueError: it was learned on another schedule.
        """
        inside = (self.times <= schedule.t_span[0]) & (self.times >= schedule.t_span[1])
        if not np.all(inside) or not np.allclose(
            schedule.half_log_snr(self.times[:-1]), self.lam, atol=1e-3
        ):
            raise ValueError(
                f"the stride was learned on another schedule than {schedule.name}: its times mean "
                "other noise levels; learn one with python -m ddim_jax.strides.fit"
            )
        return self.times

    def table(self, schedule: Schedule, solver: Solver) -> SolverTable:
        """Returns the solver's table on this stride, with the learned coefficients if any.

        Raises:
            ValueError: it was learned on another schedule; the coefficients belong to another
                solver.
        """
        table = solver(schedule, self.times_on(schedule))
        if self.history is None:
            return table.validate()
        if self.history.shape != table.history.shape:
            raise ValueError(
                f"the stride holds coefficients for solver {self.solver!r} alone: a table of shape "
                f"{self.history.shape}, not {table.history.shape}"
            )
        return table._replace(history=table.history + self.history).validate()

    @property
    def steps(self) -> int:
        """Intervals."""
        return len(self.times) - 1

    def differences(self, **actual: Any) -> list[str]:
        """Says how the present settings differ from those that the stride was learned with.

        Args:
            **actual: attributes of this class, such as solver="ddim", as they are now.

        Returns:
            A clause for each difference, such as "it was learned with other weights".
        """
        differences = []
        for name, value in actual.items():
            learned = getattr(self, name)
            if learned != value:
                changed = f"another {name}: {learned!r}, now {value!r}"
                what = "other weights" if name == "weights" else changed
                differences.append(f"it was learned with {what}")
        return differences


def save(path: str | Path, stride: LearnedStride, overwrite: bool = False) -> None:
    """Writes a stride.

    Raises:
        FileExistsError: the file exists.
    """
    path = files.check_new(path, overwrite=overwrite)
    fields = dataclasses.asdict(stride)
    for name in ("times", "lam", "history"):
        fields[name] = None if fields[name] is None else fields[name].tolist()
    content = json.dumps({"format": FORMAT} | fields, indent=1) + "\n"
    files.save(path, lambda file: file.write(content.encode()))


def load(path: str | Path) -> LearnedStride:
    """Reads a stride.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a stride, or its times are not strictly monotone.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no stride file {path}; python -m ddim_jax.strides.fit makes them, and the named "
            "strides are those of strides.STRIDES"
        )
    try:
        fields = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a stride file: it lacks 'format': {FORMAT!r}")
    known = {field.name for field in dataclasses.fields(LearnedStride)}
    if set(fields) != known:
        wrong = sorted(set(fields) ^ known)
        raise ValueError(f"{path} is damaged: fields {', '.join(wrong)} are missing or unknown")
    with files.interpreting(path):
        for name in ("times", "lam", "history"):
            optional = name == "history" and fields[name] is None
            fields[name] = None if optional else np.asarray(fields[name], np.float64)
    times = fields["times"]
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) < 0):
        raise ValueError(f"{path} is damaged: its times must fall from noise to clean")
    return LearnedStride(**fields)
