"""Sets of latents, encoded once: `latents:DIR`, or in memory.

    DIR/latents.json                    what was encoded, by what
        captions.json                   a text for each image, if there are any
        latents-00000.array_record      images 0..999

A record holds an image's label, int32, and the means and standard deviations of its latents,
float32 [h, w, 2 C], of clips [T, h, w, 2 C]; in a set with mirrors, then those of the mirrored
image: mirrored latents are others. `python -m ddim_jax.data.latents` writes such a set; it is
complete when all shards are there. A set of up to `IN_MEMORY` bytes is read as a whole.

Source: Rombach et al. 2022 (arXiv:2112.10752), section 3.1.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import parallel
from ddim_jax.codecs import TOGETHER, Codec
from ddim_jax.data.frame_choice import ALIKE, Cut
from ddim_jax.data.images import Size, height_width
from ddim_jax.data.record_shards import Shards, check_open_files
from ddim_jax.files import read_json

SHARD = 1000
"""Images in a shard."""
ABOUT, CAPTIONS = "latents.json", "captions.json"
IN_MEMORY = 2**30
"""Bytes of a set that is kept in memory."""
COMMAND = "python -m ddim_jax.data.latents SOURCE --autoencoder=MODEL --out=DIR"


def shards(folder: Path) -> Shards:
    """Where the records of a set are; numbers like these do not get smaller."""
    return Shards(folder, "latents", SHARD, "group_size:1,uncompressed")


def records(moments: np.ndarray, labels: np.ndarray) -> list[bytes]:
    """One record for each image.

    Args:
        moments: float32 [K, N, h, w, 2 C], K = 2 with mirrors.
        labels: [N].
    """
    both = np.ascontiguousarray(np.moveaxis(np.float32(moments), 0, 1))
    return [
        np.int32(label).tobytes() + one.tobytes() for label, one in zip(labels, both, strict=True)
    ]


def load(
    folder: Path,
    split: str,
    cut: Cut,
    image_size: Size = None,
    channels: int | None = None,
) -> dict[str, Any]:
    """Opens a set; returns the fields of a `Source`.

    Args:
        folder: of the set.
        split: that the set is of; "train", the default of all data, stands for any.
        cut: frames of clips and their rate, where they are known.
        image_size: of the pictures, if it is known.
        channels: of the pictures, if they are known.

    Raises:
        FileNotFoundError: there is no set, or it is not complete.
        OSError: it has more shards than a process may have open files.
        ValueError: it is damaged, or of other pictures.
    """
    file = folder / ABOUT
    about = read_json(file) if file.exists() else {"count": 0}
    count, absent = about["count"], shards(folder).absent(about["count"])
    if absent or not count:
        raise FileNotFoundError(
            f"no complete latents in {folder}{f' ({absent[0]} is missing)' if absent else ''}; "
            f"encode them: {COMMAND}"
        )
    shape = tuple(about["image_shape"])
    asked = height_width(image_size) if image_size else shape[:2]
    if (*asked, channels or shape[-1]) != shape:
        raise ValueError(
            f"{folder} holds latents of pictures of shape {shape}, and other ones are asked for, by"
            f" config.data.resize={image_size} or config.data.channels={channels}; set them to "
            "None, or encode such pictures"
        )
    if split not in ("train", about.get("split", split)):
        raise ValueError(
            f"{folder} holds latents of the split {about['split']!r}, and {split!r} is asked for; "
            f"encode that one into another folder, --split={split}"
        )
    _check_cut(folder, about, cut)
    with _damage_of(folder):
        captions = _captions(folder, count) if about["captions"] else ()
        opened = shards(folder).open(count)
    take = _of_disk(folder, opened, about)
    return {
        "image_shape": shape,
        "num_classes": about["num_classes"],
        "count": count,
        "frames": about.get("frames", 0),
        "told": {"frame_rate": np.float32(rates)} if (rates := about.get("frame_rate")) else {},
        "class_names": tuple(about["class_names"]),
        "captions": captions,
        "mirrors": about["mirrors"],
        "autoencoder": about["codec"]
        | {"weights": about["weights"], "start_from": about["autoencoder"]},
    } | reading(take)


@contextlib.contextmanager
def _damage_of(folder: Path) -> Iterator[None]:
    """Says of an error in reading a set which one it is, and what mends it."""
    try:
        yield
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        check_open_files(error)
        raise ValueError(
            f"the latents in {folder} are damaged ({error}); the command that encoded them mends "
            "that, and encodes again what is missing"
        ) from error


def _check_cut(folder: Path, about: dict[str, Any], cut: Cut) -> None:
    """Raises ValueError where other frames are asked for than were encoded."""
    held = about.get("frames", 0)
    if cut.frames and cut.frames != held:
        what = f"clips of {held} frames" if held else "pictures"
        raise ValueError(
            f"{folder} holds latents of {what}, and clips of {cut.frames} are asked for; leave "
            "config.data.frames to the data, or encode such clips"
        )
    if cut.stride != 1:
        raise ValueError(
            f"{folder} holds latents of frames that are chosen already, and every {cut.stride} of "
            "them are asked for; leave config.data.frame_stride out, or encode such clips"
        )
    rates = np.array([rate for rate in about.get("frame_rate") or () if rate])
    if cut.timed and np.any(np.maximum(rates / cut.rate, cut.rate / rates) > ALIKE):
        raise ValueError(
            f"{folder} holds latents of {rates.min():g} to {rates.max():g} frames a second, and "
            f"{cut.rate:g} are asked for; encode with --frame_rate={cut.rate:g}, or set "
            "config.data.frame_rate='own'"
        )


def _captions(folder: Path, count: int) -> tuple[str, ...]:
    try:
        texts = json.loads((folder / CAPTIONS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{CAPTIONS}: {error}") from error
    if len(texts) != count:
        raise ValueError(f"{CAPTIONS} has {len(texts)} texts for {count} latents")
    return tuple(texts)


def _of_disk(folder: Path, opened: Any, about: dict[str, Any]) -> Callable[[np.ndarray], tuple]:
    """`take` of a set on disk; of a small one from memory."""
    shape, count, copies = tuple(about["moments_shape"]), about["count"], 1 + about["mirrors"]
    size = 4 * int(np.prod(shape))

    def take(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with _damage_of(folder):
            read = opened.__getitems__([int(row) % count for row in rows])
        offsets = 4 + size * (np.asarray(rows) // count)
        values = [
            np.frombuffer(record, np.float32, size // 4, offset)
            for record, offset in zip(read, offsets, strict=True)
        ]
        labels = np.array([np.frombuffer(record, np.int32, 1)[0] for record in read])
        return np.stack(values).reshape(-1, *shape), labels

    if copies * count * size > IN_MEMORY:
        return take
    parts = [take(rows) for rows in np.array_split(np.arange(copies * count), -(-count // SHARD))]
    moments, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return lambda rows: (moments[rows], labels[rows])


def reading(take: Callable[[np.ndarray], tuple]) -> dict[str, Callable]:
    """The fields `take` and `read` of a source whose batches are gathered at once."""

    def read(index: int) -> tuple[np.ndarray, int]:
        images, labels = take(np.array([index]))
        return images[0], labels[0]

    return {"take": take, "read": read}


class Encoder:
    """Encodes pictures of a source on all devices of this process, while the next ones are read.

    What comes of a picture depends neither on the others nor on the number of devices.
    """

    def __init__(self, codec: Codec, mirrors: bool):
        """Puts the parameters on the devices.

        Args:
            codec: of an autoencoder, with parameters.
            mirrors: whether mirrored pictures are encoded too.
        """
        each = min(128, 4 * max(1, TOGETHER // int(np.prod(codec.picture_shape[:-1]))))
        self._mesh = parallel.make_mesh(jax.local_devices())
        self._params = parallel.replicate(codec.params, self._mesh)
        self._size = each * self._mesh.size

        def run(params, pictures):
            turned = (pictures, pictures[..., ::-1, :]) if mirrors else (pictures,)
            return jnp.stack([codec.moments(params, one) for one in turned], axis=1)

        self._run = jax.jit(parallel.by_rows(run, self._mesh))

    def __call__(
        self, source: Any, places: Sequence[int], update: Callable[[int], Any] = lambda count: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes pictures.

        Args:
            source: a `Source`.
            places: N, in the source.
            update: called with the number of pictures of each finished batch.

        Returns:
            Moments float32 [K, N, h, w, 2 C], K = 2 with mirrors, and labels [N].
        """
        done, started, size = [], [], self._size
        with ThreadPoolExecutor(8) as pool:
            for first in range(0, len(places), size):
                some = places[first : first + size]
                pictures, labels = zip(*pool.map(source.read, map(int, some)), strict=True)
                pictures = np.stack(pictures + pictures[-1:] * (size - len(some)))
                started.append(self._run(self._params, parallel.shard(pictures, self._mesh)))
                done.append(np.asarray(labels))
                if len(started) > 1:  # the device has the next batch while this one is fetched
                    started[-2] = np.asarray(started[-2])
                update(len(some))
        moments = np.concatenate([np.asarray(one) for one in started])[: len(places)]
        return np.moveaxis(moments, 1, 0), np.concatenate(done)
