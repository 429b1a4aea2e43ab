"""A model draws as its recipe says: labels, guidance, tolerance, the parts, and what it refuses."""

import io
import re
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest

import ddim_jax
from ddim_jax import checkpoints, experiment, sample_folder, sampling, strides
from ddim_jax.evaluation import feature_networks
from ddim_jax.inputs import Inputs
from ddim_jax.recipe import Recipe
from tests.errors import rejects


@pytest.fixture(scope="module")
def model():
    model = checkpoints.load("digits")
    return model.replace(recipe=model.recipe.replace(solver="ddim", steps=3, guidance_scale=1.0))


def test_draw_takes_labels_in_many_forms(model):
    named = model.replace(inputs=Inputs(model.inputs.declared, tuple("abcdefghij")))
    three = model.draw(label=[3, 1, 4])
    assert three.shape == (3, 28, 28, 1) and three.dtype == np.uint8
    np.testing.assert_array_equal(model.draw(label=["3", "1", "4"]), three)
    np.testing.assert_array_equal(named.draw(label=["d", "b", "e"]), three)
    np.testing.assert_array_equal(model.draw(3, label=np.array([3, 1, 4])), three)
    assert len(model.draw(label=3)) == len(named.draw(label="d")) == 1
    assert np.abs(model.draw(4, label=3)[1:].astype(int) - three[1:2]).max() > 50
    with pytest.raises(ValueError, match="labels must be 0..9.*got 12"):
        model.draw(label=12)
    with pytest.raises(ValueError, match="a recipe has no option 'step'.*did you mean 'steps'"):
        model.draw(2, step=5)
    with rejects(ValueError, "eta is an option of the solver: give solver_options={'eta': 0.3}"):
        model.draw(2, eta=0.3)


@pytest.mark.slow
def test_draw_shows_a_bar_when_asked(model, capsys):
    model.draw(2, progress=True)
    assert "3/3" in capsys.readouterr().err
    model.draw(2)
    assert capsys.readouterr().err == ""


def test_the_parts_draw_what_the_model_draws(model):
    """The three nouns by hand, guided and clipped, equal `draw`."""
    wanted = model.draw(label=[3, 1, 4], steps=4, guidance_scale=2.0, seed=7)
    denoise = model.denoiser(label=[3, 1, 4], guidance_scale=2.0)
    times = strides.uniform(model.schedule, steps=4)
    table = ddim_jax.solvers.ddim(eta=0.0)(model.schedule, times)
    keys = sampling.sample_keys(seed=7, index=np.arange(3))
    noise = sampling.initial_noise(keys, model.sample_shape)
    x = sampling.run(denoise, table, noise, keys).x
    assert np.abs(model.pictures(x).astype(int) - wanted).max() <= 1


@pytest.mark.slow
def test_one_label_serves_any_batch(model):
    denoise, level = model.denoiser(label=3, guidance_scale=2.0), model.schedule.level(0.5)
    x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    wanted = model.denoiser(label=[3, 3], guidance_scale=2.0)(x, level).x0
    np.testing.assert_array_equal(denoise(x, level).x0, wanted)


def test_without_a_null_label_a_label_must_be_given(model):
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.null_label = False
    published = model.replace(config=config)
    for draw in (published.denoiser, lambda: published.null_labels(2)):
        with pytest.raises(ValueError, match="digits has no null label.*give a label, 0..9"):
            draw()
    published.denoiser(label=3)
    student = checkpoints.load("digits_4step")  # it has the row, of which no loss knew
    for draw in (student.denoiser, lambda: student.null_labels(2)):
        with rejects(ValueError, "trained without label dropout", "give a label, 0..9"):
            draw()


def test_the_student_of_clips_is_drawn_in_four_steps():
    student = checkpoints.load("moving_4step")
    assert student.codec.frames == 16 and student.recipe.steps == 4
    (note,) = student.notes(student.recipe.replace(steps=8))
    assert note == "moving_4step was distilled for 4 steps: more of them are not better"
    assert student.config.start_from == "8_step"  # no path of the machine that trained it


def test_notes_of_recipes_that_disappoint(model):
    student = checkpoints.load("digits_4step")
    assert model.notes(model.recipe) == student.notes(student.recipe) == []
    assert model.notes(model.recipe.replace(solver="adaptive")) == []
    (note,) = student.notes(student.recipe.replace(steps=8))
    assert note == "digits_4step was distilled for 4 steps: more of them are not better"
    for solver in ("heun", "plms", "s_pndm"):
        (note,) = model.notes(model.recipe.replace(solver=solver, steps=2))
        assert note.startswith(f"{solver} in 2 steps is far worse than ddim")
        assert not model.notes(model.recipe.replace(solver=solver, steps=8))


