"""The editing commands, `(model, args) -> None`: each writes a picture and its numbers.

`edit.py` parses their flags; `inpainting.py` has the command `inpaint`, `directions.py` those that
add a direction.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddim_jax import checkpoints, command_line, files, keys, provenance
from ddim_jax.editing import latents, pictures
from ddim_jax.editing.editor import Editor, squared_error
from ddim_jax.editing.inversion import RoundTrip, round_trip
from ddim_jax.editing.judging import judge
from ddim_jax.editing.pictures import Asked, read, write
from ddim_jax.editing.sdedit import sdedit_table
from ddim_jax.editing.text_features import told_features
from ddim_jax.inputs import Inputs, warn_unguided
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe, parse_stride

Array = np.ndarray
GUIDANCE = ("guidance_scale", "guidance_interval", "guidance_rescale", "guidance_channels")
"""What of a recipe is guidance."""
PAIRS = ("bdia", "edict")
"""Inversions whose latent is a pair of points: one of them does not draw the image."""


def make_editor(model: Model, args: argparse.Namespace, own: bool = False) -> Editor:
    """The editor that the flags describe, without guidance where they say none.

    Its model is told texts by their features: `told` is to encode them for that one.

    Args:
        model: the model.
        args: `guidance_scale` and `batch_size`.
        own: the guidance is that of the model's recipe, of which the flag replaces the scale.
    """
    guidance = {name: getattr(model.recipe, name) for name in GUIDANCE} if own else {}
    if args.guidance_scale is not None:
        guidance["guidance_scale"] = args.guidance_scale
    batch_size = command_line.batch_size(args.batch_size, model)
    return Editor(told_features(model), batch_size=batch_size, **guidance)


def apart(args: argparse.Namespace) -> dict[str, Any]:
    """Of clips `--alone`, for `Editor`."""
    return {"alone": True} if vars(args).get("alone") else {}


def told(editor: Editor, args: argparse.Namespace, texts: Sequence[str]) -> dict[str, Any]:
    """Texts, in rotation, and `--negative_prompt` for an editor, encoded once; of clips `--alone`.

    It warns of a negative prompt that no guidance leads away from.

    Raises:
        ValueError: `--prompt` or `--negative_prompt` for a network that takes none.
    """
    model, given = editor.model, vars(args)  # some commands do not have these flags
    negative = command_line.negative_prompt(given.get("negative_prompt"))
    if not model.inputs.takes("text"):
        if given.get("prompt") or negative is not None:
            raise ValueError(
                f"{model.name} is told no text: leave out --prompt and --negative_prompt"
            )
        return apart(args)
    if negative and not editor.guided and given.get("toward_guidance") in (None, 1):
        warn_unguided(negative)
    return apart(args) | {"prompt": model.inputs.told(list(texts) or "", negative)}


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


def code_trip(model: Model, args: argparse.Namespace) -> RoundTrip:
    """The inversion of a command that changes the latents.

    Raises:
        ValueError: one whose latents are a pair of points, of which paths and directions change
            one; null-text inversion.
    """
    trip = _round_trip(model, args)
    if trip.iterations:
        raise ValueError(
            f"--method=null_text fits null texts to one picture, and {args.command} makes others; "
            "use fixed_point or ddim"
        )
    if args.method in PAIRS:
        raise ValueError(
            f"--method={args.method} inverts to a pair of points, and {args.command} changes one; "
            "use fixed_point or ddim"
        )
    return trip


def start_noise(model: Model, args: argparse.Namespace, index: Any) -> Array:
    """The noises of `--seed` at these places, as `sample.py` starts from them."""
    of_samples = keys.sample_keys(args.seed, np.asarray(index))
    return np.asarray(model.initial_noise(of_samples))


def invert(model: Model, args: argparse.Namespace) -> None:
    """Inverts images and draws them again; several --steps make a table and a plot."""
    x, labels, texts = read(model, args)
    asked = Asked.of(model.inputs, len(x), labels, texts)
    editor, table, rows = make_editor(model, args), [], {"image": x}
    given = told(editor, args, texts)
    trips = {steps: _round_trip(model, args, steps) for steps in args.steps}
    for steps, trip in trips.items():
        state, residual, nulls = editor.invert(trip, x, labels, **given)
        redrawn = editor.draw(trip.down, state, labels, nulls=nulls, **given)
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
    numbers = {"method": args.method, "images": len(x), "table": table}
    write(model, args, rows, numbers, asked=asked)


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
    _check_noises(args, "compare draws noises, the first --num,", "resize")
    if args.method == "bdia":
        raise ValueError(
            "--method=bdia draws from a pair of points that an inversion found, and compare from "
            "noises; use another method"
        )
    noise = start_noise(model, args, np.arange(args.num))
    labels, texts = model.inputs.labels(args.label, args.num), command_line.prompts(args.prompt)
    editor, table = make_editor(model, args), []
    asked, given = Asked.of(model.inputs, args.num, labels, texts), told(editor, args, texts)
    tables = {str(steps): _round_trip(model, args, steps).down for steps in args.steps}
    rows = {name: editor.draw(down, noise, labels, **given) for name, down in tables.items()}
    finest = rows[str(args.steps[-1])]
    for name, drawn in rows.items():
        pairs = zip(drawn.reshape(args.num, -1), finest.reshape(args.num, -1), strict=True)
        correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])
        distance = float(np.sqrt(squared_error(finest, drawn, span(model)).mean()))
        table.append({"steps": int(name), "distance": distance, "correlation": float(correlation)})
        print(pictures.summary(table[-1]))
    numbers = {"method": args.method, "images": args.num, "table": table}
    write(model, args, rows, numbers, asked=asked)


def _check_noises(args: argparse.Namespace, what: str, *more: str) -> None:
    """Raises ValueError for flags that say which images, where there are none."""
    for name in ("images", "index", "only", "shuffle", *more):
        if vars(args)[name]:
            raise ValueError(f"{what} and takes no --{name}: leave it out")


def interpolate(model: Model, args: argparse.Namespace) -> None:
    """Walks between images, noises or prompts: a chain, or a grid between four.

    Images are told their captions, which the walk mixes, and the label that all of them have.
    """
    if args.seeds:
        _check_noises(args, "interpolate walks between the noises of --seeds")
    editor, trip = make_editor(model, args), code_trip(model, args)
    texts, labels = command_line.prompts(args.prompt), args.label
    if not args.seeds:
        x, labels, captions = read(model, args)
        texts = texts or (() if args.grid else captions)
        if isinstance(labels, np.ndarray):
            labels = labels[0] if np.all(labels == labels[0]) else None
    given = told(editor, args, texts)
    if args.grid and given and len(texts) > 1:
        raise ValueError("--grid walks between images or noises; give one --prompt")
    _check_ends(args, len(args.seeds or x), len(texts))
    if args.seeds:
        ends = start_noise(model, args, args.seeds)
    else:
        ends = editor.invert(trip, x, labels, **given).state.evaluate
    between = latents.PATHS[args.between]
    if args.grid:
        path = latents.grid(ends, args.grid, args.grid).reshape(-1, *ends.shape[1:])
    else:
        ends, given = _walk_of_prompts(ends, given, args.frames, between)
        path = latents.chain(ends, args.frames)
    drawn = editor.draw(trip.down, path, labels, **given)
    step = np.sqrt(squared_error(drawn[1:], drawn[:-1], span(model)))
    numbers = {"frames": len(drawn), "greatest_step": float(step.max()), "step": step.tolist()}
    columns = args.grid or args.frames
    rows = np.split(drawn, range(columns, len(drawn), columns))
    if not args.grid and (model.codec.frames or not str(args.out).endswith(".gif")):
        del rows[-1]  # the last end alone
    asked = Asked.of(model.inputs, len(rows[-1]), labels, texts if len(texts) == 1 else ())
    rows = {str(i): row for i, row in enumerate(rows)}
    write(model, args, rows, numbers, columns, asked=asked)


def _check_ends(args: argparse.Namespace, count: int, prompts: int) -> None:
    """Raises ValueError where a walk has too few images or noises and prompts, a grid not four."""
    way_out = "name them by --seeds, --index or --num"
    if args.grid and (count != 4 or args.grid < 2):
        raise ValueError(
            f"a grid needs 4 corners and sides of 2 or more, got {count} and --grid={args.grid}; "
            f"{way_out}"
        )
    if not args.grid and max(count, prompts) < 2:
        raise ValueError(f"a walk needs two ends or more, got {count}; {way_out}, or by --prompt")


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

    path = jax.tree.map(walked, rows, is_leaf=lambda leaf: hasattr(leaf, "dtype"))
    return ends, texts | {"prompt": path}


def translate(model: Model, args: argparse.Namespace) -> None:
    """Inverts under one label, prompt or model, and draws under another (dual bridges)."""
    if args.toward is None and not args.target:
        raise ValueError(
            "translate needs --toward, a class, or --target, another checkpoint; of a network with "
            "texts --toward is a prompt, unless it names a class"
        )
    x, labels, texts = read(model, args)
    here, trip = make_editor(model, args), _round_trip(model, args)
    there = _target(model, args) if args.target else here
    trip_there, inputs = _round_trip(there.model, args), there.model.inputs
    label, prompts = _toward(inputs, args.toward)
    same = inputs.num_classes == model.inputs.num_classes
    labels_there = (labels if same else None) if label is None else label
    texts_there = prompts or texts
    given = told(here, args, texts)
    given_there = told(there, args, texts_there) if inputs.takes("text") else apart(args)
    asked = Asked.of(inputs, len(x), labels_there, texts_there)
    draw_there, draw_here = (_drawer(editor, args).draw for editor in (there, here))
    found = here.invert(trip, x, labels, **given)
    drawn = draw_there(trip_there.down, found.state, labels_there, nulls=found.nulls, **given_there)
    found = there.invert(trip_there, drawn, labels_there, **given_there)
    returned = draw_here(trip.down, found.state, labels, nulls=found.nulls, **given)
    decoded = there.model.pictures(drawn) if model.draws_latents else drawn
    rows = {"image": x, "translated": decoded, "and back": returned}
    error = float(squared_error(x, returned, span(model)).mean())
    numbers = {"steps": args.steps[0], "cycle_error": error}
    numbers |= judge(model, rows, asked)
    write(model, args, rows, numbers, asked=asked, kept="translated")


def _target(model: Model, args: argparse.Namespace) -> Editor:
    """Of `--target`, whose samples must be shaped as the model's."""
    target = checkpoints.load(args.target, dtype=args.dtype).sized(command_line.size(args.size))
    target.check_weights()
    shapes = [list(one.sample_shape) for one in (target, model)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"--target={args.target} draws samples of shape {shapes[0]} and {model.name} of "
            f"{shapes[1]}; noise goes from one to the other only where these are equal"
        )
    return make_editor(target, args)


