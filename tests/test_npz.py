import numpy as np
import pytest

from configs import digits
from ddim_jax import data, experiment
from ddim_jax.training import resume, teacher
from tests.errors import rejects
from tests.pictures import equal, noise
from tests.tiny import tiny


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


def test_npz_class_names(tmp_path):
    images, labels = noise(4, 8, 8), np.array([0, 2, 1, 2])
    np.savez(tmp_path / "a.npz", x=images, y=labels, class_names=["dog", "Cat", "öre"])
    source = data.load(f"npz:{tmp_path / 'a.npz'}")
    assert (source.class_names, source.num_classes, source.note) == (("dog", "Cat", "öre"), 3, "")
    np.savez(tmp_path / "a.npz", x=images, y=labels, class_names=["0", "1", "2"])
    assert data.load(f"npz:{tmp_path / 'a.npz'}").class_names == ()  # only their numbers
    np.savez(tmp_path / "a.npz", x=images, y=labels, class_names=list("abcde"))
    source = data.load(f"npz:{tmp_path / 'a.npz'}")
    assert (source.num_classes, source.note) == (5, "no image of 2 of 5 classes (d, e)")
    np.savez(tmp_path / "a.npz", x=images, y=labels + 1)
    assert data.load(f"npz:{tmp_path / 'a.npz'}").note == "no image of 1 of 4 classes (0)"


@pytest.mark.parametrize(
    "names, parts",
    [
        (["a", "b"], ["has labels up to 2 in 'y'", "one name for each class"]),
        (["a", "b", "a"], ["holds a name twice"]),
        (["a", "b", " "], ["list of texts"]),
        ([1, 2, 3], ["list of texts", "int64"]),
        ([["a", "b", "c"]], ["list of texts", "[1, 3]"]),
        ("a,b,c", ["list of texts", "[]"]),
        (np.array(["a", None, "c"]), ["plain arrays"]),
        ([b"a", b"b", b"c"], ["list of texts"]),
    ],
)
def test_npz_class_names_that_are_none(tmp_path, names, parts):
    np.savez(tmp_path / "a.npz", x=noise(4, 8, 8), y=np.array([0, 2, 1, 2]), class_names=names)
    with rejects(ValueError, "a.npz", *parts):
        data.load(f"npz:{tmp_path / 'a.npz'}")


def test_npz_class_names_without_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=noise(4, 8, 8), class_names=["a"])
    with rejects(ValueError, "'class_names' of", "the file has no labels"):
        data.load(f"npz:{tmp_path / 'a.npz'}")


def test_other_names_are_other_data(tmp_path):
    """Swapped, renamed, lost: a run does not go on; named later it does."""

    def config(names):
        labels = np.array([0, 2, 1, 2])
        more = {} if names is None else {"class_names": names}
        np.savez(tmp_path / "a.npz", x=np.zeros((4, 8, 8), np.uint8), y=labels, **more)
        config = tiny(digits.get_config())
        config.data.name = f"npz:{tmp_path / 'a.npz'}"
        config.model.num_classes = 3
        config = experiment.resolve(config)
        return teacher.record(config, None, experiment.load_data(config))

    resume.save_config(tmp_path / "run", config(None))
    resume.save_config(tmp_path / "run", config(["dog", "cat", "ant"]))
    for names in (["cat", "dog", "ant"], ["dog", "cat", "bee"], None):
        with rejects(ValueError, "the data of the run in", "classes were dog, cat, ant", "restore"):
            resume.save_config(tmp_path / "run", config(names))
    resume.save_config(tmp_path / "run", config(["dog", "cat", "ant"]))
