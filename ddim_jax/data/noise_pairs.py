"""Files of pairs, a noise and the image drawn from it, for reflow: `pairs:FOLDER`.

    FOLDER/pairs.json                  what drew the pairs, and how many there are
           pairs-00000.array_record    pairs 0..999
           pairs-00001.array_record    pairs 1000..1999

A record holds the key of its sample, its label and its image in float32. The noise itself is not
stored: `sampling.initial_noise` of the key is the very noise that the image was drawn from, so
shuffling cannot separate the two. `pairs.json` has a count only when all pairs are there.
`training/reflow_pairs.py` draws them.

Source: Liu et al. 2022 (arXiv:2209.03003), algorithm 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import files
from ddim_jax.data.record_shards import Shards

SHARD = 1000
"""Records in a shard."""
ABOUT = "pairs.json"
"""Name of the file that says what drew the pairs."""


class PairSource:
    """Random access to pairs; `source[i] -> {"image", "label", "noise_key"}`.

    Attributes:
        name: the spec it was loaded from.
        image_shape: (H, W, C); images are float32, about -1..1.
        num_classes: 0 when there are no labels, and every label is 0.
        about: what drew the pairs, as `pairs.json` has it, without their count.
        class_names: () here, the network that drew them has them.
        note: "", nothing is left out.
        captions: (), there are none.
    """

    class_names: tuple[str, ...] = ()
    note = ""
    captions: tuple[str, ...] = ()

    def __init__(self, folder: Path, about: dict[str, Any], count: int):
        """Opens the shards of `count` pairs, which are there.

        Raises:
            ValueError: they are damaged.
        """
        self.name, self.about = f"pairs:{folder}", about
        self.image_shape = tuple(about["image_shape"])
        self.num_classes = about["num_classes"]
        self._records = _shards(folder).open(count)

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns image float32 [H, W, C], label int32, noise_key uint32 [2]."""
        record = self._records[int(index)]
        return {
            "image": np.frombuffer(record, np.float32, offset=12).reshape(self.image_shape),
            "label": np.frombuffer(record, np.int32, 1, offset=8)[0],
            "noise_key": np.frombuffer(record, np.uint32, 2),
        }


def load(folder: str | Path) -> PairSource:
    """Opens pairs that were drawn before.

    Args:
        folder: that holds `pairs.json`.

    Raises:
        FileNotFoundError: no pairs, or not all of them.
        ValueError: a shard is damaged.
    """
    folder = Path(folder).expanduser()
    about = files.read_json(folder / ABOUT) if (folder / ABOUT).exists() else {}
    count = about.pop("count", 0)
    missing = _shards(folder).absent(count)
    if missing or not count:
        raise FileNotFoundError(
            f"no complete pairs in {folder}{f' ({missing[0]} is missing)' if missing else ''}; "
            "a stage with a section pairs draws them, as configs/digits_reflow.py does"
        )
    try:
        return PairSource(folder, about, count)
    except ValueError as error:
        raise ValueError(
            f"the pairs in {folder} are damaged ({error}); remove the folder to draw them again"
        ) from error


def missing_shards(folder: Path, count: int) -> list[range]:
    """Returns the places of the pairs in every shard that is missing or of another length.

    Args:
        folder: of the pairs.
        count: pairs in the whole set; all shards but the last hold 1000.
    """
    return _shards(folder).missing(count)


def write_about(folder: Path, about: dict[str, Any], count: int | None = None) -> None:
    """Writes `pairs.json`.

    Args:
        folder: of the pairs; made if it does not exist.
        about: what draws the pairs; must hold image_shape and num_classes.
        count: number of pairs, when all are there; None while some are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / ABOUT, about if count is None else about | {"count": count})


def encode(noise_keys: np.ndarray, labels: np.ndarray | None, images: np.ndarray) -> list[bytes]:
    """Returns one record for each pair.

    Args:
        noise_keys: uint32 [B, 2], `jax.random.key_data` of the samples' keys.
        labels: int [B]; None for a network without classes.
        images: float [B, H, W, C].
    """
    keys = np.asarray(noise_keys, np.uint32)
    labels = np.zeros(len(images), np.int32) if labels is None else labels.astype(np.int32)
    return [
        key.tobytes() + label.tobytes() + np.asarray(image, np.float32).tobytes()
        for key, label, image in zip(keys, labels, images, strict=True)
    ]


def write_shard(folder: Path, first: int, records: Sequence[bytes]) -> None:
    """Writes the shard that begins with pair `first`; it appears whole or not at all."""
    _shards(folder).write(first, records)


def _shards(folder: Path) -> Shards:
    return Shards(folder, "pairs", SHARD)