def test_a_model_is_shown_in_a_line_or_two(model):
    assert len(repr(model)) < 500 and "1,4" in repr(model) and "digits" in repr(model)


@pytest.mark.slow
def test_the_trajectory_ends_in_the_picture(model):
    drawing = model.generate(2, trajectory=True)
    assert drawing.trajectory.shape == (3, 2, 28, 28, 1)
    np.testing.assert_array_equal(drawing.trajectory[-1], drawing.pictures)
    np.testing.assert_array_equal(drawing.nfe, [3, 3])
    adaptive = model.recipe.replace(solver="adaptive", solver_options={"tolerance": 0.1})
    with pytest.raises(ValueError, match="a trajectory needs a table"):
        model.generate(2, adaptive, trajectory=True)
    assert np.all(model.generate(2, adaptive).nfe > 6)


def test_guidance_that_a_network_does_not_know_is_refused(model):
    guided = model.recipe.replace(guidance_scale=2.0)
    with pytest.raises(ValueError, match="num_samples must be in .1, 2.*, got 0"):
        model.generate(0)
    config = model.config.copy_and_resolve_references()
    config.loss.label_dropout = 0.0
    with pytest.raises(ValueError, match="trained without label dropout.*guidance_scale=1"):
        model.replace(config=config).check(guided)
    plain = model.replace(inputs=Inputs({}))
    with pytest.raises(ValueError, match="is unconditional: guidance needs"):
        plain.check(guided)
    student = checkpoints.load("digits_4step")
    low, high = student.config.loss.guidance
    for scale in (low - 0.5, high + 0.5):
        with pytest.raises(ValueError, match=f"was distilled for guidance scales {low} to {high}"):
            student.check(student.recipe.replace(guidance_scale=scale))
    narrow = student.config.copy_and_resolve_references()
    narrow.loss.guidance = (1.5, high)
    with pytest.raises(ValueError, match=f"scales 1.5 to {high}, got 1.0; choose"):
        student.replace(config=narrow).check(student.recipe.replace(guidance_scale=1.0))
    for field, value in (("guidance_rescale", 0.5), ("guidance_interval", (0.1, 1.0))):
        with pytest.raises(ValueError, match="within one evaluation: leave out guidance_interval"):
            student.check(student.recipe.replace(**{field: value}))
    assert student.passes(student.recipe) == 1 and model.passes(guided) == 2


def test_a_recipe_is_replaced_as_a_reader_expects():
    own = Recipe("dpm_solver++_2m", "karras", 8, {"lower_order_final": False}, {"rho": 5.0})
    assert own.replace() == own and own.replace(steps=None) == own
    assert own.replace(steps=9).solver_options == {"lower_order_final": False}
    other = own.replace(solver="heun")
    assert (other.stride, other.solver_options, other.stride_options) == (None, {}, {})
    same = own.replace(solver="dpm_solver++_2m")
    assert (same.stride, same.solver_options, same.stride_options["rho"]) == ("karras", {}, 5.0)
    assert own.replace(stride="uniform").stride_options == {}
    assert own.replace(stride="x.json").steps is None
    assert Recipe("heun").stride_name == "karras"
    assert Recipe("heun", solver_options={"space": "flow"}).stride_name == "uniform"
    assert own.replace(guidance_scale=np.float32(2)).guidance.scale == 2
    adaptive = own.replace(solver="adaptive", solver_options={"tolerance": 0.01})
    assert adaptive.table(None).rtol == 0.01 and adaptive.steps is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"clip": "soft"}, "unknown clip 'soft'"),
        ({"guidance_scale": np.nan}, "guidance_scale must be in .-1000, 1000., got nan"),
        ({"guidance_scale": "2"}, "guidance_scale must be a number, got .2."),
        ({"solver": ddim_jax.solvers.ddim()}, "solver must be a name, got Solver; .*sampling.run"),
        ({"stride": [1.0, 0.0]}, "a recipe's stride must be a name, got list"),
        (
            {"guidance_rescale": 1.5},
            r"guidance_rescale must be in \[0, 1\], got 1.5",
        ),
        ({"guidance_interval": (2.0, 1.0)}, r"with 0 <= low < high, got \(2.0, 1.0\)"),
    ],
)
def test_a_bad_recipe_is_refused_when_it_is_made(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


@pytest.mark.parametrize("interval", [0.5, None, "0,1", (0.1, 0.2, 0.3)])
def test_an_interval_of_a_config_that_is_none_is_refused(interval):
    config = ml_collections.ConfigDict({"sample": {"guidance_interval": interval}})
    with pytest.raises(
        ValueError, match=f"guidance_interval must be low,high .*{re.escape(str(interval))}"
    ):
        Recipe.of(config)
    with config.unlocked():
        config.sample = {"guidance_interval": [0.1, 0.9]}
    assert Recipe.of(config).guidance_interval == (0.1, 0.9)


def test_a_config_names_its_network():
    config = checkpoints.load("digits").config.copy_and_resolve_references()
    with config.unlocked():
        config.model.name = "unet"
    shapes = [
        jax.eval_shape(experiment.build(c).init, jax.random.key(0))
        for c in (config, checkpoints.load("digits").config)
    ]
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, *shapes))
    with config.unlocked():
        config.model.vector_dim = 0  # as version 0.1 wrote it
    assert experiment.build(config).network == checkpoints.load("digits").network
    config.model.name = "unett"
    with pytest.raises(ValueError, match="unknown network 'unett' .did you mean 'unet'"):
        experiment.build(config)


