"""The public interface passes mypy, and says its types to whoever uses it."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ddim_jax

ROOT = Path(__file__).parent.parent
USE = """
import ddim_jax
model = ddim_jax.load("digits")
reveal_type(model)
reveal_type(model.draw(40))
reveal_type(model.recipe.replace(steps=8))
times = ddim_jax.strides.uniform(model.schedule, steps=20)
table = ddim_jax.solvers.ddim(eta=0.0)(model.schedule, times)
reveal_type(table)
model.draw(40, seed="7")
ddim_jax.load(3)
"""
SAID = ["ddim_jax.model.Model", "numpy.ndarray", "ddim_jax.recipe.Recipe", "SolverTable"]


def mypy(folder, *arguments):
    if not importlib.util.find_spec("mypy"):
        pytest.skip("mypy is not installed: pip install 'ddim_jax[test]'")
    command = [sys.executable, "-m", "mypy", f"--cache-dir={folder}", *arguments]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


def test_the_public_interface_has_no_errors(folder):
    result = mypy(folder)
    assert result.returncode == 0, result.stdout + result.stderr


def test_it_says_its_types_and_finds_mistakes(folder):
    (folder / "use.py").write_text(USE)
    said = mypy(folder, str(folder / "use.py")).stdout
    revealed = [line for line in said.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(SAID), said
    for line, name in zip(revealed, SAID, strict=True):
        assert name in line
    errors = [line for line in said.splitlines() if ": error:" in line]
    assert len(errors) == 2, said
    assert '"draw"' in errors[0] and '"seed"' in errors[0] and '"load"' in errors[1]


def test_every_export_is_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    checked = [ROOT / name for name in settings["files"]]
    for name in ddim_jax.__all__:
        home = ddim_jax._HOMES.get(name, name)
        files = [ROOT / f"ddim_jax/{home}{end}" for end in (".py", "/__init__.py", "")]
        assert any(file in checked for file in files), f"[tool.mypy] should list {home}"
    assert (ROOT / "ddim_jax" / "py.typed").exists()
