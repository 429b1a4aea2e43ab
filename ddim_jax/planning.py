"""Will it fit, and how fast can it be? Compiles for devices that are not here.

    python train.py --config=configs/cifar10.py --plan=v5e:4x4
    python train.py --config=configs/imagenet64.py --plan=v5e:16x16
    python sample.py --checkpoint=runs/cifar10 --batch_size=1024 --plan=h100:8

The compilers of TPUs and GPUs run on any machine (`pip install "ddim_jax[tpu]"` or `[cuda]`), and
what they make says what it needs: memory of a device, operations, bytes, collectives. The last
three are lower bounds of the time of a step; the largest of them is the fastest that it can be.

TPU compilers spend nearly all of their time on a search for fast convolutions. `--quick` leaves it
and most fusions out: a tenth of the time, and bounds from above of memory and bytes.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddim_jax import files, generation, parallel, programs
from ddim_jax.guidance import Guidance
from ddim_jax.models.pretrained import Pretrained
from ddim_jax.probability_flow import Tolerance
from ddim_jax.solvers import SolverTable

Array = Any


class Chip(NamedTuple):
    """What the maker says of a device.

    Attributes:
        memory: bytes.
        flops: bfloat16 operations a second, dense.
        bandwidth: bytes a second, of its memory.
        links: bytes a second that it sends to others.
        platform: of JAX.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float
    platform: str = "tpu"


CHIPS = {
    "v4": Chip(32e9, 275e12, 1228e9, 300e9),
    "v5e": Chip(16e9, 197e12, 819e9, 200e9),
    "v5p": Chip(95e9, 459e12, 2765e9, 600e9),
    "v6e": Chip(32e9, 918e12, 1640e9, 448e9),
    "h100": Chip(80e9, 989e12, 3352e9, 450e9, "cuda"),
}
"""Devices by the name that --plan takes. Sources: Google's and NVIDIA's data sheets."""

H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}"""

WITHOUT_GPU = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
"""Nothing can be timed where there is no GPU."""


class Plan(NamedTuple):
    """What a program needs, for each device.

    Attributes:
        topology: as it was asked for, like v5e:4x4.
        devices: how many.
        memory: bytes: arguments, results and temporaries, what is donated once.
        arguments: bytes, of the memory.
        flops: operations.
        bytes_accessed: of the device's memory, see `programs.traffic`; 0 of GPUs, whose programs
            do not say what stays in a cache.
        collectives: name -> (how many, bytes).
        compile_seconds: on the machine that compiled it.
        quick: compiled with little optimisation: memory and bytes are bounds from above.
    """

    topology: str
    devices: int
    memory: int
    arguments: int
    flops: float
    bytes_accessed: float
    collectives: dict[str, tuple[int, int]]
    compile_seconds: float
    quick: bool = False

    @property
    def chip(self) -> Chip:
        """The device."""
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.memory <= self.chip.memory

    @property
    def seconds(self) -> dict[str, float]:
        """Lower bounds of the time: arithmetic, memory (0 if not known), links."""
        sent = sum(size for _, size in self.collectives.values())
        chip = self.chip
        return {
            "arithmetic": self.flops / chip.flops,
            "memory": 0.0 if self.quick else self.bytes_accessed / chip.bandwidth,
            "links": sent / chip.links,
        }

    @property
    def utilisation(self) -> float:
        """The most of the device's arithmetic that can be used, in 0..1."""
        bounds = self.seconds
        return bounds["arithmetic"] / max(bounds.values())


