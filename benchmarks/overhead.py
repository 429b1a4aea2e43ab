"""What the sampling loop costs beside the network: time, compile time, memory.

    python -m benchmarks.overhead [--config=configs/cifar10.py] [--batch=4] [--steps=10]

Prints the time of an N-step scan over N times that of one jitted forward pass (by turns in one
process; minima and medians), the same with the table padded to four times its rows, and the compile
seconds, instructions and temporary memory of the sampler for N and 1000 steps and for one and two
evaluations a step. Parameters are random: only the shapes matter.

Where torch and diffusers are installed (`pip install -e ".[parity]"`), DDIM of 1,000 steps with a
network so small that the loop is what costs, at batch 1, against diffusers' scheduler in a Python
loop; both give the same samples.
"""

import argparse
import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import alternate, load, ratio
from ddim_jax import predictions, sampling, schedules
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe

WIDTH = 64
"""Of the small network."""


def programs(model: Model, steps: int, table, arguments) -> None:
    """Prints what samplers of different tables compile to."""
    params, *rest = arguments
    draw = model.sampler()
    print(f"{'program':26}{'compile s':>10}{'instructions':>14}{'temporaries MB':>16}")
    for solver, nfe in (("ddim", steps), ("heun", steps), ("ddim", 1000)):
        start = time.perf_counter()
        compiled = draw.lower(params, table(solver, nfe, 2), *rest).compile()
        took = time.perf_counter() - start
        count = sum(" = " in line for line in compiled.as_text().splitlines())
        memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(f"{solver + f', {nfe} evaluations':26}{took:10.1f}{count:14}{memory:16.1f}")


def scans(model: Model, steps: int, repeats: int, table, arguments) -> None:
    """Prints the time of a sampler over that of its forward passes, and of a padded table."""
    params, x, keys, inputs = arguments
    draw, forward = model.sampler(), jax.jit(model.apply)
    times = jnp.full(len(x), 500.0)
    short = table("ddim", steps, 1)
    padded = short.pad(4 * steps, 6)

    def passes():
        for _ in range(steps):
            jax.block_until_ready(forward(params, x, times, inputs))

    taken = alternate(
        {
            "passes": passes,
            "sampler": lambda: draw(params, short, x, keys, inputs).x,
            "padded": lambda: draw(params, padded, x, keys, inputs).x,
        },
        repeats,
    )
    for name, statistic in (("minimum", np.min), ("median", np.median)):
        one, many, more = (1e3 * statistic(taken[kind]) / steps for kind in taken)
        print(f"{name}: {many:.1f} ms a step, {one:.1f} ms a forward pass: ratio {many / one:.3f}")
        print(f"{name}: padded {steps} -> {4 * steps} rows, 1 -> 6 slots: {more / many:.3f}")


def python_loop(repeats: int, steps: int = 1000) -> None:
    """Prints the time of our sampler and of diffusers' loop, for a network that costs nothing."""
    import diffusers
    import torch

    rng = np.random.default_rng(0)
    shapes = ((3, WIDTH), (WIDTH, WIDTH), (WIDTH, 2))
    params = [(rng.normal(size=s) / s[0] ** 0.5).astype(np.float32) for s in shapes]

    def apply(params, x, t, inputs):
        h = jnp.concatenate([x, t[:, None] / 1000], axis=-1)
        return jnp.tanh(jnp.tanh(h @ params[0]) @ params[1]) @ params[2]

    theirs = [torch.from_numpy(p) for p in params]
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(steps)
    x = rng.normal(size=(1, 2)).astype(np.float32)

    @torch.inference_mode()
    def loop():
        sample = torch.from_numpy(x)
        for t in scheduler.timesteps:
            h = torch.cat([sample, torch.full((1, 1), t / 1000)], dim=-1)
            eps = torch.tanh(torch.tanh(h @ theirs[0]) @ theirs[1]) @ theirs[2]
            sample = scheduler.step(eps, t, sample, eta=0.0).prev_sample
        return sample

    table = Recipe("ddim", "uniform", steps).table(schedules.ddpm_linear())
    draw = sampling.make_sampler(apply, predictions.eps, clip="none")
    keys = sampling.sample_keys(0, np.arange(1))

    def scan():
        return draw(params, table, x, keys).x

    difference = np.abs(np.asarray(scan()) - loop().numpy()).max() / np.abs(loop().numpy()).max()
    taken = alternate({"ours": scan, "theirs": loop}, repeats)
    print(
        f"{steps} steps, tiny network, batch 1: {1e3 * taken['ours'].min():.2f} ms, diffusers "
        f"{1e3 * taken['theirs'].min():.0f} ms: ratio {ratio(taken['theirs'], taken['ours'])}; "
        f"relative difference {difference:.1e}"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    model = load(args.config)
    keys = sampling.sample_keys(0, np.arange(args.batch))
    arguments = (
        jax.jit(model.init)(jax.random.key(0)),
        sampling.initial_noise(keys, model.sample_shape),
        keys,
        model.inputs.arrays(np.zeros(args.batch, np.int32)),
    )

    def table(solver, nfe, history):
        steps = (nfe + 1) // 2 if solver.startswith("heun") else nfe
        made = Recipe(solver, "log_snr", steps).table(model.schedule)
        return made.pad(nfe, history)

    programs(model, args.steps, table, arguments)
    scans(model, args.steps, args.repeats, table, arguments)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("diffusers"):
        python_loop(args.repeats)


if __name__ == "__main__":
    main()
