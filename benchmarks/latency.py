"""How long one picture takes: cold start, compiling, and then p50 and p95 at batch 1.

    python -m benchmarks.latency [--checkpoint=digits_4step] [--nfe=1,2,4,8] [--repeats=200]

A request is one call of the sampler for a new sample and label, until its uint8 picture is in host
memory. The commands are whole processes of sample.py, with an empty compilation cache and a full
one. Requests of different numbers of evaluations alternate.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ddim_jax import checkpoints, parallel
from ddim_jax.recipe import Recipe

ROOT = Path(__file__).parent.parent


def command_seconds(checkpoint: str, folder: str) -> float:
    """Wall-clock seconds of `sample.py` for one picture, with a compilation cache in the folder."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "sample.py"), f"--checkpoint={checkpoint}"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--num_samples=1"], cwd=folder, env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="digits_4step")
    parser.add_argument("--nfe", default="1,2,4,8")
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "full"):
            taken = command_seconds(args.checkpoint, folder)
            print(f"sample.py, one picture, {cache} compilation cache: {taken:.1f} s")

    start = time.perf_counter()
    model = checkpoints.load(args.checkpoint)
    generator = model.generator()
    print(f"loading: {time.perf_counter() - start:.2f} s")
    counts = [int(part) for part in args.nfe.split(",")]
    tables = {n: Recipe("ddim", "uniform", n).table(model.schedule) for n in counts}
    labels = model.inputs.labels(None, args.repeats)

    def request(nfe, i):
        label = None if labels is None else labels[[i]]
        begin = time.perf_counter()
        conditions = model.conditions(1, model.recipe, label, tables[nfe])
        (batch,) = generator.batches(tables[nfe], np.array([i]), **conditions)
        model.pictures(batch.result.x)
        return time.perf_counter() - begin

    first = {}
    for nfe in counts:
        before = generator.compile_seconds
        first[nfe] = (request(nfe, 0), generator.compile_seconds - before)
    taken = {nfe: [] for nfe in counts}
    for i in range(args.repeats):
        for nfe in counts:
            taken[nfe].append(1e3 * request(nfe, i))
    print(f"{'NFE':>4}{'first s':>9}{'compiling s':>13}{'p50 ms':>9}{'p95 ms':>9}{'best ms':>9}")
    for nfe, values in taken.items():
        p50, p95 = np.percentile(values, [50, 95])
        whole, compiling = first[nfe]
        print(f"{nfe:4}{whole:9.2f}{compiling:13.2f}{p50:9.1f}{p95:9.1f}{min(values):9.1f}")


if __name__ == "__main__":
    parallel.use_cpu_cores()
    main()
