"""Clips as data: moving digits, files and folders of clips, npz, which frames are taken."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import digits as digits_config
from ddim_jax import codecs, data, experiment
from ddim_jax.checkpoints.parts import network_shapes
from ddim_jax.data import clip_files, moving_digits
from ddim_jax.data.clip_files import Timeline
from ddim_jax.data.frame_choice import Cut, Windows
from ddim_jax.data.images import to_pil
from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.training import run_data
from tests.errors import rejects
from tests.latent_networks import random
from tests.pictures import equal, noise


def counted(frames, height=8, width=8, first=0):
    """A clip whose frame f is a uniform picture of level 10 (f + first)."""
    levels = 10 * (np.arange(frames, dtype=np.uint8) + first)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def numbers(clip):
    """Which frames of `counted` a clip holds."""
    return np.rint(clip.mean(axis=(1, 2, 3)) / 10).astype(int).tolist()


def write(path, frames, durations=100, **options):
    """An animation of Pillow, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [to_pil(frame) for frame in frames]
    options |= {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, loop=0, **options
    )


# --- moving digits --------------------------------------------------------------------------------


@pytest.mark.parametrize("side, speed_limit", [(32, 1.5), (16, 1.5)])
def test_moving_digits_follow_their_paths(side, speed_limit):
    source = data.load("moving_digits", "test", image_size=side)
    assert source.shape == (16, side, side, 1) and (len(source), source.num_classes) == (2000, 10)
    images, labels, _ = moving_digits.of_split("test")
    for index in (0, 7, 1999):
        clip, label = source[index]["image"], source[index]["label"]
        row, rng = moving_digits.which(len(images), 0, index)
        corners = moving_digits.path(rng, 16, (side, side))
        assert label == labels[row]
        assert corners.min() >= 0 and corners.max() <= moving_digits.room(side)
        # the ink's centroid is where the path says, wherever all of the ink is inside
        y, x = np.indices((side, side))
        mass = clip[..., 0].sum((1, 2)) / 1.0
        place = np.stack([(clip[..., 0] * axis).sum((1, 2)) / mass for axis in (y, x)], -1)
        offset = place - corners / 2
        assert np.abs(offset - np.median(offset, 0)).max() < 0.15
        assert np.abs(np.diff(corners, axis=0)).max() <= 2 * speed_limit + 1


def test_moving_digits_are_decided_by_split_and_index():
    source = data.load("moving_digits", image_size=16)
    assert len(source) == 100_000 and equal(source[5], data.load("moving_digits", image_size=16)[5])
    longer = data.load("moving_digits", image_size=16, frames=40)[5]["image"]
    assert np.array_equal(longer[:16], source[5]["image"])  # the same way, further
    every = data.load("moving_digits", image_size=16, frames=8, frame_stride=3)[5]
    assert np.array_equal(every["image"], longer[:24:3]) and np.isclose(every["frame_rate"], 8 / 3)
    slow = data.load("moving_digits", image_size=16, frames=31, frame_rate=16.0)[5]
    assert np.array_equal(slow["image"][::2], source[5]["image"]) and slow["frame_rate"] == 16
    coloured = data.load("moving_digits", image_size=(16, 24), channels=3)[0]["image"]
    assert coloured.shape == (16, 16, 24, 3) and (coloured[..., :1] == coloured).all()
    assert len(source.captions) == 100_000 and source.captions[-1] == source.captions[99_999]
    names = "zero one two three four five six seven eight nine".split()
    for i in range(20):
        article, *style, name = source.captions[i].split()
        assert name == names[source[i]["label"]], i
        assert article[0] == "a" and style in ([], ["bold"], ["thin"])


def test_train_and_test_digits_are_disjoint():
    train, test = (moving_digits.of_split(split)[0] for split in ("train", "test"))
    assert len(train) + len(test) == 5000
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}


def test_moving_digits_errors():
    with rejects(ValueError, "train and test", "'valid'"):
        data.load("moving_digits", "valid")
    with rejects(ValueError, "12 x 12", "got 8 x 8", "16 and 32"):
        data.load("moving_digits", image_size=8)
    with rejects(ValueError, "digits holds still pictures", "frames=16", "moving_digits"):
        data.load("digits", frames=16)


# --- which frames ---------------------------------------------------------------------------------


