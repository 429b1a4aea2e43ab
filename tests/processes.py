"""Real processes of train.py and sample.py on loopback, that find each other over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _environments(count, devices):
    """Of processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for index in range(count):
        environment = os.environ | {
            "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=2", f"count={devices // count}"),
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
        }
        if count > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
        yield environment


def start(count, *command, devices=4):
    """So many processes of a command like "train.py", "--workdir=...", that share the devices."""
    return [
        subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for environment in _environments(count, devices)
    ]  # fmt: skip


def finish(processes, status=0):
    """What they wrote; all of them ended with that exit status."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == status, output
    return outputs
