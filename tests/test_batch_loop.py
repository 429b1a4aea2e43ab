"""The one batch loop: sets do not depend on batches, devices or how they are spread."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import batch_loop, checkpoints, program_cost, sample_folder
from ddim_jax.adaptive_sampling import AdaptiveResult
from ddim_jax.evaluation import shards
from ddim_jax.recipe import Recipe
from ddim_jax.sampling import RunResult
from ddim_jax.solvers import State
from ddim_jax.strides import search
from ddim_jax.training import reflow_pairs
from ddim_jax.training.sample_grid import SampleGrid


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
    with pytest.raises(ValueError, match="parallel must be one of jit, fsdp, pmap, got 'mpi'"):
        batch_loop.Generator(echo, None, (3,), mode="mpi")
    for count, size in ((0, 1), (1, 0), (1, -1), (1, 1.5), (1, np.nan), (1, "a")):
        generator = batch_loop.Generator(jax.jit(echo), None, (3,))
        with pytest.raises(
            ValueError, match="(num_samples|batch_size) must be (in .1|at least 1|a w)"
        ):
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


def test_no_row_leaves_its_device(model, monkeypatch):
    """Guidance doubles the batch on every device for itself."""
    programs, compile_one = [], batch_loop.Generator._compile

    def compiled(self, arguments):
        programs.append(compile_one(self, arguments))
        return programs[-1]

    monkeypatch.setattr(batch_loop.Generator, "_compile", compiled)
    recipe = model.recipe.replace(guidance_scale=2.0, guidance_rescale=0.5, steps=3)
    model.generate(4, recipe, batch_size=4)
    (program,) = programs
    assert jax.device_count() > 1
    assert not any(count for count, _ in program_cost.collectives(program.as_text()).values())


@pytest.fixture
def diverging(monkeypatch):
    """Tables whose samples grow by 1e12 in every row."""
    plain = Recipe.table

    def table(recipe, schedule):
        made = plain(recipe, schedule)
        return made._replace(state=np.broadcast_to(1e12 * np.eye(2), made.state.shape))

    monkeypatch.setattr(Recipe, "table", table)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_samples_that_are_not_finite_are_refused_with_their_beginning(model, diverging, mode):
    recipe = model.recipe.replace(steps=6)
    with pytest.raises(batch_loop.NotFiniteSamples, match="4 of 4.*first is sample 0") as error:
        model.generate(4, recipe, parallel=mode)
    assert "it begins at evaluation 4 of 6," in str(error.value)  # 1e48 is none of float32
    assert "try clip=static" in str(error.value)


@pytest.mark.parametrize("row, index", [(1, 6), (2, 7)])
def test_the_first_sample_that_is_not_finite_is_named_by_its_index(row, index):
    """Of three, in a batch of four whose last row is there twice."""
    generator = batch_loop.Generator(jax.jit(echo), np.float32(5), (3,))
    x = np.ones((3, 3), np.float32)
    x[row, 2] = np.inf
    given = dict(inputs={"a": np.zeros(3, np.float32)}, x=x, known=np.zeros_like(x))
    message = f"1 of 3 samples of a batch are not finite, the first is sample {index};"
    with pytest.raises(batch_loop.NotFiniteSamples, match=message):
        list(generator.batches(np.float32(2), np.array([5, 6, 7]), batch_size=4, **given))


def test_samples_that_miss_a_tolerance_are_counted_without_padding():
    """Of three, in a batch of four whose last row is there twice."""

    def failing(params, table, x, keys, inputs, guidance, known):
        none = jnp.zeros(len(x), jnp.int32)
        return AdaptiveResult(x, none, none, none, x[:, 0] > 1)

    generator = batch_loop.Generator(jax.jit(failing), np.float32(5), (3,))
    x = np.float32([[0, 0, 0], [0, 0, 0], [2, 0, 0]])
    with pytest.raises(ValueError, match="1 of 3 samples did not meet the tolerance"):
        list(generator.batches(np.float32(2), np.arange(3), x=x, batch_size=4))


def test_weights_and_starts_that_are_not_finite_are_named(model):
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(np.nan), model.params)
    with pytest.raises(ValueError, match="the weights of the network are not finite"):
        model.replace(params=broken).draw(2)
    generator, table = model.generator(), model.recipe.table(model.schedule)
    given = model.conditions(2, model.recipe, model.inputs.labels(None, 2), table)
    x = np.full((2, 28, 28, 1), np.inf, np.float32)
    with pytest.raises(ValueError, match="2 of 2 .*what the sampler starts from is not finite"):
        list(generator.batches(table, np.arange(2), x=x, **given))
    with pytest.raises(ValueError, match="samples must be finite to be shown"):
        model.pictures(x)


def test_everything_that_draws_checks(model, diverging, tmp_path):
    """Folders, sweeps and pairs leave no picture of samples that are not finite."""
    recipe = model.recipe.replace(steps=6)
    with pytest.raises(batch_loop.NotFiniteSamples):
        sample_folder.draw(tmp_path / "set", model, recipe, num_samples=2)
    assert not list((tmp_path / "set").rglob("*.png"))
    cell = shards.Shards(
        tmp_path / "cell", shards.identity(recipe, 0, model, recipe.table(model.schedule))
    )
    with pytest.raises(batch_loop.NotFiniteSamples):
        shards.draw(model, recipe, model.generator(recipe), cell, 2, batch_size=2)
    with pytest.raises(batch_loop.NotFiniteSamples):
        reflow_pairs.draw(model, tmp_path / "pairs", count=2, solver="ddim", steps=6)
    assert not [*tmp_path.rglob("*.npz"), *tmp_path.rglob("*.array_record")]


def test_a_race_drops_candidates_that_diverge():
    held_out = SimpleNamespace(noise=None, keys=None, inputs=None, samples=np.zeros(3))
    drawer = search.Drawer(lambda params, table, *_: table, None, None, lambda _, times: times)
    good, bad = np.array([1.0, 0.0, 0.0]), np.array([np.nan, 0.0, 0.0])
    assert list(search.race(drawer, {"good": good, "bad": bad}, held_out)) == ["good"]
    with pytest.raises(ValueError, match="no candidate's samples are finite"):
        search.race(drawer, {"bad": bad}, held_out)


@pytest.mark.slow
def test_training_goes_on_without_a_picture_that_is_not_finite(model, tmp_path, capsys):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, model.params)
    assert SampleGrid(model, tmp_path)(broken, 5) is None
    assert "step 5: no picture" in capsys.readouterr().err and not list(tmp_path.iterdir())
