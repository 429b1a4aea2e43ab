"""Large sets of samples: a folder of PNG files, of clips animated, drawn by many processes.

    python sample.py --num_samples=50000 --out=samples/digits

    samples/digits/samples.json     what drew them
                   3/0000013.png    sample 13, of class 3 (without classes: 0000013.png)

Sample i is decided by the seed and by i alone, so a set does not depend on how many processes draw
it, and rerunning the command resumes it; prompts and labels added behind those of all samples
extend it. `folder:samples/digits` reads the set, `clips:...` one of clips.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import files, interrupts, keys, provenance
from ddim_jax.batch_loop import check_count
from ddim_jax.data.clip_writers import FRAME_RATE, write_apng
from ddim_jax.data.images import to_pil, write_png
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe

ABOUT = "samples.json"
TOLD = ("prompts", "labels")
"""Settings that are lists, in rotation, which may grow at the end."""
MAKES_TABLE = ("solver", "steps", "solver_options")
"""Fields of a recipe that are kept beside the digest of its table, and the stride's name."""


class Report(NamedTuple):
    """What this process did.

    Attributes:
        drawn: samples that it drew.
        existing: samples of its share that were there before.
        compile_seconds: spent in tracing and compiling.
        seconds: spent in sampling, without writing files.
    """

    drawn: int
    existing: int
    compile_seconds: float
    seconds: float


def draw(
    folder: str | Path,
    model: Model,
    recipe: Recipe | None = None,
    *,
    num_samples: int,
    label: Any = None,
    prompt: Sequence[str] | None = None,
    negative_prompt: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    parallel: str = "jit",
    checkpoint: str | Path = "",
) -> Report:
    """Draws those of this process's samples that are not in the folder yet.

    Batches of the set go round the processes; each puts the files of its own into the folder, which
    all of them must see, or a folder of its own machine.

    Args:
        folder: where to.
        model: what draws.
        recipe: how, with a table; default the model's own.
        num_samples: of the whole set; a greater number extends what is there.
        label: classes, by number or name, in rotation; default all.
        prompt: of a network that is told texts, a list of them in rotation. It may go on where that
            of the folder ends, and so may the classes, if no sample there is of a second rotation.
        negative_prompt: what to guide away from; default the model's null text.
        batch_size: samples at a time in each process.
        seed: of the whole set.
        parallel: a name in `batch_loop.MODES`.
        checkpoint: where the model was loaded from, for the files; default its name.

    Raises:
        ValueError: a recipe, label or count that the model cannot serve; a folder of other samples.
        OSError: a folder of other files, or one that cannot be written into.
    """
    recipe, folder = recipe or model.recipe, Path(folder)
    model.check(recipe)
    model.check_weights()
    num_samples, batch_size = check_count(num_samples, batch_size)
    seed = keys.check_seed(seed)
    table, labels = recipe.table(model.schedule), model.inputs.labels(label, num_samples)
    about = model.origin(table) | {
        "seed": seed,
        "guidance": recipe.guidance and [part for part in recipe.guidance if part is not None],
        "clip": recipe.clip,
        "labels": _rotation(model, label),
    }
    if prompt is not None:
        about |= {"prompts": list(prompt), "negative_prompt": negative_prompt}
    made = {name: getattr(recipe, name) for name in MAKES_TABLE} | {"stride": recipe.stride_name}
    shorter = _longer(folder, about)
    files.check_origin(folder / ABOUT, about | shorter, "samples", made)
    places = paths(folder, model.inputs.num_classes, labels, num_samples)
    mine = np.concatenate([np.arange(0), *_shares(num_samples, batch_size)])
    missing = mine[~_exist(places[i] for i in mine)]
    interrupts.keeping(f"what is drawn is kept in {folder}; the same command draws the rest")
    generator, total = model.generator(recipe, parallel=parallel), len(mine)
    with _bar(folder, total, total - len(missing)) as bar:
        if len(missing):
            classes = None if labels is None else labels[missing]
            texts = None if prompt is None else [prompt[i % len(prompt)] for i in missing]
            conditions = model.conditions(
                len(missing), recipe, classes, table, prompt=texts, negative_prompt=negative_prompt
            )
            drawn = provenance.about(
                model, recipe, seed=seed, index=missing, labels=classes, batch_size=batch_size,
                checkpoint=checkpoint, negative_prompt=negative_prompt,
            )  # fmt: skip
            said = False
            for rows, result in generator.batches(
                table, missing, seed=seed, batch_size=batch_size, **conditions
            ):
                if not said:  # now that there is something to write
                    _make_folders(folder, about | {"recipe": made}, places, shorter)
                    files.check_origin(folder / ABOUT, about, "samples", made)
                    said = True
                for i, picture in zip(missing[rows], model.pictures(result.x), strict=True):
                    own = None if labels is None else labels[i : i + 1]
                    text = None if prompt is None else [prompt[i % len(prompt)]]
                    drawn_by = drawn | provenance.places(np.array([i]), own, text)
                    write(places[i], picture, drawn_by, model.frame_rate or FRAME_RATE)
                bar.update(len(result.x))
    existing = total - len(missing)
    return Report(len(missing), existing, generator.compile_seconds, generator.seconds)


