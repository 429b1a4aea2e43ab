"""Meshes, shards, and the checks before them."""

import os

import jax
import numpy as np
import pytest

from ddim_jax import parallel


def test_a_batch_is_split_over_the_devices_and_parameters_are_copied():
    mesh = parallel.make_mesh()
    assert mesh.axis_names == ("data", "model") and mesh.size == jax.device_count() == 2
    batch = parallel.shard({"image": np.arange(8).reshape(4, 2)}, mesh)["image"]
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2, 2), (2, 2)]
    params = parallel.replicate({"w": np.ones((4, 2))}, mesh)["w"]
    assert [shard.data.shape for shard in params.addressable_shards] == [(4, 2), (4, 2)]


def test_bad_modes_and_batches():
    with pytest.raises(ValueError, match="parallel must be one of jit, fsdp, pmap, got 'xmap'"):
        parallel.parallelise_step(lambda axis: None, "xmap", parallel.make_mesh())
    with pytest.raises(ValueError, match="divisible by the 2 devices, got 7; use 8"):
        parallel.check_batch(7, 2)


@pytest.mark.parametrize("cores, count", [(1, 1), (2, 2), (3, 2), (6, 4), (64, 8)])
def test_the_cpu_shows_a_power_of_two_of_its_cores(monkeypatch, cores, count):
    monkeypatch.setenv("XLA_FLAGS", "--xla_something=1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    parallel.use_cpu_cores()
    patience = f"--{parallel.PATIENCE}=600"
    expected = f"--xla_something=1 {patience} --xla_force_host_platform_device_count={count}"
    assert os.environ["XLA_FLAGS"] == expected
    parallel.use_cpu_cores(most=1)  # what is set already stays
    assert os.environ["XLA_FLAGS"] == expected
