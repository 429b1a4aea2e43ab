"""Folders of images: finds the files and their classes, and checks that all can be read.

A folder holds either only images, or a sub-folder for each class: sorted names, those that are
numbers by their value, are labels 0, 1, ... Of an animation the first frame is read; 16 bits become
8. Everything is checked before training starts; a decoding error in the middle of a run is too
late.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ddim_jax.data import captions
from ddim_jax.data.images import Size, fit_pil
from ddim_jax.files import missing_part
from ddim_jax.names import few

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev")


def open_folder(
    path: Path,
    split: str,
    size: Size,
    channels: int | None,
    pad: bool = False,
    skip_unreadable: bool = False,
    checked: bool = True,
) -> tuple[tuple[int, int, int], int, int, Callable, tuple[str, ...], str, list[Path]]:
    """Opens a folder of images, all of which it checks.

    Args:
        path: of the folder.
        split: see `split_folder`.
        size: resize to this many pixels, see `images.fit`; None to keep the size, the same for all.
        channels: 1 for grey; default 3, RGB.
        pad: keep the whole of an image, between black bars, instead of its centre.
        skip_unreadable: leave out files that cannot be read.
        checked: False: only the first image that can be read counts.

    Returns:
        image_shape, num_classes, count, read, class_names and note, the fields of a `Source`; and
        the files.

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
    channels, note = channels or 3, _skipped(root, len(files))
    if not checked:
        first = next((i for i, file in enumerate(files) if not isinstance(_inspect(file), str)), 0)
        files, labels = [files[first]], [labels[first]]
    sizes = check_files(root, files, skip_unreadable)
    if bad := [i for i, found in enumerate(sizes) if isinstance(found, str)]:
        note.insert(0, f"{len(bad)} unreadable images{listed(root, files, sizes)}")
        kept = sorted(set(range(len(files))) - set(bad))
        files, labels, sizes = ([part[i] for i in kept] for part in (files, labels, sizes))
        if checked and (lost := sorted({*range(len(classes))} - {*labels})):
            raise ValueError(
                f"no image of class {classes[lost[0]]!r} in {root} can be read; repair them, or "
                "remove that sub-folder"
            )
    if not files:
        raise ValueError(f"none of the {len(bad)} images in {root} can be read; convert them")
    check_sizes(root, sizes, size)
    shape = fit_pil(Image.new("L", sizes[0]), size, channels, pad).shape

    def read(index: int) -> tuple[np.ndarray, int]:
        return read_file(files[index], size, channels, pad), labels[index]

    note = f"skipped {' and '.join(note)}" if note else ""
    return shape, len(classes), len(files), read, tuple(classes), note, files


def check_sizes(
    root: Path, sizes: Sequence[tuple[int, int]], size: Size, what: str = "images"
) -> None:
    """Raises ValueError for different (width, height) that are not resized."""
    if size is None and len(set(sizes)) > 1:
        shown = ", ".join(f"{w} x {h}" for w, h in sorted(set(sizes))[:3])
        raise ValueError(
            f"{what} in {root} have {len(set(sizes))} different sizes ({shown}, ...), one batch "
            "needs one size; resize them (--resize, in training config.data.resize, in Python "
            "image_size)"
        )


def _skipped(root: Path, used: int) -> list[str]:
    """What is under a folder beside the images that were found."""
    walked = [(Path(folder), names) for folder, _, names in os.walk(root)]
    pictures = {f / Path(n).stem for f, names in walked for n in names if _is_image(n)}
    names = [
        name
        for folder, names in walked
        for name in names
        if name[0] != "." and not captions.is_caption(folder / name, pictures)
    ]
    found = [Path(name).suffix.lower() or name for name in names]
    others = len(found) - used
    kinds = sorted(set(found) - set(SUFFIXES)) or ["images in deeper folders, or no files"]
    return [f"{others} other files ({few(kinds)})"] if others > 0 else []


def listed(root: Path, files: Sequence[Path], sizes: Sequence) -> str:
    """Writes the list of unreadable files to a file, and says where it is.

    Of each it is said why where `sizes` holds a text.
    """
    lines = [
        f"{file.relative_to(root)}: {why}\n"
        for file, why in zip(files, sizes, strict=True)
        if isinstance(why, str)
    ]
    prefix = f"unreadable-{root.name}-".encode("ascii", "replace").decode().replace("?", "_")
    options = {"prefix": prefix, "suffix": ".txt", "errors": "backslashreplace"}
    with tempfile.NamedTemporaryFile("w", delete=False, **options) as file:
        file.writelines(lines)
    return f", listed in {file.name}"


