"""What is exported: pure functions with the weights inside, arrays by name in and out.

    row       one evaluation; the client follows a table, row by row (`row.py`)
    steps     all evaluations of one table, one after the other, unrolled
    table     all evaluations of any table, in a loop
    decoder   latents to pictures, of a network that draws latents

Every function takes a batch of B samples, whose number may be left open.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.dropping import NULL
from ddim_jax.export import row
from ddim_jax.keys import initial_noise, sample_keys
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SolverTable

Array = Any
Shape = jax.ShapeDtypeStruct
F32 = jnp.float32
SEED = 7
"""Of the samples by which exported graphs are compared with JAX."""
HALVED_FROM = 256
"""Numbers of an array from which on it is stored as float16, where that is asked for."""


class Graph(NamedTuple):
    """A function to export.

    Attributes:
        call: of arrays in the order of `inputs`; returns a tuple in the order of `outputs`.
        inputs: name -> shape and dtype.
        outputs: names.
    """

    call: Callable[..., tuple[Array, ...]]
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]


class Told(NamedTuple):
    """What the network is told: name -> shape, and how a graph's arguments become that."""

    inputs: dict[str, Shape]
    split: Callable[[dict[str, Array]], tuple[dict[str, Array], Array | None]]


def told_of(model: Model, table: SolverTable) -> dict[str, float]:
    """What a table has to tell the network beside its rows: the length of its steps, or nothing.

    Raises:
        ValueError: a network that is told the length of its steps cannot follow this table.
    """
    length, slope = model.jumps(table)
    if slope:
        raise ValueError(
            "these steps have several lengths, and the exported network is told one for all; use "
            "ddim on the uniform stride"
        )
    return {} if length is None else {"interval": float(np.float32(length))}


def follows(model: Model, table: SolverTable) -> bool:
    """Whether a model's network can follow a table as it is exported."""
    try:
        told_of(model, table)
    except ValueError:
        return False
    return True


def told(model: Model, batch: Any, fixed: dict[str, float] = MappingProxyType({})) -> Told:
    """The inputs of a model's network, and the guidance scale if it can be guided.

    The text to guide away from is the model's own, a constant of the graph, as is what is `fixed`.
    """
    declared = {name: put for name, put in model.inputs.declared.items() if name != "guidance"}
    inputs = {
        name: Shape((batch, *put.shape), put.dtype)
        for name, put in declared.items()
        if name not in fixed
    }
    guidable = row.is_guidable(model)
    null = {}
    if model.inputs.takes("text") and guidable and not model.inputs.takes("guidance"):
        null = jax.tree.map(np.asarray, dict(model.inputs.texts(None, None, 1, True)[NULL]))

    def split(given):
        told = {name: given[name] for name in declared if name not in fixed}
        if fixed:
            ones = jnp.ones_like(given["x"].reshape(given["x"].shape[0], -1)[:, 0])
            told |= {name: value * ones for name, value in fixed.items()}
        if null:
            told[NULL] = {
                name: jnp.zeros_like(told[name]) + jnp.asarray(value, told[name].dtype)
                for name, value in null.items()
            }
        return told, given.get("guidance")

    return Told(inputs | ({"guidance": Shape((batch,), F32)} if guidable else {}), split)


def per_row(model: Model, recipe: Recipe, batch: Any, *, branches: bool = True) -> Graph:
    """One evaluation: `row`, the carry, noise and what the network is told to the next carry, x0.

    Args:
        model: whose network.
        recipe: of clip and guidance.
        batch: B, a number or a symbol of `jax.export`.
        branches: as of `row.make_denoiser`.
    """
    shape, beside = tuple(model.sample_shape), told(model, batch)
    sample = Shape((batch, *shape), F32)
    inputs = {
        "row": Shape((batch, row.WIDTH), F32),
        "point": sample,
        "base": sample,
        "history": Shape((batch, row.SLOTS, *shape), F32),
        "noise": sample,
    } | beside.inputs
    evaluate = row.make_evaluate(model, recipe, branches=branches)
    params = model.params

    def call(*arrays):
        given = dict(zip(inputs, arrays, strict=True))
        carry = row.Carry(*(given[name] for name in row.Carry._fields))
        weights = jax.tree.map(whole, params)
        carry, x0 = evaluate(weights, given["row"], carry, given["noise"], *beside.split(given))
        return (*carry, x0)

    return Graph(call, inputs, ("next_point", "next_base", "next_history", "x0"))


