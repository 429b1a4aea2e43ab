"""Files that appear whole or not at all, so that a run may be stopped at any moment."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under another name first, and puts it in its place when it is complete."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def check_new(path: str | Path, suffixes: tuple[str, ...], flag: str, overwrite: bool) -> Path:
    """The path, if a result may be written there.

    Raises:
        ValueError: another suffix, or a file that exists, unless `overwrite`.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"{flag} must end in {' or '.join(suffixes)}, got {path}")
    if path.exists() and not overwrite:
        raise ValueError(f"{flag} {path} exists; choose another name, or pass --overwrite")
    return path


def next_free(folder: Path, name: str, suffix: str = ".png") -> Path:
    """`folder/name-0001.png`, or the first number that is not taken."""
    number = 1
    while (path := folder / f"{name}-{number:04d}{suffix}").exists():
        number += 1
    return path


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, indented."""
    replace(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))
