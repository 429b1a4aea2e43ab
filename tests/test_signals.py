"""The request to stop, within one process; tests/test_interrupts.py sends signals to commands."""

import signal
import threading

from ddim_jax.training.signals import StopOnSignal

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def test_everything_is_as_before_afterwards():
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopOnSignal() as stop:
        assert not stop.wanted(1)
        signal.raise_signal(signal.SIGINT)
        assert stop.wanted(2) and StopOnSignal.stopped
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with StopOnSignal() as stop:
        assert not stop.wanted(1) and not StopOnSignal.stopped


def test_a_signal_behind_the_last_step_is_not_lost():
    """Such as while a stage writes its last checkpoint: the next one does not begin."""
    with StopOnSignal() as stop:
        assert not stop.wanted(1)
        signal.raise_signal(signal.SIGTERM)
    assert StopOnSignal.stopped
    with StopOnSignal():
        assert not StopOnSignal.stopped


def test_in_another_thread_signals_are_left_alone():
    def use():
        with StopOnSignal() as stop:
            seen.append((stop.wanted(1), signal.getsignal(signal.SIGINT)))

    seen, thread = [], threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]
