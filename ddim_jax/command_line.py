"""What every command does around its work; `python -m ddim_jax` lists the commands."""

import argparse
import errno
import logging
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from ddim_jax import files, interrupts, names, parallel


class _Notes(logging.Handler):
    """Writes the package's notes to stderr, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage(), file=sys.stderr)


def show_notes() -> None:
    """Shows what the package says of its work, such as that it compiles, on stderr."""
    logger = logging.getLogger("ddim_jax")
    logger.handlers[:], logger.propagate = [_Notes()], False
    logger.setLevel(logging.INFO)
    warnings.showwarning = _show_warning


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning of the package in one line, without where in the code; others as they were."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        tqdm.write(f"warning: {message}", file=sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _whole_number(text: str) -> int:
    """Of a flag, for a message that names no function."""
    try:
        return names.whole_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _number(text: str) -> float:
    """Of a flag, for a message that names no function."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def at_home(value: Any) -> Any:
    """A flag's value with the home folder for ~/, which shells leave in --out=~/x; lists too."""
    if isinstance(value, list):
        return [at_home(one) for one in value]
    if isinstance(value, str | Path) and str(value).startswith("~/"):
        return type(value)(Path(value).expanduser())
    return value


class Parser(argparse.ArgumentParser):
    """Of a command's flags, as which `run` writes arguments in messages; 2.0 is a whole number.

    A file ~/x is one of the home folder.
    """

    flags: tuple[str, ...] = ()

    def __init__(self, **options):
        """As of argparse, without short forms; of a package it is called as the package is."""
        own = {"prog": interrupts.program(), "allow_abbrev": False}
        super().__init__(**own | options)
        self.register("type", int, _whole_number)
        self.register("type", float, _number)

    def parse_args(self, *args, **options) -> argparse.Namespace:
        """As of argparse."""
        parsed = super().parse_args(*args, **options)
        for name, value in vars(parsed).items():
            setattr(parsed, name, at_home(value))
        positional = {action.dest for action in self._actions if not action.option_strings}
        Parser.flags = tuple(name for name in vars(parsed) if name not in positional)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Ends in one line, as `run` does, without the usage before it."""
        unknown, _, given = message.partition("unrecognized arguments: ")
        if given and not unknown:
            flag = given.split()[0]
            known = [one[2:] for action in self._actions for one in action.option_strings]
            near = names.did_you_mean(flag.lstrip("-").partition("=")[0], known)
            message = f"there is no {flag}{near}"
        message = re.sub(r"^argument (?=\S+: )", "", message)
        choice = r"^(\S+): invalid choice: (.+) \(choose from (.+)\)$"
        message = re.sub(choice, r"\1 must be one of \3, got \2", message)
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists the flags\n")


USUAL_BATCH, BATCH_OF_LATENTS = 64, 4
"""Samples at a time by default; fewer where they are decoded to large pictures."""


def prompts(given: Iterable[str]) -> list[str]:
    """The texts of a flag that may be given again: a text each, or of @FILE one in each line.

    Raises:
        ValueError: a file that is not there, or without text.
    """
    texts = []
    for one in given:
        if not one.startswith("@"):
            texts.append(one)
            continue
        file = Path(one[1:]).expanduser()
        if not file.is_file():
            where = files.missing_part(file)
            raise ValueError(f"--prompt={one}: there is no file {one[1:]!r} of prompts{where}")
        lines = files.read_text(file).split("\n")
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"--prompt={one} has no text; write one in each line")
        texts += found
    return texts


def negative_prompt(given: str | None) -> str | None:
    """The text of a flag that takes one for all; None as it is.

    Raises:
        ValueError: @FILE, which only prompts are read from.
    """
    if (given or "").startswith("@"):
        raise ValueError(f"--negative_prompt is one text for all, no file: write it, got {given!r}")
    return given


def size(given: str | None) -> tuple[int, int] | None:
    """(height, width) of a flag like 512x768; None as it is.

    Raises:
        ValueError: something else.
    """
    if given is None:
        return None
    parts = given.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--size must be HEIGHTxWIDTH like 512x768, got {given!r}")
    return int(parts[0]), int(parts[1])


def batch_size(given: int | None, model: Any) -> int:
    """How many samples of a model at a time: what is given, or what is usual."""
    if given is not None:
        return given
    return BATCH_OF_LATENTS if model.draws_latents else USUAL_BATCH


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet: a taken one is said at once.

    Raises:
        ValueError: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        place = socket.socket(family, socket.SOCK_STREAM)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except OSError as error:
        unknown = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        other = "host" if unknown else "port"
        raise ValueError(
            f"--host={host} --port={port} cannot be had ({error.strerror}); take another --{other}"
        ) from None
    return place


def address(host: str, port: int) -> str:
    """Of a page, for a browser; addresses of IPv6 stand in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


def called(name: str) -> str:
    """What messages call this command: "ddim-jax train" if it was called so, else its own name."""
    own = Path(sys.argv[0]).name
    return own if own.startswith("ddim-jax ") else name


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
        sys.exit(f"{called(Path(name).name)}: {with_flags(str(error), Parser.flags)}")
