"""The command `inpaint`: completes images, sharpens, deblurs or colours them.

On models of latents it is that of `latent_inpainting.py`.
"""

import argparse

import numpy as np

from ddim_jax.clip_drawing import known_by, knows_levels
from ddim_jax.editing import pictures, restoration
from ddim_jax.editing.actions import make_editor, start_noise, table_recipe, told
from ddim_jax.editing.editor import squared_error
from ddim_jax.editing.frames import KnownFrames, known_frames
from ddim_jax.editing.judging import judge
from ddim_jax.editing.latent_inpainting import check_of_repaint, inpaint_latents, repaint_table
from ddim_jax.editing.restoration import Known, Operator
from ddim_jax.model import Model
from ddim_jax.names import lookup
from ddim_jax.sampling import Task
from ddim_jax.solvers import SolverTable

RESTORATIONS = ("repaint", "replacement", "ddnm", "dps")
"""Ways to agree with what is known."""


def inpaint(model: Model, args: argparse.Namespace) -> None:
    """Completes images, or sharpens, colours, deblurs them (--operator)."""
    if model.draws_latents:
        inpaint_latents(model, args)
        return
    args.restoration = args.restoration or _usual(model, args)
    _check(model, args)
    check_of_repaint(args, args.restoration)
    x, labels, texts = pictures.read(model, args)
    operator, mask = _operator(args, x.shape)
    table, task = _table_and_task(model, args, operator)
    y = np.asarray(operator.forward(x, mask))
    measured = np.asarray(operator.inverse(y, mask))
    measured = measured if mask is None else measured - (1 - mask)  # black where it is unknown
    editor = make_editor(model, args)
    noise = None
    if model.frame_noise is not None and args.restoration in ("repaint", "replacement"):
        noise = start_noise(model, args, np.arange(len(x)))  # which frames share
    known = Known(y, mask, noise)
    if args.restoration == "levels":
        known = KnownFrames(x, mask[:, :, 0, 0, 0] > 0)
    given = {"task": task, "known": known, "seed": args.seed}
    restored = editor.draw(table, noise, labels, **given, **told(editor, args, texts))
    asked = pictures.Asked.of(model.inputs, len(x), labels, texts)
    numbers = {
        "method": args.restoration,
        "evaluations": table.nfe,
        "known_error": float(np.abs(operator.forward(restored, mask) - y).max()),
        "mean_squared_error": float(squared_error(x, restored).mean()),
    }
    rows = {"image": x, "known": measured, "restored": restored}
    pictures.write(model, args, rows, numbers | judge(model, rows, asked), asked=asked)


def _usual(model: Model, args: argparse.Namespace) -> str:
    """The way to agree where none is asked for."""
    return "levels" if pictures.of_frames(args) and knows_levels(model) else "repaint"


def _check(model: Model, args: argparse.Namespace) -> None:
    """Raises ValueError for what only models of latents have."""
    if args.restoration == "network":
        raise ValueError(
            f"--method=network is of networks made for inpainting; of {model.name} use "
            f"{', '.join(RESTORATIONS)}"
        )
    if args.restoration == "levels":
        if not pictures.of_frames(args):
            raise ValueError(
                "--method=levels is for whole frames: --mask=frames:4-11; of places within them "
                f"use {', '.join(RESTORATIONS)}"
            )
        known_by(model, {"known_by": "levels"})
    for flag, usual in (("strength", 1.0), ("no_paste", False), ("solver", None)):
        if getattr(args, flag) != usual:
            raise ValueError(f"--{flag} of inpaint is for models of latents, not {model.name}")


def _operator(
    args: argparse.Namespace, shape: tuple[int, ...]
) -> tuple[Operator, np.ndarray | None]:
    """`--operator`, and the mask of an operator that has one."""
    name, _, value = args.operator.partition(":")

    def number(default: float) -> float:
        return pictures.number(value, default, f"--operator={name}:")

    makers = {
        "mask": restoration.masking,
        "average": lambda: restoration.average(number(2)),
        "blur": lambda: restoration.blur(number(1.5)),
        "grey": restoration.grey,
    }
    operator = lookup(makers, name, "operator")()
    if value and name in ("mask", "grey"):
        raise ValueError(f"--operator={name} takes no number, got {args.operator!r}")
    if name == "mask":
        return operator, pictures.read_mask(args, shape)
    if args.mask != "right":
        raise ValueError(f"--mask={args.mask} is for --operator=mask, got --operator={name}")
    if args.restoration in ("repaint", "replacement"):
        raise ValueError(
            f"--method={args.restoration} replaces pixels, and --operator={name} keeps none; use "
            "--method=ddnm or dps"
        )
    if name == "grey" and shape[-1] != 3:
        raise ValueError("--operator=grey needs colour images; mask, average and blur do not")
    return operator, None


def _table_and_task(
    model: Model, args: argparse.Namespace, operator: Operator
) -> tuple[SolverTable, Task]:
    solver, eta = ("ddnm", 0.85) if args.restoration == "ddnm" else ("ddim", 1.0)
    if args.restoration == "levels":
        return table_recipe(args, "ddim").table(model.schedule), known_frames(model.schedule)
    recipe = table_recipe(args, solver, eta=eta)
    if args.restoration == "repaint":
        table = repaint_table(model, args, recipe)
    else:
        table = recipe.table(model.schedule)
    tasks = {"ddnm": restoration.ddnm, "dps": restoration.dps}
    if args.restoration in tasks:
        return table, tasks[args.restoration](operator)
    return table, restoration.replacement()
