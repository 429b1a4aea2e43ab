"""Edits with the deterministic map between noise and image.

    python -m ddim_jax.edit invert --num=20
    python -m ddim_jax.edit invert --num=256 --method=ddim --steps=10,20,50,100
    python -m ddim_jax.edit interpolate --seeds=3,14,15,92 --label=8 --out=walk.gif
    python -m ddim_jax.edit arithmetic --toward=folder:bold --away=folder:thin --strength=0,1,2
    python -m ddim_jax.edit attribute --by=ink --strength=-1,-0.5,0,0.5,1
    python -m ddim_jax.edit inpaint --mask=right --method=repaint
    python -m ddim_jax.edit translate --toward=8
    python -m ddim_jax.edit sdedit --strength=0.3,0.5,0.7

Images are those of `--images`, as `data.load` takes them, or a file; default the bundled digits.
Every command writes a picture and, beside it, a JSON file with its numbers; `--help` after a
command's name lists its options.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddim_jax import commands, data, experiment, files, generation, sampling
from ddim_jax.data import folders
from ddim_jax.editing import latents, restoration
from ddim_jax.editing.editor import Editor, error, partial
from ddim_jax.editing.inversion import INVERSIONS
from ddim_jax.guidance import Guidance
from ddim_jax.models import pretrained
from ddim_jax.models.pretrained import Pretrained

Array = np.ndarray
MASKS = ("left", "right", "top", "bottom", "center", "random:SHARE")
"""Masks by name: which part is unknown."""
RESTORATIONS = ("repaint", "replacement", "ddnm", "dps")
"""Ways to agree with what is known."""


# --- images in, pictures out ----------------------------------------------------------------------


def read(model: Pretrained, args: argparse.Namespace, spec: str | None = None) -> tuple[Array, Any]:
    """([N, H, W, C] in [-1, 1], labels [N] or None) of `--images`, or of another spec.

    Raises:
        ValueError: images of another size or mode than the network's, unless `--resize`; none.
        OSError: a file that is not there, or cannot be read.
    """
    spec = args.images if spec is None else spec
    height, _, channels = shape = model.experiment.image_shape
    size = height if args.resize else None
    if Path(spec).is_file():
        folders.check_files(Path(spec).parent, [Path(spec)])
        images = folders.read_file(Path(spec), size, channels if args.resize else 3)[None]
        images = images[..., :1] if channels == 1 and _is_grey(images) else images
        labels = None
    else:
        spec = f"folder:{spec}" if Path(spec).is_dir() else spec
        source = data.load(
            spec, args.split, image_size=size, channels=channels if args.resize else None
        )
        count = len(source) if args.num is None else min(args.num, len(source))
        index = range(count) if not args.index else [int(i) for i in args.index.split(",")]
        bad = [i for i in index if not 0 <= i < len(source)]
        if bad:
            raise ValueError(f"--index must be 0..{len(source) - 1} for {spec}, got {bad[0]}")
        chosen = [source[i] for i in index]
        images = np.stack([example["image"] for example in chosen])
        labels = np.array([example["label"] for example in chosen])
        labels = labels if source.num_classes == model.experiment.num_classes else None
    if images.shape[1:] != shape:
        raise ValueError(
            f"{spec} holds images of shape {images.shape[1:]}, {model.name} draws {shape}; "
            "--resize crops and resizes them"
        )
    return data.to_unit_range(images), labels if model.experiment.num_classes else None


def _is_grey(images: Array) -> bool:
    return bool((images == images[..., :1]).all())


def write(
    args: argparse.Namespace, name: str, rows: dict[str, Array], numbers: dict, named: bool = True
) -> None:
    """Writes a sheet, a row for each name, or a GIF of the only one, and the numbers beside it."""
    out = Path(args.out) if args.out else files.next_free(Path("edits"), name)
    sets = {key: data.to_uint8(np.asarray(images)) for key, images in rows.items()}
    height = next(iter(sets.values())).shape[1]
    scale = max(1, 56 // height)
    if out.suffix == ".gif":
        (frames,) = sets.values()
        shown = [data.grid(frame[None], 1, scale=2 * scale) for frame in frames]
        data.save_gif(out, [*shown, *shown[-2:0:-1]], 80, overwrite=args.overwrite)
    else:
        columns = min(args.columns, *(len(images) for images in sets.values()))
        tiles = np.concatenate([images[:columns] for images in sets.values()])
        labels = [label for key in sets for label in [key] + [""] * (columns - 1)]
        sheet = data.grid(tiles, columns, labels if named else None, scale=scale)
        data.save_png(out, sheet, overwrite=args.overwrite)
    files.write_json(out.with_suffix(".json"), numbers | {"seconds": time.time() - args.began})
    print(f"{out}: " + ", ".join(f"{k} {_short(v)}" for k, v in numbers.items() if _is_short(v)))


def _is_short(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _floats(values: Array) -> list[float]:
    return [float(value) for value in values]


def editor(model: Pretrained, args: argparse.Namespace, steps: int) -> Editor:
    """The editor that the flags describe."""
    guidance = None if args.guidance_scale == 1 else Guidance(args.guidance_scale)
    options = {}
    if args.method == "fixed_point" and args.refinements is not None:
        options["refinements"] = args.refinements
    return Editor(
        model,
        method=args.method,
        steps=steps,
        stride=args.stride,
        guidance=guidance,
        batch_size=args.batch_size,
        **options,
    )


def _labels(args: argparse.Namespace, model: Pretrained, own: Any, count: int) -> Any:
    """`--label` for all, else the images' own, else none: the null label."""
    if args.label is None:
        return own
    return generation.make_labels(model, [args.label], count)