def split_folder(path: Path, split: str) -> Path:
    """Returns `path / split` if all sub-folders of `path` are named like splits, else `path`.

    Raises:
        ValueError: there is no such split.
    """
    names = [folder.name for folder in folders_in(path)]
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
    folders = folders_in(root)
    per_class = {folder.name: _images_in(folder) for folder in folders}
    full = [name for name, files in per_class.items() if files]  # in the order of `folders_in`
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
    if odd := [name for name in full if not name.isprintable()]:
        raise ValueError(
            f"{root} holds the class sub-folder {ascii(odd[0])}, whose name is no printable text, "
            "and a class is named by it; rename it"
        )
    files = [file for name in full for file in per_class[name]]
    labels = [label for label, name in enumerate(full) for _ in per_class[name]]
    return files, labels, full


def folders_in(folder: Path) -> list[Path]:
    """Its sub-folders, sorted, those that are numbers by their value; not hidden ones."""
    # Not .git, .ipynb_checkpoints, __MACOSX and the like.
    found = [p for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._"]
    return sorted(found, key=lambda p: _order(p.name))


def _order(name: str) -> tuple[bool, int, str]:
    """By which classes are sorted: numbers by their value, before the other names."""
    number = name.isascii() and name.isdigit()
    return not number, int(name) if number else 0, name


def _images_in(folder: Path) -> list[Path]:
    # A link that leads nowhere is an image that cannot be read, not one that is not there.
    files = (p for p in folder.iterdir() if _is_image(p.name))
    return sorted(p for p in files if p.is_file() or (p.is_symlink() and not p.exists()))


def _is_image(name: str) -> bool:
    # a leading dot: hidden files, among them the "._name.jpg" that macOS leaves behind
    return Path(name).suffix.lower() in SUFFIXES and name[0] != "."


def check_files(
    root: Path,
    files: Sequence[Path],
    skip_unreadable: bool = False,
    inspect: Callable[[Path], Any] | None = None,
    what: str = "image files",
) -> list[Any]:
    """Returns the (width, height) of every file, after checking that all can be read.

    Args:
        root: of the files, for messages.
        files: to check.
        skip_unreadable: of a file that cannot be read return why, a string.
        inspect: what is returned of a file, or a string why it cannot be used; default of a
            picture its (width, height).
        what: the files are, for messages.

    Raises:
        ValueError: some cannot be read; the message names the first three and says why, and names
            a file that lists all.
    """
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(inspect or _inspect, files))  # or why the file cannot be used
    bad = [(file, why) for file, why in zip(files, sizes, strict=True) if isinstance(why, str)]
    if bad and not skip_unreadable:
        shown = "; ".join(f"{file.relative_to(root)}: {why}" for file, why in bad[:3])
        more = f"; ...{listed(root, files, sizes)}" if len(bad) > 3 else ""
        verb = "used" if inspect else "read"
        raise ValueError(
            f"{len(bad)} of {len(files)} {what} in {root} cannot be {verb} ({shown}{more}); "
            "repair, convert or remove them, or leave them out by skip_unreadable "
            "(config.data.skip_unreadable=True in training)"
        )
    return sizes


def _inspect(file: Path) -> tuple[int, int] | str:
    """Returns the upright (width, height), or why the file cannot be used."""
    try:
        with Image.open(file) as image:
            if image.mode in ("I", "F"):
                return "32 bits a channel, only 8 and 16 are supported"
            # The method of the base class: that of PNG would decode the whole image.
            turned = Image.Image.getexif(image).get(0x0112, 1) >= 5
            size = image.size[::-1] if turned else image.size
            # Pillow verifies the checksums of PNG and the length of WebP; a whole JPEG has an end
            # marker. Of the others decoding tells.
            if image.format in ("PNG", "WEBP") or (image.format == "JPEG" and _has_end(file)):
                image.verify()
            else:
                image.load()
    except Exception as error:  # Pillow raises SyntaxError, struct.error, ... on damaged files.
        return str(error).replace(f" {str(file)!r}", "") or type(error).__name__
    return size


def _has_end(jpeg: Path) -> bool:
    with open(jpeg, "rb") as stream:
        stream.seek(max(0, jpeg.stat().st_size - 64))
        return b"\xff\xd9" in stream.read()


def read_file(file: Path, size: Size, channels: int, pad: bool = False) -> np.ndarray:
    """Returns an image, upright, as uint8 [H, W, channels], or of another size.

    Args:
        file: of the image.
        size: see `images.fit`; None to keep the size.
        channels: 1 for grey, 3 for RGB.
        pad: see `images.fit`.

    Raises:
        ValueError: the file cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            return fit_pil(ImageOps.exif_transpose(image), size, channels, pad)
    except Exception as error:  # as above
        raise ValueError(
            f"{file} cannot be decoded ({error}); it was readable when the folder was loaded: "
            "repair or remove it and start again"
        ) from error
