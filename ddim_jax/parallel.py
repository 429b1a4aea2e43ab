"""Devices: one mesh over all of them, batches split over its "data" axis, parameters on each.

    jit     the default: `jit` with shardings, parameters whole on every device
    fsdp    the same, parameters, moments and averages split over the devices, and put together only
            while the network runs
    pmap    one program per device, gradients averaged over the axis "data"; in one process

run the same pure functions and give equal results. With several processes (`join`) each has its
rows of a batch and its part of the mesh.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddim_jax import sampling

Array = Any
AXIS = "data"
MODES = ("jit", "fsdp", "pmap")
SPLIT_FROM = 2**12
"""Leaves with fewer numbers are not worth splitting."""
LONGEST = 7 * 24 * 3600
"""Seconds for which a process that has ended waits for the others."""


PATIENCE = "xla_cpu_collective_call_terminate_timeout_seconds"
"""XLA's flag: how long one host device waits for another before the process is aborted."""


def use_cpu_cores(most: int = 8) -> None:
    """Makes the CPU back end show one device per core (a power of two of them, at most `most`).

    Small networks run up to twice as fast on two host devices as on one with two threads. Does
    nothing if XLA_FLAGS already says how many; call it before the first computation. Accelerators
    are not affected. On a machine that other work keeps busy one device may wait for another for
    longer than XLA's own 40 seconds: ten minutes, unless XLA_FLAGS says.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = 2 ** int(np.log2(max(1, min(cores or 1, most))))
    flags += "" if PATIENCE in flags else f" --{PATIENCE}=600"
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start compiles nothing.

    In `JAX_COMPILATION_CACHE_DIR`, or `~/.cache/ddim_jax`.
    """
    default = os.path.join(os.path.expanduser("~"), ".cache", "ddim_jax")
    path = os.environ.get("JAX_COMPILATION_CACHE_DIR") or default
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def join(required: bool = False) -> None:
    """Joins the other processes of this run, if there are any; call it before any computation.

    They are found from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by JAX
    itself in the environment of a TPU pod, SLURM or Open MPI.

    Args:
        required: look for them though nothing in the environment says that there are any, as on a
            slice of Cloud TPU VMs.

    Raises:
        ValueError: not all of the three variables are set; no other processes were found though
            required.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    tasks = max(
        int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    if not (required or given or tasks > 1 or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")):
        return
    if given and len(given) < len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise ValueError(f"a process of several needs {missing} too; set all three variables")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # at its end each waits for the others, which may have more to draw
    patient = dict(shutdown_timeout_seconds=LONGEST)
    try:
        if given:
            address, count, index = given.values()
            jax.distributed.initialize(address, int(count), int(index), **patient)
        else:
            jax.distributed.initialize(**patient)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the other processes were not found ({' '.join(str(error).split())}); set {names[0]} "
            f"to HOST:PORT of the first one, and {names[1]} and {names[2]}"
        ) from error


def make_mesh(devices: list | None = None) -> Mesh:
    """A mesh ("data", "model") over all devices of all processes; "model" has size 1."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices).reshape(-1, 1), (AXIS, "model"))


def check_batch(batch_size: int, count: int | None = None) -> None:
    """Raises ValueError unless a batch can be split evenly over the devices."""
    count = count or jax.device_count()
    if batch_size % count or batch_size < 1:
        raise ValueError(
            f"batch_size must be divisible by the {count} devices, got {batch_size}; "
            f"use {max(1, round(batch_size / count)) * count}"
        )


