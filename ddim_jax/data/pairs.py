"""Pairs of noise and the image a network draws from it, for reflow: `pairs:FOLDER`.

`draw` writes them in shards of array_record, beside a `pairs.json` that says what drew them; `load`
reads them at random. A record holds the key of its sample, its label and its image in float32. The
noise itself is not stored: `sampling.initial_noise` of the key is the very noise the image was
drawn from, so that no shuffling can part the two. Drawing goes on where it was stopped.

Source: Liu et al. 2022 (arXiv:2209.03003), algorithm 1.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import experiment, files, generation, sampling
from ddim_jax.guidance import Guidance
from ddim_jax.models import pretrained
from ddim_jax.models.pretrained import Pretrained

SHARD = 1000
"""Records in a shard."""
SEED = 1_000_000
"""The noise that pairs start from by default, apart from that of ordinary samples."""
ABOUT = "pairs.json"


def draw(
    model: Pretrained,
    folder: str | Path,
    *,
    count: int,
    solver: str = "heun_flow",
    stride: str | None = None,
    steps: int = 10,
    guidance_scale: float = 1.0,
    clip: str = "none",
    seed: int = SEED,
    batch_size: int = 100,
) -> Path:
    """Draws pairs, those that are not there yet, with a progress bar.

    Args:
        model: what draws.
        folder: where to.
        count: pairs, in whole shards of 1000 but the last; a greater one extends what is there.
        solver: a deterministic one.
        stride: a name or a learned `.json`; default the solver's own.
        steps: intervals of the stride.
        guidance_scale: 1 for none.
        clip: of the clean estimate; "none" keeps the map from noise to image smooth.
        seed: of the noise.
        batch_size: samples at a time.

    Returns:
        The folder.

    Raises:
        ValueError: a stochastic solver, a count below 1, or a folder of other pairs.
    """
    folder = Path(folder)
    table = experiment.build_table(model.experiment.schedule, solver, stride, steps)
    guidance = None if guidance_scale == 1 else Guidance(guidance_scale)
    if np.any(table.noise) or table.start[1]:
        raise ValueError(f"pairs need a deterministic solver, {solver} draws noise; use heun_flow")
    generation.check(model, count, batch_size, guidance)
    about = {
        "solver": solver,
        "stride": stride,
        "steps": steps,
        "nfe": table.nfe,
        "guidance_scale": guidance_scale,
        "clip": clip,
        "seed": seed,
        "weights": pretrained.fingerprint(model.params),
        "model": model.name,
        "image_shape": list(model.experiment.image_shape),
        "num_classes": model.experiment.num_classes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.check_origin(folder / ABOUT, about, "pairs")
    missing = [
        first
        for first in range(0, count, SHARD)
        if _length(_path(folder, first)) != min(SHARD, count - first)
    ]
    if missing:  # without a count, what is there is not taken for all of it
        files.write_json(folder / ABOUT, about)
    generator = generation.Generator(model, clip=clip)
    labels = generation.make_labels(model, None, count)
    total = sum(min(SHARD, count - first) for first in missing)
    with tqdm(total=total, unit="pair", desc="pairs", disable=not sys.stderr.isatty()) as bar:
        for first in missing:
            records = []
            last = min(first + SHARD, count)
            for start in range(first, last, batch_size):
                index = np.arange(start, min(start + batch_size, last))
                own = None if labels is None else labels[index]
                x = generator.draw(table, index, seed=seed, labels=own, guidance=guidance).x
                records += _encode(sampling.sample_keys(seed, index), own, x)
                bar.update(len(index))
            _write(_path(folder, first), records)
    files.write_json(folder / ABOUT, about | {"count": count})
    return folder


def _path(folder: Path, first: int) -> Path:
    return folder / f"pairs-{first // SHARD:05d}.array_record"


def _length(path: Path) -> int:
    """Records in a shard; 0 if there is none."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path)).num_records() if path.exists() else 0


def _encode(keys: jax.Array, labels: np.ndarray | None, x: np.ndarray) -> list[bytes]:
    keys = np.asarray(jax.random.key_data(keys), np.uint32)
    labels = np.zeros(len(x), np.int32) if labels is None else labels.astype(np.int32)
    return [
        key.tobytes() + label.tobytes() + np.asarray(image, np.float32).tobytes()
        for key, label, image in zip(keys, labels, x, strict=True)
    ]


def _write(path: Path, records: list[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    part = path.with_name(path.name + ".part")
    writer = ArrayRecordWriter(str(part), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    part.replace(path)


class PairSource:
    """Random access to pairs; `source[i] -> {"image", "label", "noise_key"}`.

    Attributes:
        name: what it was loaded from.
        image_shape: (H, W, C); images are float32, about -1..1.
        num_classes: 0 when there are no labels, and every label is 0.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        """Opens all shards; `load` checks them."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.name = f"pairs:{folder}"
        self.image_shape = tuple(about["image_shape"])
        self.num_classes = about["num_classes"]
        shards = [str(_path(folder, first)) for first in range(0, about["count"], SHARD)]
        self._records = ArrayRecordDataSource(shards)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Image float32 [H, W, C], label int32, noise_key uint32 [2]."""
        record = self._records[int(index)]
        return {
            "image": np.frombuffer(record, np.float32, offset=12).reshape(self.image_shape),
            "label": np.frombuffer(record, np.int32, 1, offset=8)[0],
            "noise_key": np.frombuffer(record, np.uint32, 2),
        }


def load(folder: str | Path) -> PairSource:
    """Pairs that were drawn before.

    Raises:
        FileNotFoundError: there are none, or they are not complete.
        ValueError: a shard is damaged.
    """
    folder = Path(folder).expanduser()
    path = folder / ABOUT
    about = json.loads(path.read_text()) if path.exists() else {}
    lacking = [
        _path(folder, first).name
        for first in range(0, about.get("count", 0), SHARD)
        if not _path(folder, first).exists()
    ]
    if "count" not in about or lacking:
        raise FileNotFoundError(
            f"no complete pairs in {folder}{f' ({lacking[0]} is missing)' if lacking else ''}; "
            "a stage with a section pairs draws them, as configs/digits_reflow.py does"
        )
    try:
        source = PairSource(folder, about)
        if len(source) != about["count"]:
            raise ValueError(f"{len(source)} records, not {about['count']}")
        source[len(source) - 1]
    except (ValueError, RuntimeError, IndexError, OSError) as error:
        raise ValueError(
            f"the pairs in {folder} are damaged ({error}); remove the folder to draw them again"
        ) from error
    return source
