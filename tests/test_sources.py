import hashlib
import importlib.resources
import io

import numpy as np
import pytest

from ddim_jax import data
from tests.errors import rejects
from tests.pictures import noise


def test_digits_are_the_documented_asset():
    asset = importlib.resources.files("ddim_jax.assets") / "digits.npz"
    content = asset.read_bytes()
    assert len(content) < 1_000_000
    with np.load(io.BytesIO(content)) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert images.shape == (5000, 28, 28) and images.dtype == np.uint8
    assert labels.dtype == np.uint8 and np.array_equal(labels, np.tile(np.arange(10), 500))
    # Different pictures, on black, drawn with the full range of greys.
    assert len({hashlib.sha256(image.tobytes()).digest() for image in images}) == 5000
    assert np.median(images) == 0 and images.max() == 255
    # A one is thin, a zero is hollow: the labels belong to the images.
    ink = np.array([images[labels == c].mean() for c in range(10)])
    assert ink.argmin() == 1
    middle = np.array([images[labels == c][:, 13:15, 13:15].mean() for c in range(10)])
    assert middle.argmin() == 0


def test_digits_source():
    source = data.load("digits")
    assert (source.name, len(source)) == ("digits", 5000)
    assert (source.image_shape, source.num_classes) == ((28, 28, 1), 10)
    example = source[13]
    assert example["image"].shape == (28, 28, 1) and example["image"].dtype == np.uint8
    assert example["label"] == 3 and example["label"].dtype == np.int32
    assert source[-1]["label"] == 9
    with rejects(IndexError, "digits", "5000"):
        source[5000]


def test_digits_resized_and_in_colour():
    source = data.load("digits", image_size=14, channels=3)
    assert source.image_shape == source[0]["image"].shape == (14, 14, 3)
    small, full = source[0]["image"][..., 0].astype(float), data.load("digits")[0]["image"]
    # Antialiased: the mean over 2 x 2 blocks, to the softness of the filter.
    blocks = full.reshape(14, 2, 14, 2).mean((1, 3))
    assert abs(small - blocks).mean() < 8 and abs(small.mean() - blocks.mean()) < 2


@pytest.mark.parametrize(
    "spec, parts",
    [
        ("digit", ["close matches: digits"]),
        ("Cifar_10", ["close matches: cifar10"]),
        ("npy:a", ["npz:PATH"]),
        ("no such thing at all", ["tensorflow.org/datasets/catalog"]),
        ("", ["tensorflow.org/datasets/catalog"]),
    ],
)
def test_unknown_spec(spec, parts):
    known = "it must be digits, moving_digits, npz:PATH, folder:PATH, clips:PATH, pairs:FOLDER, lat"
    with rejects(ValueError, f"unknown dataset {spec!r}", known, *parts):
        data.load(spec)


def test_path_without_its_prefix(tmp_path):
    with rejects(ValueError, f"write folder:{tmp_path}"):
        data.load(str(tmp_path))
    np.savez(tmp_path / "a.npz", x=noise(1, 4, 4))
    with rejects(ValueError, f"write npz:{tmp_path}/a.npz"):
        data.load(f"{tmp_path}/a.npz")


def test_load_checks_its_options():
    with rejects(ValueError, "only the split 'train'", "'test'", "mnist"):
        data.load("digits", "test")
    with rejects(ValueError, "channels must be 1 (grey) or 3 (RGB), got 4"):
        data.load("digits", channels=4)
    for size in (0, -1, 2.5, "8", True, (8, 0), (8, 8.5)):
        with rejects(ValueError, "image_size must be ", "got ", "leave it out"):
            data.load("digits", image_size=size)
    assert data.load("digits", image_size=8.0).image_shape == (8, 8, 1)
    with rejects(ValueError, "a size is one number or (height, width)", "(8, 8, 8)"):
        data.load("digits", image_size=(8, 8, 8))


def test_a_picture_that_is_not_there_is_no_tfds_dataset(tmp_path):
    for spec in ("cat.png", "./cat", "~/no/cat.JPEG", str(tmp_path / "cats")):
        with rejects(FileNotFoundError, f"{spec} does not exist"):
            data.load(spec)


def test_other_shapes_and_proportions():
    wide = data.load("digits", image_size=(14, 28))
    assert wide.image_shape == wide[3]["image"].shape == (14, 28, 1)
    picture = data.load("digits")[3]["image"]
    middle = picture[7:21]  # the largest part twice as wide as high
    assert np.array_equal(wide[3]["image"], middle)
    padded = data.load("digits", image_size=(28, 56), pad=True)[3]["image"]
    assert padded.shape == (28, 56, 1) and not padded[:, :14].any() and not padded[:, 42:].any()
    assert np.array_equal(padded[:, 14:42], picture)