def test_frames_are_taken_by_stride_or_by_time():
    steady = Timeline((8, 8), np.arange(1, 25) / 12)  # two seconds at 12 a second
    cases = [
        (Cut(4), 0.0, [0, 1, 2, 3], 12),
        (Cut(4, None, 3), 0.0, [0, 3, 6, 9], 4),
        (Cut(4, None, 3), 0.999, [14, 17, 20, 23], 4),
        (Cut(4, 6.0), 0.0, [0, 2, 4, 6], 6),
        (Cut(4, 12.1), 0.0, [0, 1, 2, 3], 12.1),
        (Cut(3, 24.0), 0.0, [0, 0, 1], 24),
        (Cut(12, 6.0), 0.999, [2 * k for k in range(12)], 6),
        (Cut(None, "own", 2), 0.5, [*range(1, 24, 2)], 6),
    ]
    for cut, share, wanted, rate in cases:
        windows = Windows("clips", [steady], cut)
        assert windows.own_places(0, share).tolist() == wanted
        assert np.isclose(windows.told["frame_rate"], rate)
    uneven = Timeline((8, 8), np.array([0.1, 0.2, 1.0, 1.1]), steady=False)
    assert Windows("", [uneven], Cut(5, 5.0)).own_places(0).tolist() == [0, 2, 2, 2, 2]
    assert "config.data.frame_rate=R" in Cut(4).problem(uneven)
    assert "100 to 800 ms" in Cut(4).problem(uneven)
    assert "24 frames, config.data.frames=25" in Cut(25).problem(steady)
    assert "12 frames of which every 2th" in Cut(13, None, 2).problem(steady)
    assert "4 frames at 2 a second" in Cut(5, 2.0).problem(steady)
    assert Cut(24).problem(steady) == ""


def test_clips_of_other_lengths_and_rates_are_refused():
    short, fast = (Timeline((8, 8), np.arange(1, n + 1) / 24) for n in (12, 24))
    slow, silent = Timeline((8, 8), np.arange(1, 25) / 8), Timeline((8, 8), np.arange(24.0), False)
    with rejects(ValueError, "12 to 24 frames", "config.data.frames=12"):
        Windows("clips:x", [short, fast], Cut())
    with rejects(ValueError, "8 to 24 frames a second", "frame_rate=8", "'own'"):
        Windows("clips:x", [slow, fast], Cut(4))
    with rejects(ValueError, "some do not say"):
        Windows("clips:x", [silent, fast], Cut(4))
    assert Windows("", [slow, fast], Cut(4, "own")).told["frame_rate"].tolist() == [8, 24]
    assert Windows("", [silent, fast], Cut(4, "own")).told == {}
    assert Windows("", [silent], Cut(4)).own_places(0).tolist() == [0, 1, 2, 3]


def test_options_are_checked():
    for options, parts in [
        ({"frames": -1}, ["frames", "[1, 65536]", "got -1"]),
        ({"frame_stride": 0}, ["frame_stride", "got 0"]),
        ({"frame_rate": "fast"}, ["'own'", "'fast'"]),
        ({"frame_rate": 8, "frame_stride": 2}, ["frame_rate=8", "frame_stride=2", "one of them"]),
    ]:
        with rejects(ValueError, *parts):
            data.load("moving_digits", **options)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".apng"])
