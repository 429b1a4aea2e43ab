"""A model as a map between images and latents, in batches over all devices.

    editor = Editor(model)
    trip = round_trip(model.schedule, "fixed_point", steps=50)
    latents = editor.invert(trip, x, labels)         # x: samples, such as images in [-1, 1]
    again = editor.draw(trip.down, latents.state, labels)

Every edit changes something between the two calls, or the second call itself: another label, a path
between latents, a direction added to them, another model, the table of `sdedit.sdedit_table`, a
task from `restoration`. Programs are compiled once for a batch size and a number of evaluations,
whatever the images, labels, strengths and masks.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax.batch_loop import Generator
from ddim_jax.editing.inversion import RoundTrip
from ddim_jax.editing.restoration import Known
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe
from ddim_jax.sampling import RunResult, Task
from ddim_jax.solvers import SolverTable, State

Array = Any


class Latents(NamedTuple):
    """What `Editor.invert` returns.

    Attributes:
        state: two [N, ...] arrays; `state.evaluate` holds the latents, standard normals for images
            that the model could have drawn. `Editor.draw` takes the state as it is.
        residual: [N] of a fixed-point inversion of three evaluations a step or more: root mean
            square of its last change but one, in the worst of its steps; None for others.
    """

    state: State
    residual: np.ndarray | None


class Editor:
    """Maps images to latents and back; keeps what it has compiled.

    Args:
        model: the model, also an attribute. Its clean estimates are not clipped here.
        batch_size: images at a time.
        show_progress: show a bar over images, on a terminal.
        **guidance: `guidance_scale`, `guidance_interval` and `guidance_rescale` as of `Recipe`,
            applied both ways; default none, which inverts best.

    Raises:
        ValueError: guidance that the model was not trained for; a batch size below 1.
    """

    def __init__(
        self, model: Model, *, batch_size: int = 64, show_progress: bool = True, **guidance: Any
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}; 64 is usual")
        self.model = model
        self._recipe = Recipe(clip="none").replace(**guidance)
        model.check(self._recipe)
        self._batch_size, self._show = batch_size, show_progress
        self._generators: dict[tuple, Generator] = {}

    def invert(self, trip: RoundTrip, x: Array, labels: Any = None) -> Latents:
        """Returns the latents that samples are drawn from.

        Args:
            trip: from `inversion.round_trip`.
            x: [N, *sample_shape] samples, such as images in [-1, 1].
            labels: of a class-conditional model: [N], or one, or several in rotation, as numbers or
                names; default its null label.

        Raises:
            ValueError: samples of another shape, labels that the model does not have.
        """
        collect = ("x",) if trip.repeats > 2 else ()
        states, residuals = [], []
        for result in self._run(trip.up, x, labels, "inverting", collect):
            states.append(result.state)
            if collect:
                residuals.append(_residual(result.collected["x"], trip.repeats))
        state = jax.tree.map(lambda *parts: np.concatenate(parts), *states)
        return Latents(state, np.concatenate(residuals) if residuals else None)

    def draw(
        self,
        table: SolverTable,
        x: Array | State | None = None,
        labels: Any = None,
        *,
        task: Task | None = None,
        known: Known | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Returns samples, [N, *sample_shape] float32.

        Args:
            table: `down` of a round trip, an SDEdit table, or that of any sampler.
            x: [N, *sample_shape] or a state, what the table starts from: latents, or samples for
                an SDEdit table; default noise for each row of `known`.
            labels: as of `invert`.
            task: from `restoration`, what samples have to agree with.
            known: what is known of N samples, for the task.
            seed: of noise.

        Raises:
            ValueError: as `invert`; neither x nor known.
        """
        if x is None and known is None:
            raise ValueError("draw needs x, what the table starts from, or known, for a task")
        results = self._run(table, x, labels, "drawing", task=task, known=known, seed=seed)
        return np.concatenate([result.x for result in results])

    def _run(
        self, table, x, labels, what, collect=(), *, task=None, known=None, seed=0
    ) -> Iterator[RunResult]:
        """Yields the results of the batches, with a bar."""
        x, known = jax.tree.map(np.asarray, (x, known))
        if x is not None:
            self._check(x.evaluate if isinstance(x, State) else x)
            x = jax.tree.map(np.float32, x)
        count = len(jax.tree.leaves((x, known))[0])
        if labels is None and self.model.inputs.num_classes:
            labels = self.model.null_labels(count)
        elif not isinstance(labels, np.ndarray):  # of an array some rows may be the null label
            labels = self.model.inputs.labels(labels, count)
        if (collect, task) not in self._generators:
            made = self.model.generator(self._recipe, collect=collect, task=task)
            self._generators[collect, task] = made
        conditions = self.model.conditions(count, self._recipe, labels, table)
        given = conditions | {"x": x, "known": known, "seed": seed, "batch_size": self._batch_size}
        batches = self._generators[collect, task].batches(table, np.arange(count), **given)
        disable = not (self._show and sys.stderr.isatty())
        with tqdm(total=count, unit="image", desc=what, disable=disable) as bar:
            for _, result in batches:
                yield result
                bar.update(len(result.x))

    def _check(self, x: np.ndarray) -> None:
        wanted = self.model.sample_shape
        if x.shape[1:] != wanted or not len(x):
            raise ValueError(
                f"{self.model.name} takes images [N, {', '.join(map(str, wanted))}], got "
                f"{list(x.shape)}; crop and resize them first"
            )


def _residual(x: np.ndarray, repeats: int) -> np.ndarray:
    """[N] from the points of all rows [E, N, ...]; a step's last row ends where the next begins."""
    steps = x.reshape(-1, repeats, *x.shape[1:])
    change = steps[:, -2] - steps[:, -3]
    return np.sqrt(np.mean(change**2, axis=tuple(range(2, change.ndim)))).max(0)


def squared_error(x: Array, other: Array) -> np.ndarray:
    """[N] mean squares of the difference of samples, -1..1 taken to 0..1, as in DDIM's table 2."""
    x, other = np.asarray(x), np.asarray(other)
    return np.mean(((x - other) / 2) ** 2, axis=tuple(range(1, x.ndim)))
