"""What training does when things go wrong: every fault is injected into real processes of train.py.

    python -m benchmarks.faults [--only=kill,disk] [--kills=20] [--seed=0]

Prints a line for each fault and exits with 1 if any did not end as it should. Where a run goes on,
its last checkpoint (parameters, moving average, optimizer, key) and its losses have to equal those
of an uninterrupted run in every bit. The network is tiny, on the CPU. Filling a disk (a
small tmpfs) and changing the host name need root; the clock is changed by `faketime`, if that is
installed.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks.common import load_config
from ddim_jax import data, parallel
from ddim_jax.checkpoints.workdir import Checkpointer
from ddim_jax.training import loop
from ddim_jax.training.method import build

ROOT = Path(__file__).parent.parent
SHORT, LONG = 60, 400
"""Steps of most runs, and of those that are killed again and again."""
CONFIG = f"""
from configs import digits

def get_config():
    config = digits.get_config()
    config.data.update(image_shape=(8, 8, 1), resize=8)
    config.model.update(channels=8, channel_mults=(1,), patch_size=1)
    config.optimizer.warmup_steps = 1
    config.train.update(
        steps={SHORT}, batch_size=4, log_every=1, checkpoint_every=5, sample_every=0
    )
    return config
"""


class SkippedError(Exception):
    """A fault that cannot be injected here."""


def expect(right: bool, wrong: str) -> None:
    """Raises AssertionError unless `right`."""
    if not right:
        raise AssertionError(wrong)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Runs train.py in a temporary folder."""

    folder: Path
    kills: int
    seed: int

    def start(self, workdir: Path, *flags: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
        """A process of train.py that writes to `workdir.log`."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
        }
        command = (sys.executable, "train.py", f"--config={self.folder / 'config.py'}")
        with open(self.log(workdir), "w") as log:
            return subprocess.Popen(
                [*before, *command, f"--workdir={workdir}", *flags],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def log(self, workdir: Path) -> Path:
        """Where the last process in `workdir` wrote to."""
        return self.folder / f"{workdir.name}.log"

    def run(self, workdir: Path, *flags: str, code: int = 0, before: tuple[str, ...] = ()) -> str:
        """Runs train.py to its end; see `finish`."""
        return self.finish(self.start(workdir, *flags, before=before), workdir, code)

    def finish(self, process: subprocess.Popen, workdir: Path, code: int) -> str:
        """Waits for the end, which must be with this exit status; what the process wrote."""
        try:
            found = process.wait(600)
        except subprocess.TimeoutExpired:
            process.kill()
            step = max(curve(workdir), default=0)
            raise AssertionError(f"no end after 10 minutes, at step {step}") from None
        text = self.log(workdir).read_text()
        expect(found == code, f"exit status {found}, not {code}: {text[-300:]}")
        return text

    @functools.cache  # noqa: B019 (one bench a process)
    def whole(self, steps: int, *flags: str) -> Path:
        """The workdir of an uninterrupted run."""
        workdir = self.folder / f"whole-{steps}-{len(flags)}"
        self.run(workdir, f"--config.train.steps={steps}", *flags)
        return workdir

    def restored(self, workdir: Path) -> dict[str, np.ndarray]:
        """The arrays of the newest checkpoint that can be read, by their paths."""
        config, mesh = load_config(str(self.folder / "config.py")), parallel.make_mesh()
        like = loop.abstract_state(config, build(config, None, mesh), None, mesh)
        state = Checkpointer(workdir, create=False).restore(like)
        state = state.replace(key=jax.random.key_data(state.key))
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    def expect_equal(self, workdir: Path, whole: Path) -> None:
        """The last checkpoints and the losses of two runs are equal in every bit."""
        ours, theirs = self.restored(workdir), self.restored(whole)
        different = [name for name in theirs if ours[name].tobytes() != theirs[name].tobytes()]
        expect(not different, f"{len(different)} arrays differ, the first is {different[:1]}")
        expect(curve(workdir) == curve(whole), "the losses differ")


def curve(workdir: Path) -> dict[int, float]:
    """Loss by step, so far; of a line that is being written nothing."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["loss"] for row in rows}


def steps_saved(workdir: Path) -> list[int]:
    """Steps of the checkpoints."""
    folders = (workdir / "checkpoints").iterdir()
    return sorted(int(path.name) for path in folders if path.name.isdigit())


# Faults: each takes the bench, breaks something, and returns what was seen.


def kill(bench: Bench) -> str:
    """kill -9 at a random moment, and the same command again."""
    flags, chance = (f"--config.train.steps={LONG}",), random.Random(bench.seed)
    whole, began = bench.whole(LONG), time.time()
    bench.run(bench.folder / "one", "--config.train.steps=1")
    starts = time.time() - began
    phases, killed, runs = Counter(), 0, 0
    while killed < bench.kills:
        workdir, runs = bench.folder / f"killed-{runs}", runs + 1
        while killed < bench.kills:
            began, process = time.time(), bench.start(workdir, *flags)
            try:
                process.wait(chance.uniform(0, 1.7 * starts))
            except subprocess.TimeoutExpired:
                process.kill()
            if process.wait() == 0:
                break
            expect(process.returncode == -9, bench.log(workdir).read_text()[-300:])
            phases[_phase(bench, workdir, began)] += 1
            killed += 1
        bench.run(workdir, *flags)
        bench.expect_equal(workdir, whole)
    where = ", ".join(f"{count} {phase}" for phase, count in phases.most_common())
    return f"{killed} kills ({where}) in {runs} run(s): equal in every bit"


def _phase(bench: Bench, workdir: Path, began: float) -> str:
    """What a process that began then was doing when it was killed."""
    text, first = bench.log(workdir).read_text(), 0
    if "images of digits" not in text:
        return "before it had restored"
    if any(path.stat().st_mtime > began for path in workdir.glob("checkpoints/*tmp*")):
        return "inside a save"
    if "resuming at step" in text:
        first = int(text.rpartition("resuming at step ")[2].split()[0])
    stepped = max(curve(workdir), default=0) > first
    return "among steps" if stepped else "before its first step"


@contextlib.contextmanager
def small_disk(bench: Bench, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    if os.geteuid() != 0:
        raise SkippedError("mounting a small disk needs root")
    place = bench.folder / "disk"
    place.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        raise SkippedError("mounting a small disk is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def disk(bench: Bench) -> str:
    """A disk that has no room for the third checkpoint; then a larger one."""
    whole = bench.whole(SHORT)
    files = (whole / "checkpoints" / str(SHORT)).rglob("*")
    one = sum(-(-path.stat().st_size // 4096) * 4096 for path in files if path.is_file())
    with small_disk(bench, int(2.9 * one)) as place:
        workdir = place / "run"
        lines = bench.run(workdir, code=1).splitlines()
        last = steps_saved(workdir)[-1]
        expect(len(lines) == 2, f"{len(lines)} lines, not one beside the first: {lines[-1]}")
        expect(f"No space left on device; that of step {last} is intact" in lines[-1], lines[-1])
        expect(bench.restored(workdir)[".step"] == last, "that checkpoint is damaged")
        subprocess.run(["mount", "-o", f"remount,size={9 * one}", place], check=True)
        expect(f"resuming at step {last} " in bench.run(workdir), "it did not resume there")
        bench.expect_equal(workdir, whole)
    return f"one line says so and that step {last} is intact; with room equal in every bit"


def full(bench: Bench) -> str:
    """A disk that something else fills between two checkpoints; then it is freed."""
    with small_disk(bench, 2**24) as place:
        workdir = place / "run"
        bench.run(workdir, "--config.train.steps=10")
        flags = (f"--config.train.steps={LONG}", "--config.train.checkpoint_every=1000")
        process = bench.start(workdir, *flags)
        while process.poll() is None and len(curve(workdir)) < 15:
            time.sleep(0.01)
        with contextlib.suppress(OSError), open(place / "other", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        last = bench.finish(process, workdir, code=1).splitlines()[-1]
        expect("No space left on device" in last and "metrics.jsonl" in last, last)
        expect(steps_saved(workdir) == [5, 10], "the checkpoints are not those of 5 and 10")
        (place / "other").unlink()
        bench.run(workdir)
        bench.expect_equal(workdir, bench.whole(SHORT))
    return "one line names the file; with room again equal in every bit"


def damage(bench: Bench) -> str:
    """Every file of the newest checkpoint cut in half, overwritten, or gone."""
    whole = bench.whole(SHORT)
    breaks = {
        "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
        "overwritten": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
        "gone": lambda path: path.unlink(),
    }
    for name, spoil in breaks.items():
        workdir = bench.folder / name
        shutil.copytree(whole, workdir)
        newest = workdir / "checkpoints" / str(SHORT)
        for path in [path for path in newest.rglob("*") if path.is_file()]:
            spoil(path)
        text = bench.run(workdir)
        said = f"Skipped the damaged checkpoint of step {SHORT}" in text
        expect(said and f"using {SHORT - 5}" in text, f"{name}: not said: {text[-300:]}")
        bench.expect_equal(workdir, whole)
    return f"{', '.join(breaks)}: says so, goes on from the one before, equal in every bit"


def changed_data(bench: Bench) -> str:
    """An npz file with other images, or fewer, under a run that resumes; then the old one."""
    digits, file = data.load("digits"), bench.folder / "images.npz"
    name = f"--config.data.name=npz:{file}"

    def write(first: int, last: int) -> None:
        examples = [digits[index] for index in range(first, last)]
        np.savez(file, **{f"{key}s": [x[key] for x in examples] for key in ("image", "label")})

    write(0, 200)
    whole, workdir = bench.whole(SHORT, name), bench.folder / "changed"
    bench.run(workdir, name, "--config.train.steps=20")
    before = curve(workdir)
    for first, last in ((200, 400), (0, 199)):
        write(first, last)
        message = bench.run(workdir, name, code=1).splitlines()[-1]
        expect(f"have changed: npz:{file} was 200 images" in message, message)
        expect(curve(workdir) == before and steps_saved(workdir)[-1] == 20, "it made steps")
    write(0, 200)
    bench.run(workdir, name)
    bench.expect_equal(workdir, whole)
    return "refused before any step, both named; with the old file again equal in every bit"


def clock(bench: Bench) -> str:
    """Resumed 400 days later by the clock, then 400 days before the first start."""
    workdir, fake = bench.folder / "clock", shutil.which("faketime")
    for steps, shift in ((20, "+0d"), (40, "+400d"), (SHORT, "-400d")):
        if not fake and workdir.exists():
            days = float(shift.rstrip("d")) * 86400
            for path in workdir.rglob("*"):
                os.utime(path, (path.stat().st_atime + days, path.stat().st_mtime + days))
        before = (fake, "-m", "-f", shift) if fake else ()
        bench.run(workdir, f"--config.train.steps={steps}", before=before)
    bench.expect_equal(workdir, bench.whole(SHORT))
    how = "clock set" if fake else "times of files set, there is no faketime here,"
    return f"{how} forward and back: equal in every bit"


def host(bench: Bench) -> str:
    """Resumed under another host name."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        raise SkippedError("changing the host name needs root and unshare")
    workdir = bench.folder / "host"
    for steps, name in ((30, "first"), (SHORT, "second")):
        before = ("unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh")
        bench.run(workdir, f"--config.train.steps={steps}", before=before)
    named = {path.suffix for path in (workdir / "tensorboard").iterdir()}
    expect(named == {".first", ".second"}, f"the host was not renamed: {named}")
    bench.expect_equal(workdir, bench.whole(SHORT))
    return "equal in every bit"


def not_finite(bench: Bench) -> str:
    """A learning rate of 1e30."""
    workdir = bench.folder / "nan"
    text = bench.run(workdir, "--config.optimizer.learning_rate=1e30", code=1)
    message = text.splitlines()[-1]
    saved = steps_saved(workdir)[-1]
    expect(f"is saved in {workdir / 'checkpoints' / str(saved)}." in message, message)
    restored = bench.restored(workdir)
    expect(restored[".step"] == saved, "that checkpoint does not restore")
    expect(all(np.isfinite(x).all() for x in restored.values()), "it holds what is not finite")
    return f"stops, names the checkpoint of step {saved}, which restores and is finite"


FAULTS = {
    "kill": kill,
    "disk": disk,
    "full": full,
    "damage": damage,
    "data": changed_data,
    "clock": clock,
    "host": host,
    "nan": not_finite,
}


def main() -> None:
    """Injects and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    unknown = sorted(set(args.only.split(",")) - set(FAULTS))
    if unknown:
        parser.error(f"unknown faults {unknown}; known are {', '.join(FAULTS)}")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.kills, args.seed)
        (bench.folder / "config.py").write_text(CONFIG)
        for name in args.only.split(","):
            began = time.time()
            try:
                outcome = f"pass: {FAULTS[name](bench)}"
            except SkippedError as error:
                outcome = f"skipped: {error}"
            except Exception as error:
                outcome, failed = f"FAILED: {error}", True
            print(f"{name:8}{time.time() - began:5.0f} s  {outcome}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
