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
from collections.abc import Sequence
from pathlib import Path

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
from ddim_jax.data.source import Source
from ddim_jax.names import check_range, few

_FORMS = (
    "digits, moving_digits, npz:PATH, folder:PATH, clips:PATH, pairs:FOLDER, latents:DIR, or the "
    "name of a TFDS dataset"
)


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
        spec: "digits", "moving_digits", "npz:PATH", "folder:PATH", "clips:PATH", "pairs:FOLDER",
            "latents:DIR" or a TFDS name (`cifar10`, `name/config:1.0.0`).
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
    wanted = Wanted(
        spec=spec,
        split=split,
        size=image_size,
        channels=channels,
        data_dir=data_dir,
        pad=pad,
        skip_unreadable=skip_unreadable,
        checked=checked,
        caption=caption,
        cut=Cut.of(frames, frame_rate, frame_stride),
    )
    kind, colon, _ = spec.partition(":")
    if caption and kind + colon in OPENERS:
        raise ValueError(
            f"caption={caption!r} is for TFDS datasets, {spec} has its own or none; leave it out"
        )
    return OPENERS.get(kind + colon, _tfds)(wanted)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What `load` was asked for: its arguments, checked."""

    spec: str
    split: str
    size: Size
    channels: int | None
    data_dir: str | None
    pad: bool
    skip_unreadable: bool
    checked: bool
    caption: str | None
    cut: Cut

    @property
    def path(self) -> Path:
        """What comes after the colon."""
        return Path(self.spec.partition(":")[2]).expanduser()

    def still(self) -> None:
        """Raises ValueError if clips are wanted."""
        if self.cut != Cut():
            raise ValueError(_no_clips(self.spec, self.cut))


def _digits(wanted: Wanted) -> Source:
    wanted.still()
    arrays = digits.read(wanted.split)
    source = _of_arrays("digits", *arrays, (), wanted)
    return dataclasses.replace(source, captions=captions.of_digits(*arrays))


def _moving_digits(wanted: Wanted) -> Source:
    options = (wanted.split, wanted.cut, wanted.size, wanted.channels)
    return Source("moving_digits", **moving_digits.open_clips(*options))


def _npz(wanted: Wanted) -> Source:
    path, split = wanted.path, wanted.split
    arrays, texts = npz.read(path, split), npz.read_captions(path, split)
    clips_of_it = arrays[0].ndim == 5
    rates = npz.read_frame_rates(path, split, len(arrays[0])) if clips_of_it else None
    source = _of_arrays(f"npz:{path}", *arrays, wanted, rates)
    return dataclasses.replace(source, captions=texts)


def _folder(wanted: Wanted) -> Source:
    wanted.still()
    path, split = wanted.path, wanted.split
    options = (wanted.size, wanted.channels, wanted.pad, wanted.skip_unreadable, wanted.checked)
    *fields, files_read = folders.open_folder(path, split, *options)
    return Source(f"folder:{path}", *fields, captions=_beside(wanted, files_read))


def _clips(wanted: Wanted) -> Source:
    path, split = wanted.path, wanted.split
    options = (wanted.size, wanted.channels, wanted.pad, wanted.skip_unreadable, wanted.checked)
    fields, files_read = clips.open_folder(path, split, wanted.cut, *options)
    return Source(f"clips:{path}", **fields, captions=_beside(wanted, files_read))


def _beside(wanted: Wanted, files_read: Sequence[Path]) -> tuple[str, ...]:
    """The captions beside files; () of a set that is not read as a whole."""
    if not wanted.checked:
        return ()
    return captions.of_files(folders.split_folder(wanted.path, wanted.split), files_read)


def _pairs(wanted: Wanted) -> noise_pairs.PairSource:
    wanted.still()
    return noise_pairs.load(wanted.spec.partition(":")[2])


def _latents(wanted: Wanted) -> Source:
    path = wanted.path
    fields = latent_sets.load(path, wanted.split, wanted.cut, wanted.size, wanted.channels)
    return Source(f"latents:{path}", **fields)


def _tfds(wanted: Wanted) -> Source:
    spec, split, data_dir, cut = wanted.spec, wanted.split, wanted.data_dir, wanted.cut
    size, channels, caption = wanted.size, wanted.channels, wanted.caption
    if re.search(r"^[./~]|\.[a-z]{3,4}$", spec, re.I) and not Path(spec).expanduser().exists():
        missing = files.missing_part(Path(spec).expanduser())
        raise FileNotFoundError(
            f"{spec} does not exist{missing}; data are {_FORMS}; PATH of a folder or an npz file"
        )
    try:
        if not wanted.checked:
            fields = tfds.describe(spec, size, channels, data_dir, cut)
            return Source(spec, count=0, read=lambda index: None, **fields)
        fields = tfds.open_dataset(spec, split, size, channels, data_dir, wanted.pad, cut)
        if not fields["frames"]:
            wanted.still()
        texts = tfds.read_captions(spec, split, data_dir, caption) if caption else ()
        return Source(spec, **fields, captions=texts)
    except tfds.UnknownDatasetError as error:
        raise ValueError(_unknown(spec, error)) from error


OPENERS = {
    "digits": _digits,
    "moving_digits": _moving_digits,
    "npz:": _npz,
    "folder:": _folder,
    "clips:": _clips,
    "pairs:": _pairs,
    "latents:": _latents,
}
"""What opens a spec of this name or beginning; any other spec is of TFDS."""


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
    wanted: Wanted,
    rates: np.ndarray | None = None,
) -> Source:
    """Returns a source over arrays in memory: uint8 [N, H, W, C] and integers [N], or None.

    Clips are uint8 [N, T, H, W, C], with frames a second [N] if they are known. Its note names
    classes without images, which a network would draw untrained.
    """
    known = np.zeros(len(images), np.int32) if labels is None else labels
    moving, cut = images.ndim == 5, wanted.cut
    if not moving:
        wanted.still()

    def fitted(image: np.ndarray) -> np.ndarray:
        fit_one = clips.fit_frames if moving else fit
        return fit_one(image, wanted.size, wanted.channels, wanted.pad)

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