# --- commands -------------------------------------------------------------------------------------


def invert(model: Pretrained, args: argparse.Namespace) -> None:
    """Images to latents and back, with the error; of several step counts a table and a plot."""
    images, labels = read(model, args)
    labels = _labels(args, model, labels, len(images))
    table, rows = [], {"image": images}
    for steps in args.steps:
        edits = editor(model, args, steps)
        code = edits.invert(images, labels)
        again = edits.draw(code.state, labels)
        errors = error(images, again)
        rows[f"{steps} steps"] = again
        table.append(
            {
                "steps": steps,
                "evaluations": edits.trip.up.nfe + edits.trip.down.nfe,
                "mean_squared_error": float(errors.mean()),
                "greatest_difference": float(np.abs(images - again).max() / 2),
                "latent_std": float(np.std(code.state.evaluate)),
                "residual": None if code.residual is None else float(code.residual.mean()),
                "errors": _floats(errors),
            }
        )
        shown = {key: value for key, value in table[-1].items() if key != "errors"}
        print(", ".join(f"{key} {_short(value)}" for key, value in shown.items()), flush=True)
    if args.latents:
        path = files.check_new(args.latents, (".npz",), "--latents", args.overwrite)
        np.savez(path, latents=code.state.evaluate, base=code.state.base, steps=args.steps[-1])
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


def interpolate(model: Pretrained, args: argparse.Namespace) -> None:
    """A walk between images or noises, a chain or a grid between four."""
    edits = editor(model, args, args.steps[0])
    if args.seeds:
        keys = sampling.sample_keys(args.seed, [int(s) for s in args.seeds.split(",")])
        ends = np.asarray(sampling.initial_noise(keys, model.experiment.image_shape))
    else:
        images, _ = read(model, args)
        ends = edits.invert(images, _labels(args, model, None, len(images))).state.evaluate
    if args.grid:
        path = np.asarray(latents.grid(ends, args.grid, args.grid))
        path = path.reshape(-1, *path.shape[2:])
    else:
        path = np.asarray(latents.chain(ends, args.frames))
    drawn = edits.draw(path, _labels(args, model, None, len(path)))
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
    source, labels = read(model, argparse.Namespace(**vars(args) | {"num": None, "index": ""}))
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
    edits = editor(model, args, args.steps[0])
    images, _ = read(model, args)
    codes = edits.invert(np.concatenate([toward, away])).state.evaluate
    side = np.arange(len(codes)) < len(toward)
    if args.probe:
        direction = latents.probe_direction(codes, side)
    else:
        direction = latents.mean_direction(codes[side], codes[~side])
    if args.random:
        direction = latents.random_direction(jax.random.key(args.seed), direction)
    code = edits.invert(images).state.evaluate
    rows = {"image": images}
    for strength in args.strength:
        rows[f"{strength:+g}"] = edits.draw(np.asarray(latents.add(code, direction, strength)))
    numbers = {
        "toward": len(toward),
        "away": len(away),
        "direction": "random" if args.random else "probe" if args.probe else "mean",
        "norm": float(np.linalg.norm(direction)),
        "mean_brightness": {key: float(np.mean(drawn)) for key, drawn in rows.items()},
    }
    numbers |= _read_digits(args, model, rows)
    write(args, name, rows, numbers)


