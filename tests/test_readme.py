"""README and docs say what is: their tables, Python blocks, commands, files and links.

`test_site.py` builds them as a site.
"""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

import ddim_jax.commands.sample
import ddim_jax.commands.train  # noqa: F401  defines its flags
from ddim_jax.__main__ import COMMANDS
from ddim_jax.commands import configs
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import cosine
from ddim_jax.solvers import SOLVERS
from ddim_jax.strides import STRIDES
from ddim_jax.training import fields

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ddim_jax"
PAGES = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
README = PAGES["README.md"]
TEXTS = PAGES | {
    str(file.relative_to(ROOT)): ast.get_docstring(ast.parse(file.read_text()))
    for file in sorted((ROOT / "configs").glob("*.py"))
}
"""Pages, and docstrings of configs, by file."""


def joined(text: str) -> str:
    """Text with continued lines of commands put together."""
    return re.sub(r"\\+\n\s*", " ", text)


# --- the README's shape ---------------------------------------------------------------------------


def test_the_readme_is_short_and_begins_with_a_picture():
    assert README.count("\n") < 200
    title, picture, *_ = [line for line in README.splitlines() if line]
    assert title == "# ddim_jax" and picture.startswith("![")


@pytest.mark.parametrize("block", [0, 1])
def test_the_first_two_commands_are_single_lines_in_a_venv(block):
    command = re.findall(r"```bash\n(.*?)```", README, re.S)[block]
    assert command.count("\n") == 1
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_no_page_has_another_bash_block():
    assert "".join(PAGES.values()).count("```bash") == 2


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch):
    """Those of the README, then those of the page of solvers: one continues it, one is alone."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    first, second = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(first, "README", "exec"), scope)  # noqa: S102
    pictures = scope["pictures"]
    assert pictures.shape == (40, 28, 28, 1) and pictures.dtype == np.uint8
    # class-conditional digits: dark corners, bright strokes
    assert pictures[:, :2, :2].mean() < 10 and pictures.max() > 200
    assert 10 < pictures.mean() < 80  # of test digits 34
    assert Image.open("digits.png").width > 28 * 8
    exec(compile(second, "README", "exec"), scope)  # noqa: S102
    assert scope["x"].shape == (3, 28, 28, 1)
    assert scope["x"][:, :2, :2].mean() < -0.9 and scope["x"].max() > 0.5
    assert Image.open("three.png").width > 28 * 3
    third, own = re.findall(r"```python\n(.*?)```", PAGES["docs/solvers.md"], re.S)
    by_denoiser = np.asarray(scope["x"])
    exec(compile(third, "solvers", "exec"), scope)  # noqa: S102
    np.testing.assert_allclose(scope["x"], by_denoiser, atol=1e-3)
    exec(compile(own, "solvers", "exec"), alone := {})  # noqa: S102
    for point in (-1, 2):
        assert 0.4 < (np.abs(alone["x"] - point) < 0.1).mean() < 0.6


def test_solvers_that_share_a_program_have_tables_of_one_shape():
    lines = re.findall(r"^- (`.*`)$", PAGES["docs/solvers.md"].partition("## ")[0], re.M)
    schedule = cosine()
    found = []
    for names in (re.findall(r"`(.*?)`", line) for line in lines):
        tables = [Recipe(solver=name, steps=8, stride=None).table(schedule) for name in names]
        (shape,) = {tuple(map(np.shape, jax.tree.leaves(table))) for table in tables}
        found.append(shape)
    assert len(set(found)) == len(found) == 5


# --- tables ---------------------------------------------------------------------------------------


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
    table = solver_table()
    assert table in PAGES["docs/solvers.md"], f"docs/solvers.md should hold\n{table}"


def test_every_option_of_a_solver_and_a_stride_is_on_its_page():
    for name, solver in SOLVERS.items():
        for option in inspect.signature(solver.make).parameters:
            assert f"`{option}`" in PAGES["docs/solvers.md"], f"{option} of {name}"
    for name, stride in STRIDES.items():
        assert f"`{name}`" in PAGES["docs/strides.md"]
        for option in list(inspect.signature(stride).parameters)[2:]:
            assert f"`{option}`" in PAGES["docs/strides.md"], f"{option} of {name}"


# --- the layout -----------------------------------------------------------------------------------


def layout() -> list[list[str]]:
    """The names that each section of the page of the layout lists, paths in the package."""
    sections = PAGES["docs/layout.md"].split("\n## ")[1:]
    rows = [[line for line in text.splitlines() if line.startswith("| `")] for text in sections]
    return [re.findall(r"`([a-z0-9_/.]+)`", " ".join(r.split("|")[1] for r in s)) for s in rows]


def test_every_name_in_the_layout_exists():
    names = [name for section in layout() for name in section]
    assert len(names) >= 80
    for name in names:
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name


def test_every_module_is_in_the_layout():
    listed = {name for section in layout() for name in section}
    moved = {"models/pretrained.py", "evaluation/ruler.py"}
    for file in PACKAGE.rglob("*.py"):
        name = str(file.relative_to(PACKAGE))
        if file.name != "__init__.py" and name not in moved:
            assert name in listed, f"docs/layout.md should say what {name} holds"


def test_modules_import_only_from_their_section_and_those_above():
    section = {name: k for k, names in enumerate(layout()) for name in names}
    for name, k in list(section.items()):  # of a package, that of its lowest module
        if "/" in name.rstrip("/"):
            package = f"{name.partition('/')[0]}.py"
            section[package] = min(k, section.get(package, k))
    for name, mine in section.items():
        if not name.endswith(".py") or not (PACKAGE / name).exists():
            continue
        for node in ast.parse((PACKAGE / name).read_text()).body:
            if not (isinstance(node, ast.ImportFrom) and (node.module or "")[:8] == "ddim_jax"):
                continue
            path = node.module.replace(".", "/")[9:]
            inside = [f"{path}/{alias.name}.py".lstrip("/") for alias in node.names]
            for imported in [f"{path}.py", *inside]:
                assert section.get(imported, mine) <= mine, f"{name} imports {imported}"


# --- links and names ------------------------------------------------------------------------------


def prose(text: str) -> str:
    """Text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """What headings can be linked by, as GitHub makes it of them."""
    titles = re.findall(r"^#+ (.*)", prose(text), re.M)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", prose(PAGES[page])):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_every_page_is_in_the_index():
    for page in PAGES:
        name = page.removeprefix("docs/")
        if page not in ("README.md", "docs/index.md"):
            assert f"{name})" in PAGES["docs/index.md"], page


