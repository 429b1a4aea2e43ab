"""The training run: read top to bottom. Build, restore, step, log, sample, save.

A workdir holds config.json, checkpoints/, samples/*.png, metrics.jsonl and TensorBoard files. The
same command continues an interrupted run, bit for bit on the same number of devices. SIGTERM and
Ctrl-C save and leave; a loss or gradient that is not finite saves the last good state and stops.
See docs/reliability.md.
"""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from ddim_jax import data, experiment, files, parallel, sampling
from ddim_jax.experiment import Experiment
from ddim_jax.guidance import Guidance
from ddim_jax.losses import Loss
from ddim_jax.models.pretrained import Pretrained
from ddim_jax.training import starting
from ddim_jax.training.checkpoints import Checkpointer, save_config
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import make_step


class NotFiniteError(RuntimeError):
    """The loss or its gradient became infinite or NaN."""


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> TrainState:
    """Trains as a config says, continuing whatever is in `workdir`.

    Args:
        config: see `configs/`.
        workdir: directory of the run, created if need be.

    Returns:
        The state at the end, or where a signal stopped the run.

    Raises:
        ValueError: a config, data set or workdir that does not fit, before any long work.
        NotFiniteError: the loss is not finite; the last good state has been saved.
        OSError: a file could not be written, as on a full disk; older checkpoints are intact.
    """
    workdir = Path(workdir)
    start = starting.load(config)
    mesh = parallel.make_mesh()
    parts, loss, optimizer, step_fn = build(config, start and start.experiment, mesh)
    if start is not None:
        starting.check(config, start.config, loss.needs_teacher)
    source = _load_data(config, parts)
    state = init_state(config, parts, optimizer, loss, start, mesh)
    save_config(workdir, starting.record(config, start, source))
    checkpointer = Checkpointer(workdir, config.train.keep)
    state = checkpointer.restore(state) or state
    first = int(state.step)
    if jax.process_index() == 0:
        print(_summary(config, parts, source, first), flush=True)
    batches = data.batches(
        source,
        config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    put = (lambda b: b) if config.parallel == "pmap" else lambda b: parallel.shard(b, mesh)
    writer = MetricsWriter(workdir, first)
    draw = SampleGrid(config, parts, workdir / "samples")
    with StopOnSignal() as stop, _progress(config, first) as bar:
        for step in range(first + 1, config.train.steps + 1):
            state, metrics = step_fn(state, put(next(batches)))
            writer.add(metrics)
            bar.update()
            stopping = stop.wanted(
                step
            )  # once: a signal between here and the save must not be lost
            last = stopping or step == config.train.steps
            if step % config.train.log_every == 0 or last:
                values = writer.write(step, config.train.batch_size)
                bar.set_postfix(loss=f"{values['loss_mean']:.4f}", images_s=values["images_s"])
                if int(state.step) != step:
                    _stop_not_finite(state, checkpointer)
                checkpointer.check()
            if step % config.train.checkpoint_every == 0 or last:
                checkpointer.save(state, wait=last)
            if config.train.sample_every and (step % config.train.sample_every == 0 or last):
                path = draw(parallel.fetch(state.ema, mesh), step)
                if jax.process_index() == 0:
                    bar.write(f"step {step}: {path}", file=sys.stderr)
            if stopping:
                logging.warning("Stopped by a signal after step %d; saved in %s", step, workdir)
                break
    batches.close()
    writer.close()
    checkpointer.close()
    return state


def build(config: ml_collections.ConfigDict, teacher: Experiment | None, mesh: Mesh):
    """Everything but the data: (experiment, loss, optimizer, compiled step).

    Args:
        config: see `configs/`.
        teacher: what the run starts from, if anything.
        mesh: of the devices that the step runs on.

    Raises:
        ValueError: what can be wrong with a config, before any long work.
    """
    parts = experiment.build(config)
    loss = experiment.build_loss(config, parts, teacher)
    optimizer, ema = experiment.build_optimizer(config), experiment.build_ema(config)
    parts_of_batch = config.train.get("accumulate", 1)

    def step(axis: str | None, gather: Callable | None = None) -> Callable:
        return make_step(loss, optimizer, ema, axis, gather, parts_of_batch)

    step_fn = parallel.parallelise_step(step, config.parallel, mesh)
    counts = {"accumulate": parts_of_batch} | config.train.to_dict()
    for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep", "accumulate"):
        if counts[name] < 1:
            raise ValueError(f"config.train.{name} must be at least 1, got {counts[name]}")
    for name, value in (("seed", config.seed), ("train.sample_every", config.train.sample_every)):
        if value < 0:
            raise ValueError(f"config.{name} must not be negative, got {value}")
    parallel.check_batch(config.train.batch_size, mesh.size)
    if config.train.batch_size // mesh.size % parts_of_batch:
        raise ValueError(
            "config.train.accumulate must divide the "
            f"{config.train.batch_size // mesh.size} images "
            f"of a device, got {parts_of_batch}"
        )
    SampleGrid.check(config, parts)
    if config.data.flip and config.data.name.startswith("pairs:"):
        raise ValueError("pairs cannot be flipped: the noise would not be; set data.flip=False")
    channels = parts.image_shape[-1]
    if parts.model.out_channels != channels:  # the loss would broadcast over them, unnoticed
        raise ValueError(
            f"the network returns {parts.model.out_channels} channels, the images have {channels}; "
            f"set config.model.out_channels={channels}"
        )
    jax.eval_shape(parts.init, jax.random.key(0))  # traces the network, which checks its options
    return parts, loss, optimizer, step_fn


def _load_data(config: ml_collections.ConfigDict, parts: Experiment):
    height, _, channels = parts.image_shape
    source = data.load(
        config.data.name,
        config.data.split,
        image_size=config.data.resize or None,
        channels=channels if config.data.resize else None,
        data_dir=config.data.data_dir or None,
    )
    if tuple(source.image_shape) != parts.image_shape:
        raise ValueError(
            f"{config.data.name} holds images of shape {tuple(source.image_shape)}, the config "
            f"says {parts.image_shape}; set config.data.image_shape, or config.data.resize={height}"
        )
    if parts.num_classes and source.num_classes > parts.num_classes:
        raise ValueError(
            f"{config.data.name} has {source.num_classes} classes, the network "
            f"{parts.num_classes}; set config.model.num_classes={source.num_classes}"
        )
    return source


def init_state(
    config: ml_collections.ConfigDict,
    parts: Experiment,
    optimizer,
    loss: Loss,
    start: Pretrained | None,
    mesh: Mesh,
) -> TrainState:
    """The state before the first step, where it is to lie; nowhere is it whole if it is split.

    Args:
        config: its seed.
        parts: the network.
        optimizer: of optax.
        loss: says what is frozen.
        start: whose parameters are taken over.
        mesh: of the devices.
    """
    init, arguments = _initialiser(config, parts, optimizer, loss, start)
    layout = parallel.layout(jax.eval_shape(init, *arguments), mesh, config.parallel)
    return jax.jit(init, out_shardings=layout)(*arguments)


def abstract_state(
    config: ml_collections.ConfigDict,
    parts: Experiment,
    optimizer,
    loss: Loss,
    start: Pretrained | None,
    mesh: Mesh,
) -> TrainState:
    """The shapes and shardings of `init_state`, which may be of devices that are not here."""
    init, arguments = _initialiser(config, parts, optimizer, loss, start)
    shapes = jax.eval_shape(init, *arguments)
    layout = parallel.layout(shapes, mesh, config.parallel)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        layout,
    )


