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


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, indented."""
    replace(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))
