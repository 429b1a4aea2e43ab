"""Clips from a first frame, longer than a window, between frames; edited; in Python and commands.

The network is a formula: every frame becomes the mean of all, of which those told as clean count
most. So what is known goes from window to window, and nothing takes long to compile.
"""

import dataclasses
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from ddim_jax import checkpoints, clip_drawing, data, edit, experiment, schedules
from ddim_jax.batch_loop import Generator
from ddim_jax.commands import clip_flags, sample
from ddim_jax.data import clip_files
from ddim_jax.dropping import ALONE
from ddim_jax.editing import clips
from ddim_jax.editing import pictures as edited
from ddim_jax.editing.editor import Editor
from tests.errors import rejects
from tests.pictures import noise
from tests.test_clip_models import config_of, of_pictures

T, SIZE = 4, 4
LEVELS = {"frame_levels": (0.5, 0.3)}


@dataclasses.dataclass(frozen=True)
class Mean:
    """Predicts x0: of every frame the mean of the clip, weighted by 1 / t^2."""

    draws_clips = True

    def apply(self, variables, x, t, told, dropout_keys=None):
        t = jnp.broadcast_to(t if t.ndim == 2 else t[:, None], x.shape[:2])
        weight = (t + 1e-4)[..., None, None, None] ** -2
        mean = (weight * x).sum(1, keepdims=True) / weight.sum(1, keepdims=True)
        apart, label = (told[name][:, None, None, None, None] for name in (ALONE, "label"))
        return jnp.where(apart, x, mean) * variables["params"]["one"] + 0.01 * label


def model_of(loss=LEVELS):
    config = config_of(data=dict(image_shape=(SIZE, SIZE, 1), resize=SIZE), loss=loss)
    config.prediction.name = "x0"
    return experiment.build(config).replace(
        network=Mean(), params={"one": np.ones((), np.float32)}, name="means"
    )


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def pictures():
    return noise(3, SIZE, SIZE, 1)


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known, total, overlap, wanted",
    [
        (0, 16, 2, (0, 2, 4, 6, 8, 10, 12)),
        (1, 10, 1, (0, 3, 6)),
        (0, 11, 1, (0, 3, 6, 7)),  # the last ends at the end
        (7, 10, 2, (4, 6)),  # what is there is not drawn again
        (0, 3, 2, (0,)),
        (4, 4, 2, ()),
    ],
)
def test_windows_draw_what_is_not_known(known, total, overlap, wanted):
    line = np.arange(total) < known
    assert clip_drawing.starts(line, T, overlap) == wanted
    for first in wanted:
        here = slice(first, first + T)
        assert not line[here].all() and (first == 0 or line[here].sum() >= overlap)
        line[here] = True
    assert line.all()


def test_a_first_frame_goes_through_all_windows(model, pictures):
    found = model.generate(3, first_frame=pictures, extend=10, overlap=1)
    drawn = found.pictures
    assert drawn.shape == (3, 10, SIZE, SIZE, 1) and np.all(found.nfe == 3 * 2)
    assert found.labels is None
    np.testing.assert_array_equal(drawn[:, 0], pictures)
    assert np.corrcoef(drawn[:, -1].ravel(), pictures.ravel())[0, 1] > 0.95
    few = {"index": np.array([2, 4]), "batch_size": 1}
    others = model.generate(2, first_frame=pictures, extend=10, overlap=1, **few).pictures
    np.testing.assert_array_equal(others[0], drawn[2])  # picture and noise by its place alone
    np.testing.assert_array_equal(others[1, 0], pictures[1])


