import numpy as np
import pytest
from PIL import Image

from ddim_jax import data
from ddim_jax.data.images import fit, to_pil
from tests.errors import rejects
from tests.pictures import noise


def test_fit_leaves_alone_what_fits():
    image = noise(4, 4, 3)
    assert fit(image) is image and fit(image, 4, 3) is image
    assert fit(noise(4, 4, 1), 4, 3).shape == (4, 4, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_tiles_row_by_row(channels):
    images = noise(5, 4, 6, channels)
    sheet = np.asarray(data.grid(images, columns=3, scale=2, padding=1)).reshape(
        2 * 9 + 1, 3 * 13 + 1, -1
    )
    white = np.ones(sheet.shape[:2], bool)
    for i, image in enumerate(images):
        y, x = 1 + i // 3 * 9, 1 + i % 3 * 13
        tile = sheet[y : y + 8, x : x + 12]
        assert np.array_equal(tile, image.repeat(2, 0).repeat(2, 1))
        white[y : y + 8, x : x + 12] = False
    assert (sheet[white] == 255).all()


@pytest.mark.parametrize("count", [6, 3])
def test_grid_labels_stand_above_and_leave_the_tiles_alone(count):
    images = np.full((6, 8, 8, 1), 128, np.uint8)
    labels = ["a", "a rather long label", "c"] + ["d"] * (count - 3)
    sheet = np.asarray(data.grid(images, labels, columns=3, scale=1))
    assert (sheet == 128).sum() >= 6 * 64
    rows = np.flatnonzero((sheet == 128).sum(1) >= 24)
    assert len(rows) == 16  # two rows of tiles, eight pixels each, none covered by text
    ink = [(part < 100).any() for part in np.split(sheet, [rows[0], rows[7] + 1, rows[8]])]
    assert ink == [True, False, count == 6, False]
    assert sheet.shape[1] > 3 * 60  # columns as wide as the longest label


@pytest.mark.parametrize(
    "images, options, parts",
    [
        (np.zeros((2, 4, 4, 1)), {}, ["float64", "[2, 4, 4, 1]", "to_uint8"]),
        (noise(2, 4, 4), {}, ["[2, 4, 4]", "[N, H, W, C]"]),
        (noise(2, 4, 4, 2), {}, ["C = 1 or 3", "[2, 4, 4, 2]"]),
        (noise(0, 4, 4, 1), {}, ["at least one image, got 0"]),
        (noise(2, 4, 4, 1), {"columns": 0}, ["columns=0", "1 or more"]),
        (noise(2, 4, 4, 1), {"scale": 0}, ["scale=0", "1 or more"]),
        (noise(4, 4, 4, 1), {"labels": "abc"}, ["4 (one above each image)", "2 (one", "got 3"]),
    ],
)
def test_grid_errors(images, options, parts):
    with rejects(ValueError, *parts):
        data.grid(images, **{"columns": 2} | options)


def test_save_png(tmp_path):
    image, path = noise(5, 4, 3), tmp_path / "new" / "a.png"
    data.save_png(path, image)
    assert np.array_equal(Image.open(path), image)
    with rejects(FileExistsError, f"{path} exists", "another name", "overwrite=True"):
        data.save_png(path, image[::-1])
    assert np.array_equal(Image.open(path), image)
    data.save_png(str(path), to_pil(image[::-1]), overwrite=True)
    assert np.array_equal(Image.open(path), image[::-1])
    with rejects(ValueError, "[2, 5, 4, 3]", "[H, W, 3]", "grid shows a batch"):
        data.save_png(tmp_path / "b.png", noise(2, 5, 4, 3))
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(
    "count, side, columns, scale",
    [
        (40, 28, 10, 2),
        (10, 8, 10, 8),
        (1, 64, 1, 1),
        (16, 64, 4, 1),
        (17, 100, 5, 1),
        (3, 32, 2, 2),
    ],
)
def test_grid_chooses_columns_and_scale(count, side, columns, scale):
    images = noise(count, side, side, 1)
    wanted = data.grid(images, columns=columns, scale=scale)
    assert np.array_equal(data.grid(images), wanted)


def test_save_grid(tmp_path):
    pictures, path = noise(6, 8, 8, 3), tmp_path / "new" / "a.png"
    data.save_grid(path, pictures)
    assert np.array_equal(Image.open(path), data.grid(pictures))
    with rejects(FileExistsError, f"{path} exists", "another name", "overwrite=True"):
        data.save_grid(path, pictures[:1])
    assert np.array_equal(Image.open(path), data.grid(pictures))
    data.save_grid(str(path), pictures, list("abc"), columns=3, scale=2, overwrite=True)
    labelled = data.grid(pictures, list("abc"), columns=3, scale=2)
    assert np.array_equal(Image.open(path), labelled)
    with rejects(ValueError, "must end in .png", "a.jpg"):
        data.save_grid(tmp_path / "a.jpg", pictures)
    with rejects(ValueError, "float64", "to_uint8"):
        data.save_grid(tmp_path / "b.png", np.zeros((2, 4, 4, 1)))
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.png"]


def test_save_gif(tmp_path):
    frames, path = [np.full((4, 4), 60 * i, np.uint8) for i in range(4)], tmp_path / "a.gif"
    data.save_gif(path, frames, 100)
    with Image.open(path) as gif:
        assert gif.n_frames == 4 and gif.info["duration"] == 100 and gif.info["loop"] == 0
        for i in range(4):
            gif.seek(i)
            assert (np.asarray(gif.convert("L")) == 60 * i).all()
    with rejects(FileExistsError, str(path), "overwrite=True"):
        data.save_gif(path, frames[:1], 100)
    data.save_gif(path, frames[:2], 100, overwrite=True)
    assert Image.open(path).n_frames == 2
    with rejects(ValueError, "one or more frames", "0 frames"):
        data.save_gif(tmp_path / "b.gif", [], 100)
    with rejects(ValueError, "one size", "(4, 4), (5, 4)", "resize"):
        data.save_gif(tmp_path / "b.gif", [frames[0], noise(4, 5)], 100)
    with rejects(ValueError, "duration", "10 milliseconds", "got 1"):
        data.save_gif(tmp_path / "b.gif", frames, 1)
