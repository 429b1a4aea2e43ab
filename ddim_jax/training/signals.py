"""SIGTERM and Ctrl-C as a request to stop after the current step."""

import os
import signal

import jax
from jax.experimental import multihost_utils

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

    A second one stops at once, as KeyboardInterrupt. Of several processes a SIGTERM to one stops
    all, after the same step.
    """

    def __enter__(self):
        """Installs the handlers (in the main thread only); several processes have JAX's own."""
        global _asked
        _asked, self._old = None, {}
        if jax.process_count() > 1:
            return self
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: signals are somebody else's
            pass
        return self

    def _handle(self, number, frame):
        global _asked
        if _asked is not None:
            raise KeyboardInterrupt
        _asked = number
        # not print: the signal may have come in the middle of one
        os.write(2, b"stopping after this step, which is saved; a second signal stops at once\n")

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
