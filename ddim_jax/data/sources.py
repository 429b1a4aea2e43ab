"""Where pictures come from: `load` returns a `Source` of embedded digits, a file, a folder or TFDS.

A source is random access: `len(source)` and `source[i] -> {"image": uint8 [H, W, C], "label":
int32}`. Every image of a source has the same shape. `load` looks for everything that can be wrong
with the data before training starts, and says how to mend it. Captions are in `source.captions`.

    digits        5,000 handwritten digits that come with the package, 28 x 28 x 1; made captions
    npz:PATH      arrays {split}_x and {split}_y, or images and labels, or x and y; class_names,
                  captions
    folder:PATH   a sub-folder for each class, or only images; in PATH, or in PATH/train, PATH/test;
                  captions in metadata.jsonl, or in a .txt beside each image
    pairs:FOLDER  noise and the images drawn from it, see `noise_pairs`; in the size they have
    latents:DIR   what an autoencoder made of such images, see `latent_sets`
    NAME          a TFDS dataset prepared as array_record, such as cifar10 (no TensorFlow needed)
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import files
from ddim_jax.data import captions, digits, folders, latent_sets, noise_pairs, npz, tfds
from ddim_jax.data.images import Size, fit, height_width
from ddim_jax.names import check_range, few

_FORMS = "digits, npz:PATH, folder:PATH, pairs:FOLDER, latents:DIR, or the name of a TFDS dataset"


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to labelled uint8 images of one shape, or to their latents.

    Attributes:
        name: the spec it was loaded from.
        image_shape: (H, W, C), C = 1 or 3; of latents that of their pictures.
        num_classes: labels are 0..num_classes - 1; 0 when there are none, and every label is 0.
        count: number of images.
        read: `read(i) -> (uint8 [H, W, C], label)` for 0 <= i < count; called by many threads.
        take: `take(rows) -> (uint8 [N, H, W, C], labels [N])` for rows [N], of images in memory,
            whose batches need no loop; None: they are read one by one.
        class_names: in the order of the labels; () where they have none but their numbers.
        note: what was left out, in words; "" for nothing.
        captions: a text for each image; () for none.
        told: further entries of a record, name -> an array of `count` rows, or `inputs.Rows`.
        mirrors: row `count + i` of `read` and `take` is the mirror of image i, which only latents
            need: mirrored latents are not those of the mirrored picture.
        autoencoder: of latents, what made them: section `codec` of a config, and "weights".
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    count: int
    read: Callable[[int], tuple[np.ndarray, int]] = dataclasses.field(repr=False)
    take: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = dataclasses.field(
        default=None, repr=False, kw_only=True
    )
    class_names: tuple[str, ...] = ()
    note: str = ""
    captions: Sequence[str] = dataclasses.field(default=(), repr=False)
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    mirrors: bool = False
    autoencoder: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self):
        """Forgets names that are only the numbers of the classes."""
        if self.class_names == tuple(map(str, range(self.num_classes))):
            object.__setattr__(self, "class_names", ())

    def __len__(self) -> int:
        """Returns the number of images."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `{"image": uint8 [H, W, C], "label": int32}`; negative indices count back."""
        if not -self.count <= index < self.count:
            raise IndexError(f"{self.name} has {self.count} images, got index {index}")
        index = int(index) % self.count
        image, label = self.read(index)
        told = {name: rows[index] for name, rows in self.told.items()}
        return {"image": image, "label": np.int32(label)} | told

    def batch(self, rows: np.ndarray, flip: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The records of rows [N], stacked; of a source with `take`.

        Args:
            rows: [N], 0..count - 1.
            flip: bool [N], which are mirrored; None for none.
        """
        own = flip is not None and self.mirrors
        images, labels = self.take(rows + self.count * flip if own else rows)
        if flip is not None and not own:
            images = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
        told = {name: values[rows] for name, values in self.told.items()}
        return {"image": images, "label": labels.astype(np.int32)} | told


def load(
    spec: str,
    split: str = "train",
    *,
    image_size: Size = None,
    channels: int | None = None,
    data_dir: str | None = None,
    pad: bool = False,
    skip_unreadable: bool = False,
    checked: bool = True,
    caption: str | None = None,
) -> Source | noise_pairs.PairSource:
    """Returns the source that a spec names.

    Args:
        spec: "digits", "npz:PATH", "folder:PATH", "pairs:FOLDER" or a TFDS name (`cifar10`,
            `name/config:1.0.0`).
        split: "train", "test", ...; TFDS takes slices such as "train[:1000]".
        image_size: resize, antialiased, to a square of this many pixels, or to (height, width);
            what sticks out is cropped away on both sides. If not given, images keep their size,
            which must then be the same for all.
        channels: 1 for grey, 3 for RGB; if not given, folders are RGB and the rest is as stored.
        data_dir: where TFDS datasets are, `~/tensorflow_datasets` if not given.
        pad: with image_size: crop nothing, put black bars beside the picture.
        skip_unreadable: leave out files of a folder that cannot be read, and note it.
        checked: False where only shape and classes are wanted: the files of a folder are not
            checked, and a TFDS dataset need not be there.
        caption: name of a TFDS dataset's feature, whose texts are the captions.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: an unknown spec, or data that cannot be used as it is.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}; leave it out")
    if image_size is not None:
        image_size = tuple(
            check_range("image_size", side, "[1, 65536]", "leave it out", whole=True)
            for side in height_width(image_size)
        )
    kind, _, path = spec.partition(":")
    if caption and (spec == "digits" or kind in ("pairs", "latents", "npz", "folder")):
        raise ValueError(
            f"caption={caption!r} is for TFDS datasets, {spec} has its own or none; leave it out"
        )
    if spec == "digits":
        arrays = digits.read(split)
        source = _of_arrays(spec, *arrays, (), image_size, channels, pad)
        return dataclasses.replace(source, captions=captions.of_digits(*arrays))
    if kind == "pairs":
        return noise_pairs.load(path)
    if kind == "latents":
        path = Path(path).expanduser()
        return Source(f"latents:{path}", **latent_sets.load(path, image_size, channels))
    if kind == "npz":
        path = Path(path).expanduser()
        arrays, texts = npz.read(path, split), npz.read_captions(path, split)
        source = _of_arrays(f"npz:{path}", *arrays, image_size, channels, pad)
        return dataclasses.replace(source, captions=texts)
    if kind == "folder":
        path = Path(path).expanduser()
        options = (image_size, channels, pad, skip_unreadable, checked)
        *fields, files_read = folders.open_folder(path, split, *options)
        texts = captions.of_files(folders.split_folder(path, split), files_read)
        return Source(f"folder:{path}", *fields, captions=texts)
    if re.search(r"^[./~]|\.[a-z]{3,4}$", spec, re.I) and not Path(spec).expanduser().exists():
        missing = files.missing_part(Path(spec).expanduser())
        raise FileNotFoundError(
            f"{spec} does not exist{missing}; data are {_FORMS}; PATH of a folder or an npz file"
        )
    try:
        if not checked:
            shape, classes, names = tfds.describe(spec, image_size, channels, data_dir)
            return Source(spec, shape, classes, 0, lambda index: None, names)
        fields = tfds.open_dataset(spec, split, image_size, channels, data_dir, pad)
        texts = tfds.read_captions(spec, split, data_dir, caption) if caption else ()
        return Source(spec, *fields, captions=texts)
    except tfds.UnknownDatasetError as error:
        raise ValueError(_unknown(spec, error)) from error


def _of_arrays(
    name: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    size: Size,
    channels: int | None,
    pad: bool,
) -> Source:
    """Returns a source over arrays in memory: uint8 [N, H, W, C] and integers [N], or None.

    Its note names classes without images, which a network would draw untrained.
    """

    known = np.zeros(len(images), np.int32) if labels is None else labels

    def read(index: int) -> tuple[np.ndarray, int]:
        return fit(images[index], size, channels, pad), known[index]

    shape = fit(images[0], size, channels, pad).shape
    as_stored = images.shape[1:] == shape
    take = (lambda rows: (images[rows], known[rows])) if as_stored else None
    classes = 0 if labels is None else max(int(labels.max()) + 1, len(class_names))
    seen = set() if labels is None else set(np.unique(labels).tolist())
    missing = [str((class_names or range(classes))[k]) for k in range(classes) if k not in seen]
    note = f"no image of {len(missing)} of {classes} classes ({few(missing)})" if missing else ""
    return Source(name, shape, classes, len(images), read, class_names, note, take=take)


def _unknown(spec: str, error: Exception) -> str:
    """Returns the message for a spec that names nothing, with the nearest names."""
    tfds_names = tfds.dataset_names()
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
