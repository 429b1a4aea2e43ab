"""Devices that are not here: what their makers say of them, and meshes for their compilers.

The compilers of TPUs and GPUs run on any machine (`pip install "ddim_jax[tpu]"` or `[cuda]`).
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ddim_jax import parallel


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

CUBES = ("v4", "v5p")
"""TPUs whose shapes have three sides."""

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


@contextlib.contextmanager
def devices(topology: str) -> Iterator[Mesh]:
    """A mesh of devices that are not here, and their compiler, while the context lasts.

    Args:
        topology: chip:shape, like v5e:16x16, or chip:count, like h100:8; a count of TPUs that is a
            power of two stands for the squarest shape.

    Raises:
        ValueError: an unknown chip, a shape that there is not, a compiler that is not installed.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"0*[1-9]\d*(x0*[1-9]\d*)*", shape):
        raise ValueError(
            f"--plan must be like v5e:4x4 or h100:8, with one of {', '.join(CHIPS)}, got "
            f"{topology!r}"
        )
    cuda = CHIPS[name].platform == "cuda"
    with _environment(_variables(name, cuda)), _no_compilation_cache():
        try:
            described = _describe(topology, shape, cuda)
        except Exception as error:  # plugins raise many kinds
            extra, shape = "cuda" if cuda else "tpu", f"the shape is not one of {name}"
            way_out = f'pip install "ddim_jax[{extra}]" brings it, or {shape}'
            if not cuda and importlib.util.find_spec("libtpu"):
                way_out = f"{shape}: take another, such as {name}:4"
            raise ValueError(
                f"no compiler for {topology} ({' '.join(str(error).split())[:200]}); {way_out}"
            ) from error
        yield parallel.make_mesh(list(described.devices))


def _describe(topology: str, shape: str, cuda: bool) -> Any:
    from jax.experimental import topologies

    if not cuda:
        name = topology.partition(":")[0]
        topology = f"{name}:{squarest(name, shape)}"
        return topologies.get_topology_desc(platform="tpu", topology_name=topology)
    shape = f"1x1x{shape}"
    return topologies.get_topology_desc(
        platform="cuda", topology_name=shape, topology=shape, target_config=H100
    )


def squarest(name: str, shape: str) -> str:
    """The shape of a count of TPUs: 4 is 2x2 of a v5e and 2x2x1 of a v5p; others stay as they are.

    Args:
        name: of a TPU in `CHIPS`.
        shape: like "4x4" or "16".
    """
    if not shape.isdecimal() or (count := int(shape)) & (count - 1) or not count:
        return shape
    axes, bits = (3 if name in CUBES else 2), count.bit_length() - 1
    sides = [2 ** ((bits + axis) // axes) for axis in range(axes)]
    return "x".join(str(side) for side in (sides[::-1] if name in CUBES else sides))


def _variables(name: str, cuda: bool) -> dict[str, str]:
    """What the compiler reads from the environment."""
    if cuda:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {WITHOUT_GPU}"
        # without a driver some versions of CUPTI do not say which they are
        return {"XLA_FLAGS": flags, "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    wanted = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": name,
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    return {key: os.environ.get(key, value) for key, value in wanted.items()}


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Without the cache on disk, which holds programs that can run."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks the flag once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