def test_save_grid_writes_and_never_overwrites(model, tmp_path):
    pictures = model.draw(2)
    ddim_jax.save_grid(tmp_path / "a.png", pictures)
    with pytest.raises(FileExistsError, match="exists; choose another name, or pass overwrite"):
        ddim_jax.save_grid(tmp_path / "a.png", pictures)


LOADING = """
import sys
import ddim_jax
ddim_jax.load("digits")
wrong = [name for name in sys.modules if name.startswith(("ddim_jax.training", "ddim_jax.losses",
    "orbax", "tensorboardX", "matplotlib", "grain", "diffrax"))]
assert not wrong, wrong
"""


def test_loading_weights_imports_no_trainer():
    subprocess.run([sys.executable, "-c", LOADING], check=True, timeout=120)


def test_the_old_module_says_where_it_went():
    with pytest.raises(ImportError, match="ddim_jax.models.pretrained is now ddim_jax.checkpoints"):
        from ddim_jax.models import pretrained  # noqa: F401
    with pytest.raises(ImportError, match="ddim_jax.models.UNet is now ddim_jax.networks.UNet"):
        from ddim_jax.models import UNet  # noqa: F401
    told = io.StringIO(
        subprocess.run(
            [sys.executable, "-m", "ddim_jax.models.pretrained", "digits", "x.bin"],
            capture_output=True, text=True, timeout=120,
        ).stderr
    )  # fmt: skip
    assert "must end in .safetensors, got x.bin" in told.read()


@pytest.mark.slow
def test_all_of_a_hundred_bundled_digits_are_read_as_asked():
    model = checkpoints.load("digits")
    logits = feature_networks.load("digits").extract(model.draw(100)).logits
    np.testing.assert_array_equal(logits.argmax(1), np.arange(100) % 10)


def test_shapes_without_weights_can_be_planned_with_alone(model, tmp_path):
    shapes = model.replace(params=jax.eval_shape(lambda: model.params))
    assert shapes.sampler() is not None
    works = (shapes.draw, shapes.generator, lambda: shapes.fingerprint)
    folder = lambda: sample_folder.draw(tmp_path / "set", shapes, num_samples=1)  # noqa: E731
    for work in (*works, folder):
        with pytest.raises(ValueError, match="shapes without weights|shapes and no weights"):
            work()
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_of_a_large_model_looks_at_some_of_each_array(monkeypatch):
    from ddim_jax import fingerprints as models

    params = {"a": np.arange(999, dtype=np.float32).reshape(27, 37), "b": {"c": np.ones(5)}}
    whole = models.fingerprint(params)
    monkeypatch.setattr(models, "MOST_HASHED", 100)
    some = models.fingerprint(params)
    assert some != whole and some == models.fingerprint(jax.tree.map(jax.numpy.asarray, params))
    assert some != models.fingerprint(params | {"b": {"c": np.zeros(5)}})
    assert some != models.fingerprint(params | {"a": params["a"] + 1})
