import dataclasses

import numpy as np
import pytest

from ddim_jax import data
from tests.errors import rejects
from tests.pictures import equal


def numbered(count, classes=0):
    """A source whose image i is asymmetric and says i: rows (i, 200, 0)."""

    def read(i):
        return np.array([[[i], [200], [0]]], np.uint8), i % classes if classes else 0

    return data.Source("numbered", (1, 3, 1), classes, count, read)


def numbers(batch):
    """Undoes the flips of `numbered`: which images a batch holds, and which are flipped."""
    rows = batch["image"][:, 0, :, 0]
    flipped = rows[:, 1] == 200
    assert flipped.all()
    mirrored = rows[:, 2] > 0
    return np.where(mirrored, rows[:, 2], rows[:, 0]), mirrored


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_batch_shapes_and_dtypes():
    batch = next(data.batches(data.load("digits"), 6, seed=0, process_count=2))
    assert batch["image"].shape == (3, 28, 28, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (3,) and batch["label"].dtype == np.int32


def test_each_epoch_visits_every_image_once_in_a_new_order():
    seen = np.concatenate([numbers(b)[0] for b in take(data.batches(numbered(20), 8, seed=3), 10)])
    epochs = seen.reshape(4, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_images_keep_their_labels():
    for batch in take(data.batches(numbered(20, classes=7), 8, seed=1, flip=True), 5):
        assert np.array_equal(numbers(batch)[0] % 7, batch["label"])


def test_without_shuffle_the_order_is_the_source():
    got = take(data.batches(numbered(6), 4, seed=0, shuffle=False), 3)
    assert [*np.concatenate([numbers(b)[0] for b in got])] == [0, 1, 2, 3, 4, 5] * 2


def test_seed_decides_the_order():
    first = [numbers(next(data.batches(numbered(50), 50, seed=s)))[0] for s in (0, 0, 1)]
    assert np.array_equal(first[0], first[1]) and not np.array_equal(first[0], first[2])


@pytest.mark.parametrize("process_index, process_count", [(0, 1), (1, 2)])
def test_starting_at_a_step_equals_getting_there(process_index, process_count):
    def start(step):
        options = {"seed": 5, "flip": True, "start_step": step}
        options |= {"process_index": process_index, "process_count": process_count}
        return data.batches(numbered(10, classes=3), 4, **options)

    straight = take(start(0), 12)
    for step in (1, 2, 5, 11):
        assert all(map(equal, straight[step:], take(start(step), 12 - step)))


def test_starting_far_away_is_immediate():
    read = []
    source = numbered(10)
    counting = data.Source("counting", (1, 3, 1), 0, 10, lambda i: read.append(i) or source.read(i))
    iterator = data.batches(counting, 2, seed=0, start_step=10**9)
    next(iterator)
    iterator.close()
    assert len(read) < 200


def test_state_is_the_step():
    iterator = data.batches(numbered(10), 4, seed=5, flip=True, start_step=2)
    next(iterator)
    state = iterator.get_state()
    assert state == {"next_index": 3}
    assert equal(
        next(iterator), next(data.batches(numbered(10), 4, seed=5, flip=True, start_step=3))
    )


@pytest.mark.parametrize("process_count", [2, 4])
def test_global_batches_do_not_depend_on_the_process_count(process_count):
    def run(index, count):
        options = {"seed": 2, "flip": True, "process_index": index, "process_count": count}
        return take(data.batches(numbered(30, classes=4), 8, **options), 9)

    whole, parts = run(0, 1), [run(index, process_count) for index in range(process_count)]
    for step, batch in enumerate(whole):
        for row in range(8):
            own = 8 // process_count  # next to each other: groups of rows stay together
            part, place = parts[row // own][step], row % own
            assert part["row"][place] == row
            for key in ("image", "label"):
                assert np.array_equal(batch[key][row], part[key][place])


def test_flips_are_fair_and_change_between_epochs():
    epochs = take(data.batches(numbered(200), 200, seed=0, flip=True), 5)
    flipped = np.zeros((5, 200), bool)
    for epoch, batch in enumerate(epochs):
        index, mirrored = numbers(batch)
        flipped[epoch, index] = mirrored
    # 1000 fair coins: five standard deviations are 0.08.
    assert abs(flipped[:, 1:].mean() - 0.5) < 0.08
    assert (flipped[0] != flipped[1]).mean() > 0.3
    plain = next(data.batches(numbered(200), 200, seed=0))
    assert not numbers(plain)[1].any()
    assert np.array_equal(numbers(plain)[0], numbers(epochs[0])[0])


def test_batch_larger_than_the_source():
    batch = next(data.batches(numbered(3), 8, seed=0))
    assert np.bincount(numbers(batch)[0]).max() == 3 and len(batch["label"]) == 8


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"batch_size": 6, "process_count": 4}, ["multiple of the 4", "got 6", "example 4"]),
        ({"batch_size": 0}, ["batch_size", "got 0", "example 1"]),
        ({"process_index": 2, "process_count": 2}, ["process_index=2", "jax.process_index()"]),
        ({"process_count": 0}, ["process_count=0", "jax.process_count()"]),
        ({"seed": -3}, ["seed must be a whole number in 0..2^32 - 1", "got -3"]),
        ({"start_step": -1}, ["start_step must be 0 or more", "got -1"]),
        ({"source": numbered(0)}, ["empty source", "'numbered'", "at least one"]),
    ],
)
def test_batches_errors(options, parts):
    with rejects(ValueError, *parts):
        data.batches(**{"source": numbered(5), "batch_size": 4, "seed": 0} | options)


@pytest.mark.parametrize("flip", [False, True])
def test_batches_in_memory_are_those_that_are_read_one_by_one(flip):
    source = data.load("digits")
    options = dict(seed=3, flip=flip, start_step=49, process_index=1, process_count=2)
    at_once = data.batches(source, 100, **options)
    one_by_one = data.batches(dataclasses.replace(source, take=None), 100, **options)
    for _ in range(2):  # over the end of an epoch
        first, second = next(at_once), next(one_by_one)
        assert first.keys() == second.keys()
        for name in first:
            assert first[name].dtype == second[name].dtype
            np.testing.assert_array_equal(first[name], second[name])
