import json

import numpy as np
import pytest

from ddim_jax import data
from ddim_jax.data import noise_pairs
from tests.errors import rejects

ABOUT = {"image_shape": [2, 2, 1], "num_classes": 3, "solver": "heun_flow"}
KEYS = np.arange(20, dtype=np.uint32).reshape(10, 2)
LABELS = np.arange(10) % 3
IMAGES = np.random.default_rng(0).normal(size=(10, 2, 2, 1)).astype(np.float32)


def write(folder, count, *, of=None):
    """Writes the shards that are missing of a set of `count` pairs; returns their places."""
    shards = noise_pairs.missing_shards(folder, count)
    noise_pairs.write_about(folder, ABOUT)
    for places in shards[:of]:
        rows = slice(places.start, places.stop)
        records = noise_pairs.encode(KEYS[rows], LABELS[rows], IMAGES[rows])
        noise_pairs.write_shard(folder, places.start, records)
    if of is None:
        noise_pairs.write_about(folder, ABOUT, count)
    return shards


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(noise_pairs, "SHARD", 4)


def test_pairs_are_read_as_they_were_written(tmp_path):
    write(tmp_path / "pairs", 10)
    source = data.load(f"pairs:{tmp_path / 'pairs'}")
    assert source.name == f"pairs:{tmp_path / 'pairs'}"
    assert source.captions == ()
    assert (len(source), source.image_shape, source.num_classes) == (10, (2, 2, 1), 3)
    assert source.about == ABOUT
    for i in range(10):
        pair = source[i]
        np.testing.assert_array_equal(pair["image"], IMAGES[i])
        np.testing.assert_array_equal(pair["noise_key"], KEYS[i])
        assert pair["label"] == LABELS[i] and pair["label"].dtype == np.int32


def test_the_format_is_as_documented(tmp_path):
    write(tmp_path, 10)
    names = [f"pairs-0000{i}.array_record" for i in range(3)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, "pairs.json"]
    assert json.loads((tmp_path / "pairs.json").read_text()) == ABOUT | {"count": 10}
    (record,) = noise_pairs.encode(KEYS[1:2], LABELS[1:2], IMAGES[1:2])
    assert record == KEYS[1].tobytes() + np.int32(1).tobytes() + IMAGES[1].tobytes()
    (unlabelled,) = noise_pairs.encode(KEYS[1:2], None, IMAGES[1:2])
    assert unlabelled == KEYS[1].tobytes() + bytes(4) + IMAGES[1].tobytes()


def test_what_is_missing_is_written_next(tmp_path):
    assert write(tmp_path, 6, of=1) == [range(0, 4), range(4, 6)]
    with rejects(FileNotFoundError, "no complete pairs in", "a stage with a section pairs"):
        noise_pairs.load(tmp_path)
    assert write(tmp_path, 6) == [range(4, 6)]
    assert write(tmp_path, 10) == [range(4, 8), range(8, 10)]  # the short last shard is filled
    assert write(tmp_path, 10) == []
    assert len(noise_pairs.load(tmp_path)) == 10


def test_pairs_that_are_missing_or_damaged(tmp_path):
    with rejects(FileNotFoundError, "no complete pairs in", "configs/digits_reflow.py"):
        data.load(f"pairs:{tmp_path / 'nowhere'}")
    write(tmp_path, 4)
    shard = tmp_path / "pairs-00000.array_record"
    whole = shard.read_bytes()
    shard.unlink()
    with rejects(FileNotFoundError, "(pairs-00000.array_record is missing)"):
        data.load(f"pairs:{tmp_path}")
    shard.write_bytes(b"damaged")
    with rejects(ValueError, "are damaged", "remove the folder to draw them again"):
        data.load(f"pairs:{tmp_path}")
    shard.write_bytes(whole)
    noise_pairs.write_about(tmp_path, ABOUT, 3)
    with rejects(ValueError, "damaged (4 records, not 3)"):
        data.load(f"pairs:{tmp_path}")
