"""Test set-up: CPU with two host devices, strict ranks, strict dtypes for the maths, `--slow`."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
FLAGS = [
    "--xla_force_host_platform_device_count=2",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",  # of busy machines
    # many small programs: compiling them is most of the time, running them next to none
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # one module of code, of the rest a fifth
]
if [int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2]] < [0, 11]:
    # they take half of the compiler's time; later ones have no way without
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])

import jax  # noqa: E402  (the flags above are read when jax starts)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests import pictures  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# the same tiny network is trained many times; compile it once for all workers
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name  # for workers, and for the commands
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


def resident_bytes():
    """Memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


MOST = 1.8e9
"""Bytes from which compiled programs are forgotten: a worker would grow to 5 GB by the end."""


@pytest.fixture(autouse=True)
def forget_programs():
    yield
    global MOST
    if resident_bytes() > MOST:
        for name in ("programs", "codecs", "texts"):  # those that are kept to be used again
            for kept in vars(sys.modules.get(f"ddim_jax.{name}", sys)).values():
                getattr(kept, "cache_clear", lambda: None)()
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back to the system
        MOST = max(1.8e9, resident_bytes() + 3e8)


@pytest.fixture(autouse=True)
def same_random_numbers(request):
    """A module's RNG starts anew for each test: a test sees the same in any order."""
    for module in (pictures, request.module):
        if isinstance(rng := getattr(module, "RNG", None), np.random.Generator):
            rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def strict_dtypes():
    """No implicit dtype promotion. For our maths only: optax's schedules promote implicitly."""
    with jax.numpy_dtype_promotion("strict"):
        yield
