"""One run at a time in a workdir: who holds it is said, and who is gone is recognised."""

import json
import multiprocessing
import os
import socket
import threading
import time

import pytest

from ddim_jax.checkpoints import lock


def hold(workdir, ready, go):
    with lock.locked(workdir):
        ready.set()
        go.wait(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path: (process, event that lets it go)."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, go))
    process.start()
    assert ready.wait(120)
    yield process, go
    process.kill()
    process.join()


def test_the_second_run_says_who_holds_the_workdir(tmp_path, holder):
    process, go = holder
    message = rf"in use by process {process.pid} on {socket.gethostname()}, since 20.*--workdir"
    with pytest.raises(ValueError, match=message), lock.locked(tmp_path):
        pass
    assert (tmp_path / "lock").exists()
    process.kill()  # as kill -9 does: nothing is tidied up
    process.join()
    with lock.locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), lock.locked(tmp_path / "deep" / "run"):
        raise RuntimeError
    assert not list((tmp_path / "deep" / "run").iterdir())


def written(tmp_path, **changes):
    with lock.locked(tmp_path):
        holder = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps(holder | changes))


@pytest.mark.parametrize(
    "changes", [{"pid": 2**22 + 1}, {"born": "1"}], ids=["no such process", "another of its number"]
)
def test_a_holder_that_is_gone_is_no_hindrance(tmp_path, changes):
    written(tmp_path, **changes)
    with lock.locked(tmp_path):
        pass
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("pid", ["abc", None, 1.5, -1, 0, 10**30, True])
def test_a_lock_that_names_no_process_is_stale(tmp_path, pid):
    written(tmp_path, pid=pid)
    with lock.locked(tmp_path):
        pass


def test_where_no_lock_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "lock").mkdir(parents=True)
    for name, message in (("file", "file is a file, no folder"), ("run", "lock is a folder")):
        with pytest.raises((ValueError, OSError), match=message), lock.locked(tmp_path / name):
            pass
    assert (tmp_path / "run" / "lock").is_dir()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_half_a_lock_is_stale(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    with lock.locked(tmp_path):
        pass


def test_a_holder_on_another_host_is_watched(tmp_path, monkeypatch, capsys):
    """Its machine is not ours: signs of life decide, and no clock."""
    monkeypatch.setattr(lock, "WATCH", 0.5)
    other = {"host": "other", "machine": "elsewhere", "pid": os.getpid()}
    written(tmp_path, **other)
    with lock.locked(tmp_path):
        pass
    assert "is held by process" in capsys.readouterr().err
    written(tmp_path, **other)
    holder, stop = json.loads((tmp_path / "lock").read_text()), threading.Event()

    def live():
        while not stop.wait(0.05):
            holder["beat"] += 1
            (tmp_path / "lock.part").write_text(json.dumps(holder))
            (tmp_path / "lock.part").replace(tmp_path / "lock")

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(ValueError, match="in use by .* on other"), lock.locked(tmp_path):
            pass
    finally:
        stop.set()
        thread.join()


def test_a_holder_gives_signs_of_life_until_somebody_takes_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.locked(tmp_path):
        deadline = time.monotonic() + 20
        while json.loads((tmp_path / "lock").read_text())["beat"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (tmp_path / "lock").write_text("somebody else's")
    assert (tmp_path / "lock").read_text() == "somebody else's"
