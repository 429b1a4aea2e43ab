"""Learned strides as JSON files, which `sample.py --stride=file.json` takes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.table import Solver, SolverTable

FORMAT = "ddim_jax stride 1"


@dataclasses.dataclass(frozen=True)
class LearnedStride:
    """A stride and where it comes from.

    Attributes:
        times: [steps + 1], noise to clean.
        method: what it was made by, e.g. "curvature, refined".
        scores: name -> distance to the teacher on held-out noise, of all candidates.
        solver: name of the solver that it was learned for.
        lam: [steps] half log-SNR of the evaluations, by which the schedule is known again.
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

    def table(self, schedule: Schedule, solver: Solver) -> SolverTable:
        """The solver's table on this stride, with the learned change if there is one.

        Raises:
            ValueError: it was learned on another schedule; the change belongs to another solver.
        """
        inside = (self.times <= schedule.t_span[0]) & (self.times >= schedule.t_span[1])
        if not np.all(inside) or not np.allclose(
            schedule.half_log_snr(self.times[:-1]), self.lam, atol=1e-3
        ):
            raise ValueError(
                f"the stride was learned on another schedule than {schedule.name}: its times mean "
                "other noise levels; learn one with python -m ddim_jax.strides.fit"
            )
        table = solver(schedule, self.times)
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
        """What is not as it was when the stride was learned, in words."""
        found = []
        for name, value in actual.items():
            known = getattr(self, name)
            if known != value:
                changed = f"another {name}: {known!r}, now {value!r}"
                what = "other weights" if name == "weights" else changed
                found.append(f"it was learned with {what}")
        return found


def save(path: str | Path, stride: LearnedStride, overwrite: bool = False) -> None:
    """Writes a stride.

    Raises:
        FileExistsError: the file exists.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or pass --overwrite")
    fields = dataclasses.asdict(stride)
    for name in ("times", "lam", "history"):
        fields[name] = None if fields[name] is None else fields[name].tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT} | fields, indent=1) + "\n")


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
    for name in ("times", "lam", "history"):
        fields[name] = None if fields[name] is None else np.asarray(fields[name], np.float64)
    times = fields["times"]
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) < 0):
        raise ValueError(f"{path} is damaged: its times must fall from noise to clean")
    return LearnedStride(**fields)
