"""Methods of several stages: a list of changes to one config, each stage starting from the last.

    config.start_from = "digits"
    config.stages = [dict(name="4_steps", loss=dict(steps=4), ...), dict(name="2_steps", ...)]

Every stage is a training run of its own in `workdir/NAME`: its checkpoints, pictures and metrics
stay, it resumes like any run, and what is finished is not done again. A stage with a section
`pairs` first draws images from the network it starts from, and trains on those and their noise
(reflow); later stages with `data.name = "pairs"` do too.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.experimental import multihost_utils

from ddim_jax import checkpoints, experiment, parallel
from ddim_jax.checkpoints import lock
from ddim_jax.model import Model
from ddim_jax.training import around, loop, reflow_pairs, run_data, teacher
from ddim_jax.training.method import build
from ddim_jax.training.signals import StopOnSignal
from ddim_jax.training.state import TrainState


class Stage(NamedTuple):
    """A stage as it will run.

    Attributes:
        folder: its directory.
        config: resolved.
        model: without parameters.
        start: what it starts from, if anything; of an earlier stage, shapes are its parameters.
    """

    folder: Path
    config: ml_collections.ConfigDict
    model: Model
    start: Model | None


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> TrainState:
    """Trains all stages of a config, or its only one, continuing whatever is in `workdir`.

    Args:
        config: see `configs/`.
        workdir: directory of the run; stages get sub-directories.

    Returns:
        The state at the end, or where a signal stopped the run.

    Raises:
        FileNotFoundError: the data of a stage are not there, before the first one starts.
        ValueError: a stage or its data that cannot be, before the first one starts.
        NotFiniteError: see `loop.train`.
    """
    if not config.get("stages"):
        state = loop.train(config, workdir)
        if int(state.step) >= config.train.steps:
            StopOnSignal.stopped = False
        return state
    stages = split(config, Path(workdir))
    check_data(check(stages), config.stages)
    with lock.locked(Path(workdir)):
        return _train(stages)


def _train(stages: list) -> TrainState:
    """Trains the stages that are not finished; a signal stops after the step that it came in."""
    for number, (folder, stage) in enumerate(stages, 1):
        if jax.process_index() == 0:
            done = f"; {stages[number - 2][0]} is finished and can be drawn" if number > 1 else ""
            print(f"Stage {number} of {len(stages)}: {folder.name}{done}", flush=True)
        with _named(folder):
            _draw_pairs(stage)
            state = loop.train(stage, folder)
        if int(state.step) < stage.train.steps or (StopOnSignal.stopped and number < len(stages)):
            return state
    StopOnSignal.stopped = False
    return state


def split(config: ml_collections.ConfigDict, workdir: Path) -> list[tuple[Path, object]]:
    """The (directory, config) of every stage, of the pictures and classes of the first one's data.

    Raises:
        ValueError: a stage without a name, or two of one name.
    """
    if experiment.is_open(config):
        config = teacher.resolve(config, teacher.load(config))
    stages, before, drawn = [], config.get("start_from", ""), None
    for changes in config.stages:
        changes = dict(changes)
        name = changes.pop("name", "")
        if not name or name in [folder.name for folder, _ in stages]:
            raise ValueError(f"every stage needs a name of its own, got {name!r}")
        folder = workdir / name
        stage = config.copy_and_resolve_references()
        with stage.unlocked():
            del stage["stages"]
            stage.start_from = before
            if changes.get("loss", {}).get("name", stage.loss.name) != stage.loss.name:
                stage.loss = ml_collections.ConfigDict()  # the options were another method's
            stage.update(ml_collections.ConfigDict(changes))
            if "pairs" in changes:
                drawn = f"pairs:{folder / 'pairs'}"
                stage.data.name = "pairs"
            if stage.data.name == "pairs" and drawn is None:
                raise ValueError(
                    f"stage {name}: data.name is 'pairs', and no earlier stage draws any; give it "
                    "a section pairs=dict(count=...)"
                )
            stage.data.name = drawn if stage.data.name == "pairs" else stage.data.name
        stages.append((folder, stage))
        before = str(folder)
    return stages


def check(stages: list) -> list[Stage]:
    """Builds the parts of every stage, so that the last one's errors come before the first runs.

    Raises:
        ValueError: what is wrong, with the name of the stage.
    """
    before, built = teacher.load(stages[0][1]), []
    config = None if before is None else before.config
    for folder, stage in stages:
        with _named(folder):
            if options := dict(stage.get("pairs") or {}):
                reflow_pairs.check(before, options)
            stage = teacher.resolve(stage, before)
            method = build(stage, before, parallel.make_mesh())
            if config is not None:
                teacher.check(stage, config, method.loss.needs_teacher)
        built.append(Stage(folder, stage, method.model, before))
        shapes = jax.eval_shape(method.model.init, jax.random.key(0))
        before, config = method.model.replace(params=shapes), stage
    return built


def check_data(stages: list[Stage], changes: list) -> None:
    """Loads the data of every stage, so that what is wrong with the last one's is said at once.

    Pairs are yet to be drawn. Data of neighbours are loaded once if they are the same, and one
    stage's at a time are held.

    Args:
        stages: of `check`.
        changes: `config.stages`, whose fields messages name.

    Raises:
        FileNotFoundError: they are not there; with the name of the stage.
        ValueError: they do not fit; with the name of the stage.
    """
    start, held = stages[0].start, None
    names = () if start is None else start.inputs.class_names
    for number, (folder, stage, model, before) in enumerate(stages):
        if str(stage.data.name).startswith("pairs:"):
            continue
        with _named(folder, f"config.stages[{number}]", changes[number]):
            asked = stage.data.to_dict(), experiment.draws_clips(stage)
            if asked != held:
                source = None  # memory may not hold both
                source, held = experiment.load_data(stage), asked
            names = source.class_names if before is None else names
            with stage.unlocked():
                teacher.name_classes(stage, names)
            names = tuple(stage.data.get("class_names") or names)
            run_data.check(stage, source, before)
            around.check(stage, model, source)


@contextlib.contextmanager
def _named(folder: Path, place: str = "", changes: Mapping[str, Any] | None = None) -> Iterator:
    """Says in the message of an error which stage it is of, and which field of its own.

    Args:
        folder: of the stage.
        place: of its changes in the config.
        changes: its own; a field among them is set there, and no other place would help.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, loop.NotFiniteError) as error:
        kind = ValueError if isinstance(error, ValueError) else type(error)
        message = str(error)
        for path in _paths(changes or {}):
            message = re.sub(rf"\bconfig\.{re.escape(path)}(?!\w)", f"{place}.{path}", message)
        raise kind(f"stage {folder.name}: {message}") from error


def _paths(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The paths of all fields of nested sections."""
    for name, value in fields.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from _paths(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _draw_pairs(stage) -> None:
    options = dict(stage.get("pairs") or {})
    if options:
        folder, model = Path(stage.data.name.partition(":")[2]), checkpoints.load(stage.start_from)
        if jax.process_index() == 0:
            reflow_pairs.draw(model, folder, **options)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("pairs are drawn")
