"""The one batch loop: sets do not depend on batches, devices or how they are spread."""

import jax
import numpy as np
import pytest

from ddim_jax import batch_loop, checkpoints
from ddim_jax.sampling import RunResult
from ddim_jax.solvers import State


@pytest.fixture(scope="module")
def model():
    model = checkpoints.load("digits")
    return model.replace(recipe=model.recipe.replace(solver="ddim", steps=3, guidance_scale=1.0))


def echo(params, table, x, keys, inputs, guidance, known):
    """A sampler without a network: what it was given, by row."""
    collected = {"x": x[None] + table}
    return RunResult(x + inputs["a"][:, None] + params, State(x, known), collected)


def echoed(count, batch_size, **options):
    generator = batch_loop.Generator(jax.jit(echo), np.float32(5), (3,), **options)
    x = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    inputs = {"a": np.arange(count, dtype=np.float32)}
    batches = list(
        generator.batches(
            np.float32(2), np.arange(count), inputs, x=x, known=2 * x, batch_size=batch_size
        )
    )
    return generator, x, inputs["a"], batches


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("count, batch_size", [(1, 8), (3, 8), (7, 4), (8, 4), (5, 3), (2, 1)])
def test_every_row_comes_back_once_in_its_place(mode, count, batch_size):
    generator, x, a, batches = echoed(count, batch_size, mode=mode)
    rows = np.concatenate([np.arange(count)[batch.rows] for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(count))
    found = np.concatenate([batch.result.x for batch in batches])
    np.testing.assert_array_equal(found, x + a[:, None] + 5)
    bases = np.concatenate([batch.result.state.base for batch in batches])
    np.testing.assert_array_equal(bases, 2 * x)
    collected = np.concatenate([batch.result.collected["x"] for batch in batches], axis=1)
    np.testing.assert_array_equal(collected, x[None] + 2)
    assert len(generator._programs) == 1  # the last batch is padded, not compiled again


def test_fewer_samples_than_devices_take_one_device_each():
    for count, used in ((1, 1), (3, jax.local_device_count())):
        generator, *_ = echoed(count, 8)
        shardings = jax.tree.leaves(generator.program.input_shardings)
        assert max(len(sharding.device_set) for sharding in shardings) == used


def test_parameters_can_be_replaced_without_compiling():
    generator, x, a, _ = echoed(4, 4)
    seconds, generator.params = generator.compile_seconds, np.float32(7)
    (batch,) = generator.batches(np.float32(2), np.arange(4), {"a": a}, x=x, known=x)
    np.testing.assert_array_equal(batch.result.x, x + a[:, None] + 7)
    assert generator.compile_seconds == seconds


def test_bad_arguments():
    with pytest.raises(ValueError, match="parallel must be one of jit, pmap, got 'mpi'"):
        batch_loop.Generator(echo, None, (3,), mode="mpi")
    for count, size in ((0, 1), (1, 0)):
        generator = batch_loop.Generator(jax.jit(echo), None, (3,))
        with pytest.raises(ValueError, match="num_samples and batch_size must be at least 1"):
            list(generator.batches(None, np.arange(count), batch_size=size))


def test_the_set_does_not_depend_on_the_batch_size(model):
    whole = model.generate(10, batch_size=10, seed=3)
    parts = model.generate(10, batch_size=4, seed=3)
    assert whole.pictures.shape == (10, 28, 28, 1) and whole.pictures.dtype == np.uint8
    assert np.abs(whole.pictures.astype(int) - parts.pictures).max() <= 1
    np.testing.assert_array_equal(whole.labels, np.arange(10))
    other = model.generate(10, batch_size=10, seed=4)
    assert np.abs(whole.pictures.astype(int) - other.pictures).max() > 100


def test_pmap_draws_what_jit_draws(model):
    """With solver noise, guidance and a padded batch."""
    recipe = model.recipe.replace(solver_options={"eta": 1.0}, guidance_scale=2.0)
    given = dict(trajectory=True, batch_size=4, seed=1)
    plain = model.generate(5, recipe, **given)
    spread = model.generate(5, recipe, parallel="pmap", **given)
    for ours, theirs in ((spread.pictures, plain.pictures), (spread.trajectory, plain.trajectory)):
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= 1
