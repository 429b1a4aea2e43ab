"""Captions: the texts that go with pictures, read from beside them or made.

    folder/metadata.jsonl     {"file_name": "dogs/1.png", "text": "a dog"} in each line
    folder/dogs/1.txt         the text of folder/dogs/1.png, where there is no metadata.jsonl
    folder/dogs/run.2.txt     that of the frames in folder/dogs/run.2/

A picture that has none has the empty text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ddim_jax.files import read_text
from ddim_jax.names import is_unicode

METADATA = "metadata.jsonl"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = ("a thin {}", "a {}", "a bold {}")
"""Of the digits of a class the third with the least ink, the next, and that with the most."""


def of_digits(images: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
    """Makes captions such as "a bold seven", by how much ink a digit has among those of its class.

    Args:
        images: uint8 [N, H, W, 1].
        labels: [N], 0..9.
    """
    ink, thirds = images.mean(axis=(1, 2, 3)), np.empty(len(images), int)
    for label in np.unique(labels):
        own = labels == label
        thirds[own] = np.searchsorted(np.quantile(ink[own], (1 / 3, 2 / 3)), ink[own])
    return tuple(
        INKS[third].format(DIGITS[label]) for third, label in zip(thirds, labels, strict=True)
    )


def without_ending(file: Path) -> Path:
    """The path of a picture or clip without its ending; a folder of frames has none."""
    return file if file.is_dir() else file.with_suffix("")


def is_caption(file: Path, pictures: Collection[Path]) -> bool:
    """Whether a file of a folder holds captions.

    Args:
        file: its path.
        pictures: paths of the folder's pictures, `without_ending`.
    """
    return file.name == METADATA or (file.suffix == ".txt" and file.with_suffix("") in pictures)


def of_files(root: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """The captions of the pictures of a folder; () where it holds none.

    Args:
        root: the folder, which may hold metadata.jsonl.
        files: of the pictures.

    Raises:
        ValueError: metadata.jsonl is damaged, or names none of the files.
    """
    if (root / METADATA).is_file():
        texts = _of_metadata(root / METADATA)
        names = [file.relative_to(root).as_posix() for file in files]
        found = tuple(texts.get(name, "") for name in names)
        if texts.keys().isdisjoint(names):
            raise ValueError(
                f"{root / METADATA} names none of the pictures, such as "
                f"{files[0].relative_to(root)}; write each path as it is within {root}"
            )
        return found
    beside = [Path(f"{without_ending(file)}.txt") for file in files]
    if not any(file.is_file() for file in beside):
        return ()
    return tuple(read_text(file).strip() if file.is_file() else "" for file in beside)


def note(texts: Sequence[str]) -> str:
    """How many images have no caption, in words; "" for none."""
    missing = sum(not text.strip() for text in texts)
    if not missing:
        return ""
    return f"{missing:,} of {len(texts):,} images have no caption, and are told the empty text"


def _of_metadata(file: Path) -> dict[str, str]:
    """File name -> text."""
    texts = {}
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = str(row["file_name"]), row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'line {number} of {file} must be like {{"file_name": "1.png", "text": "a dog"}}'
                f", got {line[:60]!r}"
            ) from error
        if not isinstance(text, str) or not is_unicode(text):
            raise ValueError(
                f"line {number} of {file}: text must be a text of Unicode characters, got {text!r}"
            )
        if name in texts:
            raise ValueError(f"line {number} of {file} names {name} again; keep one line of each")
        texts[name] = text
    return texts
