"""What the editing commands do: `(model, args) -> None`, each writes a picture and its numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddim_jax import data, experiment, files, generation, sampling
from ddim_jax.editing import latents, pictures, restoration
from ddim_jax.editing.editor import Editor, error, partial, round_trip
from ddim_jax.editing.inversion import RoundTrip
from ddim_jax.editing.pictures import read, write
from ddim_jax.guidance import Guidance
from ddim_jax.models import pretrained
from ddim_jax.models.pretrained import Pretrained

Array = np.ndarray
RESTORATIONS = ("repaint", "replacement", "ddnm", "dps")
"""Ways to agree with what is known."""


def _floats(values: Array) -> list[float]:
    return [float(value) for value in values]


def editor(model: Pretrained, args: argparse.Namespace) -> Editor:
    """The editor that the flags describe."""
    guidance = None if args.guidance_scale == 1 else Guidance(args.guidance_scale)
    return Editor(model, guidance=guidance, batch_size=args.batch_size)


def trip(model: Pretrained, args: argparse.Namespace, steps: int | None = None) -> RoundTrip:
    """The inversion that the flags describe, of so many steps; default the only `--steps`."""
    options = {} if args.refinements is None else {"refinements": args.refinements}
    steps = _one_step_count(args) if steps is None else steps
    return round_trip(model, args.method, steps, args.stride, **options)


def _one_step_count(args: argparse.Namespace) -> int:
    """`--steps` of a command that takes one number.

    Raises:
        ValueError: more than one.
    """
    if len(args.steps) > 1:
        raise ValueError(f"{args.command} takes one number of --steps, got {args.steps}")
    return args.steps[0]


def _labels(args: argparse.Namespace, model: Pretrained, own: Any, count: int) -> Any:
    """`--label` for all, else the images' own, else none: the null label."""
    if args.label is None:
        return own
    return generation.make_labels(model, [args.label], count)


def invert(model: Pretrained, args: argparse.Namespace) -> None:
    """Images to latents and back, with the error; of several step counts a table and a plot."""
    images, labels = read(model, args)
    labels = _labels(args, model, labels, len(images))
    edits, trips = editor(model, args), [trip(model, args, steps) for steps in args.steps]
    table, rows = [], {"image": images}
    for steps, way in zip(args.steps, trips, strict=True):
        code = edits.invert(way, images, labels)
        again = edits.draw(way.down, code.state, labels)
        errors = error(images, again)
        rows[f"{steps} steps"] = again
        table.append(
            {
                "steps": steps,
                "evaluations": way.up.nfe + way.down.nfe,
                "mean_squared_error": float(errors.mean()),
                "greatest_difference": float(np.abs(images - again).max() / 2),
                "latent_std": float(np.std(code.state.evaluate)),
                "residual": None if code.residual is None else float(code.residual.mean()),
                "errors": _floats(errors),
            }
        )
        shown = {key: value for key, value in table[-1].items() if key != "errors"}
        print(
            ", ".join(f"{key} {pictures.short(value)}" for key, value in shown.items()), flush=True
        )
    if args.latents:
        np.savez(
            args.latents, latents=code.state.evaluate, base=code.state.base, steps=args.steps[-1]
        )
    numbers = {"method": args.method, "images": len(images), "table": table}
    if len(table) > 1:
        _plot_errors(args, table)
    write(args, "invert", rows, numbers)


def _plot_errors(args: argparse.Namespace, table: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog([r["steps"] for r in table], [r["mean_squared_error"] for r in table], "o-")
    axes.set_xlabel("steps")
    axes.set_ylabel("mean squared error, pixels in 0..1")
    axes.set_title(f"round trip by {args.method}")
    axes.grid(alpha=0.3, which="both")
    path = files.next_free(Path(args.out).parent if args.out else Path("edits"), "invert_error")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


def compare(model: Pretrained, args: argparse.Namespace) -> None:
    """The same noises drawn in several step counts, and how far apart the pictures are."""
    keys = sampling.sample_keys(args.seed, np.arange(args.num))
    noise = np.asarray(sampling.initial_noise(keys, model.experiment.image_shape))
    labels = generation.make_labels(model, None if args.label is None else [args.label], args.num)
    edits, tables = editor(model, args), {n: trip(model, args, n).down for n in args.steps}
    rows = {str(n): edits.draw(table, noise, labels) for n, table in tables.items()}
    finest = rows[str(args.steps[-1])]
    flat = finest.reshape(args.num, -1)
    table = []
    for name, drawn in rows.items():
        pairs = zip(drawn.reshape(args.num, -1), flat, strict=True)
        correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])
        distance = float(np.sqrt(error(finest, drawn).mean()))
        table.append({"steps": int(name), "distance": distance, "correlation": float(correlation)})
        print(", ".join(f"{key} {pictures.short(value)}" for key, value in table[-1].items()))
    write(args, "compare", rows, {"method": args.method, "images": args.num, "table": table})


