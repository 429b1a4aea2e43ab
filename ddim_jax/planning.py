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
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddim_jax import experiment, files, parallel, program_cost, sampling
from ddim_jax.checkpoints.parts import network_shapes
from ddim_jax.dropping import NULL
from ddim_jax.experiment import build_autoencoder
from ddim_jax.model import Model
from ddim_jax.names import check_range
from ddim_jax.networks import AUTOENCODERS
from ddim_jax.recipe import ADAPTIVE, Recipe
from ddim_jax.topologies import CHIPS, Chip, devices
from ddim_jax.training import loop, teacher
from ddim_jax.training.method import build


class Plan(NamedTuple):
    """What a program needs, for each device.

    Attributes:
        topology: as it was asked for, like v5e:4x4.
        devices: how many.
        memory: bytes: arguments, results and temporaries, what is donated once.
        arguments: bytes, of the memory.
        flops: operations.
        bytes_accessed: of the device's memory, see `program_cost.traffic`; 0 of GPUs, whose
            programs do not say what stays in a cache.
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


def compile_plan(
    trace: Callable[[Mesh], Any],
    topology: str,
    mesh: Mesh,
    folder: Path | None = None,
    repeats: int = 1,
    quick: bool = False,
) -> Plan:
    """Compiles, or reads what was found when the same program was compiled before.

    Args:
        trace: the program for a mesh, of `jax.jit(...).trace(...)`.
        topology: as of `devices`.
        mesh: from `devices`.
        folder: where plans are kept; default beside the compilation cache.
        repeats: how often the program's loop, which holds nearly all of its work, runs: of
            operations compilers count the body of a loop once.
        quick: with little optimisation.
    """
    folder = folder or Path(jax.config.jax_compilation_cache_dir or ".") / "plans"
    chip = CHIPS[topology.partition(":")[0]]
    traced = trace(mesh)
    lowered = traced.lower()
    asked = (
        f"{topology} {jax.__version__} {repeats} loops, parts, goes on {quick} {_compiler()}"
        f"{lowered.as_text()}"
    )
    path = folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    if path.exists():
        return Plan(**json.loads(path.read_text()))
    start = time.perf_counter()
    with _little_optimisation() if quick else contextlib.nullcontext():
        program = lowered.compile()
    text = program.as_text()
    repeats = repeats if " while(" in text else 1
    cost = program.cost_analysis()
    if cost is None:  # of GPUs: the operations of the same program for one device that is here
        alone = trace(parallel.make_mesh(jax.devices("cpu")[:1])).lower().cost_analysis()
        cost = {"flops": alone["flops"] / mesh.size}
    products = program_cost.product_flops(traced.jaxpr) / mesh.size  # in loops within loops as well
    plan = Plan(
        topology=topology,
        devices=mesh.size,
        memory=program_cost.memory_bytes(program),
        arguments=int(program.memory_analysis().argument_size_in_bytes),
        flops=max(products, repeats * float(cost.get("flops", 0.0))),
        bytes_accessed=float(program_cost.traffic(text) if chip.platform == "tpu" else 0),
        collectives=program_cost.collectives(text),
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
        topology: as of `devices`.
        quick: with little optimisation.

    Raises:
        ValueError: a config that cannot be; see `devices`.
    """
    if config.get("parallel") == "pmap":
        raise ValueError("--plan is of parallel='jit' or 'fsdp'; pmap runs in one process")
    size = config.train.batch_size

    def trace(mesh: Mesh) -> Any:
        method = build(config, start, mesh)
        state = loop.abstract_state(config, method, start, mesh)
        sharding = NamedSharding(mesh, PartitionSpec(parallel.AXIS))

        def rows(dtype, *shape):
            return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

        codec, kind, shapes = method.model.codec, np.uint8, None
        shape = codec.picture_shape
        encoded = config.data.get("cache", False) or experiment.data_kind(config) == "latents"
        if config.get("codec") and encoded:
            shape, kind = codec.sample_shape, np.float32
        elif config.get("codec"):
            shapes = network_shapes(build_autoencoder(config.codec), shape[-3:])
        batch = {"image": rows(kind, *shape), "label": rows(np.int32)}
        told = method.model.inputs
        batch |= {
            name: rows(told.declared[name].dtype, *told.declared[name].shape) for name in told.null
        }
        fixed = _on(shapes, parallel.layout(shapes, mesh, config.parallel))
        return method.step.trace(state, batch | {"row": rows(np.int32)}, fixed)

    with devices(topology) as mesh:  # before anything starts a backend, which reads XLA_FLAGS once
        start = _without_texts(teacher.load(config))
        config = teacher.resolve(config, start)
        return compile_plan(
            trace, topology, mesh, repeats=config.train.get("accumulate", 1), quick=quick
        )


