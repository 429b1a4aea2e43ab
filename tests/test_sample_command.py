"""The command `sample.py`: pictures, arrays, folders, and one clear line for bad flags."""

import functools
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from ddim_jax import checkpoints, data, planning, provenance
from ddim_jax.commands import sample
from ddim_jax.drawing import Drawing
from ddim_jax.evaluation import retrieval
from ddim_jax.evaluation.gallery import Gallery
from tests.told_latents import told_latents

loaded = functools.cache(checkpoints.load)


@pytest.fixture(scope="module")
def model():
    return checkpoints.load("digits")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs sample.py with flags, in a directory of its own; those that are None are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "load", loaded)

    def run(**flags):
        steps = {} if flags.get("solver") == "adaptive" else {"steps": 2}
        count = {} if "plan" in flags else {"num_samples": 2}  # a plan is of one batch
        given = steps | count | flags
        given = {name: value for name, value in given.items() if value is not None}
        with flagsaver.flagsaver(**given):
            sample.run(["sample.py"])

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


@pytest.mark.parametrize("frames", [0, 3])
def test_a_sheet_of_the_way_has_a_row_a_sample(command, monkeypatch, frames):
    """Of 15 evaluations 12, spread evenly, of 10 samples 8; of clips the frame in the middle."""
    sheets = []
    monkeypatch.setattr(
        data, "save_grid", lambda *given, **options: sheets.append((given, options))
    )
    value = 10 * np.arange(15)[:, None] + np.arange(10)
    if frames:
        value = value[..., None] + 50 * (np.arange(3) - 1)
    way = np.broadcast_to(value[..., None, None, None], (*value.shape, 2, 2, 1))
    inputs = types.SimpleNamespace(titles=lambda labels: None)
    codec = types.SimpleNamespace(frames=frames)
    model = types.SimpleNamespace(inputs=inputs, codec=codec, frame_rate=8.0)
    drawing, about = Drawing(way[-1], None, way, np.full(10, 15), 0.0, 0.0), {"clips": None}
    with flagsaver.flagsaver(overwrite=True):
        sample._write(drawing, Path("a.png"), Path("way.png"), about, model)
    _, ((path, tiles, numbers), options) = sheets
    shown = [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14]
    wanted = [10 * e + i for i in range(8) for e in shown]
    np.testing.assert_array_equal(tiles, np.reshape(wanted, (-1, 1, 1, 1)) * np.ones((2, 2, 1)))
    assert path == Path("way.png") and numbers == [e + 1 for e in shown]
    assert options == dict(columns=12, overwrite=True, about=about)


def test_arrays_hold_the_texts_they_were_drawn_for(command, monkeypatch, tmp_path):
    """As captions, so that the file is read as data with captions are."""
    told = told_latents()
    monkeypatch.setattr(checkpoints, "load", lambda *args, **options: told)
    command(checkpoint="told", prompt=["a cat", "the sea"], num_samples=3, out="told.npz")
    assert data.load(f"npz:{tmp_path / 'told.npz'}").captions == ("a cat", "the sea", "a cat")


def test_what_num_samples_leaves_out_is_said(command, monkeypatch, tmp_path, capsys):
    told = told_latents(names=("one", "two"))
    monkeypatch.setattr(checkpoints, "load", lambda *args, **options: told)
    given = dict(checkpoint="told", prompt=["a cat", "the sea", "snow"])
    for number, drawn, said in (
        (None, 3, []),
        (4, 4, []),
        (2, 2, ["=2 is fewer than the 3 of --prompt: 1 left out"]),
    ):
        command(**given, num_samples=number, out=f"{drawn}.npz")
        assert len(np.load(tmp_path / f"{drawn}.npz")["images"]) == drawn
        notes = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
        assert len(notes) == len(said) and all(map(str.__contains__, notes, said))
    assert provenance.read(tmp_path / "2.npz").prompts == ["a cat", "the sea"]
    command(**given, labels=["0", "1"], num_samples=1, out="set")
    said = capsys.readouterr().err
    assert "than the 3 of --prompt: 2 left out" in said
    assert "than the 2 of --labels: 1 left out" in said


