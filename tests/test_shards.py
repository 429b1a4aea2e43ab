"""Shards of a sweep: complete or absent, resumed, damaged, drawn otherwise, of old releases."""

import dataclasses
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ddim_jax import checkpoints
from ddim_jax.evaluation import shards
from ddim_jax.evaluation.asked import Asked
from ddim_jax.evaluation.shards import Shards, cell_name
from ddim_jax.recipe import Recipe, parse_stride
from tests.told_latents import told_latents

FIXTURE = Path(__file__).parent / "fixtures" / "release_0_1.tar.gz"
RECIPE = Recipe("ddim", "uniform", 2, solver_options={"eta": 0.5})


@pytest.fixture(scope="module")
def model():
    return checkpoints.load("digits")


@pytest.fixture(scope="module")
def generator(model):
    return model.generator(RECIPE)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 6)


def folder_of(model, path, recipe=RECIPE, seed=0):
    table = recipe.table(model.schedule)
    return Shards(path, shards.identity(recipe, seed, model, table))


def test_a_cell_is_one_set_however_it_was_drawn(model, generator, small, tmp_path):
    """Interrupted, extended, in other batches."""
    counts, stop = [], RuntimeError("stopped")

    def update(count):
        counts.append(count)
        if sum(counts) > 6:
            raise stop

    with pytest.raises(RuntimeError, match="stopped"):
        cell = folder_of(model, tmp_path / "a")
        shards.draw(model, RECIPE, generator, cell, 14, batch_size=3, update=update)
    assert [p.name for p in sorted((tmp_path / "a").glob("*.npz"))] == ["00000.npz"]
    again = []
    cell = folder_of(model, tmp_path / "a")
    shards.draw(model, RECIPE, generator, cell, 14, batch_size=4, update=again.append)
    assert again == [4, 2, 2]  # the second shard, and the two samples of the third
    assert cell.missing(14) == [] and cell.missing(15) == [range(12, 15)]
    table, index = RECIPE.table(model.schedule), np.array([13, 1, 7, 4])
    conditions = model.conditions(4, RECIPE, model.inputs.labels(None, 14)[index], table)
    ((_, some),) = generator.batches(table, index, **conditions)
    samples = cell.read(14)
    assert np.abs(samples.images[index].astype(int) - model.pictures(some.x)).max() <= 1
    assert samples.images_per_second > 0 and samples.program_bytes > 6e6  # the weights alone
    with pytest.raises(ValueError, match="lacks samples range"):
        cell.read(15)


def test_a_damaged_shard_is_put_aside_and_drawn_again(model, generator, small, tmp_path, capsys):
    cell = folder_of(model, tmp_path)
    shards.draw(model, RECIPE, generator, cell, 12, batch_size=4)
    path, before = tmp_path / "00001.npz", cell.read(12).images
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert cell.missing(12) == [range(6, 12)]
    assert "00001.npz is damaged" in capsys.readouterr().err
    assert (tmp_path / "00001.damaged").read_bytes() == content  # nothing is lost
    shards.draw(model, RECIPE, generator, cell, 12, batch_size=4)
    np.testing.assert_array_equal(cell.read(12).images, before)
    path.write_bytes(b"")
    assert cell.missing(12) == [range(6, 12)]


