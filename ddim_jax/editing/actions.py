"""The editing commands, `(model, args) -> None`: each writes a picture and its numbers.

`edit.py` parses their flags; `inpainting.py` has the command `inpaint`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddim_jax import checkpoints, codecs, command_line, files, keys, provenance
from ddim_jax.editing import latents, pictures
from ddim_jax.editing.editor import Editor, squared_error
from ddim_jax.editing.inversion import RoundTrip, round_trip
from ddim_jax.editing.judging import judge
from ddim_jax.editing.pictures import read, write
from ddim_jax.editing.sdedit import sdedit_table
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe, parse_stride

Array = np.ndarray


def make_editor(model: Model, args: argparse.Namespace, guidance_scale: float = 1.0) -> Editor:
    """The editor that the flags describe, with this guidance where they say none."""
    scale = guidance_scale if args.guidance_scale is None else args.guidance_scale
    batch_size = command_line.batch_size(args.batch_size, model)
    return Editor(model, guidance_scale=scale, batch_size=batch_size)


def told(model: Model, args: argparse.Namespace, texts: list[str] | None = None) -> dict[str, Any]:
    """`--prompt`, or other texts, and `--negative_prompt` for `Editor`, encoded once.

    Raises:
        ValueError: texts for a network that takes none.
    """
    given = texts or command_line.prompts(args.prompt)
    if not model.inputs.takes("text"):
        if given or args.negative_prompt is not None:
            raise ValueError(
                f"{model.name} is told no text: leave out --prompt and --negative_prompt"
            )
        return {}
    return {"prompt": model.inputs.told(given or "", args.negative_prompt)}


def span(model: Model) -> float:
    """Of samples, for `squared_error`."""
    return 1.0 if model.draws_latents else 2.0


def own_recipe(model: Model, args: argparse.Namespace) -> Recipe:
    """`--solver` on `--stride` in `--steps`; of latents the model's own where they say nothing."""
    solver = getattr(args, "solver", None)
    if solver is None and model.draws_latents:
        stride = parse_stride(args.stride) if args.stride else {}
        return model.recipe.replace(steps=single_steps(args), **stride)
    return table_recipe(args, solver or "dpm_solver++_2m")


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
    given = {"refinements": args.refinements, "iterations": args.iterations}
    options = {name: value for name, value in given.items() if value is not None}
    steps = single_steps(args) if steps is None else steps
    return round_trip(model.schedule, args.method, steps, args.stride, **options)


def _code_trip(model: Model, args: argparse.Namespace) -> RoundTrip:
    """The inversion of a command that changes the latents."""
    trip = _round_trip(model, args)
    if trip.iterations:
        raise ValueError(
            f"--method=null_text fits null texts to one picture, and {args.command} makes others; "
            "use fixed_point, bdia or edict"
        )
    return trip


def start_noise(model: Model, args: argparse.Namespace, index: Any) -> Array:
    """The noises of `--seed` at these places, as `sample.py` starts from them."""
    of_samples = keys.sample_keys(args.seed, np.asarray(index))
    return np.asarray(keys.initial_noise(of_samples, model.sample_shape))


