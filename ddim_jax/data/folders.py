"""Image folders: which files are images, of which class, and whether they can be read.

Either a folder holds only images, or a sub-folder for each class (sorted names = labels 0, 1, ...).
Everything is checked before training starts; a decoding error in the middle of a run is too late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddim_jax.data.images import fit_pil

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev")


def split_folder(path: Path, split: str) -> Path:
    """Returns `path / split` if all sub-folders of `path` are named for splits, else `path`.

    Raises:
        ValueError: if there is no such split.
    """
    names = [folder.name for folder in _folders_in(path)]
    # All of them: "train" beside "car" and "plane" is a class.
    splits = names and all(name.lower() in SPLITS for name in names) and not _images_in(path)
    if splits and split in names:
        return path / split
    if splits or split != "train":
        found = f"the splits {few(names)}" if splits else "images of the split 'train' only"
        raise ValueError(
            f"folder {path} has no split {split!r}, it holds {found}; choose another split, make "
            f"the sub-folder {split!r}, or load another folder as its split 'train'"
        )
    return path


def find_images(root: Path) -> tuple[list[Path], list[int], list[str]]:
    """Returns the image files, their labels and the class names (none if `root` is flat)."""
    flat = _images_in(root)
    folders = _folders_in(root)
    per_class = {folder.name: _images_in(folder) for folder in folders}
    full = [name for name, files in per_class.items() if files]
    if not flat and not full:
        raise ValueError(
            f"{root} holds no images ({', '.join(SUFFIXES)}), neither itself nor in "
            f"its {len(folders)} sub-folders; point folder:PATH at the folder that holds the images"
        )
    if flat and full:
        raise ValueError(
            f"{root} holds {len(flat)} images beside {len(full)} sub-folders of images "
            f"({few(full)}); move the images into class sub-folders, or the sub-folders away"
        )
    if flat:
        return flat, [0] * len(flat), []
    empty = sorted(set(per_class) - set(full))
    if empty:
        raise ValueError(
            f"{len(empty)} of the {len(per_class)} class sub-folders of {root} hold no images "
            f"directly inside ({few(empty)}); fill, flatten or remove them: every sub-folder "
            "is a class"
        )
    files = [file for name in full for file in per_class[name]]
    labels = [label for label, name in enumerate(full) for _ in per_class[name]]
    return files, labels, full


def _folders_in(folder: Path) -> list[Path]:
    # Not .git, .ipynb_checkpoints, __MACOSX and the like.
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] not in "._"]


def _images_in(folder: Path) -> list[Path]:
    # A leading dot: hidden files, among them the "._name.jpg" that macOS leaves behind.
    files = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
    return sorted(p for p in files if p.is_file())


def check_files(root: Path, files: Sequence[Path]) -> list[tuple[int, int]]:
    """Returns the (width, height) of every file, or raises with the ones that cannot be read."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_inspect, files))
    bad = [(file, why) for file, why in zip(files, found, strict=True) if isinstance(why, str)]
    if bad:
        shown = "; ".join(f"{file.relative_to(root)}: {why}" for file, why in bad[:3])
        raise ValueError(
            f"{len(bad)} of {len(files)} image files in {root} cannot be read ({shown}"
            f"{'; ...' if len(bad) > 3 else ''}); repair, convert or remove them"
        )
    return found


def _inspect(file: Path) -> tuple[int, int] | str:
    """Returns the upright (width, height), or why the file cannot be used."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                return f"{image.mode} pixels, only 8 bits a channel are supported"
            # The method of the base class: that of PNG would decode the whole image.
            turned = Image.Image.getexif(image).get(0x0112, 1) >= 5
            size = image.size[::-1] if turned else image.size
            # Pillow verifies the checksums of PNG and the length of WebP, but JPEG has neither:
            # where its end marker is missing, decoding tells.
            if image.format == "JPEG" and not _has_end_marker(file):
                image.load()
            else:
                image.verify()
    except Exception as error:  # Pillow raises SyntaxError, struct.error, ... on damaged files.
        return str(error).replace(f" {str(file)!r}", "") or type(error).__name__
    return size


def _has_end_marker(jpeg: Path) -> bool:
    with open(jpeg, "rb") as stream:
        stream.seek(max(0, jpeg.stat().st_size - 64))
        return b"\xff\xd9" in stream.read()


def read_file(file: Path, size: int | None, channels: int) -> np.ndarray:
    """Returns an upright image file as uint8 [H, W, channels], [size, size, channels] if given."""
    try:
        with Image.open(file) as image:
            return fit_pil(ImageOps.exif_transpose(image), size, channels)
    except OSError as error:
        raise ValueError(
            f"{file} cannot be decoded ({error}); it was readable when the folder was loaded: "
            "repair or remove it and start again"
        ) from error


def few(names: Iterable[str]) -> str:
    """Returns the first five names, for a message."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
