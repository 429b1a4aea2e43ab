import numpy as np
import pytest

from ddim_jax import data
from tests.errors import rejects
from tests.pictures import equal, noise


@pytest.mark.parametrize("x_key, y_key", [("train_x", "train_y"), ("images", "labels"), ("x", "y")])
def test_npz_keys(tmp_path, x_key, y_key):
    images, labels = noise(5, 6, 7, 3), np.array([0, 1, 2, 1, 0])
    np.savez(tmp_path / "a.npz", **{x_key: images, y_key: labels})
    source = data.load(f"npz:{tmp_path / 'a.npz'}")
    assert (source.image_shape, source.num_classes, len(source)) == ((6, 7, 3), 3, 5)
    for i in range(5):
        assert equal(source[i], {"image": images[i], "label": labels[i]})


def test_npz_splits_grey_and_unlabelled(tmp_path):
    images = noise(4, 6, 6)
    np.savez(tmp_path / "a.npz", train_x=images[:3], test_x=images[3:])
    source = data.load(f"npz:{tmp_path / 'a.npz'}", "test")
    assert (source.image_shape, source.num_classes, len(source)) == ((6, 6, 1), 0, 1)
    assert equal(source[0], {"image": images[3, ..., None], "label": 0})
    assert data.load(f"npz:{tmp_path / 'a.npz'}", channels=3)[0]["image"].shape == (6, 6, 3)


@pytest.mark.parametrize(
    "arrays, parts",
    [
        ({"a": 1, "b": 2}, ["['a', 'b']", "'train_x'", "'images'", "'x'", "rename"]),
        ({"x": np.zeros((2, 4, 4), np.float32)}, ["'x'", "float32", "uint8", "astype"]),
        ({"x": noise(2, 3, 8, 8)}, ["[2, 3, 8, 8]", "C = 1 or 3", "transpose(0, 2, 3, 1)"]),
        ({"x": noise(2, 8, 8, 4)}, ["[2, 8, 8, 4]", "alpha"]),
        ({"x": noise(8, 8)}, ["[8, 8]", "[N, H, W]", "reshape"]),
        ({"x": noise(0, 8, 8)}, ["[0, 8, 8]", "N >= 1", "at least one"]),
        ({"x": noise(2, 8, 8), "y": np.zeros(3, int)}, ["'y'", "[3]", "integers [2]", "leave"]),
        ({"x": noise(2, 8, 8), "y": np.zeros(2)}, ["'y'", "float64", "integers [2]"]),
        ({"x": noise(2, 8, 8), "y": np.array([0, -1])}, ["smallest value -1", "from 0", "renumb"]),
        ({"x": np.array([None, "a"])}, ["plain arrays", "numpy.savez"]),
    ],
)
def test_npz_errors(tmp_path, arrays, parts):
    np.savez(tmp_path / "a.npz", **arrays)
    with rejects(ValueError, "a.npz", *parts):
        data.load(f"npz:{tmp_path / 'a.npz'}")


def test_npz_missing_split_file_and_garbage(tmp_path):
    np.savez(tmp_path / "faces.npz", images=noise(2, 8, 8))
    with rejects(ValueError, "split 'test'", "['images']", "'test_x'", "another split"):
        data.load(f"npz:{tmp_path / 'faces.npz'}", "test")
    with rejects(FileNotFoundError, "face.npz", "does not exist", "close matches: faces.npz"):
        data.load(f"npz:{tmp_path / 'face.npz'}")
    with rejects(FileNotFoundError, "it is a folder", "npz:PATH"):
        data.load(f"npz:{tmp_path}")
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
    with rejects(ValueError, "bad.npz", "cannot be read", "numpy.savez"):
        data.load(f"npz:{tmp_path / 'bad.npz'}")
    np.save(tmp_path / "one.npy", noise(2, 8, 8))
    with rejects(ValueError, "one.npy", "cannot be read", "numpy.savez"):
        data.load(f"npz:{tmp_path / 'one.npy'}")
