"""Chooses strides by how near they come to a teacher: `race` candidates, `refine` one by gradients.

Both measure the root mean square distance over pixels between a table's samples and a teacher's for
the same noise, with the actual sampler. `race` orders candidates by it on held-out noise. `refine`
moves the interior knots (in lam) down the gradient of the mean square: a sampler is differentiable
in its table, and a table in its times, by central differences in float64. So any solver can be
refined, and its coefficients too.

Sources: Watson et al. 2022 (DDSS, arXiv:2202.05830) for gradients through the sampler; Chen et al.
2024 (GITS, arXiv:2405.11326) and Xue et al. 2024 (arXiv:2402.17376) for following a teacher.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.solver import Solver
from ddim_jax.solvers.table import SolverTable

Array = Any
Sample = Callable[[Any, SolverTable, Array, Array, Any], Array]
"""(params, table, noise, keys, inputs) -> samples: a jitted sampler with guidance bound."""

LEAST_GAP = 0.02
"""Knots stay this far apart in lam while they are refined."""


class TeacherSamples(NamedTuple):
    """A teacher's samples and what they were drawn from, on the device.

    Attributes:
        noise: [B, ...] standard normals.
        keys: [B] of the samples.
        inputs: what the network is told, a pytree of [B, ...].
        samples: [B, ...] where the teacher takes the noise.
    """

    noise: Array
    keys: Array
    inputs: Any
    samples: Array

    def take(self, rows: Array) -> "TeacherSamples":
        """The samples in `rows`, spread over the same devices if their number allows."""

        def part(leaf: Array) -> Array:
            devices = leaf.sharding.device_set
            fits = len(rows) % len(devices) == 0
            return jax.device_put(leaf[rows], leaf.sharding if fits else min(devices, key=id))

        return jax.tree.map(part, jax.tree.map(jnp.asarray, self))


class Drawer(NamedTuple):
    """What a stride is searched for.

    Attributes:
        sample: see `Sample`.
        params: of the network.
        schedule: the forward process.
        solver: the solver.
    """

    sample: Sample
    params: Any
    schedule: Schedule
    solver: Solver

    def distance(self, table: SolverTable, teacher: TeacherSamples) -> float:
        """Root mean square over pixels to the teacher's samples; infinite if not all are finite."""
        x = self.sample(self.params, table, teacher.noise, teacher.keys, teacher.inputs)
        error = np.asarray(x, np.float64) - np.asarray(teacher.samples)
        return float(np.sqrt(np.mean(error**2))) if np.all(np.isfinite(error)) else np.inf


class Refined(NamedTuple):
    """What `refine` returns.

    Attributes:
        times: [steps + 1].
        history: [E, 2, H] added to the table's history weights, or None.
        distance: on the held-out noise; of the start where nothing was better.
        losses: [iterations] root mean square on the batches.
    """

    times: np.ndarray
    history: np.ndarray | None
    distance: float
    losses: np.ndarray


def race(
    drawer: Drawer,
    candidates: Mapping[Any, np.ndarray],
    held_out: TeacherSamples,
    progress: Callable[[Any, float], None] = lambda name, score: None,
) -> dict[Any, float]:
    """Returns the distance of every candidate, nearest first; without those that diverge.

    Args:
        drawer: sampler and solver.
        candidates: name -> times; of one length, so that they share a program.
        held_out: what to measure on.
        progress: called after each candidate with its name and distance.

    Raises:
        ValueError: the samples of no candidate are finite.
    """
    scores = {}
    for name, times in candidates.items():
        scores[name] = drawer.distance(drawer.solver(drawer.schedule, times), held_out)
        progress(name, scores[name])
    finite = [item for item in scores.items() if item[1] < np.inf]
    if scores and not finite:
        raise ValueError(
            "no candidate's samples are finite: is the guidance too strong, or the clip none?"
        )
    return dict(sorted(finite, key=lambda item: item[1]))


