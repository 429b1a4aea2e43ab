"""ONNX by jax2onnx: one graph for a row of any table, or the evaluations of one table unrolled.

The batch is open. Standard operators only, so that any runtime reads the file. What the converter
leaves to do is done here: the shapes that it notes between nodes are dropped (2 B is noted as B
there, and runtimes trust them), and constants are folded once instead of at every start of a page.
There are no random numbers in ONNX: noise comes from outside.
"""

import contextlib
import importlib.metadata
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax import export

from ddim_jax.export import graph
from ddim_jax.export.graph import Case, Graph
from ddim_jax.export.made import Made, converting, need
from ddim_jax.export.unlooped import unlooped
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SolverTable

Array = Any
SUFFIX = ".onnx"
OPSET = 21
INSTALL = '"ddim_jax[onnx]" and then pip install --no-deps jax2onnx==0.17.1'
PACKAGES = ("jax2onnx", "onnx", "onnxruntime")


def make(model: Model, recipe: Recipe, table: SolverTable | None = None) -> Made:
    """The file, and how to draw with it.

    Args:
        model: with its weights as they are to be stored.
        recipe: of clip and guidance.
        table: whose evaluations are unrolled; None: the graph is that of a row.

    Raises:
        ValueError: what it is converted with is not installed, or cannot convert this network.
    """
    _check_installed()
    (batch,) = export.symbolic_shape("B")
    whole = unlooped(graph.as_float32(model))
    if table is None:
        made = graph.per_row(whole, recipe, batch)
    else:
        made = graph.in_steps(whole, recipe, table, batch)
    data = convert(made, halves=graph.is_halved(model))
    run = runner(data)

    def draw(case: Case) -> np.ndarray:
        if table is None:
            return graph.follow(run, case)
        return run({"x": case.x, "noise": case.noise} | case.inputs)["sample"]

    return Made(data, draw, made, _versions())


def make_decoder(model: Model) -> Made:
    """The file that makes pictures of latents, float32 in about -1 to 1."""
    _check_installed()
    made = graph.decoder(graph.as_float32(model), export.symbolic_shape("B")[0])
    data = convert(made, halves=graph.is_halved(model))
    return Made(data, runner(data), made, _versions())


def _check_installed() -> None:
    for package in PACKAGES:
        need(package, INSTALL)


def _versions() -> dict[str, Any]:
    found = {name: importlib.metadata.version(name) for name in ("jax", *PACKAGES)}
    return found | {"opset": OPSET}


def convert(made: Graph, *, halves: bool = False) -> bytes:
    """An ONNX file of a graph; `halves`: large weights as float16, cast back in the graph."""
    import onnx
    from jax2onnx import to_onnx

    with _quiet(), converting("jax2onnx"):
        model = to_onnx(
            made.call,
            inputs=list(made.inputs.values()),
            model_name="ddim_jax",
            opset=OPSET,
            input_names=list(made.inputs),
            output_names=list(made.outputs),
        )
    _forget_shapes(model.graph)
    model = _folded(model)
    if halves:
        _halve(model)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter writes and logs of its work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _forget_shapes(part: Any) -> None:
    """Drops the shapes between nodes, in the branches of conditions and the bodies of loops too."""
    for one in (part, *_branches(part)):
        del one.value_info[:]


def _folded(model: Any) -> Any:
    """The model with its constants folded, by what onnxruntime does for any runtime."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = _options(onnxruntime)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        _session(onnxruntime, model.SerializeToString(), options)
        folded = onnx.load(str(path))
    if foreign := {node.domain for node in folded.graph.node} - {"", "ai.onnx"}:
        raise ValueError(f"the graph has operators of one runtime, {sorted(foreign)}")
    for extra in [one for one in folded.opset_import if one.domain]:
        folded.opset_import.remove(extra)
    _forget_shapes(folded.graph)
    _share_weights(folded.graph)
    return folded


def _share_weights(whole: Any) -> None:
    """Moves large constants of branches to the graph around them, equal ones once.

    A guided graph has the network in two branches, and would hold its weights twice.
    """
    known: dict[Any, str] = {}
    for branch in _branches(whole):
        renamed, small = {}, []
        for constant in branch.initializer:
            if len(constant.raw_data) < 4 * graph.HALVED_FROM:
                small.append(constant)
                continue
            content = (constant.data_type, tuple(constant.dims), constant.raw_data)
            if content not in known:
                known[content] = f"shared_{len(known)}"
                whole.initializer.add().CopyFrom(constant)
                whole.initializer[-1].name = known[content]
            renamed[constant.name] = known[content]
        del branch.initializer[:]
        branch.initializer.extend(small)
        for part in (branch, *_branches(branch)):
            for node in part.node:
                node.input[:] = [renamed.get(name, name) for name in node.input]


def _branches(part: Any) -> Iterator[Any]:
    """The graphs inside of a graph, at any depth."""
    for node in part.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from _branches(attribute.g)


def _halve(model: Any) -> None:
    """Stores constants that lose nothing by it as float16, and casts them back in the graph.

    Weights are rounded before (`graph.stored_as`); a table of positions, say, is not.
    """
    import onnx

    for weight in list(model.graph.initializer):
        value = onnx.numpy_helper.to_array(weight)
        if value.dtype != np.float32 or value.size < graph.HALVED_FROM:
            continue
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), value):
            continue
        stored = f"{weight.name}_half"
        model.graph.initializer.remove(weight)
        model.graph.initializer.append(onnx.numpy_helper.from_array(half, stored))
        cast = onnx.helper.make_node("Cast", [stored], [weight.name], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _session(onnxruntime: Any, data: bytes, options: Any) -> Any:
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def runner(data: bytes, threads: int = 0) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Runs a file by onnxruntime: name -> array in, those it does not take left out, and out.

    Args:
        data: the file.
        threads: of one operator; 0: as many as there are cores.
    """
    import onnxruntime

    options = _options(onnxruntime)
    options.intra_op_num_threads = threads
    session = _session(onnxruntime, data, options)
    taken = {one.name: one.type for one in session.get_inputs()}
    outputs = [one.name for one in session.get_outputs()]

    def run(given: dict[str, Array]) -> dict[str, Array]:
        feed = {name: np.asarray(given[name]) for name in taken}
        return dict(zip(outputs, session.run(outputs, feed), strict=True))

    return run
