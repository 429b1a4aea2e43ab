"""StableHLO by `jax.export`: the sampler as one file that jax and numpy alone read.

The table is an argument, the numbers of samples and of rows are open, and one file runs on CPU,
CUDA and TPU. It takes and gives a dict of arrays: from the seed (`by_seed`), from noise that comes
from outside (`graph.by_table`), or one evaluation at a time (`graph.per_row`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ddim_jax import sampling
from ddim_jax.export import graph, row
from ddim_jax.export.graph import Case, Graph, Shape
from ddim_jax.export.made import Made, need
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe

Array = Any
SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
FORMS = ("seed", "noise", "row")
"""What a file starts from: the seed, noise; or it is one evaluation."""


def by_seed(model: Model, recipe: Recipe, batch: Any, rows: Any) -> Graph:
    """Pictures from the seed, as `Model.draw` makes them.

    Inputs: `rows` [E, 29] and `start` [2], a table; `seed` uint32 [2], its higher and lower 32
    bits; `index` int32 [B], places in the set of this seed; what the network is told. Outputs:
    `pictures` uint8 [B, H, W, C] and `sample`, what they are made of.
    """
    beside = graph.told(model, batch)
    inputs = {
        "rows": Shape((rows, row.WIDTH), jnp.float32),
        "start": Shape((2,), jnp.float32),
        "seed": Shape((2,), jnp.uint32),
        "index": Shape((batch,), jnp.int32),
    } | beside.inputs
    denoiser, params, codec = row.make_denoiser(model, recipe), model.params, model.codec

    def call(*arrays):
        given = dict(zip(inputs, arrays, strict=True))
        of_seed = jax.random.wrap_key_data(given["seed"], impl="threefry2x32")
        keys = jax.vmap(lambda i: jax.random.fold_in(of_seed, i))(given["index"])
        x = sampling.initial_noise(keys, model.sample_shape)
        denoise = denoiser(jax.tree.map(graph.whole, params), *beside.split(given))
        table = row.unpack(given["rows"], given["start"])
        sample = sampling.run(denoise, table, x, keys).x
        return codec.decode(jax.tree.map(graph.whole, codec.params), sample), sample

    return Graph(call, inputs, ("pictures", "sample"))


def make(model: Model, recipe: Recipe, form: str = "seed") -> Made:
    """The file, and how to draw with it.

    Args:
        model: with its weights as they are to be stored.
        recipe: of clip and guidance.
        form: a name in FORMS.

    Raises:
        ValueError: flatbuffers, which `jax.export` writes with, is not installed.
    """
    batch, rows = export.symbolic_shape("b, e")
    made = {
        "seed": lambda: by_seed(model, recipe, batch, rows),
        "noise": lambda: graph.by_table(model, recipe, batch, rows),
        "row": lambda: graph.per_row(model, recipe, batch),
    }[form]()
    data, run, versions = convert(made)
    return Made(data, _drawer(run, form), made, versions)


def make_decoder(model: Model) -> Made:
    """The file that makes pictures of latents, float32 in about -1 to 1."""
    made = graph.decoder(model, export.symbolic_shape("b")[0])
    data, run, versions = convert(made)
    return Made(data, run, made, versions)


def convert(made: Graph) -> tuple[bytes, Callable, dict[str, Any]]:
    """The file, how to run it (name -> array in and out), and the versions of what wrote it."""
    need("flatbuffers", "flatbuffers")

    def call(given: dict[str, Array]) -> dict[str, Array]:
        arrays = made.call(*(given[name] for name in made.inputs))
        return dict(zip(made.outputs, arrays, strict=True))

    exported = export.export(jax.jit(call), platforms=PLATFORMS)(made.inputs)
    data = bytes(exported.serialize())
    run = jax.jit(export.deserialize(bytearray(data)).call)
    versions = {"jax": jax.__version__, "calling_convention": exported.calling_convention_version}
    return data, run, versions


def _drawer(run: Callable, form: str) -> Callable[[Case], np.ndarray]:
    def draw(case: Case) -> np.ndarray:
        if form == "row":
            return graph.follow(run, case)
        given = {"rows": case.rows, "start": case.start} | case.inputs
        if form == "noise":
            given |= {"x": case.x, "noise": case.noise}
        else:
            index = np.arange(len(case.x), dtype=np.int32)
            given |= {"seed": np.uint32([0, graph.SEED]), "index": index}
        return np.asarray(run(given)["sample"])

    return draw