def in_steps(model: Model, recipe: Recipe, table: SolverTable, batch: Any, **options: Any) -> Graph:
    """All evaluations of one table, unrolled; `x`, standard normals, to `sample`.

    `noise` [B, 1 + E, *sample_shape], of the start and of each row, is an input where the table
    draws any. Arguments as of `per_row`.
    """
    shape, beside = tuple(model.sample_shape), told(model, batch, told_of(model, table))
    rows, start = row.pack(table), np.asarray(table.start, np.float32)
    sample = Shape((batch, *shape), F32)
    drawn = {"noise": Shape((batch, 1 + len(rows), *shape), F32)}
    inputs = {"x": sample} | ({} if table.deterministic else drawn) | beside.inputs
    evaluate, params = row.make_evaluate(model, recipe, **options), model.params

    def call(*arrays):
        given = dict(zip(inputs, arrays, strict=True))
        x, weights = given["x"], jax.tree.map(whole, params)
        noise = given.get("noise")
        of = (lambda k: jnp.zeros_like(x)) if noise is None else (lambda k: noise[:, k])
        carry = row.begin(x, start, of(0))
        for k, one in enumerate(rows):
            ones = jnp.ones_like(x.reshape(x.shape[0], -1)[:, :1])
            carry, _ = evaluate(weights, ones * one[None], carry, of(k + 1), *beside.split(given))
        return (carry.point,)

    return Graph(call, inputs, ("sample",))


def by_table(model: Model, recipe: Recipe, batch: Any, rows: Any) -> Graph:
    """All evaluations of any table, in a loop: `rows` [E, 29], `start` [2], `x`, `noise`.

    `noise` [B, 1 + E, *sample_shape] are standard normals, zeros where a table draws none. Rows of
    zeros at the end are padding and change nothing.
    """
    shape, beside = tuple(model.sample_shape), told(model, batch)
    inputs = {
        "rows": Shape((rows, row.WIDTH), F32),
        "start": Shape((2,), F32),
        "x": Shape((batch, *shape), F32),
        "noise": Shape((batch, 1 + rows, *shape), F32),
    } | beside.inputs
    evaluate, params = row.make_evaluate(model, recipe), model.params

    def call(*arrays):
        given = dict(zip(inputs, arrays, strict=True))
        weights, x = jax.tree.map(whole, params), given["x"]
        ones = jnp.ones_like(x.reshape(x.shape[0], -1)[:, :1])

        def body(carry, of_row):
            one, z = of_row
            after, _ = evaluate(weights, ones * one[None], carry, z, *beside.split(given))
            active = one[0] + one[1] > 0
            return jax.tree.map(lambda a, b: jnp.where(active, a, b), after, carry), None

        noise = jnp.swapaxes(given["noise"], 0, 1)
        carry = row.begin(x, given["start"], noise[0])
        return (jax.lax.scan(body, carry, (given["rows"], noise[1:]))[0].point,)

    return Graph(call, inputs, ("sample",))


def decoder(model: Model, batch: Any) -> Graph:
    """Latents [B, *sample_shape] to pictures, float32 [B, H, W, C] in about -1 to 1."""
    codec = model.codec

    def call(sample):
        return (codec.unrounded(jax.tree.map(whole, codec.params), sample),)

    return Graph(call, {"sample": Shape((batch, *model.sample_shape), F32)}, ("picture",))


def stored_as(model: Model, dtype: str) -> Model:
    """The model with its kernels and other large arrays as float16, or as they are.

    Raises:
        ValueError: a weight is too large for float16.
    """
    if dtype != "float16":
        return model

    def one(leaf):
        leaf = np.asarray(leaf)
        if leaf.dtype != np.float32 or (leaf.ndim < 2 and leaf.size < HALVED_FROM):
            return leaf
        with np.errstate(over="ignore"):
            half = leaf.astype(np.float16)
        if not np.all(np.isfinite(half)):
            raise ValueError(
                f"a weight of {np.abs(leaf).max():.3g} is beyond float16's 65504: use dtype=float32"
            )
        return half

    return _each(model, one)


