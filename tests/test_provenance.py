"""What drew a picture is in its file, and draws it again."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import digits
from ddim_jax import checkpoints, data, edit, experiment, provenance, sample_folder, strides
from ddim_jax.evaluation import shards
from ddim_jax.strides import learned
from ddim_jax.strides.learned import LearnedStride
from ddim_jax.training import teacher
from ddim_jax.training.sample_grid import SampleGrid
from tests.errors import rejects
from tests.test_sample_command import command  # noqa: F401
from tests.tiny import tiny


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def model():
    model = checkpoints.load("digits")
    return model.replace(recipe=model.recipe.replace(steps=2, guidance_scale=1.0))


@pytest.mark.slow
def test_a_sheet_and_arrays_are_drawn_again(command, tmp_path):  # noqa: F811
    flags = dict(labels=["3", "1"], seed=2**40, eta=0.5, guidance_scale=2.0, num_samples=5)
    command(out="a.png", solver="ddim", batch_size=2, **flags)
    again = dict(num_samples=None, steps=None)  # not given
    command(like="a.png", out="b.png", **again)
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))
    command(like="b.png", out="c.npz", **again)
    command(like="c.npz", out="d.png", **again)
    np.testing.assert_array_equal(pixels("a.png"), pixels("d.png"))
    assert list(np.load("c.npz")["labels"]) == [3, 1, 3, 1, 3]
    command(like="a.png", out="e.png", **again | {"guidance_scale": 1.0})
    assert (pixels("a.png") != pixels("e.png")).any()
    for refused in ({"seed": 3}, {"num_samples": 3}, {"labels": ["1"]}):
        with pytest.raises(SystemExit, match="--like draws the pictures of a file and takes no --"):
            command(like="a.png", out="f.png", **again | refused)
    with pytest.raises(SystemExit, match="drawn in float32, not in bfloat16; .*--dtype=float32"):
        command(like="a.png", dtype="bfloat16", out="f.png", **again)
    with pytest.raises(SystemExit, match="the weights of step 6000 of digits.*by --checkpoint"):
        command(like="a.png", checkpoint="digits_4step", out="f.png", **again)


def test_a_learned_stride_is_found_from_another_folder(command, model, tmp_path, monkeypatch):  # noqa: F811
    times = strides.uniform(model.schedule, 2)
    lam = model.schedule.half_log_snr(times[:-1])
    stride = LearnedStride(times, "none", {}, "ddim", lam, 1.0, "digits", model.fingerprint)
    learned.save(tmp_path / "strides" / "two.json", stride)
    given = dict(solver="ddim", steps=None, num_samples=1)
    command(out="a.png", stride="strides/two.json", **given)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    command(like="../a.png", out="b.png", num_samples=None, steps=None)
    np.testing.assert_array_equal(pixels("../a.png"), pixels("b.png"))
    config = tiny(digits.get_config())
    config.sample.stride = "../strides/two.json"
    config.sample.steps = None
    source = experiment.load_data(config)
    kept = teacher.record(experiment.resolve(config), None, source)
    monkeypatch.chdir(tmp_path)
    assert experiment.build(kept).recipe.times(model.schedule).tolist() == times.tolist()


def test_where_a_checkpoint_was_found_is_kept(model, monkeypatch, tmp_path):
    """By its own name, from the home folder, from the hub."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    places = dict(seed=0, index=np.arange(1), labels=None, batch_size=1)
    for given, kept in {
        "digits": "digits", "hf:org/name@v2": "hf:org/name@v2", "": None,
        "~/run": str(tmp_path / "run"), "run": str(tmp_path / "run"),
    }.items():  # fmt: skip
        about = provenance.about(model, model.recipe, **places, checkpoint=given)
        assert about["path"] == kept and about["dtype"] == "float32" and about["loras"] == []


