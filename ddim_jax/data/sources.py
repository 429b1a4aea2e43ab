"""Where pictures come from: one `Source` for embedded digits, npz files, folders and TFDS.

A source is random access: `len(source)` and `source[i] -> {"image": uint8 [H, W, C], "label":
int32}`. Every image of a source has the same shape. Whatever can be wrong with the data is looked
for in `load`, before training starts, and reported with the way out.

    digits        5,000 handwritten digits that come with the package, 28 x 28 x 1
    npz:PATH      arrays {split}_x and {split}_y, or images and labels, or x and y
    folder:PATH   a sub-folder for each class, or only images; in PATH, or in PATH/train, PATH/test
    pairs:FOLDER  noise and the images drawn from it, see `pairs`; only a size they have
    NAME          a TFDS dataset prepared as array_record, such as cifar10 (no TensorFlow needed)
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.resources
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax.data import folders
from ddim_jax.data.images import fit

_FORMS = "digits, npz:PATH, folder:PATH, pairs:FOLDER, or the name of a TFDS dataset"


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to labelled uint8 images of one shape.

    Attributes:
        name: what it was loaded from.
        image_shape: (H, W, C), C = 1 or 3.
        num_classes: labels are 0..num_classes - 1; 0 when there are none, and every label is 0.
        count: number of images.
        read: `read(i) -> (uint8 [H, W, C], label)` for 0 <= i < count; called by many threads.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    count: int
    read: Callable[[int], tuple[np.ndarray, int]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        """Returns the number of images."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `{"image": uint8 [H, W, C], "label": int32}`; negative indices count back."""
        if not -self.count <= index < self.count:
            raise IndexError(f"{self.name} has {self.count} images, got index {index}")
        image, label = self.read(int(index) % self.count)
        return {"image": image, "label": np.int32(label)}


