"""Shards of a sweep: complete or absent, resumed, damaged, drawn with something else."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ddim_jax import data
from ddim_jax.evaluation import cells
from ddim_jax.evaluation.cells import Cell, Shards
from ddim_jax.generation import Generator, make_labels
from ddim_jax.models import pretrained


@pytest.fixture(scope="module")
def generator():
    return Generator(pretrained.load("digits"))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cells, "SHARD", 6)


CELL = Cell("ddim", "uniform", 2, (("eta", 0.5),))


def shards_of(generator, folder, cell=CELL):
    model = generator.model
    about = cells.identity(cell, model, cell.table(model.experiment.schedule))
    return Shards(folder, about)


def test_a_cell_is_one_set_however_it_was_drawn(generator, small, tmp_path):
    """Interrupted, extended, in other batches."""
    drawn, stop = [], RuntimeError("stopped")

    def update(count):
        drawn.append(count)
        if sum(drawn) == 9:
            raise stop

    with pytest.raises(RuntimeError, match="stopped"):
        shards = shards_of(generator, tmp_path / "a")
        cells.draw(CELL, generator, shards, 14, batch_size=3, update=update)
    assert [p.name for p in sorted((tmp_path / "a").glob("*.npz"))] == ["00000.npz"]
    again = []
    shards = shards_of(generator, tmp_path / "a")
    cells.draw(CELL, generator, shards, 14, batch_size=4, update=again.append)
    assert again == [4, 2, 2]  # the second shard, and the two samples of the third
    assert shards.missing(14) == [] and shards.missing(15) == [range(12, 15)]
    labels = make_labels(generator.model, None, 14)
    table = CELL.table(generator.model.experiment.schedule)
    found, index = shards.read(14), np.array([13, 1, 7, 4])
    some = data.to_uint8(generator.draw(table, index, labels=labels[index]).x)
    assert np.abs(found.images[index].astype(int) - some).max() <= 1
    assert found.images_per_second > 0 and found.program_bytes > 6e6  # the weights alone
    with pytest.raises(ValueError, match="lacks samples range"):
        shards.read(15)


def test_a_damaged_shard_is_put_aside_and_drawn_again(generator, small, tmp_path, capsys):
    shards = shards_of(generator, tmp_path)
    cells.draw(CELL, generator, shards, 12, batch_size=4)
    path, before = tmp_path / "00001.npz", shards.read(12).images
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert shards.missing(12) == [range(6, 12)]
    assert "00001.npz is damaged" in capsys.readouterr().err
    assert (tmp_path / "00001.damaged").read_bytes() == content  # nothing is lost
    cells.draw(CELL, generator, shards, 12, batch_size=4)
    np.testing.assert_array_equal(shards.read(12).images, before)
    path.write_bytes(b"")
    assert shards.missing(12) == [range(6, 12)]


def test_samples_drawn_otherwise_are_not_mixed(generator, tmp_path):
    shards_of(generator, tmp_path).write(0, np.zeros((1, 28, 28, 1), np.uint8), seconds=1.0)
    with pytest.raises(ValueError, match="drawn with another solver_options and table; choose"):
        shards_of(generator, tmp_path, CELL._replace(solver_options=(("eta", 0.6),)))
    with pytest.raises(ValueError, match="drawn with another seed;"):
        shards_of(generator, tmp_path, CELL._replace(seed=1))
    (tmp_path / "cell.json").write_text("{")
    with pytest.raises(ValueError, match=r"cell.json is damaged .*move the folder away"):
        shards_of(generator, tmp_path)


def test_identity_is_json_and_names_every_setting(generator):
    model = generator.model
    about = cells.identity(CELL, model, CELL.table(model.experiment.schedule))
    assert json.loads(json.dumps(about)) == about
    assert about["solver_options"] == [["eta", 0.5]] and about["labels"].startswith("all classes")
    assert about["weights"] == pretrained.fingerprint(model.params)


def test_names_of_cells_tell_them_apart():
    named = [
        CELL,
        CELL._replace(steps=3),
        CELL._replace(solver_options=()),
        CELL._replace(stride="strides/digits-ddim-2.json"),
        CELL._replace(guidance_scale=2.0),
        CELL._replace(clip="none"),
        CELL._replace(seed=3),
    ]
    assert len({cell.name for cell in named}) == len(named)
    assert named[0].name == "ddim_uniform_2_eta=0.5"
    assert named[3].name == "ddim_digits-ddim-2_2_eta=0.5"


PEAKS = """
import numpy as np
from ddim_jax.evaluation import cells
cells.reset_peak()
low = cells.peak_bytes()
block = np.ones(25_000_000)
high = cells.peak_bytes()
del block
cells.reset_peak()
print(low, high, cells.peak_bytes())
"""


def test_a_stride_takes_options(generator):
    schedule = generator.model.experiment.schedule
    cell = CELL._replace(stride="quadratic:fraction=1", steps=4)
    starts = [
        float(c.table(schedule).level.t[0]) for c in (cell, cell._replace(stride="quadratic"))
    ]
    assert starts[0] > 0.99 and starts[1] < 0.85
    assert cell.name == "ddim_quadratic,fraction=1_4_eta=0.5"
    with pytest.raises(ValueError, match="must be like quadratic:fraction=1, got 'fraction'"):
        cell._replace(stride="quadratic:fraction").table(schedule)
    with pytest.raises(ValueError, match="has no option 'fracton'"):
        cell._replace(stride="quadratic:fracton=1").table(schedule)


def test_the_peak_of_memory_is_seen_and_forgotten():
    """In a process of its own, where nothing else takes or frees memory."""
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    low, high, after = map(int, run.stdout.split())
    if low == 0:
        pytest.skip("the system does not say")
    assert high - low > 150e6 and high - after > 150e6
