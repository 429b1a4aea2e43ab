"""Files that appear whole or not at all, and checks of the paths that people give."""

import contextlib
import difflib
import errno
import itertools
import json
import os
import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ddim_jax import interrupts
from ddim_jax.names import few


@contextlib.contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """Another name for a file to be written under, which is renamed when it is complete.

    Args:
        path: of the file; one that exists is replaced. Its folder must exist.

    Yields:
        The other name, which no other process has; what is there is removed where writing fails.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    interrupts.unfinished.add(part)
    try:
        yield part
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    else:
        part.replace(path)
    finally:
        interrupts.unfinished.discard(part)


def replace(path: Path, write: Callable[[BinaryIO], Any], durable: bool = True) -> None:
    """Writes a file under another name first, and renames it when it is complete.

    Args:
        path: of the file; one that exists is replaced. Its folder must exist.
        write: `write(file)` writes the content.
        durable: wait until it is on the disk, so that it outlives a crash of the machine.

    Raises:
        OSError: it cannot be written; the message names the path.
    """
    with part_of(path) as part, naming(path), open(part, "wb") as file:
        write(file)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def save(path: Path, write: Callable[[BinaryIO], Any], new: bool = False) -> None:
    """`replace` for what took long to make: where it cannot be written it is kept elsewhere.

    Args:
        path: of the file; its folder is made where needed.
        write: as of `replace`.
        new: replaces no file that is there.

    Raises:
        OSError: it could not be written; the message names the file for temporaries that it is in.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if new and path.exists():
            raise FileExistsError(errno.EEXIST, "it exists", str(path))
        replace(path, write, durable=False)
    except OSError as error:
        spare = next_free(Path(tempfile.gettempdir()), path.stem, path.suffix)
        try:
            replace(spare, write, durable=False)
        except OSError:
            raise error from None
        reason = error.strerror or error
        message = f"{path} could not be written ({reason}); it is kept as {spare}"
        raise type(error)(message) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: it is filled under another, new name first.

    Args:
        path: must not exist. The folder that holds it is made where needed.

    Yields:
        The folder to be filled, which is removed where that fails.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        part = path.with_name(f"{path.name}.{os.getpid()}-{number}.part")
        with contextlib.suppress(FileExistsError):
            part.mkdir()  # one that is there is not ours
            break
    interrupts.unfinished.add(part)
    try:
        yield part
        part.replace(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        interrupts.unfinished.discard(part)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path to an OSError raised inside that names no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What reading a damaged npz raises beside ValueError, KeyError and OSError: cut short, changed
inside, or with flags that stand for methods and passwords that it does not have."""
ODD = (AttributeError, LookupError, TypeError, ArithmeticError, *DAMAGED)
"""What code raises where a file holds something else than it expects."""


@contextlib.contextmanager
def interpreting(what: str | os.PathLike) -> Iterator[None]:
    """Says of what was read that it is damaged, where its parts are not what they should be.

    Args:
        what: the path of the file, or what else it is, for the message.

    Raises:
        ValueError: a part is missing, or of another kind.
    """
    try:
        yield
    except ODD as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what} is damaged, or holds something else ({why})") from error


LATER = ("autoencoder", "text_encoders", "split", "content", "dtype")
"""Settings that folders of earlier versions do not hold."""


def check_origin(
    path: Path, origin: dict[str, Any], what: str, recipe: dict[str, Any] | None = None
) -> None:
    """Checks that a folder can take results: it is empty, or holds some of the same settings.

    Args:
        path: of the JSON file in that folder that holds the settings; if it does not exist, the
            folder must be empty or new.
        origin: the settings now; entries that only the file has do not matter, nor do those of
            `LATER` that it lacks.
        what: what the results are, such as "samples", for the message.
        recipe: what the setting "table" was made of, by which the message says what differs.

    Raises:
        ValueError: the settings differ, or the file is damaged.
        OSError: the folder cannot be written into, or holds other files.
    """
    check_folder(path.parent)
    if not path.exists():
        _check_empty(path, what)
        return
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise ValueError("no names and values")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}), so nothing tells how the {what} beside it were drawn; "
            "move the folder away to draw them again"
        ) from None
    origin = json.loads(json.dumps(origin))
    asked = [key for key in sorted(origin) if key in stored or key not in LATER]
    different = [key for key in asked if stored.get(key) != origin[key]]
    if different:
        told = different
        if "recipe" in stored and "table" in different:  # which of it makes another table
            recipes = stored["recipe"], json.loads(json.dumps(recipe or {}))
            told = [key for key in different if key != "table"]
            told += [key for key in recipes[1] if recipes[0].get(key) != recipes[1][key]]
            told = told or different
        raise ValueError(
            f"{path.parent} holds {what} that were drawn with another {' and '.join(told)}; "
            "choose another folder, or move that one away"
        )


def _check_empty(path: Path, what: str) -> None:
    """Raises FileExistsError if a folder in which this file is to be the first holds others."""
    there = [p.name for p in path.parent.iterdir()] if path.parent.exists() else []
    # another process may be writing the file just now
    if foreign := sorted(name for name in there if not name.startswith((".", path.name))):
        raise FileExistsError(
            f"{path.parent} holds other files ({few(foreign)}) and no {path.name}, so it is no "
            f"folder of {what}; choose an empty or a new one"
        )


def check_folder(folder: str | os.PathLike, what: str = "") -> None:
    """Checks, best before the work is done, that files can be written into a folder, there or not.

    Args:
        folder: which may be made later.
        what: what is to be written, for the message; default the folder.

    Raises:
        OSError: it, or what is to hold it, is a file, is read-only, or is on a full disk.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    name = what or str(folder)
    if not there.is_dir():
        raise NotADirectoryError(f"{name} cannot be written: {there} is a file, no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{name} cannot be written: {there.absolute()} is read-only")
    disk = shutil.disk_usage(there)
    if disk.total and disk.free < 2**16:
        raise OSError(f"{name} cannot be written: no space is left on the disk")


def check_apart(**paths: str | os.PathLike | None) -> None:
    """Raises ValueError if two flags (out=..., save=...) name one file; None is no file."""
    seen: dict[Path, str] = {}
    for flag, path in paths.items():
        if path is None:
            continue
        other = seen.setdefault(Path(path).resolve(), flag)
        if other != flag:
            raise ValueError(f"--{other} and --{flag} are one file, {path}; give each its own")


def check_new(
    path: str | os.PathLike,
    *,
    what: str = "",
    suffixes: tuple[str, ...] = (),
    overwrite: bool | None = False,
) -> Path:
    """Checks that a result may be written to a path, best before the work is done.

    Args:
        path: of the file to write.
        what: what the path was given as, such as "--out", for messages. Where it is a flag, the
            way out is `--overwrite`, else `overwrite=True`.
        suffixes: the endings it may have, such as (".png", ".npz"); none for any.
        overwrite: whether an existing file is replaced; None where that cannot be asked for.

    Returns:
        The path.

    Raises:
        FileExistsError: the file exists, and is not to be overwritten.
        OSError: it cannot be written; see `check_folder`.
        ValueError: another ending.
    """
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{what or 'the file'} must end in {' or '.join(suffixes)}, got {path}")
    if not overwrite and path.exists():
        pass_it = "pass --overwrite" if "--" in what else "pass overwrite=True"
        way_out = "remove it" if overwrite is None else pass_it
        raise FileExistsError(f"{what} {path} exists; choose another name, or {way_out}".lstrip())
    if overwrite and path.is_dir():
        raise IsADirectoryError(f"{what} {path} is a folder; choose another name".lstrip())
    check_folder(path.parent, f"{what} {path}".lstrip())
    return path


def next_free(folder: Path, name: str, suffix: str = ".png") -> Path:
    """Returns `folder/name-0001.png`, or the first number that is not taken."""
    number = 1
    while (path := folder / f"{name}-{number:04d}{suffix}").exists():
        number += 1
    return path


def missing_part(path: Path) -> str:
    """Says in brackets where a path that was not found stops existing, to help with a typing error.

    Returns:
        " (FOLDER has no 'NAME', close matches: ...)", or " (it is a folder)"; "" if nothing helps.
    """
    if path.exists():
        return f" (it is a {'folder' if path.is_dir() else 'file'})"
    parent = next((p for p in path.parents if p.exists()), None)
    if parent is None or not parent.is_dir():
        return ""
    missing = path.relative_to(parent).parts[0]
    close = difflib.get_close_matches(missing, [p.name for p in parent.iterdir()], n=3)
    hint = f", close matches: {', '.join(close)}" if close else ""
    return f" ({parent.resolve()} has no {missing!r}{hint})"


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without the mark that some editors begin such files with.

    Raises:
        ValueError: it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error}); save it in that encoding"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The names and values that a JSON file holds.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    try:
        content = json.loads(text := read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or write it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold names and values, got {text[:40]!r}; fetch it again")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, indented."""
    replace(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))
