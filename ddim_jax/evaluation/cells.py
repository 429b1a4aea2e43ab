"""The samples of a sweep on disk, so that nothing is drawn twice.

A cell is one way of drawing: solver, stride, steps, options, guidance. Its samples lie in shards of
500, named by their place in the set:

    cells/ddim_uniform_50_eta=0.2/cell.json     what it was drawn with
                                  00000.npz     samples 0..499: images uint8, seconds, memory
                                  00001.npz     samples 500..999

Sample i of every cell starts from the same noise and has the same label, and does not depend on the
batch size, so a cell is extended by drawing the shards it lacks. A shard appears whole or not at
all.
"""

import ast
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ddim_jax import data, experiment, files
from ddim_jax.evaluation import features
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.generation import Generator, make_labels, origin
from ddim_jax.guidance import Guidance
from ddim_jax.models import pretrained
from ddim_jax.schedules import Schedule
from ddim_jax.solvers import SolverTable

SHARD = 500
"""Samples in a shard."""

NUMBERS = ("seconds", "process_bytes", "program_bytes")
"""What a shard holds beside images."""


class Cell(NamedTuple):
    """One way of drawing.

    Attributes:
        solver: a name in `SOLVERS`.
        stride: a name in `STRIDES`, with options like quadratic:fraction=1, or a learned `.json`.
        steps: intervals of the stride.
        solver_options: (name, value) pairs, such as ("eta", 0.2).
        guidance_scale: 1 for none.
        clip: of the clean estimate.
        seed: of the noise.
    """

    solver: str
    stride: str
    steps: int
    solver_options: tuple[tuple[str, Any], ...] = ()
    guidance_scale: float = 1.0
    clip: str = "static"
    seed: int = 0

    @property
    def name(self) -> str:
        """A folder name that says what it is."""
        learned = self.stride.endswith(".json")
        stride = Path(self.stride).stem if learned else self.stride.replace(":", ",")
        parts = [self.solver, stride, str(self.steps)]
        parts += [f"{name}={value}" for name, value in self.solver_options]
        parts += [f"guidance={self.guidance_scale:g}"] if self.guidance_scale != 1 else []
        parts += [f"clip={self.clip}"] if self.clip != "static" else []
        parts += [f"seed={self.seed}"] if self.seed else []
        return "_".join(parts)

    @property
    def guidance(self) -> Guidance | None:
        """As the sampler takes it."""
        return None if self.guidance_scale == 1 else Guidance(self.guidance_scale)

    def table(self, schedule: Schedule) -> SolverTable:
        """Its table.

        Raises:
            ValueError: see `experiment.build_table`; options that are not like name=value.
        """
        stride, stride_options = self.stride, {}
        if not stride.endswith(".json"):
            stride, *pairs = stride.split(":")
            stride_options = dict(_option(pair) for pair in pairs)
        return experiment.build_table(
            schedule,
            self.solver,
            stride,
            self.steps,
            solver_options=dict(self.solver_options),
            stride_options=stride_options,
        )


