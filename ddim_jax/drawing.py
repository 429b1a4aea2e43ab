"""Drawing with a model: its batches put together, with a bar; and what is known of the pictures."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax.adaptive_sampling import Tolerance
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SolverTable

SLOTS = 4
"""Of history, for which tables that draw latents have room, as nearly all solvers need no more: so
those of equal evaluations share a program, and compiling it takes minutes there."""
_BARS: list[tqdm] = []
"""The bar that is moved now; programs outlive theirs."""


class Drawing(NamedTuple):
    """What `Model.generate` returns.

    Attributes:
        pictures: uint8 [N, H, W, C].
        labels: int32 [N], or None for a network without classes.
        trajectory: uint8 [E, N, H, W, C], the clean estimate in every row, if asked for.
        nfe: int [N], network evaluations of each (a guided one costs two forward passes).
        compile_seconds: spent in tracing and compiling.
        seconds: spent in sampling.
    """

    pictures: np.ndarray
    labels: np.ndarray | None
    trajectory: np.ndarray | None
    nfe: np.ndarray
    compile_seconds: float
    seconds: float

    def first(self, count: int) -> "Drawing":
        """The first `count` pictures."""
        cut = {name: getattr(self, name) for name in ("pictures", "labels", "nfe")}
        cut = {name: None if array is None else array[:count] for name, array in cut.items()}
        trajectory = None if self.trajectory is None else self.trajectory[:, :count]
        return self._replace(trajectory=trajectory, **cut)


def generate(
    model: Any,
    recipe: Recipe,
    index: np.ndarray,
    labels: np.ndarray | None,
    told: dict[str, Any],
    *,
    seed: int,
    batch_size: int,
    trajectory: bool,
    progress: bool,
    parallel: str,
) -> Drawing:
    """Draws what `Model.generate` was asked for; arguments as there, checked.

    Args:
        model: a `Model`.
        recipe: how.
        index: int [N], places in the set.
        labels: int32 [N]; None for a network without classes.
        told: prompt and negative_prompt; of clips frame_rate and alone.
        seed: of the set.
        batch_size: samples at a time.
        trajectory: also keep the clean estimates.
        progress: show a bar.
        parallel: a name in `batch_loop.MODES`.
    """
    count, table = len(index), padded(model, recipe.table(model.schedule))
    adaptive = isinstance(table, Tolerance)
    rows = 1 if isinstance(table, Tolerance) else table.nfe
    total = -(-count // min(batch_size, count)) * rows
    options: dict[str, Any] = {"progress": tick} if progress and not adaptive else {}
    options |= {"collect": ("x0",)} if trajectory else {}
    with bar(total, "batch" if adaptive else "eval", progress) as shown:
        generator = model.kept_generator(recipe, parallel, **options)
        before = generator.compile_seconds, generator.seconds
        given = model.conditions(count, recipe, labels, table, **told)
        pictures, estimates, nfe = [], [], []
        for _, result in generator.batches(table, index, seed=seed, batch_size=batch_size, **given):
            pictures.append(model.pictures(result.x))
            nfe.append(np.broadcast_to(result.nfe if adaptive else rows, len(result.x)))
            if trajectory:
                estimates.append(np.stack([model.pictures(x) for x in result.collected["x0"]]))
            shown.update(adaptive)
    return Drawing(
        pictures=np.concatenate(pictures),
        labels=labels,
        trajectory=np.concatenate(estimates, 1) if trajectory else None,
        nfe=np.concatenate(nfe),
        compile_seconds=generator.compile_seconds - before[0],
        seconds=generator.seconds - before[1],
    )


def padded(model: Any, table: SolverTable | Tolerance) -> SolverTable | Tolerance:
    """A table with the room of `SLOTS`, of models that draw latents."""
    if isinstance(table, Tolerance) or not model.draws_latents:
        return table
    return table.pad(len(table.slot), max(SLOTS, table.history.shape[2]))


@contextlib.contextmanager
def bar(total: int, unit: str, progress: bool) -> Iterator[tqdm]:
    """A bar that `tick` moves, until all evaluations are done; without `progress` none is seen."""
    with tqdm(total=total, unit=unit, disable=not progress) as shown:
        _BARS[:] = [shown]
        yield shown
        jax.effects_barrier()


def tick(row: int) -> None:
    """Moves the bar by an evaluation."""
    for shown in _BARS:
        shown.update()