def _rotation(model: Model, label: Any) -> list[int] | None:
    """The labels as they were given; None for all classes."""
    if label is None or not np.size(label):
        return None
    return model.inputs.labels(label, np.size(label)).tolist()


def _longer(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The lists of `TOLD` as the folder has them, where those of `about` go on behind them.

    Raises:
        ValueError: the folder has samples of their second rotation, of which more would change
            what they were told.
    """
    try:
        stored = files.read_json(folder / ABOUT)
    except (OSError, ValueError):  # there is none, or `check_origin` says it
        return {}
    found = {}
    for name in TOLD:
        old, new = stored.get(name), about.get(name)
        if old and new and len(new) > len(old) and new[: len(old)] == old:
            found[name] = old
    if not found:
        return {}
    count = 1 + max(
        (int(path.stem) for path in folder.rglob("*.png") if path.stem.isdecimal()), default=-1
    )
    for name, old in found.items():
        if count > len(old):
            raise ValueError(
                f"{folder} holds {count} samples of {len(old)} {name} in rotation, and with "
                f"{len(about[name])} sample {len(old)} would be another; choose another folder"
            )
    return found


def _bar(folder: Path, total: int, initial: int) -> tqdm:
    process = f", process {jax.process_index()}" if jax.process_count() > 1 else ""
    return tqdm(
        total=total, initial=initial, unit="img", desc=folder.name + process, file=sys.stderr
    )


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


def _make_folders(
    folder: Path, about: dict[str, Any], paths: list[Path], shorter: dict[str, Any]
) -> None:
    """Makes them, and says before any other file what the samples are, or are from now on.

    Another command may have said it meanwhile, which is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ABOUT).exists():
        files.write_json(folder / ABOUT, about)
    elif shorter:
        stored = files.read_json(folder / ABOUT)
        files.write_json(folder / ABOUT, stored | {name: about[name] for name in shorter})
    for parent in {path.parent for path in paths}:
        parent.mkdir(exist_ok=True)


def write(path: Path, picture: np.ndarray, about: dict[str, Any], frame_rate: float) -> None:
    """Writes one sample: a picture uint8 [H, W, C] as PNG, a clip [T, H, W, C] as a moving one.

    Args:
        path: of the file; one that exists is replaced. Its folder must exist.
        picture: the sample.
        about: of `provenance`, kept in the file.
        frame_rate: of a clip.
    """

    def content(file: BinaryIO) -> None:
        if picture.ndim == 4:
            write_apng(file, picture, frame_rate, about)
        else:
            write_png(file, to_pil(picture), about)

    files.replace(path, content, durable=False)
