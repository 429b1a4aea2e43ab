"""Files of clips: what is written is read again, with what drew it."""

import sys

import numpy as np
import pytest
from PIL import Image

import ddim_jax
from ddim_jax import data, provenance
from ddim_jax.data import clip_files, clip_writers
from tests.errors import rejects
from tests.pictures import noise

SPINS = noise(2, 8, 8, 6, 3)


def frames_of(path):
    found = clip_files.inspect(path)
    frames = clip_files.read(path, found, np.arange(len(found.ends)))
    return found, np.stack([np.asarray(frame.convert("RGB")) for frame in frames])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
@pytest.mark.parametrize("rate", [8, 24, 10])
def test_clips_are_written_and_read(tmp_path, suffix, rate):
    path = tmp_path / "new" / f"a{suffix}"
    ddim_jax.save_clips(path, SPINS[:1], rate, scale=1)
    found, frames = frames_of(path)
    assert found.steady and np.isclose(found.rate, rate, rtol=0.03)
    if suffix == ".gif":  # of 48 colours a frame
        assert np.abs(frames.astype(int) - SPINS[0]).max() <= 8
    else:
        assert np.array_equal(frames, SPINS[0])


def test_several_clips_are_a_grid_of_each_frame(tmp_path):
    data.save_clips(tmp_path / "a.webp", SPINS, labels=["left", "right"], columns=2, scale=2)
    _, frames = frames_of(tmp_path / "a.webp")
    for t in range(8):
        sheet = data.grid(SPINS[:, t], ["left", "right"], columns=2, scale=2)
        assert np.array_equal(frames[t], sheet)


def test_a_sheet_has_a_row_for_each_clip(tmp_path):
    data.save_clips(tmp_path / "a.png", SPINS, scale=1)
    sheet = data.grid(SPINS.reshape(16, 8, 6, 3), columns=8, scale=1)
    assert np.array_equal(Image.open(tmp_path / "a.png"), sheet)
    assert np.array_equal(data.grid(SPINS, scale=1), sheet)
    labelled = np.asarray(data.grid(SPINS, ["one", "two"], scale=1))
    above = [i for k in range(2) for i in [k] + [None] * 7]
    texts = ["" if k is None else ("one", "two")[k] for k in above]
    assert np.array_equal(
        labelled, data.grid(SPINS.reshape(16, 8, 6, 3), texts, columns=8, scale=1)
    )
    assert data.grid(noise(1, 40, 8, 8, 1)).size[0] == 10 * 66 + 2  # four rows of ten
    assert data.grid(noise(3, 7, 8, 8, 1)).size[0] == 7 * 66 + 2


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng", ".png"])
def test_files_say_what_drew_them(tmp_path, suffix):
    about = {"command": 'told ö " it', "numbers": list(range(300))}
    path = tmp_path / f"a{suffix}"
    data.save_clips(path, SPINS, about=about)
    with rejects(ValueError, 'edited picture, made by: told ö " it'):
        provenance.read(path)
    data.save_clips(path, SPINS, overwrite=True)
    with rejects(ValueError, "does not say what drew it", "GIF and WebP"):
        provenance.read(path)


def test_still_parts_of_clips_keep_their_frames(tmp_path):
    still = np.concatenate([SPINS[:1, :1].repeat(5, 1), SPINS[:1, 1:4], SPINS[:1, 3:4]], 1)
    grey = still[..., :1]
    for name, clip in (("still.png", still), ("grey.png", grey), ("frozen.png", still[:, :5])):
        with open(tmp_path / name, "wb") as file:
            clip_writers.write_apng(file, clip[0], 8.0)
        found, frames = frames_of(tmp_path / name)
        assert np.isclose(found.rate, 8) and np.array_equal(frames[..., : clip.shape[-1]], clip[0])


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("rate", [8, 10, 24, 30])
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_equal_frames_that_were_made_one_longer_frame_are_counted(tmp_path, suffix, rate, first):
    """GIF rounds times to hundredths of a second: one frame of 8 a second lasts 120 or 130 ms."""
    order = [*range(first), *[first] * 2, 4, 5, *[6] * 5, 7]
    clip = SPINS[:1, order]
    data.save_clips(tmp_path / f"a{suffix}", clip, rate, scale=1)
    found, frames = frames_of(tmp_path / f"a{suffix}")
    assert found.steady and len(frames) == len(order) and np.isclose(found.rate, rate, rtol=0.03)
    assert np.abs(frames.astype(int) - clip[0]).max() <= 8


@pytest.mark.parametrize("side", [16, 15])
def test_mp4(tmp_path, side):
    pytest.importorskip("imageio_ffmpeg")
    levels = np.arange(0, 240, 10, dtype=np.uint8)
    clips = np.broadcast_to(levels[None, :, None, None, None], (1, 24, side, side, 1))
    data.save_clips(tmp_path / "a.mp4", clips, 12, scale=2)
    found, frames = frames_of(tmp_path / "a.mp4")
    assert np.isclose(found.rate, 12) and found.size == (2 * side, 2 * side)
    assert np.abs(frames.mean((1, 2, 3)) - levels).max() < 4
    with rejects(FileExistsError, "a.mp4 exists", "overwrite=True"):
        data.save_clips(tmp_path / "a.mp4", clips)


def test_errors_come_before_files(tmp_path, monkeypatch):
    with rejects(ValueError, "must end in .gif or .webp or .apng or .mp4 or .png", "a.jpg"):
        data.save_clips(tmp_path / "a.jpg", SPINS)
    with rejects(ValueError, "[N, T, H, W, C]", "[2, 8, 6, 3]", "save_grid"):
        data.save_clips(tmp_path / "a.gif", SPINS[:, 0])
    with rejects(ValueError, "frame_rate", "[0.1, 100]", "got 0"):
        data.save_clips(tmp_path / "a.gif", SPINS, 0)
    with rejects(ValueError, "float64", "to_uint8"):
        data.save_clips(tmp_path / "a.gif", SPINS / 255)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with rejects(ValueError, "pip install 'ddim_jax[video]'"):
        data.save_clips(tmp_path / "a.mp4", SPINS)
    with rejects(ValueError, "pip install 'ddim_jax[video]'"):
        clip_writers.check_writable(tmp_path / "a.mp4", 8)
    clip_writers.check_writable(tmp_path / "a.png", 1000)
    assert not list(tmp_path.iterdir())
