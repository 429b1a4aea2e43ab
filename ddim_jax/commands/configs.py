"""Where configs are found: `--config=digits` is `configs/digits.py`, from any folder.

Names are looked for in `configs/` of the current folder, then in the configs that come with the
package. Configs import each other as `configs.NAME`, so the folder above goes on Python's path.
"""

import ast
import importlib.util
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import ml_collections

import ddim_jax
from ddim_jax.names import did_you_mean

PACKAGE = Path(ddim_jax.__file__).parent
FOLDERS = (Path("configs"), PACKAGE / "assets" / "configs", PACKAGE.parent / "configs")


def names() -> list[str]:
    """Names of the configs that are found without a path."""
    return sorted({file.stem for folder in FOLDERS for file in folder.glob("[!_]*.py")})


def find(config: str) -> str:
    """The file of a config.

    Args:
        config: a path that ends in .py, or a name in `names()`; `:TEXT` after it is passed on to
            get_config.

    Raises:
        FileNotFoundError: there is no such config.
    """
    config, colon, text = config.partition(":")
    if config.endswith(".py") and Path(config).exists():
        return config + colon + text
    name = config.removesuffix(".py").rpartition("/")[2]
    for folder in FOLDERS:
        if (path := folder / f"{name}.py").exists() and config in (name, f"configs/{name}.py"):
            return str(path) + colon + text
    raise FileNotFoundError(
        f"no config {config!r}{did_you_mean(config, names())}: it must be a Python file with "
        f"get_config(), or one of {', '.join(names())}"
    )


def about(config: str) -> str:
    """What a config says of itself, the docstring of its file, which is not run.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: its file is no Python.
    """
    file = Path(find(config).partition(":")[0])
    try:
        return ast.get_docstring(ast.parse(file.read_text())) or f"{file} has no docstring"
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be used as a config: {error}") from error


def split(argv: list[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """The arguments without overrides, and the overrides, in order, as (path, text).

    `--config.a.b=1` is ("a.b", "1"), also with a space in place of the equals sign; the text of a
    path without any is None. `--noconfig.a.b` is ("a.b", "False").
    """
    rest, overrides, arguments = [], [], list(argv)
    while arguments:
        argument = arguments.pop(0)
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if off := re.fullmatch(r"--?noconfig\.([^=]*)", argument):
            overrides.append((off[1], "False"))
            continue
        if argument == "--":
            return [*rest, argument, *arguments], overrides
        if not match:
            rest.append(argument)
            continue
        path, text = match.groups()
        if text is None and arguments and re.match(r"[^-]|-[\d.]|$", arguments[0]):
            text = arguments.pop(0)
        overrides.append((path, text))
    return rest, overrides


def load(
    config: str, overrides: Sequence[tuple[str, str | None]] = ()
) -> ml_collections.ConfigDict:
    """The config of a file or name, with fields replaced.

    Args:
        config: as of `find`.
        overrides: as of `split`. Names are replaced before the options of what they name.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: its file cannot be run; no such field, or a value that the field cannot have.
    """
    from ddim_jax.training import fields  # losses and all, which --help need not wait for

    file, _, text = _on_path(find(config)).partition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = module.get_config(*[text] if text else [])
    except Exception as error:  # whatever the file does
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{file} cannot be used as a config: {type(error).__name__}: {error} (line "
            f"{line.lineno} of {line.filename})"
        ) from error
    for path, text in sorted(overrides, key=lambda one: not one[0].endswith(".name")):
        fields.override(found, path, text)
    return found


def _on_path(file: str) -> str:
    above = str(Path(file.partition(":")[0]).resolve().parent.parent)
    if above not in sys.path:
        sys.path.append(above)
    return file
