"""What drew a picture, kept in its file, so that it can be drawn again: `sample.py --like=FILE`.

A PNG holds it as JSON in the text chunk "ddim_jax", an NPZ in the array "about", of clips a GIF in
its comment and a WebP in the description of its EXIF: recipe, seed, places in the set, labels,
texts, size, batch size, checkpoint (name, path, step, dtype, sha256 of the weights), LoRA files
(path, scale, sha256), a digest of the sampler's table, version. Pictures of the editing commands
hold the command instead.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from ddim_jax import experiment, files
from ddim_jax.adaptive_sampling import Tolerance
from ddim_jax.data.clip_writers import DESCRIPTION
from ddim_jax.data.images import TEXT
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe, whole_path

NPZ = "about"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What drew the pictures of a file.

    Attributes:
        recipe: how.
        seed: of the set.
        index: int [N], places of the pictures in the set.
        labels: int [N]; None for a network without classes.
        prompts: N texts; None for a network that is told none.
        negative_prompt: one for all; None: the model's null text.
        size: (height, width) in pixels; None: the model's own.
        batch_size: samples at a time, of which a picture depends in its rounding.
        checkpoint: path or name of the model.
        step: training steps of the model.
        weights: sha256 of its parameters.
        table: sha256 of the sampler's table.
        dtype: of its parameters; None: the model's own.
        computed_in: as of `Model`; None: not known.
        loras: files merged into them, as of `Model`; None: not known.
        around: sha256 of the parameters of its other networks, as of `Model`; None: not known.
        frames: of clips, how many were drawn at once; None: the model's own.
        clips: what was known of them and from which files, as of `commands/clip_flags.py`; None for
            none.
        alone: the file is the one picture itself, as those in a folder of samples are, no sheet.
    """

    recipe: Recipe
    seed: int
    index: np.ndarray
    labels: np.ndarray | None
    prompts: list[str] | None
    negative_prompt: str | None
    size: tuple[int, int] | None
    batch_size: int
    checkpoint: str
    step: int
    weights: str
    table: str
    dtype: str | None = None
    computed_in: str | None = None
    loras: tuple[dict[str, Any], ...] | None = None
    around: dict[str, str] | None = None
    frames: int | None = None
    clips: dict[str, Any] | None = None
    alone: bool = False

    def lora_files(self) -> tuple[str, ...]:
        """The LoRA files, as `checkpoints.load` takes them.

        Raises:
            FileNotFoundError: one is gone.
        """
        for one in self.loras or ():
            if not Path(one["path"]).exists():
                raise FileNotFoundError(
                    f"the picture was drawn with the LoRA {one['path']}, which is gone; say where "
                    f"it is now by {_flags(self.loras)}"
                )
        return tuple(f"{one['path']}:{one['scale']}" for one in self.loras or ())

    def check(self, model: Model, recipe: Recipe) -> None:
        """Checks that a model and a recipe are those that drew the pictures.

        Raises:
            ValueError: other LoRA files, another dtype, other weights of any network, or, of the
                same recipe, another table: a learned stride whose file has changed, or another
                version of a solver.
        """
        if self.loras is not None and _contents(self.loras) != _contents(model.loras):
            drawn, now = _flags(self.loras), _flags(model.loras)
            what = "whose content has changed since" if drawn == now else f"not with {now}"
            raise ValueError(
                f"the picture was drawn with {drawn}, {what}; name what drew it by --lora"
            )
        if None not in (self.dtype, now := _dtype(model)) and now != self.dtype:
            raise ValueError(
                f"the picture was drawn in {self.dtype}, not in {now}; draw it again with "
                f"--dtype={self.dtype}, or without the flag"
            )
        if self.computed_in not in (None, model.computed_in):
            raise ValueError(
                f"the picture was drawn in {self.computed_in}, not in {model.computed_in}; draw it "
                "again without --dtype"
            )
        if model.fingerprint != self.weights:
            raise ValueError(
                f"the picture was drawn by the weights of step {self.step} of {self.checkpoint}, "
                f"and {model.name} holds others, of step {model.step}; name the checkpoint that "
                "drew it by --checkpoint"
            )
        if self.around is not None and self.around != model.around:
            both = sorted(self.around.items() ^ model.around.items())
            raise ValueError(
                f"the picture was drawn with other weights of {both[0][0]} than {model.name} has; "
                "name the checkpoint that drew it by --checkpoint"
            )
        if recipe == self.recipe and _digest(model, recipe) != self.table:
            raise ValueError(
                f"{recipe.solver} on stride {recipe.stride_name} is no longer what drew the "
                "picture: a stride's file, or the solver, has changed"
            )

    def padded(self) -> dict[str, Any]:
        """What `Model.generate` is asked for: a batch at least, on whose size rounding depends."""
        count = max(len(self.index), self.batch_size)
        asked = {"index": np.resize(self.index, count)}
        if self.labels is not None:
            asked["label"] = np.resize(self.labels, count)
        if self.prompts is not None:
            asked |= {"prompt": self.prompts, "negative_prompt": self.negative_prompt}
        return asked