def _option(pair: str) -> tuple[str, Any]:
    name, equals, value = pair.partition("=")
    if not equals:
        raise ValueError(f"options of a stride must be like quadratic:fraction=1, got {pair!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def identity(cell: Cell, model: pretrained.Pretrained, table: SolverTable) -> dict[str, Any]:
    """What decides a cell's samples, to rounding; JSON."""
    settings = cell._asdict() | {"stride": Path(cell.stride).name}
    labels = "all classes in rotation" if model.experiment.num_classes else None
    return json.loads(json.dumps(settings | origin(model, table) | {"labels": labels}))


class Drawn(NamedTuple):
    """Samples read back.

    Attributes:
        images: uint8 [N, H, W, C].
        images_per_second: of the fastest shard, without compilation.
        process_bytes: the most memory that the process held while drawing them; 0 if unknown.
        program_bytes: what the compiled program needs on each device, weights and the batch
            included; 0 if unknown.
    """

    images: np.ndarray
    images_per_second: float
    process_bytes: int
    program_bytes: int


class Shards:
    """The folder of one cell."""

    def __init__(self, folder: str | Path, identity: dict[str, Any]):
        """Opens the folder; it is made when the first shard is written.

        Args:
            folder: of this cell alone.
            identity: from `identity`.

        Raises:
            ValueError: it holds samples that were drawn otherwise.
        """
        self.folder, self.identity = Path(folder), identity
        files.check_origin(self.folder / "cell.json", identity, "samples")

    def missing(self, num_samples: int) -> list[range]:
        """Places of the samples to draw for a set of num_samples, shard by shard.

        A damaged shard counts as missing; it is put aside, with a message.
        """
        wanted = [
            range(first, min(first + SHARD, num_samples)) for first in range(0, num_samples, SHARD)
        ]
        return [places for places in wanted if self._length(places.start) < len(places)]

    def write(
        self,
        first: int,
        images: np.ndarray,
        *,
        seconds: float,
        process_bytes: int = 0,
        program_bytes: int = 0,
    ) -> None:
        """Writes the shard that begins with sample `first`; numbers as of `Drawn`."""
        if not (about := self.folder / "cell.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(about, self.identity)
        values = (seconds, process_bytes, program_bytes)
        numbers = dict(zip(NUMBERS, values, strict=True))
        path = self._path(first)
        files.replace(path, lambda file: np.savez_compressed(file, images=images, **numbers))

    def read(self, num_samples: int) -> Drawn:
        """The first num_samples samples.

        Raises:
            ValueError: some are not there.
        """
        if missing := self.missing(num_samples):
            raise ValueError(f"{self.folder} lacks samples {missing[0]} and maybe more; draw them")
        images, numbers = [], []
        for first in range(0, num_samples, SHARD):
            with np.load(self._path(first)) as shard:
                images.append(shard["images"])
                seconds, *sizes = (float(shard[name]) for name in NUMBERS)
            numbers.append((len(images[-1]) / seconds, *sizes))
        rate, process, program = np.max(numbers, axis=0)
        return Drawn(np.concatenate(images)[:num_samples], float(rate), int(process), int(program))

    def features(self, network: FeatureNetwork, num_samples: int) -> Features:
        """Features of the first num_samples samples, kept beside the shards.

        Raises:
            ValueError: some samples are not there.
        """
        images, found = self.read(num_samples).images, []
        folder = self.folder / f"features_{network.name}_{network.sha256[:8]}_{network.resize}"
        folder.mkdir(exist_ok=True)
        for first in range(0, num_samples, SHARD):
            wanted, path = images[first : first + SHARD], folder / self._path(first).name
            part = features.read(path)
            if part is None or len(part.pool) < len(wanted):
                part = network.extract(wanted)
                features.write(path, part)
            found.append(part.first(len(wanted)))
        return Features.join(found)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first // SHARD:05d}.npz"

    def _length(self, first: int) -> int:
        path = self._path(first)
        if not path.exists():
            return 0
        try:
            with np.load(path) as shard:
                _ = [shard[name] for name in NUMBERS]
                return len(shard["images"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            tqdm.write(
                f"{path} is damaged; it was put aside as {aside.name}, and its samples will be "
                "drawn again",
                file=sys.stderr,
            )
            return 0


def draw(
    cell: Cell,
    generator: Generator,
    shards: Shards,
    num_samples: int,
    *,
    batch_size: int = 100,
    update: Callable[[int], None] = lambda count: None,
) -> None:
    """Draws what is missing of a cell.

    Args:
        cell: how.
        generator: of the network, with the cell's clip.
        shards: where to.
        num_samples: how many there must be at the end.
        batch_size: samples at a time; the last batch of a shard may be smaller.
        update: called with the number of samples of each finished batch.
    """
    table = cell.table(generator.model.experiment.schedule)
    labels = make_labels(generator.model, None, num_samples)
    for places in shards.missing(num_samples):
        reset_peak()
        before, images = generator.seconds, []
        for first in range(places.start, places.stop, batch_size):
            index = np.arange(first, min(first + batch_size, places.stop))
            own = None if labels is None else labels[index]
            result = generator.draw(
                table, index, seed=cell.seed, labels=own, guidance=cell.guidance
            )
            images.append(data.to_uint8(result.x))
            update(len(index))
        batch = min(batch_size, len(places))
        shards.write(
            places.start,
            np.concatenate(images),
            seconds=generator.seconds - before,
            process_bytes=peak_bytes(),
            program_bytes=program_bytes(generator.program(table, batch, cell.guidance)),
        )


def program_bytes(program: Any) -> int:
    """What a compiled program needs on each device: arguments, results, temporaries; 0 if unknown.

    Args:
        program: of `jax.jit(...).lower(...).compile()`.
    """
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(analysis, part) for part in parts) - analysis.alias_size_in_bytes


def reset_peak() -> None:
    """Forgets the most memory that this process has held; Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_bytes() -> int:
    """The most memory that this process has held since `reset_peak`; 0 if the system won't say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0
