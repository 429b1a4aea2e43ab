"""What every command does around its work; `python -m ddim_jax` lists the commands."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from ddim_jax import parallel


class _Notes(logging.Handler):
    """Writes the package's notes to stderr, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage(), file=sys.stderr)


def show_notes() -> None:
    """Shows what the package says of its work, such as that it compiles, on stderr."""
    logger = logging.getLogger("ddim_jax")
    logger.handlers[:], logger.propagate = [_Notes()], False
    logger.setLevel(logging.INFO)


def run(name: str, work: Callable[[], None]) -> None:
    """Sets up the devices and the cache, and works; bad input ends in one line, without a trace.

    Args:
        name: of the command, or its `__file__`; the error's line begins with it.
        work: parses, checks and computes; raises ValueError or OSError for bad input.
    """
    parallel.use_cpu_cores()
    parallel.use_compilation_cache()
    show_notes()
    try:
        work()
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(name).name}: {error}")
