"""Where configs are found: `--config=digits` is `configs/digits.py`, from any folder.

Names are looked for in `configs/` of the current folder, then in the configs that come with the
package. Configs import each other as `configs.NAME`, so the folder above goes on Python's path.
"""

import sys
from pathlib import Path

import ddim_jax

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
        f"no config {config!r}: it must be a Python file with get_config(), or one of "
        f"{', '.join(names())}"
    )


def resolve(argv: list[str], default: str) -> list[str]:
    """The arguments with `--config=NAME` as a path, which is added if it is not there.

    Raises:
        FileNotFoundError: there is no such config.
    """
    rest = list(argv)
    for i, argument in enumerate(rest):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config":
            if not equals:  # --config NAME
                value = rest.pop(i + 1) if i + 1 < len(rest) else ""
            rest[i] = f"--config={_on_path(find(value))}"
            return rest
    return [*rest[:1], f"--config={_on_path(find(default))}", *rest[1:]]


def _on_path(file: str) -> str:
    above = str(Path(file.partition(":")[0]).resolve().parent.parent)
    if above not in sys.path:
        sys.path.append(above)
    return file
