"""What every `python -m ddim_jax...` that computes does around its work."""

import sys
from collections.abc import Callable
from pathlib import Path

from ddim_jax import parallel


def run(file: str, work: Callable[[], None]) -> None:
    """Sets up the devices and the cache, and works; bad input ends in one line, without a trace.

    Args:
        file: `__file__` of the command, whose name begins that line.
        work: parses, checks and computes; says what is wrong by ValueError or OSError.
    """
    parallel.use_cpu_cores()
    parallel.use_compilation_cache()
    try:
        work()
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(file).name}: {error}")
