"""Ctrl-C and SIGTERM in the commands: one line, what is kept, exit status 130 or 143.

    begin()                     at the very start of a command, before the imports that take seconds
    keeping("the samples ...")  from here on something is kept, and the line will say it

A thread reads the signals from a pipe and ends the process, so that it ends at once whatever the
main thread does: importing, compiling (which no exception can reach), or drawing. Files appear
whole or not at all (`files.replace`); those that are half written are removed.

Training saves first: while `training.signals` handles the signals the thread leaves them to it, but
for a second Ctrl-C. Where nothing has begun, as in a notebook, Ctrl-C is Python's own.
"""

import os  # and no more than these: until they are imported Ctrl-C ends in a traceback
import signal
import sys
import threading
import time

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
PATIENCE = 0.5
"""Seconds within which a second Ctrl-C is taken for the first, which some shells send twice."""

unfinished: set = set()
"""Paths of files and folders that are half written, to be removed."""

_kept = "nothing was written"
_received: int | None = None


def begin() -> None:
    """Handles the signals from here on; in the main thread of a command only, and once."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or _ours(signal.SIGTERM) or sys.platform == "win32":
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in NAMES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in a script's background
            signal.signal(number, _leave_it_to_the_thread)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def begin_command() -> None:
    """`begin`, if this process is `python -m ddim_jax...`."""
    pairs = zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    if any(a == "-m" and b.partition(".")[0] == "ddim_jax" for a, b in pairs):
        begin()


def keeping(what: str) -> None:
    """Sets what the line says of the work so far, such as "its samples are kept"."""
    global _kept
    _kept = what


def status() -> int:
    """The exit status of a command that a signal has stopped; of one from elsewhere SIGTERM's."""
    return 128 + (_received or signal.SIGTERM)


def program() -> str:
    """What messages call this process: "train.py", "ddim-jax train", of a package "export"."""
    path = sys.argv[0] if sys.argv and sys.argv[0] != "-m" else "ddim_jax"
    folder, name = os.path.split(path)
    return os.path.basename(folder) if name == "__main__.py" else name


def _leave_it_to_the_thread(number, frame):
    """A handler of Python's, without which nothing is written to the pipe."""


def _ours(number: int) -> bool:
    return signal.getsignal(number) is _leave_it_to_the_thread


def _watch(reader: int) -> None:
    """Reads signals, one byte each, until one ends the process."""
    global _received
    since = None
    while True:
        number = os.read(reader, 1)[0]
        if number not in NAMES:
            continue
        again = number == signal.SIGINT and since is not None and time.monotonic() > since
        first, since = since is None, since or time.monotonic() + PATIENCE
        _received = _received or number
        if _ours(number) or again:
            _leave(number)
        if first:  # training, which may be compiling just now
            os.write(2, b"stopping after this step, which is saved; Ctrl-C again stops at once\n")


def _remove_folder(path) -> None:
    for folder, _, names in os.walk(path, topdown=False):
        try:
            for name in names:
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)
        except OSError:
            continue


def _leave(number: int) -> None:
    """Says in one line what is kept, and ends the process."""
    for part in list(unfinished):
        try:
            os.unlink(part)
        except OSError:  # not begun, complete, or a folder
            _remove_folder(part)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        pass  # nobody reads it any more
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    line = f"{program()}: stopped by {NAMES[number]}; {_kept}\n"
    os.write(2, ("\n" * (len(bars) > 0) + line).encode())  # a bar ends without a new line
    os._exit(128 + number)
