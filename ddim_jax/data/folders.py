"""Folders of images: finds the files and their classes, and checks that all can be read.

A folder holds either only images, or a sub-folder for each class (sorted names = labels 0, 1, ...).
Everything is checked before training starts; a decoding error in the middle of a run is too late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddim_jax.data.images import fit_pil
from ddim_jax.files import missing_part
from ddim_jax.names import few

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev")


def open_folder(
    path: Path, split: str, size: int | None, channels: int | None
) -> tuple[tuple[int, int, int], int, int, Callable[[int], tuple[np.ndarray, int]]]:
    """Opens a folder of images, all of which it checks.

    Args:
        path: of the folder.
        split: see `split_folder`.
        size: crop and resize to this many pixels; None to keep the size, the same for all.
        channels: 1 for grey; default 3, RGB.

    Returns:
        image_shape, num_classes, count and read, the fields of a `Source`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no such split, no images, files that cannot be read, or different sizes.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"folder {path} does not exist{missing_part(path)}; write folder:PATH with a "
            "folder of images or of class sub-folders"
        )
    root = split_folder(path, split)
    files, labels, classes = find_images(root)
    channels = channels or 3
    sizes = check_files(root, files)
    if size is None and len(set(sizes)) > 1:
        shown = ", ".join(f"{w} x {h}" for w, h in sorted(set(sizes))[:3])
        raise ValueError(
            f"images in {root} have {len(set(sizes))} different sizes ({shown}, ...), one batch "
            "needs one size; give image_size to crop and resize them"
        )
    width, height = (size, size) if size else sizes[0]

    def read(index: int) -> tuple[np.ndarray, int]:
        return read_file(files[index], size, channels), labels[index]

    return (height, width, channels), len(classes), len(files), read


def split_folder(path: Path, split: str) -> Path:
    """Returns `path / split` if all sub-folders of `path` are named like splits, else `path`.

    Raises:
        ValueError: there is no such split.
    """
    names = [folder.name for folder in _folders_in(path)]
    # All of them: "train" beside "car" and "plane" is a class.
    splits = names and all(name.lower() in SPLITS for name in names) and not _images_in(path)
    if splits and split in names:
        return path / split
    if splits or split != "train":
        holds = f"the splits {few(names)}" if splits else "images of the split 'train' only"
        raise ValueError(
            f"folder {path} has no split {split!r}, it holds {holds}; choose another split, make "
            f"the sub-folder {split!r}, or load another folder as its split 'train'"
        )
    return path


def find_images(root: Path) -> tuple[list[Path], list[int], list[str]]:
    """Returns the image files, their labels and the class names (none if `root` is flat).

    Raises:
        ValueError: no images, images beside sub-folders of images, or an empty sub-folder.
    """
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
    """Returns the (width, height) of every file, after checking that all can be read.

    Raises:
        ValueError: some cannot be read; the message names the first three and says why.
    """
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_inspect, files))  # or why the file cannot be used
    bad = [(file, why) for file, why in zip(files, sizes, strict=True) if isinstance(why, str)]
    if bad:
        shown = "; ".join(f"{file.relative_to(root)}: {why}" for file, why in bad[:3])
        raise ValueError(
            f"{len(bad)} of {len(files)} image files in {root} cannot be read ({shown}"
            f"{'; ...' if len(bad) > 3 else ''}); repair, convert or remove them"
        )
    return sizes


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
    """Returns an image, upright, as uint8 [H, W, channels], or [size, size, channels].

    Args:
        file: of the image.
        size: crop to the central square and resize to this many pixels; None to keep the size.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ValueError: the file cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            return fit_pil(ImageOps.exif_transpose(image), size, channels)
    except OSError as error:
        raise ValueError(
            f"{file} cannot be decoded ({error}); it was readable when the folder was loaded: "
            "repair or remove it and start again"
        ) from error
