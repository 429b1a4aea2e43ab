"""A table for clips in which every frame has rows of its own: one frame runs behind another.

Frame f goes through the given table from row `delays[f]` on. Before that it waits as noise, at the
first level; after it, it is done and keeps its place, at the clean level. The network must have
learnt such levels, one for each frame (config.loss.frame_levels).

    delays           the clip is drawn
    0, 0, 0, ...     at once: the table itself
    0, d, 2 d, ...   frame behind frame, d rows apart
    rows apart       frame after frame, each when the ones before are done

Rows of the new table have numbers for each frame: levels [E, 1, T], weights [E, ..., 1, T, 1, 1, 1]
to multiply clips [B, T, H, W, C].

Source: Chen et al. 2024 (arXiv:2407.01392), section 3.3: a scheduling matrix of frames and rows.
"""

from collections.abc import Sequence

import numpy as np

from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.solvers.table import SolverTable


def staggered(table: SolverTable, delays: Sequence[int], schedule: Schedule) -> SolverTable:
    """The table in which frame f runs `table` from row delays[f] on.

    Args:
        table: of any solver, not padded.
        delays: [T] rows, 0 or more; the least is 0.
        schedule: of the table; its clean end is what frames that are done are told.

    Returns:
        A table of max(delays) rows more, for clips of T frames.

    Raises:
        ValueError: delays that are none, a padded table, one of clips already.
    """
    first_rows = _checked(table, delays)
    rows, frames = len(table.slot), len(first_rows)
    total, weights = rows + first_rows.max(), _by_age(table)
    slots = weights.shape[-1]

    def blank(*shape: int) -> np.ndarray:
        return np.zeros((total, *shape, frames))

    store, state, history, noise = blank(2), blank(2, 2), blank(2, slots), blank(2)
    state[:, [0, 1], [0, 1]] = 1.0  # at rest, a frame keeps both points
    level = NoiseLevel(*(blank() for _ in NoiseLevel._fields))
    clean = schedule.level(np.float64(schedule.t_span[1]))
    for f, first in enumerate(first_rows):
        own = slice(first, first + rows)
        store[own, :, f], noise[own, :, f] = table.store, table.noise
        state[own, :, :, f] = table.state
        for k in range(rows):
            for age in range(slots):
                history[first + k, :, (first + k - age) % slots, f] = weights[k, :, age]
        for field, of_table, last in zip(level, table.level, clean, strict=True):
            field[:first, f], field[own, f], field[first + rows :, f] = of_table[0], of_table, last

    def per_frame(numbers: np.ndarray) -> np.ndarray:  # [..., T] -> [..., 1, T, 1, 1, 1]
        return numbers[..., None, :, None, None, None]

    return SolverTable(
        level=NoiseLevel(*(field[:, None] for field in level)),
        store=per_frame(store),
        slot=(np.arange(total) % slots).astype(np.int32),
        state=per_frame(state),
        history=per_frame(history),
        noise=per_frame(noise),
        active=np.ones(total, bool),
        start=table.start,
        end=table.end,
    )


def _checked(table: SolverTable, given: Sequence[int]) -> np.ndarray:
    delays = np.asarray(given)
    whole = delays.ndim == 1 and len(delays) and np.issubdtype(delays.dtype, np.integer)
    if not whole or delays.min() != 0:
        raise ValueError(f"delays must be rows, one whole number a frame, from 0 on, got {given}")
    if table.store.ndim != 2 or table.nfe != len(table.slot):
        raise ValueError(
            "staggered takes a table of pictures that is not padded; pad what it makes"
        )
    return delays


def _by_age(table: SolverTable) -> np.ndarray:
    """[E, 2, A] weights of the predictions 0, 1, ... rows old: history without its slots."""
    rows, slots = len(table.slot), table.history.shape[2]
    writer, found = np.zeros(slots, int), np.zeros((rows, 2, rows))
    for k in range(rows):
        writer[table.slot[k]] = k
        np.add.at(found[k].T, k - writer, table.history[k].T)
    used = np.flatnonzero(found.any(axis=(0, 1)))
    return found[..., : used.max(initial=0) + 1]
