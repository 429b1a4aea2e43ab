"""Pairs that a tiny network draws: what they are, and that a folder is extended, never mixed."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import digits
from ddim_jax import data, experiment, sampling
from ddim_jax.data import noise_pairs
from ddim_jax.training import reflow_pairs
from tests.errors import rejects
from tests.tiny import tiny
from tests.told_latents import told_latents

HOW = dict(solver="ddim", steps=2, batch_size=4)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A network without training, and the folder of ten pairs that it drew."""
    model = experiment.build(tiny(digits.get_config(), levels=1))
    model = model.replace(params=jax.jit(model.init)(jax.random.key(0)), name="untrained")
    folder = tmp_path_factory.mktemp("pairs") / "new"
    return model, reflow_pairs.draw(model, folder, count=10, **HOW)


def test_a_pair_is_a_noise_and_the_image_drawn_from_it(drawn):
    model, folder = drawn
    source = data.load(f"pairs:{folder}")
    assert len(source) == 10 and source.image_shape == (8, 8, 1) and source.num_classes == 10
    batch = next(data.batches(source, 10, seed=0))
    assert batch["image"].dtype == np.float32 and sorted(batch["label"]) == list(range(10))
    keys = jax.random.wrap_key_data(batch["noise_key"])
    noise = sampling.initial_noise(keys, (8, 8, 1))
    table = model.recipe.replace(solver="ddim", steps=2).table(model.schedule)
    inputs = {"label": batch["label"]}
    x = model.sampler(model.recipe.replace(clip="none"))(model.params, table, noise, keys, inputs).x
    np.testing.assert_allclose(x, batch["image"], atol=1e-5)


def test_the_folder_says_what_drew_the_pairs(drawn):
    model, folder = drawn
    assert json.loads((folder / "pairs.json").read_text()) == {
        "solver": "ddim",
        "stride": None,
        "steps": 2,
        "nfe": 2,
        "guidance_scale": 1.0,
        "clip": "none",
        "seed": 1_000_000,
        "weights": model.fingerprint,
        "model": "untrained",
        "image_shape": [8, 8, 1],
        "num_classes": 10,
        "count": 10,
    }


def test_pairs_are_drawn_once_extended_and_never_mixed(drawn, monkeypatch, tmp_path):
    model, folder = drawn
    file = folder / "pairs-00000.array_record"
    before = file.stat().st_mtime_ns
    reflow_pairs.draw(model, folder, count=10, **HOW)
    assert file.stat().st_mtime_ns == before
    with rejects(ValueError, "drawn with another nfe and steps; choose another folder"):
        reflow_pairs.draw(model, folder, count=10, solver="ddim", steps=3)
    folder = shutil.copytree(folder, tmp_path / "copy")
    before, about = data.load(f"pairs:{folder}")[7], data.load(f"pairs:{folder}").about
    monkeypatch.setattr(noise_pairs, "SHARD", 8)  # as 10 are of 1,000, so that the first has to go
    reflow_pairs.draw(model, folder, count=12, **HOW)
    longer = data.load(f"pairs:{folder}")
    assert len(longer) == 12 and [longer[i]["label"] for i in (0, 9, 11)] == [0, 9, 1]
    np.testing.assert_allclose(longer[7]["image"], before["image"], atol=1e-5)
    np.testing.assert_array_equal(longer[7]["noise_key"], before["noise_key"])
    reflow_pairs.draw(model, folder, count=16, **HOW)
    assert len(data.load(f"pairs:{folder}")) == 16  # the short last shard was filled
    assert data.load(f"pairs:{folder}").about == about  # a run on them may go on


def test_what_cannot_be_drawn_leaves_no_folder(drawn, tmp_path):
    model, folder = drawn[0], tmp_path / "pairs"
    with rejects(ValueError, "pairs need a deterministic solver, ddpm draws noise; use heun_flow"):
        reflow_pairs.draw(model, folder, count=10, solver="ddpm", steps=2)
    with rejects(ValueError, "num_samples must be in [1, 2147483648], got 0"):
        reflow_pairs.draw(model, folder, count=0)
    with rejects(ValueError, "batch_size must be at least 1, got 0"):
        reflow_pairs.draw(model, folder, count=1, batch_size=0)
    with rejects(ValueError, "unknown solver 'adaptive'"):
        reflow_pairs.draw(model, folder, count=1, solver="adaptive")
    assert not folder.exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "config.pairs needs a count"),
        ({"count": 2.5}, "count of config.pairs must be a whole number, got 2.5"),
        ({"count": 8, "stepz": 2}, "config.pairs has no option 'stepz' (did you mean 'steps'?)"),
        ({"count": 8, "seed": -1}, "config.pairs.seed must be a whole number"),
        ({"count": 8, "seed": 2**70}, "config.pairs.seed must be a whole number"),
        ({"count": 8, "solver": "ddpm"}, "pairs need a deterministic solver, ddpm draws noise"),
        ({"count": 8, "steps": 0}, "steps must be in"),
        ({"count": 8, "guidance_scale": float("nan")}, "guidance_scale of config.pairs must be a"),
    ],
)
def test_options_of_pairs_are_checked_before_the_first_stage(drawn, options, message):
    with rejects(ValueError, message):
        reflow_pairs.check(drawn[0].replace(params=None), options)


def test_pairs_of_latents_and_texts_are_refused_before_any_is_drawn(tmp_path):
    with rejects(ValueError, "pairs hold pixels and a label, and told draws latents; reflow a"):
        reflow_pairs.draw(told_latents(), tmp_path / "pairs", count=10, **HOW)
    with rejects(ValueError, "told draws latents"):
        reflow_pairs.check(told_latents(), dict(count=10, **HOW))
    assert not list(tmp_path.iterdir())
