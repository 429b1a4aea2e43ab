"""The training run: read top to bottom. Build, restore, step, log, sample, save.

One step is read in three places: here it is called and its state is saved; `step.py` takes the
gradient, the optimizer's update and the moving average; the loss itself is a file of `losses/`.

A workdir holds config.json, checkpoints/, samples/*.png, metrics.jsonl and TensorBoard files. The
same command continues an interrupted run, bit for bit on the same number of devices. SIGTERM and
Ctrl-C save and leave; a loss or gradient that is not finite saves the last good state and stops.
See docs/reliability.md.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from ddim_jax import data, experiment, parallel
from ddim_jax.checkpoints import lock
from ddim_jax.checkpoints.around import save as save_around
from ddim_jax.checkpoints.workdir import BASE, Checkpointer, read_parts, save_base
from ddim_jax.losses.loss import STUDENT
from ddim_jax.model import Model
from ddim_jax.training import around, resume, run_data, teacher
from ddim_jax.training import optimizer as optimizers
from ddim_jax.training.method import Method, build
from ddim_jax.training.metrics import MetricsWriter
from ddim_jax.training.progress import Progress
from ddim_jax.training.sample_grid import grid
from ddim_jax.training.signals import StopOnSignal
from ddim_jax.training.state import TrainState


class NotFiniteError(RuntimeError):
    """The loss, its gradient or a parameter became infinite or NaN."""


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
    start = teacher.load(config, workdir)
    config = teacher.resolve(config, start)
    parts_needed = config.get("codec") or config.get("text")
    source = experiment.load_data(config) if parts_needed else None
    config, parts = around.load(config, workdir, source, start)
    method = build(config, start, mesh, parts)
    if start is not None:
        teacher.check(config, start.config, method.loss.needs_teacher)
    source = experiment.load_data(config) if source is None else source
    config = teacher.record(config, start, source, method.teacher, method.weak)
    method = method._replace(model=method.model.replace(config=config))
    run_data.check(config, source, start)
    around.check(config, method.model, source)
    abstract_state(config, method, start, mesh)  # traces it: errors come before files
    with lock.locked(workdir):
        notes = [
            source.note,
            run_data.note(config, source),
            around.note(method.model, source),
            optimizers.note(config),
            teacher.note(config.get("start_from", ""), start),
            teacher.note(config.get("teacher", ""), method.teacher),
            *resume.notes(workdir, config),
        ]
        every = resume.checkpoint_every(workdir, config)
        resume.save_config(workdir, config)
        if method.low_rank is not None:
            save_base(workdir, start)
        if parts is not None and jax.process_index() == 0:
            save_around(workdir, parts)
        if jax.process_index() == 0:
            print("compiling the first state ...", file=sys.stderr, flush=True)
        state = init_state(config, method, start, mesh)
        checkpointer = Checkpointer(workdir, config.train.keep)
        try:
            if restored := checkpointer.restore(state):
                state = restored
            else:
                resume.check_not_lost(workdir, every)
                state, note = _with_parts(config, method, start, state)
                notes.append(note)
            if jax.process_index() == 0:
                print(_summary(config, method, source, int(state.step)), flush=True)
                for note in filter(None, notes):
                    print(f"note: {note}", flush=True)
            source = run_data.numbered(config, source, start)
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
        around.told(config, method.model, source) if first < train.steps else source,
        train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    put = (lambda b: b) if config.parallel == "pmap" else lambda b: parallel.shard(b, mesh)
    codec_params = None if config.data.get("cache", False) else method.model.codec.params
    codec_params = parallel.place(codec_params, mesh, config.parallel)
    writer, draw = MetricsWriter(workdir, first), grid(method.model, source, workdir / "samples")
    progress = Progress(first, train.steps, train.batch_size)
    if first < train.steps:
        progress.say("compiling the train step ...")
    one_by_one, metrics = mesh.devices.flat[0].platform == "cpu", {}
    with StopOnSignal() as stop, progress:
        for step in range(first + 1, train.steps + 1):
            batch = put(next(batches))
            if one_by_one:
                # of steps that wait for each other on a busy CPU, XLA (jaxlib 0.10) can run out of
                # threads: one device waits for the other in an all-reduce, for good
                jax.block_until_ready(metrics)
            state, metrics = method.step(state, batch, codec_params)
            writer.add(metrics)
            progress.step()
            # asked once a step: a signal between here and the save must not be lost
            stopping = stop.wanted(step) and step < train.steps
            last = stopping or step == train.steps
            if step % train.log_every == 0 or last:
                values = writer.write(step, train.batch_size, method.learning_rate(step - 1))
                progress.tell(step, values, last)
                if int(state.step) != step:
                    _stop_not_finite(state, checkpointer)
                checkpointer.check()
            if step % train.checkpoint_every == 0 or last:
                checkpointer.save(state, wait=last)
            if train.sample_every and not stopping and (step % train.sample_every == 0 or last):
                if path := draw(_drawn_with(method, state, mesh), step):
                    progress.say(f"step {step}: {path}")
            if stopping:
                progress.say(
                    f"stopped after step {step} of {train.steps}, which is saved in {workdir}; the "
                    "same command goes on from there"
                )
                break
    batches.close()
    writer.close()
    return state


def _drawn_with(method: Method, state: TrainState, mesh: Mesh) -> Any:
    """The parameters that pictures are drawn with."""
    if method.low_rank is None:
        return parallel.fetch(state.ema, mesh)
    base, factors = parallel.fetch((state.frozen[BASE], state.ema), mesh)
    return method.low_rank.merge(base, factors)


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
    parts, example = method.loss.parts, (method.teacher or method.model).example()
    dtype = config.get("teacher_dtype", "float32")
    taken = None if start is None else teacher.take_over(start, method.model)

    def init(key, taken, teacher_params):
        params_key, run_key = jax.random.split(key)
        params, base = teacher.merge(method.model.init(params_key), taken), {}
        held = teacher.cast(teacher_params, dtype)
        if method.low_rank is not None:
            base = {BASE: params}
            if not config.get("teacher"):
                held = {}  # the base changed by nothing is the teacher
            params = method.low_rank.init(params_key, params)
        ema = jax.tree.map(jnp.copy, params)
        frozen = (method.loss.freeze(params, held) or {}) | base or None
        if parts is not None:
            others = parts.init(jax.random.fold_in(params_key, 1), teacher_params, example)
            params = {STUDENT: params} | others
        opt_state = method.optimizer.init(params)
        return TrainState(jnp.int32(0), params, ema, opt_state, run_key, frozen)

    taught_by = method.teacher_params
    return init, (jax.random.key(config.seed), *jax.device_get((taken, taught_by)))


def _with_parts(
    config, method: Method, start: Model | None, state: TrainState
) -> tuple[TrainState, str]:
    """The first state, with critic and head of the run that it starts from; and a note of it.

    They stay where that run had another teacher: what a critic says means what its teacher's does,
    and a head looks at its teacher's features.
    """
    if method.loss.parts is None or start is None:
        return state, ""
    others = {name: state.params[name] for name in method.loss.parts.names[1:]}
    if not (kept := read_parts(Path(config.start_from).expanduser(), others)):
        return state, ""
    parts = f"{' and '.join(kept)} of {config.start_from}"
    theirs = start.config.get("teacher_weights") or start.config.get("start_weights")
    if theirs not in (None, method.teacher.fingerprint):
        return state, f"leaves {parts}, which had another teacher"
    return state.replace(params=state.params | kept), f"takes over {parts}"


def _summary(config, method: Method, source, first: int) -> str:
    """What is trained on what, and from where to where, in two lines."""
    model = method.model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    trained = f"{_count(shapes):,} parameters"
    if method.low_rank is not None:
        factors = jax.eval_shape(method.low_rank.init, jax.random.key(0), shapes)
        kernels, rank = len(method.low_rank.kernels(shapes)), method.low_rank.rank
        in_factors = f" in factors of rank {rank} of {kernels} kernels" if kernels else ""
        trained = f"{_count(factors):,} numbers{in_factors}, which change {trained}"
    if method.loss.parts is not None:
        trained += f" of the student, beside its {' and '.join(method.loss.parts.names[1:])}"
    told = dataclasses.replace(model.inputs, class_names=tuple(config.data.get("class_names", ())))
    shape = " x ".join(map(str, getattr(source, "shape", source.image_shape)))
    noun, size = getattr(source, "noun", "images"), config.data.get("resize")
    resized = "padded" if config.data.get("pad", False) else "cropped to their centre"
    steps = config.train.steps
    if first >= steps:
        start = f"nothing to do, the run is at step {first} and config.train.steps is {steps}"
    else:
        start = f"resuming at step {first} of {steps}" if first else f"starting, {steps} steps"
    return (
        f"{len(source):,} {noun} of {config.data.name}, {shape}"
        + (f" ({resized} and resized), " if size else ", ")
        + told.describe()
        + f"\n{trained}, {jax.device_count()} {jax.devices()[0].platform} devices, "
        f"{config.parallel}; {start}"
    )


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _stop_not_finite(state: TrainState, checkpointer: Checkpointer) -> None:
    checkpointer.save(state, wait=True)
    saved = checkpointer.directory / str(int(state.step))
    raise NotFiniteError(
        f"the loss, its gradient or a parameter is not finite after step {int(state.step)}; the "
        f"last good state is saved in {saved}. Lower config.optimizer.learning_rate in another "
        f"--workdir; config.start_from={saved.parent.parent} starts there from what was learned"
    )
