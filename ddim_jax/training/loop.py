"""The training run: read top to bottom. Build, restore, step, log, sample, save.

One step is read in three places: here it is called and its state is saved; `step.py` takes the
gradient, the optimizer's update and the moving average; the loss itself is a file of `losses/`.

A workdir holds config.json, checkpoints/, samples/*.png, metrics.jsonl and TensorBoard files. The
same command continues an interrupted run, bit for bit on the same number of devices. SIGTERM and
Ctrl-C save and leave; a loss or gradient that is not finite saves the last good state and stops.
See docs/reliability.md.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from ddim_jax import data, parallel
from ddim_jax.checkpoints.workdir import Checkpointer, save_config
from ddim_jax.model import Model
from ddim_jax.training import teacher
from ddim_jax.training.method import Method, build
from ddim_jax.training.metrics import MetricsWriter
from ddim_jax.training.sample_grid import SampleGrid
from ddim_jax.training.signals import StopOnSignal
from ddim_jax.training.state import TrainState


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
    workdir, mesh = Path(workdir), parallel.make_mesh()
    start = teacher.load(config)
    method = build(config, start, mesh)
    if start is not None:
        teacher.check(config, start.config, method.loss.needs_teacher)
    source = load_data(config, method.model)
    state = init_state(config, method, start, mesh)
    save_config(workdir, teacher.record(config, start, source))
    checkpointer = Checkpointer(workdir, config.train.keep)
    try:
        state = checkpointer.restore(state) or state
        if jax.process_index() == 0:
            print(_summary(config, method.model, source, int(state.step)), flush=True)
        state = _steps(config, workdir, method, source, state, mesh, checkpointer)
    finally:
        checkpointer.close()
    return state


def _steps(
    config, workdir: Path, method: Method, source, state: TrainState, mesh: Mesh, checkpointer
) -> TrainState:
    """Runs the steps that are left; returns the last state."""
    train, first = config.train, int(state.step)
    batches = data.batches(
        source,
        train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    put = (lambda b: b) if config.parallel == "pmap" else lambda b: parallel.shard(b, mesh)
    writer, draw = MetricsWriter(workdir, first), SampleGrid(method.model, workdir / "samples")
    with StopOnSignal() as stop, _progress(config, first) as bar:
        for step in range(first + 1, train.steps + 1):
            state, metrics = method.step(state, put(next(batches)))
            writer.add(metrics)
            bar.update()
            # asked once a step: a signal between here and the save must not be lost
            stopping = stop.wanted(step)
            last = stopping or step == train.steps
            if step % train.log_every == 0 or last:
                values = writer.write(step, train.batch_size)
                bar.set_postfix(loss=f"{values['loss_mean']:.4f}", images_s=values["images_s"])
                if int(state.step) != step:
                    _stop_not_finite(state, checkpointer)
                checkpointer.check()
            if step % train.checkpoint_every == 0 or last:
                checkpointer.save(state, wait=last)
            if train.sample_every and (step % train.sample_every == 0 or last):
                if path := draw(parallel.fetch(state.ema, mesh), step):
                    bar.write(f"step {step}: {path}", file=sys.stderr)
            if stopping:
                logging.warning("Stopped by a signal after step %d; saved in %s", step, workdir)
                break
    batches.close()
    writer.close()
    return state


def load_data(config: ml_collections.ConfigDict, model: Model):
    """The data that a config names.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: pictures or classes that the model cannot take.
    """
    height, _, channels = shape = model.codec.picture_shape
    source = data.load(
        config.data.name,
        config.data.split,
        image_size=config.data.resize or None,
        channels=channels if config.data.resize else None,
        data_dir=config.data.data_dir or None,
    )
    if tuple(source.image_shape) != shape:
        raise ValueError(
            f"{config.data.name} holds images of shape {tuple(source.image_shape)}, the config "
            f"says {shape}; set config.data.image_shape, or config.data.resize={height}"
        )
    classes = model.inputs.num_classes
    if classes and source.num_classes > classes:
        raise ValueError(
            f"{config.data.name} has {source.num_classes} classes, the network {classes}; set "
            f"config.model.num_classes={source.num_classes}"
        )
    return source


def init_state(
    config: ml_collections.ConfigDict, method: Method, start: Model | None, mesh: Mesh
) -> TrainState:
    """The state before the first step, where it is to lie; nowhere is it whole if it is split.

    Args:
        config: its seed.
        method: model, optimizer, and a loss which says what is frozen.
        start: whose parameters are taken over.
        mesh: of the devices.
    """
    init, arguments = _initialiser(config, method, start)
    layout = parallel.layout(jax.eval_shape(init, *arguments), mesh, config.parallel)
    return jax.jit(init, out_shardings=layout)(*arguments)


def abstract_state(
    config: ml_collections.ConfigDict, method: Method, start: Model | None, mesh: Mesh
) -> TrainState:
    """The shapes and shardings of `init_state`, which may be of devices that are not here."""
    init, arguments = _initialiser(config, method, start)
    shapes = jax.eval_shape(init, *arguments)
    layout = parallel.layout(shapes, mesh, config.parallel)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        layout,
    )


def _initialiser(config, method: Method, start: Model | None):
    """A function to the first state, and its arguments."""
    taken = None if start is None else teacher.take_over(start, method.model)

    def init(key, taken, teacher_params):
        params_key, run_key = jax.random.split(key)
        params = teacher.merge(method.model.init(params_key), taken)
        ema = jax.tree.map(jnp.copy, params)
        frozen = method.loss.freeze(params, teacher_params)
        opt_state = method.optimizer.init(params)
        return TrainState(jnp.int32(0), params, ema, opt_state, run_key, frozen)

    return init, (jax.random.key(config.seed), *jax.device_get((taken, start and start.params)))


def _summary(config, model: Model, source, first: int) -> str:
    count = sum(p.size for p in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
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