def _read_digits(args: argparse.Namespace, model: Pretrained, rows: dict[str, Array]) -> dict:
    """What the digit classifier reads in each row, and how often that is not as in the first."""
    if tuple(model.experiment.image_shape) != (28, 28, 1):
        return {}
    from ddim_jax.evaluation import features

    network = features.load("digits")
    found = {
        key: network.extract(data.to_uint8(np.asarray(images))).logits.argmax(1)
        for key, images in rows.items()
    }
    first = next(iter(found.values()))
    return {
        "read": {key: value.tolist() for key, value in found.items()},
        "changed": {key: float((value != first).mean()) for key, value in found.items()},
    }


def inpaint(model: Pretrained, args: argparse.Namespace) -> None:
    """Completes images, or sharpens, colours, deblurs them (`--operator`)."""
    images, labels = read(model, args)
    labels = _labels(args, model, labels, len(images))
    operator, mask = _operator(args, images)
    table, task = _restoration(model, args, operator)
    y = np.asarray(operator.forward(images, mask))
    seen = np.asarray(operator.inverse(y, mask))
    seen = seen if mask is None else seen - (1 - mask)
    found = editor(model, args, 2).restore(
        task, table, restoration.Known(y, mask), labels, args.seed
    )
    numbers = {
        "method": args.restoration,
        "evaluations": table.nfe,
        "known_error": float(np.abs(operator.forward(found, mask) - y).max()),
        "mean_squared_error": float(error(images, found).mean()),
    }
    write(args, "inpaint", {"image": images, "known": seen, "found": found}, numbers)


def _operator(args: argparse.Namespace, images: Array):
    name, _, value = args.operator.partition(":")
    if name == "mask":
        return restoration.masking(), _mask(args, images)
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