def invert(model: Model, args: argparse.Namespace) -> None:
    """Inverts images and draws them again; several --steps make a table and a plot."""
    x, labels = read(model, args)
    editor, table, rows, texts = make_editor(model, args), [], {"image": x}, told(model, args)
    trips = {steps: _round_trip(model, args, steps) for steps in args.steps}
    for steps, trip in trips.items():
        state, residual, nulls = editor.invert(trip, x, labels, **texts)
        redrawn = editor.draw(trip.down, state, labels, nulls=nulls, **texts)
        rows[f"{steps} steps"], errors = redrawn, squared_error(x, redrawn, span(model))
        numbers = {
            "steps": steps,
            "evaluations": trip.up.nfe + trip.down.nfe,
            "mean_squared_error": float(errors.mean()),
            "greatest_difference": float(np.abs(x - redrawn).max() / span(model)),
            "latent_std": float(np.std(state.evaluate)),
            "residual": None if residual is None else float(residual.mean()),
            "errors": errors.tolist(),
        }
        table.append(numbers)
        print(pictures.summary(numbers), flush=True)
    if args.latents:
        arrays = {"latents": state.evaluate, "base": state.base, "steps": args.steps[-1]}
        arrays |= {} if nulls is None else {"null_texts": nulls.text, "null_times": nulls.t}
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
    noise = start_noise(model, args, np.arange(args.num))
    labels, texts = model.inputs.labels(args.label, args.num), told(model, args)
    editor, table = make_editor(model, args), []
    tables = {str(steps): _round_trip(model, args, steps).down for steps in args.steps}
    rows = {name: editor.draw(down, noise, labels, **texts) for name, down in tables.items()}
    finest = rows[str(args.steps[-1])]
    for name, drawn in rows.items():
        pairs = zip(drawn.reshape(args.num, -1), finest.reshape(args.num, -1), strict=True)
        correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])
        distance = float(np.sqrt(squared_error(finest, drawn, span(model)).mean()))
        table.append({"steps": int(name), "distance": distance, "correlation": float(correlation)})
        print(pictures.summary(table[-1]))
    write(model, args, rows, {"method": args.method, "images": args.num, "table": table})


def interpolate(model: Model, args: argparse.Namespace) -> None:
    """Walks between images, noises or prompts: a chain, or a grid between four."""
    editor, trip, texts = make_editor(model, args), _code_trip(model, args), told(model, args)
    if args.grid and texts and len(texts["prompt"]["text"]) > 1:
        raise ValueError("--grid walks between images or noises; give one --prompt")
    if args.seeds:
        ends = start_noise(model, args, args.seeds)
    else:
        ends = editor.invert(trip, read(model, args)[0], args.label, **texts).state.evaluate
    between = latents.PATHS[args.between]
    if args.grid:
        path = latents.grid(ends, args.grid, args.grid).reshape(-1, *ends.shape[1:])
    else:
        ends, texts = _walk_of_prompts(ends, texts, args.frames, between)
        path = latents.chain(ends, args.frames)
    drawn = editor.draw(trip.down, path, args.label, **texts)
    step = np.sqrt(squared_error(drawn[1:], drawn[:-1], span(model)))
    numbers = {"frames": len(drawn), "greatest_step": float(step.max()), "step": step.tolist()}
    columns = args.grid or args.frames
    rows = np.split(drawn, range(columns, len(drawn), columns))
    if not (args.grid or str(args.out).endswith(".gif")):
        del rows[-1]  # the last end alone
    rows = {str(i): row for i, row in enumerate(rows)}
    write(model, args, rows, numbers, columns)


def _walk_of_prompts(ends: Array, texts: dict, frames: int, between: Any) -> tuple[Array, dict]:
    """Ends of a walk and what is told along it, if that is more than one prompt."""
    rows = texts.get("prompt", {})
    count = len(rows["text"]) if rows else 1
    if count == 1:
        return ends, texts
    if len(ends) == 1:
        ends = np.repeat(ends, count, 0)
    if len(ends) != count:
        raise ValueError(
            f"a walk between {count} prompts needs one noise or image, or one for each, got "
            f"{len(ends)}"
        )

    def walked(values: Any) -> Array:
        values = np.asarray(values)
        flat = values.reshape(count, 1, -1, values.shape[-1])  # one text as one vector
        path = np.asarray(latents.chain(flat, frames, between))
        return path.reshape(len(path), *values.shape[1:])

    return ends, {"prompt": jax.tree.map(walked, rows, is_leaf=lambda leaf: hasattr(leaf, "dtype"))}


def arithmetic(model: Model, args: argparse.Namespace) -> None:
    """Adds the difference of two sets of images to others."""
    toward, away = (read(model, args, images)[0] for images in (args.toward, args.away))
    _add_direction(model, args, toward, away)


def attribute(model: Model, args: argparse.Namespace) -> None:
    """Adds a direction that is learned from classes, or from how bright images are."""
    x, labels = read(model, args, first=args.learn_from)
    if args.by == "ink":
        brightness = _brightness(model, x)
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


