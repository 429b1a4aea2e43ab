"""Training in two processes on loopback, real ones: against one process, through a stop, a resume.

Each process has two host devices; collectives go over gloo, as those of a pod go over its links.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from tests.processes import ROOT, finish, start

STEPS = 30
CONFIG = f"""
from configs import digits
from tests.tiny import tiny

def get_config():
    config = tiny(digits.get_config(), levels=1)
    config.model.channels = 16  # large enough for its parameters to be split
    config.train.update(steps={STEPS}, batch_size=8, checkpoint_every=100, sample_every=100)
    return config
"""


def launch(folder, name, count=1, *flags):
    """Processes of one run of train.py."""
    config = folder / "config.py"
    config.write_text(CONFIG)
    return start(count, "train.py", f"--config={config}", f"--workdir={folder / name}", *flags)


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def wait_for_steps(processes, workdir, count):
    path, deadline = workdir / "metrics.jsonl", time.time() + 240
    while not (path.exists() and path.read_text().count("\n") >= count):
        ended = [process.communicate()[0] for process in processes if process.poll() is not None]
        assert not ended and time.time() < deadline, ended
        time.sleep(0.02)


def test_processes_train_like_one_stop_together_and_go_on_in_any_number(tmp_path):
    """SIGTERM to the second of two: both save one step; two split the parameters; one ends it."""
    finish(launch(tmp_path, "single"))
    processes = launch(tmp_path, "run", 2)
    wait_for_steps(processes, tmp_path / "run", 2)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes)
    (saved,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert 2 <= saved < 25
    finish(launch(tmp_path, "run", 2, "--config.parallel=fsdp", "--config.train.steps=25"))
    (output,) = finish(launch(tmp_path, "run", 1))
    assert "resuming at step 25" in output
    assert (tmp_path / "run" / "samples" / f"step_{STEPS:07d}.png").exists()
    found, expected = (metrics(tmp_path / name) for name in ("run", "single"))
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_a_process_that_is_alone_says_what_it_lacks(tmp_path):
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}
    environment.pop("XLA_FLAGS", None)
    result = subprocess.run(
        [sys.executable, "train.py", f"--workdir={tmp_path}"],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    expected = "train.py: a process of several needs JAX_NUM_PROCESSES, JAX_PROCESS_ID too; set all"
    assert result.stderr.splitlines()[-1].startswith(expected)