def _initialiser(config, parts: Experiment, optimizer, loss: Loss, start: Pretrained | None):
    """A function to the first state, and its arguments."""
    taken = None if start is None else starting.take_over(start, parts)

    def init(key, taken, teacher):
        params_key, run_key = jax.random.split(key)
        params = starting.merge(parts.init(params_key), taken)
        ema = jax.tree.map(jnp.copy, params)
        frozen = loss.freeze(params, teacher)
        return TrainState(jnp.int32(0), params, ema, optimizer.init(params), run_key, frozen)

    return init, (jax.random.key(config.seed), *jax.device_get((taken, start and start.params)))


def _summary(config, parts: Experiment, source, first: int) -> str:
    count = sum(p.size for p in jax.tree.leaves(jax.eval_shape(parts.init, jax.random.key(0))))
    start = f"resuming at step {first}" if first else "starting"
    return (
        f"{len(source):,} images of {config.data.name}, {count:,} parameters, "
        f"{jax.device_count()} {jax.devices()[0].platform} devices, {config.parallel}; {start} "
        f"of {config.train.steps}"
    )


def _progress(config, first: int) -> tqdm:
    quiet = jax.process_index() != 0 or not sys.stderr.isatty()
    return tqdm(total=config.train.steps, initial=first, disable=quiet, unit="step")