def shard(tree: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of every [B, ...] leaf on its devices, split over "data"."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def by_rows(function: Callable, mesh: Mesh) -> Callable:
    """`function(whole, *rows) -> rows`, each device of a mesh with its own rows, inside a program.

    For loops over rows, which would else be done for all rows by every device.

    Args:
        function: its first argument is the same on all devices, the others are [B, ...].
        mesh: from `make_mesh`; its devices divide B.
    """

    def run(whole, *rows):
        specs = (PartitionSpec(), *[PartitionSpec(AXIS)] * len(rows))
        options = dict(in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)
        return jax.shard_map(function, mesh=mesh, **options)(whole, *rows)

    return run


def layout(tree: Any, mesh: Mesh, mode: str) -> Any:
    """The sharding of every leaf of a training state.

    With "fsdp" a leaf of `SPLIT_FROM` numbers or more is split along its longest axis that the
    devices divide evenly, the last of several; everything else is whole on every device.

    Args:
        tree: arrays or their shapes.
        mesh: from `make_mesh`.
        mode: in `MODES`.
    """
    count = mesh.shape[AXIS]

    def sharding(leaf: Any) -> NamedSharding:
        axes = [n for n, size in enumerate(leaf.shape) if size % count == 0]
        if mode != "fsdp" or np.prod(leaf.shape) < SPLIT_FROM or not axes:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(axes, key=lambda n: (leaf.shape[n], n))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree.map(sharding, tree)


def place(tree: Any, mesh: Mesh, mode: str) -> Any:
    """Puts a tree, the same in all processes, where `layout` says; on one device for pmap."""
    if mode == "pmap":
        return jax.device_put(tree)
    return jax.jit(lambda tree: tree, out_shardings=layout(tree, mesh, mode))(tree)


def whole(tree: Any, mesh: Mesh) -> Any:
    """The tree whole on every device of the mesh, inside a program."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def fetch(tree: Any, mesh: Mesh) -> Any:
    """The tree as arrays that this process can use alone; all processes must call it."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return tree
    together = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return jax.device_get(together(tree))


def parallelise_step(make: Callable[..., Callable], mode: str, mesh: Mesh) -> Callable:
    """A compiled, donated, data-parallel train step.

    Args:
        make: (axis name or None, function that puts parameters together or None) -> pure step
            `(state, batch, fixed) -> (state, metrics)`.
        mode: in `MODES`.
        mesh: of the devices.

    Returns:
        `(state, batch, fixed=None) -> (state, metrics)`, where fixed are parameters that do not
        change (`place`). Under jit and fsdp the state lies as `layout` says and the batch is
        sharded (`shard`), and the new state lies like the old; under pmap the batch is a host batch
        and the state keeps its shapes, each device holding a copy.

    Raises:
        ValueError: unknown mode; pmap with several processes.
    """
    _check_mode(mode)
    if mode == "pmap":
        axes = dict(in_axes=(None, 0, None), out_axes=(None, None))
        mapped, count = jax.pmap(make(AXIS), axis_name=AXIS, **axes), jax.local_device_count()
        return lambda state, batch, fixed=None: mapped(state, _split(batch, count), fixed)
    if mode == "jit":
        return jax.jit(make(None), donate_argnums=0)
    plain = make(None, lambda tree: whole(tree, mesh))

    def step(state, batch, fixed=None):
        state, metrics = plain(state, batch, whole(fixed, mesh))
        return jax.lax.with_sharding_constraint(state, layout(state, mesh, mode)), metrics

    return jax.jit(step, donate_argnums=0)


def pmap_program(sampler: Callable, devices: list, arguments: tuple) -> Callable:
    """A sampler compiled under `jax.pmap`, called like the sampler.

    Args:
        sampler: `(params, table, x, keys, inputs, guidance, known) -> result`; x, keys, inputs and
            known are split over the devices, the rest is given whole to each.
        devices: of this process.
        arguments: of the sampler, as they will be, but for their values. A guidance scale must be
            a scalar.
    """
    mapped = jax.pmap(sampler, in_axes=(None, None, 0, 0, 0, None, 0), devices=devices)

    def spread(params, table, x, keys, inputs, guidance, known):
        x, keys, inputs, known = _split((x, keys, inputs, known), len(devices))
        return params, table, x, keys, inputs, guidance, known

    program = mapped.lower(*spread(*arguments)).compile()

    def call(*arguments):
        result = program(*spread(*arguments))
        if not isinstance(result, sampling.RunResult):
            return jax.tree.map(_join, result)
        rows_first = {k: np.moveaxis(np.asarray(a), 1, 2) for k, a in result.collected.items()}
        collected = {k: np.moveaxis(_join(a), 1, 0) for k, a in rows_first.items()}
        x, state = jax.tree.map(_join, (result.x, result.state))
        return sampling.RunResult(x, state, collected)

    return call


def _join(leaf: Array) -> Array:
    """[devices, B, ...] -> [devices * B, ...]."""
    return leaf.reshape((-1,) + leaf.shape[2:])


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"parallel must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "pmap" and jax.process_count() > 1:
        raise ValueError("parallel='pmap' runs in one process; use 'jit' across processes")


def _split(tree: Any, count: int) -> Any:
    for leaf in jax.tree.leaves(tree):
        check_batch(leaf.shape[0], count)
    return jax.tree.map(lambda x: x.reshape((count, -1) + x.shape[1:]), tree)
