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

Images are those of `--images`, as `data.load` takes them, or a file; default the bundled digits.
Every command writes a picture and, beside it, a JSON file with its numbers; `--help` after a
command's name lists its options.
"""

import argparse
import time

from ddim_jax import checkpoints, commands, files
from ddim_jax.editing import actions, inpainting
from ddim_jax.editing.inversion import INVERSIONS
from ddim_jax.editing.pictures import MASKS

DIRECTIONS = (actions.arithmetic, actions.attribute)
"""The commands that add a direction to latents; they tell the network no label."""
COMMANDS = (
    actions.invert,
    actions.compare,
    actions.interpolate,
    *DIRECTIONS,
    inpainting.inpaint,
    actions.translate,
    actions.sdedit,
)
"""The commands."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Returns the command, as `work`, and its flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", required=True)
    for work in COMMANDS:
        command = parsers.add_parser(work.__name__, help=work.__doc__.splitlines()[0])
        command.set_defaults(work=work)
        _add_common_flags(command)
        if work not in DIRECTIONS:
            command.add_argument(
                "--label", help="class of all images, number or name; default their own, or none"
            )
        if work not in (inpainting.inpaint, actions.sdedit):
            _add_inversion_flags(command)
        if work in DIRECTIONS:
            _add_direction_flags(command)
        if work in _ADD_OWN_FLAGS:
            _ADD_OWN_FLAGS[work](command.add_argument)
    return parser.parse_args(argv)


def numbers(text: str) -> list[float]:
    """Reads numbers like 0.3,0.5."""
    return [float(part) for part in text.split(",")]


def whole_numbers(text: str) -> list[int]:
    """Reads whole numbers like 3,14,15."""
    return [int(part) for part in text.split(",")]


def _add_common_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--checkpoint", default="digits", help="workdir, .safetensors file or bundled name")
    add("--images", default="digits", help="digits, npz:, folder: or TFDS name, or a file")
    add("--split", default="train", help="of a data set")
    add("--index", type=whole_numbers, default=[], help="like 3,14,15; default the first --num")
    add("--num", type=int, default=10, help="number of images")
    add("--only", type=int, help="take images of this class alone")
    add("--resize", action="store_true", help="crop and resize images to the network's size")
    add("--steps", type=whole_numbers, default=[50], help="of the stride; some commands take more")
    add("--stride", help="name, with options as in quadratic:fraction=1; default uniform")
    add("--guidance_scale", type=float, default=1.0, help="1: none, which inverts best")
    add("--batch_size", type=int, default=64, help="images at a time")
    add("--seed", type=int, default=0, help="of noise")
    add("--columns", type=int, default=10, help="most images of a row in the picture")
    add("--out", help=".png or, of interpolate, .gif; default edits/NAME-0001.png")
    add("--save", help="also write the images of the last row, .npz")
    add("--overwrite", action="store_true", help="replace existing files")


def _add_inversion_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--method", default="fixed_point", help=f"{', '.join(INVERSIONS)}, or a solver")
    add("--refinements", type=int, help="of fixed_point; default 5")


def _add_direction_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--strength", type=numbers, default=[-1.0, -0.5, 0.0, 0.5, 1.0], help="a row for each")
    add("--probe", action="store_true", help="a linear probe, not the difference of means")
    add("--random", action="store_true", help="a random direction of the same norm")


def _add_interpolate_flags(add) -> None:
    add("--seeds", type=whole_numbers, default=[], help="walk between noises with these indices")
    add("--frames", type=int, default=9, help="from one end to the next")
    add("--grid", type=int, default=0, help="between four ends, so many a side")


def _add_attribute_flags(add) -> None:
    add("--by", default="ink", help="ink, or two classes like 7:1")
    add("--learn_from", type=int, default=512, help="number of images to learn the direction from")


def _add_inpaint_flags(add) -> None:
    methods = inpainting.RESTORATIONS
    add("--method", dest="restoration", choices=methods, default="repaint", help="how to agree")
    add("--operator", default="mask", help="what is known: mask, average:2, blur:1.5, grey")
    add("--mask", default="right", help=f"a PNG, white is known; or {', '.join(MASKS)}")
    add("--jump_length", type=int, help="of repaint; default a 25th of the steps")
    add("--resamplings", type=int, default=5, help="of repaint")


def _add_translate_flags(add) -> None:
    add("--toward", help="class to draw, number or name")
    add("--target", help="checkpoint to draw with")


def _add_sdedit_flags(add) -> None:
    add(
        "--strength",
        type=numbers,
        default=[0.3, 0.5, 0.7],
        help="shares of the way, a row for each",
    )
    add("--solver", default="dpm_solver++_2m", help="name of a solver")


def _add_arithmetic_flags(add) -> None:
    add("--toward", required=True, help="images like --images")
    add("--away", required=True, help="images like --images")


_ADD_OWN_FLAGS = {
    actions.invert: lambda add: add("--latents", help="also write the latents here, .npz"),
    actions.interpolate: _add_interpolate_flags,
    actions.arithmetic: _add_arithmetic_flags,
    actions.attribute: _add_attribute_flags,
    inpainting.inpaint: _add_inpaint_flags,
    actions.translate: _add_translate_flags,
    actions.sdedit: _add_sdedit_flags,
}


def run(args: argparse.Namespace) -> None:
    """Checks the paths, loads the model, edits, writes."""
    args.began = time.time()
    if args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    if args.out:
        endings = (".png", ".gif") if args.command == "interpolate" else (".png",)
        overwrite = args.overwrite
        out = files.check_new(args.out, what="--out", suffixes=endings, overwrite=overwrite)
        files.check_new(out.with_suffix(".json"), what="beside --out,", overwrite=overwrite)
    for flag in ("save", "latents"):
        if vars(args).get(flag):
            files.check_new(
                vars(args)[flag], what=f"--{flag}", suffixes=(".npz",), overwrite=args.overwrite
            )
    args.work(checkpoints.load(args.checkpoint), args)


def main(argv: list[str] | None = None) -> None:
    """Edits from the command line."""
    args = parse(argv)
    commands.run(__file__, lambda: run(args))


if __name__ == "__main__":
    main()
