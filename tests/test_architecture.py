"""The house: a module imports only what lies below it, and no imports run in a circle."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddim_jax"

LAYERS = [
    # from the ground up; a module's layer is that of the longest prefix of its name
    [
        "files",
        "interrupts",
        "names",
        "inputs",
        "dropping",
        "rows",
        "fingerprints",
        "keys",
        "frame_noise",
        "schedules",
        "program_cost",
    ],
    ["networks.winograd"],
    ["predictions"],
    ["denoisers"],
    ["guidance"],
    ["solvers"],
    ["sampling"],
    ["adaptive_sampling", "strides", "parallel"],
    ["networks", "codecs", "texts", "data", "batch_loop", "command_line"],
    [
        "recipe",
        "abilities",
        "programs",
        "drawing",
        "clip_drawing",
        "editing.frames",
        "editing.restoration",
    ],
    ["model"],
    ["experiment", "provenance"],
    ["checkpoints"],
    ["losses"],
    ["training"],
    ["topologies", "sample_folder", "evaluation", "export"],
    ["planning", "editing", "strides.fit", "data.latents", "serve"],
    ["commands", "demo", "edit", "checkpoints.__main__", "export.__main__", "models"]
    + ["serve.__main__", "serve.ray_app", "selfcheck"],
    ["__main__"],
]
"""Of every module; imports go to the same layer or a lower one."""


def modules():
    """Name within the package -> file; packages by their own name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


MODULES = modules()


def imports(name):
    """The package's modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddim_jax"):
            base = node.module.removeprefix("ddim_jax").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else base)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names if alias.name.startswith("ddim_jax."))
            found.update(name.removeprefix("ddim_jax.") for name in names)
    return found - {name, ""}


def layer(name):
    fits = [
        (len(prefix), height)
        for height, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert fits, f"{name} has no layer; give it one in LAYERS"
    return max(fits)[1]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"", "assets"}))
def test_imports_go_down_or_sideways(name):
    up = {other for other in imports(name) if layer(other) > layer(name)}
    assert not up, f"{name} imports what lies above it: {sorted(up)}"


def test_no_imports_run_in_a_circle():
    """Late imports count too; a package is its __init__, apart from its modules."""
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(imports(name)):
                visit(other)
            path.pop()
            done.add(name)

    for name in sorted(set(MODULES) - {""}):
        visit(name)


@pytest.mark.parametrize(
    "folder, above", [("ddim_jax", "benchmarks|tests"), ("benchmarks", "tests")]
)
def test_tests_import_from_benchmarks_and_both_from_the_package(folder, above):
    """Not the other way round, nor in code that they write."""
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        found = re.search(rf"^\s*(from|import) ({above})\b", path.read_text(), re.MULTILINE)
        assert not found, f"{path}: {found[0]}"


def test_no_loss_imports_another_and_none_knows_a_config():
    losses = {name for name in MODULES if name.startswith("losses.")}
    shared = {"losses.loss", "losses.weightings", "losses.time_samplers", "losses.level_pairs"}
    shared |= {"losses.guides", "losses.matching_terms", "losses.rollout"}
    for name in losses - shared:
        others = {other for other in imports(name) if other in losses} - shared
        assert not others, f"{name} imports {sorted(others)}"
    for name in losses | {name for name in MODULES if name.startswith("networks")}:
        assert "ml_collections" not in MODULES[name].read_text(), name