def test_what_python_asks_for(model, pictures):
    assert model.draw(first_frame=pictures[0]).shape == (1, T, SIZE, SIZE, 1)
    assert model.draw(1, frames=6).shape == (1, 6, SIZE, SIZE, 1)
    assert model.draw(first_frame=pictures[:1], frames=6, extend=9).shape[:2] == (1, 9)
    assert model.draw(from_clip=noise(5, SIZE, SIZE, 1), interpolate=2).shape[:2] == (1, 10)
    assert model.draw(1, extend=6, interpolate=3).shape[:2] == (1, 18)
    assert clip_drawing.plan(model_of({"known": 0.3}), {"first_frame": pictures})  # a student


@pytest.mark.parametrize(
    "way, solver", [("levels", "ddpm"), ("replacement", "ddim"), ("repaint", "ddim")]
)
def test_given_frames_are_kept_by_every_way(model, way, solver):
    clip, options = noise(2, 3, SIZE, SIZE, 1), {"known_by": way, "solver": solver, "steps": 3}
    found = model.draw(from_clip=clip, extend=6, **options)
    np.testing.assert_array_equal(found[:, :3], clip)
    between = model.draw(from_clip=clip, interpolate=2, **options)
    np.testing.assert_array_equal(between[:, ::2], clip)


def test_frames_between_are_told_the_rate_that_they_make(model, monkeypatch):
    rates, plain = [], type(model).conditions

    def conditions(self, *args, frame_rate=None, **options):
        rates.append(frame_rate)
        return plain(self, *args, frame_rate=frame_rate, **options)

    monkeypatch.setattr(type(model), "conditions", conditions)
    model.generate(1, interpolate=3, frame_rate=5.0)
    assert rates == [5, 15]
    model.draw(1, frame_rate=7.0)
    assert rates[2:] == [7]


def test_what_networks_of_clips_are_told_in_python(model):
    together, apart = (model.draw(2, alone=alone, solver="ddim", steps=3) for alone in (0, True))
    assert np.var(apart, axis=1).mean() > 2 * np.var(together, axis=1).mean()
    still = experiment.build(of_pictures(config_of()))
    for told in ({"alone": True}, {"frame_rate": 8}):
        with rejects(ValueError, f"{next(iter(told))} is of clips, and model draws pictures"):
            still.replace(params={}).draw(1, **told)


def test_given_frames_come_back_from_a_codec_that_changes_them(model, monkeypatch):
    clip = noise(2, 3, SIZE, SIZE, 1)
    monkeypatch.setattr(type(model), "pictures", lambda self, x: np.zeros(x.shape, np.uint8))
    found = model.generate(3, from_clip=clip, interpolate=2).pictures
    np.testing.assert_array_equal(found[:, :6:2], clip[[0, 1, 0]])
    assert found.shape[1] == 6 and not found[:, 1::2].any()


def test_frames_start_from_the_noise_of_their_place_and_windows_have_keys_of_their_own(model):
    seen, batches = [], Generator.batches

    def watched(self, *args, **options):
        seen.append((options["x"], jax.random.key_data(options["keys"])))
        return batches(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator, "batches", watched)
        model.draw(1, extend=8, overlap=2, interpolate=2, label=3)
    noises, keys = zip(*seen, strict=True)
    assert len(seen) == 3 + 7 and len({key.tobytes() for key in keys}) == 10
    np.testing.assert_array_equal(noises[0][:, 2:], noises[1][:, :2])
    assert np.all(noises[0] != noises[3])  # between frames there is other noise
    np.testing.assert_array_equal(noises[0], model.initial_noise(jax.random.wrap_key_data(keys[0])))


@dataclasses.dataclass(frozen=True)
class Markov:
    """Predicts x0 of clips of one pixel, a Gaussian chain: exactly what the data say."""

    draws_clips = True
    STD, CHAIN = 0.25, 0.8

    def apply(self, variables, x, t, told, dropout_keys=None):
        count = x.shape[1]
        t = jnp.broadcast_to(t if t.ndim == 2 else t[:, None], x.shape[:2]) / 1000
        level = schedules.cosine().level(t)
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        cov = jnp.asarray(self.STD**2 * self.CHAIN**apart, jnp.float32)[None]
        alpha, noise = level.alpha, jnp.eye(count)[None] * (level.sigma**2 + 1e-7)[:, None]
        inner = alpha[:, :, None] * cov * alpha[:, None] + noise
        solved = jnp.linalg.solve(inner, x.reshape(len(x), count, 1))
        x0 = (cov * alpha[:, None]) @ solved
        return x0.reshape(x.shape) * variables["params"]["one"]


