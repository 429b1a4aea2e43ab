"""Ctrl-C and SIGTERM to real processes of the commands: one line, at once, status 130 or 143."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import ROOT

BEGIN = "from ddim_jax import interrupts; interrupts.begin();"
READY = "print('ready', flush=True);"


def start(*command):
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def stop(process, number=signal.SIGINT):
    """What it wrote to stderr after a signal, which ends it at once."""
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 128 + number, err
    return err


def read_until(stream, text):
    found = ""
    while text not in found:
        found += (part := stream.readline())
        assert part, found
    return found


@pytest.mark.parametrize(
    "command",
    [
        ("sample.py",),
        ("train.py",),
        ("-m", "ddim_jax", "edit", "invert"),
        ("-m", "ddim_jax.edit", "invert"),
        ("-m", "ddim_jax.strides.fit"),
        ("-m", "ddim_jax.evaluation.tradeoff"),
        ("-m", "ddim_jax.checkpoints", "digits", "x.safetensors"),
    ],
)
@pytest.mark.parametrize("delay", [0.3, 0.8])
def test_ctrl_c_while_a_command_imports(command, delay):
    process = start(*command)
    time.sleep(delay)
    (line,) = stop(process).splitlines()
    assert line.endswith(": stopped by Ctrl-C; nothing was written")


def test_a_folder_of_samples_says_what_is_kept(tmp_path):
    """While it compiles, which it says."""
    process = start("sample.py", "--num_samples=64", f"--out={tmp_path / 'set'}")
    said = read_until(process.stderr, "compiling the sampler")
    line = stop(process, signal.SIGTERM).splitlines()[-1]
    assert line == (
        f"sample.py: stopped by SIGTERM; what is drawn is kept in {tmp_path / 'set'}; the same "
        "command draws the rest"
    )
    assert said.count("compiling") == 1


def test_no_code_that_runs_outside_of_python_holds_it_up():
    """As that of a compiler, in which no exception of Python's begins."""
    code = f"{BEGIN} import hashlib; {READY} hashlib.pbkdf2_hmac('sha1', b'', b'', 2**31 - 1)"
    process = start("-c", code)
    read_until(process.stdout, "ready")
    assert "stopped by Ctrl-C" in stop(process)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_half_written_files_are_removed(tmp_path, what):
    path = f"pathlib.Path({str(tmp_path / 'a')!r})"
    code = f"{BEGIN} import time, pathlib; from ddim_jax import files\n"
    code += {
        "file": "write = lambda file: (file.write(b'half'), print('ready', flush=True), "
        f"time.sleep(60)); files.replace({path}, write)",
        "folder": f"with files.new_folder({path}) as part:\n"
        "    (part / 'b').mkdir(); (part / 'b' / 'c').write_text('half')\n"
        f"    {READY} time.sleep(60)",
    }[what]
    process = start("-c", code)
    read_until(process.stdout, "ready")
    stop(process)
    assert not list(tmp_path.iterdir())


def test_who_saves_first_is_left_to_it_but_for_a_second_ctrl_c():
    code = f"{BEGIN} import signal, time; signal.signal(signal.SIGINT, lambda *_: {READY[:-1]});"
    process = start("-c", f"{code} {READY} time.sleep(60)")
    read_until(process.stdout, "ready")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # as some shells do, which is no second one
    read_until(process.stdout, "ready")
    time.sleep(0.8)
    assert process.poll() is None
    stop(process)


def test_nothing_begins_by_an_import():
    code = "import ddim_jax, signal; ddim_jax.solvers; print(signal.getsignal(signal.SIGINT))"
    out, err = start("-c", code).communicate(timeout=60)
    assert "default_int_handler" in out, err


def test_a_background_job_goes_on_without_ctrl_c():
    """Shells let the jobs that a script starts in the background ignore it."""
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    process = start("-c", f"{ignore} {BEGIN} import time; {READY} time.sleep(60)")
    read_until(process.stdout, "ready")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    stop(process, signal.SIGTERM)


def test_modules_need_no_import_of_their_own():
    code = "import ddim_jax; print(ddim_jax.data.load.__name__, ddim_jax.checkpoints.__name__)"
    out, err = start("-c", code).communicate(timeout=60)
    assert out.split() == ["load", "ddim_jax.checkpoints"], err