def mesh_of(topology: str) -> Mesh:
    """The mesh of devices that are not here.

    Args:
        topology: chip:shape, like v5e:16x16 or h100:8.

    Raises:
        ValueError: an unknown chip, a shape that there is not, a compiler that is not installed.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise ValueError(
            f"--plan must be like v5e:4x4 or h100:8, with one of {', '.join(CHIPS)}, got "
            f"{topology!r}"
        )
    from jax.experimental import topologies
    from jax.experimental.compilation_cache import compilation_cache

    try:
        if CHIPS[name].platform == "cuda":
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {WITHOUT_GPU}"
            shape = f"1x1x{shape}"
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=shape, topology=shape, target_config=H100
            )
        else:
            for key, value in (
                ("TPU_SKIP_MDS_QUERY", "1"),
                ("TPU_ACCELERATOR_TYPE", name),
                ("TPU_WORKER_HOSTNAMES", "localhost"),
            ):
                os.environ.setdefault(key, value)
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # plugins raise many kinds
        extra = "cuda" if CHIPS[name].platform == "cuda" else "tpu"
        raise ValueError(
            f"no compiler for {topology} ({' '.join(str(error).split())[:200]}); "
            f'pip install "ddim_jax[{extra}]" brings it, or the shape is not one of {name}'
        ) from error
    jax.config.update("jax_enable_compilation_cache", False)  # it holds programs that can run
    compilation_cache.reset_cache()  # JAX asks the flag once
    return parallel.make_mesh(list(found.devices))


def compile_plan(
    lower: Callable[[Mesh], Any],
    topology: str,
    mesh: Mesh,
    folder: Path | None = None,
    repeats: int = 1,
    quick: bool = False,
) -> Plan:
    """Compiles, or reads what was found when the same program was compiled before.

    Args:
        lower: the program for a mesh, of `jax.jit(...).lower(...)`.
        topology: as of `mesh_of`.
        mesh: from `mesh_of`.
        folder: where plans are kept; default beside the compilation cache.
        repeats: how often the program's loop, which holds nearly all of its work, runs: compilers
            count the body of a loop once.
        quick: with little optimisation.
    """
    folder = folder or Path(jax.config.jax_compilation_cache_dir or ".") / "plans"
    chip = CHIPS[topology.partition(":")[0]]
    lowered = lower(mesh)
    asked = f"{topology} {jax.__version__} {repeats} traffic {quick} {lowered.as_text()}"
    path = folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    if path.exists():
        return Plan(**json.loads(path.read_text()))
    start = time.perf_counter()
    with _little_optimisation() if quick else contextlib.nullcontext():
        program = lowered.compile()
    text = program.as_text()
    repeats = repeats if " while(" in text else 1
    memory, cost = program.memory_analysis(), program.cost_analysis()
    if cost is None:  # of GPUs: the operations of the same program for one device that is here
        alone = lower(parallel.make_mesh(jax.devices("cpu")[:1])).cost_analysis()
        cost = {"flops": alone["flops"] / mesh.size}
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    total = sum(getattr(memory, part) for part in parts) - memory.alias_size_in_bytes
    plan = Plan(
        topology=topology,
        devices=mesh.size,
        memory=int(total),
        arguments=int(memory.argument_size_in_bytes),
        flops=repeats * float(cost.get("flops", 0.0)),
        bytes_accessed=float(repeats * programs.traffic(text) if chip.platform == "tpu" else 0),
        collectives=programs.collectives(text),
        compile_seconds=time.perf_counter() - start,
        quick=quick,
    )
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, plan._asdict())
    return plan


@contextlib.contextmanager
def _little_optimisation() -> Iterator[None]:
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0")
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def report(plan: Plan, what: str) -> str:
    """The plan in words.

    Args:
        plan: of a program.
        what: it does.
    """
    chip, bounds = plan.chip, plan.seconds
    most = max(bounds, key=bounds.get)
    sent = ", ".join(
        f"{count} {name} of {size / 1e6:,.1f} MB"
        for name, (count, size) in plan.collectives.items()
    )
    up_to, fits = ("up to ", "may not fit") if plan.quick else ("", "does not fit")
    traffic = f"{up_to}{plan.bytes_accessed / 1e9:,.2f} GB"
    if not plan.bytes_accessed:
        traffic = "unknown: programs for GPUs do not say what stays in a cache"
    elif not plan.quick:
        traffic += f", {bounds['memory'] * 1e3:,.2f} ms"
    return "\n".join(
        [
            f"{what} on {plan.devices} x {plan.topology.partition(':')[0]}, for each device:",
            f"  memory       {up_to}{plan.memory / 1e9:,.2f} GB of {chip.memory / 1e9:,.0f} "
            f"({plan.arguments / 1e9:,.2f} GB of it before the step): "
            + ("fits" if plan.fits else fits),
            f"  arithmetic   {plan.flops / 1e9:,.0f} GFLOP, {bounds['arithmetic'] * 1e3:,.2f} ms",
            f"  traffic      {traffic}",
            f"  links        {sent or 'nothing sent'}, {bounds['links'] * 1e3:,.2f} ms",
            f"  at best      {bounds[most] * 1e3:,.2f} ms, by {most}; "
            f"{plan.utilisation:.0%} of its arithmetic"
            + ("" if bounds["memory"] else ", traffic apart"),
            f"  compiled in  {plan.compile_seconds:,.0f} s" + (", quickly" if plan.quick else ""),
        ]
    )


def plan_training(config: Any, topology: str, quick: bool = False) -> Plan:
    """Compiles the train step of a config.

    Args:
        config: see `configs/`, of one stage.
        topology: as of `mesh_of`.
        quick: with little optimisation.

    Raises:
        ValueError: a config that cannot be; see `mesh_of`.
    """
    from ddim_jax.training import loop, starting

    if config.parallel == "pmap":
        raise ValueError("--plan is of parallel='jit' or 'fsdp'; pmap runs in one process")
    mesh, start = mesh_of(topology), starting.load(config)
    size, image_shape = config.train.batch_size, tuple(config.data.image_shape)

    def lower(mesh: Mesh) -> Any:
        parts, loss, optimizer, step = loop.build(config, start and start.experiment, mesh)
        state = loop.abstract_state(config, parts, optimizer, loss, start, mesh)
        sharding = NamedSharding(mesh, PartitionSpec(parallel.AXIS))

        def rows(dtype, *shape):
            return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

        batch = {"image": rows(np.uint8, *image_shape), "label": rows(np.int32)}
        return step.lower(state, batch | {"row": rows(np.int32)})

    return compile_plan(
        lower, topology, mesh, repeats=config.train.get("accumulate", 1), quick=quick
    )


def plan_sampling(
    model: Pretrained,
    table: SolverTable,
    topology: str,
    *,
    batch_size: int,
    guidance: Guidance | None = None,
    clip: str = "static",
    quick: bool = False,
) -> Plan:
    """Compiles a sampler.

    Args:
        model: what draws.
        table: the sampler.
        topology: as of `mesh_of`.
        batch_size: over all its devices.
        guidance: with a scalar scale; None for none.
        clip: "static", "dynamic" or "none".
        quick: with little optimisation.

    Raises:
        ValueError: a tolerance; a batch that the devices cannot share evenly; see `mesh_of`.
    """
    if isinstance(table, Tolerance):
        raise ValueError("solver adaptive has no fixed number of evaluations to plan; name another")
    mesh = mesh_of(topology)
    parallel.check_batch(batch_size, mesh.size)
    arguments = generation.arguments(model, table, np.arange(batch_size), guidance=guidance)

    def lower(mesh: Mesh) -> Any:
        rows = NamedSharding(mesh, PartitionSpec(parallel.AXIS))
        whole = NamedSharding(mesh, PartitionSpec())
        params, table, x, keys, cond, guidance, known = arguments

        def on(tree, sharding):
            shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
            )

        draw = model.experiment.sampler(clip=clip)
        params, table, guidance = (on(tree, whole) for tree in (params, table, guidance))
        return draw.lower(params, table, *(on(tree, rows) for tree in (x, keys, cond)), guidance)

    return compile_plan(lower, topology, mesh, repeats=table.nfe, quick=quick)


def advice(config: Any, plan: Plan) -> str:
    """What to change where a train step does not fit."""
    found = []
    remat = config.model.get("remat", "none")
    if remat == "none":
        found.append("--config.model.remat=convolutions computes norms and activations again")
    if remat == "convolutions":
        found.append("--config.model.remat=blocks computes convolutions again as well")
    if config.model.get("dtype", "float32") == "float32":
        found.append("--config.model.dtype=bfloat16 halves them")
    if config.parallel == "jit" and plan.arguments > 0.2 * plan.chip.memory:
        found.append("--config.parallel=fsdp splits the state over the devices")
    each = config.train.batch_size // plan.devices
    if each // config.train.get("accumulate", 1) > 1:
        found.append(f"--config.train.accumulate=2 takes the {each} images of a device in parts")
    found.append("or take more devices, or a smaller --config.train.batch_size")
    start = "it may not fit (ask without --quick): " if plan.quick else "it does not fit: "
    return start + "; ".join(found)