def test_long_clips_are_distributed_as_the_chain_that_windows_know():
    """Of a chain the last frame says all that the next window can know."""
    config = config_of(data=dict(image_shape=(1, 1, 1), resize=1), loss=LEVELS)
    config.prediction.name = "x0"
    model = experiment.build(config).replace(
        network=Markov(), params={"one": np.ones((), np.float32)}
    )
    options = {"extend": 9, "overlap": 1, "label": 0, "batch_size": 4000}
    options |= {"solver": "unipc_2", "steps": 80}
    drawn = model.draw(4000, **options).reshape(4000, 9) / 127.5 - 1
    apart = np.abs(np.subtract.outer(np.arange(9), np.arange(9)))
    np.testing.assert_allclose(drawn.std(axis=0), Markov.STD, rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(drawn.T), Markov.CHAIN**apart, atol=0.05)


@pytest.mark.parametrize(
    "asked, parts",
    [
        ({"extend": 3}, ("extend must be at least the 4 frames", "got 3", "frames=3 draws them")),
        ({"extend": 8, "overlap": 4}, ("overlap must be in [1, 3]", "got 4")),
        ({"extend": 8, "frames": 1}, ("frames must be at least 2", "got 1")),
        ({"frames": 0}, ("frames must be in [1, 65536]", "got 0")),
        ({"interpolate": 1}, ("interpolate must be in [2, 64]", "got 1")),
        ({"overlap": 2}, ("overlap is of frames that are known", "give first_frame")),
        ({"first_frame": noise(5, 5, 1)}, ("[..., 4, 4, 1]", "got uint8 [5, 5, 1]", "resize")),
        ({"first_frame": noise(4, 4, 3)}, ("[..., 4, 4, 1]", "got uint8 [4, 4, 3]")),
        ({"first_frame": noise(4, 4, 1) / 2}, ("must be uint8 frames", "got float64")),
        ({"from_clip": noise(4, 4, 4, 1)}, ("has 4 frames, and 4 are to be drawn", "extend")),
        ({"from_clip": noise(4, 4, 4, 1), "first_frame": noise(4, 4, 1)}, ("give one of them",)),
        ({"extend": 8, "known_by": "magic"}, ("unknown known_by 'magic'", "levels, replacement")),
        ({"extend": 8, "solver": "adaptive"}, ("known frames", "solver=adaptive has none")),
    ],
)
def test_what_cannot_be_is_said_before_any_work(model, asked, parts, monkeypatch):
    monkeypatch.setattr(Generator, "batches", lambda *args, **options: pytest.fail("it draws"))
    with rejects(ValueError, *parts):
        model.draw(1, **asked)


def test_networks_that_cannot_be_told_what_is_known_say_so(pictures):
    one_level = model_of({"frame_levels": None})
    with rejects(ValueError, "one noise level", "known_by=replacement", "config.loss.known=0.3"):
        one_level.draw(first_frame=pictures)
    drawn = one_level.draw(first_frame=pictures, known_by="replacement")
    np.testing.assert_array_equal(drawn[:, 0], pictures)
    still = experiment.build(of_pictures(config_of()))
    with rejects(ValueError, "draws pictures: frames=8 needs a network of clips"):
        still.draw(frames=8)
    with rejects(ValueError, "draws pictures, and first_frame needs a network of clips"):
        still.draw(first_frame=pictures)
    with rejects(ValueError, "a trajectory is of clips that are drawn at once"):
        model_of().generate(1, first_frame=pictures, trajectory=True)


