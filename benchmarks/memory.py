"""Reads the memory of sampling from compiled programs: flat in steps, linear in images.

    python -m benchmarks.memory [--batch=1,4] [--steps=10,1000]

For networks of 32, 64 and 256 pixels (`configs/`), prints what the compiled sampler needs on one
device: weights, temporaries, and how much each further image of the batch costs. Nothing is run.
"""

import argparse
from itertools import pairwise

import jax
import jax.numpy as jnp

from benchmarks.common import load
from ddim_jax.model import Model
from ddim_jax.program_cost import memory_bytes
from ddim_jax.recipe import Recipe

CONFIGS = ("configs/cifar10.py", "configs/celeba64.py", "configs/lsun_bedroom256.py")


def needed(model: Model, batch: int, steps: int) -> tuple[int, int]:
    """Compiles the DDIM sampler of a model without parameters; returns bytes (all, temporaries)."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((batch, *model.sample_shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    inputs = {
        name: jax.ShapeDtypeStruct((batch, *declared.shape), declared.dtype)
        for name, declared in model.inputs.declared.items()
    }
    table = Recipe("ddim", steps=steps).table(model.schedule)
    compiled = model.sampler().lower(params, table, x, keys, inputs).compile()
    return memory_bytes(compiled), compiled.memory_analysis().temp_size_in_bytes


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
        model, needs = load(config), {}
        for batch in batches:
            for count in steps:
                total, temporary = needed(model, batch, count)
                needs[batch] = total
                name, shape = config.split("/")[-1], "x".join(map(str, model.sample_shape))
                print(
                    f"{name:22}{shape:>12}{batch:7}{count:7}{total / 1e6:9.1f}"
                    f"{temporary / 1e6:16.1f}",
                    flush=True,
                )
        for low, high in pairwise(batches):
            each = (needs[high] - needs[low]) / (high - low) / 1e6
            print(f"  a further image costs {each:.1f} MB ({low} to {high} images)", flush=True)


if __name__ == "__main__":
    main()
