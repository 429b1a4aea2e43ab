"""Candidates: fixed and learned families between several pairs of ends, raced in rounds.

Where a stride starts and where it evaluates last matters as much as what lies between. At the
noisiest levels a network predicts little more than the mean of the data, so a later start (the
initial noise is taken for a sample of that level) saves an evaluation; and the last evaluation,
from which a first-order step goes to the clean image, is wasted at a level with no visible noise.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.solver import LIMIT
from ddim_jax.strides import from_trajectories, search, trajectories
from ddim_jax.strides.by_index import quadratic
from ddim_jax.strides.fixed import STRIDES
from ddim_jax.strides.search import Drawer, TeacherSamples
from ddim_jax.strides.trajectories import Trajectory

FIXED = {
    "uniform": STRIDES["uniform"],
    "quadratic, fraction 0.8": partial(quadratic, fraction=0.8),
    "quadratic, fraction 1": partial(quadratic, fraction=1.0),
    **{name: STRIDES[name] for name in ("karras", "log_snr", "align_your_steps")},
}
"""The fixed strides among the candidates."""

STARTS = (-4.0, -3.25, -2.5)
"""Later noisy ends to try, in lam."""

LASTS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Levels of the last evaluation to try, in sigma / alpha."""

FEW = 16
"""Samples of the first two rounds."""
STARTED = 4
"""Candidates of the first round whose start is varied."""
FINALISTS = 6
"""Candidates of the first two rounds that take part in the last."""


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
    """Functions `(schedule, evidence, steps, lam_min) -> times` by name, for a solver's order."""

    def fixed(make):
        return lambda schedule, evidence, steps, lam_min: make(schedule, steps, lam_min=lam_min)

    def learned(make, **options):
        return lambda schedule, evidence, steps, lam_min: make(
            schedule, evidence.trajectory, steps, **options
        )

    def elbo(schedule, evidence, steps, lam_min):
        return from_trajectories.elbo(schedule, evidence.trajectory.times[:-1], evidence.mse, steps)

    makers = {name: fixed(make) for name, make in FIXED.items()} | {"elbo": elbo}
    for metric, discount in itertools.product(("l2", "dev"), (1.0, 1.15)):
        options = {"metric": metric, "discount": discount}
        makers[f"gits {metric} {discount}"] = learned(from_trajectories.gits, **options)
    powers = sorted({1, 2, order})
    for space, power, propagate in itertools.product(("sigma", "lam"), powers, (True, False)):
        options = {"space": space, "order": power, "propagate": propagate}
        name = f"curvature {space} {power}" + " propagated" * propagate
        makers[name] = learned(from_trajectories.curvature, **options)
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
    makers = families(order)
    proposed: dict[Candidate, np.ndarray] = {}
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


def choose(
    drawer: Drawer, evidence: Evidence, held_out: TeacherSamples, steps: int
) -> tuple[np.ndarray, str, dict[str, float]]:
    """Returns the best candidate's times and name, and the distances of the last round.

    The first round races every learned and fixed family with several last levels on few samples;
    the second varies where the best of them start; the last races the best of both, and the plain
    fixed strides, on all held-out noise.

    Args:
        drawer: sampler, schedule and solver.
        evidence: what learned candidates are derived from.
        held_out: what distances are measured on; nothing of it is in the evidence.
        steps: intervals.
    """
    order, lam_min = drawer.solver.order or 1, drawer.solver.lam_min
    few = held_out.take(np.arange(min(FEW, len(held_out.noise))))

    def race(candidates: Iterable[Candidate], teacher: TeacherSamples, what: str):
        times = propose(candidates, drawer.schedule, evidence, steps, order)
        with tqdm(total=len(times), desc=f"{steps} steps: {what}", unit="stride") as bar:
            return search.race(drawer, times, teacher, lambda *_: bar.update()), times

    limit = LIMIT if lam_min is None else lam_min
    kinds = [Candidate(name, limit, last) for name in families(order) for last in (None, *LASTS)]
    first, _ = race(kinds, few, "families and last levels")
    started = [c._replace(start=start) for c in list(first)[:STARTED] for start in STARTS]
    second, _ = race(started, few, "starts")
    best = sorted((first | second).items(), key=lambda item: item[1])[:FINALISTS]
    fixed = [Candidate(name, lam_min) for name in FIXED]
    scores, times = race([*fixed, *(candidate for candidate, _ in best)], held_out, "race")
    winner = next(iter(scores))
    return times[winner], str(winner), {str(name): score for name, score in scores.items()}
