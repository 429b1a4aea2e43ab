"""A model as a map between images and latents, in batches over all devices.

    editor = Editor(model)
    trip = round_trip(model.schedule, "fixed_point", steps=50)
    latents = editor.invert(trip, x, labels)         # x: samples, such as images in [-1, 1]
    again = editor.draw(trip.down, latents.state, labels)

Of a network that is told texts, `prompt=` goes with both; x are then latents of pictures, as the
model's codec makes them.

Every edit changes something between the two calls, or the second call itself: another label, a path
between latents, a direction added to them, another model, the table of `sdedit.sdedit_table`, a
task from `restoration`. Programs are compiled once for a batch size and a number of evaluations,
whatever the images, labels, strengths and masks.
"""

import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax.batch_loop import Generator
from ddim_jax.dropping import Nulled
from ddim_jax.editing import null_text
from ddim_jax.editing.inversion import RoundTrip
from ddim_jax.editing.restoration import Known
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe
from ddim_jax.sampling import RunResult, Task
from ddim_jax.solvers import SolverTable, State

Array = Any
FAR_OFF = 4.0
"""Root mean square of an image's latent from which it is no noise; under a guidance scale of 15 it
was 2 at most."""


class Latents(NamedTuple):
    """What `Editor.invert` returns.

    Attributes:
        state: two [N, ...] arrays; `state.evaluate` holds the latents, standard normals for images
            that the model could have drawn. `Editor.draw` takes the state as it is.
        residual: [N] of a fixed-point inversion of three evaluations a step or more: root mean
            square of its last change but one, in the worst of its steps; None for others.
        nulls: of null-text inversion what `Editor.draw` needs with the state; None for others.
    """

    state: State
    residual: np.ndarray | None
    nulls: null_text.NullTexts | None = None


