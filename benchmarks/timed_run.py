"""Trains a config for so many seconds, its learning rate falling to 0 by their end.

    python -m benchmarks.timed_run --seconds=300 --config=emoji --workdir=runs/emoji \\
        --config.data.name=npz:emoji.npz --config.train.batch_size=1024

For a machine that is lent for minutes. All other arguments are train.py's. A short run in
WORKDIR.rate measures how many steps fit; the other compiles again, for another learning rate. Of
a run that is not done by then SIGTERM saves what there is, which the same train.py goes on from.
The seconds are of training: data, compiling and measuring come before, and are printed.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ddim_jax.commands import configs

TRIAL = 150
"""Steps of the short run; the last third is what counts."""
LATE = 1.1
"""Of the seconds, when the run is stopped."""


def main() -> None:
    """Measures, then trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    args, others = parser.parse_known_args()
    if not 1 <= args.seconds < float("inf"):
        sys.exit(f"--seconds must be at least 1, got {args.seconds}; 300 are five minutes")
    trial = args.workdir.with_name(f"{args.workdir.name}.rate")
    for folder in (args.workdir, trial):
        if folder.exists():
            sys.exit(f"{folder} exists: this starts a run anew; remove it, or choose another")
    config = configs.load(*_asked(others))
    if config.get("stages"):
        sys.exit("the config trains stages, and this times one run; take a stage's own config")
    every = TRIAL // 3
    begun = time.perf_counter()
    short = dict(steps=TRIAL, log_every=every, sample_every=0, checkpoint_every=TRIAL)
    train(trial, others, short, warmup=every)
    last = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()][-1]
    batch = json.loads((trial / "config.json").read_text())["train"]["batch_size"]
    steps = max(TRIAL, int(args.seconds * last["images_s"] / batch))
    before = time.perf_counter() - begun
    print(f"{last['images_s']:,.0f} images/s after {before:.0f} s: {steps:,} steps", flush=True)
    warmup = config.optimizer.get("warmup_steps", 0)
    if shorter := warmup > steps // 4:
        print(f"a warm-up of {warmup:,} steps is too long for these: {steps // 10:,}", flush=True)
    shutil.rmtree(trial)
    fields = dict(steps=steps, log_every=max(1, steps // 40))
    limit = LATE * args.seconds + before
    train(args.workdir, others, fields, steps // 10 if shorter else None, limit)


def _asked(others: list[str]) -> tuple[str, list[tuple[str, str | None]]]:
    """The name of the config among train.py's arguments, and what it overrides."""
    rest, overrides = configs.split(others)
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="digits")
    return parser.parse_known_args(rest)[0].config, overrides


def train(
    workdir: Path,
    others: list[str],
    fields: dict[str, int],
    warmup: int | None = None,
    limit: float | None = None,
) -> None:
    """Runs train.py; after `limit` seconds it is told to save and leave."""
    own = [f"--config.train.{name}={value}" for name, value in fields.items()]
    own += [] if warmup is None else [f"--config.optimizer.warmup_steps={warmup}"]
    command = [sys.executable, "train.py", f"--workdir={workdir}", *others, *own]
    process = subprocess.Popen(command)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
        return
    if process.returncode:
        sys.exit(process.returncode)


if __name__ == "__main__":
    main()
