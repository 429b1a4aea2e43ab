"""Plans: the parts that need no compiler but the CPU's; those of TPUs and GPUs are extras."""

import contextlib
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from jax.sharding import NamedSharding, PartitionSpec

from configs import digits
from ddim_jax import checkpoints, parallel, planning, program_cost
from ddim_jax.commands import sample
from ddim_jax.topologies import devices, squarest
from tests.tiny import tiny
from tests.tiny_pipeline import tiny_pipeline


def plan(**changes):
    given = dict(
        topology="v5e:2x2",
        devices=4,
        memory=int(2e9),
        arguments=int(1e9),
        flops=197e9,
        bytes_accessed=819e6 * 4,
        collectives={"all-reduce": (1, 200_000_000)},
        compile_seconds=3.0,
    )
    return planning.Plan(**given | changes)


def test_bounds_are_sizes_over_the_chips_rates():
    bounds = plan().seconds
    np.testing.assert_allclose(
        [bounds[name] for name in ("arithmetic", "memory", "links")], [1e-3, 4e-3, 1e-3]
    )
    assert plan().utilisation == 0.25
    text = planning.report(plan(), "A step")
    assert "2.00 GB of 16" in text and "4.00 ms, by memory; 25% of its arithmetic" in text
    assert "1 all-reduce of 200.0 MB, 1.00 ms" in text and ": fits" in text
    assert "unknown" in planning.report(plan(bytes_accessed=0.0, topology="h100:8"), "A step")


def test_bounds_from_above_are_no_bounds_of_the_time():
    quick = plan(quick=True)
    text = planning.report(quick, "A step")
    assert "up to 2.00 GB of 16" in text and "up to 3.28 GB\n" in text
    assert "1.00 ms, by arithmetic; 100% of its arithmetic, traffic apart" in text
    much = plan(quick=True, memory=int(17e9))
    assert "may not fit" in planning.report(much, "A step")
    assert "ask without --quick" in planning.advice(tiny(digits.get_config()), much)


def test_advice_names_what_is_not_yet_done():
    config = tiny(digits.get_config())
    config.train.batch_size = 64
    much = plan(memory=int(17e9), arguments=int(5e9))
    assert not much.fits and "does not fit" in planning.report(much, "A step")
    text = planning.advice(config, much)
    for part in ("remat=convolutions", "dtype=bfloat16", "parallel=fsdp", "accumulate=2"):
        assert part in text
    config.model.remat = "convolutions"
    assert "model.remat=blocks" in planning.advice(config, much)
    config.model.remat, config.model.dtype, config.parallel = "blocks", "bfloat16", "fsdp"
    config.train.batch_size = 4
    assert planning.advice(config, much).startswith("it does not fit: or take more devices")
    config.train.update(batch_size=24, accumulate=2)  # 6 on each of four devices
    assert "accumulate=3 takes 2 images at a time" in planning.advice(config, much)
    config.model.update(name="dit", remat="none")
    assert "remat=products" in planning.advice(config, much)
    with config.unlocked():
        config.model = dict(name="autoencoder_kl")
    assert "remat" not in planning.advice(config, much)


