"""Shuffled, flipped, sharded batches that can start anywhere.

The seed fixes one global order of examples: every epoch is a new permutation, and position i of the
endless sequence decides which image it is and whether it is flipped, and of a clip with frames to
spare where it begins. Global batch k is positions k * B to (k + 1) * B - 1, and each process takes
B / n rows of it next to each other, in the order of the processes. So nothing depends on the number
of processes, and starting at batch k costs no more than starting at batch 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ddim_jax.data.source import Source
from ddim_jax.keys import check_seed


def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    flip: bool = False,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns this process's share of an endless sequence of batches.

    Batch k of an iterator with `start_step=0` is the first batch of one with `start_step=k`, flips
    included. Each epoch visits every image once; a batch may span two epochs.

    Args:
        source: from `load`, or anything with `len` and integer indexing that returns
            `{"image": uint8 [H, W, C], "label": int32}`; other entries are batched too.
        batch_size: global batch size B, over all processes.
        seed: 0..2^32 - 1; fixes the order of the images and the flips.
        flip: mirror each image left to right with probability 1/2; of a clip all frames or none.
        start_step: index of the first batch, 0 or more.
        process_index: this process, `jax.process_index()`.
        process_count: number of processes n, `jax.process_count()`; divides `batch_size`.
        shuffle: a new random order every epoch, clips from random places on; otherwise the order
            of the source, clips from their first frames on.

    Returns:
        An iterator of `{"image": uint8 [B / n, H, W, C], "label": int32 [B / n], "row": int32
        [B / n]}`; clips are [B / n, T, H, W, C]; row is the place in the global batch. It is a
        grain iterator, so it also has `get_state`, `set_state` and `close`.

    Raises:
        ValueError: a count or seed out of range, a `process_count` that does not divide
            `batch_size`, or an empty source.
    """
    import grain  # a second to import, which sampling need not wait for

    _check(source, batch_size, seed, start_step, process_index, process_count)
    # threads assemble batches ahead of time; a small buffer is enough to hide the work
    read = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    placed = shuffle and getattr(source, "at", None) is not None
    in_memory = getattr(source, "take", None) is not None and not placed
    by_number = in_memory or placed
    dataset = grain.MapDataset.source(_Rows(len(source)) if by_number else source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.repeat(None)
    if placed:
        dataset = dataset.random_map(lambda row, rng: source.record(int(row[0]), rng.random()))
    if flip:
        # Before the slice: the draw belongs to the global position, not to the process.
        dataset = dataset.random_map(_mark if in_memory else _flip)
    rows = batch_size // process_count
    first = process_index * rows
    places = np.arange(first, first + rows, dtype=np.int32)
    dataset = _rows_of(dataset, batch_size, first, rows).batch(rows)
    if in_memory:
        dataset = dataset.map(lambda rows: _gathered(source, rows))
    dataset = dataset.map(lambda batch: batch | {"row": places})
    iterator = iter(dataset.to_iter_dataset(read))
    iterator.set_state({"next_index": start_step})
    return iterator


def _rows_of(dataset: Any, batch_size: int, first: int, rows: int) -> Any:
    """A grain dataset of `rows` rows from `first` on of every `batch_size` of another."""
    import grain

    class Rows(grain.MapDataset):
        def __len__(self):
            return len(dataset) // batch_size * rows

        def __getitem__(self, index):
            batch, row = divmod(index, rows)
            return dataset[batch * batch_size + first + row]

    return Rows(dataset) if rows < batch_size else dataset


def _flip(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {**example, "image": example["image"][..., ::-1, :]}
    return example


class _Rows:
    """Stands for a source whose batches are gathered at once: its records are their numbers."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array([index, 0])


def _mark(number: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array([number[0], rng.random() < 0.5])


def _gathered(source: Source, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """The batch of records by their numbers, mirrored where the second column says so."""
    rows, mirrored = numbers.T
    return source.batch(rows, mirrored == 1 if mirrored.any() else None)


def _check(source, batch_size, seed, start_step, process_index, process_count) -> None:
    if len(source) == 0:
        raise ValueError(
            f"cannot draw batches from an empty source, {getattr(source, 'name', source)!r} has "
            "0 images; give a source with at least one"
        )
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be 0..process_count - 1, got process_index={process_index}, "
            f"process_count={process_count}; pass jax.process_index() and jax.process_count()"
        )
    if batch_size < 1 or batch_size % process_count:
        below = max(batch_size - batch_size % process_count, process_count)
        raise ValueError(
            f"batch_size must be a positive multiple of the {process_count} process(es), "
            f"got {batch_size}; use for example {below}"
        )
    check_seed(seed, seeds=2**32)
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more, got {start_step}; 0 is the first batch")
