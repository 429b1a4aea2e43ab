"""What every command does around its work; `python -m ddim_jax` lists the commands."""

import sys
from collections.abc import Callable
from pathlib import Path

from ddim_jax import parallel


def run(name: str, work: Callable[[], None]) -> None:
    """Sets up the devices and the cache, and works; bad input ends in one line, without a trace.

    Args:
        name: of the command, or its `__file__`; the error's line begins with it.
        work: parses, checks and computes; raises ValueError or OSError for bad input.
    """
    parallel.use_cpu_cores()
    parallel.use_compilation_cache()
    try:
        work()
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(name).name}: {error}")
