"""Signals while a run trains, in processes of their own; no network."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ddim_jax.training import signals

ROOT = Path(__file__).parent.parent
CHILD = """
import hashlib, sys
from ddim_jax.training.signals import StopOnSignal, asked
with StopOnSignal() as stop:
    print("ready", flush=True)
    for step in range(1000):  # in C, as XLA compiles: no Python in between
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))
        if stop.wanted(step):
            break
print("left", step, asked(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_after_the_step_and_two_at_once(number):
    once, twice = (
        subprocess.Popen(
            [sys.executable, "-c", CHILD, rounds], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rounds in ("100000", "1000000000")
    )  # fmt: skip
    for process in (once, twice):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stderr.readline().startswith("stopping after this step, which is saved")
    twice.send_signal(number)
    out, _ = once.communicate(timeout=60)
    assert out.startswith("left") and out.endswith(f"{int(number)}\n") and once.returncode == 0
    _, err = twice.communicate(timeout=60)
    assert "stopped at once" in err and twice.returncode == 128 + number


def test_everything_is_as_before_afterwards():
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    threads = threading.active_count()
    with signals.StopOnSignal() as stop:
        assert not stop.wanted(1)
        signal.raise_signal(signal.SIGINT)
        assert stop.wanted(2) and signals.asked() == signal.SIGINT
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before
    assert threading.active_count() == threads
    signals.forget()
    assert signals.asked() is None


def test_in_another_thread_signals_are_left_alone():
    def use():
        with signals.StopOnSignal() as stop:
            seen.append((stop.wanted(1), signal.getsignal(signal.SIGINT)))

    seen, thread = [], threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]
