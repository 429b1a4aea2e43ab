"""Files that appear whole or not at all, so that a run may be stopped at any moment."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


def replace(path: Path, write: Callable[[BinaryIO], Any], durable: bool = True) -> None:
    """Writes a file under another name first, and puts it in its place when it is complete.

    Args:
        path: the file.
        write: what is to be in it.
        durable: wait until it is on the disk, so that it outlives a crash of the machine.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path), open(part, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path to an OSError that does not name any, as that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def check_origin(path: Path, origin: dict[str, Any], what: str) -> None:
    """Makes sure that what lies beside a JSON file was made as it would be now.

    Args:
        path: the file, which need not be there yet.
        origin: what would be written to it; other entries of the file do not matter.
        what: lies there, for the message.

    Raises:
        ValueError: something else was written to it, or it is damaged.
    """
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error}), so it cannot be said what the {what} beside it are; "
            "move the folder away to draw them again"
        ) from None
    origin = json.loads(json.dumps(origin))
    different = [key for key in sorted(origin) if found.get(key) != origin[key]]
    if different:
        raise ValueError(
            f"{path.parent} holds {what} that were drawn with another {' and '.join(different)}; "
            "choose another folder, or move that one away"
        )


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
