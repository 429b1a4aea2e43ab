"""The notebooks hold what running them gives, and end in a picture; slow: they run again."""

import ast
import base64
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST = 300_000
"""Bytes of an output."""


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pictures(cell):
    return [o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})]


def check(notebook):
    """What was run once, from top to bottom, without an error, and ends in a picture."""
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(output["output_type"] != "error" for output in cell["outputs"])
    assert pictures(cells[-1])


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_was_run_and_is_small(file):
    notebook = json.loads(file.read_text())
    check(notebook)
    assert notebook["cells"][0]["source"][0].startswith("# ")
    for cell in code_cells(notebook):
        ast.parse("".join(cell["source"]))
        assert not re.search(r"/(tmp|root|home|work)/", json.dumps(cell["outputs"]))
        for output in cell["outputs"]:
            assert len(json.dumps(output)) < MOST
        for picture in pictures(cell):
            assert base64.b64decode(picture).startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_a_clean_kernel(file, tmp_path, monkeypatch):
    if not importlib.util.find_spec("nbclient") or not importlib.util.find_spec("ipykernel"):
        pytest.skip("nbclient is not installed: pip install -e '.[notebooks]'")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "")  # not those of the tests
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    notebook = nbformat.read(file, 4)
    for cell in code_cells(notebook):
        cell["outputs"], cell["execution_count"] = [], None
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
    check(notebook)
