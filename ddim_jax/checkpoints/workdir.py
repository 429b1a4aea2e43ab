"""Training workdirs: the whole `TrainState` in one orbax step, its moving average beside it.

A workdir holds `config.json` and `checkpoints/<step>/{state,ema}`. The state restores onto any
number of devices; a damaged newest step is skipped, and said so, and replaced when training comes
to it again. A save that fails leaves the older steps as they are. `ema` is all that sampling reads.

Where low-rank factors are trained, checkpoints hold them in place of the network (and a critic as
it is), and `base.safetensors` the network that they change: a copy, so that a workdir can be moved,
and outlives what it started from. Of networks of latents and texts `around.py` keeps the rest.
"""

import contextlib
import dataclasses
import gc
import logging as standard_logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict

from ddim_jax import experiment, files
from ddim_jax.checkpoints import architecture, around, weights_file
from ddim_jax.model import Model
from ddim_jax.networks import low_rank
from ddim_jax.networks.low_rank import LowRank

State = Any
"""A flax struct with the fields `step`, `ema` and `frozen`, like `training.state.TrainState`."""

CONFIG_FILE = "config.json"
BASE_FILE, BASE = "base.safetensors", "base"
"""What low-rank factors change: the file, and its name in `frozen`."""


def load_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a workdir.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of something else.
    """
    file = Path(workdir) / CONFIG_FILE
    if not file.exists():
        stages = sorted(path.parent for path in Path(workdir).glob(f"*/{CONFIG_FILE}"))
        if stages and not (Path(workdir) / "model_index.json").exists():  # else of a pipeline
            raise FileNotFoundError(
                f"{workdir} holds the stages {', '.join(path.name for path in stages)}; give one "
                f"of them, like {stages[-1]}"
            )
        raise FileNotFoundError(
            f"{workdir} is not a training workdir (no {CONFIG_FILE}); give the --workdir that "
            "train.py was run with, or an exported .safetensors file"
        )
    content = files.read_json(file)
    if missing := {"model", "data", "train"} - set(content):
        raise ValueError(
            f"{file} is no config of a training run, as it has no section {min(missing)}; give the "
            "--workdir that train.py was run with, or of what diffusers wrote the whole folder"
        )
    return experiment.of_file(content)


def read(path: Path) -> Model:
    """The model of a workdir, with its newest moving average.

    Raises:
        FileNotFoundError: there is no config, or no checkpoint.
        ValueError: no checkpoint fits the config, or none can be read.
    """
    config = load_config(path)
    model = experiment.build(config).replace(name=path.name or str(path))
    if parts := around.read(path):
        model = model.with_parts(None, *parts[2:])
    if config.train.get("lora"):
        base, changes, factors, step = read_factors(path)
        return model.replace(params=changes.merge(base.params, factors), step=step)
    ema, step = _read_ema(path, jax.eval_shape(model.init, jax.random.key(0)))
    return model.replace(params=ema, step=step)


class Changed(NamedTuple):
    """A network under trained low-rank factors.

    Attributes:
        base: the network.
        low_rank: which kernels are changed.
        factors: the moving average of the factors.
        step: training steps.
    """

    base: Model
    low_rank: LowRank
    factors: Any
    step: int


def read_factors(path: Path) -> Changed:
    """The newest moving average of the factors that a workdir trains, and what they change.

    Raises:
        FileNotFoundError: as `read`; what they change is not there.
        ValueError: as `read`; the run trains no factors, or they are of another network.
    """
    config = load_config(path)
    changes = low_rank.of(config.train.get("lora"))
    if changes is None:
        raise ValueError(f"{path} trained a whole network, no config.train.lora")
    file = Path(path) / BASE_FILE
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing, which holds what the factors change; export "
            f"{config.start_from or 'the network that the run started from'} to it"
        )
    base = weights_file.read(file, file.stem)
    if config.get("start_weights") not in (None, base.fingerprint):
        raise ValueError(f"{file} is another network than the one that the run started from")
    shapes = jax.eval_shape(experiment.build(config).init, jax.random.key(0))
    new = set(flatten_dict(shapes, sep="/")) - set(flatten_dict(base.params, sep="/"))
    changes = dataclasses.replace(changes, whole=(*changes.whole, *sorted(new)))
    like = jax.eval_shape(changes.init, jax.random.key(0), shapes)
    return Changed(base, changes, *_read_ema(path, like))


def save_base(path: Path, base: Model) -> None:
    """Puts what factors change into a workdir, unless it is there.

    Raises:
        OSError: it could not be written.
    """
    file = Path(path) / BASE_FILE
    if jax.process_index() == 0 and not file.exists():
        weights_file.save(file, base)


def read_parts(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The newest parameters of parts that a workdir trained beside its student, by name.

    Args:
        path: of the workdir; one of something else has none.
        like: name -> parameters with the shapes and shardings wanted; those of parts that were not
            trained, or in other shapes, are not returned.

    Raises:
        ValueError: no checkpoint can be read.
    """
    if not (Path(path) / "checkpoints").is_dir():
        return {}
    checkpointer = Checkpointer(path, create=False)
    try:
        return checkpointer.restore_parts(like)
    finally:
        checkpointer.close()


