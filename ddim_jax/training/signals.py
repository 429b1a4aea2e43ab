"""SIGTERM and Ctrl-C as a request to stop after the current step.

Python runs signal handlers in the main thread, between two of its own instructions: not while XLA
compiles, which may take minutes. So a thread reads the signals too, from the pipe that C code
writes them to, and answers at once.
"""

import os
import signal
import socket
import threading

import jax
from jax.experimental import multihost_utils

NUMBERS = (signal.SIGTERM, signal.SIGINT)
_asked: int | None = None


def asked() -> int | None:
    """The signal that asked the last run to stop, if one did; of several processes SIGTERM."""
    return _asked


def forget() -> None:
    """Forgets the signal, as of a run that has come to its end all the same."""
    global _asked
    _asked = None


class StopOnSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step.

    A second one ends the process at once, as `kill -9` would, which checkpoints survive. Of several
    processes a SIGTERM to one stops all, after the same step.
    """

    def __enter__(self):
        """Installs the handlers (in the main thread only); several processes have JAX's own."""
        forget()
        self._old, self._thread = {}, None
        in_main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() > 1 or not in_main_thread:  # signals are somebody else's
            return self
        self._ours, theirs = self._pipe = socket.socketpair()
        theirs.setblocking(False)
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in NUMBERS:
            self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number, frame):
        global _asked
        _asked = _asked or number

    def _answer(self) -> None:
        """Says that a signal has come; ends the process at the second."""
        count = 0
        while received := self._ours.recv(1):
            number = received[0]
            if number not in NUMBERS:
                continue
            count += 1
            if count == 2:
                os.write(2, b"stopped at once; the same command goes on from what is saved\n")
                os._exit(128 + number)
            os.write(2, b"stopping after this step, which is saved; again to stop at once\n")

    def wanted(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every one."""
        global _asked
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            _asked = signal.SIGTERM
        return _asked is not None

    def __exit__(self, *exception):
        """Restores the old handlers."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._thread is not None:
            signal.set_wakeup_fd(self._wakeup)
            self._pipe[1].close()  # ends the thread
            self._thread.join()
            self._ours.close()
