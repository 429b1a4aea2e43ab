"""The wheel holds everything: installed alone, it draws and finds configs in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as pip installs it from the wheel, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building writes into the tree
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    names = [n for n in names if (ROOT / n).is_file()] or _all_files()
    for name in names:
        if name.startswith(("ddim_jax/", "configs/", "setup.py", "pyproject.toml", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "target"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    return target


def _all_files():
    return [
        str(path.relative_to(ROOT))
        for folder in ("ddim_jax", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ] + ["setup.py", "pyproject.toml", "LICENSE"]


def run(installed, cwd, *command):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_wheel_draws_in_an_empty_folder(installed, tmp_path):
    where = run(installed, tmp_path, "-c", "import ddim_jax; print(ddim_jax.__file__)")
    assert where.stdout.startswith(str(installed)), where
    for name in ("export/page/index.html", "serve/page.html", "py.typed"):
        assert (installed / "ddim_jax" / name).exists()
    result = run(installed, tmp_path, "-m", "ddim_jax", "sample", "--num_samples=2", "--steps=2")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "samples" / "digits-0001.png").stat().st_size > 500


def test_the_wheel_holds_the_licences_of_what_it_holds(installed):
    (licence,) = installed.glob("ddim_jax-*.dist-info/**/LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()
    assets = installed / "ddim_jax" / "assets"
    listed = (assets / "LICENSES.md").read_text()
    for file in assets.iterdir():
        assert file.suffix in (".py", ".md", "") or f"`{file.name}`" in listed, file.name


@pytest.mark.slow
def test_the_wheel_finds_configs_by_name(installed, tmp_path):
    """An unknown override is refused by name, so the config was read, with what it imports."""
    result = run(
        installed, tmp_path, "-m", "ddim_jax", "train", "--config=digits_cd", "--config.no_such=1"
    )
    assert "config has no field 'no_such'" in result.stderr, result.stderr
    result = run(installed, tmp_path, "-m", "ddim_jax", "train", "--config=digit")
    assert "no config 'digit'" in result.stderr and "digits_cd" in result.stderr


def test_the_list_of_commands(installed, tmp_path):
    from ddim_jax.__main__ import COMMANDS

    result = run(installed, tmp_path, "-m", "ddim_jax", "--help")
    assert result.returncode == 0
    for name in COMMANDS:
        assert f"  {name} " in result.stdout
    result = run(installed, tmp_path, "-m", "ddim_jax", "smaple")
    assert result.returncode == 1 and "no command 'smaple'" in result.stderr