def interpolate(model: Pretrained, args: argparse.Namespace) -> None:
    """A walk between images or noises, a chain or a grid between four."""
    edits, way = editor(model, args), trip(model, args)
    if args.seeds:
        keys = sampling.sample_keys(args.seed, [int(s) for s in args.seeds.split(",")])
        ends = np.asarray(sampling.initial_noise(keys, model.experiment.image_shape))
    else:
        images, _ = read(model, args)
        labels = _labels(args, model, None, len(images))
        ends = edits.invert(way, images, labels).state.evaluate
    if args.grid:
        path = np.asarray(latents.grid(ends, args.grid, args.grid))
        path = path.reshape(-1, *path.shape[2:])
    else:
        path = np.asarray(latents.chain(ends, args.frames))
    drawn = edits.draw(way.down, path, _labels(args, model, None, len(path)))
    step = np.sqrt(np.mean(((drawn[1:] - drawn[:-1]) / 2) ** 2, axis=(1, 2, 3)))
    numbers = {"frames": len(drawn), "greatest_step": float(step.max()), "step": _floats(step)}
    args.columns = args.grid or args.frames
    gif = str(args.out).endswith(".gif")
    starts = range(0, len(drawn) - (not args.grid), args.columns)
    rows = {str(i): drawn[i : i + args.columns] for i in starts}
    write(args, "interpolate", {"": drawn} if gif else rows, numbers, named=False)


def arithmetic(model: Pretrained, args: argparse.Namespace) -> None:
    """Adds the difference of two sets of images to others."""
    toward, _ = read(model, args, args.toward)
    away, _ = read(model, args, args.away)
    _add_direction(model, args, toward, away, "arithmetic")


def attribute(model: Pretrained, args: argparse.Namespace) -> None:
    """Adds a direction learned from labels or from how much ink there is."""
    source, labels = read(
        model, argparse.Namespace(**vars(args) | {"num": None, "index": "", "only": None})
    )
    source, labels = (
        source[: args.learn_from],
        None if labels is None else labels[: args.learn_from],
    )
    if args.by == "ink":
        amount = source.mean((1, 2, 3))
        low, high = np.quantile(amount, (0.25, 0.75))
        masks = amount > high, amount < low
    else:
        toward, _, away = args.by.partition(":")
        if labels is None or not toward.isdigit() or not away.isdigit():
            raise ValueError(
                f"--by must be ink, or two classes of labelled images like 7:1, got {args.by}"
            )
        masks = labels == int(toward), labels == int(away)
    if not all(mask.any() for mask in masks):
        raise ValueError(f"--by={args.by} finds no images on one side among {len(source)}")
    _add_direction(model, args, source[masks[0]], source[masks[1]], "attribute")


def _add_direction(
    model: Pretrained, args: argparse.Namespace, toward: Array, away: Array, name: str
) -> None:
    edits, way = editor(model, args), trip(model, args)
    images, _ = read(model, args)
    codes = edits.invert(way, np.concatenate([toward, away])).state.evaluate
    side = np.arange(len(codes)) < len(toward)
    if args.probe:
        direction = latents.probe_direction(codes, side)
    else:
        direction = latents.mean_direction(codes[side], codes[~side])
    if args.random:
        direction = latents.random_direction(jax.random.key(args.seed), direction)
    code = edits.invert(way, images).state.evaluate
    rows = {"image": images}
    for strength in args.strength:
        moved = np.asarray(latents.add(code, direction, strength))
        rows[f"{strength:+g}"] = edits.draw(way.down, moved)
    numbers = {
        "toward": len(toward),
        "away": len(away),
        "direction": "random" if args.random else "probe" if args.probe else "mean",
        "norm": float(np.linalg.norm(direction)),
        "mean_brightness": {key: float(np.mean(drawn)) for key, drawn in rows.items()},
    }
    numbers |= _judge(model, rows)
    write(args, name, rows, numbers)


def _judge(model: Pretrained, rows: dict[str, Array]) -> dict:
    """What the digit classifier reads in each row and how often that is not as in the first.

    With 500 images or more also the distance of each row to real digits, FDD.
    """
    if tuple(model.experiment.image_shape) != (28, 28, 1):
        return {}
    from ddim_jax.evaluation import features, metrics, scores

    network = features.load("digits")
    found = {key: network.extract(data.to_uint8(np.asarray(row))) for key, row in rows.items()}
    read = {key: value.logits.argmax(1) for key, value in found.items()}
    first = next(iter(read.values()))
    judged = {
        "read": {key: value.tolist() for key, value in read.items()},
        "changed": {key: float((value != first).mean()) for key, value in read.items()},
    }
    if len(first) >= 500:
        real, _ = scores.find_data(network, None, None, model.experiment.image_shape)
        judged["FDD"] = {
            key: metrics.frechet_distance(metrics.moments(value.pool), real.pool)
            for key, value in found.items()
        }
    return judged