def refine(
    drawer: Drawer,
    times: np.ndarray,
    training: TeacherSamples,
    held_out: TeacherSamples,
    *,
    iterations: int = 60,
    batch_size: int = 16,
    learning_rate: float = 0.05,
    coefficients: bool = False,
    progress: Callable[[int, float], None] = lambda iteration, loss: None,
) -> Refined:
    """Improves the interior times, and optionally the history weights, by gradient descent.

    After every tenth of the iterations the result is measured on held-out noise; the best is
    returned, which may be the start.

    Args:
        drawer: sampler, which must be differentiable, and solver, which must be deterministic.
        times: [steps + 1] to start from; the ends stay.
        training: what to learn from.
        held_out: what to choose by.
        iterations: of Adam.
        batch_size: samples of `training` in each iteration, in rotation.
        learning_rate: in lam, annealed to 0; a tenth of it for the coefficients.
        coefficients: also learn a change of the table's history weights where they are not zero.
        progress: called after each iteration with its number and the distance on its batch.

    Raises:
        ValueError: the stride has no interior, or the solver draws noise.
    """
    knots = _Knots(drawer.schedule, drawer.solver, np.asarray(times, np.float64))
    table = knots.start()
    values = {"lam": knots.lam, "history": np.zeros(table.history.shape)}
    learned = coefficients * (table.history != 0)
    gradient = jax.jit(jax.value_and_grad(_loss(drawer.sample, table), argnums=1))
    optimizer = _optimizer(learning_rate, iterations)
    state = optimizer.init(jax.tree.map(jnp.asarray, values))
    best, losses = (drawer.distance(table, held_out), values), []
    for i in range(iterations):
        rows = np.arange(i * batch_size, (i + 1) * batch_size) % len(training.noise)
        loss, slope = gradient(drawer.params, _floats(knots.table(values)), training.take(rows))
        slopes = {
            "lam": knots.pull_back(slope, values["lam"]),
            "history": np.asarray(slope.history) * learned,
        }
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, slopes), state)
        values = {name: v + np.asarray(updates[name], np.float64) for name, v in values.items()}
        values["lam"] = knots.project(values["lam"])
        losses.append(float(loss) ** 0.5)
        progress(i, losses[-1])
        if (i + 1) % max(1, iterations // 10) == 0:
            score = drawer.distance(knots.table(values), held_out)
            best = min(best, (score, values), key=lambda pair: pair[0])
    score, chosen = best
    history = chosen["history"] if coefficients else None
    return Refined(knots.times(chosen["lam"]), history, score, np.array(losses))


def _optimizer(learning_rate: float, iterations: int) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(learning_rate, iterations)
    adam = {"lam": optax.adam(rate), "history": optax.adam(lambda step: rate(step) / 10)}
    return optax.multi_transform(adam, {"lam": "lam", "history": "history"})


def _floats(table: SolverTable) -> SolverTable:
    """The part of a table that can be differentiated, as a pytree."""
    floats = table._replace(slot=None, active=None)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), floats)


def _loss(sample: Sample, table: SolverTable) -> Callable[..., Array]:
    """(params, floats of a table like this one, batch) -> mean square distance to the teacher."""

    def loss(params: Any, floats: SolverTable, batch: TeacherSamples) -> Array:
        whole = floats._replace(slot=table.slot, active=table.active)
        x = sample(params, whole, batch.noise, batch.keys, batch.inputs)
        return jnp.mean((x - batch.samples) ** 2)

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

    def start(self) -> SolverTable:
        """The table of the knots as they were given, checked that it can be refined."""
        if not len(self.lam):
            raise ValueError("a stride of one step has no interior times to refine; use more steps")
        table = self.solver(self.schedule, self.times(self.lam))
        if not table.deterministic:
            raise ValueError(
                "refine needs a deterministic solver, such as ddim: noise hides what a time changes"
            )
        return table

    def times(self, lam: np.ndarray) -> np.ndarray:
        return np.concatenate([self.ends[:1], self.schedule.time_of(lam), self.ends[1:]])

    def table(self, values: dict[str, np.ndarray]) -> SolverTable:
        """The solver's table on these knots ("lam"), with the change of its weights ("history")."""
        table = self.solver(self.schedule, self.times(values["lam"]))
        return table._replace(history=table.history + values["history"])

    def project(self, lam: np.ndarray) -> np.ndarray:
        """Knots near these that rise by `LEAST_GAP` or more and keep that far from the ends."""
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
