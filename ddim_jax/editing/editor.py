"""A network as a map between images and latents, in batches over all devices.

    editor = Editor(model, steps=50)
    code = editor.invert(images, labels)             # images in [-1, 1]; code.state is the latent
    again = editor.draw(code.state, labels)

Everything else of this package lies between the two calls, or replaces the second: another label, a
path between latents, a direction added, another network. Programs are compiled once for a batch
size, whatever the images, labels, strengths and masks.
"""

import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import experiment, generation
from ddim_jax.editing.inversion import INVERSIONS, reverse
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
    """Images to latents, and back.

    Attributes:
        model: the network.
        trip: the tables.
    """

    def __init__(
        self,
        model: Pretrained,
        *,
        method: str = "fixed_point",
        steps: int = 50,
        stride: str | None = None,
        guidance: Guidance | None = None,
        batch_size: int = 64,
        show_progress: bool = True,
        **options: Any,
    ):
        """Makes the tables; nothing is compiled yet.

        Args:
            model: the network.
            method: in `INVERSIONS`, or a deterministic solver in `SOLVERS` that runs both ways.
            steps: intervals of the stride.
            stride: a name; default uniform, or the solver's own.
            guidance: both ways; None, which inverts best, for none.
            batch_size: images at a time.
            show_progress: a bar over images, on a terminal.
            options: of the inversion, or of the solver.

        Raises:
            ValueError: an unknown name or option, a stochastic solver, guidance that the network
                does not know.
        """
        generation.check(model, 1, batch_size, guidance)
        self.model, self.steps, self.method = model, steps, method
        self._guidance, self._batch, self._show = guidance, batch_size, show_progress
        schedule = model.experiment.schedule
        experiment.lookup(SOLVERS | INVERSIONS, method, "inversion")
        if method in INVERSIONS:
            times = experiment.build_times(schedule, stride or "uniform", steps)
            make = INVERSIONS[method]
            experiment.check_options(make, options, f"inversion {method!r}")
            self.trip = make(**options)(schedule, times)
        else:
            info = SOLVERS[method]
            experiment.check_options(info.make, options, f"solver {method!r}")
            lam_min = {"lam_min": info.lam_min}
            times = experiment.build_times(schedule, stride or info.stride, steps, lam_min)
            self.trip = reverse(info.make(**options))(schedule, times)
        collect = ("x",) if self.trip.repeats > 2 else ()
        self._up = generation.Generator(model, clip="none", collect=collect)
        self._down = generation.Generator(model, clip="none")

    def invert(self, images: Array, labels: np.ndarray | None = None) -> Inverted:
        """The latents of images.

        Args:
            images: [N, H, W, C] in [-1, 1].
            labels: [N], of a class-conditional network; default its null label.

        Raises:
            ValueError: images of another shape.
        """
        self._check(images)
        states, residuals = [], []
        for part in self._parts(len(images), "inverting"):
            result = self._up.draw(
                self.trip.up,
                part,
                x=np.asarray(images, np.float32)[part],
                labels=self._labels(labels, part, len(images)),
                guidance=self._guidance,
            )
            states.append(result.state)
            if "x" in result.collected:
                residuals.append(_residual(result.collected["x"], self.trip.repeats))
        state = jax.tree.map(lambda *parts: np.concatenate(parts), *states)
        return Inverted(state, np.concatenate(residuals) if residuals else None)

    def draw(self, latents: Array | State, labels: np.ndarray | None = None) -> np.ndarray:
        """The images of latents: [N, H, W, C] float32, about -1..1.

        Args:
            latents: [N, H, W, C], or a state.
            labels: as of `invert`.

        Raises:
            ValueError: latents of another shape.
        """
        state = latents if isinstance(latents, State) else State(latents, latents)
        state = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), state)
        self._check(state.evaluate)
        return self._run(self._down, self.trip.down, state, labels, "drawing")

    def restore(
        self,
        task: Task,
        table: SolverTable,
        known: Known,
        labels: np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Samples that agree with what is known of them: [N, H, W, C].

        Args:
            task: from `restoration`.
            table: any sampler; for RePaint, `restoration.repaint`.
            known: of N images.
            labels: as of `invert`.
            seed: of the noise.
        """
        generator = generation.Generator(self.model, clip="none", task=task)
        count = len(known.y)
        return self._run(generator, table, None, labels, "restoring", known, seed, count)

    def vary(
        self, images: Array, table: SolverTable, labels: np.ndarray | None = None, seed: int = 0
    ) -> np.ndarray:
        """Noises images as the table's start says and samples from there (SDEdit): [N, H, W, C].

        Args:
            images: [N, H, W, C] in [-1, 1].
            table: from `partial`.
            labels: as of `invert`.
            seed: of the noise.

        Raises:
            ValueError: images of another shape.
        """
        self._check(images)
        x = np.asarray(images, np.float32)
        return self._run(self._down, table, x, labels, "drawing", seed=seed)

    def _run(self, generator, table, x, labels, what, known=None, seed=0, count=None):
        count = len(jax.tree.leaves(x)[0]) if count is None else count
        drawn = []
        for part in self._parts(count, what):
            result = generator.draw(
                table,
                part,
                seed=seed,
                x=jax.tree.map(lambda leaf, part=part: leaf[part], x),
                known=jax.tree.map(lambda leaf, part=part: np.asarray(leaf)[part], known),
                labels=self._labels(labels, part, count),
                guidance=self._guidance,
            )
            drawn.append(result.x)
        return np.concatenate(drawn)

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


def partial(
    model: Pretrained, solver: str, strength: float, steps: int = 50, **solver_options: Any
) -> SolverTable:
    """The table of SDEdit: an image is noised to the share `strength` of the way, and sampled.

    Args:
        model: the network.
        solver: in `SOLVERS`.
        strength: in (0, 1]; at 1 nothing of the image is left, where the schedule ends in noise.
        steps: of the whole stride, of which `round(strength steps)` are made.
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
    times = experiment.build_times(schedule, "uniform", steps, {"lam_min": info.lam_min})
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
