"""Devices: one mesh over all of them, batches split over its "data" axis, parameters on each.

`jit` with shardings is the default; `pmap` runs the same pure functions, one program per device,
with gradients averaged over the axis "data", and gives equal results.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"
MODES = ("jit", "pmap")


def use_cpu_cores(most: int = 8) -> None:
    """Makes the CPU back end show one device per core (a power of two of them, at most `most`).

    Small networks run up to twice as fast on two host devices as on one with two threads. Does
    nothing if XLA_FLAGS already says how many; call it before the first computation. Accelerators
    are not affected.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = 2 ** int(np.log2(max(1, min(cores or 1, most))))
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start compiles nothing.

    In `JAX_COMPILATION_CACHE_DIR`, or `~/.cache/ddim_jax`.
    """
    default = os.path.join(os.path.expanduser("~"), ".cache", "ddim_jax")
    path = os.environ.get("JAX_COMPILATION_CACHE_DIR") or default
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def make_mesh(devices: list | None = None) -> Mesh:
    """A mesh ("data", "model") over all devices of all processes; "model" has size 1."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices).reshape(-1, 1), (AXIS, "model"))


def check_batch(batch_size: int, count: int | None = None) -> None:
    """Raises ValueError unless a batch can be split evenly over the devices."""
    count = count or jax.device_count()
    if batch_size % count:
        raise ValueError(
            f"batch_size must be divisible by the {count} devices, got {batch_size}; "
            f"use {max(1, round(batch_size / count)) * count}"
        )


def shard(tree: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of every [B, ...] leaf on its devices, split over "data"."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: _global(x, sharding), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _global(x: Any, sharding: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, x)


def parallelise_step(make: Callable[[str | None], Callable], mode: str) -> Callable:
    """A compiled, donated, data-parallel train step.

    Args:
        make: axis name (None under jit) -> pure step `(state, batch) -> (state, metrics)`.
        mode: "jit" or "pmap".

    Returns:
        `(state, batch) -> (state, metrics)`. Under jit the state is replicated and the batch
        sharded (`replicate`, `shard`); under pmap the batch is a host batch and the state keeps its
        shapes, each device holding a copy.

    Raises:
        ValueError: unknown mode; pmap with several processes.
    """
    _check_mode(mode)
    if mode == "jit":
        return jax.jit(make(None), donate_argnums=0)
    step = jax.pmap(make(AXIS), axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None))
    return lambda state, batch: step(state, _split(batch))


def pmap_sampler(sample: Callable) -> Callable:
    """A sampler `f(params, table, x, keys, cond=None, guidance=None)` under `jax.pmap`.

    x, keys and cond are split over the devices, everything else is given whole to each; results
    come back as one batch. A guidance scale of shape [B] must be a scalar here.
    """
    mapped = jax.pmap(sample, in_axes=(None, None, 0, 0, 0, None))

    def call(params, table, x, keys, cond=None, guidance=None):
        result = mapped(params, table, *_split((x, keys, cond)), guidance)
        join = lambda a: a.reshape((-1,) + a.shape[2:])  # noqa: E731
        collected = {
            name: np.moveaxis(np.asarray(a), 0, 1).reshape((a.shape[1], -1) + a.shape[3:])
            for name, a in result.collected.items()
        }
        return result._replace(
            x=join(result.x), state=jax.tree.map(join, result.state), collected=collected
        )

    return call


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"parallel must be 'jit' or 'pmap', got {mode!r}")
    if mode == "pmap" and jax.process_count() > 1:
        raise ValueError("parallel='pmap' runs in one process; use 'jit' across processes")


def _split(tree: Any) -> Any:
    count = jax.local_device_count()
    for leaf in jax.tree.leaves(tree):
        check_batch(leaf.shape[0], count)
    return jax.tree.map(lambda x: x.reshape((count, -1) + x.shape[1:]), tree)
