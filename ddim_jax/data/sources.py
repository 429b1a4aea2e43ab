"""Where pictures come from: `load` returns a `Source` of embedded digits, a file, a folder or TFDS.

A source is random access: `len(source)` and `source[i] -> {"image": uint8 [H, W, C], "label":
int32}`; of clips "image" is uint8 [T, H, W, C], see `clips`. Every image of a source has the same
shape. `load` looks for everything that can be wrong with the data before training starts, and says
how to mend it. Captions are in `source.captions`.

    digits         5,000 handwritten digits that come with the package, 28 x 28 x 1; made captions
    moving_digits  clips of some of them, bouncing, 16 x 32 x 32 x 1; made when they are asked for
    npz:PATH       arrays {split}_x and {split}_y, or images and labels, or x and y; class_names,
                   captions; images may be clips
    folder:PATH    a sub-folder for each class, or only images; in PATH, or in PATH/train,
                   PATH/test; captions in metadata.jsonl, or in a .txt beside each image
    clips:PATH     the same of clips: GIF, WebP, APNG, MP4, WebM, folders of frames
    pairs:FOLDER   noise and the images drawn from it, see `noise_pairs`; in the size they have
    latents:DIR    what an autoencoder made of such images or clips, see `latent_sets`
    NAME           a TFDS dataset prepared as array_record, such as cifar10 (no TensorFlow needed);
                   of images or of videos
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
from ddim_jax.data import (
    captions,
    clip_files,
    clips,
    digits,
    folders,
    latent_sets,
    moving_digits,
    noise_pairs,
    npz,
    tfds,
)
from ddim_jax.data.frame_choice import Cut
from ddim_jax.data.images import Size, fit, height_width
from ddim_jax.names import check_range, few

_FORMS = (
    "digits, moving_digits, npz:PATH, folder:PATH, clips:PATH, pairs:FOLDER, latents:DIR, or the "
    "name of a TFDS dataset"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to labelled uint8 images or clips of one shape, or to their latents.

    Attributes:
        name: the spec it was loaded from.
        image_shape: (H, W, C), C = 1 or 3, of an image or frame; of latents that of their pictures.
        num_classes: labels are 0..num_classes - 1; 0 when there are none, and every label is 0.
        count: number of images.
        frames: T, of clips; 0 of images.
        read: `read(i) -> (uint8 [H, W, C], label)` for 0 <= i < count; called by many threads. Of
            clips uint8 [T, H, W, C], here and below: their first frames.
        at: `at(i, share)`, what `read` returns, of clips that have frames to spare: share in [0, 1)
            says how far into these it begins; None: there are none to spare.
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
    frames: int = dataclasses.field(default=0, kw_only=True)
    at: Callable[[int, float], tuple[np.ndarray, int]] | None = dataclasses.field(
        default=None, repr=False, kw_only=True
    )
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

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image, (H, W, C), or of a clip, (T, H, W, C)."""
        return (self.frames, *self.image_shape) if self.frames else self.image_shape

    @property
    def noun(self) -> str:
        """What it holds, for messages: "images" or "clips"."""
        return "clips" if self.frames else "images"

    def __len__(self) -> int:
        """Returns the number of images."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `{"image": uint8 [H, W, C], "label": int32}`; negative indices count back."""
        return self.record(index)

    def record(self, index: int, share: float = 0.0) -> dict[str, Any]:
        """The same, of a clip from as far on as `at` says."""
        if not -self.count <= index < self.count:
            raise IndexError(f"{self.name} has {self.count} images, got index {index}")
        index = int(index) % self.count
        image, label = self.at(index, share) if share and self.at else self.read(index)
        told = {name: rows[index] for name, rows in self.told.items()}
        return {"image": image, "label": np.int32(label)} | told

    def single(self) -> Source:
        """Clips of one frame as images."""

        def first(get: Callable | None, frame: Any) -> Callable | None:
            def image(*asked: Any) -> tuple[np.ndarray, Any]:
                clip, label = get(*asked)
                return clip[frame], label

            return get and image

        take = first(self.take, (slice(None), 0))
        images = {"read": first(self.read, 0), "at": first(self.at, 0), "take": take}
        return dataclasses.replace(self, frames=0, **images)

    def batch(self, rows: np.ndarray, flip: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The records of rows [N], stacked; of a source with `take`.

        Args:
            rows: [N], 0..count - 1.
            flip: bool [N], which are mirrored; None for none.
        """
        own = flip is not None and self.mirrors
        images, labels = self.take(rows + self.count * flip if own else rows)
        if flip is not None and not own:
            chosen = flip.reshape(-1, *[1] * (images.ndim - 1))
            images = np.where(chosen, images[..., ::-1, :], images)
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
    frames: int | None = None,
    frame_rate: float | str | None = None,
    frame_stride: int = 1,
) -> Source | noise_pairs.PairSource:
    """Returns the source that a spec names.

    Args:
        spec: "digits", "moving_digits", "npz:PATH", "folder:PATH", "clips:PATH", "pairs:FOLDER" or
            a TFDS name (`cifar10`, `name/config:1.0.0`).
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
        frames: T, of clips; None or 0 for images, or for all frames of clips that have equally
            many.
        frame_rate: of clips take so many frames a second, by time; "own": as they are in the file,
            whatever their rates.
        frame_stride: of clips take every so many frames; with a `frame_rate` in numbers 1.

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
    cut = Cut.of(frames, frame_rate, frame_stride)
    if caption and (
        spec in ("digits", "moving_digits")
        or kind in ("pairs", "latents", "npz", "folder", "clips")
    ):
        raise ValueError(
            f"caption={caption!r} is for TFDS datasets, {spec} has its own or none; leave it out"
        )
    if cut != Cut() and (spec == "digits" or kind in ("pairs", "folder")):
        raise ValueError(_no_clips(spec, cut))
    if spec == "moving_digits":
        return Source(spec, **moving_digits.open_clips(split, cut, image_size, channels))
    if kind == "clips":
        path = Path(path).expanduser()
        options = (cut, image_size, channels, pad, skip_unreadable, checked)
        fields, files_read = clips.open_folder(path, split, *options)
        texts = captions.of_files(folders.split_folder(path, split), files_read)
        return Source(f"clips:{path}", **fields, captions=texts)
    if spec == "digits":
        arrays = digits.read(split)
        source = _of_arrays(spec, *arrays, (), image_size, channels, pad)
        return dataclasses.replace(source, captions=captions.of_digits(*arrays))
    if kind == "pairs":
        return noise_pairs.load(path)
    if kind == "latents":
        path = Path(path).expanduser()
        return Source(f"latents:{path}", **latent_sets.load(path, image_size, channels, frames))
    if kind == "npz":
        path = Path(path).expanduser()
        arrays, texts = npz.read(path, split), npz.read_captions(path, split)
        rates = None
        if arrays[0].ndim == 5:
            rates = npz.read_frame_rates(path, split, len(arrays[0]))
        source = _of_arrays(f"npz:{path}", *arrays, image_size, channels, pad, cut, rates)
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
            fields = tfds.describe(spec, image_size, channels, data_dir, cut)
            return Source(spec, count=0, read=lambda index: None, **fields)
        fields = tfds.open_dataset(spec, split, image_size, channels, data_dir, pad, cut)
        if cut != Cut() and not fields["frames"]:
            raise ValueError(_no_clips(spec, cut))
        texts = tfds.read_captions(spec, split, data_dir, caption) if caption else ()
        return Source(spec, **fields, captions=texts)
    except tfds.UnknownDatasetError as error:
        raise ValueError(_unknown(spec, error)) from error


def _no_clips(spec: str, cut: Cut) -> str:
    """The message for pictures where clips are asked for."""
    return (
        f"{spec} holds still pictures, and clips are asked for (frames={cut.frames}, frame_rate="
        f"{cut.rate}, frame_stride={cut.stride}); leave config.data.frames, frame_rate and "
        "frame_stride out, or take moving_digits, clips:PATH, or an npz file of clips "
        "[N, T, H, W, C]"
    )


def _of_arrays(
    name: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    size: Size,
    channels: int | None,
    pad: bool,
    cut: Cut = Cut(),  # noqa: B008
    rates: np.ndarray | None = None,
) -> Source:
    """Returns a source over arrays in memory: uint8 [N, H, W, C] and integers [N], or None.

    Clips are uint8 [N, T, H, W, C], with frames a second [N] if they are known. Its note names
    classes without images, which a network would draw untrained.
    """

    known = np.zeros(len(images), np.int32) if labels is None else labels
    moving = images.ndim == 5
    if cut != Cut() and not moving:
        raise ValueError(_no_clips(name, cut))

    def fitted(image: np.ndarray) -> np.ndarray:
        return (clips.fit_frames if moving else fit)(image, size, channels, pad)

    def read(index: int) -> tuple[np.ndarray, int]:
        return fitted(images[index]), known[index]

    shape, options, whole = fitted(images[0]).shape, {"read": read}, True
    if moving:
        options = clips.of_arrays(name, images, known, rates, cut, fitted)
        whole = options["frames"] == images.shape[1] and not cut.timed
    as_stored = images.shape[1:] == shape and whole
    take = (lambda rows: (images[rows], known[rows])) if as_stored else None
    classes = 0 if labels is None else max(int(labels.max()) + 1, len(class_names))
    seen = set() if labels is None else set(np.unique(labels).tolist())
    missing = [str((class_names or range(classes))[k]) for k in range(classes) if k not in seen]
    note = f"no image of {len(missing)} of {classes} classes ({few(missing)})" if missing else ""
    options |= {"class_names": class_names, "note": note, "take": take}
    return Source(name, shape[-3:], classes, len(images), **options)


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
    if path.suffix.lower() in clip_files.SUFFIXES and path.is_file():
        return f"{text}; this is a file: write clips:PATH, or folder:PATH, of the folder it is in"
    if path.is_file():
        return f"{text}; this is a file: write npz:{spec} if it was made by numpy.savez"
    own = ("digits", "moving_digits", "npz:PATH", "folder:PATH", "clips:PATH")
    words = {name.lower(): name for name in (*own, *tfds_names)}
    close = difflib.get_close_matches(spec.lower(), words, n=5)
    if close:
        return f"{text}; close matches: {', '.join(words[word] for word in close)}"
    return f"{text}, all of which are listed at https://www.tensorflow.org/datasets/catalog"