def test_a_plan_of_what_a_file_says(command, monkeypatch, tmp_path, capsys):
    command(out="a.npz", num_samples=3, labels=["5"], solver="unipc_2", steps=3, guidance_scale=1.0)
    planned = []

    def plan_sampling(model, recipe, topology, **options):
        planned.append((model.name, recipe.solver, recipe.steps, topology, options["batch_size"]))
        return planning.Plan(topology, 4, 1e9, 0, 1.0, 1.0, {}, 1.0)

    monkeypatch.setattr(planning, "plan_sampling", plan_sampling)
    again = dict(like="a.npz", plan="v5e:4", num_samples=None, steps=None)
    command(**again)
    command(**again, batch_size=8)
    assert planned == [("digits", "unipc_2", 3, "v5e:4", size) for size in (3, 8)]
    assert "Drawing 3 samples, unipc_2" in capsys.readouterr().out
    for flags, message in [
        (again | {"labels": ["1"]}, "takes no --labels"),
        (again | {"trajectory": "t.gif"}, "--plan .* takes no --trajectory"),
        ({"plan": "v5e:4", "num_samples": 4}, "--plan .* takes no --num_samples; set --batch_size"),
        ({"plan": "v5e:4", "from_clip": ["a.gif"]}, "--plan .* takes no --from_clip"),
        (again | {"like": "none.png"}, "no picture 'none.png'"),
    ]:
        with pytest.raises(SystemExit, match=message):
            command(**flags)


def test_the_checkpoints_own_guidance_scale_is_the_default(command, tmp_path, model):
    """Three pictures of one seed: as the config says, told the same, told 1."""
    own = model.replace(config=model.config.copy_and_resolve_references())
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


@pytest.mark.slow
def test_the_command_draws_to_a_tolerance(command, tmp_path, capsys):
    command(solver="adaptive", tolerance=0.1, num_samples=3, batch_size=2, guidance_scale=2.0)
    out = capsys.readouterr().out
    low, high, mean = re.search(r"tolerance 0.1, NFE (\d+)\.\.(\d+) \(mean (\d+)\)", out).groups()
    assert 7 <= int(low) <= int(mean) <= int(high) < 60 and "(guided)" in out
    with Image.open(tmp_path / "samples" / "digits-0001.png") as picture:
        assert np.std(np.asarray(picture)) > 20


