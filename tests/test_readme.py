"""The README says what is: its table of solvers, its example, the two commands' shape."""

import re
from pathlib import Path

import pytest

from ddim_jax.solvers import SOLVERS

README = (Path(__file__).parent.parent / "README.md").read_text()


def solver_table() -> str:
    rows = []
    for name, info in SOLVERS.items():
        nfe = "S" if info.evaluations == 1 else f"{info.evaluations}S - {info.evaluations - 1}"
        nfe += f" + {sum(info.warm_up)}" * bool(info.warm_up)
        rows.append(
            f"| `{name}` | {info.order or '-'} | {nfe} | {'yes' if info.stochastic else 'no'} | "
            f"{'any' if info.lam_min is None else info.lam_min} | {info.stride} | {info.paper} |"
        )
    return "\n".join(rows)


def test_the_table_of_solvers_is_that_of_the_code():
    assert solver_table() in README, f"the README should hold\n{solver_table()}"


def test_every_name_in_the_layout_exists():
    root = Path(__file__).parent.parent
    names = re.findall(r"`([a-z_/.]+(?:\.py|/))`", README.split("## Layout")[1])
    assert len(names) >= 10
    for name in names:
        found = (root / name).exists() or (root / "ddim_jax" / name).exists()
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