def test_every_file_in_the_docs_is_on_a_page():
    for file in (ROOT / "docs").rglob("*.*"):
        if file.name != "site.css":
            assert any(file.name in text for text in PAGES.values()), file.name


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_that_is_named_exists(page):
    for name in re.findall(r"`((?:ddim_jax|tests|benchmarks|configs)/[\w/]+\.py)`", TEXTS[page]):
        assert (ROOT / name).exists(), name


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS)
def test_every_module_in_a_command_exists(page):
    for module in re.findall(r"python -m ((?:ddim_jax|benchmarks)[\w.]*)", TEXTS[page]):
        assert importlib.util.find_spec(module), module
    for command in re.findall(r"(?:ddim-jax|python -m ddim_jax) ([a-z]+)", TEXTS[page]):
        assert command in COMMANDS, command


@pytest.mark.parametrize("page", TEXTS)
def test_every_flag_of_sample_and_train_exists(page):
    for line in joined(TEXTS[page]).splitlines():
        for command in re.findall(r"(?<!\w)(?:sample|train)\.py (.*)", line):
            for flag in re.findall(r"--([a-z_]+)", command.split("`")[0]):
                assert flag in flags.FLAGS or flag == "help", line


def overrides():
    """(config, field) of every command in the docs, docstrings and advice."""
    texts = TEXTS | {"planning": (PACKAGE / "planning.py").read_text()}
    for page, text in texts.items():
        own = Path(page).stem if page.startswith("configs/") else "cifar10"
        for line in joined(text).splitlines():
            named = re.findall(r"--config=(?:configs/)?(\w+)", line)
            config = named[0] if named else own
            for field in re.findall(r"--config\.([a-z_.]+)=", line):
                yield config, field
            for name in set(named) - {"NAME"}:  # any
                yield name, ""


def load_config(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / configs.find(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("config, field", sorted(set(overrides())))
def test_every_override_in_a_command_is_a_field(config, field):
    found = load_config(config).to_dict()
    section, _, name = field.rpartition(".")
    assert not name or name in fields.known_fields(section, found), f"{config} has no {field}"


def test_an_override_of_no_field_is_named():
    result = subprocess.run(
        [sys.executable, "train.py", "--config.model.width=3"],
        cwd=ROOT, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1 and "config.model has no field 'width'" in result.stderr