def test_a_program_is_compiled_once(tmp_path):
    """For the devices that are here: 2 x 8 x 16 x 32 operations, split over two of them."""
    mesh = parallel.make_mesh()
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    def trace(mesh):
        x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows)
        w = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=whole)
        return jax.jit(lambda x, w: (x @ w).sum(0), out_shardings=whole).trace(x, w)

    first = planning.compile_plan(trace, "v5e:2", mesh, tmp_path)
    assert first.devices == 2 and first.arguments == 4 * (4 * 16 + 16 * 32)
    assert 0.9 < first.flops / (2 * 8 * 16 * 32 / 2) < 1.3
    assert first.collectives == {"all-reduce": (1, 4 * 32)}
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace('"devices": 2', '"devices": 3'))
    assert planning.compile_plan(trace, "v5e:2", mesh, tmp_path).devices == 3
    planning.compile_plan(trace, "v5e:4", mesh, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    quick = planning.compile_plan(trace, "v5e:2", mesh, tmp_path, quick=True)
    assert quick.quick and quick.devices == 2 and quick.flops == first.flops
    assert "compiled in" in (text := planning.report(quick, "A step")) and ", quickly" in text
    assert jax.config.jax_optimization_level != "O0"


@pytest.mark.parametrize("count", [1, 40])
def test_the_work_of_a_loop_is_counted_as_often_as_it_is_done(tmp_path, count):
    def trace(mesh):
        x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
        step = lambda x, _: (jnp.tanh(x @ x), None)  # noqa: E731
        return jax.jit(lambda x: jax.lax.scan(step, x, None, length=count)[0]).trace(x)

    found = planning.compile_plan(trace, "v5e:1", parallel.make_mesh(), tmp_path, count)
    assert 0.9 < found.flops / (count * 2 * 64**3) < 1.3


def test_a_loop_within_a_loop_is_counted_as_often_as_it_is_run(tmp_path):
    def trace(mesh):
        x = jax.ShapeDtypeStruct((64, 64), jnp.float32)

        def times(x, step, length):
            return jax.lax.scan(lambda x, _: (step(x), None), x, None, length=length)[0]

        return jax.jit(lambda x: times(x, lambda x: times(x, lambda x: x @ x, 7), 5)).trace(x)

    found = planning.compile_plan(trace, "v5e:1", parallel.make_mesh(), tmp_path, 5)
    assert 0.9 < found.flops / (35 * 2 * 64**3 / found.devices) < 1.3


@pytest.mark.parametrize(
    "name, count, shape",
    [
        ("v5e", "4", "2x2"), ("v5e", "8", "2x4"), ("v6e", "256", "16x16"), ("v5p", "4", "2x2x1"),
        ("v4", "64", "4x4x4"), ("v5e", "2x4", "2x4"), ("v5e", "6", "6"), ("v5e", "0", "0"),
    ],
)  # fmt: skip
def test_counts_of_devices_stand_for_the_squarest_shape(name, count, shape):
    assert squarest(name, count) == shape


@pytest.fixture
def devices_here(monkeypatch):
    """Plans are for the devices that are here."""
    here = lambda topology: contextlib.nullcontext(parallel.make_mesh())  # noqa: E731
    monkeypatch.setattr(planning, "devices", here)


@pytest.mark.slow
def test_drawing_latents_with_split_parameters(devices_here, monkeypatch):
    monkeypatch.setattr(parallel, "SPLIT_FROM", 2**6)
    model = tiny_pipeline()
    split = planning.plan_sampling(model, model.recipe, "v5e:2", batch_size=2, mode="fsdp")
    assert split.arguments < 0.7 * sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert split.flops > 4 * 2 * 2 * 8 * 8 * 9 * 8 * 8  # of one convolution in 4 evaluations
    text = planning.apart(model)
    assert "apart        the autoencoder, 0.00 GB" in text and "; text encoders, 0.00 GB" in text
    assert planning.apart(checkpoints.load("digits")) == ""
    with pytest.raises(ValueError, match="--plan is of parallel='jit' or 'fsdp'"):
        planning.plan_sampling(model, model.recipe, "v5e:2", batch_size=2, mode="pmap")


@pytest.mark.parametrize("mode", ["jit", "fsdp"])
def test_a_published_model_by_its_shapes(devices_here, monkeypatch, capsys, mode):
    """DiT-XL/2 is published with 118.6 billion products; twice of them, and twice guided."""

    def compile_plan(trace, topology, mesh, **options):
        each = program_cost.product_flops(trace(mesh).jaxpr) / mesh.size
        return plan(topology=topology, devices=mesh.size, flops=each, quick=options["quick"])

    monkeypatch.setattr(planning, "compile_plan", compile_plan)
    sample.flags.FLAGS(["sample.py"])
    given = dict(plan="v5e:4", checkpoint="shapes:dit-xl-2", quick=True, steps=10, parallel=mode)
    with flagsaver.flagsaver(batch_size=2, **given):
        sample.run(["sample.py"])
    text = capsys.readouterr().out
    flops = float(re.search(r"arithmetic +([\d,]+) GFLOP", text)[1].replace(",", ""))
    assert 0.97 < flops / (10 * 2 * 2 * 118.6) < 1.03
    assert "fits" in text and "the autoencoder, 0.17 GB" in text


def test_a_train_step_that_encodes_its_pictures(devices_here, monkeypatch):
    """The autoencoder's products are counted, and are none where latents are kept."""
    found = {}

    def compile_plan(trace, topology, mesh, **options):
        return program_cost.product_flops(trace(mesh).jaxpr)

    monkeypatch.setattr(planning, "compile_plan", compile_plan)
    for cache in (False, True):
        config = tiny(digits.get_config(), levels=1)
        config.data.update(image_shape=(8, 8, 3), channels=3, cache=cache)
        config.codec = dict(name="autoencoder_kl", widths=(8, 8), num_blocks=1, groups=4)
        config.model.out_channels = 4
        found[cache] = planning.plan_training(config, "v5e:2")
    first = 2 * 4 * 8 * 8 * 9 * 3 * 8  # its first convolution alone
    assert first < found[False] - found[True]


@pytest.mark.parametrize(
    "topology", ["", "v5e", "b200:8", "v5e:", "v5e:4x", "h100:2x4x", "v5e:0", "h100:8x0"]
)
def test_unknown_devices(topology):
    with pytest.raises(ValueError, match="--plan must be like v5e:4x4 or h100:8, with one of v4,"):
        with devices(topology):
            pass


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_the_extra_is_named():
    with pytest.raises(
        ValueError, match=r'no compiler for v5e:2x2 .*pip install "ddim_jax\[tpu\]"'
    ):
        with devices("v5e:2x2"):
            pass


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_train_step_for_a_tpu():
    config = tiny(digits.get_config(), levels=1)
    found = planning.plan_training(config, "v5e:2x2")
    assert found.fits and found.devices == 4 and found.collectives["all-reduce"][0] == 1


def test_planning_leaves_environment_and_cache_as_they_were(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    before, cache = dict(os.environ), jax.config.jax_enable_compilation_cache
    for topology in ("h100:2", "v5e:2x2"):
        with contextlib.suppress(ValueError), devices(topology):
            pass
        assert dict(os.environ) == before
        assert jax.config.jax_enable_compilation_cache == cache


def test_pmap_is_not_planned():
    config = tiny(digits.get_config(), levels=1)
    config.parallel = "pmap"
    with pytest.raises(ValueError, match="--plan is of parallel='jit' or 'fsdp'"):
        planning.plan_training(config, "v5e:2x2")