def _stop_not_finite(state: TrainState, checkpointer: Checkpointer) -> None:
    checkpointer.save(state, wait=True)
    saved = checkpointer.directory / str(int(state.step))
    raise NotFiniteError(
        f"the loss or its gradient is not finite after step {int(state.step)}; the last good state "
        f"is saved in {saved}. Lower config.optimizer.learning_rate in another --workdir; "
        f"config.start_from={saved.parent.parent} starts there from what was learned"
    )


class StopOnSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step.

    Of several processes a SIGTERM to one stops all, after the same step.
    """

    def __enter__(self):
        """Installs the handlers (in the main thread only); several processes have JAX's own."""
        self._requested = False
        self._old = {}
        if jax.process_count() > 1:
            return self
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: signals are somebody else's
            pass
        return self

    def _handle(self, number, frame):
        self._requested = True

    def wanted(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every one."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def __exit__(self, *exception):
        """Restores the old handlers."""
        for number, handler in self._old.items():
            signal.signal(number, handler)


class MetricsWriter:
    """metrics.jsonl and TensorBoard. On a resume, lines after the restored step are dropped."""

    def __init__(self, workdir: Path, first: int):
        """Opens the files of a run that continues after step `first`."""
        self._pending = []
        self._since = time.perf_counter()
        if jax.process_index() != 0:
            self._file = self._board = None
            return
        self._path = path = workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first]
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

    def write(self, step: int, batch_size: int) -> dict:
        """Writes the metrics of `step`, its means since the last write, and images per second."""
        rows = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._since
        values = {name: float(value) for name, value in rows[-1].items()}
        values["loss_mean"] = float(np.mean([row["loss"] for row in rows]))
        values["images_s"] = round(batch_size * len(rows) / seconds, 1)
        self._pending, self._since = [], time.perf_counter()
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


class SampleGrid:
    """Draws the same samples from the moving average at every call, as a PNG."""

    def __init__(self, config, parts: Experiment, folder: Path):
        """Prepares the sampler; nothing is compiled before the first call."""
        self._folder = folder
        options = config.sample
        count = options.num_samples
        keys = sampling.sample_keys(config.seed, np.arange(count))
        self._labels = np.arange(count) % parts.num_classes if parts.num_classes else None
        self._table = self.check(config, parts)
        x = sampling.initial_noise(keys, parts.image_shape)
        labels = None if self._labels is None else jnp.asarray(self._labels, jnp.int32)
        scale, interval = options.get("guidance_scale", 1.0), parts.interval(self._table, count)
        arrays = (x, keys, parts.cond(labels, guidance=scale, interval=interval))
        self._guidance = None if scale == 1 or parts.takes_guidance else Guidance(scale)
        mesh = parallel.make_mesh(jax.local_devices())
        self._arrays = parallel.shard(arrays, mesh) if count % mesh.size == 0 else arrays
        self._sample = parts.sampler(clip=options.clip)

    @staticmethod
    def check(config, parts: Experiment):
        """The table that the config's `sample` section asks for; raises ValueError if it cannot."""
        options = config.sample
        if options.num_samples < 1:
            raise ValueError(
                f"config.sample.num_samples must be at least 1, got {options.num_samples}; for no "
                "pictures set config.train.sample_every=0"
            )
        if options.get("guidance_scale", 1.0) != 1 and not parts.num_classes:
            raise ValueError(
                f"config.sample.guidance_scale={options.guidance_scale} needs a class-conditional "
                "network; leave it out, or set config.model.num_classes"
            )
        parts.sampler(clip=options.clip)  # raises for an unknown clip
        table = experiment.build_table(
            parts.schedule,
            options.solver,
            options.stride,
            options.steps,
            solver_options=options.get("solver_options"),
            stride_options=options.get("stride_options"),
        )
        parts.interval(table, 1)  # raises for unequal steps, if the network is told them
        return table

    def __call__(self, ema, step: int) -> Path:
        """Draws with these parameters and returns the picture's path."""
        path = self._folder / f"step_{step:07d}.png"
        if jax.process_index() != 0:
            return path
        x, keys, cond = self._arrays
        result = self._sample(ema, self._table, x, keys, cond, self._guidance)
        images = data.to_uint8(np.asarray(result.x))
        self._folder.mkdir(parents=True, exist_ok=True)
        columns = 10 if len(images) % 10 == 0 else int(np.ceil(np.sqrt(len(images))))
        sheet = data.grid(images, columns, scale=max(1, 64 // images.shape[1]))
        with files.naming(path):
            data.save_png(path, sheet, overwrite=True)
        return path