def _brightness(model: Model, x: Array) -> Array:
    """[N] mean pixel of samples, in -1..1."""
    x = codecs.to_unit_range(model.pictures(x)) if model.draws_latents else x
    return x.reshape(len(x), -1).mean(axis=1)


def _add_direction(model: Model, args: argparse.Namespace, toward: Array, away: Array) -> None:
    """Adds the direction from the latents of some images to those of others, in `--strength`s."""
    editor, trip = make_editor(model, args), _code_trip(model, args)
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
        "mean_brightness": {
            name: float(_brightness(model, row).mean()) for name, row in rows.items()
        },
    }
    write(model, args, rows, numbers | judge(model, rows))


def translate(model: Model, args: argparse.Namespace) -> None:
    """Inverts under one label, prompt or model, and draws under another (dual bridges)."""
    if args.toward is None and not args.target:
        raise ValueError(
            "translate needs --toward, a class, or --target, another checkpoint; of a network with "
            "texts --toward is a prompt"
        )
    x, labels = read(model, args)
    editor, trip, texts = make_editor(model, args), _round_trip(model, args), told(model, args)
    target, target_trip = editor, trip
    if args.target:
        other = checkpoints.load(args.target, dtype=args.dtype)
        target = make_editor(other.sized(command_line.size(args.size)), args)
        target_trip = _round_trip(target.model, args)
        shapes = [list(one.sample_shape) for one in (target.model, model)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"--target={args.target} draws samples of shape {shapes[0]} and {model.name} of "
                f"{shapes[1]}; noise goes from one to the other only where these are equal"
            )
    inputs, target_texts = target.model.inputs, {}
    target_labels = labels if inputs.num_classes == model.inputs.num_classes else None
    if inputs.takes("text"):
        toward = None if args.toward is None else command_line.prompts([args.toward])
        target_texts = told(target.model, args, toward)
    elif args.toward is not None:  # else the same classes, if the other model has them
        target_labels = inputs.labels(args.toward, len(x))
    found = editor.invert(trip, x, labels, **texts)
    translated = target.draw(
        target_trip.down, found.state, target_labels, nulls=found.nulls, **target_texts
    )
    found = target.invert(target_trip, translated, target_labels, **target_texts)
    returned = editor.draw(trip.down, found.state, labels, nulls=found.nulls, **texts)
    if model.draws_latents:  # of the target's autoencoder
        translated = target.model.pictures(translated)
    rows = {"image": x, "translated": translated, "and back": returned}
    error = float(squared_error(x, returned, span(model)).mean())
    numbers = {"steps": args.steps[0], "cycle_error": error}
    write(model, args, rows, numbers | judge(model, rows))


def sdedit(model: Model, args: argparse.Namespace) -> None:
    """Noises images part of the way, and draws from there."""
    if model.inputs.channels:
        raise ValueError(
            f"{model.name} is told what to keep of a picture: use inpaint, which takes --strength "
            "too"
        )
    x, labels = read(model, args)
    recipe, texts = own_recipe(model, args), told(model, args)
    tables = {f"{s:g}": sdedit_table(model.schedule, recipe, s) for s in args.strength}
    scale = model.recipe.guidance_scale if model.draws_latents else 1.0
    editor, rows, seen = make_editor(model, args, scale), {"image": x}, {}
    for name, table in tables.items():
        same = seen.setdefault((table.nfe, *table.start), name)
        equal = "" if same == name else f", the same steps as strength {same}"
        print(f"strength {name}: {table.nfe} evaluations{equal}", flush=True)
        rows[name] = editor.draw(table, x, labels, seed=args.seed, **texts)
    unit = span(model)
    distances = {name: float(squared_error(x, row, unit).mean()) for name, row in rows.items()}
    numbers = {"solver": recipe.solver, "mean_squared_difference": distances}
    numbers["evaluations"] = {name: table.nfe for name, table in tables.items()}
    write(model, args, rows, numbers)
