"""Memory of sampling: flat in steps, linear in images; read from compiled programs, nothing is run.

    python -m benchmarks.memory [--batch=1,4] [--steps=10,1000]

For networks of 32, 64 and 256 pixels (`configs/`), prints what the compiled sampler needs on one
device: weights, temporaries, and how much each further image of the batch costs.
"""

import argparse
from itertools import pairwise

import jax
import jax.numpy as jnp

from benchmarks.common import load
from ddim_jax import experiment
from ddim_jax.evaluation.cells import program_bytes

CONFIGS = ("configs/cifar10.py", "configs/celeba64.py", "configs/lsun_bedroom256.py")


def needed(parts: experiment.Experiment, batch: int, steps: int) -> tuple[int, int]:
    """Bytes of the compiled DDIM sampler: (all, temporaries)."""
    params = jax.eval_shape(parts.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((batch, *parts.image_shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    cond = parts.cond(jax.ShapeDtypeStruct((batch,), jnp.int32))
    table = experiment.build_table(parts.schedule, "ddim", steps=steps)
    compiled = parts.sampler().lower(params, table, x, keys, cond).compile()
    return program_bytes(compiled), compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--batch", default="1,4", help="batch sizes, like 1,4")
    parser.add_argument("--steps", default="10,1000", help="numbers of steps, like 10,1000")
    args = parser.parse_args()
    batches, steps = ([int(n) for n in text.split(",")] for text in (args.batch, args.steps))
    print(f"{'network':22}{'image':>12}{'batch':>7}{'steps':>7}{'all MB':>9}{'temporaries MB':>16}")
    for config in args.configs.split(","):
        parts, found = load(config), {}
        for batch in batches:
            for count in steps:
                total, temporary = needed(parts, batch, count)
                found[batch] = total
                name, shape = config.split("/")[-1], "x".join(map(str, parts.image_shape))
                print(
                    f"{name:22}{shape:>12}{batch:7}{count:7}{total / 1e6:9.1f}"
                    f"{temporary / 1e6:16.1f}",
                    flush=True,
                )
        for low, high in pairwise(batches):
            each = (found[high] - found[low]) / (high - low) / 1e6
            print(f"  a further image costs {each:.1f} MB ({low} to {high} images)", flush=True)


if __name__ == "__main__":
    main()