def test_samples_drawn_in_another_way_are_not_mixed(model, tmp_path):
    folder_of(model, tmp_path).write(0, np.zeros((1, 28, 28, 1), np.uint8), seconds=1.0)
    with pytest.raises(ValueError, match="drawn with another solver_options and table; choose"):
        folder_of(model, tmp_path, dataclasses.replace(RECIPE, solver_options={"eta": 0.6}))
    with pytest.raises(ValueError, match="drawn with another seed;"):
        folder_of(model, tmp_path, seed=1)
    limited = dataclasses.replace(RECIPE, guidance_scale=2.0, guidance_interval=(0.1, 3.0))
    with pytest.raises(ValueError, match="drawn with another guidance_interval and guidance_sca"):
        folder_of(model, tmp_path, limited)
    for damaged in ("{", "[1]"):
        (tmp_path / "cell.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"cell.json is damaged .*move the folder away"):
            folder_of(model, tmp_path)


def test_identity_is_json_and_names_every_setting(model):
    about = shards.identity(RECIPE, 0, model, RECIPE.table(model.schedule))
    assert json.loads(json.dumps(about)) == about
    assert about["solver_options"] == [["eta", 0.5]] and about["labels"].startswith("all classes")
    assert about["weights"] == model.fingerprint


def test_cells_of_an_old_release_are_gone_on_with(tmp_path):
    """Their names and what they were drawn with are as they were; what is there is not drawn."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = (tmp_path / "cells").iterdir()
    model = checkpoints.load(tmp_path / "workdir")
    recipe = Recipe(
        "ddim", steps=2, solver_options={"eta": 0.5}, guidance_scale=2.0,
        **parse_stride("quadratic:fraction=1"),
    )  # fmt: skip
    assert folder.name == cell_name(recipe, 1)
    about = shards.identity(recipe, 1, model, recipe.table(model.schedule))
    assert about == json.loads((folder / "cell.json").read_text()) | {"dtype": "float32"}
    cell = Shards(folder, about)
    count = len(np.load(folder / "00000.npz")["images"])
    assert cell.missing(count) == [] and len(cell.read(count).images) == count
    assert cell.missing(count + 1) == [range(count + 1)]


def test_names_of_cells_tell_them_apart():
    def changed(**changes):
        return cell_name(dataclasses.replace(RECIPE, **changes))

    names = [
        cell_name(RECIPE),
        changed(steps=3),
        changed(solver_options={}),
        changed(stride="strides/digits-ddim-2.json"),
        changed(guidance_scale=2.0),
        changed(guidance_scale=2.0, guidance_interval=(0.1, 3.0)),
        changed(guidance_scale=2.0, guidance_rescale=0.7),
        changed(clip="none"),
        cell_name(RECIPE, 3),
    ]
    assert len(set(names)) == len(names)
    assert names[0] == "ddim_uniform_2_eta=0.5" == changed(guidance_interval=(0.1, 3.0))
    assert names[3] == "ddim_digits-ddim-2_2_eta=0.5"
    assert names[-2:] == ["ddim_uniform_2_eta=0.5_clip=none", "ddim_uniform_2_eta=0.5_seed=3"]
    assert changed(**parse_stride("uniform:terminal=min")) == "ddim_uniform,terminal=min_2_eta=0.5"
    assert changed(stride=None) == names[0]


PEAKS = """
import numpy as np
from ddim_jax.evaluation import shards
from ddim_jax.evaluation.asked import Asked
shards.reset_peak()
low = shards.peak_bytes()
block = np.ones(25_000_000)
high = shards.peak_bytes()
del block
shards.reset_peak()
print(low, high, shards.peak_bytes())
"""


def test_the_peak_of_memory_is_seen_and_forgotten():
    """In a process of its own, where nothing else takes or frees memory."""
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    low, high, after = map(int, run.stdout.split())
    if low == 0:
        pytest.skip("the system does not say")
    assert high - low > 150e6 and high - after > 150e6


@pytest.mark.slow
def test_samples_are_asked_for_texts(small, tmp_path):
    """Sample i for text i in rotation, whatever was drawn before."""
    model, texts = told_latents(), ("a cat", "the sea", "two dogs", "a tree")
    recipe, asked = (
        Recipe("ddim", "uniform", 2, guidance_scale=2.0, clip="none"),
        Asked("t", None, texts),
    )
    table = recipe.table(model.schedule)
    about = shards.identity(recipe, 0, model, table, asked)
    for count in (3, 8):
        cell = Shards(tmp_path / "a", about)
        shards.draw(model, recipe, model.generator(recipe), cell, count, asked=asked, batch_size=4)
    drawn = model.generate(8, recipe, prompt=list(texts)).pictures
    np.testing.assert_allclose(np.int32(cell.read(8).images), drawn, atol=1)
    assert np.ptp(drawn[:4].astype(int), axis=0).max() > 20  # the texts matter
    with pytest.raises(ValueError, match="drawn"):
        Shards(tmp_path / "a", shards.identity(recipe, 0, model, table))
