"""Large sets of samples: a folder of PNG files, drawn by any number of processes.

    python sample.py --num_samples=50000 --out=samples/digits

    samples/digits/samples.json     what drew them
                   3/0000013.png    sample 13, of class 3 (without classes: 0000013.png)

Sample i is decided by the seed and by i alone, so a set does not depend on how many processes draw
it, and drawing goes on where it was stopped. `folder:samples/digits` reads the set.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import data, files, generation
from ddim_jax.data.images import to_pil
from ddim_jax.guidance import Guidance
from ddim_jax.models.pretrained import Pretrained
from ddim_jax.solvers import SolverTable

ABOUT = "samples.json"


class Drawn(NamedTuple):
    """What this process did.

    Attributes:
        count: samples that it drew.
        found: samples of its share that were there before.
        compile_seconds: spent in tracing and compiling.
        seconds: spent in sampling, without writing files.
    """

    count: int
    found: int
    compile_seconds: float
    seconds: float


def draw(
    folder: str | Path,
    model: Pretrained,
    table: SolverTable,
    *,
    num_samples: int,
    labels: Sequence[int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    guidance: Guidance | None = None,
    clip: str = "static",
) -> Drawn:
    """Draws those of this process's samples that are not in the folder yet.

    Batches of the set go round the processes; each puts the files of its own into the folder, which
    all of them must see, or a folder of its own machine.

    Args:
        folder: where to.
        model: what draws.
        table: the sampler.
        num_samples: of the whole set; a greater number extends what is there.
        labels: classes, in rotation; default all.
        batch_size: samples at a time in each process.
        seed: of the whole set.
        guidance: with a scalar scale; None for none.
        clip: "static", "dynamic" or "none".

    Raises:
        ValueError: see `generation.check` and `generation.make_labels`; a folder of other samples.
    """
    generation.check(model, num_samples, batch_size, guidance)
    folder = Path(folder)
    about = generation.origin(model, table) | {
        "seed": seed,
        "guidance": None if guidance is None else list(guidance),
        "clip": clip,
        "labels": list(labels) if labels else None,
    }
    labels = generation.make_labels(model, labels, num_samples)
    files.check_origin(folder / ABOUT, about, "samples")
    places = paths(folder, model.experiment.num_classes, labels, num_samples)
    mine = np.concatenate([np.arange(0), *_shares(num_samples, batch_size)])
    missing = mine[~_exist(places[i] for i in mine)]
    _make_folders(folder, about, places)
    generator = generation.Generator(model, clip=clip)
    total, own_place = len(mine), jax.process_index()
    name = folder.name if jax.process_count() == 1 else f"{folder.name}, process {own_place}"
    bar = tqdm(total=total, initial=total - len(missing), unit="img", desc=name, file=sys.stderr)
    with bar:
        for first in range(0, len(missing), batch_size):
            index = missing[first : first + batch_size]
            full = np.resize(index, min(batch_size, len(missing)))  # one program for all batches
            own = None if labels is None else labels[full]
            x = generator.draw(table, full, seed=seed, labels=own, guidance=guidance).x
            for i, image in zip(index, data.to_uint8(x), strict=False):
                _write(places[i], image)
            bar.update(len(index))
    found = total - len(missing)
    return Drawn(len(missing), found, generator.compile_seconds, generator.seconds)


def _shares(num_samples: int, batch_size: int) -> Iterator[np.ndarray]:
    """Places of this process's batches."""
    step = batch_size * jax.process_count()
    for first in range(batch_size * jax.process_index(), num_samples, step):
        yield np.arange(first, min(first + batch_size, num_samples))


def paths(folder: Path, classes: int, labels: np.ndarray | None, count: int) -> list[Path]:
    """Where each sample of a set goes; names of classes sort like their numbers."""
    width = len(str(max(classes - 1, 0)))
    parents = [""] * count if labels is None else [f"{label:0{width}d}" for label in labels]
    return [folder / parent / f"{i:07d}.png" for i, parent in enumerate(parents)]


def _exist(paths: Iterable[Path]) -> np.ndarray:
    """Which are there; a file that a crash of the machine has left empty is not."""
    return np.array([path.exists() and path.stat().st_size > 0 for path in paths], bool)


def _make_folders(folder: Path, about: dict[str, Any], paths: list[Path]) -> None:
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    if not (folder / ABOUT).exists():
        files.write_json(folder / ABOUT, about)


def _write(path: Path, image: np.ndarray) -> None:
    picture = to_pil(image)
    files.replace(path, lambda file: picture.save(file, "PNG"), durable=False)