def _toward(inputs: Inputs, toward: str | None) -> tuple[str | None, list[str]]:
    """What `--toward` changes: the label, or the prompts, [] for none."""
    if toward is None:
        return None, []
    if not inputs.takes("text") or inputs.is_class(toward):
        return toward, []
    if inputs.num_classes:
        print(f"--toward={toward} names no class: it is the prompt, and labels stay", flush=True)
    return None, command_line.prompts([toward])


def _drawer(editor: Editor, args: argparse.Namespace) -> Editor:
    """The editor with the guidance of what is drawn."""
    if args.toward_guidance is None:
        return editor
    if args.method == "null_text":
        raise ValueError("null_text has one guidance for both ways: leave out --toward_guidance")
    guided = {"guidance_scale": args.toward_guidance}
    return make_editor(editor.model, argparse.Namespace(**vars(args) | guided))


def sdedit(model: Model, args: argparse.Namespace) -> None:
    """Noises images part of the way, and draws from there."""
    if model.inputs.channels:
        raise ValueError(
            f"{model.name} is told what to keep of a picture: use inpaint, which takes --strength "
            "too"
        )
    x, labels, texts = read(model, args)
    recipe, asked = own_recipe(model, args), Asked.of(model.inputs, len(x), labels, texts)
    tables = {f"{s:g}": sdedit_table(model.schedule, recipe, s) for s in args.strength}
    editor, rows, seen = make_editor(model, args, own=model.draws_latents), {"image": x}, {}
    given = told(editor, args, texts)
    for name, table in tables.items():
        same = seen.setdefault((table.nfe, *table.start), name)
        equal = "" if same == name else f", the same steps as strength {same}"
        print(f"strength {name}: {table.nfe} evaluations{equal}", flush=True)
        rows[name] = editor.draw(table, x, labels, seed=args.seed, **given)
    unit = span(model)
    distances = {name: float(squared_error(x, row, unit).mean()) for name, row in rows.items()}
    numbers = {"solver": recipe.solver, "mean_squared_difference": distances}
    numbers["evaluations"] = {name: table.nfe for name, table in tables.items()}
    write(model, args, rows, numbers | judge(model, rows, asked), asked=asked)
