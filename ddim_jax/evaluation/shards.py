"""The samples of a sweep on disk, so that nothing is drawn twice.

A cell of a sweep is a `Recipe`, with its steps given, and a seed. Its samples lie in shards of 500,
named by their place in the set:

    cells/ddim_uniform_50_eta=0.2/cell.json     what it was drawn with
                                  00000.npz     samples 0..499: images uint8, seconds, memory
                                  00001.npz     samples 500..999

Sample i of every cell starts from the same noise and has the same label, and does not depend on the
batch size, so a cell is extended by drawing the shards that are missing. A shard appears whole or
not at all.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ddim_jax import files, provenance
from ddim_jax.batch_loop import Generator
from ddim_jax.evaluation import features
from ddim_jax.evaluation.asked import ALL_CLASSES, Asked
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.model import Model
from ddim_jax.program_cost import memory_bytes
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SolverTable

SHARD = 500
"""Samples in a shard."""

NUMBERS = {"seconds": 0.0, "process_bytes": 0, "program_bytes": 0}
"""What a shard holds beside images, and what stands for an unknown size."""


def settings(recipe: Recipe, seed: int = 0) -> dict[str, Any]:
    """Returns what decides the samples of a cell, by the names of the columns of results.

    Where and how far guidance is rescaled is there only if it is not the default.
    """
    values = {
        "solver": recipe.solver,
        "stride": recipe.stride_name,
        "steps": recipe.steps,
        "solver_options": dict(recipe.solver_options),
        "guidance_scale": recipe.guidance_scale,
        "clip": recipe.clip,
        "seed": seed,
    }
    return values | _guidance_changes(recipe)


def cell_name(recipe: Recipe, seed: int = 0) -> str:
    """Returns a folder name that says what a cell is."""
    learned = recipe.stride is not None and recipe.stride.endswith(".json")
    stride = Path(recipe.stride).stem if learned else recipe.stride_name.replace(":", ",")
    parts = [recipe.solver, stride, str(recipe.steps)]
    parts += [f"{name}={value}" for name, value in recipe.solver_options.items()]
    parts += [f"guidance={recipe.guidance_scale:g}"] if recipe.guidance_scale != 1 else []
    parts += [f"{name}={value}" for name, value in _guidance_changes(recipe).items()]
    parts += [f"clip={recipe.clip}"] if recipe.clip != "static" else []
    parts += [f"seed={seed}"] if seed else []
    return "_".join(parts)


def identity(
    recipe: Recipe, seed: int, model: Model, table: SolverTable, asked: Asked = ALL_CLASSES
) -> dict[str, Any]:
    """Returns what decides the samples of a cell to rounding, weights included, as JSON."""
    values = settings(recipe, seed) | {"solver_options": list(recipe.solver_options.items())}
    labels = "all classes in rotation" if model.inputs.num_classes else None
    values |= model.origin(table) | {"labels": asked.name or labels}
    return json.loads(json.dumps(values))


def _guidance_changes(recipe: Recipe) -> dict[str, Any]:
    """The interval and the rescaling of a recipe with guidance, if they are not the default."""
    names = ("guidance_interval", "guidance_rescale", "guidance_channels")
    names = names if recipe.guidance is not None else ()
    values = {name: getattr(recipe, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(Recipe, name)}


class Samples(NamedTuple):
    """Samples of a cell, and what it took to draw them.

    Attributes:
        images: uint8 [N, H, W, C].
        images_per_second: of the fastest shard, without compilation.
        process_bytes: the most memory that the process held while drawing them; 0 if unknown.
        program_bytes: what the compiled program needs on each device, weights and the batch
            included; 0 if unknown.
    """

    images: np.ndarray
    images_per_second: float
    process_bytes: int
    program_bytes: int


class Shards:
    """The folder of one cell."""

    def __init__(self, folder: str | Path, identity: dict[str, Any]):
        """Opens the folder of this cell alone; it is made when the first shard is written.

        Raises:
            ValueError: it holds samples that were drawn in another way.
        """
        self.folder, self.identity = Path(folder), identity
        files.check_origin(self.folder / "cell.json", identity, "samples")

    def missing(self, num_samples: int) -> list[range]:
        """Returns the places of the samples to draw for a set of num_samples, shard by shard.

        A damaged shard counts as missing; it is put aside, with a message.
        """
        starts = range(0, num_samples, SHARD)
        shards = [range(first, min(first + SHARD, num_samples)) for first in starts]
        return [places for places in shards if self._length(places.start) < len(places)]

    def write(
        self, first: int, images: np.ndarray, *, seconds: float, about: Any = None, **sizes: int
    ) -> None:
        """Writes the shard that begins with sample `first`; sizes in bytes as of `Samples`."""
        if not (path := self.folder / "cell.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(path, self.identity)
        arrays = {"images": images} | NUMBERS | {"seconds": seconds} | sizes
        arrays |= {provenance.NPZ: json.dumps(about)}
        files.replace(self._path(first), lambda file: np.savez_compressed(file, **arrays))

    def read(self, num_samples: int) -> Samples:
        """Reads the first num_samples samples; ValueError if some are not there."""
        if missing := self.missing(num_samples):
            raise ValueError(f"{self.folder} lacks samples {missing[0]} and maybe more; draw them")
        images, numbers = [], []
        for first in range(0, num_samples, SHARD):
            with np.load(self._path(first)) as shard:
                images.append(shard["images"])
                seconds, *sizes = (float(shard[name]) for name in NUMBERS)
            numbers.append((len(images[-1]) / seconds, *sizes))
        rate, *sizes = np.max(numbers, axis=0).tolist()
        return Samples(np.concatenate(images)[:num_samples], rate, *map(int, sizes))

    def features(self, network: FeatureNetwork, num_samples: int) -> Features:
        """Returns features of the samples that `read` returns; they are kept beside the shards."""
        images, parts = self.read(num_samples).images, []
        folder = self.folder / f"features_{network.name}_{network.sha256[:8]}_{network.resize}"
        folder.mkdir(exist_ok=True)
        for first in range(0, num_samples, SHARD):
            shard, path = images[first : first + SHARD], folder / self._path(first).name
            part = features.read(path)
            if part is None or len(part.pool) < len(shard):
                part = network.extract(shard)
                features.write(path, part)
            parts.append(part.first(len(shard)))
        return Features.join(parts)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first // SHARD:05d}.npz"

    def _length(self, first: int) -> int:
        path = self._path(first)
        if not path.exists():
            return 0
        try:
            with np.load(path) as shard:
                _ = [shard[name] for name in NUMBERS]
                return len(shard["images"])
        except (OSError, ValueError, KeyError, *files.DAMAGED):
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            tqdm.write(
                f"{path} is damaged; it was put aside as {aside.name}, and its samples will be "
                "drawn again",
                file=sys.stderr,
            )
            return 0


def draw(
    model: Model,
    recipe: Recipe,
    generator: Generator,
    shards: Shards,
    num_samples: int,
    *,
    asked: Asked = ALL_CLASSES,
    seed: int = 0,
    batch_size: int = 100,
    update: Callable[[int], None] = lambda count: None,
) -> None:
    """Draws the samples of a cell that are missing, until there are `num_samples`.

    The generator is the model's, with the recipe's clip. `update` is called with the number of
    samples of each finished batch.
    """
    table, labels = recipe.table(model.schedule), asked.labels(model.inputs, num_samples)
    for places in shards.missing(num_samples):
        reset_peak()
        before, images, index = generator.seconds, [], np.array(places)
        own = None if labels is None else labels[index]
        texts = asked.prompts(index)
        given = model.conditions(len(index), recipe, own, table, prompt=texts)
        given["batch_size"] = batch_size
        for _, result in generator.batches(table, index, seed=seed, **given):
            images.append(model.pictures(result.x))
            update(len(result.x))
        shards.write(
            places.start,
            np.concatenate(images),
            seconds=generator.seconds - before,
            about=provenance.about(
                model,
                recipe,
                seed=seed,
                index=index,
                labels=own,
                batch_size=batch_size,
                prompts=texts,
            ),
            process_bytes=peak_bytes(),
            program_bytes=memory_bytes(generator.program),
        )


def reset_peak() -> None:
    """Resets the most memory that this process has held; Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Returns the most memory that this process has held since `reset_peak`; 0 if unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0