def load(
    spec: str,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
) -> Source:
    """Returns the source a spec names.

    Args:
        spec: "digits", "npz:PATH", "folder:PATH" or a TFDS name (`cifar10`, `name/config:1.0.0`).
        split: "train", "test", ...; TFDS takes slices such as "train[:1000]".
        image_size: crop to the central square and resize, antialiased, to this many pixels. If
            not given, images keep their size, which must then be the same for all.
        channels: 1 for grey, 3 for RGB; if not given, folders are RGB and the rest is as stored.
        data_dir: where TFDS datasets are, `~/tensorflow_datasets` if not given.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if the spec is unknown or its data cannot be used as it is.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}; leave it out")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be 1 or more pixels, got {image_size}; leave it out")
    kind, _, path = spec.partition(":")
    if spec == "digits":
        return _load_digits(split, image_size, channels)
    if kind == "pairs":
        from ddim_jax.data import pairs  # which needs samplers

        return pairs.load(path)
    if kind == "npz":
        return _load_npz(Path(path).expanduser(), split, image_size, channels)
    if kind == "folder":
        return _load_folder(Path(path).expanduser(), split, image_size, channels)
    return _load_tfds(spec, split, image_size, channels, data_dir)


def _array_source(
    name: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    size: int | None,
    channels: int | None,
) -> Source:
    """Returns a source over arrays in memory: uint8 [N, H, W, C] and integers [N], or None."""
    shape = fit(images[0], size, channels).shape

    def read(index: int) -> tuple[np.ndarray, int]:
        label = 0 if labels is None else labels[index]
        return fit(images[index], size, channels), label

    classes = 0 if labels is None else int(labels.max()) + 1
    return Source(name, shape, classes, len(images), read)


def _load_digits(split: str, size: int | None, channels: int | None) -> Source:
    if split != "train":
        raise ValueError(
            f"digits has only the split 'train', got {split!r}; for the others use the TFDS "
            "dataset 'mnist', of whose training images these digits are a part"
        )
    asset = importlib.resources.files("ddim_jax.assets") / "digits.npz"
    with asset.open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"][..., None], arrays["labels"]
    return _array_source("digits", images, labels, size, channels)


# npz files


def _load_npz(path: Path, split: str, size: int | None, channels: int | None) -> Source:
    if not path.is_file():
        raise FileNotFoundError(
            f"npz file {path} does not exist{_nearby(path)}; write npz:PATH with the path of a "
            "file made by numpy.savez"
        )
    with _readable(path), np.load(path) as arrays:
        found = list(arrays)
    x_key, y_key = _npz_keys(path, found, split)
    with _readable(path), np.load(path) as arrays:
        images, labels = arrays[x_key], arrays[y_key] if y_key else None
    images = _check_images(path, x_key, images)
    if labels is not None:
        _check_labels(path, y_key, labels, len(images))
    return _array_source(f"npz:{path}", images, labels, size, channels)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile, pickle, zlib and numpy each raise their own.
        raise ValueError(
            f"{path} cannot be read as an npz file of plain arrays ({error}); write it again with "
            "numpy.savez(path, images=..., labels=...)"
        ) from error


def _npz_keys(path: Path, found: Sequence[str], split: str) -> tuple[str, str | None]:
    """Returns the keys of the images and of the labels, None if there are no labels."""
    pairs = [(f"{split}_x", f"{split}_y")]
    if split == "train":
        # Keys without a split hold one set of images, and that is the one to train on.
        pairs += [("images", "labels"), ("x", "y")]
    for x_key, y_key in pairs:
        if x_key in found:
            return x_key, y_key if y_key in found else None
    wanted = ", or ".join(f"{x!r} (labels in {y!r})" for x, y in pairs)
    raise ValueError(
        f"{path} holds the keys {sorted(found)}, but split {split!r} needs {wanted}; "
        "rename the arrays or choose another split"
    )


def _check_images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    """Returns the images as uint8 [N, H, W, C]."""
    rule = "images must be uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3 last and N >= 1"
    found = f"{key!r} of {path} is {images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8:
        raise ValueError(f"{found}; {rule}; bring the values to 0..255 and use .astype('uint8')")
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        raise ValueError(f"{found}; {rule}; move the channels with .transpose(0, 2, 3, 1)")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(f"{found}; {rule}; reshape the array, leave out an alpha channel")
    if images.size == 0:
        raise ValueError(f"{found}; {rule}; write at least one image")
    return images if images.ndim == 4 else images[..., None]


def _check_labels(path: Path, key: str, labels: np.ndarray, count: int) -> None:
    found = f"{key!r} of {path} is {labels.dtype} {list(labels.shape)}"
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{found}; labels must be integers [{count}], one for each image; "
            "leave the array out for unlabelled images"
        )
    if labels.min() < 0:
        raise ValueError(
            f"{found} with smallest value {labels.min()}; labels must count from 0; renumber them "
            "or leave the array out for unlabelled images"
        )


# Folders


def _load_folder(path: Path, split: str, size: int | None, channels: int | None) -> Source:
    if not path.is_dir():
        raise FileNotFoundError(
            f"folder {path} does not exist{_nearby(path)}; write folder:PATH with a folder of "
            "images or of class sub-folders"
        )
    root = folders.split_folder(path, split)
    files, labels, classes = folders.find_images(root)
    channels = channels or 3
    sizes = folders.check_files(root, files)
    if size is None and len(set(sizes)) > 1:
        shown = ", ".join(f"{w} x {h}" for w, h in sorted(set(sizes))[:3])
        raise ValueError(
            f"images in {root} have {len(set(sizes))} different sizes ({shown}, ...), one batch "
            "needs one size; give image_size to crop and resize them"
        )
    width, height = (size, size) if size else sizes[0]

    def read(index: int) -> tuple[np.ndarray, int]:
        return folders.read_file(files[index], size, channels), labels[index]

    shape = (height, width, channels)
    return Source(f"folder:{path}", shape, len(classes), len(files), read)


# TFDS


def _load_tfds(
    name: str, split: str, size: int | None, channels: int | None, data_dir: str | None
) -> Source:
    # Half a second that the other sources need not pay.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise ValueError(_unknown(name, known, error)) from error
    _check_prepared(builder, name, split)
    features = builder.info.features
    if "image" not in features or features["image"].np_dtype != np.uint8:
        raise ValueError(
            f"TFDS dataset {name!r} needs a uint8 feature 'image', it has {folders.few(features)}"
            " (others are not supported); write its images to a folder or an npz file"
        )
    shape = _tfds_shape(name, features["image"].shape, size, channels)
    labelled = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    data = builder.as_data_source(split=split)

    def read(index: int) -> tuple[np.ndarray, int]:
        example = data[index]
        label = example["label"] if labelled else 0
        return fit(example["image"], size, channels), label

    classes = features["label"].num_classes if labelled else 0
    return Source(name, shape, classes, len(data), read)


def _check_prepared(builder: Any, name: str, split: str) -> None:
    stored = builder.info.file_format.value if builder.data_path.exists() else None
    if stored != "array_record":
        state = f"stored as {stored}" if stored else "not prepared"
        raise ValueError(
            f"TFDS dataset {name!r} is {state} in {builder.data_path}, it must be array_record; "
            f"run `tfds build {name} --file_format=array_record` once in an environment with "
            "tensorflow, or give the data_dir that holds it"
        )
    base = split.partition("[")[0].partition("+")[0]
    if base not in builder.info.splits and base != "all":
        raise ValueError(
            f"TFDS dataset {name!r} has no split {split!r}; it has {sorted(builder.info.splits)}, "
            "choose one of these or a slice such as 'train[:1000]'"
        )


def _tfds_shape(
    name: str, stored: Sequence[int | None], size: int | None, channels: int | None
) -> tuple[int, int, int]:
    height, width = (size, size) if size else stored[:2]
    if not height or not width:
        raise ValueError(
            f"images of TFDS dataset {name!r} have shape {tuple(stored)}, no fixed size, one "
            "batch needs one size; give image_size to crop and resize them"
        )
    channels = channels or stored[2]
    if channels not in (1, 3):
        raise ValueError(
            f"images of TFDS dataset {name!r} have {channels} channels, it must be 1 or 3; "
            "give channels=1 or channels=3"
        )
    return height, width, channels


# Messages


def _unknown(spec: str, tfds_names: Sequence[str], error: Exception) -> str:
    base = re.split("[/:]", spec)[0]
    if base in tfds_names:
        return (
            f"TFDS dataset {spec!r} does not exist ({error}); write name, name/config or "
            f"name/config:version, such as {base!r}"
        )
    text = f"unknown dataset {spec!r}; it must be {_FORMS}"
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return f"{text}; this is a folder: write folder:{spec}"
    if path.is_file():
        return f"{text}; this is a file: write npz:{spec} if it was made by numpy.savez"
    words = {name.lower(): name for name in ("digits", "npz:PATH", "folder:PATH", *tfds_names)}
    close = difflib.get_close_matches(spec.lower(), words, n=5)
    if close:
        return f"{text}; close matches: {', '.join(words[word] for word in close)}"
    return f"{text}, all of which are listed at https://www.tensorflow.org/datasets/catalog"


def _nearby(path: Path) -> str:
    """Returns where the path stops existing, for the reader who has mistyped it."""
    if path.exists():
        return f" (it is a {'folder' if path.is_dir() else 'file'})"
    parent = next((p for p in path.parents if p.exists()), None)
    if parent is None or not parent.is_dir():
        return ""
    missing = path.relative_to(parent).parts[0]
    close = difflib.get_close_matches(missing, [p.name for p in parent.iterdir()], n=3)
    hint = f", close matches: {', '.join(close)}" if close else ""
    return f" ({parent.resolve()} has no {missing!r}{hint})"