def test_given_frames_need_a_label_where_the_network_knows_no_null_one(pictures, monkeypatch):
    told = model_of(LEVELS | {"label_dropout": 0.0})
    monkeypatch.setattr(Generator, "batches", lambda *args, **options: pytest.fail("it draws"))
    with rejects(ValueError, "means was trained without label dropout", "give labels, 0..9"):
        told.draw(first_frame=pictures)
    with pytest.raises(pytest.fail.Exception, match="it draws"):
        told.draw(first_frame=pictures, label=3)


# --- sample.py ------------------------------------------------------------------------------------


@pytest.fixture
def command(model, monkeypatch, tmp_path):
    """Runs sample.py with flags on that network, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "load", lambda *args, **options: model)

    def run(**given):
        with flagsaver.flagsaver(**given):
            sample.run(["sample.py"])

    sample.flags.FLAGS(["sample.py"])
    return run


def test_commands_draw_on_and_are_repeated(command, tmp_path, pictures):
    data.save_png("still.png", pictures[0])
    Image.fromarray(noise(8, 6)).save("other.gif")
    np.savez("stills.npz", images=pictures)
    command(first_frame=["still.png", "other.gif"], resize=True, extend=7, out="on.npz")
    drawn = np.load("on.npz")["images"]
    assert drawn.shape == (2, 7, SIZE, SIZE, 1)
    np.testing.assert_array_equal(drawn[0, 0], pictures[0])
    command(like="on.npz", out="again.npz")
    np.testing.assert_array_equal(np.load("again.npz")["images"], drawn)
    command(from_clip=["on.npz"], interpolate=2, out="between.gif")
    with Image.open("between.gif") as gif:
        assert gif.n_frames == 14 and gif.info["duration"] == 60  # twice as many a second
    data.save_clips("fast.webp", drawn[:1], 20, scale=1)
    command(from_clip=["fast.webp"], interpolate=2, resize=True, out="fast.gif")
    with Image.open("fast.gif") as gif:  # 40 frames a second
        assert gif.info["duration"] in (20, 30)
    command(like="fast.gif", out="again.gif")
    assert Path("again.gif").read_bytes() == Path("fast.gif").read_bytes()
    command(frame_rate=2.0, num_samples=1, out="slow.gif")
    with Image.open("slow.gif") as gif:  # equal frames become one
        assert gif.info["duration"] * gif.n_frames == 500 * T
    command(frames=3, num_samples=2, out="short.webp")
    command(like="short.webp", out="short.npz")
    assert np.load("short.npz")["images"].shape[:2] == (2, 3)
    command(like="short.webp")
    assert len(list(tmp_path.glob("samples/*-0001.gif"))) == 1
    command(first_frame=["stills.npz"], labels=["3"], out="three.npz")
    assert np.load("three.npz")["labels"].tolist() == [3, 3, 3]
    data.save_png("still.png", pictures[1], overwrite=True)
    with pytest.raises(SystemExit, match="still.png, .*other pictures than when .* --first_frame"):
        command(like="on.npz", out="new.npz")
    (tmp_path / "still.png").unlink()
    with pytest.raises(SystemExit, match="there is no file .*still.png"):
        command(like="on.npz", out="new.npz")


def test_arrays_of_clips_say_their_rate(command, model):
    assert "frame_rate" not in sample.arrays(model.generate(1), {"prompts": None}, ())
    command(frame_rate=5.0, interpolate=2, num_samples=1, out="slow.npz")
    assert np.load("slow.npz")["frame_rate"] == 10
    assert data.load("npz:slow.npz")[0]["frame_rate"] == 10
    with flagsaver.flagsaver(from_clip=["slow.npz"], interpolate=2):
        assert clip_flags.asked(model)["frame_rate"] == 10


def test_a_rate_that_is_given_stands_for_those_of_files(command, model):
    clip = noise(2, 3, SIZE, SIZE, 1)
    data.save_clips("slow.webp", clip[:1], 10, scale=1)
    data.save_clips("fast.webp", clip[:1], 20, scale=1)
    np.savez("both.npz", images=clip, frame_rate=[10.0, 20.0])
    for files in (["slow.webp", "fast.webp"], ["both.npz"]):
        with flagsaver.flagsaver(from_clip=files):
            with rejects(ValueError, "one rate, got 10 to 20 frames a second", "at frame_rate=10"):
                clip_flags.asked(model)
        with flagsaver.flagsaver(from_clip=files, frame_rate=5.0):
            assert clip_flags.asked(model)["frame_rate"] == 5


@pytest.mark.parametrize(
    "repaint, nfe, said",
    [
        (False, 4, "ddim, uniform stride, 4 NFE"),
        (False, 12, "ddim, uniform stride, 4 NFE in each window, 12 in all"),
        (True, 16, "repaint, uniform stride, 16 NFE"),
    ],
)
def test_the_evaluations_of_clips_are_told(repaint, nfe, said):
    """Of moving_4step, whose repaint takes a multiple of its steps, too."""
    student = checkpoints.load("moving_4step")
    assert sample._how(student, student.recipe, np.array([nfe]), repaint) == said


@pytest.mark.parametrize(
    "given, message",
    [
        ({"first_frame": ["wide.png"]}, r"shape \[5, 8, 1\], means draws \[4, 4, 1\]; --resize"),
        ({"first_frame": ["none.png"]}, "there is no file none.png"),
        ({"first_frame": ["bad.png"]}, "bad.png"),
        ({"from_clip": ["wide.png"]}, "wide.png cannot be taken as a clip: a still picture"),
        ({"from_clip": ["stills.npz"]}, "stills.npz holds pictures: give them by --first_frame="),
        ({"from_clip": ["odd.gif"]}, "odd.gif .* shown for different times: write it at one rate"),
        ({"extend": 2}, "--extend must be at least the 4 frames .* got 2; --frames=2 draws"),
        ({"extend": 9, "out": "folder"}, "--out=folder is a folder, .* takes no --extend"),
        ({"like": "on.npz", "extend": 9}, "--like draws the pictures .* takes no --extend"),
        ({"interpolate": 16, "out": "new.gif"}, r"frame_rate must be in \[0.1, 100\], got 128"),
        ({"frame_rate": -1.0}, "--frame_rate must be in"),
        (
            {"extend": 9, "known_by": "repaint", "solver": "unipc_2"},
            "--known_by=repaint is a solver itself and takes no --solver",
        ),
        (
            {"extend": 9, "known_by": "repaint", "eta": 1.0},
            "--known_by=repaint is a solver itself and takes no --eta",
        ),
        ({"resize": True}, "--resize is of the pictures of --first_frame or --from_clip"),
        ({"extend": 9, "trajectory": "t.gif"}, "a trajectory is of clips that are drawn at once"),
    ],
)
def test_bad_flags_are_one_line(command, given, message, tmp_path, pictures):
    Image.fromarray(noise(5, 8)).save("wide.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    np.savez("stills.npz", images=pictures)
    frames = [Image.fromarray(noise(SIZE, SIZE)) for _ in range(3)]
    frames[0].save("odd.gif", save_all=True, append_images=frames[1:], duration=[50, 70, 900])
    with pytest.raises(SystemExit, match=message):
        command(**{"out": "new.npz"} | given)
    assert not (tmp_path / "new.npz").exists()


# --- edit -----------------------------------------------------------------------------------------


@pytest.fixture
def editing(command, capsys):
    """Runs edit.py on clips of noise; returns its numbers and the frames of its GIF."""
    np.savez("clips.npz", images=noise(3, 5, SIZE, SIZE, 1), labels=np.arange(3))

    def run(name, *flags, out="out.gif"):
        noises = any(flag.startswith("--seeds") for flag in flags)
        images = () if noises else ("--images=clips.npz",)
        common = (*images, "--num=3", "--steps=3", f"--out={out}", "--overwrite")
        edit.main([name, *common, *flags])
        with Image.open(out) as gif:
            frames = gif.n_frames
        return json.loads(Path("out.json").read_text()), frames

    return run


@pytest.mark.slow
def test_clips_are_edited_by_the_commands_of_pictures(editing):
    numbers, frames = editing("invert", "--save=kept.npz")
    assert frames == T and np.load("kept.npz")["images"].shape == (3, T, SIZE, SIZE, 1)
    numbers, _ = editing("translate", "--toward=8", "--method=ddim")
    assert set(numbers["flicker"]) == {"image", "translated", "and back"}
    assert editing("sdedit", "--strength=1", out="out.png")[1] == 1
    numbers, _ = editing("interpolate", "--seeds=1,2,3", "--frames=2", "--method=ddim")
    assert numbers["frames"] == 5
    numbers, _ = editing("attribute", "--learn_from=3", "--strength=0,1", "--method=ddim")
    assert np.isfinite(numbers["norm"])


def test_frames_apart_flicker_more(editing):
    """Each frame of a clip redrawn by itself, and all together."""
    flicker = {}
    for flags in ((), ("--alone",)):
        numbers, _ = editing("sdedit", "--strength=1", *flags)
        flicker[flags] = numbers["flicker"]["1"]
    assert flicker["--alone",] > 2 * flicker[()]


def test_frames_are_told_apart_both_ways(editing, monkeypatch):
    """Of networks without texts in translation, and of directions without --told."""
    told, run = [], Editor._run

    def kept(self, *given, **options):
        told.append(options["told"])
        return run(self, *given, **options)

    monkeypatch.setattr(Editor, "_run", kept)
    editing("translate", "--toward=8", "--method=ddim", "--alone")
    editing("attribute", "--learn_from=3", "--strength=1", "--method=ddim", "--alone")
    assert told == [{"alone": True}] * 7


@pytest.mark.parametrize(
    "text, known", [("odd", "1010"), ("1-2", "1001"), ("0", "0111"), ("3,0-1", "0010")]
)
def test_masks_of_frames_name_those_to_draw(text, known):
    assert clips.known_frames(text, 4).tolist() == [sign == "1" for sign in known]
    asked = types.SimpleNamespace(mask=f"frames:{text}")
    mask = edited.read_mask(asked, (2, 4, 5, 6, 1))
    assert mask.shape == (2, 4, 5, 6, 1) and mask.dtype == np.float32
    for frame, sign in enumerate(known):
        assert np.all(mask[:, frame] == float(sign))


def test_frames_and_places_are_filled_in(editing):
    numbers, frames = editing("inpaint", "--mask=frames:odd")
    assert numbers["method"] == "levels" and numbers["evaluations"] == 3 and frames == T
    assert numbers["known_error"] == 0
    moving = 255 * np.eye(T, SIZE, dtype=np.uint8)[None, :, None, :, None].repeat(SIZE, axis=2)
    data.save_clips("mask.webp", moving, scale=1)
    np.testing.assert_array_equal(
        clips.moving_mask(Path("mask.webp"), (T, 4, 4), False), moving[0, ..., 0] > 0
    )
    for mask, method in (("mask.webp", "replacement"), ("left", "ddnm"), ("frames:1-2", "dps")):
        numbers, _ = editing("inpaint", f"--mask={mask}", f"--method={method}")
        assert numbers["known_error"] < 1e-5
    numbers, _ = editing("inpaint", "--operator=average:2", "--method=ddnm")
    assert numbers["known_error"] < 1e-5


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--mask=frames:2-9",), "--mask=frames:2-9 must name frames to draw, 0..3, like"),
        (("--mask=frames:",), "--mask=frames: must name frames"),
        (("--mask=left", "--method=levels"), "--method=levels is for whole frames: --mask=frames:"),
        (("--mask=short.gif",), "--mask short.gif is 2 x 4 x 4, and the clips are 4 x 4 x 4"),
        (("--images=short.gif",), "short.gif has 2 frames, and clips of means 4: .* --from_clip="),
        (("--images=large.npz",), r"holds images of shape \(4, 9, 9, 1\), .* --resize crops"),
        (("--images=still.png",), "still.png cannot be taken as a clip: a still picture"),
    ],
)
def test_bad_edits_are_one_line(editing, flags, message):
    data.save_clips("short.gif", noise(1, 2, SIZE, SIZE, 1), scale=1)
    np.savez("large.npz", images=noise(1, 4, 9, 9, 1))
    data.save_png("still.png", noise(SIZE, SIZE, 1))
    with pytest.raises(SystemExit, match=message):
        editing("inpaint", *flags)


def test_a_file_that_cannot_be_written_is_refused_before_the_edit(editing, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(Generator, "batches", lambda *args, **options: pytest.fail("it draws"))
    with pytest.raises(SystemExit, match="pip install 'ddim_jax.video.'"):
        editing("sdedit", "--strength=1", out="out.mp4")


@pytest.mark.parametrize(
    "cut, wanted",
    [
        ({}, [0, 1, 2, 3]),
        ({"frame_rate": "own", "frame_stride": 2}, [0, 2, 4, 6]),
        ({"frame_rate": 5.0}, [0, 2, 4, 6]),
        ({"frame_rate": 20.0}, [0, 0, 1, 1]),
        ({"frame_rate": 2.0}, "long.webp has 2 frames at 2 a second, and clips of means 4: draw"),
    ],
)
def test_a_clip_in_a_file_is_cut_as_in_training(model, cut, wanted, tmp_path, monkeypatch):
    clip, path, read = noise(1, 10, SIZE, SIZE, 1), tmp_path / "long.webp", clip_files.read
    data.save_clips(path, clip, 10, scale=1)
    config = model.config.copy_and_resolve_references()
    with config.ignore_type(), config.unlocked():
        config.data.update(cut)

    def few(file, found, places, *rate):
        assert len(places) <= T
        return read(file, found, places, *rate)

    monkeypatch.setattr(clip_files, "read", few)
    if isinstance(wanted, str):
        with rejects(ValueError, wanted):
            clips.read_file(model.replace(config=config), path, False)
    else:
        found = clips.read_file(model.replace(config=config), path, False)
        np.testing.assert_array_equal(found, clip[:, wanted])


def test_files_that_are_too_long_are_not_read(command, model, tmp_path, monkeypatch):
    data.save_clips("long.webp", noise(1, 12, SIZE, SIZE, 1), scale=1)
    monkeypatch.setattr(clip_files, "read", lambda *args: pytest.fail("it is read"))
    with pytest.raises(SystemExit, match="the clip has 12 frames, and 9 are to be drawn; say how"):
        command(from_clip=["long.webp"], extend=9, out="new.npz")
    with rejects(ValueError, "long.webp is 12 x 4 x 4, and the clips are 4 x 4 x 4"):
        clips.moving_mask(Path("long.webp"), (T, SIZE, SIZE), False)


def test_networks_of_pictures_edit_no_clips(editing, monkeypatch):
    still = experiment.build(of_pictures(config_of(data=dict(image_shape=(SIZE, SIZE, 1)))))
    monkeypatch.setattr(checkpoints, "load", lambda *args, **options: still)
    with pytest.raises(SystemExit, match="holds clips, and model draws pictures"):
        editing("invert", out="out.png")
    with pytest.raises(SystemExit, match="--out must end in .png, got out.gif"):
        editing("invert")
    with pytest.raises(SystemExit, match="--alone is of the frames of clips"):
        editing("invert", "--alone", out="out.png")
