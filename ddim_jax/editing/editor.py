"""A network as a map between images and latents, in batches over all devices.

    editor = Editor(model)
    trip = round_trip(model, "fixed_point", steps=50)
    code = editor.invert(trip, images, labels)       # images in [-1, 1]; code.state is the latent
    again = editor.draw(trip.down, code.state, labels)

Everything else of this package lies between the two calls, or replaces the second: another label, a
path between latents, a direction added, another network, a table that starts part of the way
(`partial`), a task that samples have to agree with. Programs are compiled once for a batch size and
a number of evaluations, whatever the images, labels, strengths and masks.
"""

import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import experiment, generation
from ddim_jax.editing.inversion import INVERSIONS, RoundTrip, reverse
from ddim_jax.editing.restoration import Known
from ddim_jax.guidance import Guidance
from ddim_jax.models.pretrained import Pretrained
from ddim_jax.sampling import Task
from ddim_jax.solvers import SOLVERS, SolverTable, State

Array = Any


class Inverted(NamedTuple):
    """What `Editor.invert` returns.

    Attributes:
        state: two [N, H, W, C]; `state.evaluate` is the latent, a standard normal for images that
            the network could have drawn. `draw` takes it as it is.
        residual: [N] of a fixed-point inversion of three evaluations a step or more: root mean
            square of its last change but one, in the worst of its steps; None for others.
    """

    state: State
    residual: np.ndarray | None


