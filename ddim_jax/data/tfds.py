"""TFDS datasets of images or videos, prepared as array_record.

They are read without TensorFlow, but for TFDS's feature `Video`, which imports it. A feature
`Sequence(Image)` named 'video' is stored in the same way and needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ddim_jax.data.clip_files import Timeline
from ddim_jax.data.clips import fit_frames
from ddim_jax.data.frame_choice import Cut, Windows
from ddim_jax.data.images import Size, fit, height_width
from ddim_jax.names import few


class UnknownDatasetError(Exception):
    """TFDS has no dataset, config or version of that name."""


def open_dataset(
    name: str,
    split: str,
    size: Size,
    channels: int | None,
    data_dir: str | None,
    pad: bool = False,
    cut: Cut = Cut(),  # noqa: B008
) -> dict[str, Any]:
    """Opens a prepared dataset with a feature 'image' or 'video' and perhaps a class 'label'.

    Args:
        name: `name`, `name/config` or `name/config:version`.
        split: as TFDS writes it, such as "train[:1000]".
        size: resize to this many pixels, see `images.fit`; None to keep the size.
        channels: 1, 3, or None for those stored.
        data_dir: where datasets are; None for `~/tensorflow_datasets`.
        pad: see `images.fit`.
        cut: which frames of videos are taken.

    Returns:
        Fields of a `Source`.

    Raises:
        UnknownDatasetError: no such dataset.
        ValueError: not prepared, no such split, or images that cannot be used as they are.
    """
    builder = _builder(name, data_dir)
    _check_prepared(builder, name, split)
    fields = describe(name, size, channels, data_dir, cut)
    data, classes = builder.as_data_source(split=split), fields["num_classes"]

    def read(index: int) -> tuple[np.ndarray, int]:
        example = data[index]
        return fit(example["image"], size, channels, pad), example["label"] if classes else 0

    def at(index: int, share: float) -> tuple[np.ndarray, int]:
        example = data[index]
        video = example["video"]
        found = Timeline((0, 0), np.arange(1.0, len(video) + 1), timed=False)
        if problem := cut.problem(found):
            raise ValueError(
                f"video {index} of TFDS dataset {name!r} has {problem}; ask for fewer, or leave it "
                "out by a slice such as 'train[100:]'"
            )
        places = Windows(name, [found], cut).own_places(0, share)
        label = example["label"] if classes else 0
        return fit_frames([video[place] for place in places], size, channels, pad), label

    fields["count"] = len(data)
    if not fields["frames"]:
        return fields | {"read": read}
    at(0, 0.0)  # such as too few frames: not in the middle of a run
    told = {"frame_rate": np.full(len(data), cut.rate, np.float32)} if cut.timed else {}
    return fields | {"read": lambda index: at(index, 0.0), "at": at, "told": told}


def describe(
    name: str,
    size: Size,
    channels: int | None,
    data_dir: str | None,
    cut: Cut = Cut(),  # noqa: B008
) -> dict[str, Any]:
    """What the images of a dataset are, which need not be prepared.

    Returns:
        image_shape, num_classes, class_names and frames, fields of a `Source`.

    Raises:
        UnknownDatasetError: no such dataset.
        ValueError: images that cannot be used as they are.
    """
    import tensorflow_datasets as tfds

    features = _builder(name, data_dir).info.features
    key = next((key for key in ("image", "video") if key in features), None)
    if key is None or features[key].np_dtype != np.uint8:
        raise ValueError(
            f"TFDS dataset {name!r} needs a uint8 feature 'image' or 'video', it has "
            f"{few(features)} (others are not supported); write its images to a folder or an npz "
            "file"
        )
    stored, frames = features[key].shape, 0
    if key == "video":
        length, *stored = stored
        frames = cut.frames or (length and (length - 1) // cut.stride + 1)
        if not frames:
            raise ValueError(
                f"videos of TFDS dataset {name!r} have any number of frames, one batch needs one "
                "number; set config.data.frames=16 (frames=16 in Python)"
            )
    label = features["label"] if "label" in features else None
    classes = label if isinstance(label, tfds.features.ClassLabel) else None
    return {
        "image_shape": _image_shape(name, stored, size, channels),
        "num_classes": classes.num_classes if classes else 0,
        "class_names": tuple(classes.names) if classes else (),
        "frames": frames,
    }


def read_captions(name: str, split: str, data_dir: str | None, feature: str) -> tuple[str, ...]:
    """The texts of a prepared dataset, all of them; its images are not decoded.

    Args:
        name: as of `open_dataset`.
        split: as of `open_dataset`.
        data_dir: as of `open_dataset`.
        feature: name of one of its features, a text.

    Raises:
        ValueError: there is no such text.
    """
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    features = builder.info.features
    texts = [key for key, one in features.items() if isinstance(one, tfds.features.Text)]
    if feature not in texts:
        raise ValueError(
            f"TFDS dataset {name!r} has no text {feature!r} for config.data.caption; it has "
            f"{few(texts) or 'no texts'}"
        )
    kinds = (tfds.features.Image, tfds.features.Sequence)
    images = [key for key, one in features.items() if isinstance(one, kinds)]
    decoders = {key: tfds.decode.SkipDecoding() for key in images}
    data = builder.as_data_source(split=split, decoders=decoders)
    rows = tqdm(range(len(data)), desc="captions", unit="text", delay=5)
    return tuple(data[index][feature].decode("utf-8").strip() for index in rows)


def _builder(name: str, data_dir: str | None) -> Any:
    # Half a second that the other sources need not pay.
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:
        if "No module named 'tensorflow'" in str(error):
            raise ValueError(
                f"TFDS dataset {name!r} cannot be read without tensorflow, which TFDS's feature "
                "Video imports: pip install tensorflow, or have the frames as Sequence(Image), or "
                "write its clips to a folder (clips:PATH) or an npz file"
            ) from error
        raise UnknownDatasetError(str(error)) from error


def dataset_names() -> list[str]:
    """Returns the names of the datasets that TFDS knows."""
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


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


def _image_shape(
    name: str, stored: Sequence[int | None], size: Size, channels: int | None
) -> tuple[int, int, int]:
    height, width = height_width(size) if size else stored[:2]
    if not height or not width:
        raise ValueError(
            f"images of TFDS dataset {name!r} have shape {tuple(stored)}, no fixed size, one "
            "batch needs one size; resize them (training: config.data.resize, "
            "editing: --resize, Python: image_size)"
        )
    channels = channels or stored[2]
    if channels not in (1, 3):
        raise ValueError(
            f"images of TFDS dataset {name!r} have {channels} channels, it must be 1 or 3; "
            "set config.data.channels (channels in Python) to 1 or 3"
        )
    return height, width, channels