def about(
    model: Model,
    recipe: Recipe,
    *,
    seed: int,
    index: np.ndarray,
    labels: np.ndarray | None,
    batch_size: int,
    checkpoint: str | Path = "",
    prompts: Sequence[str] | None = None,
    negative_prompt: str | None = None,
    clips: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a file of pictures is to hold, as JSON.

    Args:
        model: what drew them.
        recipe: how.
        seed: of the set.
        index: int [N], their places in the set.
        labels: int [N]; None for a network without classes.
        batch_size: samples at a time.
        checkpoint: where the model was loaded from; default its name.
        prompts: texts in rotation; None for a network that is told none.
        negative_prompt: of all of them.
        clips: what is known of their frames, as of `commands/clip_flags.py`.
    """
    path = Path(checkpoint).expanduser()
    return (
        maker(model)
        | {
            "path": str(path.absolute() if path.exists() and checkpoint else checkpoint) or None,
            "recipe": _plain(dataclasses.asdict(recipe) | {"stride": whole_path(recipe.stride)}),
            "table": _digest(model, recipe),
            "seed": int(seed),
            "batch_size": int(min(batch_size, len(index))),
            "negative_prompt": negative_prompt,
            "size": list(model.codec.size),
            "frames": model.codec.frames or None,
            "clips": clips,
        }
        | places(index, labels, prompts)
    )


def places(
    index: np.ndarray, labels: np.ndarray | None, prompts: Sequence[str] | None = None
) -> dict[str, Any]:
    """The part of `about` that differs between the pictures of a set."""
    return {
        # what is to be added to 0, 1, ..., count - 1; then the count
        "index": [*_compact(np.asarray(index) - np.arange(len(index))), len(index)],
        "labels": None if labels is None else _compact(np.asarray(labels)),
        "prompts": None if prompts is None else list(prompts),
    }


def maker(model: Model) -> dict[str, Any]:
    """The part of `about` that says which model and version."""
    return {
        "version": experiment.version(),
        "checkpoint": model.name,
        "step": model.step,
        "weights": model.fingerprint,
        "dtype": _dtype(model),
        "computed_in": model.computed_in,
        "loras": list(model.loras),
        "around": model.around,
        "devices": f"{jax.local_device_count()} {jax.devices()[0].platform}",
    }


def read(path: str | Path) -> Drawn:
    """Reads what drew the pictures of a PNG, NPZ, GIF or WebP file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not say so.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no picture {str(path)!r}{files.missing_part(Path(path))}")
    found = None
    try:
        text, size = _text(Path(path))
        found = json.loads(text)
        drawn = _drawn(found)
        alone = len(drawn.index) == 1 and size is not None and size == drawn.size
        return dataclasses.replace(drawn, alone=alone)
    except (*files.ODD, OSError, ValueError, SyntaxError):  # the last is Pillow's, of chunks
        pass
    if isinstance(found, dict) and "command" in found:
        raise ValueError(f"{path} is an edited picture, made by: {found['command']}")
    raise ValueError(
        f"{path} does not say what drew it; PNG, NPZ, GIF and WebP files of sample.py do, unless "
        "another program has written them again"
    )


def _drawn(found: dict[str, Any]) -> Drawn:
    recipe, labels = found["recipe"], found["labels"]
    offset, count = found["index"][:-1], found["index"][-1]
    return Drawn(
        recipe=Recipe(**recipe | {"guidance_interval": tuple(recipe["guidance_interval"])}),
        seed=found["seed"],
        index=np.resize(offset, count) + np.arange(count),
        labels=None if labels is None else np.resize(np.array(labels, np.int32), count),
        batch_size=found["batch_size"],
        prompts=found.get("prompts"),
        negative_prompt=found.get("negative_prompt"),
        size=tuple(found["size"]) if "size" in found else None,
        dtype=found.get("dtype"),
        computed_in=found.get("computed_in"),
        loras=tuple(found["loras"]) if "loras" in found else None,
        around=found.get("around"),
        frames=found.get("frames"),
        clips=found.get("clips"),
        checkpoint=found["path"] or found["checkpoint"],
        **{name: found[name] for name in ("step", "weights", "table")},
    )


def _dtype(model: Model) -> str | None:
    """The dtype that the model was loaded in; None if its parameters and its network differ."""
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)}
    own = getattr(model.network, "dtype", None)
    return own if kinds == {own} else None


def _flags(loras: Sequence[dict[str, Any]]) -> str:
    """The flags that name LoRA files, wherever these lie."""
    flags = [f"--lora={Path(one['path']).name}:{one['scale']:g}" for one in loras]
    return " ".join(flags) or "no --lora"


def _contents(loras: Sequence[dict[str, Any]]) -> list[tuple[str, float]]:
    """What LoRA files change, wherever they lie."""
    return sorted((one["sha256"], one["scale"]) for one in loras)


def _plain(content: Any) -> Any:
    """The content as JSON has it, numbers of numpy as Python's."""
    return json.loads(json.dumps(content, default=lambda value: np.asarray(value).tolist()))


def _text(path: Path) -> tuple[str, tuple[int, int] | None]:
    """The JSON in a file, and the (height, width) of a PNG: a sheet is larger than a picture."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return str(arrays[NPZ]), None
    with Image.open(path) as image:
        image.load()  # the chunk may come after the pixels
        if path.suffix == ".webp":
            return image.getexif()[DESCRIPTION], None
        if path.suffix == ".gif":
            return image.info["comment"], None
        return image.info[TEXT], (image.height, image.width)


def _compact(values: np.ndarray) -> list[int]:
    """The shortest beginning that gives the values in rotation."""
    for count in range(1, min(len(values), 1000) + 1):
        if np.array_equal(np.resize(values[:count], len(values)), values):
            return values[:count].tolist()
    return values.tolist()


def _digest(model: Model, recipe: Recipe) -> str:
    table = recipe.table(model.schedule)
    if isinstance(table, Tolerance):
        return f"tolerance {table.rtol:g}"
    return model.origin(table)["table"]
