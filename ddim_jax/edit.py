"""Edits with the deterministic map between noise and image.

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

from ddim_jax import commands, files
from ddim_jax.editing import actions
from ddim_jax.editing.inversion import INVERSIONS
from ddim_jax.editing.pictures import MASKS
from ddim_jax.models import pretrained

WORKS = (
    actions.invert,
    actions.compare,
    actions.interpolate,
    actions.arithmetic,
    actions.attribute,
    actions.inpaint,
    actions.translate,
    actions.sdedit,
)
"""The commands."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command and its flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", required=True)
    numbers = lambda text: [float(part) for part in text.split(",")]  # noqa: E731
    whole = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    for work in WORKS:
        command = parsers.add_parser(work.__name__, help=work.__doc__.splitlines()[0])
        command.set_defaults(work=work)
        add = command.add_argument
        add("--checkpoint", default="digits", help="training workdir, file or bundled network")
        add("--images", default="digits", help="digits, npz:, folder: or TFDS name, or a file")
        add("--split", default="train")
        add("--index", default="", help="which images, like 3,14,15; default the first --num")
        add("--num", type=int, default=10, help="how many")
        add("--only", type=int, help="those of this class")
        add("--resize", action="store_true", help="crop and resize images to the network's size")
        if work not in (actions.arithmetic, actions.attribute):
            add("--label", type=int, help="for all images; default their own, or none")
        add("--steps", type=whole, default=[50])
        add("--stride", help="default uniform")
        add("--guidance_scale", type=float, default=1.0)
        add("--batch_size", type=int, default=64)
        add("--seed", type=int, default=0)
        add("--columns", type=int, default=10, help="most images of a row in the picture")
        add("--out", help=".png or, of interpolate, .gif; default edits/NAME-0001.png")
        add("--save", help="also the images of the last row, .npz")
        add("--overwrite", action="store_true")
        if work is actions.inpaint:
            add("--method", dest="restoration", choices=actions.RESTORATIONS, default="repaint")
            add("--operator", default="mask", help="mask, average:2, blur:1.5, grey")
            add("--mask", default="right", help=f"a PNG, white is known; or {', '.join(MASKS)}")
            add("--jump_length", type=int, help="of repaint; default a 25th of the steps")
            add("--resamplings", type=int, default=5, help="of repaint")
        elif work is not actions.sdedit:
            add("--method", default="fixed_point", help=f"{', '.join(INVERSIONS)}, or a solver")
            add("--refinements", type=int, help="of fixed_point; default 5")
        if work is actions.invert:
            add("--latents", help="also write them here, .npz")
        if work is actions.interpolate:
            add("--seeds", default="", help="walk between noises with these indices, not images")
            add("--frames", type=int, default=9, help="from one to the next")
            add("--grid", type=int, default=0, help="between four, so many a side")
        if work in (actions.arithmetic, actions.attribute):
            add("--strength", type=numbers, default=[-1.0, -0.5, 0.0, 0.5, 1.0])
            add("--probe", action="store_true", help="a linear probe, not the difference of means")
            add("--random", action="store_true", help="a random direction of the same norm")
        if work is actions.arithmetic:
            add("--toward", required=True, help="images like --images")
            add("--away", required=True, help="images like --images")
        if work is actions.attribute:
            add("--by", default="ink", help="ink, or two classes like 7:1")
            add("--learn_from", type=int, default=512, help="so many images")
        if work is actions.translate:
            add("--toward", type=int, help="a class")
            add("--target", help="another checkpoint")
        if work is actions.sdedit:
            add("--strength", type=numbers, default=[0.3, 0.5, 0.7])
            add("--solver", default="dpm_solver++_2m")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Checks, edits, writes."""
    args.began = time.time()
    if args.out:
        suffixes = (".png", ".gif") if args.command == "interpolate" else (".png",)
        out = files.check_new(args.out, suffixes, "--out", args.overwrite)
        files.check_new(out.with_suffix(".json"), (".json",), "beside --out,", args.overwrite)
    for flag in ("save", "latents"):
        if vars(args).get(flag):
            files.check_new(vars(args)[flag], (".npz",), f"--{flag}", args.overwrite)
    model = pretrained.load(args.checkpoint)
    args.work(model, args)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = parse(argv)
    commands.run(__file__, lambda: run(args))


if __name__ == "__main__":
    main()
