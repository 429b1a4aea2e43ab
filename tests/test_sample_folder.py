"""Folders of samples: the same by any number of processes, continued, never mixed, readable."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from ddim_jax import checkpoints, data, sample_folder
from ddim_jax.recipe import Recipe
from tests.processes import finish, start
from tests.told_latents import told_latents


@pytest.fixture(scope="module")
def model():
    model = checkpoints.load("digits")
    return model.replace(recipe=model.recipe.replace(steps=2, guidance_scale=1.0))


def read(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def drawn(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "set"
    given = dict(num_samples=7, label=[3, 5], batch_size=4, seed=1)
    result = sample_folder.draw(folder, model, **given)
    assert (result.drawn, result.existing) == (7, 0)
    return folder


def test_a_folder_holds_the_samples_of_the_set(model, drawn):
    expected = model.draw(7, label=[3, 5], seed=1)
    for i, image in enumerate(expected):
        found = np.asarray(Image.open(drawn / "35"[i % 2] / f"{i:07d}.png"))
        assert np.abs(found.astype(int) - image[..., 0]).max() <= 1


def test_a_folder_is_a_source_of_data(drawn):
    source = data.load(f"folder:{drawn}", split="train")
    assert len(source) == 7 and source[0]["image"].shape == (28, 28, 3)


def test_what_is_missing_or_empty_is_drawn_again_and_more_extends_the_set(model, drawn):
    before = read(drawn)
    (drawn / "5" / "0000001.png").unlink()
    (drawn / "3" / "0000004.png").write_bytes(b"")
    again = dict(label=[3, 5], batch_size=4, seed=1)
    result = sample_folder.draw(drawn, model, num_samples=8, **again)
    assert (result.drawn, result.existing) == (3, 5)
    after = read(drawn)
    assert sorted(after) == [*sorted(before), "0000007.png"]
    for name in before:
        assert np.abs(before[name].astype(int) - after[name]).max() <= 1
    assert sample_folder.draw(drawn, model, num_samples=8, **again).drawn == 0


@pytest.mark.parametrize(
    "change, what",
    [
        ({"seed": 2}, "seed"),
        ({"label": [3]}, "labels"),
        ({"clip": "none"}, "clip"),
        ({"steps": 3}, "steps"),
        ({"solver": "unipc_2", "stride": "quadratic"}, "solver and solver_options and stride"),
    ],
)
def test_other_samples_are_not_mixed_in(model, drawn, change, what):
    given = dict(num_samples=7, label=[3, 5], seed=1) | change
    changed = {name: given.pop(name) for name in [*given] if name in ("clip", "solver", "stride")}
    changed |= {"steps": given.pop("steps", None)}
    model = model.replace(recipe=model.recipe.replace(**changed))
    with pytest.raises(ValueError, match=f"set holds samples .* drawn with another {what}; choose"):
        sample_folder.draw(drawn, model, **given)


def test_samples_of_another_dtype_are_not_mixed_in(model, drawn):
    """The same weights, computed in another; folders of earlier versions do not say it."""
    other = model.replace(network=model.network.clone(dtype="bfloat16"))
    given = dict(num_samples=7, label=[3, 5], batch_size=4, seed=1)
    with pytest.raises(ValueError, match="drawn with another dtype; choose"):
        sample_folder.draw(drawn, other, **given)
    file = drawn / "samples.json"
    about = json.loads(file.read_text())
    assert about.pop("dtype") == "float32"
    file.write_text(json.dumps(about))
    assert sample_folder.draw(drawn, model, **given).drawn == 0


def test_a_folder_is_of_no_recipe_before_its_first_picture(model, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(type(model), "conditions", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample_folder.draw(tmp_path / "set", model, num_samples=2, seed=0)
    assert sample_folder.draw(tmp_path / "set", model, num_samples=2, seed=1).drawn == 2


def test_samples_that_another_command_began_meanwhile_are_not_mixed_in(
    model, tmp_path, monkeypatch
):
    folder, make = tmp_path / "set", sample_folder._make_folders

    def late(*given):
        if not folder.exists():
            monkeypatch.setattr(sample_folder, "_make_folders", make)
            sample_folder.draw(folder, model, num_samples=2, seed=1)
        make(*given)

    monkeypatch.setattr(sample_folder, "_make_folders", late)
    with pytest.raises(ValueError, match="drawn with another seed"):
        sample_folder.draw(folder, model, num_samples=2, seed=2)


@pytest.fixture(scope="module")
def told():
    return told_latents(names=("one", "two", "three")).replace(recipe=Recipe(steps=2, clip="none"))


def test_prompts_and_labels_added_at_the_end_extend_a_set(told, tmp_path):
    """Pictures that are there stay, and all are as of a set drawn at once."""
    texts, labels = ["a cat", "the sea", "a hill", "snow"], [2, 0, 1, 2]
    for name, counts in {"set": (2, 2, 4), "whole": (4,)}.items():
        for n in counts:
            given = dict(prompt=texts[:n], label=labels[:n], seed=3)
            report = sample_folder.draw(tmp_path / name, told, num_samples=n, **given)
        assert report.drawn == (2 if name == "set" else 4)
    grown, whole = read(tmp_path / "set"), read(tmp_path / "whole")
    assert sorted(grown) == sorted(whole) and len(grown) == 4
    for name in grown:
        assert np.abs(grown[name].astype(int) - whole[name]).max() <= 1
    about = [
        json.loads((tmp_path / name / "samples.json").read_text()) for name in ("set", "whole")
    ]
    assert about[0] == about[1] and about[0]["prompts"] == texts


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompt=["a dog", "the sea", "snow"]), "drawn with another prompts; choose"),
        (dict(prompt=["a cat"]), "drawn with another prompts; choose"),
        (
            dict(prompt=["a cat", "the sea", "snow"]),
            "3 samples of 2 prompts in rotation, .*sample 2",
        ),
        (dict(prompt=["a cat", "the sea", "snow"], seed=4), "3 samples of 2 prompts in rotation"),
        (dict(label=[0, 1]), "3 samples of 1 labels in rotation, .*sample 1"),
        (dict(label=None), "drawn with another labels"),
    ],
)
def test_a_set_is_not_extended_where_its_pictures_would_be_others(told, tmp_path, change, message):
    given = dict(prompt=["a cat", "the sea"], label=[0], num_samples=3)
    sample_folder.draw(tmp_path / "set", told, **given)
    with pytest.raises(ValueError, match=f"set holds .*{message}"):
        sample_folder.draw(tmp_path / "set", told, **given | change)
    about = json.loads((tmp_path / "set" / "samples.json").read_text())
    assert (about["prompts"], about["labels"]) == (["a cat", "the sea"], [0])


def test_names_of_classes_sort_like_their_numbers(tmp_path):
    names = sample_folder.paths(tmp_path, 1000, np.array([2, 10, 999]), 3)
    assert [path.relative_to(tmp_path).as_posix() for path in names] == [
        "002/0000000.png",
        "010/0000001.png",
        "999/0000002.png",
    ]
    assert sample_folder.paths(tmp_path, 0, None, 1) == [tmp_path / "0000000.png"]


def test_batches_go_round_the_processes(monkeypatch):
    shares = []
    monkeypatch.setattr(sample_folder.jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(sample_folder.jax, "process_index", lambda own=process: own)
        shares.append([batch.tolist() for batch in sample_folder._shares(14, 4)])
    assert shares == [[[0, 1, 2, 3], [8, 9, 10, 11]], [[4, 5, 6, 7], [12, 13]]]


@pytest.mark.slow
def test_two_processes_share_a_set(tmp_path):
    """Real ones: each draws its batches, together the set that one of them draws."""
    flags = ["--num_samples=14", "--steps=2", "--batch_size=4"]

    def launch(name, count):
        return finish(start(count, "sample.py", *flags, f"--out={tmp_path / name}"))

    outputs = launch("two", 2)
    counts = [int(re.search(r"two: (\d+) samples", output)[1]) for output in outputs]
    assert counts == [8, 6]
    launch("one", 1)
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert sorted(one) == sorted(two) == [f"{i:07d}.png" for i in range(14)]
    for name in one:
        assert np.abs(one[name].astype(int) - two[name]).max() <= 1
