"""Edits pictures by the deterministic map between noise and picture.

    python -m ddim_jax.edit invert --num=20
    python -m ddim_jax.edit invert --num=256 --method=ddim --steps=10,20,50,100
    python -m ddim_jax.edit compare --method=ddim --steps=10,20,50,100,1000
    python -m ddim_jax.edit interpolate --seeds=3,14,15,92 --label=8 --out=walk.gif
    python -m ddim_jax.edit arithmetic --toward=folder:bold --away=folder:thin --strength=0,1,2
    python -m ddim_jax.edit attribute --by=ink --strength=-1,-0.5,0,0.5,1
    python -m ddim_jax.edit inpaint --mask=right --method=repaint
    python -m ddim_jax.edit translate --toward=8
    python -m ddim_jax.edit sdedit --strength=0.3,0.5,0.7
    python -m ddim_jax.edit sdedit --checkpoint=FOLDER --images=cat.png --prompt="a dog" --resize
    python -m ddim_jax.edit translate --checkpoint=RUN_OF_CLIPS --toward=8 --out=eights.gif
    python -m ddim_jax.edit inpaint --checkpoint=RUN_OF_CLIPS --mask=frames:4-11

Images are those of `--images`, as `data.load` takes them, or a file; default the bundled digits.
With a network of clips they are clips, and what is written moves, see docs/video.md. Every command
writes a picture and, beside it, a JSON file with its numbers; `--help` after a command's name lists
its options.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import checkpoints, command_line, files, keys
from ddim_jax.data import clip_writers
from ddim_jax.editing import actions, clips, directions
from ddim_jax.editing.inpainting import RESTORATIONS, inpaint
from ddim_jax.editing.inversion import INVERSIONS
from ddim_jax.editing.latents import PATHS
from ddim_jax.editing.pictures import MASKS
from ddim_jax.model import Model
from ddim_jax.names import check_range, whole_number


def numbers(text: str) -> list[float]:
    """Reads numbers like 0.3,0.5."""
    return _listed(text, float, "numbers like 0.3,0.5")


def whole_numbers(text: str) -> list[int]:
    """Reads whole numbers like 3,14,15."""
    return _listed(text, whole_number, "whole numbers like 3,14,15")


def _listed(text: str, read: Callable[[str], Any], what: str) -> list[Any]:
    try:
        return [read(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None


COMMON = {
    "checkpoint": dict(
        default="digits", help="workdir, .safetensors file, diffusers folder or bundled name"
    ),
    "lora": dict(action="append", default=[], help="FILE or FILE:scale; may be given again"),
    "dtype": dict(choices=("float32", "bfloat16"), help="of weights and computation"),
    "size": dict(help="HEIGHTxWIDTH like 512x768; default the checkpoint's"),
    "images": dict(
        help="digits, npz:, folder: or TFDS name, or a file; of clips moving_digits, clips:, npz: "
        "or TFDS name, or a file; default digits, or the clips a network was trained on"
    ),
    "alone": dict(action="store_true", help="edit each frame of clips apart from the others"),
    "split": dict(default="train", help="of a data set"),
    "index": dict(type=whole_numbers, default=[], help="like 3,14,15; default the first --num"),
    "num": dict(type=int, default=10, help="number of images"),
    "only": dict(help="take images of this class alone, number or name"),
    "shuffle": dict(action="store_true", help="take images in the random order of --seed"),
    "resize": dict(action="store_true", help="crop and resize images to the network's size"),
    "steps": dict(
        type=whole_numbers,
        help="of the stride, default 50, or the model's own where its own solver draws latents; "
        "some commands take more",
    ),
    "stride": dict(help="name, with options as in quadratic:fraction=1; default uniform"),
    "guidance_scale": dict(
        type=float,
        help="default 1: none, which inverts best; of sdedit and inpaint on latents the model's",
    ),
    "batch_size": dict(type=int, help="images at a time; default 64, of latents 4"),
    "seed": dict(type=int, default=0, help="of noise, and of --shuffle"),
    "columns": dict(type=int, default=10, help="most images of a row in the picture"),
    "out": dict(
        help=".png or, of interpolate, .gif; of clips .gif, .webp, .apng, .mp4 or .png, a sheet of "
        "frames; default edits/NAME-0001.png, of clips .gif"
    ),
    "save": dict(
        help="also write the edited images, of several rows the last, and what the network was "
        "told of them, .npz"
    ),
    "overwrite": dict(action="store_true", help="replace existing files"),
}
LABEL = {
    "label": dict(help="class of all images, number or name; default their own, or none"),
    "prompt": dict(
        action="append", default=[],
        help="a text, or @FILE with one in each line; may be given again, in rotation; default "
        "the images' captions",
    ),
    "negative_prompt": dict(help="what to guide away from"),
}  # fmt: skip
INVERSION = {
    "method": dict(default="fixed_point", help=f"{', '.join(INVERSIONS)}, or a solver"),
    "refinements": dict(type=int, help="of fixed_point; default 5"),
    "iterations": dict(type=int, help="of null_text, in each step; default 10"),
}
DIRECTION = {
    "strength": dict(type=numbers, default=[-1.0, -0.5, 0.0, 0.5, 1.0], help="a row for each"),
    "probe": dict(action="store_true", help="a linear probe, not the difference of means"),
    "random": dict(action="store_true", help="a random direction of the same norm"),
    "told": dict(
        action="store_true", help="tell the network the labels and captions of images, both ways"
    ),
}
LEAST = {
    "num": 1, "batch_size": 1, "columns": 1, "refinements": 0, "frames": 1, "grid": 0,
    "iterations": 1,
    "learn_from": 2, "jump_length": 1, "resamplings": 1,
}  # fmt: skip
"""The least that a flag may be."""
MOST = 1_000_000
COMMANDS = {
    actions.invert: {"latents": dict(help="also write the latents here, .npz")},
    actions.compare: {},
    actions.interpolate: {
        "seeds": dict(
            type=whole_numbers,
            default=[],
            help="walk between noises with these indices; of prompts without images 0 for all",
        ),  # fmt: skip
        "frames": dict(type=int, default=9, help="from one end to the next"),
        "grid": dict(type=int, default=0, help="between four ends, so many a side"),
        "between": dict(
            choices=PATHS, default="linear", help="prompts, of which each is an end of the walk"
        ),
    },
    directions.arithmetic: {
        "toward": dict(required=True, help="images like --images"),
        "away": dict(required=True, help="images like --images"),
    },
    directions.attribute: {
        "by": dict(default="ink", help="ink, or two classes like 7:1"),
        "learn_from": dict(
            type=int, default=512, help="number of images to learn the direction from"
        ),
    },
    inpaint: {
        "method": dict(
            dest="restoration",
            choices=(*RESTORATIONS, "levels", "network"),
            help="how to agree; default network where it was made for it, levels of whole frames "
            "where it has learnt them, else repaint",
        ),
        "operator": dict(default="mask", help="what is known: mask, average:2, blur:1.5, grey"),
        "mask": dict(
            default="right",
            help="a PNG, of clips also a file that moves, white is known; or what is unknown: "
            f"{', '.join(MASKS)}, of clips frames:4-11 or frames:odd",
        ),
        "jump_length": dict(type=int, help="of repaint; default a 25th of the steps"),
        "resamplings": dict(type=int, help="of repaint; default 5"),
        "strength": dict(
            type=float, default=1.0, help="of latents: share of the way, as of sdedit"
        ),
        "solver": dict(help="of latents, not of repaint; default the model's own"),
        "no_paste": dict(
            action="store_true", help="of latents: do not put the known pixels back at the end"
        ),
    },
    actions.translate: {
        "toward": dict(
            help="class to draw, number or name; of a network with texts a prompt; of one with "
            "both a class if it is the name of one, and else a prompt: the other stays"
        ),
        "toward_guidance": dict(
            type=float, help="guidance scale of what is drawn; default --guidance_scale"
        ),
        "target": dict(help="checkpoint to draw with"),
    },
    actions.sdedit: {
        "strength": dict(
            type=numbers, default=[0.3, 0.5, 0.7], help="shares of the way, a row for each"
        ),
        "solver": dict(help="default dpm_solver++_2m, of latents the model's own"),
    },
}
"""The commands, and the flags that only one of them has."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Returns the command, as `work`, and its flags."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", required=True)
    for work, own in COMMANDS.items():
        command = parsers.add_parser(work.__name__, help=work.__doc__.splitlines()[0])
        command.set_defaults(work=work)
        # a direction may be what labels and texts say: the network is told none, unless --told
        shared = DIRECTION if work in (directions.arithmetic, directions.attribute) else LABEL
        inverts = work not in (inpaint, actions.sdedit)
        flags = COMMON | shared | (INVERSION if inverts else {}) | own
        for name, options in flags.items():
            command.add_argument(f"--{name}", **options)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Checks the paths, loads the model, edits, writes."""
    args.began = time.time()
    keys.check_seed(args.seed, "--seed")
    for name, value in vars(args).items():
        text = name == "negative_prompt" or (args.command, name) == ("translate", "toward")
        if value == "" and not text:
            raise ValueError(f"--{name} is empty: give it a value, or leave it out")
    for name, least in LEAST.items():
        if vars(args).get(name) is not None:
            check_range(f"--{name}", vars(args)[name], f"[{least}, {MOST}]", whole=True)
    for strength in np.atleast_1d(vars(args).get("strength", ())):
        check_range("--strength", float(strength))
    for place in vars(args).get("seeds", ()):
        check_range("--seeds", place, f"[0, {2**31 - 1}]", whole=True)
    size = command_line.size(args.size)
    check = functools.partial(files.check_new, overwrite=args.overwrite)
    if args.out is not None:
        out = check(args.out, what="--out", suffixes=clips.ENDINGS)
        check(out.with_suffix(".json"), what="beside --out,")
    else:
        files.check_folder("edits")
    written = {flag: vars(args).get(flag) for flag in ("save", "latents")}
    for flag, path in written.items():
        if path is not None:
            check(path, what=f"--{flag}", suffixes=(".npz",))
    files.check_apart(out=args.out, **written)
    model = checkpoints.load(args.checkpoint, dtype=args.dtype, lora=args.lora)
    model.check_weights()
    _check_moves(model, args)
    args.steps = args.steps or _steps(model, args)
    if args.command == "interpolate" and _prompts_alone(args):
        args.seeds = [0]
    args.work(model.sized(size), args)


def _check_moves(model: Model, args: argparse.Namespace) -> None:
    """Raises ValueError for what only clips have: files that move, frames apart."""
    endings = (".png", ".gif") if args.command == "interpolate" else (".png",)
    if args.out is not None and not model.codec.frames:
        files.check_new(args.out, what="--out", suffixes=endings, overwrite=args.overwrite)
    if args.out is not None and model.codec.frames:
        rate = model.frame_rate or clip_writers.FRAME_RATE
        clip_writers.check_writable(Path(args.out), rate)
    if args.alone and not model.codec.frames:
        raise ValueError(f"--alone is of the frames of clips, and {model.name} draws pictures")


def _prompts_alone(args: argparse.Namespace) -> bool:
    """Whether a walk is asked for between prompts, and neither noises nor images are named."""
    names = ("images", "index", "num", "only", "shuffle")
    named = any(
        vars(args)[name] != COMMON[name].get("default") for name in names if vars(args)[name]
    )
    return not args.seeds and not named and len(command_line.prompts(args.prompt)) > 1


def _steps(model: Model, args: argparse.Namespace) -> list[int]:
    """`--steps` where it is not given."""
    own = model.draws_latents and vars(args).get("solver", "") is None
    return [(own and model.recipe.steps) or 50]


def main(argv: list[str] | None = None) -> None:
    """Edits from the command line."""
    args = parse(argv)
    command_line.run(__file__, lambda: run(args))


if __name__ == "__main__":
    main()