def _read_ema(path: Path, like: Any) -> tuple[Any, int]:
    checkpointer = Checkpointer(path, create=False)
    try:
        return checkpointer.restore_ema(like)
    finally:
        checkpointer.close()


class Checkpointer:
    """Saves and restores the training state under `workdir/checkpoints`.

    Args:
        workdir: of the run.
        keep: newest steps kept.
        create: make the directory if there is none.

    Raises:
        FileNotFoundError: there is none, and `create` is False.
    """

    def __init__(self, workdir: Path, keep: int = 2, create: bool = True):
        """Opens the directory."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create)
        self._damaged = set()
        self.directory = Path(workdir).absolute() / "checkpoints"
        if not create and not self.directory.is_dir():
            raise FileNotFoundError(f"{workdir} has no checkpoints yet; train it first")
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("state", "ema")}
        self._manager = ocp.CheckpointManager(
            self.directory, item_handlers=handlers, options=options
        )
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_quiet())

    def save(self, state: State, *, wait: bool = False) -> None:
        """Saves a state under its step, in the background unless `wait`.

        Raises:
            SaveError: this save failed, or the one before it.
        """
        step = int(state.step)
        with self._explained():
            if step in self._damaged:
                self._damaged.remove(step)
                self._manager.delete(step)
            if step not in self._manager.all_steps():
                items = ocp.args.Composite(
                    state=ocp.args.StandardSave(_stored(state)),
                    ema=ocp.args.StandardSave(state.ema),
                )
                self._manager.save(step, args=items, force=True)
            if wait:
                self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises SaveError if a save in the background has failed; waits for none."""
        with self._explained():
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many kinds for a full disk
            names = [path.name for path in self.directory.glob("*") if path.name.isdigit()]
            whole = set(map(int, names)) - self._damaged
            kept = f"that of step {max(whole)} is intact" if whole else "there is no older one"
            raise SaveError(
                f"a checkpoint could not be written to {self.directory}: {_reason(error)}; {kept}. "
                "Put that right (make room, say); the same command then goes on"
            ) from error

    def restore(self, like: State) -> State | None:
        """The newest state that can be read, or None if there is none.

        Args:
            like: a state (or ShapeDtypeStructs) with the shapes and shardings wanted.

        Raises:
            ValueError: the checkpoint is of another architecture, or no step can be read.
        """

        def read(step):
            self._check_shapes(step, like.ema)
            self._check_parts(step, like.params)
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(_abstract(_stored(like))),
                ema=ocp.args.StandardRestore(_abstract(like.ema)),
            )
            restored = self._manager.restore(step, args=items)
            state = restored["state"].replace(ema=restored["ema"])
            return state.replace(frozen=(like.frozen or {}) | (state.frozen or {}) or None)

        return self._newest(read)

    def restore_ema(self, like: Any) -> tuple[Any, int]:
        """The newest moving average that can be read, and its step.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: as `restore`.
        """

        def read(step):
            self._check_shapes(step, like)
            items = ocp.args.Composite(ema=ocp.args.StandardRestore(_abstract(like)))
            return self._manager.restore(step, args=items)["ema"], step

        newest = self._newest(read)
        if newest is None:
            raise FileNotFoundError(
                f"no checkpoint in {self._manager.directory}; the first is written after "
                "config.train.checkpoint_every steps, or on SIGTERM"
            )
        return newest

    def restore_parts(self, like: Mapping[str, Any]) -> dict[str, Any]:
        """What `read_parts` returns."""

        def read(step):
            saved = self._saved_params(step)
            same = {
                name: tree
                for name, tree in like.items()
                if name in saved and not architecture.difference(tree, saved[name])
            }
            if not same:
                return {}
            wanted = {"params": _abstract(same)}
            options = ocp.checkpoint_utils.construct_restore_args(wanted)
            args = ocp.args.PyTreeRestore(item=wanted, restore_args=options, partial_restore=True)
            reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
            return reader.restore(self.directory / str(step) / "state", args=args)["params"]

        return self._newest(read) or {}

    def _newest(self, read):
        steps = sorted(self._manager.all_steps(), reverse=True)
        failures = []
        for step in steps:
            try:
                restored = read(step)
            except Mismatch:
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
                self._damaged.add(step)
                failures.append(f"step {step} ({str(error).strip().splitlines()[0][:200]})")
                logging.warning("Checkpoint of step %d cannot be read, trying older ones", step)
                continue
            for failure in failures:
                logging.warning("Skipped the damaged checkpoint of %s; using %d", failure, step)
            return restored
        if failures:
            raise ValueError(
                f"no checkpoint in {self._manager.directory} can be read: {'; '.join(failures)}; "
                "remove the directory to start afresh"
            )
        return None

    def _check_shapes(self, step: int, like: Any) -> None:
        saved = self._manager.item_metadata(step)["ema"]
        if saved is None:
            raise OSError("its list of parameters is missing")
        saved = saved.tree if hasattr(saved, "tree") else saved
        if differs := architecture.difference(like, saved):
            raise Mismatch(
                f"checkpoint {step} is of another architecture: parameter {differs[0]} is "
                f"{differs[2]} there and {differs[1]} in the config; use the config it was trained "
                "with"
            )

    def _check_parts(self, step: int, like: Any) -> None:
        """Raises Mismatch where other networks were trained than those that are to go on."""
        saved = self._saved_params(step)
        if differs := architecture.difference(like, saved):
            names = [", ".join(sorted(tree)) for tree in (saved, like)]
            what = f"it holds {names[0]}, and the config trains {names[1]}"
            if names[0] == names[1]:
                what = f"{differs[0]} is {differs[2]} there and {differs[1]} in the config"
            raise Mismatch(
                f"checkpoint {step} is of another method: {what}; use the config it was trained "
                "with, or choose another --workdir"
            )

    def _saved_params(self, step: int) -> Any:
        """Shapes of the parameters that were trained."""
        saved = self._manager.item_metadata(step)["state"]
        if saved is None:
            raise OSError("its list of parameters is missing")
        return (saved.tree if hasattr(saved, "tree") else saved)["params"]

    def close(self) -> None:
        """Waits for saves under way.

        Raises:
            SaveError: one failed.
        """
        with self._quiet, self._explained():
            self._manager.close()
            gc.collect()  # coroutines of failed writes complain when they are collected


