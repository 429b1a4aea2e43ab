"""The editing commands, `(model, args) -> None`: each writes a picture and its numbers.

`edit.py` parses their flags; `inpainting.py` has the command `inpaint`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import checkpoints, files, keys, provenance
from ddim_jax.editing import latents, pictures
from ddim_jax.editing.editor import Editor, squared_error
from ddim_jax.editing.inversion import RoundTrip, round_trip
from ddim_jax.editing.judging import judge
from ddim_jax.editing.pictures import read, write
from ddim_jax.editing.sdedit import sdedit_table
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe, parse_stride

Array = np.ndarray


def make_editor(model: Model, args: argparse.Namespace) -> Editor:
    """The editor that the flags describe."""
    return Editor(model, guidance_scale=args.guidance_scale, batch_size=args.batch_size)


def single_steps(args: argparse.Namespace) -> int:
    """`--steps` of a command that takes one number."""
    if len(args.steps) > 1:
        raise ValueError(f"{args.command} takes one number of --steps, got {args.steps}")
    return args.steps[0]


def table_recipe(args: argparse.Namespace, solver: str, **options: Any) -> Recipe:
    """The recipe of a solver with these options, on `--stride` in its one number of `--steps`."""
    stride = parse_stride(args.stride or "uniform")
    return Recipe(solver, steps=single_steps(args), solver_options=options, **stride)


def _round_trip(model: Model, args: argparse.Namespace, steps: int | None = None) -> RoundTrip:
    """The inversion that the flags describe; its steps default to the only `--steps`."""
    options = {} if args.refinements is None else {"refinements": args.refinements}
    steps = single_steps(args) if steps is None else steps
    return round_trip(model.schedule, args.method, steps, args.stride, **options)


def _noise(model: Model, args: argparse.Namespace, index: Any) -> Array:
    """The noises of `--seed` at these places, as `sample.py` starts from them."""
    of_samples = keys.sample_keys(args.seed, np.asarray(index))
    return np.asarray(keys.initial_noise(of_samples, model.sample_shape))


def invert(model: Model, args: argparse.Namespace) -> None:
    """Inverts images and draws them again; several --steps make a table and a plot."""
    x, labels = read(model, args)
    editor, table, rows = make_editor(model, args), [], {"image": x}
    trips = {steps: _round_trip(model, args, steps) for steps in args.steps}
    for steps, trip in trips.items():
        state, residual = editor.invert(trip, x, labels)
        redrawn = rows[f"{steps} steps"] = editor.draw(trip.down, state, labels)
        errors = squared_error(x, redrawn)
        numbers = {
            "steps": steps,
            "evaluations": trip.up.nfe + trip.down.nfe,
            "mean_squared_error": float(errors.mean()),
            "greatest_difference": float(np.abs(x - redrawn).max() / 2),
            "latent_std": float(np.std(state.evaluate)),
            "residual": None if residual is None else float(residual.mean()),
            "errors": errors.tolist(),
        }
        table.append(numbers)
        print(pictures.summary(numbers), flush=True)
    if args.latents:
        arrays = {"latents": state.evaluate, "base": state.base, "steps": args.steps[-1]}
        arrays |= {provenance.NPZ: json.dumps(pictures.about_edit(model, args))}
        files.save(Path(args.latents), lambda file: np.savez(file, **arrays))
    if len(table) > 1:
        _plot_errors(args, table)
    write(model, args, rows, {"method": args.method, "images": len(x), "table": table})


def _plot_errors(args: argparse.Namespace, table: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    title, y = f"round trip by {args.method}", "mean squared error, pixels in 0..1"
    axes = figure.add_subplot(xlabel="steps", ylabel=y, title=title)
    axes.loglog([r["steps"] for r in table], [r["mean_squared_error"] for r in table], "o-")
    axes.grid(alpha=0.3, which="both")
    path = files.next_free(pictures.folder_of(args), "invert_error")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


def compare(model: Model, args: argparse.Namespace) -> None:
    """Draws the same noises in several numbers of steps, and measures how the pictures differ."""
    noise = _noise(model, args, np.arange(args.num))
    labels = model.inputs.labels(args.label, args.num)
    editor, table = make_editor(model, args), []
    tables = {str(steps): _round_trip(model, args, steps).down for steps in args.steps}
    rows = {name: editor.draw(down, noise, labels) for name, down in tables.items()}
    finest = rows[str(args.steps[-1])]
    for name, drawn in rows.items():
        pairs = zip(drawn.reshape(args.num, -1), finest.reshape(args.num, -1), strict=True)
        correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])
        distance = float(np.sqrt(squared_error(finest, drawn).mean()))
        table.append({"steps": int(name), "distance": distance, "correlation": float(correlation)})
        print(pictures.summary(table[-1]))
    write(model, args, rows, {"method": args.method, "images": args.num, "table": table})


def interpolate(model: Model, args: argparse.Namespace) -> None:
    """Walks between images or noises: a chain, or a grid between four."""
    editor, trip = make_editor(model, args), _round_trip(model, args)
    if args.seeds:
        ends = _noise(model, args, args.seeds)
    else:
        ends = editor.invert(trip, read(model, args)[0], args.label).state.evaluate
    if args.grid:
        path = latents.grid(ends, args.grid, args.grid).reshape(-1, *ends.shape[1:])
    else:
        path = latents.chain(ends, args.frames)
    drawn = editor.draw(trip.down, path, args.label)
    step = np.sqrt(squared_error(drawn[1:], drawn[:-1]))
    numbers = {"frames": len(drawn), "greatest_step": float(step.max()), "step": step.tolist()}
    columns = args.grid or args.frames
    rows = np.split(drawn, range(columns, len(drawn), columns))
    if not (args.grid or str(args.out).endswith(".gif")):
        del rows[-1]  # the last end alone
    rows = {str(i): row for i, row in enumerate(rows)}
    write(model, args, rows, numbers, columns)


def arithmetic(model: Model, args: argparse.Namespace) -> None:
    """Adds the difference of two sets of images to others."""
    toward, away = (read(model, args, images)[0] for images in (args.toward, args.away))
    _add_direction(model, args, toward, away)


def attribute(model: Model, args: argparse.Namespace) -> None:
    """Adds a direction that is learned from classes, or from how bright images are."""
    x, labels = read(model, args, first=args.learn_from)
    if args.by == "ink":
        brightness = x.reshape(len(x), -1).mean(axis=1)
        low, high = np.quantile(brightness, (0.25, 0.75))
        sides = brightness > high, brightness < low
    else:
        toward, colon, away = args.by.partition(":")
        if labels is None or not colon:
            raise ValueError(
                f"--by must be ink, or two classes of labelled images like 7:1, got {args.by}"
            )
        sides = [labels == number for number in model.inputs.labels([toward, away], 2)]
    if not all(side.any() for side in sides):
        raise ValueError(
            f"--by={args.by} finds no images on one side among {len(x)}; raise --learn_from"
        )
    _add_direction(model, args, x[sides[0]], x[sides[1]])


def _add_direction(model: Model, args: argparse.Namespace, toward: Array, away: Array) -> None:
    """Adds the direction from the latents of some images to those of others, in `--strength`s."""
    editor, trip = make_editor(model, args), _round_trip(model, args)
    x, _ = read(model, args)
    ends = editor.invert(trip, np.concatenate([toward, away])).state.evaluate
    positive = np.arange(len(ends)) < len(toward)
    if args.probe:
        direction = latents.probe_direction(ends, positive)
    else:
        direction = latents.mean_direction(ends[positive], ends[~positive])
    if args.random:
        direction = latents.random_direction(keys.key(args.seed), direction)
    start, rows = editor.invert(trip, x).state.evaluate, {"image": x}
    for strength in args.strength:
        moved = latents.add(start, direction, strength)
        rows[f"{strength:+g}"] = editor.draw(trip.down, moved)
    numbers = {
        "toward": len(toward),
        "away": len(away),
        "direction": "random" if args.random else "probe" if args.probe else "mean",
        "norm": float(np.linalg.norm(direction)),
        "mean_brightness": {name: float(np.mean(row)) for name, row in rows.items()},
    }
    write(model, args, rows, numbers | judge(model, rows))


def translate(model: Model, args: argparse.Namespace) -> None:
    """Inverts under one label or model, and draws under another (dual diffusion bridges)."""
    if args.toward is None and not args.target:
        raise ValueError("translate needs --toward, a class, or --target, another checkpoint")
    x, labels = read(model, args)
    editor, trip = make_editor(model, args), _round_trip(model, args)
    target, target_trip = editor, trip
    if args.target:
        target = make_editor(checkpoints.load(args.target), args)
        target_trip = _round_trip(target.model, args)
    inputs = target.model.inputs
    if args.toward is not None:
        target_labels = inputs.labels(args.toward, len(x))
    else:  # the same classes, if the other model has them
        target_labels = labels if inputs.num_classes == model.inputs.num_classes else None
    state = editor.invert(trip, x, labels).state
    translated = target.draw(target_trip.down, state, target_labels)
    state = target.invert(target_trip, translated, target_labels).state
    returned = editor.draw(trip.down, state, labels)
    rows = {"image": x, "translated": translated, "and back": returned}
    numbers = {"steps": args.steps[0], "cycle_error": float(squared_error(x, returned).mean())}
    write(model, args, rows, numbers | judge(model, rows))


def sdedit(model: Model, args: argparse.Namespace) -> None:
    """Noises images part of the way, and draws from there."""
    x, labels = read(model, args)
    recipe = table_recipe(args, args.solver)
    tables = {f"{s:g}": sdedit_table(model.schedule, recipe, s) for s in args.strength}
    editor, rows, seen = make_editor(model, args), {"image": x}, {}
    for name, table in tables.items():
        same = seen.setdefault((table.nfe, *table.start), name)
        equal = "" if same == name else f", the same steps as strength {same}"
        print(f"strength {name}: {table.nfe} evaluations{equal}", flush=True)
        rows[name] = editor.draw(table, x, labels, seed=args.seed)
    distances = {name: float(squared_error(x, row).mean()) for name, row in rows.items()}
    numbers = {"solver": args.solver, "mean_squared_difference": distances}
    numbers["evaluations"] = {name: table.nfe for name, table in tables.items()}
    write(model, args, rows, numbers)
