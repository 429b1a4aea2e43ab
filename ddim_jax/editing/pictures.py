"""Images in, pictures and numbers out, for the editing commands."""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import data, files
from ddim_jax.data import folders
from ddim_jax.models.pretrained import Pretrained

Array = np.ndarray
MASKS = ("left", "right", "top", "bottom", "center", "random:SHARE")
"""Masks by name: which part is unknown."""


def read(model: Pretrained, args: argparse.Namespace, spec: str | None = None) -> tuple[Array, Any]:
    """([N, H, W, C] in [-1, 1], labels [N] or None) of `--images`, or of another spec.

    Raises:
        ValueError: images of another size or mode than the network's, unless `--resize`; none.
        OSError: a file that is not there, or cannot be read.
    """
    spec = args.images if spec is None else spec
    height, _, channels = shape = model.experiment.image_shape
    size = height if args.resize else None
    if Path(spec).is_file():
        folders.check_files(Path(spec).parent, [Path(spec)])
        images = folders.read_file(Path(spec), size, channels if args.resize else 3)[None]
        images = images[..., :1] if channels == 1 and _is_grey(images) else images
        labels = None
    else:
        spec = f"folder:{spec}" if Path(spec).is_dir() else spec
        source = data.load(
            spec, args.split, image_size=size, channels=channels if args.resize else None
        )
        chosen = [source[i] for i in _chosen(args, source)]
        images = np.stack([example["image"] for example in chosen])
        labels = np.array([example["label"] for example in chosen])
        labels = labels if source.num_classes == model.experiment.num_classes else None
    if images.shape[1:] != shape:
        raise ValueError(
            f"{spec} holds images of shape {images.shape[1:]}, {model.name} draws {shape}; "
            "--resize crops and resizes them"
        )
    return data.to_unit_range(images), labels if model.experiment.num_classes else None


def _chosen(args: argparse.Namespace, source: data.Source) -> list[int]:
    if args.index:
        index = [int(i) for i in args.index.split(",")]
        bad = [i for i in index if not 0 <= i < len(source)]
        if bad:
            raise ValueError(f"--index must be 0..{len(source) - 1}, got {bad[0]}")
        return index
    count = len(source) if args.num is None else args.num
    if args.only is None:
        return list(range(min(count, len(source))))
    places = (i for i in range(len(source)) if source[i]["label"] == args.only)
    index = list(itertools.islice(places, count))
    if not index:
        raise ValueError(f"--only={args.only}: {source.name} holds no image of that class")
    return index


def _is_grey(images: Array) -> bool:
    return bool((images == images[..., :1]).all())


def write(
    args: argparse.Namespace, name: str, rows: dict[str, Array], numbers: dict, named: bool = True
) -> None:
    """Writes a sheet, a row for each name, or a GIF of the only one, and the numbers beside it."""
    out = Path(args.out) if args.out else files.next_free(Path("edits"), name)
    sets = {key: data.to_uint8(np.asarray(images)) for key, images in rows.items()}
    height = next(iter(sets.values())).shape[1]
    scale = max(1, 56 // height)
    if out.suffix == ".gif":
        (frames,) = sets.values()
        shown = [data.grid(frame[None], 1, scale=2 * scale) for frame in frames]
        data.save_gif(out, [*shown, *shown[-2:0:-1]], 80, overwrite=args.overwrite)
    else:
        columns = min(args.columns, *(len(images) for images in sets.values()))
        tiles = np.concatenate([images[:columns] for images in sets.values()])
        labels = [label for key in sets for label in [key] + [""] * (columns - 1)]
        sheet = data.grid(tiles, columns, labels if named else None, scale=scale)
        data.save_png(out, sheet, overwrite=args.overwrite)
    if args.save:
        np.savez(args.save, images=list(sets.values())[-1])
    files.write_json(out.with_suffix(".json"), numbers | {"seconds": time.time() - args.began})
    print(f"{out}: " + ", ".join(f"{k} {short(v)}" for k, v in numbers.items() if _is_short(v)))


def _is_short(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def short(value: Any) -> str:
    """A number to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def mask(args: argparse.Namespace, images: Array) -> Array:
    """[N, H, W, 1], 1 where pixels are known."""
    count, height, width, _ = images.shape
    known = np.ones((height, width), np.float32)
    name, _, value = args.mask.partition(":")
    if Path(args.mask).is_file():
        found = folders.read_file(Path(args.mask), None, 1)[..., 0]
        if found.shape != (height, width):
            raise ValueError(
                f"--mask {args.mask} is {found.shape[0]} x {found.shape[1]}, the images are "
                f"{height} x {width}; white is known, black is to be found"
            )
        known = (found > 127).astype(np.float32)
    elif name == "random":
        share = float(value or 0.5)
        known = (np.random.default_rng(args.seed).random((height, width)) > share).astype(
            np.float32
        )
    else:
        rows, columns = slice(None), slice(None)
        half, quarter = (height // 2, width // 2), (height // 4, width // 4)
        parts = {
            "left": (rows, slice(half[1])),
            "right": (rows, slice(half[1], None)),
            "top": (slice(half[0]), columns),
            "bottom": (slice(half[0], None), columns),
            "center": (slice(quarter[0], -quarter[0]), slice(quarter[1], -quarter[1])),
        }
        if name not in parts:
            raise ValueError(f"--mask must be a file or one of {', '.join(MASKS)}, got {args.mask}")
        known[parts[name]] = 0
    return np.broadcast_to(known[None, :, :, None], (count, height, width, 1)).copy()