def test_animations(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    options = {"format": "PNG"} if suffix == ".apng" else {}
    write(path, counted(6), durations=40, **options)
    found = clip_files.inspect(path)
    assert found.size == (8, 8) and found.steady and np.allclose(found.ends, 0.04 * np.arange(1, 7))
    assert np.isclose(found.rate, 25)
    frames = clip_files.read(path, found, [1, 4, 5])
    assert numbers(np.stack([np.asarray(f.convert("RGB")) for f in frames])) == [1, 4, 5]


def test_folder_of_clips_with_classes_and_captions(tmp_path):
    write(tmp_path / "run" / "a.gif", counted(8))
    write(tmp_path / "run" / "b.webp", counted(6, first=10))
    for i in range(7):  # a folder of frames, numbered without zeros
        write_still(tmp_path / "jump" / "c" / f"frame{i + 5}.png", counted(7)[i])
    write(tmp_path / "jump" / "d.png", counted(9, first=1))
    (tmp_path / "run" / "a.txt").write_text("a dog runs")
    (tmp_path / "jump" / "c.txt").write_text("a cat jumps")
    source = data.load(f"clips:{tmp_path}", frames=4, frame_rate=10)
    assert source.shape == (4, 8, 8, 3) and source.class_names == ("jump", "run")
    assert [numbers(source[i]["image"]) for i in range(4)] == [
        [0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3], [10, 11, 12, 13],
    ]  # fmt: skip
    assert [source[i]["label"] for i in range(4)] == [0, 0, 1, 1]
    assert source.captions == ("a cat jumps", "", "a dog runs", "")
    assert source[0]["frame_rate"] == 10 and not source.note
    (tmp_path / "run" / "late.mpg").touch()
    (tmp_path / "notes.md").touch()
    noted = data.load(f"clips:{tmp_path}", frames=4, frame_rate=10).note
    assert noted == "skipped 2 other files (.md, .mpg)"
    small = data.load(f"clips:{tmp_path}", frames=4, frame_rate=10, image_size=4, channels=1)
    assert small.shape == small[2]["image"].shape == (4, 4, 4, 1)


def test_folders_of_frames_have_no_ending(tmp_path):
    for name in ("walk.v1", "walk.v2", "run"):
        for i in range(2):
            write_still(tmp_path / name / f"{i}.png", counted(2)[i])
        (tmp_path / f"{name}.txt").write_text(f"this is {name}")
    source = data.load(f"clips:{tmp_path}", frames=2)
    assert source.captions == ("this is run", "this is walk.v1", "this is walk.v2")
    assert not source.note
    (tmp_path / "walk.txt").write_text("of nothing")
    assert data.load(f"clips:{tmp_path}", frames=2).note == "skipped 1 other files (.txt)"


def write_still(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(picture).save(path)


def test_clips_begin_anywhere_in_training_and_flip_as_a_whole(tmp_path):
    frames = counted(10)
    frames[:, :, :4] += 5  # the left half is lighter
    write(tmp_path / "a.webp", frames)
    source = data.load(f"clips:{tmp_path}", frames=4)

    def taken(**options):
        batches = data.batches(source, 8, seed=1, flip=True, **options)
        batch = next(batches)["image"].astype(int)
        batches.close()
        left = batch[:, :, :, :4].mean((2, 3, 4)) - batch[:, :, :, 4:].mean((2, 3, 4))
        return batch.min((2, 3, 4)) // 10, np.sign(left)

    places, sides = taken()
    assert np.array_equal(places, places[:, :1] + np.arange(4)) and len({*places[:, 0]}) > 2
    assert (sides == sides[:, :1]).all() and {*sides[:, 0]} == {-1, 1}
    shares = [taken(process_index=k, process_count=2)[0] for k in range(2)]
    assert np.array_equal(np.concatenate(shares), places)
    assert (taken(shuffle=False)[0] == np.arange(4)).all()
    assert source.at is not None and data.load(f"clips:{tmp_path}").at is None


def test_bad_clips_are_named(tmp_path):
    write(tmp_path / "a.gif", counted(8))
    write(tmp_path / "b.gif", counted(8))
    write(tmp_path / "c.gif", counted(3))
    write(tmp_path / "d.gif", counted(8), durations=[100, 250] * 4)
    write(tmp_path / "e.webp", counted(8))
    write_still(tmp_path / "f.png", counted(1)[0])
    cut_short = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "b.gif").write_bytes(cut_short[: len(cut_short) // 2])
    cut_short = (tmp_path / "e.webp").read_bytes()
    (tmp_path / "e.webp").write_bytes(cut_short[: len(cut_short) // 2])
    with rejects(ValueError, "5 of 6 clips", "b.gif", "cut short", "3 frames", "skip_unreadable"):
        data.load(f"clips:{tmp_path}", frames=4)
    kept = data.load(f"clips:{tmp_path}", frames=4, skip_unreadable=True)
    assert len(kept) == 1 and "skipped 5 clips, listed in" in kept.note
    listed = Path(kept.note.split()[-1]).read_text()
    assert "f.png: a still picture" in listed and "100 to 250 ms" in listed and "e.webp" in listed
    assert len(data.load(f"clips:{tmp_path}", frames=2, frame_rate=5, skip_unreadable=True)) == 2


def test_clips_of_different_sizes(tmp_path):
    write(tmp_path / "a.gif", counted(4))
    write(tmp_path / "b.gif", counted(4, width=12))
    with rejects(ValueError, "clips in", "8 x 8, 12 x 8", "config.data.resize"):
        data.load(f"clips:{tmp_path}")
    assert data.load(f"clips:{tmp_path}", image_size=8).shape == (4, 8, 8, 3)
    for i, width in enumerate((8, 8, 6)):
        write_still(tmp_path / "c" / f"{i}.png", counted(1, width=width)[0])
    with rejects(ValueError, "frames of different sizes", "0.png is 8 x 8", "2.png 6 x 8"):
        data.load(f"clips:{tmp_path}", image_size=8)


def test_folders_that_are_no_folders_of_clips(tmp_path):
    with rejects(FileNotFoundError, "does not exist", "clips:PATH"):
        data.load(f"clips:{tmp_path / 'none'}")
    with rejects(ValueError, "holds no clips", ".mp4"):
        data.load(f"clips:{tmp_path}")
    write_still(tmp_path / "flat" / "0.png", counted(1)[0])
    write_still(tmp_path / "flat" / "1.png", counted(1)[0])
    with rejects(ValueError, "still pictures and no clips", "a folder of its own", "folder:PATH"):
        data.load(f"clips:{tmp_path / 'flat'}")
    write(tmp_path / "mixed" / "a.gif", counted(4))
    write(tmp_path / "mixed" / "sub" / "b.gif", counted(4))
    with rejects(ValueError, "1 clips beside 1 sub-folders"):
        data.load(f"clips:{tmp_path / 'mixed'}")


def test_a_clip_that_goes_bad_later_is_named(tmp_path):
    write(tmp_path / "a.gif", counted(4))
    source = data.load(f"clips:{tmp_path}")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with rejects(ValueError, str(tmp_path / "a.gif"), "cannot be decoded", "start again"):
        source[0]


def test_videos_need_their_extra(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with rejects(ValueError, "pip install 'ddim_jax[video]'"):
        data.load(f"clips:{tmp_path}", skip_unreadable=True)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_videos(tmp_path, suffix):
    module = pytest.importorskip("imageio_ffmpeg")
    path, frames = tmp_path / f"a{suffix}", counted(24, 32, 48)
    codec = {".mp4": "libx264", ".webm": "libvpx-vp9"}[suffix]
    writer = module.write_frames(
        str(path), (48, 32), fps=12, codec=codec, quality=9, macro_block_size=1
    )
    writer.send(None)
    for frame in frames:
        writer.send(frame)
    writer.close()
    found = clip_files.inspect(path)
    assert found.size == (48, 32) and len(found.ends) == 24 and np.isclose(found.rate, 12)

    def read(places, rate=None):
        got = clip_files.read(path, found, places, rate)
        return numbers(np.stack([np.asarray(one) for one in got]))

    assert read([0, 1, 2]) == [0, 1, 2] and read([20, 22, 23]) == [20, 22, 23]
    assert read([5, 6, 9]) == [5, 6, 9]
    assert read([0, 1, 2, 3], 6.0) == [0, 2, 4, 6] and read([3, 4, 5], 6.0) == [6, 8, 10]
    assert read([0, 1, 2, 3], 24.0) == [0, 0, 1, 1] and read([21, 22], 24.0) == [10, 11]
    source = data.load(f"clips:{tmp_path}", frames=8, image_size=16)
    assert source.shape == (8, 16, 16, 3) and numbers(source[0]["image"]) == [*range(8)]
    assert numbers(source.record(0, 0.999)["image"]) == [*range(16, 24)]
    damaged = path.read_bytes()
    path.write_bytes(damaged[: len(damaged) // 3])
    with rejects(ValueError, f"a{suffix}", "no video that ffmpeg can read"):
        data.load(f"clips:{tmp_path}")


def test_a_video_whose_frames_last_differently_is_read_by_time(tmp_path):
    """12 frames a second, from the seventh on 4: at each time what is shown then."""
    module = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    slower = "setpts='if(lt(N,6),N,6+3*(N-6))/12/TB'"
    params = ["-vf", slower, "-fps_mode", "vfr"]
    writer = module.write_frames(str(path), (48, 32), fps=12, output_params=params, quality=9)
    writer.send(None)
    for frame in counted(12, 32, 48):
        writer.send(frame)
    writer.close()
    found = clip_files.inspect(path)
    got = clip_files.read(path, found, range(20), 12.0)
    got = numbers(np.stack([np.asarray(one) for one in got]))
    assert got == [0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10]


# --- npz, codecs, configs -------------------------------------------------------------------------


def test_clips_in_npz_files(tmp_path):
    clips = np.stack([counted(6), counted(6, first=6)])
    path = tmp_path / "a.npz"
    np.savez(path, train_x=clips, train_y=[0, 1], train_captions=["a", "b"])
    source = data.load(f"npz:{path}")
    assert source.shape == (6, 8, 8, 3) and np.array_equal(source[1]["image"], clips[1])
    flipped = source.batch(np.array([0, 1]), np.array([True, False]))["image"]
    assert np.array_equal(flipped[0], clips[0][:, :, ::-1]) and np.array_equal(flipped[1], clips[1])
    some = data.load(f"npz:{path}", frames=2, frame_stride=3, image_size=4, channels=1)
    assert some.shape == (2, 4, 4, 1) and numbers(some[1]["image"]) == [6, 9]
    assert numbers(some.record(1, 0.999)["image"]) == [8, 11]
    with rejects(ValueError, "6 frames", "config.data.frames=7", "ask for fewer"):
        data.load(f"npz:{path}", frames=7)
    np.savez(path, train_x=clips, train_frame_rate=[6.0, 12.0])
    assert data.load(f"npz:{path}")[1]["frame_rate"] == 12
    timed = data.load(f"npz:{path}", frame_rate=6, frames=3)
    assert numbers(timed[0]["image"]) == [0, 1, 2] and numbers(timed[1]["image"]) == [6, 8, 10]
    np.savez(path, train_x=clips, train_frame_rate=[6.0, 0.0])
    with rejects(ValueError, "'train_frame_rate'", "above 0"):
        data.load(f"npz:{path}")
    np.savez(path, train_x=clips[:, 0])
    with rejects(ValueError, "still pictures", "frames=16"):
        data.load(f"npz:{path}", frames=16)


def test_codecs_of_clips():
    codec, clips = codecs.pixels((4, 8, 8, 1)), noise(2, 4, 8, 8, 1)
    assert (codec.frames, codec.size, codec.at(6, 5).picture_shape) == (4, (8, 8), (4, 6, 5, 1))
    assert codec.at(8, 8, 9).picture_shape == (9, 8, 8, 1)
    assert np.array_equal(codec.decode(None, codec.encode(None, clips)), clips)
    with rejects(ValueError, "[..., 4, 8, 8, 1]", "[2, 8, 8, 1]", "so many frames"):
        codec.encode(None, clips[:, 0])


def test_latents_of_clips_are_those_of_their_frames():
    net = AutoencoderKL(widths=(8, 8), num_blocks=0, groups=4, attention=False)
    shapes = network_shapes(net, (8, 12, 3))
    params = jax.tree.map(lambda x: random(str(x.shape), *x.shape) / 4, shapes)
    of_frames = codecs.latents(net, (8, 12, 3), params)
    codec = codecs.latents(net, (5, 8, 12, 3), params)
    assert codec.sample_shape == (5, *of_frames.sample_shape)
    clips = noise(3, 5, 8, 12, 3)
    frames = clips.reshape(15, 8, 12, 3)
    both = codec.moments(params, clips)
    np.testing.assert_allclose(both.reshape(15, 4, 6, 8), of_frames.moments(params, frames))
    x = np.asarray(codec.encode(params, clips))
    assert codec.encode(params, x) is x and codec.encode(params, both).shape == x.shape
    assert np.array_equal(
        codec.decode(params, x).reshape(frames.shape),
        of_frames.decode(params, x.reshape(15, 4, 6, 4)),
    )


def test_configs_say_how_many_frames():
    config = digits_config.get_config()
    with config.unlocked():
        config.data.update(name="moving_digits", resize=16, frames=5, image_shape=(16, 16, 1))
        config.model.name = "video_unet"
    source = experiment.load_data(config)
    assert source.shape == (5, 16, 16, 1) and experiment.num_frames(config) == 5
    assert experiment.build(config).sample_shape == (5, 16, 16, 1)
    assert dataclasses.replace(source, frames=0).noun == "images"
    with config.unlocked():
        config.data = config.data.to_dict() | {"frames": 2.5}
    with rejects(ValueError, "config.data.frames", "got 2.5", "pictures"):
        experiment.load_data(config)


@pytest.mark.parametrize(
    "name, frames, parts",
    [
        ("moving_digits", 0, ["clips of 16 frames", "says pictures", "frames=16", "of clips"]),
        ("digits", 16, ["holds pictures", "clips of 16 frames", "frames=0"]),
    ],
)
def test_data_that_move_where_the_config_does_not(name, frames, parts):
    config = digits_config.get_config()
    with config.unlocked(), config.ignore_type():
        config.data.update(name=name, frames=frames, image_shape=(32, 32, 1), resize=32)
        config.model.name = "video_unet" if frames else "unet"
    with rejects(ValueError, name, *parts):
        run_data.check(config, data.load(name, image_size=32))