def inpaint(model: Pretrained, args: argparse.Namespace) -> None:
    """Completes images, or sharpens, colours, deblurs them (`--operator`)."""
    images, labels = read(model, args)
    labels = _labels(args, model, labels, len(images))
    operator, mask = _operator(args, images)
    table, task = _restoration(model, args, operator)
    y = np.asarray(operator.forward(images, mask))
    seen = np.asarray(operator.inverse(y, mask))
    seen = seen if mask is None else seen - (1 - mask)
    known = restoration.Known(y, mask)
    found = editor(model, args).draw(table, None, labels, task=task, known=known, seed=args.seed)
    numbers = {
        "method": args.restoration,
        "evaluations": table.nfe,
        "known_error": float(np.abs(operator.forward(found, mask) - y).max()),
        "mean_squared_error": float(error(images, found).mean()),
    }
    rows = {"image": images, "known": seen, "found": found}
    write(args, "inpaint", rows, numbers | _judge(model, rows))


def _operator(args: argparse.Namespace, images: Array):
    name, _, value = args.operator.partition(":")
    if name == "mask":
        return restoration.masking(), pictures.mask(args, images)
    makers: dict[str, Callable] = {
        "average": lambda: restoration.average(int(value or 2)),
        "blur": lambda: restoration.blur(float(value or 1.5)),
        "grey": restoration.grey,
    }
    operator = experiment.lookup({"mask": None} | makers, name, "operator")()
    if args.restoration in ("repaint", "replacement"):
        raise ValueError(
            f"--method={args.restoration} replaces pixels, and --operator={name} has none; use "
            "ddnm or dps"
        )
    if name == "grey" and images.shape[-1] != 3:
        raise ValueError("--operator=grey needs colour images")
    return operator, None


def _restoration(model: Pretrained, args: argparse.Namespace, operator):
    schedule, steps = model.experiment.schedule, _one_step_count(args)
    if args.restoration == "repaint":
        times = experiment.build_times(schedule, args.stride or "uniform", steps)
        jump = max(1, steps // 25) if args.jump_length is None else args.jump_length
        table = restoration.repaint(schedule, times, jump, args.resamplings)
        return table, restoration.replacement()
    eta = 0.85 if args.restoration == "ddnm" else 1.0
    table = experiment.build_table(
        schedule, "ddim", args.stride, steps, solver_options={"eta": eta}
    )
    makers = {
        "replacement": restoration.replacement,
        "ddnm": lambda: restoration.ddnm(operator),
        "dps": lambda: restoration.dps(operator),
    }
    return table, makers[args.restoration]()


def translate(model: Pretrained, args: argparse.Namespace) -> None:
    """Inverts under one label or network, and draws under another (dual implicit bridges)."""
    images, labels = read(model, args)
    labels = _labels(args, model, labels, len(images))
    edits, way = editor(model, args), trip(model, args)
    other, other_way = edits, way
    if args.target:
        other = editor(pretrained.load(args.target), args)
        other_way = trip(other.model, args)
    if args.toward is None and not args.target:
        raise ValueError("translate needs --toward, a class, or --target, another checkpoint")
    aim = labels
    if args.toward is not None:
        aim = generation.make_labels(other.model, [args.toward], len(images))
    code = edits.invert(way, images, labels)
    there = other.draw(other_way.down, code.state, aim)
    back = edits.draw(way.down, other.invert(other_way, there, aim).state, labels)
    rows = {"image": images, "translated": there, "and back": back}
    numbers = {"steps": args.steps[0], "cycle_error": float(error(images, back).mean())}
    write(args, "translate", rows, numbers | _judge(model, rows))


def sdedit(model: Pretrained, args: argparse.Namespace) -> None:
    """Noises images part of the way, and draws from there."""
    images, labels = read(model, args)
    labels = _labels(args, model, labels, len(images))
    steps, edits = _one_step_count(args), editor(model, args)
    tables = {f"{s:g}": partial(model, args.solver, s, steps, args.stride) for s in args.strength}
    rows = {"image": images}
    for name, table in tables.items():
        rows[name] = edits.draw(table, images, labels, seed=args.seed)
    distances = {key: float(error(images, drawn).mean()) for key, drawn in rows.items()}
    write(args, "sdedit", rows, {"solver": args.solver, "mean_squared_difference": distances})
