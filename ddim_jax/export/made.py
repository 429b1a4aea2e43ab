"""What every format makes: a file, how to draw with it, and whether it draws what JAX draws."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax import provenance
from ddim_jax.export import graph
from ddim_jax.export.graph import Case, Graph
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe, whole_path

MOST_DIFFERENCE = 1e-3
"""Between a file and JAX, as a share of the samples' range; beyond it nothing is written."""
MOST_RMS = {"float16": 0.001, "int8": 0.015}
"""The same of weights that are rounded, which shows: the root mean square."""
MOST_BYTES = 2**31 - 2**20
"""Of a file of any of the formats."""


class Made(NamedTuple):
    """An exported function.

    Attributes:
        data: the file.
        draw: a case of `graph.cases` to samples, by the file alone; of a decoder name -> array in
            and out.
        graph: whose inputs and outputs it has.
        versions: of what wrote it, by name.
    """

    data: bytes
    draw: Callable[[Case], np.ndarray]
    graph: Graph
    versions: dict[str, Any]


class Difference(NamedTuple):
    """Between what a file and JAX draw by one table, as shares of the samples' range.

    Attributes:
        table: its name.
        most: the largest.
        rms: the root mean square.
    """

    table: str
    most: float
    rms: float


def differences(made: Made, cases: Sequence[Case]) -> list[Difference]:
    """Between what a file and JAX draw, of each case."""
    found = []
    for case in cases:
        found.append(_difference(case.name, made.draw(case), case.wanted))
    return found


def _difference(name: str, drawn: np.ndarray, wanted: np.ndarray) -> Difference:
    apart, size = np.asarray(drawn, np.float64) - wanted, float(np.ptp(wanted))
    most, rms = np.abs(apart).max(), np.sqrt(np.mean(apart**2))
    return Difference(name, float(most) / size, float(rms) / size)


def decoder_difference(made: Made, model: Model, cases: Sequence[Case]) -> Difference:
    """Between the pictures that a decoder's file and JAX make of the samples of the first case."""
    codec, sample = model.codec, cases[0].wanted
    wanted = jax.jit(codec.unrounded)(jax.tree.map(graph.whole, codec.params), sample)
    drawn = made.draw({"sample": np.asarray(sample)})["picture"]
    return _difference("the decoder", drawn, np.asarray(wanted))


def decoder_path(out: Path) -> Path:
    """Of the file that makes pictures of the latents that another file draws."""
    return out.with_name(f"{out.stem}-decoder{out.suffix}")


def check(found: Sequence[Difference], dtype: str) -> None:
    """Says how far a file is from JAX; raises ValueError if it draws something else."""
    for one in found:
        print(f"{one.table}: differs from JAX by {one.most:.2g} of the range, rms {one.rms:.2g}")
        value, limit, what = one.most, MOST_DIFFERENCE, "differ from JAX's by"
        if dtype in MOST_RMS:
            value, limit = one.rms, MOST_RMS[dtype]
            what = "differ from JAX's by a root mean square of"
        if not value <= limit:
            raise ValueError(
                f"samples of {one.table} {what} {value:.2g} of their range, more than {limit:g}: "
                "nothing is written; try dtype=float32, or fewer steps"
            )


def check_size(model: Model, what: str) -> None:
    """Raises ValueError, before the work, for weights that no file of the format can hold."""
    size = sum(4 * np.size(leaf) for leaf in jax.tree.leaves((model.params, model.codec.params)))
    if size > MOST_BYTES:
        raise ValueError(
            f"the weights of {model.name} take {size / 1e9:.1f} GB, and a file of {what} holds at "
            "most 2 GB, weights included: draw with it in Python, by ddim_jax.load"
        )


def need(module: str, install: str) -> Any:
    """Imports what a format is written with.

    Raises:
        ValueError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{module} is not installed: pip install {install}") from error


@contextlib.contextmanager
def converting(converter: str) -> Iterator[None]:
    """Makes a ValueError, which names the converter, of what it raises."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{converter} cannot convert this network ({said}): try format=stablehlo"
        ) from error


def tokenizer(model: Model) -> dict[str, Any] | None:
    """The tokenizer of a network that is told the numbers of tokens, as JSON; None of others."""
    text = model.inputs.declared.get("text")
    tokenizers = getattr(model.inputs.encode, "tokenizers", ())
    if text is None or np.dtype(text.dtype).kind != "i" or not tokenizers:
        return None
    one = tokenizers[0]
    return one.options() | {"start": one.start, "end": one.end}


def described(made: Made, found: Sequence[Difference]) -> dict[str, Any]:
    """The part of a manifest that says what is in the file, as JSON."""
    inputs = {
        name: {"shape": [str(n) if not isinstance(n, int) else n for n in one.shape]}
        | {"dtype": np.dtype(one.dtype).name}
        for name, one in made.graph.inputs.items()
    }
    return {
        "sha256": hashlib.sha256(made.data).hexdigest(),
        "bytes": len(made.data),
        "inputs": inputs,
        "outputs": list(made.graph.outputs),
        "difference": [one._asdict() for one in found],
    }


def manifest(
    made: Made, model: Model, recipe: Recipe, dtype: str, found: Sequence[Difference], **more: Any
) -> dict[str, Any]:
    """What is written beside a file, as JSON: what is in it, from what and with what it was made.

    Args:
        made: the file.
        model: whose weights it has.
        recipe: by which it draws unless asked otherwise.
        dtype: of the weights.
        found: how far it is from JAX.
        **more: further entries, such as its form.
    """
    said = dataclasses.asdict(recipe) | {"stride": whole_path(recipe.stride)}
    ends = [end if np.isfinite(end) else None for end in recipe.guidance_interval]
    said |= {"guidance_interval": ends}  # JSON has no infinity
    about = described(made, found) | {
        "dtype": dtype,
        "checkpoint": provenance.maker(model),
        "recipe": said,
        "sample_shape": list(model.sample_shape),
        "picture_shape": list(model.codec.picture_shape),
        "classes": model.inputs.num_classes,
        "class_names": list(model.inputs.class_names),
        "tokenizer": tokenizer(model),
        "versions": {"python": sys.version.split()[0]} | made.versions,
    }
    return json.loads(json.dumps(about | more, default=lambda v: np.asarray(v).tolist()))
