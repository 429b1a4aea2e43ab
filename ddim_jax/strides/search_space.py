"""Candidates for the race: fixed and learned families of strides between several pairs of ends.

Where a stride starts and where it evaluates last matters as much as what lies between. At the
noisiest levels a network predicts little more than the mean of the data, so a later start (the
initial noise is taken for a sample of that level) saves an evaluation; and the last evaluation,
from which a first-order step goes to the clean image, is wasted at a level with no visible noise.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.strides import adaptive, trajectories
from ddim_jax.strides.fixed import STRIDES, quadratic
from ddim_jax.strides.trajectories import Trajectory

FIXED = {
    "uniform": STRIDES["uniform"],
    "quadratic": quadratic,
    "quadratic, fraction 1": lambda schedule, steps, **ends: quadratic(
        schedule, steps, fraction=1.0, **ends
    ),
    **{name: STRIDES[name] for name in ("karras", "log_snr", "align_your_steps")},
}
"""The fixed strides among the candidates."""

STARTS = (-4.0, -3.25, -2.5)
"""Later noisy ends to try, in lam."""

LASTS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Levels of the last evaluation to try, in sigma / alpha."""


class Candidate(NamedTuple):
    """A family of strides, and its two ends.

    Attributes:
        family: a name in `families`.
        start: lam of the first evaluation, unless the schedule begins later; None for the
            schedule's noisy end.
        last: sigma / alpha of the last evaluation; None for the schedule's own `t_min`.
    """

    family: str
    start: float | None = None
    last: float | None = None

    def __str__(self) -> str:
        start = "" if self.start is None else f" from lam {self.start:g}"
        last = "" if self.last is None else f" to sigma/alpha {self.last:g}"
        return self.family + start + last


class Evidence(NamedTuple):
    """What the learned families are derived from.

    Attributes:
        trajectory: the teacher's, on M noisy nodes.
        mse: [M] of `trajectories.noising_errors` at these nodes.
    """

    trajectory: Trajectory
    mse: np.ndarray

    def between(self, highest: float, lowest: float) -> "Evidence":
        """The nodes with sigma / alpha in [lowest, highest].

        Raises:
            ValueError: there are none.
        """
        kept = trajectories.between(self.trajectory, highest, lowest)
        return Evidence(kept, self.mse[np.isin(self.trajectory.times[:-1], kept.times)])


def families(order: int) -> dict[str, Callable[..., np.ndarray]]:
    """Returns the functions `(schedule, evidence, steps, lam_min) -> times` by name.

    Args:
        order: of the solver, which some of the learned families depend on.
    """

    def fixed(make):
        return lambda schedule, evidence, steps, lam_min: make(schedule, steps, lam_min=lam_min)

    def learned(make, **options):
        return lambda schedule, evidence, steps, lam_min: make(
            schedule, evidence.trajectory, steps, **options
        )

    def elbo(schedule, evidence, steps, lam_min):
        return adaptive.elbo(schedule, evidence.trajectory.times[:-1], evidence.mse, steps)

    makers = {name: fixed(make) for name, make in FIXED.items()} | {"elbo": elbo}
    for metric, discount in (("l2", 1.0), ("l2", 1.15), ("dev", 1.0), ("dev", 1.15)):
        makers[f"gits {metric} {discount}"] = learned(
            adaptive.gits, metric=metric, discount=discount
        )
    for space in ("sigma", "lam"):
        for power in sorted({1, 2, order}):
            for propagate in (True, False):
                name = f"curvature {space} {power}" + " propagated" * propagate
                makers[name] = learned(
                    adaptive.curvature, order=power, space=space, propagate=propagate
                )
    return makers


def propose(
    candidates: Iterable[Candidate], schedule: Schedule, evidence: Evidence, steps: int, order: int
) -> dict[Candidate, np.ndarray]:
    """Returns the times of the candidates; leaves out repeated ones and those that do not fit.

    Args:
        candidates: from any of `families(order)`.
        schedule: the forward process.
        evidence: of a teacher on that schedule.
        steps: intervals.
        order: of the solver.
    """
    makers, proposed = families(order), {}
    for candidate in candidates:
        ending = schedule
        if candidate.last is not None:
            t_min = float(schedule.time_of(-np.log(candidate.last)))
            ending = dataclasses.replace(schedule, t_min=t_min)
        highest = np.inf if candidate.start is None else np.exp(-candidate.start)
        try:
            kept = evidence.between(highest, candidate.last or 0.0)
            times = makers[candidate.family](ending, kept, steps, candidate.start)
        except ValueError:
            continue
        repeated = any(np.array_equal(times, other) for other in proposed.values())
        if len(times) == steps + 1 and not repeated:
            proposed[candidate] = times
    return proposed
