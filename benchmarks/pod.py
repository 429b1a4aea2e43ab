"""A train step on pods, read from compiled programs: what it needs beyond the mathematics.

    pip install -e ".[tpu]"
    python -m benchmarks.pod [--config=configs/cifar10.py] [--each=128] [--plan=v5e:4x4] [--quick]
    python -m benchmarks.pod --config=configs/digits.py --each=64 --plan=v5e:4x4,v5e:16x16 --quick

Nothing is run, and no device is needed. For each topology, with `--each` images a device: memory
and traffic of a device, operations over those that the network's products need (forward once and
backward twice), the bound on utilisation by arithmetic, traffic and links, all-reduces and their
bytes over the bytes of the gradients. With `--quick`, memory and traffic are bounds from above, and
the bound on utilisation leaves traffic out. At a fixed number of images a device, all of these
should stay where they are from 16 to 1,024 devices.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import load_config
from ddim_jax import experiment, parallel, planning, program_cost
from ddim_jax.model import Model
from ddim_jax.topologies import devices

HEADS = (
    f"{'devices':>7} {'chip':5}{'memory GB':>10}{'traffic GB':>11}{'GFLOP':>8}{'over model':>11}"
    f"{'bound':>7}{'all-reduces':>12}{'MB':>7}{'over gradients':>15}{'compile s':>10}"
)


def model_flops(model: Model, images: int) -> int:
    """Operations of the products of a train step: forward once, backward twice."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    x, t = jnp.zeros((1, *model.sample_shape)), jnp.zeros(1)
    inputs = model.inputs.arrays(np.zeros(1, np.int32), interval=np.ones(1))
    jaxpr = jax.make_jaxpr(model.apply)(params, x, t, inputs)
    return 3 * images * program_cost.product_flops(jaxpr)


def gradient_bytes(model: Model) -> int:
    """Bytes of all gradients in the network's dtype."""
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    return sum(leaf.size for leaf in leaves) * jnp.dtype(model.network.dtype).itemsize


def row(plan: planning.Plan, needed: int, gradients: int) -> str:
    """One line of the table."""
    count, size = plan.collectives.get("all-reduce", (0, 0))
    return (
        f"{plan.devices:7} {plan.topology.partition(':')[0]:5}{plan.memory / 1e9:10.2f}"
        f"{plan.bytes_accessed / 1e9:11.2f}{plan.flops / 1e9:8.0f}{plan.flops / needed:11.3f}"
        f"{plan.utilisation:7.0%}{count:12}{size / 1e6:7.1f}{size / gradients:15.3f}"
        f"{plan.compile_seconds:10.0f}"
    )


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--each", type=int, default=128, help="images a device")
    parser.add_argument("--plan", default="v5e:4x4", help="topologies, like v5e:4x4,v5e:16x16")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--quick", action="store_true", help="see ddim_jax/planning.py")
    args = parser.parse_args()
    parallel.use_compilation_cache()
    config = load_config(args.config)
    with config.unlocked():
        config.model.update(dtype=args.dtype, remat=args.remat)
    model = experiment.build(config)
    needed, gradients = model_flops(model, args.each), gradient_bytes(model)
    print(
        f"{args.config}, {args.each} images a device: the model's products are "
        f"{needed / 1e9:,.0f} GFLOP, its gradients {gradients / 1e6:.1f} MB"
    )
    print(HEADS, flush=True)
    for topology in args.plan.split(","):
        with devices(topology) as mesh:
            config.train.batch_size = args.each * mesh.size
        plan = planning.plan_training(config, topology, args.quick)
        print(row(plan, needed, gradients), flush=True)


if __name__ == "__main__":
    main()
