"""SIGTERM and Ctrl-C as a request to stop after the current step."""

import signal

import jax
from jax.experimental import multihost_utils


class StopOnSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step.

    Of several processes a SIGTERM to one stops all, after the same step. A second Ctrl-C is left to
    `interrupts`, which ends the process at once.

    Attributes:
        stopped: whether the last run in this process was stopped so; of the class.
    """

    stopped = False

    def __enter__(self):
        """Installs the handlers (in the main thread only); several processes have JAX's own."""
        self._requested = StopOnSignal.stopped = False
        self._old = {}
        if jax.process_count() > 1:
            return self
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: signals are somebody else's
            pass
        return self

    def _handle(self, number, frame):
        self._requested = True

    def wanted(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every one."""
        if jax.process_count() > 1:
            self._requested = multihost_utils.reached_preemption_sync_point(step)
        StopOnSignal.stopped = self._requested
        return self._requested

    def __exit__(self, *exception):
        """Restores the old handlers; a signal while a run ended is one to what comes after it."""
        StopOnSignal.stopped |= self._requested
        for number, handler in self._old.items():
            signal.signal(number, handler)
