import hashlib
import importlib.resources
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddim_jax import data
from ddim_jax.data.images import fit, to_pil

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def rejects(kind, *parts):
    """Expects an error that names all of the parts: the value, the rule, the way out."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{re.escape(part)})" for part in parts))


def numbered(count, classes=0):
    """A source whose image i is asymmetric and says i: rows (i, 200, 0)."""

    def read(i):
        return np.array([[[i], [200], [0]]], np.uint8), i % classes if classes else 0

    return data.Source("numbered", (1, 3, 1), classes, count, read)


def numbers(batch):
    """Undoes the flips of `numbered`: which images a batch holds, and which are flipped."""
    rows = batch["image"][:, 0, :, 0]
    flipped = rows[:, 1] == 200
    assert flipped.all()
    mirrored = rows[:, 2] > 0
    return np.where(mirrored, rows[:, 2], rows[:, 0]), mirrored


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def equal(a, b):
    return all(np.array_equal(a[key], b[key]) for key in ("image", "label"))


# The asset


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


# npz


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


# Folders


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else to_pil(image)).save(path, **options)


def test_folder_of_classes(tmp_path):
    images = {f"{c}/{i}.png": noise(8, 8, 3) for c in ("cat", "ant") for i in range(2)}
    for name, image in images.items():
        write(tmp_path / name, image)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "._0.png").write_bytes(b"left behind by a file manager")
    source = data.load(f"folder:{tmp_path}")
    assert (source.image_shape, source.num_classes, len(source)) == ((8, 8, 3), 2, 4)
    for i, name in enumerate(["ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png"]):
        assert equal(source[i], {"image": images[name], "label": i // 2})


def test_flat_folder_formats_and_grey(tmp_path):
    image = noise(8, 8, 3)
    write(tmp_path / "a.PNG", image)
    write(tmp_path / "b.webp", image, lossless=True)
    write(tmp_path / "c.jpg", np.full((8, 8, 3), 77, np.uint8), quality=95)
    source = data.load(f"folder:{tmp_path}")
    assert (source.num_classes, len(source)) == (0, 3)
    assert equal(source[0], source[1]) and equal(source[0], {"image": image, "label": 0})
    assert abs(source[2]["image"].astype(int) - 77).max() <= 2
    grey = data.load(f"folder:{tmp_path}", channels=1)
    assert grey.image_shape == grey[0]["image"].shape == (8, 8, 1)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert abs(grey[0]["image"][..., 0] - luma).max() <= 1


def test_folder_crops_the_centre_and_antialiases(tmp_path):
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, 16:80:2] = 255  # one pixel wide, inside the central square
    stripes[:, :16] = stripes[:, 80:] = [255, 0, 0]  # to be cropped away
    write(tmp_path / "a.png", stripes)
    write(tmp_path / "b.png", stripes.transpose(1, 0, 2))
    source = data.load(f"folder:{tmp_path}", image_size=16)
    assert source.image_shape == (16, 16, 3)
    for example in (source[0], source[1]):
        inner = example["image"][2:-2, 2:-2].astype(int)
        assert abs(inner - 127).max() <= 4  # point sampling would give 0 or 255
        assert np.ptp(example["image"].astype(int), axis=-1).max() == 0  # no red left


def test_folder_transparency_and_orientation(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = [10, 20, 30, 255]
    write(tmp_path / "clear" / "a.png", Image.fromarray(clear))
    image = data.load(f"folder:{tmp_path / 'clear'}")[0]["image"]
    assert (image[:2] == [10, 20, 30]).all() and (image[2:] == 255).all()

    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    wide = noise(4, 6, 3)
    write(tmp_path / "turned" / "a.png", to_pil(wide), exif=exif)
    source = data.load(f"folder:{tmp_path / 'turned'}")
    assert source.image_shape == (6, 4, 3)
    assert np.array_equal(source[0]["image"], np.rot90(wide, -1))


def test_folder_splits(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for i in range(count):
            write(tmp_path / split / "cat" / f"{i}.png", noise(4, 4, 3))
    # Classes inside the splits, so the sub-folders themselves hold no images.
    assert len(data.load(f"folder:{tmp_path}")) == 3
    assert len(data.load(f"folder:{tmp_path}", "test")) == 1
    with rejects(ValueError, "no split 'val'", "test, train", "choose another split"):
        data.load(f"folder:{tmp_path}", "val")
    # "train" beside "car" is a class.
    for name in ("car", "train"):
        write(tmp_path / "vehicles" / name / "0.png", noise(4, 4, 3))
    assert data.load(f"folder:{tmp_path / 'vehicles'}").num_classes == 2
    with rejects(ValueError, "vehicles", "no split 'test'", "make the sub-folder 'test'"):
        data.load(f"folder:{tmp_path / 'vehicles'}", "test")


def test_folder_errors(tmp_path):
    with rejects(FileNotFoundError, "nowhere", "does not exist", "folder:PATH"):
        data.load(f"folder:{tmp_path / 'nowhere' / 'deep'}")
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with rejects(ValueError, "empty", "no images", ".png", "1 sub-folders", "point folder:PATH"):
        data.load(f"folder:{tmp_path / 'empty'}")

    write(tmp_path / "mixed" / "a.png", noise(4, 4, 3))
    write(tmp_path / "mixed" / "cat" / "b.png", noise(4, 4, 3))
    with rejects(ValueError, "mixed", "1 images beside 1 sub-folders", "(cat)", "move"):
        data.load(f"folder:{tmp_path / 'mixed'}")

    write(tmp_path / "holes" / "ant" / "a.png", noise(4, 4, 3))
    write(tmp_path / "holes" / "bee" / "more" / "a.png", noise(4, 4, 3))
    with rejects(ValueError, "1 of the 2 class sub-folders", "(bee)", "fill, flatten or remove"):
        data.load(f"folder:{tmp_path / 'holes'}")

    write(tmp_path / "sizes" / "a.png", noise(4, 4, 3))
    write(tmp_path / "sizes" / "b.png", noise(4, 6, 3))
    with rejects(ValueError, "2 different sizes", "4 x 4, 6 x 4", "image_size"):
        data.load(f"folder:{tmp_path / 'sizes'}")
    assert data.load(f"folder:{tmp_path / 'sizes'}", image_size=4)[1]["image"].shape == (4, 4, 3)


def test_unreadable_files_are_found_before_training(tmp_path):
    photo = np.repeat(np.repeat(noise(8, 8, 3), 8, 0), 8, 1)
    write(tmp_path / "good.jpg", photo)
    with open(tmp_path / "good.jpg", "ab") as file:
        file.write(bytes(100))  # as some cameras leave after the end marker
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        write(tmp_path / name, photo)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-40])  # the header stays whole
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    write(tmp_path / "deep.png", Image.fromarray(np.zeros((64, 64), np.uint16)))
    with rejects(ValueError, "6 of 7", "cut.jpg", "cut.png", "cut.webp", "; ...", "remove them"):
        data.load(f"folder:{tmp_path}")
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        (tmp_path / name).unlink()
    with rejects(ValueError, "3 of 4", "deep.png", "8 bits", "empty.png", "text.jpg: cannot"):
        data.load(f"folder:{tmp_path}")
    for name in ("deep.png", "empty.png", "text.jpg"):
        (tmp_path / name).unlink()
    source = data.load(f"folder:{tmp_path}")
    (tmp_path / "good.jpg").write_bytes(b"gone bad")
    with rejects(ValueError, "good.jpg", "cannot be decoded", "start again"):
        source[0]


# TFDS


class TinyPng(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    shape = (6, 6, 3)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            buffer = io.BytesIO()
            size = tuple(side or 6 for side in self.shape)
            to_pil(np.full(size, i, np.uint8)).save(buffer, "PNG")
            buffer.seek(0)
            yield i, {"image": buffer, "label": i % 10, "id": str(i)}


class TinyAnySize(TinyPng):
    shape = (None, None, 3)


class TinyText(TinyPng):
    def _info(self):
        features = tfds.features.FeaturesDict({"words": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self):
        yield 0, {"words": "none"}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyPng, TinyAnySize, TinyText):
        builder(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def test_tfds_source(tfds_dir):
    source = data.load("tiny_png", data_dir=tfds_dir)
    assert (source.name, source.image_shape) == ("tiny_png", (6, 6, 3))
    assert (source.num_classes, len(source)) == (10, 12)
    values = set()
    for i in range(12):
        example = source[i]
        assert example["image"].dtype == np.uint8 and example["label"].dtype == np.int32
        assert example["label"] == example["image"][0, 0, 0] % 10
        values.add(int(example["image"].mean()))
    assert values == set(range(12))
    assert len(data.load("tiny_png", "train[:5]", data_dir=tfds_dir)) == 5
    small = data.load("tiny_png", image_size=3, channels=1, data_dir=tfds_dir)
    assert small.image_shape == small[0]["image"].shape == (3, 3, 1)
    batch = next(data.batches(source, 4, seed=0))
    assert batch["image"].shape == (4, 6, 6, 3)


def test_tfds_errors(tfds_dir, tmp_path):
    with rejects(ValueError, "'tiny_png'", "no split 'test'", "['train']", "train[:1000]"):
        data.load("tiny_png", "test", data_dir=tfds_dir)
    with rejects(ValueError, "'tiny_any_size'", "(None, None, 3)", "give image_size"):
        data.load("tiny_any_size", data_dir=tfds_dir)
    assert data.load("tiny_any_size", image_size=4, data_dir=tfds_dir).image_shape == (4, 4, 3)
    with rejects(ValueError, "'tiny_text'", "feature 'image'", "it has words", "npz file"):
        data.load("tiny_text", data_dir=tfds_dir)
    command = "`tfds build mnist --file_format=array_record`"
    with rejects(ValueError, "'mnist'", "not prepared", command, "tensorflow", "data_dir"):
        data.load("mnist", data_dir=str(tmp_path))
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    with rejects(ValueError, "'mnist'", "stored as tfrecord", command):
        data.load("mnist", data_dir=str(tmp_path))
    with rejects(ValueError, "'mnist:9.9.9'", "only: 3.0.1", "name/config:version"):
        data.load("mnist:9.9.9", data_dir=str(tmp_path))


# Specs


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
    known = "it must be digits, npz:PATH, folder:PATH, pairs:FOLDER, or the name of a TFDS dataset"
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
    with rejects(ValueError, "image_size must be 1 or more", "got 0"):
        data.load("digits", image_size=0)


# Batches


def test_batch_shapes_and_dtypes():
    batch = next(data.batches(data.load("digits"), 6, seed=0, process_count=2))
    assert batch["image"].shape == (3, 28, 28, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (3,) and batch["label"].dtype == np.int32


def test_each_epoch_visits_every_image_once_in_a_new_order():
    seen = np.concatenate([numbers(b)[0] for b in take(data.batches(numbered(20), 8, seed=3), 10)])
    epochs = seen.reshape(4, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_images_keep_their_labels():
    for batch in take(data.batches(numbered(20, classes=7), 8, seed=1, flip=True), 5):
        assert np.array_equal(numbers(batch)[0] % 7, batch["label"])


def test_without_shuffle_the_order_is_the_source():
    got = take(data.batches(numbered(6), 4, seed=0, shuffle=False), 3)
    assert [*np.concatenate([numbers(b)[0] for b in got])] == [0, 1, 2, 3, 4, 5] * 2


def test_seed_decides_the_order():
    first = [numbers(next(data.batches(numbered(50), 50, seed=s)))[0] for s in (0, 0, 1)]
    assert np.array_equal(first[0], first[1]) and not np.array_equal(first[0], first[2])


@pytest.mark.parametrize("process_index, process_count", [(0, 1), (1, 2)])
def test_starting_at_a_step_equals_getting_there(process_index, process_count):
    def start(step):
        options = {"seed": 5, "flip": True, "start_step": step}
        options |= {"process_index": process_index, "process_count": process_count}
        return data.batches(numbered(10, classes=3), 4, **options)

    straight = take(start(0), 12)
    for step in (1, 2, 5, 11):
        assert all(map(equal, straight[step:], take(start(step), 12 - step)))


def test_starting_far_away_is_immediate():
    read = []
    source = numbered(10)
    counting = data.Source("counting", (1, 3, 1), 0, 10, lambda i: read.append(i) or source.read(i))
    iterator = data.batches(counting, 2, seed=0, start_step=10**9)
    next(iterator)
    iterator.close()
    assert len(read) < 200


def test_state_is_the_step():
    iterator = data.batches(numbered(10), 4, seed=5, flip=True, start_step=2)
    next(iterator)
    state = iterator.get_state()
    assert state == {"next_index": 3}
    assert equal(
        next(iterator), next(data.batches(numbered(10), 4, seed=5, flip=True, start_step=3))
    )


@pytest.mark.parametrize("process_count", [2, 4])
def test_global_batches_do_not_depend_on_the_process_count(process_count):
    def run(index, count):
        options = {"seed": 2, "flip": True, "process_index": index, "process_count": count}
        return take(data.batches(numbered(30, classes=4), 8, **options), 9)

    whole, parts = run(0, 1), [run(index, process_count) for index in range(process_count)]
    for step, batch in enumerate(whole):
        for row in range(8):
            part, place = parts[row % process_count][step], row // process_count
            for key in ("image", "label"):
                assert np.array_equal(batch[key][row], part[key][place])


def test_flips_are_fair_and_change_between_epochs():
    epochs = take(data.batches(numbered(200), 200, seed=0, flip=True), 5)
    flipped = np.zeros((5, 200), bool)
    for epoch, batch in enumerate(epochs):
        index, mirrored = numbers(batch)
        flipped[epoch, index] = mirrored
    # 1000 fair coins: five standard deviations are 0.08.
    assert abs(flipped[:, 1:].mean() - 0.5) < 0.08
    assert (flipped[0] != flipped[1]).mean() > 0.3
    plain = next(data.batches(numbered(200), 200, seed=0))
    assert not numbers(plain)[1].any()
    assert np.array_equal(numbers(plain)[0], numbers(epochs[0])[0])


def test_batch_larger_than_the_source():
    batch = next(data.batches(numbered(3), 8, seed=0))
    assert np.bincount(numbers(batch)[0]).max() == 3 and len(batch["label"]) == 8


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"batch_size": 6, "process_count": 4}, ["multiple of the 4", "got 6", "example 4"]),
        ({"batch_size": 0}, ["batch_size", "got 0", "example 1"]),
        ({"process_index": 2, "process_count": 2}, ["process_index=2", "jax.process_index()"]),
        ({"process_count": 0}, ["process_count=0", "jax.process_count()"]),
        ({"seed": -3}, ["seed must be 0 or more", "got -3", "example 3"]),
        ({"start_step": -1}, ["start_step must be 0 or more", "got -1"]),
        ({"source": numbered(0)}, ["empty source", "'numbered'", "at least one"]),
    ],
)
def test_batches_errors(options, parts):
    with rejects(ValueError, *parts):
        data.batches(**{"source": numbered(5), "batch_size": 4, "seed": 0} | options)


# Images


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_unit_range_round_trip(convert):
    levels = convert(np.arange(256, dtype=np.uint8))
    x = data.to_unit_range(levels)
    assert type(x) is type(levels) and x.dtype == np.float32
    np.testing.assert_allclose(np.asarray(x), np.linspace(-1, 1, 256), atol=1e-6)
    back = data.to_uint8(x)
    assert type(back) is type(levels) and back.dtype == np.uint8
    assert np.array_equal(np.asarray(back), np.arange(256))
    outside = convert(np.array([-7, -1.001, 1.001, 9, 1 / 255, 2.9 / 255], np.float32))
    assert [*np.asarray(data.to_uint8(outside))] == [0, 0, 255, 255, 128, 129]


def test_conversions_under_jit_and_in_bfloat16():
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(jax.jit(lambda u: data.to_uint8(data.to_unit_range(u)))(levels), levels)
    half = jnp.array([-1, 0.5, 1], jnp.bfloat16)
    assert [*np.asarray(data.to_uint8(half))] == [0, 191, 255]
    assert [*data.to_uint8(np.asarray(half))] == [0, 191, 255]


def test_conversions_refuse_what_is_converted():
    with rejects(ValueError, "takes uint8", "got float32", "no conversion"):
        data.to_unit_range(np.zeros(3, np.float32))
    with rejects(ValueError, "floating point", "got uint8", "no conversion"):
        data.to_uint8(np.zeros(3, np.uint8))


def test_fit_leaves_alone_what_fits():
    image = noise(4, 4, 3)
    assert fit(image) is image and fit(image, 4, 3) is image
    assert fit(noise(4, 4, 1), 4, 3).shape == (4, 4, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_tiles_row_by_row(channels):
    images = noise(5, 4, 6, channels)
    sheet = np.asarray(data.grid(images, 3, scale=2, padding=1)).reshape(2 * 9 + 1, 3 * 13 + 1, -1)
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
    sheet = np.asarray(data.grid(images, 3, labels))
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
        (noise(4, 4, 4, 1), {"labels": "abc"}, ["4 (one above each tile)", "2 (one", "got 3"]),
    ],
)
def test_grid_errors(images, options, parts):
    with rejects(ValueError, *parts):
        data.grid(images, **{"columns": 2} | options)


def test_save_png(tmp_path):
    image, path = noise(5, 4, 3), tmp_path / "new" / "a.png"
    data.save_png(path, image)
    assert np.array_equal(Image.open(path), image)
    with rejects(FileExistsError, str(path), "would be overwritten", "overwrite=True"):
        data.save_png(path, image[::-1])
    assert np.array_equal(Image.open(path), image)
    data.save_png(str(path), to_pil(image[::-1]), overwrite=True)
    assert np.array_equal(Image.open(path), image[::-1])
    with rejects(ValueError, "[2, 5, 4, 3]", "[H, W, 3]", "grid shows a batch"):
        data.save_png(tmp_path / "b.png", noise(2, 5, 4, 3))
    assert not (tmp_path / "b.png").exists()


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