def test_places_are_checked_before_anything_is_drawn(command, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_load", lambda: pytest.fail("it loads the model"))
    (tmp_path / "note").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    for flags, message in [
        ({"out": "note/a.npz"}, "--out note/a.npz cannot be written: note is a file"),
        ({"out": "note"}, "--out note cannot be written: note is a file"),
        ({"out": "a.png", "trajectory": "a.png"}, "--out and --trajectory are one file"),
        ({"trajectory": "note/t.gif"}, "--trajectory note/t.gif cannot be written"),
        ({"out": "photos"}, "photos holds other files .cat.png. and no samples.json"),
    ]:
        with pytest.raises(SystemExit, match=message):
            command(**flags)
    (tmp_path / "samples").touch()
    with pytest.raises(SystemExit, match="samples cannot be written: samples is a file"):
        command()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"solver": "dddim"}, "unknown solver 'dddim'.*ddim, ddnm, ddpm"),
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
        ({"labels": ["12"]}, "labels must be 0..9, got 12"),
        ({"labels": ["cat"]}, "labels must be 0..9, got cat"),
        ({"guidance_interval": ["1"]}, "guidance_interval must be low,high"),
        ({"checkpoint": "nowhere"}, "no checkpoint 'nowhere'"),
        ({"out": "picture.bmp"}, "--out must end in .png or .npz or .*, got picture.bmp"),
        (
            {"out": "folder", "overwrite": True},
            "folder is a folder: it takes no --trajectory and no",
        ),
        ({"out": "folder", "solver": "adaptive"}, "adaptive does not draw into a folder; use"),
        ({"plan": "v5e"}, "--plan must be like v5e:4x4"),
        ({"plan": "v5e:4x4", "solver": "adaptive"}, "adaptive has no fixed number of evaluations"),
        ({"num_samples": 0}, "num_samples must be in .1, 2.*, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"num_samples": 10**12}, "num_samples must be in .1, 2.*, got 10000"),
        ({"steps": 10**12}, r"steps must be in \[1, 10000\], got 100000"),
        ({"eta": np.nan}, "eta of solver 'ddim' must be a number, got nan"),
        ({"solver_options": ["eta=x"]}, "eta of solver 'ddim' must be a number, got 'x'"),
        ({"solver_options": ["eta=nan"]}, "eta of solver 'ddim' must be a number, got nan"),
        ({"stride_options": ["lam_min=nan"]}, "lam_min of stride .* a number or None, got nan"),
        ({"stride_options": ["lam_min=inf"]}, "lam_min must be below .*, got inf"),
        ({"stride_options": ["spacing=leading", "offset=-9"]}, "offset .*, got -9"),
        ({"guidance_scale": 1e30}, r"guidance_scale must be in \[-1000, 1000\]"),
        ({"guidance_rescale": -0.5}, r"guidance_rescale must be in \[0, 1\]"),
        ({"guidance_interval": ["nan", "1"]}, "guidance_interval must be low,high"),
        ({"out": ".png"}, "--out .png has no name before its ending"),
        ({"seed": -1}, "--seed must be a whole number in 0..2.64 - 1, got -1"),
        ({"seed": 2**64}, "--seed must be a whole number in 0..2.64 - 1, got 18446744073709551616"),
        ({"checkpoint": ""}, "a checkpoint is a path or a name .*, got ''"),
        ({"solver": "adaptive", "steps": 20}, "chooses its own steps and takes no --steps"),
        ({"solver": "adaptive", "stride": "uniform"}, "takes no --stride; .* --tolerance"),
        ({"solver": "adaptive", "trajectory": "t.gif"}, "takes no --trajectory"),
        (
            {"solver": "adaptive", "tolerance": 0.0},
            "tolerance must be positive, got 0.0",
        ),
        ({"tolerance": 0.1}, "--tolerance is for --solver=adaptive, got ddim"),
        ({"out": "--overwrite"}, "--out needs a value, and the next flag follows: --overwrite"),
        ({"labels": ["--seed=3"]}, "--labels needs a value, and the next flag follows"),
        ({"prompt": ["--out=a.png"]}, "--prompt needs a value, and the next flag follows"),
        ({"negative_prompt": "@bad.txt"}, "--negative_prompt is one text for all, no file"),
        ({"quick": True}, "--quick is for --plan"),
        ({"stride_options": ["steps=3"]}, "'uniform' has no option 'steps'.*; it has [a-z_, ]+$"),
        ({"stride_options": ["schedule=a"]}, "stride 'uniform' has no option 'schedule'"),
        ({"stride": ""}, "--stride is empty"),
        ({"plan": ""}, "--plan must be like v5e:4x4 or h100:8, .* got ''"),
        ({"like": "", "num_samples": None}, "no picture ''"),
        ({"solver": "Unipc-2"}, "unknown solver 'Unipc-2' .did you mean 'unipc_2'"),
    ],
)
def test_bad_flags_end_with_a_clear_line(command, flags, message):
    with pytest.raises(SystemExit, match=f"sample.py: .*{message}"):
        command(**flags)


@pytest.mark.parametrize("called", ["ddim-jax sample", "/usr/bin/sample.py", "pytest"])
def test_errors_name_the_command_as_it_was_called(called, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called])
    name = "ddim-jax sample" if called.startswith("ddim-jax") else "sample.py"
    with pytest.raises(SystemExit, match=f"^{name}: --steps must be"):
        command(steps=0)


def test_arrays_of_samples_are_data_with_the_names_of_their_classes(tmp_path):
    """By which `evaluation.retrieval` finds the style that was asked for, whatever its number."""
    pictures, labels = np.zeros((3, 8, 8, 3), np.uint8), np.int32([1, 0, 1])
    drawing = Drawing(pictures, labels, None, np.ones(3), 0.0, 0.0)
    held = sample.arrays(drawing, {"prompts": ["cat", "dog"]}, ("flat", "round"))
    np.savez(tmp_path / "set.npz", **held)
    source = data.load(f"npz:{tmp_path / 'set.npz'}")
    assert source.class_names == ("flat", "round") and source.captions == ("cat", "dog", "cat")
    gallery = Gallery(("cat", "dog"), ("round", "flat"), *[None] * 5)
    assert retrieval.styles_of(gallery, source, labels).tolist() == [0, 1, 0]
    assert "class_names" not in sample.arrays(drawing, {"prompts": None}, ("crane", "crane"))
    unlabelled = drawing._replace(labels=None)
    assert set(sample.arrays(unlabelled, {"prompts": None}, ())) == {"images", "about"}
