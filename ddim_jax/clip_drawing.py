"""Draws clips window by window: from a first frame, longer than a window, between frames.

The frames of a clip lie on a line, and windows of as many as the model draws at once go along it.
Each is drawn beside what is known in it: the frames that are given, and of the window before the
last `overlap`.

    first_frame, from_clip     the first frames are given
    extend = T            as many frames as are drawn; without it those of one window
    interpolate = k       then k - 1 frames are drawn behind every one

How a window is made to agree with what is known in it is `known_by`:

    levels         the network is told that known frames are clean, of networks that have learnt a
                   level for each frame, see `editing/frames.py`
    replacement    known frames are noised to the level of the others, of any network
    repaint        the same, going back and forth

The noise that a frame starts from is that of its place in its clip, whatever the windows are.
Names: N clips of T frames; P clips of K frames are given.

Sources: Chen et al. 2024 (arXiv:2407.01392), section 3.3 (levels); Ho et al. 2022
(arXiv:2204.03458), section 3.1 (replacement); Lugmayr et al. 2022 (arXiv:2201.09865, repaint).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddim_jax import abilities, drawing, sampling
from ddim_jax.drawing import Drawing
from ddim_jax.editing import restoration
from ddim_jax.editing.frames import KnownFrames, known_frames
from ddim_jax.keys import Purpose, purpose_keys
from ddim_jax.names import check_range, lookup
from ddim_jax.recipe import ADAPTIVE, Recipe
from ddim_jax.sampling import Task
from ddim_jax.solvers import SolverTable

Array = Any
OPTIONS = ("first_frame", "from_clip", "extend", "overlap", "interpolate", "known_by")
"""What `Model.generate` hands to `plan`."""
TOLD = ("frame_rate", "alone")
"""What else it takes of clips: the network is told it."""
KNOWN_BY = ("levels", "replacement", "repaint")
RESAMPLINGS = 5
"""Of repaint: how often each stretch, a 25th of the steps, is drawn."""


class Plan(NamedTuple):
    """What is drawn window by window.

    Attributes:
        given: uint8 [P, K, H, W, C], first frames of the clips, in rotation; None for none.
        frames: T, before others are drawn between them.
        overlap: frames of a window that the next one knows.
        interpolate: how many frames there are at the end for each of the T.
        known_by: in `KNOWN_BY`.
    """

    given: np.ndarray | None
    frames: int
    overlap: int
    interpolate: int
    known_by: str


class Stage(NamedTuple):
    """Windows along one line of frames.

    Attributes:
        known: bool [T], the frames that are there at first.
        window: frames of a window.
        starts: where windows begin.
    """

    known: np.ndarray
    window: int
    starts: tuple[int, ...]


def plan(model: Any, asked: Mapping[str, Any]) -> Plan | None:
    """What is asked for beyond one window of noise, checked; None for nothing.

    Args:
        model: a `Model`, at the frames of a window.
        asked: of `OPTIONS`, those that are not None. `first_frame`: uint8 [H, W, C] or
            [P, H, W, C]; `from_clip`: uint8 [K, H, W, C] or [P, K, H, W, C].

    Raises:
        ValueError: a model of pictures, or of clips at one level with known_by="levels"; pictures
            of another shape; numbers of frames that do not fit.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return None
    window, named = model.codec.frames, ", ".join(asked)
    if not window:
        raise ValueError(
            f"{model.name} draws pictures, and {named} needs a network of clips: use a checkpoint "
            "of one, such as --config=moving_digits trains"
        )
    if not set(asked) & {"first_frame", "from_clip", "extend", "interpolate"}:
        raise ValueError(
            f"{named} is of frames that are known: give first_frame, from_clip, extend or "
            "interpolate"
        )
    given, between = _given(model, asked), asked.get("interpolate", 1)
    if "interpolate" in asked:
        between = check_range("interpolate", between, "[2, 64]", "2: one between", whole=True)
    frames = length(model, asked, 0 if given is None else given.shape[1])
    found = Plan(given, frames, window // 2, between, known_by(model, asked))
    if window == 1:
        raise ValueError(f"frames must be at least 2 where some are known ({named}), got 1")
    if "overlap" in asked:
        most = f"[1, {window - 1}]"
        hint = f"windows have {window} frames, and half of them is usual"
        found = found._replace(
            overlap=check_range("overlap", asked["overlap"], most, hint, whole=True)
        )
    return found


def asked(model: Any, known: Mapping[str, Any]) -> int:
    """How many clips the given frames are of; 0 if there are none."""
    found = plan(model, known)
    return 0 if found is None or found.given is None else len(found.given)


def _given(model: Any, asked: Mapping[str, Any]) -> np.ndarray | None:
    """The frames that are given, [P, K, H, W, C]."""
    kinds = [name for name in ("first_frame", "from_clip") if name in asked]
    if not kinds:
        return None
    if len(kinds) > 1:
        raise ValueError("first_frame and from_clip both say how clips begin: give one of them")
    (kind,) = kinds
    array, shape = np.asarray(asked[kind]), tuple(model.codec.picture_shape[-3:])
    if kind == "first_frame" and array.ndim in (3, 4):
        array = array[None, None] if array.ndim == 3 else array[:, None]
    array = array[None] if array.ndim == 4 else array
    if array.ndim != 5 or array.dtype != np.uint8 or not len(array) or array.shape[2:] != shape:
        raise ValueError(
            f"{kind} must be uint8 frames [..., {', '.join(map(str, shape))}], as {model.name} "
            f"draws them, got {array.dtype} {list(np.shape(asked[kind]))}; resize=True crops and "
            "resizes what is read from a file, data.images.fit other pictures"
        )
    return array


def length(model: Any, asked: Mapping[str, Any], known: int) -> int:
    """How many frames there are, before others are drawn between them.

    Args:
        model: as of `plan`.
        asked: as of `plan`; of the frames that are given only their name counts.
        known: how many frames are given.

    Raises:
        ValueError: fewer than are known, or than a window has.
    """
    window = model.codec.frames
    between = "interpolate" in asked
    if "extend" not in asked:
        frames = known if between and "from_clip" in asked else window
    else:
        frames = check_range("extend", asked["extend"], "[1, 65536]", "64 is usual", whole=True)
        if frames < window:
            raise ValueError(
                f"extend must be at least the {window} frames of a window, got {frames}; "
                f"frames={frames} draws them at once"
            )
    if known > frames or (known == frames and not between):
        raise ValueError(
            f"the clip has {known} frames, and {frames} are to be drawn; say how many by extend, "
            "or draw between them by interpolate=2"
        )
    return frames


def known_by(model: Any, asked: Mapping[str, Any]) -> str:
    """How known frames are told: what is asked for, or "levels"; ValueError if it cannot be."""
    way = asked.get("known_by", "levels")
    lookup(dict.fromkeys(KNOWN_BY), way, "known_by")
    if way == "levels" and not knows_levels(model):
        raise ValueError(
            f"{model.name} has learnt one noise level for a whole clip, so it cannot be told which "
            "frames are known: take known_by=replacement, or train it with "
            "config.loss.frame_levels=(0.55,0.25), a student with config.loss.known=0.3"
        )
    return way


def knows_levels(model: Any) -> bool:
    """Whether a network of clips was trained on clips of which some frames are known."""
    loss = model.config.get("loss") or {}
    shares = loss.get("frame_levels")
    return bool((shares and shares[0] < 1) or loss.get("known"))


def draw(
    model: Any,
    recipe: Recipe,
    index: np.ndarray,
    label: Any,
    told: dict[str, Any],
    plan: Plan,
    *,
    seed: int,
    batch_size: int,
    progress: bool,
    parallel: str,
) -> Drawing:
    """Draws what a plan says; `label` as of `Model.draw`, the rest as of `drawing.generate`.

    Raises:
        ValueError: a recipe without a table; no label, for a network that needs one.
    """
    labels = _labels(model, plan, label, len(index))
    table, task = table_and_task(model, recipe, plan.known_by)
    along, count = stages(plan, model.codec.frames), len(index)
    keys, x = sampling.sample_keys(seed, index), _beginning(model, plan, index)
    kept = plan.known_by != "levels" and (table.deterministic or model.frame_noise is not None)
    null = model.inputs.num_classes and labels is None
    classes = model.null_labels(count) if null else labels
    rate = told.get("frame_rate")
    rate = np.asarray(model.frame_rate if rate is None else rate)
    windows, spent = 0, np.zeros(2)
    total = sum(len(stage.starts) for stage in along) * -(-count // batch_size) * table.nfe
    options = {"task": task} | ({"progress": drawing.tick} if progress else {})
    with drawing.bar(total, "eval", progress):
        for known, size, starts in along:
            generator = model.sized(None, size).kept_generator(recipe, parallel, **options)
            faster = told | {"frame_rate": rate * (len(known) // plan.frames)}
            given = model.conditions(count, recipe, classes, table, **faster)
            given |= {"seed": seed, "batch_size": batch_size}
            before = np.array([generator.compile_seconds, generator.seconds])
            own = _keys(keys, windows)
            noise = sampling.initial_noise(own, (len(known), *x.shape[2:]), model.frame_noise)
            x, known = _on_line(x, known), known.copy()
            for first in starts:
                here = slice(first, first + size)
                data = _known(plan.known_by, x[:, here], known[here], noise[:, here], kept)
                parts = generator.batches(
                    table, index, x=noise[:, here], known=data, keys=_keys(keys, windows), **given
                )
                drawn = np.concatenate([part.result.x for part in parts])
                x[:, here] = np.where(_spread(known[here]), x[:, here], drawn)
                known[here], windows = True, windows + 1
            spent += np.array([generator.compile_seconds, generator.seconds]) - before
    pictures = model.sized(None, x.shape[1]).pictures(x)
    if plan.given is not None:  # latents know them only nearly
        each = len(plan.given[0]) * plan.interpolate
        pictures[:, : each : plan.interpolate] = plan.given[index % len(plan.given)]
    return Drawing(pictures, labels, None, np.full(count, table.nfe * windows), *spent.tolist())


def _labels(model: Any, plan: Plan, label: Any, count: int) -> np.ndarray | None:
    """Labels [N]; None where frames are given and no label is: they are of a class of their own."""
    if plan.given is None or (label is not None and np.size(label)):
        return model.inputs.labels(label, count)
    if model.inputs.num_classes and not abilities.knows_null(model):
        raise ValueError(
            f"{model.name} was trained without label dropout, so it goes on from frames of a class "
            f"that it is told alone: give labels, 0..{model.inputs.num_classes - 1}"
        )
    return None


def table_and_task(model: Any, recipe: Recipe, known_by: str) -> tuple[SolverTable, Task]:
    """The table of a recipe, of "repaint" its own; and the task of agreeing with known frames.

    Raises:
        ValueError: a recipe without a table.
    """
    if recipe.solver == ADAPTIVE:
        raise ValueError(
            "known frames are put in at the rows of a table, and solver=adaptive has none: take "
            "another, such as ddim"
        )
    table = drawing.padded(model, recipe.table(model.schedule))
    if known_by == "levels":
        return table, known_frames(model.schedule)
    if known_by == "repaint":
        times = recipe.bare_times(model.schedule, "repaint")
        jump = max(1, (len(times) - 1) // 25)
        table = restoration.repaint(model.schedule, times, jump, RESAMPLINGS)
    return table, _replacement()


@functools.cache  # one task, one program
def _replacement() -> Task:
    return restoration.replacement()


def stages(plan: Plan, window: int) -> list[Stage]:
    """The lines of frames along which a plan goes: of its frames, and then with those between."""
    known = 0 if plan.given is None else plan.given.shape[1]
    lines = [np.arange(plan.frames) < known] if known < plan.frames else []
    if plan.interpolate > 1:
        lines.append(np.arange(plan.frames * plan.interpolate) % plan.interpolate == 0)
    return [
        Stage(line, min(window, len(line)), starts(line, window, plan.overlap)) for line in lines
    ]


def starts(known: np.ndarray, window: int, overlap: int) -> tuple[int, ...]:
    """Where windows begin that draw what is not known of a line [T]; the last ends at its end."""
    last, known, found = max(0, len(known) - window), known.copy(), []
    for first in (*range(0, last, window - overlap), last):
        if not known[first : first + window].all():
            found.append(first)
            known[first : first + window] = True
    return tuple(found)


def _beginning(model: Any, plan: Plan, index: np.ndarray) -> np.ndarray:
    """Samples [N, K, h, w, C] of the given frames, those of clip i by its place in the set."""
    if plan.given is None:
        return np.zeros((len(index), 0, *model.sample_shape[1:]), np.float32)
    codec = model.codec.at(*model.codec.size, plan.given.shape[1])
    x = np.asarray(codec.encode(codec.params, plan.given, None), np.float32)
    return x[np.asarray(index) % len(x)]


def _on_line(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Frames x [N, K, ...] at the K places of a line [T] that are known, zeros at the others."""
    line = np.zeros((len(x), len(known), *x.shape[2:]), np.float32)
    line[:, known] = x
    return line


def _keys(keys: Array, windows: int) -> Array:
    """Keys of a window: of the first those of the clips."""
    return purpose_keys(keys, Purpose.WINDOW, windows) if windows else keys


def _known(way: str, x: np.ndarray, known: np.ndarray, noise: Array, kept: bool) -> Any:
    """What the task of a window is told."""
    if way == "levels":
        return KnownFrames(x, np.broadcast_to(known, x.shape[:2]))
    mask = np.broadcast_to(_spread(known), (*x.shape[:2], 1, 1, 1)).astype(np.float32)
    return restoration.Known(x, mask, noise if kept else None)


def _spread(known: np.ndarray) -> np.ndarray:
    """Frames [T] to go with clips [N, T, H, W, C]."""
    return known[None, :, None, None, None]
