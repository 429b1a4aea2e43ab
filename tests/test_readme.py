"""The README says what is: its table of solvers, its example, the two commands' shape."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import load_config
from ddim_jax.solvers import SOLVERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def solver_table() -> str:
    rows = []
    for name, info in SOLVERS.items():
        nfe = "S" if info.stages == 1 else f"{info.stages}S - {info.stages - 1}"
        nfe += f" + {sum(info.warm_up)}" * bool(info.warm_up)
        rows.append(
            f"| `{name}` | {info.order or '-'} | {nfe} | {'yes' if info.stochastic else 'no'} | "
            f"{'any' if info.lam_min is None else info.lam_min} | {info.stride} | {info.source} |"
        )
    return "\n".join(rows)


def test_the_table_of_solvers_is_that_of_the_code():
    assert solver_table() in README, f"the README should hold\n{solver_table()}"


def test_every_name_in_the_layout_exists():
    names = re.findall(r"`([a-z_/.]+(?:\.py|/))`", README.split("## Layout")[1])
    assert len(names) >= 10
    for name in names:
        found = (ROOT / name).exists() or (ROOT / "ddim_jax" / name).exists()
        assert found, name


def test_the_example_runs():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    scope = {}
    exec(compile(code, "README", "exec"), scope)  # noqa: S102
    images = scope["images"]
    assert images.shape == (8, 28, 28, 1)
    # class-conditional digits: dark corners, bright strokes
    assert images[:, :2, :2].mean() < -0.9
    assert images.max() > 0.5


@pytest.mark.parametrize("block", [0, 1])
def test_the_first_two_commands_are_single_lines_in_a_venv(block):
    command = re.findall(r"```bash\n(.*?)```", README, re.S)[block]
    assert command.count("\n") == 1
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")


def overrides():
    """(config file, field) of every command in the documents, docstrings and advice."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.py")]
    for path in [*files, ROOT / "ddim_jax" / "planning.py"]:
        text = path.read_text().replace("\\\n", " ")
        own = f"configs/{path.name if path.parent.name == 'configs' else 'cifar10.py'}"
        for line in text.splitlines():
            config = (re.findall(r"--config=(configs/\w+\.py)", line) or [own])[0]
            for field in re.findall(r"--config\.([a-z_.]+)=", line):
                yield config, field


@pytest.mark.parametrize("config, field", sorted(set(overrides())))
def test_every_override_in_a_command_is_a_field(config, field):
    found = load_config(str(ROOT / config))
    for name in field.split("."):
        assert name in found, f"{config} has no {field}"
        found = found[name]


def test_an_override_of_no_field_is_named():
    result = subprocess.run(
        [sys.executable, "train.py", "--config.model.width=3"],
        cwd=ROOT, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1 and "the config has no field 'width'" in result.stderr