def test_one_picture_of_a_folder_is_drawn_again(command, model, tmp_path):  # noqa: F811
    given = dict(num_samples=7, label=[3, 5], batch_size=4, seed=np.int64(1))
    sample_folder.draw(tmp_path / "set", model, **given)
    for path in (tmp_path / "set").rglob("000000[25].png"):
        drawn = provenance.read(path)
        assert (drawn.seed, drawn.batch_size, len(drawn.index)) == (1, 4, 1)
        out = tmp_path / f"{path.stem}.npz"
        command(like=str(path), out=str(out), num_samples=None, steps=None)
        (picture,) = np.load(out)["images"]
        np.testing.assert_array_equal(picture[..., 0], pixels(path))
    out = tmp_path / "new" / "again.png"  # the picture as it was, no sheet of one
    command(like=str(path), out=str(out), num_samples=None, steps=None)
    np.testing.assert_array_equal(pixels(out), pixels(path))
    assert provenance.read(out).alone and provenance.read(out).index == drawn.index


@pytest.mark.slow
def test_the_grids_of_training_are_drawn_again(command, model, tmp_path):  # noqa: F811
    grid = SampleGrid(model, tmp_path / "samples")
    path = grid(model.params, 7)
    drawn = provenance.read(path)
    assert (drawn.step, drawn.checkpoint, drawn.weights) == (7, str(tmp_path), model.fingerprint)
    out = str(tmp_path / "again.png")
    command(like=str(path), checkpoint="digits", out=out, num_samples=None, steps=None)
    drawing = model.generate(len(drawn.index), seed=drawn.seed)
    data.save_grid(tmp_path / "plain.png", drawing.pictures)
    np.testing.assert_array_equal(pixels(path), pixels(tmp_path / "plain.png"))


def test_shards_and_edited_pictures_say_what_made_them(model, tmp_path, monkeypatch):
    identity = shards.identity(model.recipe, 4, model, model.recipe.table(model.schedule))
    cell = shards.Shards(tmp_path / "cell", identity)
    shards.draw(model, model.recipe, model.generator(), cell, 2, seed=4, batch_size=2)
    drawn = provenance.read(tmp_path / "cell" / "00000.npz")
    assert (drawn.seed, drawn.index.tolist(), drawn.labels.tolist()) == (4, [0, 1], [0, 1])
    monkeypatch.chdir(tmp_path)
    edit.main(["sdedit", "--num=1", "--strength=0.5", "--steps=2", "--out=e.png", "--save=e.npz"])
    for path in ("e.png", "e.npz"):
        with rejects(ValueError, "made by: python -m ddim_jax edit sdedit", "--strength=0.5"):
            provenance.read(path)


def test_a_file_that_does_not_say_so_is_refused(tmp_path):
    data.save_grid(tmp_path / "a.png", np.zeros((1, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    (tmp_path / "note.png").write_text("no picture")
    for name in ("a.png", "a.npz", "note.png"):
        with rejects(ValueError, f"{name} does not say what drew it"):
            provenance.read(tmp_path / name)
    with rejects(FileNotFoundError, "no picture"):
        provenance.read(tmp_path / "b.png")


def test_places_and_labels_are_kept_short_and_whole(model, tmp_path):
    rotation, many = np.array([3, 1, 4]), np.arange(40) % 10
    for index, labels in (
        (np.arange(500), np.resize(rotation, 500)),
        (np.array([7]), rotation[:1]),
        (np.array([3, 9, 4]), rotation),
        (100 + np.arange(40), many),
    ):
        given = provenance.about(
            model, model.recipe, seed=0, index=index, labels=labels, batch_size=8
        )
        text = json.dumps(given)
        assert len(json.dumps(given["index"])) < 20 and len(given["labels"]) <= 10
        np.savez(tmp_path / "set.npz", **{provenance.NPZ: text})
        drawn = provenance.read(tmp_path / "set.npz")
        np.testing.assert_array_equal(drawn.index, index)
        np.testing.assert_array_equal(drawn.labels, labels)


def test_odd_files_do_not_say_what_drew_them(tmp_path):
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "list.npz", about="[1]")
    np.savez(tmp_path / "other.npz", about='{"recipe": {"no_such": 1}, "labels": null}')
    for name in ("empty", "list", "other"):
        with pytest.raises(ValueError, match="does not say what drew it"):
            provenance.read(tmp_path / f"{name}.npz")
