"""The lock of a workdir: one run at a time, whose host, process and start the file `lock` names.

The holder rewrites the file every few seconds. A lock is stale, and taken over, if its process is
gone: on the same host the system knows, of another host, on a disk that both share, it is watched
for a while. No clocks are compared, so those of hosts may differ. Of a run of several processes the
first holds the lock for all.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddim_jax import files

FILE = "lock"
BEAT = 10.0
"""Seconds between two signs of life."""
WATCH = 60.0
"""Seconds without one after which a holder on another host is thought dead."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the lock of a workdir, which is made if need be.

    Raises:
        ValueError: another run holds it; the message says which.
    """
    problem, release = "", threading.Event()
    if jax.process_index() == 0:
        try:
            mine = _take(workdir / FILE)
        except (ValueError, OSError) as error:  # the others wait for an answer
            problem = str(error)
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(bool(problem))):
        problem = problem or f"another run works in {workdir}; the first process says which"
    if problem:
        raise ValueError(problem)
    if jax.process_index() != 0:
        yield
        return
    thread = threading.Thread(target=_beat, args=(workdir / FILE, mine, release), daemon=True)
    thread.start()
    try:
        yield
    finally:
        release.set()
        thread.join()
        if _same(_read(workdir / FILE), mine):
            (workdir / FILE).unlink(missing_ok=True)


def _take(path: Path) -> dict[str, Any]:
    """Creates the lock, taking over a stale one; returns what it says."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}
    mine |= {
        "born": _born(os.getpid()),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "beat": 0,
    }
    files.check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, where the lock of a run goes; move it away")
    while True:
        try:
            with open(path, "x") as file:
                json.dump(mine, file)
            return mine
        except FileExistsError:
            stale = _stale(path)
            aside = path.with_name(f"{FILE}.{os.getpid()}.stale")  # of two only one can rename it
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, aside)
                if _read(aside) != stale:  # the other one has taken it over meanwhile
                    with contextlib.suppress(FileExistsError):
                        os.link(aside, path)
                aside.unlink()


def _stale(path: Path) -> dict[str, Any] | None:
    """What a lock says whose holder is gone.

    Raises:
        ValueError: it is alive.
    """
    holder = _read(path)
    if holder is None:  # written this moment, or by a process killed in that moment
        time.sleep(1)
        holder = _read(path)
    if holder is None:
        return None
    who = "process {pid} on {host}, since {started}".format(**holder)
    if (holder["machine"] or holder["host"]) == (_machine() or socket.gethostname()):
        gone = not _alive(holder)
    else:
        text = f"{path.parent} is held by {who}; watching for {WATCH:.0f} s whether that still runs"
        print(text, file=sys.stderr, flush=True)
        gone = _silent(path, holder)
    if gone:
        return holder
    raise ValueError(
        f"{path.parent} is in use by {who}; stop that run, or choose another --workdir (if there "
        f"is no such run, remove {path})"
    )


def _silent(path: Path, holder: dict[str, Any]) -> bool:
    """Whether a lock stays as it is for a while, or goes away."""
    deadline = time.monotonic() + WATCH
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH / 10))
        if (now := _read(path)) != holder:
            return now is None
    return True


def _beat(path: Path, mine: dict[str, Any], release: threading.Event) -> None:
    """Signs of life until the release; a disk that fails now and then does not matter."""
    while not release.wait(BEAT):
        with contextlib.suppress(OSError):
            if (now := _read(path)) is None:
                continue  # aside for a moment, of one who found it stale
            if not _same(now, mine):
                return  # somebody thought us dead
            mine["beat"] += 1
            part = path.with_name(f"{FILE}.{os.getpid()}.part")
            part.write_text(json.dumps(mine))
            part.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock says; None if there is none, or only half of one."""
    try:
        holder = json.loads(path.read_text())
        known = {"host", "pid", "machine", "born", "started"} <= set(holder)
        return (
            holder if known and type(holder["pid"]) is int and 0 < holder["pid"] < 2**31 else None
        )
    except (OSError, ValueError, TypeError):
        return None


def _same(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    return one is not None and one | {"beat": 0} == other | {"beat": 0}


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the holder, a process of this machine, still runs; not another with its number."""
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return holder["born"] == _born(holder["pid"])


def _machine() -> str:
    """Where process numbers mean the same, a boot and a container; "" if not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began, which tells it from a later one of its number; "" if not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