class Mismatch(ValueError):
    """A checkpoint whose parameters are not those of the config."""


class SaveError(OSError):
    """A checkpoint could not be written; older ones are as they were."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops the pages of traces that libraries print of a failed save: it is raised as well."""
    show = sys.unraisablehook

    def hook(unraisable):  # writes under way when the first of them failed
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    def wanted(record):
        return not record.exc_info or not {"orbax", "asyncio"} & set(Path(record.pathname).parts)

    loggers = logging.get_absl_logger(), standard_logging.getLogger("asyncio")
    sys.unraisablehook = hook
    for logger in loggers:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        sys.unraisablehook = show
        for logger in loggers:
            logger.removeFilter(wanted)


def _reason(error: Exception) -> str:
    """The end of a message of tensorstore, whose beginning is a chain of long paths."""
    text = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return text.rpartition(": ")[2].partition(" [")[0]


def _stored(state: State) -> State:
    """What is stored as the state: neither its moving average nor what factors change."""
    frozen = {name: tree for name, tree in (state.frozen or {}).items() if name != BASE}
    return state.replace(ema=None, frozen=frozen or None)


def _abstract(tree: Any) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf(x):  # without a sharding, a checkpoint of another number of devices cannot be read
        sharding = getattr(x, "sharding", None) or here
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)
