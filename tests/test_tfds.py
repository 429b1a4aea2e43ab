import importlib.util
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddim_jax import data
from ddim_jax.data import captions
from ddim_jax.data.images import to_pil
from tests.errors import rejects


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
            yield i, {"image": buffer, "label": i % 10, "id": f" Nr. {i} ö" * (i > 1)}


class TinyAnySize(TinyPng):
    shape = (None, None, 3)


class TinyText(TinyPng):
    def _info(self):
        features = tfds.features.FeaturesDict({"words": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self):
        yield 0, {"words": "none"}


class TinyVideo(TinyPng):
    def _info(self):
        frames = tfds.features.Image(shape=self.shape, encoding_format="png")
        features = {
            "video": tfds.features.Sequence(frames),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        for i in range(3):  # clip i has 5 + i frames of the levels 10 i, 10 i + 1, ...
            frames = [io.BytesIO() for _ in range(5 + i)]
            for f, file in enumerate(frames):
                to_pil(np.full(self.shape, 10 * i + f, np.uint8)).save(file, "PNG")
                file.seek(0)
            yield i, {"video": frames, "label": i}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyPng, TinyAnySize, TinyText, TinyVideo):
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


def test_a_text_of_a_dataset_is_its_captions(tfds_dir):
    source = data.load("tiny_png", "train[2:]", data_dir=tfds_dir, caption="id")
    assert len(source.captions) == len(source) == 10
    for example, text in zip(source, source.captions, strict=True):
        number = int(example["image"][0, 0, 0])
        assert text == (f"Nr. {number} ö" if number > 1 else "")
    assert captions.note(data.load("tiny_png", data_dir=tfds_dir, caption="id").captions) == (
        "2 of 12 images have no caption, and are told the empty text"
    )
    with rejects(ValueError, "'tiny_png' has no text 'label' for config.data.caption; it has id"):
        data.load("tiny_png", data_dir=tfds_dir, caption="label")
    with rejects(ValueError, "caption='id' is for TFDS datasets, digits has its own"):
        data.load("digits", caption="id")


def test_tfds_errors(tfds_dir, tmp_path):
    with rejects(ValueError, "'tiny_png'", "no split 'test'", "['train']", "train[:1000]"):
        data.load("tiny_png", "test", data_dir=tfds_dir)
    with rejects(ValueError, "'tiny_any_size'", "(None, None, 3)", "config.data.resize"):
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


def test_videos_of_a_dataset(tfds_dir, monkeypatch):
    source = data.load("tiny_video", data_dir=tfds_dir, frames=3, frame_stride=2, image_size=4)
    assert source.shape == (3, 4, 4, 3) and (source.num_classes, len(source)) == (3, 3)
    for example in (source[i] for i in range(3)):
        first = 10 * example["label"]
        assert example["image"][:, 0, 0, 0].tolist() == [first, first + 2, first + 4]
    index = next(i for i in range(3) if source[i]["label"] == 2)
    assert source.record(index, 0.999)["image"][:, 0, 0, 0].tolist() == [22, 24, 26]
    assert "frame_rate" not in source[0]
    timed = data.load("tiny_video", data_dir=tfds_dir, frames=3, frame_rate=8)  # taken to have it
    assert next(data.batches(timed, 2, seed=0))["frame_rate"].tolist() == [8, 8]
    shape = data.load("tiny_video", data_dir=tfds_dir, frames=3, checked=False).shape
    assert shape == (3, 6, 6, 3)
    with rejects(ValueError, "any number of frames", "config.data.frames=16"):
        data.load("tiny_video", data_dir=tfds_dir)
    short = data.load("tiny_video", data_dir=tfds_dir, frames=5)
    assert short.shape == (5, 6, 6, 3)
    with rejects(ValueError, "frames, config.data.frames=8", "train[100:]"):
        data.load("tiny_video", data_dir=tfds_dir, frames=8)
    with rejects(ValueError, "tiny_png holds still pictures", "frames=4"):
        data.load("tiny_png", data_dir=tfds_dir, frames=4)
    monkeypatch.setattr(TinyVideo, "_info", lambda self: tfds.features.Video(shape=(4, 6, 6, 3)))
    if not importlib.util.find_spec("tensorflow"):
        with rejects(ValueError, "without tensorflow", "Sequence(Image)", "clips:PATH"):
            data.load("tiny_video", data_dir=tfds_dir, frames=4)