def _mask(args: argparse.Namespace, images: Array) -> Array:
    """[N, H, W, 1], 1 where pixels are known."""
    count, height, width, _ = images.shape
    known = np.ones((height, width), np.float32)
    name, _, value = args.mask.partition(":")
    if Path(args.mask).is_file():
        found = folders.read_file(Path(args.mask), None, 1)[..., 0]
        if found.shape != (height, width):
            raise ValueError(
                f"--mask {args.mask} is {found.shape[0]} x {found.shape[1]}, the images are "
                f"{height} x {width}; white is known, black is to be found"
            )
        known = (found > 127).astype(np.float32)
    elif name == "random":
        share = float(value or 0.5)
        known = (np.random.default_rng(args.seed).random((height, width)) > share).astype(
            np.float32
        )
    else:
        rows, columns = slice(None), slice(None)
        half, quarter = (height // 2, width // 2), (height // 4, width // 4)
        parts = {
            "left": (rows, slice(half[1])),
            "right": (rows, slice(half[1], None)),
            "top": (slice(half[0]), columns),
            "bottom": (slice(half[0], None), columns),
            "center": (slice(quarter[0], -quarter[0]), slice(quarter[1], -quarter[1])),
        }
        if name not in parts:
            raise ValueError(f"--mask must be a file or one of {', '.join(MASKS)}, got {args.mask}")
        known[parts[name]] = 0
    return np.broadcast_to(known[None, :, :, None], (count, height, width, 1)).copy()


def _restoration(model: Pretrained, args: argparse.Namespace, operator):
    schedule, steps = model.experiment.schedule, args.steps[0]
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
    edits = editor(model, args, args.steps[0])
    other = edits
    if args.target:
        other = editor(pretrained.load(args.target), args, args.steps[0])
    if args.toward is None and not args.target:
        raise ValueError("translate needs --toward, a class, or --target, another checkpoint")
    aim = labels
    if args.toward is not None:
        aim = generation.make_labels(other.model, [args.toward], len(images))
    code = edits.invert(images, labels)
    there = other.draw(code.state, aim)
    back = edits.draw(other.invert(there, aim).state, labels)
    rows = {"image": images, "translated": there, "and back": back}
    numbers = {"steps": args.steps[0], "cycle_error": float(error(images, back).mean())}
    write(args, "translate", rows, numbers | _read_digits(args, model, rows))


def sdedit(model: Pretrained, args: argparse.Namespace) -> None:
    """Noises images part of the way, and draws from there."""
    images, labels = read(model, args)
    labels = _labels(args, model, labels, len(images))
    edits = editor(model, args, args.steps[0])
    rows = {"image": images}
    for strength in args.strength:
        table = partial(model, args.solver, strength, args.steps[0])
        rows[f"{strength:g}"] = edits.vary(images, table, labels, args.seed)
    distances = {key: float(error(images, drawn).mean()) for key, drawn in rows.items()}
    write(args, "sdedit", rows, {"solver": args.solver, "mean_squared_difference": distances})


# --- flags ----------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command and its flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", required=True)
    numbers = lambda text: [float(part) for part in text.split(",")]  # noqa: E731
    whole = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    for work in (invert, interpolate, arithmetic, attribute, inpaint, translate, sdedit):
        command = parsers.add_parser(work.__name__, help=work.__doc__.splitlines()[0])
        command.set_defaults(work=work)
        add = command.add_argument
        add("--checkpoint", default="digits", help="training workdir, file or bundled network")
        add("--images", default="digits", help="digits, npz:, folder: or TFDS name, or a file")
        add("--split", default="train")
        add("--index", default="", help="which images, like 3,14,15; default the first --num")
        add("--num", type=int, default=10, help="how many")
        add("--resize", action="store_true", help="crop and resize images to the network's size")
        add("--label", type=int, help="for all images; default their own, or none")
        add("--steps", type=whole, default=[50])
        add("--stride", help="default uniform")
        add("--guidance_scale", type=float, default=1.0)
        add("--batch_size", type=int, default=64)
        add("--seed", type=int, default=0)
        add("--columns", type=int, default=10, help="most images of a row in the picture")
        add("--out", help=".png or, of interpolate, .gif; default edits/NAME-0001.png")
        add("--overwrite", action="store_true")
        if work is inpaint:
            add("--method", dest="restoration", choices=RESTORATIONS, default="repaint")
            add("--operator", default="mask", help="mask, average:2, blur:1.5, grey")
            add("--mask", default="right", help=f"a PNG, white is known; or {', '.join(MASKS)}")
            add("--jump_length", type=int, help="of repaint; default a 25th of the steps")
            add("--resamplings", type=int, default=5, help="of repaint")
            command.set_defaults(method="fixed_point", refinements=None)
        else:
            add("--method", default="fixed_point", help=f"{', '.join(INVERSIONS)}, or a solver")
            add("--refinements", type=int, help="of fixed_point; default 5")
        if work is invert:
            add("--latents", help="also write them here, .npz")
        if work is interpolate:
            add("--seeds", default="", help="walk between noises with these indices, not images")
            add("--frames", type=int, default=9, help="from one to the next")
            add("--grid", type=int, default=0, help="between four, so many a side")
        if work in (arithmetic, attribute):
            add("--strength", type=numbers, default=[-1.0, -0.5, 0.0, 0.5, 1.0])
            add("--probe", action="store_true", help="a linear probe, not the difference of means")
            add("--random", action="store_true", help="a random direction of the same norm")
        if work is arithmetic:
            add("--toward", required=True, help="images like --images")
            add("--away", required=True, help="images like --images")
        if work is attribute:
            add("--by", default="ink", help="ink, or two classes like 7:1")
            add("--learn_from", type=int, default=512, help="so many images")
        if work is translate:
            add("--toward", type=int, help="a class")
            add("--target", help="another checkpoint")
        if work is sdedit:
            add("--strength", type=numbers, default=[0.3, 0.5, 0.7])
            add("--solver", default="dpm_solver++_2m")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Checks, edits, writes."""
    args.began = time.time()
    if args.out:
        suffixes = (".png", ".gif") if args.command == "interpolate" else (".png",)
        files.check_new(args.out, suffixes, "--out", args.overwrite)
    model = pretrained.load(args.checkpoint)
    args.work(model, args)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = parse(argv)
    commands.run(__file__, lambda: run(args))


if __name__ == "__main__":
    main()