class Editor:
    """Images to latents, and back; what is compiled is kept.

    Attributes:
        model: the network.
    """

    def __init__(
        self,
        model: Pretrained,
        *,
        guidance: Guidance | None = None,
        batch_size: int = 64,
        show_progress: bool = True,
    ):
        """Compiles nothing yet.

        Args:
            model: the network.
            guidance: both ways; None, which inverts best, for none.
            batch_size: images at a time.
            show_progress: a bar over images, on a terminal.

        Raises:
            ValueError: guidance that the network does not know; no batch.
        """
        generation.check(model, 1, batch_size, guidance)
        self.model = model
        self._guidance, self._batch, self._show = guidance, batch_size, show_progress
        self._generators: dict[tuple, generation.Generator] = {}

    def invert(self, trip: RoundTrip, images: Array, labels: np.ndarray | None = None) -> Inverted:
        """The latents of images.

        Args:
            trip: from `round_trip`.
            images: [N, H, W, C] in [-1, 1].
            labels: [N], of a class-conditional network; default its null label.

        Raises:
            ValueError: images of another shape.
        """
        iterates = ("x",) if trip.repeats > 2 else ()
        states, residuals = [], []
        for result in self._run(trip.up, images, labels, "inverting", iterates):
            states.append(result.state)
            if iterates:
                residuals.append(_residual(result.collected["x"], trip.repeats))
        state = jax.tree.map(lambda *parts: np.concatenate(parts), *states)
        return Inverted(state, np.concatenate(residuals) if residuals else None)

    def draw(
        self,
        table: SolverTable,
        x: Array | State | None = None,
        labels: np.ndarray | None = None,
        *,
        task: Task | None = None,
        known: Known | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Samples: [N, H, W, C] float32, about -1..1.

        Args:
            table: `down` of a round trip, a table of `partial`, or any sampler.
            x: [N, H, W, C] or a state, what the table starts from: latents, or images for
                `partial`; default noise, as many as `known`.
            labels: as of `invert`.
            task: from `restoration`, what samples have to agree with.
            known: what is known of N images, for the task.
            seed: of noise.

        Raises:
            ValueError: x of another shape.
        """
        results = self._run(table, x, labels, "drawing", (), task, known, seed)
        return np.concatenate([result.x for result in results])

    def _run(self, table, x, labels, what, collect=(), task=None, known=None, seed=0):
        """Yields the results of the batches."""
        x, known = jax.tree.map(np.asarray, (x, known))
        if x is not None:
            self._check(x.evaluate if isinstance(x, State) else x)
            x = jax.tree.map(np.float32, x)
        count = len(jax.tree.leaves((x, known))[0])
        key = (collect, task)
        if key not in self._generators:
            self._generators[key] = generation.Generator(
                self.model, clip="none", collect=collect, task=task
            )
        for part in self._parts(count, what):
            yield self._generators[key].draw(
                table,
                part,
                seed=seed,
                x=jax.tree.map(lambda leaf, part=part: leaf[part], x),
                known=jax.tree.map(lambda leaf, part=part: leaf[part], known),
                labels=self._labels(labels, part, count),
                guidance=self._guidance,
            )

    def _parts(self, count: int, what: str):
        """Indices of the batches, with a bar; all but the last of one size."""
        disable = not (self._show and sys.stderr.isatty())
        with tqdm(total=count, unit="image", desc=what, disable=disable) as bar:
            for first in range(0, count, self._batch):
                part = np.arange(first, min(first + self._batch, count))
                yield part
                bar.update(len(part))

    def _labels(self, labels, part: np.ndarray, count: int) -> np.ndarray | None:
        classes = self.model.experiment.num_classes
        if not classes:
            return None
        labels = np.full(count, classes) if labels is None else np.asarray(labels)
        return labels[part].astype(np.int32)

    def _check(self, images: Array) -> None:
        wanted = self.model.experiment.image_shape
        if np.ndim(images) != 4 or np.shape(images)[1:] != wanted or not len(images):
            raise ValueError(
                f"{self.model.name} takes images [N, {', '.join(map(str, wanted))}], got "
                f"{list(np.shape(images))}"
            )


def round_trip(
    model: Pretrained,
    method: str = "fixed_point",
    steps: int = 50,
    stride: str | None = None,
    **options: Any,
) -> RoundTrip:
    """The tables up and down of an inversion.

    Args:
        model: the network.
        method: in `INVERSIONS`, or a deterministic solver in `SOLVERS` that runs both ways.
        steps: intervals of the stride.
        stride: a name; default uniform, or the solver's own.
        options: of the inversion, or of the solver.

    Raises:
        ValueError: an unknown name or option, a stochastic solver.
    """
    schedule = model.experiment.schedule
    experiment.lookup(SOLVERS | INVERSIONS, method, "inversion")
    if method in INVERSIONS:
        make = INVERSIONS[method]
        experiment.check_options(make, options, f"inversion {method!r}")
        times = experiment.build_times(schedule, stride or "uniform", steps)
        return make(**options)(schedule, times)
    info = SOLVERS[method]
    experiment.check_options(info.make, options, f"solver {method!r}")
    lam_min = {"lam_min": info.lam_min}
    times = experiment.build_times(schedule, stride or info.stride, steps, lam_min)
    return reverse(info.make(**options))(schedule, times)


def partial(
    model: Pretrained,
    solver: str,
    strength: float,
    steps: int = 50,
    stride: str | None = None,
    **solver_options: Any,
) -> SolverTable:
    """The table of SDEdit: an image is noised to the share `strength` of the way, and sampled.

    Args:
        model: the network.
        solver: in `SOLVERS`.
        strength: in (0, 1]; at 1 nothing of the image is left, where the schedule ends in noise.
        steps: of the whole stride, of which `round(strength steps)` are made.
        stride: a name; default uniform.
        solver_options: of the solver.

    Raises:
        ValueError: a strength out of range, or one that rounds to no step.

    Source: Meng et al. 2022 (SDEdit, arXiv:2108.01073).
    """
    count = round(strength * steps)
    if not 0 < strength <= 1 or not count:
        raise ValueError(
            f"strength must be in (0, 1] and make one of {steps} steps at least, got {strength}"
        )
    schedule, info = model.experiment.schedule, SOLVERS[solver]
    lam_min = {"lam_min": info.lam_min}
    times = experiment.build_times(schedule, stride or "uniform", steps, lam_min)
    times = times[len(times) - 1 - count :]
    level = schedule.level(times[0])
    table = info.make(**solver_options)(schedule, times)
    return table._replace(start=np.array([level.alpha, level.sigma])).validate()


def _residual(x: np.ndarray, repeats: int) -> np.ndarray:
    """[N] from the points of all rows [E, N, ...]; a step's last row ends where the next begins."""
    steps = x.reshape(-1, repeats, *x.shape[1:])
    change = steps[:, -2] - steps[:, -3]
    return np.sqrt(np.mean(change**2, axis=tuple(range(2, change.ndim)))).max(0)


def error(images: Array, again: Array) -> np.ndarray:
    """[N] mean squares of the difference, of pixels in 0..1, as in DDIM's table 2."""
    return np.mean(((np.asarray(images) - np.asarray(again)) / 2) ** 2, axis=(1, 2, 3))
