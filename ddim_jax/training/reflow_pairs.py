"""Draws the pairs of noise and image that reflow trains on; `data/noise_pairs.py` is their format.

Sample i starts from the noise of its own key, so a folder can be extended, and drawing goes on
where it was stopped. Only deterministic solvers serve: the image must be a function of the noise.

Source: Liu et al. 2022 (arXiv:2209.03003), algorithm 1.
"""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import files, sampling
from ddim_jax.batch_loop import check_count
from ddim_jax.data import noise_pairs
from ddim_jax.keys import check_seed
from ddim_jax.model import Model
from ddim_jax.names import check_options
from ddim_jax.recipe import Recipe

SEED = 1_000_000
"""Default seed of the noise of pairs, other than that of ordinary samples."""


def draw(
    model: Model,
    folder: str | Path,
    *,
    count: int,
    solver: str = "heun_flow",
    stride: str | None = None,
    steps: int = 10,
    guidance_scale: float = 1.0,
    clip: str = "none",
    seed: int = SEED,
    batch_size: int = 100,
) -> Path:
    """Draws the pairs that are missing in a folder, with a progress bar.

    Args:
        model: the network that draws.
        folder: of the pairs; one that holds pairs drawn in the same way is extended.
        count: pairs in all, kept in shards of 1000; classes come in rotation.
        solver: a name in `SOLVERS`, of a deterministic one.
        stride: a name in `STRIDES` or a learned `.json`; default the solver's own.
        steps: intervals of the stride.
        guidance_scale: 1 for none.
        clip: of the clean estimate; "none" keeps the map from noise to image smooth.
        seed: of the noise.
        batch_size: samples at a time.

    Returns:
        The folder.

    Raises:
        ValueError: a network of latents or texts, a stochastic solver, a recipe that the model
            cannot serve, a count or batch size below 1, or a folder of pairs that were drawn
            otherwise.
    """
    folder = Path(folder)
    count, batch_size = check_count(count, batch_size)
    seed = check_seed(seed, "the seed of pairs")
    recipe = make_recipe(model, solver, stride, steps, guidance_scale, clip)
    table = recipe.table(model.schedule)
    about = {
        "solver": solver,
        "stride": stride,
        "steps": steps,
        "nfe": table.nfe,
        "guidance_scale": guidance_scale,
        "clip": clip,
        "seed": seed,
        "weights": model.fingerprint,
        "model": model.name,
        "image_shape": list(model.sample_shape),
        "num_classes": model.inputs.num_classes,
    }
    files.check_origin(folder / noise_pairs.ABOUT, about, "pairs")
    shards = noise_pairs.missing_shards(folder, count)
    if shards:
        noise_pairs.write_about(folder, about)  # without a count: not all pairs are there
    _draw_shards(model, recipe, folder, shards, seed, batch_size)
    noise_pairs.write_about(folder, about, count)
    return folder


def make_recipe(
    model: Model, solver: str, stride: str | None, steps: int, guidance_scale: float, clip: str
) -> Recipe:
    """How pairs are drawn; arguments and errors as of `draw`."""
    recipe = Recipe(
        solver=solver, stride=stride, steps=steps, guidance_scale=guidance_scale, clip=clip
    )
    recipe.make_solver()  # names the solvers there are, of which "adaptive" is none
    if not recipe.table(model.schedule).deterministic:
        raise ValueError(f"pairs need a deterministic solver, {solver} draws noise; use heun_flow")
    model.check(recipe)
    if model.draws_latents or model.inputs.takes("text"):
        what = "draws latents" if model.draws_latents else "is told texts"
        raise ValueError(
            f"pairs hold pixels and a label, and {model.name} {what}; reflow a network of pixels, "
            "or distil this one by another config.loss, such as 'guided' and then 'consistency'"
        )
    return recipe


def check(model: Model, options: Mapping[str, Any]) -> None:
    """Checks the options of `draw` before a network to draw with is there.

    Raises:
        ValueError: as `draw`; an option that it does not have, or no count.
    """
    own = inspect.signature(draw).parameters.values()
    given = {one.name: one.default for one in own if one.default is not one.empty}
    given |= check_options(draw, options, "config.pairs")
    if "count" not in given:
        raise ValueError("config.pairs needs a count, the number of pairs that are drawn")
    check_count(given["count"], given["batch_size"])
    check_seed(given["seed"], "config.pairs.seed")
    names = ("solver", "stride", "steps", "guidance_scale", "clip")
    make_recipe(model, **{name: given[name] for name in names})


def _draw_shards(
    model: Model, recipe: Recipe, folder: Path, shards: list[range], seed: int, batch_size: int
) -> None:
    table, generator = recipe.table(model.schedule), model.generator(recipe)
    total = sum(map(len, shards))
    with tqdm(total=total, unit="pair", desc="pairs", disable=not sys.stderr.isatty()) as bar:
        for places in shards:
            index = np.arange(places.start, places.stop)
            labels = model.inputs.labels(None, places.stop)
            labels = None if labels is None else labels[index]
            conditions = model.conditions(len(index), recipe, labels, table)
            images = []
            for _, result in generator.batches(
                table, index, seed=seed, batch_size=batch_size, **conditions
            ):
                images.append(result.x)
                bar.update(len(result.x))
            keys = jax.random.key_data(sampling.sample_keys(seed, index))
            records = noise_pairs.encode(keys, labels, np.concatenate(images))
            noise_pairs.write_shard(folder, places.start, records)
