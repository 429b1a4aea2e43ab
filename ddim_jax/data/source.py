"""`Source`: random access to pictures, clips or latents, wherever they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


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

    def renumbered(self, numbers: Sequence[int]) -> Source:
        """The same with numbers[k] in place of label k, and without names of classes."""
        table = np.asarray(numbers, np.int32)

        def told(get: Callable | None) -> Callable | None:
            def record(*asked: Any) -> tuple[np.ndarray, Any]:
                image, label = get(*asked)
                return image, table[label]

            return get and record

        told_by = {name: told(getattr(self, name)) for name in ("read", "at", "take")}
        return dataclasses.replace(self, class_names=(), **told_by)

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
