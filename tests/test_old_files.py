"""What the last release wrote still loads, resumes and draws the same pictures.

`fixtures/release_0_1.tar.gz` was written by version 0.1: a workdir of a tiny network, its export, a
learned stride, folders of samples, pairs and a sweep, and what it drew from them.
"""

import importlib.metadata
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import ddim_jax
from configs import digits
from ddim_jax import checkpoints, experiment, sample_folder, strides
from ddim_jax.checkpoints import workdir as workdirs
from ddim_jax.training import loop, reflow_pairs, resume, teacher
from tests.tiny import tiny

ARCHIVE = Path(__file__).parent / "fixtures" / "release_0_1.tar.gz"


@pytest.fixture
def old(tmp_path):
    """The folder of old files, one of its own for each test."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def samples(model, recipe):
    """Six samples of seed 5, classes 3, 1, 4 in rotation, before they are rounded to pictures."""
    table, labels = recipe.table(model.schedule), model.inputs.labels([3, 1, 4], 6)
    (batch,) = model.generator(recipe).batches(
        table, np.arange(6), seed=5, **model.conditions(6, recipe, labels, table)
    )
    return batch.result.x


RECIPES = {
    # what was drawn: (checkpoint, changes of its own recipe)
    "own": ("workdir", {}),
    "workdir": ("workdir", {"solver": "dpm_solver++_2m", "steps": 4}),
    "exported": ("file.safetensors", dict(solver="dpm_solver++_2m", steps=4, guidance_scale=2.0)),
    "stride": ("workdir", {"solver": "ddim", "stride": "stride.json"}),
    "interval": ("interval.safetensors", {"solver": "ddim", "stride": "uniform", "steps": 2}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_old_checkpoint_draws_the_same_pictures(name, old):
    checkpoint, changes = RECIPES[name]
    if "stride" in changes and changes["stride"].endswith(".json"):
        changes = changes | {"stride": str(old / changes["stride"])}
    model = ddim_jax.load(old / checkpoint)
    wanted = np.load(old / "samples.npz")[name]
    assert np.std(wanted) > 0.1  # no blank pictures
    np.testing.assert_allclose(samples(model, model.recipe.replace(**changes)), wanted, atol=2e-5)


@pytest.mark.slow
def test_an_old_run_resumes_with_the_same_losses(old):
    config = workdirs.load_config(old / "workdir")
    with config.unlocked():
        del config["data_fingerprint"]
        config.train.steps = 5
    loop.train(config, old / "workdir")
    rows = [json.loads(row) for row in (old / "workdir/metrics.jsonl").read_text().splitlines()]
    wanted = [json.loads(row) for row in (old / "resumed.jsonl").read_text().splitlines()]
    for row, then in zip(rows[-2:], wanted, strict=True):
        assert row["step"] == then["step"]
        for metric in ("loss", "grad_norm", "mse_x0"):
            assert row[metric] == pytest.approx(then[metric], rel=2e-5), metric


def test_an_old_folder_of_samples_is_extended(old):
    model = ddim_jax.load(old / "workdir")
    recipe = model.recipe.replace(solver="dpm_solver++_2m", steps=4, guidance_scale=2.0)
    before = {path: path.read_bytes() for path in (old / "folder").rglob("*.png")}
    assert len(before) == 3
    report = sample_folder.draw(old / "folder", model, recipe, num_samples=5, label=[3, 1], seed=5)
    assert (report.drawn, report.existing) == (2, 3)
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(ValueError, match="drawn with another table"):
        sample_folder.draw(
            old / "folder", model, recipe.replace(steps=5), num_samples=5, label=[3, 1], seed=5
        )


def test_old_pairs_are_extended(old):
    model = ddim_jax.load(old / "workdir")
    reflow_pairs.draw(model, old / "pairs", count=4, solver="ddim", steps=2)
    shard = (old / "pairs" / "pairs-00000.array_record").read_bytes()
    reflow_pairs.draw(model, old / "pairs", count=6, solver="ddim", steps=2)
    assert json.loads((old / "pairs" / "pairs.json").read_text())["count"] == 6
    assert (old / "pairs" / "pairs-00000.array_record").read_bytes() != shard


def test_an_old_file_is_exported_again(old):
    model = ddim_jax.load(old / "file.safetensors")
    checkpoints.save(old / "again.safetensors", model, "float16")
    assert ddim_jax.load(old / "again.safetensors").fingerprint == model.fingerprint


def test_a_quadratic_stride_of_an_old_workdir_starts_where_it_did(old, tmp_path):
    """At 0.8 T; one without a fraction in a config of today begins at T on a cosine schedule."""
    file = old / "workdir" / "config.json"
    content = json.loads(file.read_text())
    content["sample"]["stride"] = "quadratic"
    file.write_text(json.dumps(content))
    model = ddim_jax.load(old / "workdir")
    quadratic = strides.quadratic(model.schedule, 2, fraction=0.8)
    np.testing.assert_array_equal(model.recipe.times(model.schedule), quadratic)

    again = tmp_path / "again.safetensors"
    checkpoints.save(again, model)  # by today's version
    assert ddim_jax.load(again).recipe == model.recipe

    config = workdirs.load_config(old / "workdir")
    config.sample.stride_options = {}  # as in the config file of a run of today
    (note,) = resume.notes(old / "workdir", config)
    assert note.endswith("config.sample.stride_options={}, it was {'fraction': 0.8}")


def test_files_of_today_say_their_version(tmp_path):
    config = tiny(digits.get_config())
    config.sample.stride = "quadratic"
    config = experiment.resolve(config)
    written = teacher.record(config, None, experiment.load_data(config))
    resume.save_config(tmp_path, written)
    assert written.version == experiment.version()
    found = experiment.build(workdirs.load_config(tmp_path))
    assert found.recipe.times(found.schedule)[0] == 1.0


def test_a_copy_that_is_not_installed_says_so(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    path = tmp_path / "copy.safetensors"
    checkpoints.save(path, ddim_jax.load("digits"))
    assert ddim_jax.load(path).config.version == "not installed"
