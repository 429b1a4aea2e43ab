"""What every command does around its work; `python -m ddim_jax` lists the commands."""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from ddim_jax import names, parallel


class _Notes(logging.Handler):
    """Writes the package's notes to stderr, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage(), file=sys.stderr)


def show_notes() -> None:
    """Shows what the package says of its work, such as that it compiles, on stderr."""
    logger = logging.getLogger("ddim_jax")
    logger.handlers[:], logger.propagate = [_Notes()], False
    logger.setLevel(logging.INFO)


class Parser(argparse.ArgumentParser):
    """Of a command's flags, as which `run` writes arguments in messages; 2.0 is a whole number."""

    flags: tuple[str, ...] = ()

    def __init__(self, *args, **options):
        """As of argparse."""
        super().__init__(*args, **options)
        self.register("type", int, names.whole_number)

    def parse_args(self, *args, **options) -> argparse.Namespace:
        """As of argparse."""
        parsed = super().parse_args(*args, **options)
        Parser.flags = tuple(vars(parsed))
        return parsed


def with_flags(message: str, flags: Iterable[str]) -> str:
    """A message of the package with its arguments written as the flags of a command.

    `guidance_scale must be`, `steps=3` and `overwrite=True` become `--guidance_scale must be`,
    `--steps=3` and `--overwrite`; words that are also names of flags are left as they are. It is
    one line, whatever the names of files hold.
    """
    message = "\\n".join(message.splitlines())
    for flag in flags:
        follows = r"(?=\b)" if "_" in flag else r"(?=(?: must|=)\b)"
        message = re.sub(rf"(?<![\w./:-]){re.escape(flag)}{follows}(?!=')", f"--{flag}", message)
    return re.sub(r"(--\w+)=True\b", r"\1", message)


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
        sys.exit(f"{Path(name).name}: {with_flags(str(error), Parser.flags)}")
