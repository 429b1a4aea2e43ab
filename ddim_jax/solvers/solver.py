"""A solver: a function from times to a table, and what is known of it.

    solver = ddim(eta=0.0)
    table = solver(schedule, times)     # float64 numpy, a row for every network evaluation

A solver that follows eps, or evaluates inside its steps, cannot start where there is (almost) no
signal: its table would be infinite at alpha = 0 and useless a little above. It says so before it
makes one.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.table import SolverTable

LIMIT = -5.1
"""The lam below which integration in sigma space is useless; DPM-Solver's clipping (its code)."""

TOLERANCE = 1e-3
"""How far below its limit in lam a solver starts: strides reach it by rounded times."""

MakeTable = Callable[[Schedule, np.ndarray], SolverTable]
"""`(schedule, times [steps + 1]) -> SolverTable`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver:
    """A solver and its facts; call it for a table.

    Attributes:
        make_table: (schedule, times) -> table, without any check.
        order: of convergence on the probability-flow ODE, started with an exact history and without
            the lower orders of last steps; None for stochastic solvers.
        stages: network evaluations of a step that does not end at sigma = 0.
        stochastic: whether it draws noise.
        lam_min: half log-SNR below which it cannot start; strides clip to it. None: starts
            anywhere.
        stride: name of the stride it is drawn with unless another is asked for.
        terminal: how strides end for it, see `strides/fixed.py`, unless said otherwise.
        source: where it was published.
        warm_up: evaluations that the first steps take beyond `stages`.
        name: in `SOLVERS`; elsewhere that of its family. For messages.
        make: in `SOLVERS`: options -> the solver with these options; None elsewhere.
    """

    make_table: MakeTable
    order: int | None = None
    stages: int = 1
    stochastic: bool = False
    lam_min: float | None = None
    stride: str = "uniform"
    terminal: str = "zero"
    source: str = ""
    warm_up: tuple[int, ...] = ()
    name: str = ""
    make: Callable[..., "Solver"] | None = None

    def __call__(self, schedule: Schedule, times: np.ndarray) -> SolverTable:
        """The validated table of a stride.

        Args:
            schedule: the forward process.
            times: [steps + 1] in `schedule.t_span`, from noise to data, or (inversion) upwards.

        Raises:
            ValueError: the noisier end lies below `lam_min`; the table is not valid.
        """
        times = np.asarray(times, np.float64)
        self._check_start(schedule, times)
        return self.make_table(schedule, times).validate()

    def nfe(self, steps: int, terminal: str = "zero") -> int:
        """Network evaluations of `steps` steps; the step to sigma = 0 takes one."""
        into_clean = terminal in ("zero", "skip")
        full = steps - into_clean
        return self.stages * full + into_clean + sum(self.warm_up[:full])

    def _check_start(self, schedule: Schedule, times: np.ndarray) -> None:
        if self.lam_min is None:
            return
        with np.errstate(invalid="ignore"):  # times outside the schedule: `level` names them
            lam = np.min(schedule.half_log_snr(times[[0, -1]]))
        if lam < self.lam_min - TOLERANCE:
            raise ValueError(
                f"{self.name or 'this solver'} starts at half log-SNR {self.lam_min:g} or above, "
                f"and this stride starts at {lam:.4g}: give the stride lam_min={self.lam_min:g}, "
                f"as in strides.{self.stride}(schedule, steps, lam_min={self.lam_min:g})"
            )