class Editor:
    """Maps images to latents and back; keeps what it has compiled.

    Args:
        model: the model, also an attribute. Its clean estimates are not clipped here.
        batch_size: images at a time.
        show_progress: show a bar over images, on a terminal.
        **guidance: `guidance_scale`, `guidance_interval`, `guidance_rescale` and
            `guidance_channels` as of `Recipe`, applied both ways; default none, which inverts best.

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

    @property
    def guided(self) -> bool:
        """Whether there is guidance away from a null, as negative prompts are."""
        return self.model.passes(self._recipe) > 1

    def invert(self, trip: RoundTrip, x: Array, labels: Any = None, **told: Any) -> Latents:
        """Returns the latents that samples are drawn from.

        Args:
            trip: from `inversion.round_trip`.
            x: [N, *sample_shape] samples, such as images in [-1, 1].
            labels: of a class-conditional model: [N], or one, or several in rotation, as numbers or
                names; default its null label.
            **told: prompt, negative_prompt and channels, as of `Model.conditions`.

        Raises:
            ValueError: samples of another shape, labels or texts that the model does not take.
        """
        if trip.iterations:
            return self._fit(trip, x, labels, told)
        collect = ("x",) if trip.repeats > 2 else ()
        states, residuals = [], []
        for result in self._run(trip.up, x, labels, "inverting", collect, told=told):
            states.append(result.state)
            if collect:
                residuals.append(_residual(result.collected["x"], trip.repeats))
        state = jax.tree.map(lambda *parts: np.concatenate(parts), *states)
        _warn_far_off(state.evaluate)
        return Latents(state, np.concatenate(residuals) if residuals else None)

    def draw(
        self,
        table: SolverTable,
        x: Array | State | None = None,
        labels: Any = None,
        *,
        task: Task | None = None,
        known: Known | None = None,
        nulls: null_text.NullTexts | None = None,
        seed: int = 0,
        **told: Any,
    ) -> np.ndarray:
        """Returns samples, [N, *sample_shape] float32.

        Args:
            table: `down` of a round trip, an SDEdit table, or that of any sampler.
            x: [N, *sample_shape] or a state, what the table starts from: latents, or samples for
                an SDEdit table; default noise for each row of `known`.
            labels: as of `invert`.
            task: from `restoration`, what samples have to agree with.
            known: what is known of N samples, for the task.
            nulls: of null-text inversion, what `invert` found; not with a task.
            seed: of noise.
            **told: as of `invert`.

        Raises:
            ValueError: as `invert`; neither x nor known.
        """
        if x is None and known is None:
            raise ValueError("draw needs x, what the table starts from, or known, for a task")
        given = {"told": told, "known": known, "seed": seed}
        if nulls is not None:
            given |= {"known": nulls, "generator": self._of_nulls("sampler")}
        results = self._run(table, x, labels, "drawing", task=task, **given)
        return np.concatenate([result.x for result in results])

    def _fit(self, trip: RoundTrip, x: Array, labels: Any, told: dict[str, Any]) -> Latents:
        """Null-text inversion: there and back without guidance, then null texts for that way."""
        name, inputs = self.model.name, self.model.inputs
        if not inputs.takes("text") or inputs.takes("guidance"):
            raise ValueError(
                f"null_text fits the null text of guidance, and {name} has none; use fixed_point, "
                "bdia or edict"
            )
        if "int" in inputs.declared["text"].dtype:
            raise ValueError(
                f"null_text fits features of a text, and {name} is told numbers of tokens; edit "
                "text_features.told_features(model)"
            )
        if self._recipe.guidance is None:
            raise ValueError(
                "null_text undoes guidance, and there is none; use guidance_scale=7.5, or "
                "fixed_point without"
            )
        given = {"told": told, "recipe": self._recipe.replace(guidance_scale=1.0)}
        states = [result.state for result in self._run(trip.up, x, labels, "inverting", **given)]
        state = jax.tree.map(lambda *parts: np.concatenate(parts), *states)
        _warn_far_off(state.evaluate)
        drawn = self._run(trip.down, state, labels, "drawing", ("x",), **given)
        points = np.concatenate([result.collected["x"] for result in drawn], axis=1)
        goals = np.stack([*points[:-1], np.asarray(x, np.float32)], axis=1)  # [N, S, ...]
        given = {"told": told, "generator": self._of_nulls("fit", trip.iterations)}
        given |= {"known": goals, "what": "fitting null texts"}
        found = list(self._run(trip.down, state.evaluate, labels, **given))
        return Latents(state, None, jax.tree.map(lambda *parts: np.concatenate(parts), *found))

    def _of_nulls(self, make: str, *options: Any) -> Generator:
        """The batch loop over a function of `null_text`."""
        if (make, options) not in self._generators:
            model = self.model
            null = Nulled(model.inputs.null)
            made = getattr(null_text, make)(model.network, model.parameterization, null, *options)
            self._generators[make, options] = Generator(made, model.params, model.sample_shape)
        return self._generators[make, options]

    def _run(
        self, table, x, labels, what, collect=(), *, told=None, task=None, known=None, seed=0,
        recipe=None, generator=None,
    ) -> Iterator[RunResult]:  # fmt: skip
        """Yields the results of the batches, with a bar."""
        recipe = recipe or self._recipe
        x, known = jax.tree.map(np.asarray, (x, known))
        if x is not None:
            self._check(x.evaluate if isinstance(x, State) else x)
            x = jax.tree.map(np.float32, x)
        count = len(jax.tree.leaves((x, known))[0])
        if labels is None and self.model.inputs.num_classes:
            labels = self.model.null_labels(count)
        elif not isinstance(labels, np.ndarray):  # of an array some rows may be the null label
            labels = self.model.inputs.labels(labels, count)
        if generator is None and (collect, task) not in self._generators:
            made = self.model.generator(recipe, collect=collect, task=task)
            self._generators[collect, task] = made
        generator = generator or self._generators[collect, task]
        conditions = self.model.conditions(count, recipe, labels, table, **(told or {}))
        given = conditions | {"x": x, "known": known, "seed": seed, "batch_size": self._batch_size}
        batches = generator.batches(table, np.arange(count), **given)
        disable = not (self._show and sys.stderr.isatty())
        with tqdm(total=count, unit="image", desc=what, disable=disable) as bar:
            for rows, result in batches:
                yield result
                bar.update(rows.stop - rows.start)

    def _check(self, x: np.ndarray) -> None:
        wanted = self.model.sample_shape
        if x.shape[1:] != wanted or not len(x):
            kind = "latents" if self.model.draws_latents else "images"
            raise ValueError(
                f"{self.model.name} takes {kind} [N, {', '.join(map(str, wanted))}], got "
                f"{list(x.shape)}; crop and resize them first"
            )


def _warn_far_off(latents: np.ndarray) -> None:
    """Warns of latents that no noise comes near; good ones, even under much guidance, are below."""
    sizes = np.sqrt(np.mean(latents.astype(np.float64) ** 2, axis=tuple(range(1, latents.ndim))))
    if many := int(np.sum(sizes > FAR_OFF)):
        warnings.warn(
            f"{many} of {len(sizes)} images were inverted to latents of a size up to "
            f"{sizes.max():.2g}, where noise has 1, so what is drawn from them means little: the "
            "network is untrained, or knows no such images; or else take less guidance, more steps "
            "or another method",
            stacklevel=3,
        )


def _residual(x: np.ndarray, repeats: int) -> np.ndarray:
    """[N] from the points of all rows [E, N, ...]; a step's last row ends where the next begins."""
    steps = x.reshape(-1, repeats, *x.shape[1:])
    change = steps[:, -2] - steps[:, -3]
    return np.sqrt(np.mean(change**2, axis=tuple(range(2, change.ndim)))).max(0)


def squared_error(x: Array, other: Array, span: float = 2.0) -> np.ndarray:
    """[N] mean squares of the difference of samples over their span.

    That of pixels, -1..1, is 2, as in DDIM's table 2; of latents, of unit variance, 1.
    """
    x, other = np.asarray(x, np.float32), np.asarray(other, np.float32)
    return np.mean(((x - other) / span) ** 2, axis=tuple(range(1, x.ndim)))
