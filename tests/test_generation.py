"""Drawing from the network in the package: sets, labels, devices, pmap, and the command line."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

import sample
from ddim_jax import experiment, generation, parallel, sampling
from ddim_jax.guidance import Guidance
from ddim_jax import checkpoints
from ddim_jax.probability_flow import Tolerance


@pytest.fixture(scope="module")
def model():
    return checkpoints.load("digits")


@pytest.fixture(scope="module")
def table(model):
    return experiment.build_table(model.experiment.schedule, "ddim", "uniform", 3)


def draw(model, table, **options):
    labels = generation.make_labels(model, None, options["num_samples"])
    return generation.generate(model, table, labels=labels, **options)


def test_the_set_does_not_depend_on_the_batch_size(model, table):
    whole = draw(model, table, num_samples=10, batch_size=10, seed=3)
    parts = draw(model, table, num_samples=10, batch_size=4, seed=3)
    assert whole.images.shape == (10, 28, 28, 1) and whole.images.dtype == np.uint8
    assert np.abs(whole.images.astype(int) - parts.images).max() <= 1
    np.testing.assert_array_equal(whole.labels, np.arange(10))
    other = draw(model, table, num_samples=10, batch_size=10, seed=4)
    assert np.abs(whole.images.astype(int) - other.images).max() > 100


def test_fewer_samples_than_devices_take_one_device_each(model, table):
    generator = generation.Generator(model)
    alone = generator.draw(table, np.arange(1, 2), seed=3).x
    three = generator.draw(table, np.arange(3), seed=3).x
    assert (len(alone), len(three)) == (1, 3)
    np.testing.assert_allclose(alone[0], three[1], atol=1e-3)
    for count, used in ((1, 1), (3, jax.local_device_count())):
        shardings = jax.tree.leaves(generator.program(table, count).input_shardings)
        assert max(len(sharding.device_set) for sharding in shardings) == used


def test_the_trajectory_ends_in_the_image(model, table):
    result = draw(model, table, num_samples=2, trajectory=True)
    assert result.trajectory.shape == (3, 2, 28, 28, 1)
    np.testing.assert_array_equal(result.trajectory[-1], result.images)
    np.testing.assert_array_equal(result.nfe, [3, 3])
    with pytest.raises(ValueError, match="a trajectory needs a table"):
        draw(model, Tolerance(0.1, 0.1), num_samples=2, trajectory=True)


def test_pmap_draws_what_jit_draws(model, table):
    parts = model.experiment
    keys = sampling.sample_keys(0, np.arange(4))
    noise = sampling.initial_noise(keys, parts.image_shape)
    cond = parts.cond(jnp.arange(4))
    guidance = Guidance(2.0)
    draw = parts.sampler(collect=("x0",))
    noisy = experiment.build_table(
        parts.schedule, "ddim", "uniform", 3, solver_options={"eta": 1.0}
    )
    plain = draw(model.params, noisy, noise, keys, cond, guidance)
    spread = parallel.pmap_sampler(draw)(model.params, noisy, noise, keys, cond, guidance)
    for ours, theirs in zip(jax.tree.leaves(spread), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    "labels, message",
    [([10], "labels must be 0..9 for digits, got 10"), ([3, -1], "got -1")],
)
def test_labels_out_of_range(model, labels, message):
    with pytest.raises(ValueError, match=message):
        generation.make_labels(model, labels, 4)


def test_what_a_network_cannot_do(model):
    with pytest.raises(ValueError, match="num_samples and batch_size must be at least 1, got 0"):
        generation.check(model, 0, 1, None)
    config = model.config.copy_and_resolve_references()
    config.loss.label_dropout = 0.0
    with pytest.raises(ValueError, match="trained without label dropout.*guidance_scale=1"):
        generation.check(model._replace(config=config), 1, 1, Guidance(2.0))
    plain = model._replace(experiment=model.experiment._replace(num_classes=0))
    with pytest.raises(ValueError, match="is unconditional: guidance needs"):
        generation.check(plain, 1, 1, Guidance(2.0))
    with pytest.raises(ValueError, match="is unconditional and takes no labels"):
        generation.make_labels(plain, [1], 2)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs sample.py with flags, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def run(**flags):
        steps = {} if flags.get("solver") == "adaptive" else {"steps": 2}
        with flagsaver.flagsaver(**(steps | {"num_samples": 2} | flags)):
            sample.main(["sample.py"])

    sample.flags.FLAGS(["sample.py"])
    return run


def test_the_command_draws_a_picture_and_never_overwrites(command, tmp_path, capsys):
    command(labels=["3", "1"], trajectory="t.gif", guidance_scale=2.0, progress=True)
    command(out="set.npz")
    with Image.open(tmp_path / "samples" / "digits-0001.png") as picture:
        assert picture.size[0] > 100
    with Image.open(tmp_path / "t.gif") as gif:
        assert gif.n_frames >= 2
    arrays = np.load(tmp_path / "set.npz")
    assert arrays["images"].shape == (2, 28, 28, 1) and list(arrays["labels"]) == [0, 1]
    out, err = capsys.readouterr()
    assert "2 NFE x 2 forward passes (guided)" in out and "images/s" in out and "compiled in" in out
    assert "2/2" in err  # the bar over network evaluations
    with pytest.raises(SystemExit, match="--out set.npz exists; .*--overwrite"):
        command(out="set.npz")
    command(out="set.npz", overwrite=True)


def test_the_checkpoints_own_guidance_scale_is_the_default(command, tmp_path, model):
    """Three pictures of one seed: as the config says, told the same, told 1."""
    own = model._replace(config=model.config.copy_and_resolve_references())
    with own.config.unlocked():
        own.config.sample.guidance_scale = 3.0
    checkpoints.save(tmp_path / "own.safetensors", own)
    sets = {}
    for name, flags in {
        "own": {},
        "three": {"guidance_scale": 3.0},
        "one": {"guidance_scale": 1.0},
    }.items():
        command(checkpoint=str(tmp_path / "own.safetensors"), out=f"{name}.npz", **flags)
        sets[name] = np.load(tmp_path / f"{name}.npz")["images"]
    np.testing.assert_array_equal(sets["own"], sets["three"])
    assert (sets["own"] != sets["one"]).any()


def test_the_command_draws_to_a_tolerance(command, tmp_path, capsys):
    command(solver="adaptive", tolerance=0.1, num_samples=3, batch_size=2, guidance_scale=2.0)
    out = capsys.readouterr().out
    low, high, mean = re.search(r"tolerance 0.1, NFE (\d+)\.\.(\d+) \(mean (\d+)\)", out).groups()
    assert 7 <= int(low) <= int(mean) <= int(high) < 60 and "(guided)" in out
    with Image.open(tmp_path / "samples" / "digits-0001.png") as picture:
        assert np.std(np.asarray(picture)) > 20


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"solver": "dddim"}, "unknown solver 'dddim'.*ddim, ddpm"),
        ({"stride": "cubic"}, "unknown stride 'cubic'.*one of uniform"),
        ({"steps": 0}, "steps must be .*got 0"),
        ({"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"solver_options": ["order"]}, "must be like name=value,name=value, got 'order'"),
        ({"solver": "unipc_2", "solver_options": ["varient=bh1"]}, "did you mean 'variant'"),
        ({"solver": "unipc_2", "solver_options": ["variant=bh3"]}, "'bh1' or 'bh2', got 'bh3'"),
        (
            {"solver": "unipc_2", "solver_options": ["analytical_first_step=0.5"]},
            "needs a deterministic solver that keeps one point",
        ),
        ({"stride_options": ["rho=3"]}, "stride 'uniform' has no option 'rho'"),
        ({"stride": "absent.json"}, "no stride file absent.json; python -m"),
        ({"solver": "heun", "eta": 0.5}, "solver 'heun' has no option 'eta'"),
        ({"labels": ["12"]}, "labels must be 0..9 for digits, got 12"),
        ({"labels": ["cat"]}, "labels must be whole numbers"),
        ({"guidance_interval": ["1"]}, "guidance_interval must be low,high"),
        ({"checkpoint": "nowhere"}, "no checkpoint 'nowhere'"),
        ({"out": "picture.bmp"}, "--out must end in .png or .npz, got picture.bmp"),
        (
            {"out": "folder", "overwrite": True},
            "folder is a folder: it takes no --trajectory and no",
        ),
        ({"out": "folder", "solver": "adaptive"}, "adaptive does not draw into a folder; use"),
        ({"plan": "v5e"}, "--plan must be like v5e:4x4"),
        ({"plan": "v5e:4x4", "solver": "adaptive"}, "adaptive has no fixed number of evaluations"),
        ({"num_samples": 0}, "num_samples and batch_size must be at least 1"),
        ({"solver": "adaptive", "steps": 20}, "chooses its own steps and takes no --steps"),
        ({"solver": "adaptive", "stride": "uniform"}, "takes no --stride; .* --tolerance"),
        ({"solver": "adaptive", "trajectory": "t.gif"}, "takes no --trajectory"),
        ({"solver": "adaptive", "tolerance": 0.0}, "rtol must be positive, got 0.0"),
        ({"tolerance": 0.1}, "--tolerance is for --solver=adaptive, got ddim"),
    ],
)
def test_bad_flags_end_with_a_clear_line(command, flags, message):
    with pytest.raises(SystemExit, match=f"sample.py: .*{message}"):
        command(**flags)
