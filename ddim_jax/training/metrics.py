"""What a run writes down: metrics.jsonl and TensorBoard files."""

import json
import time
from pathlib import Path

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from ddim_jax import files

FILE = "metrics.jsonl"


def last_step(workdir: Path) -> int:
    """The last step that a workdir's metrics tell of; 0 if there are none."""
    return max((step for step, _ in _lines(workdir / FILE)), default=0)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Step and text of the whole lines of a file, which may be cut off or missing."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(json.loads(line)["step"], line) for line in lines if line.endswith("}")]


class MetricsWriter:
    """metrics.jsonl and TensorBoard. On a resume, lines after the restored step are dropped."""

    def __init__(self, workdir: Path, first: int):
        """Opens the files of a run that continues after step `first`."""
        self._pending = []
        self._since, self._compiling, self._uncounted = time.perf_counter(), True, 0
        if jax.process_index() != 0:
            self._file = self._board = None
            return
        self._path = path = workdir / FILE
        kept = [line for step, line in _lines(path) if step <= first]
        files.replace(path, lambda file: file.writelines(f"{line}\n".encode() for line in kept))
        self._file = path.open("a", buffering=1)
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # not SummaryWriter: its thread dies on a full disk, and then the run waits for it forever
        self._board = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)  # hides what is there of later steps
        self._board.write_event(Event(wall_time=time.time(), step=first + 1, session_log=start))

    def add(self, metrics: dict) -> None:
        """Takes the metrics of one step; they stay on the device until `write`."""
        self._pending.append(metrics)
        if self._compiling:  # which took most of the time so far
            self._compiling, self._since, self._uncounted = False, time.perf_counter(), 1

    def write(self, step: int, batch_size: int, learning_rate: float) -> dict:
        """Writes the metrics of `step`, its means since the last write, and images per second.

        The first step, which is compiled, does not count for the speed: 0 if there was no other.
        What a good step does not tell, NaN, is that of the last one that did; or left out.
        """
        rows = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._since
        values = {name: float(value) for name, value in rows[-1].items()}
        good = values.get("finite", False)
        for name in [name for name, value in values.items() if good and np.isnan(value)]:
            told = [float(row[name]) for row in rows if not np.isnan(row[name])]
            del values[name]
            values |= {name: told[-1]} if told else {}
        values["loss_mean"] = float(np.mean([row["loss"] for row in rows]))
        values["learning_rate"] = learning_rate
        values["images_s"] = round(batch_size * (len(rows) - self._uncounted) / seconds, 1)
        self._pending, self._since, self._uncounted = [], time.perf_counter(), 0
        if self._file:
            scalars = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
            with files.naming(self._path):
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._board.write_event(event)
                self._board.flush()
        return values

    def close(self) -> None:
        """Closes the files."""
        if self._file:
            self._file.close()
            self._board.close()
