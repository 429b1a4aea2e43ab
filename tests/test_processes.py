"""Training in two processes on loopback, real ones: against one process, through a stop, a resume.

Each process has two host devices; collectives go over gloo, as those of a pod go over its links.
"""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import ddim_jax
from configs import digits
from ddim_jax import experiment
from ddim_jax.checkpoints import weights_file
from ddim_jax.commands import configs
from ddim_jax.training import loop
from tests.latent_networks import random
from tests.processes import ROOT, finish, start
from tests.tiny import tiny

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


def launch(folder, name, count=1, *flags, devices=4):
    """Processes of one run of train.py."""
    config = folder / "config.py"
    config.write_text(CONFIG)
    command = ("train.py", f"--config={config}", f"--workdir={folder / name}", *flags)
    return start(count, *command, devices=devices)


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def wait_for_steps(processes, workdir, count):
    path, deadline = workdir / "metrics.jsonl", time.time() + 240
    while not (path.exists() and path.read_text().count("\n") >= count):
        ended = [process.communicate()[0] for process in processes if process.poll() is not None]
        assert not ended and time.time() < deadline, ended
        time.sleep(0.02)


def check_alike(run, single):
    """Losses of every step."""
    found, expected = (metrics(workdir) for workdir in (run, single))
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.slow
def test_processes_train_like_one_and_stop_together(tmp_path):
    """SIGTERM to the second of two: both save one step; one process goes on, here."""
    processes = launch(tmp_path, "run", 2)
    wait_for_steps(processes, tmp_path / "run", 2)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, status=143)
    (saved,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert 2 <= saved < 25
    config = configs.load(str(tmp_path / "config.py"))
    for name in ("run", "single"):
        loop.train(config, tmp_path / name)
    assert (tmp_path / "run" / "samples" / f"step_{STEPS:07d}.png").exists()
    check_alike(tmp_path / "run", tmp_path / "single")


@pytest.mark.slow
def test_a_run_goes_on_in_any_number_of_processes(tmp_path):
    """Two split the parameters; one ends it."""
    finish(launch(tmp_path, "single"))
    finish(launch(tmp_path, "run", 2, "--config.train.steps=9"))
    finish(launch(tmp_path, "run", 2, "--config.parallel=fsdp", "--config.train.steps=25"))
    (output,) = finish(launch(tmp_path, "run", 1))
    assert "resuming at step 25" in output
    check_alike(tmp_path / "run", tmp_path / "single")


@pytest.mark.slow
def test_factors_are_trained_in_any_number_of_processes(tmp_path):
    """Of a frozen base, which two processes hold whole, then split, and one at the end."""
    made = experiment.build(tiny(digits.get_config(), levels=1))
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: random(str(leaf.shape), *leaf.shape) / 10, shapes)
    base = tmp_path / "base.safetensors"
    weights_file.save(base, made.replace(params=params))
    lora = (f"--config.start_from={base}", "--config.train.lora.rank=2")
    flags = ("--config.model.channels=8", "--config.model.num_classes=10", *lora)
    finish(launch(tmp_path, "single", 1, *flags))
    finish(launch(tmp_path, "run", 2, *flags, "--config.train.steps=9"))
    further = ("--config.parallel=fsdp", "--config.train.steps=25")
    outputs = finish(launch(tmp_path, "run", 2, *flags, *further))
    assert any("resuming at step 9" in output for output in outputs)
    (output,) = finish(launch(tmp_path, "run", 1, *flags))
    assert "resuming at step 25" in output and "numbers in factors of rank 2" in output
    check_alike(tmp_path / "run", tmp_path / "single")
    run, single = (ddim_jax.load(tmp_path / name).params for name in ("run", "single"))
    for one, other in zip(jax.tree.leaves(run), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    moved = [
        np.abs(one - other).max()
        for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(params), strict=True)
    ]
    assert max(moved) > 1e-3 and np.count_nonzero(moved) == 2  # of the attention


@pytest.mark.slow
def test_eight_devices_train_and_draw_like_one(tmp_path):
    """Under jit, with parameters split, and under pmap."""
    flags = ("--config.train.steps=4", "--config.train.sample_every=4")
    finish(launch(tmp_path, "single", 1, *flags, devices=1))
    eight = {mode: (*flags, f"--config.parallel={mode}") for mode in ("jit", "fsdp", "pmap")}
    for mode in eight:
        finish(launch(tmp_path, mode, 1, *eight[mode], devices=8))
    runs = {name: tmp_path / name for name in ("single", *eight)}
    losses = {name: list(metrics(workdir).values()) for name, workdir in runs.items()}
    pictures = {
        name: np.asarray(Image.open(workdir / "samples" / "step_0000004.png"), np.int32)
        for name, workdir in runs.items()
    }
    for mode in eight:
        assert len(losses[mode]) == 4
        np.testing.assert_allclose(losses[mode], losses["single"], rtol=1e-5)
        assert np.abs(pictures[mode] - pictures["single"]).max() <= 1


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
