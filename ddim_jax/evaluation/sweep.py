"""The cells of a sweep: which there are, and what of each is on disk already.

`grid` makes the recipes that the command line of `tradeoff` asks for, `plan` adds the students',
makes every table and opens every folder.
"""

import argparse
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ddim_jax import checkpoints
from ddim_jax.batch_loop import Generator
from ddim_jax.evaluation import shards
from ddim_jax.evaluation.asked import ALL_CLASSES, Asked
from ddim_jax.evaluation.shards import Shards
from ddim_jax.model import Model
from ddim_jax.names import lookup, whole_number
from ddim_jax.recipe import ADAPTIVE, Recipe, parse_stride
from ddim_jax.solvers import SOLVERS

PAPER = {"eta": (0.0, 0.2, 0.5, 1.0), "steps": (10, 20, 50, 100, 1000)}
"""DDIM's Table 1 (Song et al. 2021), to which `ddpm_large` adds the row of sigma-hat."""


class PlannedCell(NamedTuple):
    """A cell, and what of it is on disk.

    Attributes:
        model: what draws it.
        recipe: how.
        generator: of the model; the cells of a model share it, so that it compiles once.
        family: of a student, the name of its curve; empty for the checkpoint.
        shards: where its samples are.
        nfe: network evaluations of a sample.
        passes: forward passes of a sample; guided evaluations take two.
        missing: samples to draw.
    """

    model: Model
    recipe: Recipe
    generator: Generator
    family: str
    shards: Shards
    nfe: int
    passes: int
    missing: int

    @property
    def name(self) -> str:
        """Name of its folder, without the rest of the path."""
        return self.shards.folder.name


def grid(args: argparse.Namespace) -> list[Recipe]:
    """Returns the recipes that the command line asks for, in its order."""
    etas = args.eta or PAPER["eta"] if args.preset == "paper" else args.eta
    solvers = ["ddim", "ddpm_large"] if args.preset == "paper" else args.solver
    makers = {name: lookup(SOLVERS, name, "solver").make for name in solvers}
    takes_eta = {name: "eta" in inspect.signature(make).parameters for name, make in makers.items()}
    if etas and not any(takes_eta.values()):
        raise ValueError(f"--eta is for ddim and its like, got --solver={','.join(solvers)}")
    recipes = []
    for solver in solvers:
        own_etas = etas if etas and takes_eta[solver] else [None]
        axes = (args.stride or [None], own_etas, args.guidance_scale, list(_steps(args, solver)))
        for stride, eta, scale, steps in itertools.product(*axes):
            # ddim with eta = 1 is ddpm, which is then drawn once
            name = "ddpm" if solver == "ddim" and eta == 1 else solver
            options = {"eta": eta} if eta and name == solver else {}
            rest = {"guidance_scale": scale, "clip": args.clip}
            if stride is not None:
                own_stride = stride.replace("{solver}", solver).replace("{steps}", str(steps))
                rest |= parse_stride(own_stride)
            recipes.append(Recipe(name, steps=steps, solver_options=options, **rest))
    if args.baseline:
        recipes.append(baseline(args))
    return list({shards.cell_name(recipe): recipe for recipe in recipes}.values())


def _steps(args: argparse.Namespace, solver: str) -> Iterator[int]:
    """Yields numbers of steps; with --nfe, as many as the evaluations allow."""
    if not args.nfe:
        yield from args.steps or (PAPER["steps"] if args.preset == "paper" else [5, 10, 20, 50])
        return
    for nfe in args.nfe:
        steps = max((s for s in range(1, nfe + 1) if SOLVERS[solver].nfe(s) <= nfe), default=0)
        if steps:
            yield steps
        else:
            print(f"{solver} needs more than {nfe} evaluations: left out", file=sys.stderr)


def baseline(args: argparse.Namespace) -> Recipe:
    """Returns the recipe of `--baseline`."""
    solver, _, steps = args.baseline.partition(":")
    try:
        steps = whole_number(steps)
    except ValueError:
        raise ValueError(f"--baseline must be like ddpm:1000, got {args.baseline}") from None
    lookup(SOLVERS, solver, "solver")
    return Recipe(solver=solver, steps=steps, clip=args.clip)


def plan(
    args: argparse.Namespace, model: Model, generator: Generator, asked: Asked = ALL_CLASSES
) -> list[PlannedCell]:
    """Makes the table of every cell and opens its folder, so that errors show before any work.

    The model and its generator, which clips as the command line says, are the checkpoint's; all
    cells are asked for the same.

    Raises:
        ValueError: guidance that the model cannot serve, steps out of range, samples that were
            drawn in another way, a student that is drawn to a tolerance.
    """
    cells = [_planned(args, model, recipe, generator, asked) for recipe in grid(args)]
    for text in args.students:
        student, name, step_counts = _student(text)
        # digits_4step, runs/4_step and runs/2_step are of the families digits, runs and runs
        family = re.sub(r"[_/]?\d+_?steps?$", "", name) or name
        curve, prefix = f"{family}, {student.config.loss.name}", f"{name.replace('/', '-')}_"
        drawn_by = student.generator()
        for steps in step_counts:
            recipe = student.recipe.replace(steps=steps)
            cells.append(_planned(args, student, recipe, drawn_by, asked, curve, prefix))
    return cells


def _planned(args, model, recipe, generator, asked, family="", prefix="") -> PlannedCell:
    """One cell; its folder's name begins with `prefix`."""
    model.check(recipe)
    if recipe.solver == ADAPTIVE:
        raise ValueError(
            f"{model.name} is drawn to a tolerance, and a sweep counts network evaluations; leave "
            "it out, or give it a solver with steps"
        )
    recipe = recipe.replace(steps=len(recipe.times(model.schedule)) - 1)
    table = recipe.table(model.schedule)
    folder = Path(args.workdir) / "cells" / f"{prefix}{shards.cell_name(recipe, args.seed)}"
    samples = Shards(folder, shards.identity(recipe, args.seed, model, table, asked))
    missing = sum(len(places) for places in samples.missing(args.num_samples))
    passes = table.nfe * model.passes(recipe)
    return PlannedCell(model, recipe, generator, family, samples, table.nfe, passes, missing)


def _student(text: str) -> tuple[Model, str, list[int | None]]:
    """PATH or PATH:1:2 as (model, name, steps); [None] for the student's own steps."""
    path, *steps = text.split(":")
    try:
        steps = [whole_number(n) for n in steps]
    except ValueError:
        raise ValueError(f"--students must be like PATH or PATH:1:2, got {text!r}") from None
    model, folder = checkpoints.load(path), Path(path)
    name = f"{folder.parent.name}/{folder.name}" if folder.is_dir() else folder.stem
    return model, name.lstrip("/"), steps or [None]
