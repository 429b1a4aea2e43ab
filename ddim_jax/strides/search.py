"""Strides chosen by what they do: race candidates with the actual sampler, refine by gradients.

Both measure the same thing, the root mean square distance over pixels between a table's samples and
a teacher's end points for the same noise. `race` takes the least on held-out noise. `refine` then
moves the interior knots (in lam) down the gradient of the mean square: a sampler is differentiable
in its table, and a table in its times, by central differences in float64. So any solver can be
refined, and its coefficients too.

Sources: Watson et al. 2022 (DDSS, arXiv:2202.05830) for gradients through the sampler; Kim et al.
2024 (arXiv:2405.11326) and Xue et al. 2024 (arXiv:2402.17376) for matching a teacher's end points.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.table import Solver, SolverTable

Array = Any
Sample = Callable[[Any, SolverTable, Array, Array, Any], Array]
"""(params, table, x, keys, cond) -> samples: a sampler with guidance bound."""

LEAST_GAP = 0.02
"""Knots stay this far apart in lam while they are refined."""


class Lesson(NamedTuple):
    """Noise and where a teacher takes it.

    Attributes:
        x: [B, ...] standard normals.
        keys: [B] of the samples.
        cond: their condition, or None.
        end: [B, ...] the teacher's samples.
    """

    x: Array
    keys: Array
    cond: Any
    end: Array

    def take(self, rows: Array) -> "Lesson":
        """The samples in `rows`, spread over the same devices if their number allows."""

        def part(leaf: Array) -> Array:
            devices = leaf.sharding.device_set
            fits = len(rows) % len(devices) == 0
            return jax.device_put(leaf[rows], leaf.sharding if fits else min(devices, key=id))

        return jax.tree.map(part, jax.tree.map(jnp.asarray, self))


class Refined(NamedTuple):
    """What `refine` returns.

    Attributes:
        times: [steps + 1].
        history: [E, 2, H] added to the table's history weights, or None.
        distance: on the held-out lesson; of the start where nothing was better.
        losses: [iterations] root mean square on the batches.
    """

    times: np.ndarray
    history: np.ndarray | None
    distance: float
    losses: np.ndarray


def distance(sample: Sample, params: Any, table: SolverTable, lesson: Lesson) -> float:
    """Root mean square over pixels between the table's samples and the teacher's."""
    x = sample(params, table, lesson.x, lesson.keys, lesson.cond)
    return float(np.sqrt(np.mean((np.asarray(x, np.float64) - np.asarray(lesson.end)) ** 2)))


def race(
    sample: Sample,
    params: Any,
    solver: Solver,
    schedule: Schedule,
    candidates: Mapping[str, np.ndarray],
    lesson: Lesson,
    progress: Callable[[str, float], None] = lambda name, score: None,
) -> dict[str, float]:
    """The distance of every candidate, nearest first.

    Args:
        sample: see `Sample`.
        params: of the network.
        solver: the solver that the stride is for.
        schedule: the forward process.
        candidates: name -> times; of one length, so that they share a program.
        lesson: held-out noise.
        progress: called after each candidate.
    """
    scores = {}
    for name, times in candidates.items():
        scores[name] = distance(sample, params, solver(schedule, times).validate(), lesson)
        progress(name, scores[name])
    return dict(sorted(scores.items(), key=lambda item: item[1]))


def refine(
    sample: Sample,
    params: Any,
    solver: Solver,
    schedule: Schedule,
    times: np.ndarray,
    lesson: Lesson,
    held_out: Lesson,
    *,
    iterations: int = 60,
    batch_size: int = 16,
    learning_rate: float = 0.05,
    coefficients: bool = False,
    progress: Callable[[int, float], None] = lambda iteration, loss: None,
) -> Refined:
    """Gradient descent on the interior times, and optionally the history weights.

    Every tenth of the way the result is measured on the held-out lesson; the best is returned,
    which may be the start.

    Args:
        sample: see `Sample`; differentiable, so without a padded table's waste.
        params: of the network.
        solver: deterministic.
        schedule: the forward process.
        times: [steps + 1], where to start from; the ends stay.
        lesson: to learn from.
        held_out: to choose by.
        iterations: of Adam.
        batch_size: samples of the lesson in each, in rotation.
        learning_rate: in lam, annealed to 0; a tenth of it for the coefficients.
        coefficients: also learn a change of the table's history weights where they are not zero.
        progress: called after each iteration with its batch's distance.

    Raises:
        ValueError: the stride has no interior, or the solver draws noise.
    """
    knots = _Knots(schedule, solver, np.asarray(times, np.float64))
    table = solver(schedule, knots.times(knots.lam))
    if not len(knots.lam):
        raise ValueError("a stride of one step has no interior times to refine")
    if not table.deterministic:
        raise ValueError("refine needs a deterministic solver: noise hides what a time does")
    gradient = jax.jit(jax.value_and_grad(_loss(sample, table), argnums=1))
    rates = optax.cosine_decay_schedule(learning_rate, iterations)
    adam = {"lam": optax.adam(rates), "history": optax.adam(lambda step: rates(step) / 10)}
    values = {"lam": knots.lam, "history": np.zeros(table.history.shape)}
    moments = {name: adam[name].init(jnp.asarray(values[name])) for name in values}
    mask = (table.history != 0) if coefficients else np.zeros(table.history.shape)

    def current() -> SolverTable:
        made = solver(schedule, knots.times(values["lam"]))
        return made._replace(history=made.history + values["history"])

    best = (distance(sample, params, current(), held_out), dict(values))
    losses, count = [], len(lesson.x)
    for i in range(iterations):
        rows = np.arange(i * batch_size, (i + 1) * batch_size)
        loss, slope = gradient(params, _floats(current()), lesson.take(rows % count))
        slopes = {
            "lam": knots.pull_back(slope, values["lam"]),
            "history": np.asarray(slope.history) * mask,
        }
        for name, value in values.items():
            update, moments[name] = adam[name].update(jnp.asarray(slopes[name]), moments[name])
            values[name] = value + np.asarray(update, np.float64)
        values["lam"] = knots.project(values["lam"])
        losses.append(float(loss) ** 0.5)
        progress(i, losses[-1])
        if (i + 1) % max(1, iterations // 10) == 0:
            score = distance(sample, params, current(), held_out)
            if score < best[0]:
                best = (score, dict(values))
    score, chosen = best
    history = chosen["history"] if coefficients else None
    return Refined(knots.times(chosen["lam"]), history, score, np.array(losses))


def _floats(table: SolverTable) -> SolverTable:
    """The part of a table that can be differentiated, as a pytree."""
    floats = table._replace(slot=None, active=None)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), floats)


def _loss(sample: Sample, table: SolverTable):
    def loss(params, floats: SolverTable, batch: Lesson) -> Array:
        whole = floats._replace(slot=table.slot, active=table.active)
        return jnp.mean((sample(params, whole, batch.x, batch.keys, batch.cond) - batch.end) ** 2)

    return loss


class _Knots:
    """The interior times of a stride as numbers in lam."""

    def __init__(self, schedule: Schedule, solver: Solver, times: np.ndarray):
        self.schedule, self.solver = schedule, solver
        self.ends = times[[0, -1]]
        self.lam = schedule.half_log_snr(times[1:-1])
        low, high = schedule.half_log_snr(times[0]), schedule.half_log_snr(schedule.t_min)
        at_end = schedule.half_log_snr(times[-1])
        self.low = -np.inf if np.isneginf(low) else low + LEAST_GAP
        self.high = high if np.isinf(at_end) else at_end - LEAST_GAP

    def times(self, lam: np.ndarray) -> np.ndarray:
        return np.concatenate([self.ends[:1], self.schedule.time_of(lam), self.ends[1:]])

    def project(self, lam: np.ndarray) -> np.ndarray:
        """The nearest increasing knots: pushed apart, and back from the ends."""
        steps = LEAST_GAP * np.arange(len(lam))
        lam = np.maximum.accumulate(lam - steps) + steps
        return np.clip(lam, self.low + steps, self.high - steps[::-1])

    def pull_back(self, slope: SolverTable, lam: np.ndarray, delta: float = 1e-4) -> np.ndarray:
        """The loss's derivative over lam from that over the table: slope . (dtable / dlam)."""
        derivative = np.zeros(len(lam))
        slopes = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(slope)]
        for k in range(len(lam)):
            shifted = []
            for sign in (1, -1):
                moved = lam.copy()
                moved[k] += sign * delta
                table = self.solver(self.schedule, self.times(moved))
                shifted.append(jax.tree.leaves(table._replace(slot=None, active=None)))
            for up, down, leaf in zip(*shifted, slopes, strict=True):
                derivative[k] += np.sum(leaf * (np.asarray(up) - np.asarray(down))) / (2 * delta)
        return derivative
