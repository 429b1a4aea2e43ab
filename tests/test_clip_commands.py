"""Commands on clips: folders of samples, files that say what drew them, a sweep."""

import csv
import dataclasses

import numpy as np
import pytest

from ddim_jax import checkpoints, data, experiment, provenance, sample_folder
from ddim_jax.commands import sample
from ddim_jax.data import clip_writers
from ddim_jax.drawing import Drawing
from ddim_jax.evaluation import tradeoff
from ddim_jax.training import around, teacher
from tests.errors import rejects
from tests.pictures import noise
from tests.test_clip_models import config_of, shaken


@pytest.fixture(scope="module")
def model():
    return shaken(experiment.build(config_of()))


@pytest.mark.slow
def test_a_folder_of_clips_is_drawn_and_read(model, tmp_path):
    folder, given = tmp_path / "set", dict(label=[3, 5], batch_size=4, seed=1)
    assert sample_folder.draw(folder, model, num_samples=4, **given).drawn == 4
    (folder / "3" / "0000002.png").write_bytes(b"")  # left behind by a crash
    assert sample_folder.draw(folder, model, num_samples=4, **given).drawn == 1
    clips = model.draw(4, label=[3, 5], seed=1)
    source = data.load(f"clips:{folder}", channels=1)
    assert source.shape == clips.shape[1:] and source.num_classes == 2
    for place, i in enumerate([0, 2, 1, 3]):  # by class
        assert np.abs(source[place]["image"].astype(int) - clips[i]).max() <= 1
    drawn = provenance.read(folder / "5" / "0000001.png")
    assert (drawn.index.tolist(), drawn.labels.tolist(), drawn.size) == ([1], [5], (12, 12))
    assert data.load(f"folder:{folder}").shape == (12, 12, 3)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_file_of_clips_can_be_drawn_again(model, tmp_path, suffix):
    labels = model.inputs.labels([3, 5], 4)
    about = provenance.about(
        model, model.recipe, seed=1, index=np.arange(4), labels=labels, batch_size=4
    )
    data.save_clips(tmp_path / f"a{suffix}", noise(4, *model.codec.picture_shape), about=about)
    drawn = provenance.read(tmp_path / f"a{suffix}")
    assert (drawn.seed, drawn.labels.tolist(), drawn.recipe) == (1, [3, 5] * 2, model.recipe)
    drawn.check(model, model.recipe)


def test_a_clip_alone_is_told_from_a_sheet_of_its_frames(model, tmp_path):
    labels, clip = np.int32([3]), noise(1, *model.codec.picture_shape)
    given = dict(seed=1, index=np.arange(1), labels=labels, batch_size=4)
    about = provenance.about(model, model.recipe, **given)
    data.save_clips(tmp_path / "sheet.png", clip, about=about)
    sample_folder.write(tmp_path / "alone.png", clip[0], about, 8.0)
    assert not provenance.read(tmp_path / "sheet.png").alone
    assert provenance.read(tmp_path / "alone.png").alone
    drawing = Drawing(clip, labels, None, np.ones(1), 0.0, 0.0)
    sample.flags.FLAGS(["sample.py"])
    sample._write(drawing, tmp_path / "again.png", None, about, model, alone=True)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "alone.png").read_bytes()


def test_pictures_and_clips_are_measured_apart(model, tmp_path):
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(path, model)
    with rejects(SystemExit, "'digits' are not of clips", "--features=clips:NAME"):
        tradeoff.main([f"--checkpoint={path}", f"--workdir={tmp_path}"])


@pytest.mark.parametrize("rates, told", [({}, 0.0), ({"frame_rate": 12.0}, 12.0)])
def test_networks_are_told_the_rate_of_clips(tmp_path, rates, told):
    config = config_of(model=dict(frame_rate=True))
    np.savez(tmp_path / "a.npz", images=noise(3, 4, 12, 12, 1), labels=np.arange(3), **rates)
    source = around.told(
        config, experiment.build(config), data.load(f"npz:{tmp_path}/a.npz", frames=4)
    )
    assert next(data.batches(source, 2, seed=0))["frame_rate"].tolist() == [told] * 2
    read_alone = dataclasses.replace(source, take=None)
    batch = next(data.batches(read_alone, 2, seed=0))
    assert batch["frame_rate"].tolist() == [told] * 2 and batch["frame_rate"].dtype == np.float32


def test_clips_are_drawn_at_the_usual_rate_of_their_data(tmp_path):
    config, labels = config_of(model=dict(frame_rate=True)), np.arange(2)
    images = noise(3, 4, 12, 12, 1)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(3), frame_rate=[6.0, 12.0, 24.0])
    kept = teacher.record(config, None, data.load(f"npz:{tmp_path}/a.npz", frames=4))
    assert kept.sample.frame_rate == 12
    model, plain = experiment.build(kept), experiment.build(config)
    assert model.frame_rate == 12 and plain.frame_rate == 0

    def told(model, **given):
        return model.conditions(2, model.recipe, labels, **given)["inputs"]["frame_rate"].tolist()

    assert told(model) == [12, 12] and told(model, frame_rate=0) == [0, 0]
    assert told(plain) == [0, 0] and told(plain, frame_rate=[5, 9]) == [5, 9]
    config.data.frame_rate = 8.0
    assert told(experiment.build(config)) == [8, 8]


@pytest.mark.slow
def test_a_sweep_of_clips(model, tmp_path):
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(path, model)
    flags = ["--features=moving_digits", "--num_samples=260", "--steps=2,3"]
    tradeoff.main([f"--checkpoint={path}", f"--workdir={tmp_path}", *flags])
    with open(tmp_path / "tradeoff.csv", newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["nfe"] for record in records] == ["2", "3"]
    for name in ("clip FDD", "frame FDD", "bounce", "same", "flicker", "spectral", "label"):
        assert all(np.isfinite(float(record[name])) for record in records), name
    assert (tmp_path / "tradeoff_sheet.png").exists()


def test_the_command_knows_all_endings_that_move():
    """It has a list of its own, so that --help imports nothing large."""
    assert sample.MOVING == clip_writers.MOVING