def plan_sampling(
    model: Model,
    recipe: Recipe,
    topology: str,
    *,
    batch_size: int,
    mode: str = "jit",
    quick: bool = False,
) -> Plan:
    """Compiles a sampler; what encodes texts and decodes latents is apart.

    Args:
        model: what draws.
        recipe: how, with a table.
        topology: as of `devices`.
        batch_size: over all its devices.
        mode: "jit", or "fsdp" with the parameters split over the devices.
        quick: with little optimisation.

    Raises:
        ValueError: an adaptive solver; another mode; a batch that the devices cannot share evenly;
            see `devices`.
    """
    if recipe.solver == ADAPTIVE:
        raise ValueError("solver adaptive has no fixed number of evaluations to plan; name another")
    if mode == "pmap":
        raise ValueError("--plan is of parallel='jit' or 'fsdp'; pmap runs in one process")
    check_range("batch_size", batch_size, f"[1, {2**31}]", whole=True)
    table = recipe.table(model.schedule)
    labels = model.inputs.labels(None, batch_size)
    told = model.conditions(batch_size, recipe, labels, table, prompt=_features(model))
    keys = jax.eval_shape(lambda: sampling.sample_keys(0, np.arange(batch_size)))
    noise = jax.ShapeDtypeStruct((batch_size, *model.sample_shape), jnp.float32)

    def trace(mesh: Mesh) -> Any:
        rows = NamedSharding(mesh, PartitionSpec(parallel.AXIS))

        def split(tree):
            return jax.tree.map(lambda leaf: rows, tree)

        def whole(tree):
            return parallel.layout(tree, mesh, "jit")

        def on(tree, layout):
            shapes = jax.eval_shape(lambda tree: jax.tree.map(jnp.asarray, tree), tree)
            return _on(shapes, layout(shapes))

        params = on(model.params, lambda tree: parallel.layout(tree, mesh, mode))
        fixed = [on(tree, whole) for tree in (table, told["guidance"])]
        varied = [on(tree, split) for tree in (noise, keys, told["inputs"])]
        return model.sampler(recipe).trace(params, fixed[0], *varied, fixed[1])

    with devices(topology) as mesh:
        parallel.check_batch(batch_size, mesh.size)
        return compile_plan(trace, topology, mesh, repeats=table.nfe, quick=quick)


def _compiler() -> str:
    """What of the surroundings changes a compiled program."""
    found = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found.append(importlib.metadata.version("libtpu"))
    return " ".join(found)


def _without_texts(start: Model | None) -> Model | None:
    """A model without what encodes its texts, where that has no numbers: it is told features."""
    if start is None or start.inputs.encode is None:
        return start
    return start.replace(inputs=dataclasses.replace(start.inputs, encode=None))


def _on(shapes: Any, layout: Any) -> Any:
    """Shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, layout
    )


def _features(model: Model) -> dict[str, Any] | None:
    """What a network is told of a text and of a null one, zeros: only their shapes matter."""
    if not model.inputs.takes("text"):
        return None
    declared = {name: model.inputs.declared.get(name) for name in ("text", "vector")}
    zeros = {name: np.zeros((1, *put.shape), put.dtype) for name, put in declared.items() if put}
    return zeros | {NULL: zeros}


def apart(model: Model) -> str:
    """What is on each device beside, in a line; "" for models of pixels."""
    codec, texts = model.codec.params, model.inputs.encode
    if codec is None:
        return ""
    found = f"apart        the autoencoder, {_gigabytes(codec):.2f} GB, which decodes afterwards"
    return found + (f"; text encoders, {_gigabytes(texts.params):.2f} GB, before" if texts else "")


def _gigabytes(params: Any) -> float:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) / 1e9


def advice(config: Any, plan: Plan) -> str:
    """What to change where a train step does not fit."""
    changes = []
    remat = config.model.get("remat", "none")
    dit = config.model.get("name", "unet").endswith("dit")
    if config.model.get("name") in AUTOENCODERS:
        remat = "blocks"  # they have no such option
    if remat == "none":
        kept = "products" if dit else "convolutions"
        changes.append(f"--config.model.remat={kept} computes norms and activations again")
    if remat in ("convolutions", "products") and not (dit and remat == "convolutions"):
        changes.append("--config.model.remat=blocks computes whole blocks again")
    if config.model.get("dtype", "float32") == "float32":
        changes.append("--config.model.dtype=bfloat16 halves them")
    if config.parallel == "jit" and plan.arguments > 0.2 * plan.chip.memory:
        changes.append("--config.parallel=fsdp splits the state over the devices")
    each = config.train.batch_size // plan.devices
    parts = config.train.get("accumulate", 1)
    more = next((n for n in range(parts + 1, each + 1) if each % n == 0), None)
    if more is not None:
        changes.append(f"--config.train.accumulate={more} takes {each // more} images at a time")
    changes.append("or take more devices, or a smaller --config.train.batch_size")
    start = "it may not fit (ask without --quick): " if plan.quick else "it does not fit: "
    return start + "; ".join(changes)