def _each(model: Model, of: Callable[[Array], Array]) -> Model:
    """The model with every array of its network and its codec replaced."""
    codec = model.codec.given(jax.tree.map(of, model.codec.params))
    return model.replace(params=jax.tree.map(of, model.params), codec=codec)


def whole(leaf: Array) -> Array:
    """A stored array as it is used: float16 as float32, which a traced program does itself."""
    leaf = jnp.asarray(leaf)  # as it is: cast by this it would be a constant in float32
    return leaf.astype(F32) if leaf.dtype == np.float16 else leaf


def as_float32(model: Model) -> Model:
    """The model with its weights as float32 whatever they are stored as."""
    return _each(model, lambda leaf: np.asarray(whole(leaf)))


def is_halved(model: Model) -> bool:
    """Whether some weights are stored as float16."""
    leaves = jax.tree.leaves((model.params, model.codec.params))
    return any(leaf.dtype == np.float16 for leaf in leaves)


class Case(NamedTuple):
    """Samples that an exported graph must draw as JAX does.

    Attributes:
        name: of the table.
        rows: float32 [E, 29].
        start: float32 [2].
        x: [B, *sample_shape] standard normals.
        noise: [B, 1 + E, *sample_shape], of the start and of each row.
        inputs: name -> [B, ...], of what the network is told, with guidance if it takes it.
        wanted: [B, *sample_shape], what `Model.generate` draws.
    """

    name: str
    rows: np.ndarray
    start: np.ndarray
    x: np.ndarray
    noise: np.ndarray
    inputs: dict[str, np.ndarray]
    wanted: np.ndarray


def cases(
    model: Model, recipe: Recipe, tables: dict[str, SolverTable], count: int = 4
) -> list[Case]:
    """What `sampling.run` draws by these tables: `count` samples of each, of different classes.

    Tables share a program. Guided networks are guided at the recipe's scale, or at 1.5 if that is
    none.
    """
    model = as_float32(model)
    if recipe.guidance_scale == 1 and row.is_guidable(model) and not model.inputs.takes("guidance"):
        recipe = recipe.replace(guidance_scale=1.5)
    most = max(len(table.slot) for table in tables.values())
    labels, shape = model.inputs.labels(None, count), tuple(model.sample_shape)
    prompts = (model.config.get("sample") or {}).get("prompts")
    of_samples = sample_keys(SEED, np.arange(count))
    generator, found = model.kept_generator(recipe, "jit"), []
    for name, table in tables.items():
        texts = {"prompt": list(prompts)} if model.inputs.takes("text") and prompts else {}
        given = model.conditions(count, recipe, labels, table, **texts)
        padded = table.pad(most, row.SLOTS)
        (batch,) = generator.batches(padded, np.arange(count), seed=SEED, **given)
        noise = [
            row.row_noise(of_samples, jnp.full(count, k, jnp.int32), shape)
            for k in range(1 + table.nfe)
        ]
        inputs = {key: np.asarray(value) for key, value in given["inputs"].items() if key != NULL}
        if row.is_guidable(model):
            inputs["guidance"] = np.full(count, recipe.guidance_scale, np.float32)
        found.append(
            Case(
                name,
                row.pack(table)[: table.nfe],
                np.float32(table.start),
                np.asarray(initial_noise(of_samples, shape)),
                np.stack(noise, 1) * (not table.deterministic),
                inputs,
                batch.result.x,
            )
        )
    return found


def follow(run: Callable[[dict[str, Array]], dict[str, Array]], case: Case) -> np.ndarray:
    """The loop of a client around the graph of a row, in numpy.

    Args:
        run: name -> array in, name -> array out.
        case: what to draw.
    """
    point = base = case.start[0] * case.x + case.start[1] * case.noise[:, 0]
    history = np.zeros((len(point), row.SLOTS, *point.shape[1:]), np.float32)
    for k, one in enumerate(case.rows):
        told = case.inputs | {"row": np.tile(one, (len(point), 1)), "noise": case.noise[:, k + 1]}
        out = run(told | {"point": point, "base": base, "history": history})
        point, base, history = (out[f"next_{name}"] for name in row.Carry._fields)
    return np.asarray(point)
