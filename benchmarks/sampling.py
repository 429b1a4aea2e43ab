"""What the sampling loop costs beside the network: time, compile time, memory.

    python -m benchmarks.sampling [--config=configs/cifar10.py] [--batch=4] [--steps=10]

Prints the time of an N-step scan over N times that of one jitted forward pass (alternating runs in
one process; minima and medians), the same with the table padded to four times its rows, and the
compile seconds, instructions and temporary memory of the sampler for N and 1000 steps and for one
and two evaluations a step. Parameters are random: only the shapes matter.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import experiment, sampling


def load(config_file: str) -> experiment.Experiment:
    """The experiment of a config file."""
    spec = importlib.util.spec_from_file_location("config", Path(config_file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return experiment.build(module.get_config())


def seconds(call, *args) -> float:
    """Wall-clock seconds of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(call(*args))
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    parts = load(args.config)
    params = jax.jit(parts.init)(jax.random.key(0))
    keys = sampling.sample_keys(0, np.arange(args.batch))
    x = sampling.initial_noise(keys, parts.image_shape)
    cond = parts.cond(jnp.zeros(args.batch, jnp.int32))
    draw = parts.sampler()

    def table(solver, nfe, history):
        steps = (nfe + 1) // 2 if solver.startswith("heun") else nfe
        made = experiment.build_table(parts.schedule, solver, "log_snr", steps)
        return made.pad(nfe, history)

    print(f"{'program':26}{'compile s':>10}{'instructions':>14}{'temporaries MB':>16}")
    for solver, nfe in (("ddim", args.steps), ("heun", args.steps), ("ddim", 1000)):
        start = time.perf_counter()
        compiled = draw.lower(params, table(solver, nfe, 2), x, keys, cond).compile()
        took = time.perf_counter() - start
        count = sum(" = " in line for line in compiled.as_text().splitlines())
        memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(f"{solver + f', {nfe} evaluations':26}{took:10.1f}{count:14}{memory:16.1f}")

    forward = jax.jit(parts.apply)
    times = jnp.full(args.batch, 500.0)
    short = table("ddim", args.steps, 1)
    padded = short.pad(4 * args.steps, 6)
    calls = {
        "forward": lambda: forward(params, x, times, cond),
        "sampler": lambda: draw(params, short, x, keys, cond).x,
        "padded": lambda: draw(params, padded, x, keys, cond).x,
    }
    for call in calls.values():
        seconds(call)
    taken = {name: [] for name in calls}
    for _ in range(args.repeats):
        taken["forward"].append(np.mean([seconds(calls["forward"]) for _ in range(args.steps)]))
        for kind in ("sampler", "padded"):
            taken[kind].append(seconds(calls[kind]) / args.steps)
    for name, statistic in (("minimum", np.min), ("median", np.median)):
        one, many, more = (1e3 * statistic(taken[kind]) for kind in calls)
        print(f"{name}: {many:.1f} ms a step, {one:.1f} ms a forward pass: ratio {many / one:.3f}")
        print(
            f"{name}: padded {args.steps} -> {4 * args.steps} rows, 1 -> 6 slots: {more / many:.3f}"
        )


if __name__ == "__main__":
    main()
