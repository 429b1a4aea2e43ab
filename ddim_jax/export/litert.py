"""LiteRT (.tflite) by litert-converter, from StableHLO text; phones and microcontrollers run it.

One graph for a row of any table, or the evaluations of one table unrolled. The number of samples is
fixed, and there are neither loops nor branches: guidance takes its second forward pass at a scale
of 1 too. Weights are float32, float16 (half the file) or int8 (a quarter; samples change a little).
There are no random numbers: noise comes from outside.
"""

import contextlib
import importlib.metadata
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
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
SUFFIX = ".tflite"
INSTALL = '"ddim_jax[litert]"'
PACKAGES = {
    "litert_converter": "litert-converter",
    "ai_edge_litert.interpreter": "ai-edge-litert",
    "ai_edge_quantizer": "ai-edge-quantizer",
}

LAYERS = ("FULLY_CONNECTED", "CONV_2D", "EMBEDDING_LOOKUP")
"""Operations whose weights are stored in fewer bits."""


def make(
    model: Model,
    recipe: Recipe,
    table: SolverTable | None = None,
    *,
    batch: int = 1,
    int8: bool = False,
) -> Made:
    """The file, and how to draw with it.

    Args:
        model: with its weights as they are to be stored.
        recipe: of clip and guidance.
        table: whose evaluations are unrolled; None: the graph is that of a row.
        batch: samples at a time.
        int8: weights as whole numbers of 8 bits.

    Raises:
        ValueError: what it is converted with is not installed, or cannot convert the recipe.
    """
    if recipe.clip == "dynamic":
        raise ValueError("clip=dynamic sorts numbers, which LiteRT cannot: use clip=static")
    _check_installed()
    whole = unlooped(graph.as_float32(model))
    if table is None:
        made = graph.per_row(whole, recipe, batch, branches=False)
    else:
        made = graph.in_steps(whole, recipe, table, batch, branches=False)
    data = convert(made, halves=graph.is_halved(model), int8=int8)
    run = runner(data, made, threads=2)

    def draw(case: Case) -> np.ndarray:
        return np.concatenate([of_part(part) for part in _parts(case, batch)])[: len(case.x)]

    def of_part(case: Case) -> np.ndarray:
        if table is None:
            return graph.follow(run, case)
        return run({"x": case.x, "noise": case.noise} | case.inputs)["sample"]

    return Made(data, draw, made, _versions())


def make_decoder(model: Model, *, batch: int = 1, int8: bool = False) -> Made:
    """The file that makes pictures of latents, float32 in about -1 to 1."""
    _check_installed()
    made = graph.decoder(graph.as_float32(model), batch)
    data = convert(made, halves=graph.is_halved(model), int8=int8)
    run = runner(data, made, threads=2)

    def in_parts(given: dict[str, Array]) -> dict[str, Array]:
        size, places = len(given["sample"]), np.arange(0, len(given["sample"]), batch)
        rows = [np.minimum(np.arange(batch) + first, size - 1) for first in places]
        parts = [run({"sample": given["sample"][some]})["picture"] for some in rows]
        return {"picture": np.concatenate(parts)[:size]}

    return Made(data, in_parts, made, _versions())


def _check_installed() -> None:
    for package in PACKAGES:
        need(package, INSTALL)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", *PACKAGES.values())}


def convert(made: Graph, *, halves: bool = False, int8: bool = False) -> bytes:
    """A .tflite file of a graph; large weights as float16 or int8 where that is asked for."""
    from litert_converter import converter_api_ext
    from litert_converter.mlir import ir, passmanager

    exported = export.export(jax.jit(made.call), platforms=["cpu"])(*made.inputs.values())
    context = ir.Context()
    converter_api_ext.prepare_mlir_context(context)
    with converting("litert-converter"), context, ir.Location.unknown():
        module = ir.Module.parse(exported.mlir_module())
        config = converter_api_ext.ConvertToTFLConfig()
        converter_api_ext.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        data = converter_api_ext.export_flatbuffer_to_bytes(module.operation)
    return _quantized(data, int8) if halves or int8 else data


def _quantized(data: bytes, int8: bool) -> bytes:
    """The file with weights of 8 bits, or of 16."""
    from ai_edge_quantizer import quantizer

    bits = {"num_bits": 8, "granularity": "CHANNELWISE", "dtype": "INT"}
    weights = bits if int8 else {"num_bits": 16, "dtype": "FLOAT"}
    how = {
        "weight_tensor_config": weights,
        "compute_precision": "INTEGER" if int8 else "FLOAT",
        "explicit_dequantize": not int8,
    }
    algorithm = "min_max_uniform_quantize" if int8 else "float_casting"
    recipe = [
        {
            "regex": ".*",
            "operation": operation,
            "algorithm_key": algorithm,
            "op_config": how,
        }
        for operation in LAYERS  # and not the products of a row's own numbers
    ]
    said = io.StringIO()  # it reports on what it does
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        path = Path(folder) / f"graph{SUFFIX}"
        path.write_bytes(data)
        work = quantizer.Quantizer(str(path))
        work.load_quantization_recipe(recipe)
        return bytes(work.quantize().quantized_model)


def runner(
    data: bytes, made: Graph, threads: int = 1
) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Runs a file by LiteRT's interpreter: name -> array in and out.

    Args:
        data: the file.
        made: whose inputs and outputs it has, in this order.
        threads: of one operator.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=threads)
    interpreter.allocate_tensors()
    given, got = interpreter.get_input_details(), interpreter.get_output_details()
    inputs = dict(zip(made.inputs, sorted(given, key=_place), strict=True))
    outputs = dict(zip(made.outputs, got, strict=True))

    def run(arrays: dict[str, Array]) -> dict[str, Array]:
        for name, one in inputs.items():
            value = np.asarray(arrays[name], one["dtype"])
            interpreter.set_tensor(one["index"], value.reshape(one["shape"]))
        interpreter.invoke()
        return {name: interpreter.get_tensor(one["index"]) for name, one in outputs.items()}

    return run


def _place(tensor: dict[str, Any]) -> int:
    """Which of the function's arguments an input is: names end in its number."""
    number = re.search(r"arg(\d+)", tensor["name"])
    return int(number[1]) if number else tensor["index"]


def _parts(case: Case, batch: int) -> list[Case]:
    """The samples of a case, so many at a time; the last are repeated."""
    parts = []
    for first in range(0, len(case.x), batch):
        rows = np.minimum(np.arange(first, first + batch), len(case.x) - 1)
        inputs = {name: value[rows] for name, value in case.inputs.items()}
        parts.append(case._replace(x=case.x[rows], noise=case.noise[rows], inputs=inputs))
    return parts
