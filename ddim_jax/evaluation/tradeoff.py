"""Measures quality against network evaluations: draws the samples, writes numbers and plots.

    python -m ddim_jax.evaluation.tradeoff --solver=ddim,unipc_2 --nfe=5,8,10,15,20
    python -m ddim_jax.evaluation.tradeoff --preset=paper --num_samples=50000 \\
        --checkpoint=runs/cifar10 --stride=quadratic --features=inception:pt_inception.pth \\
        --reference=cifar10.npz

sweeps solvers x strides x steps x eta x guidance scales over a checkpoint. It says what that costs
before it starts, keeps every shard of 500 samples (`shards.py`), so that the same command continues
where it was stopped, and writes to --workdir

    NAME.json, NAME.csv    every number, and what it was measured with (`scores.py`)
    NAME_*.png             quality, Pareto front, guidance, cost, and the pictures (`plots.py`)
    NAME.md                with --preset=paper, the layout of DDIM's Table 1

All cells of a sweep have the same number of samples and the same noise. Sweeps in one workdir share
their samples. Distilled students join the checkpoint's samplers in one plot:

    python -m ddim_jax.evaluation.tradeoff --steps=5,10,20 --students=digits_4step,runs/ect:1:2

as do the results of earlier sweeps, by --also=NAME.csv.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import checkpoints, command_line, experiment, files, interrupts, keys, parallel
from ddim_jax.batch_loop import Generator, check_count
from ddim_jax.denoisers import CLIPS
from ddim_jax.evaluation import feature_networks, metrics, plots, results, scores, shards, sweep
from ddim_jax.evaluation.asked import ALL_CLASSES, Asked, add_flags
from ddim_jax.evaluation.asked import find as find_asked
from ddim_jax.evaluation.features import FeatureNetwork
from ddim_jax.evaluation.scores import Evaluator
from ddim_jax.evaluation.sweep import PlannedCell
from ddim_jax.model import Model
from ddim_jax.names import check_range, whole_number
from ddim_jax.recipe import MOST_STEPS, Recipe


def announce(
    cells: list[PlannedCell], model: Model, generator: Generator, args: argparse.Namespace
) -> None:
    """Says what will be drawn and how long it will take."""
    total = sum(cell.missing * cell.passes for cell in cells)
    evaluations = sum(cell.missing * cell.nfe for cell in cells)
    print(
        f"{len(cells)} cells x {args.num_samples} samples of {model.name}: "
        f"{sum(cell.missing for cell in cells):,} samples to draw, {evaluations:,} network "
        "evaluations"
        + (f", {total:,} forward passes with guidance" if total != evaluations else "")
    )
    if total:
        rate = _passes_per_second(model, generator, args.batch_size)
        print(f"about {_duration(total / rate)} at {rate:,.0f} forward passes a second", flush=True)


def _passes_per_second(model: Model, generator: Generator, count: int) -> float:
    """Forward passes a second of a batch of `count`, measured on four steps of DDIM."""
    recipe = Recipe("ddim", "uniform", 4)
    table, labels = recipe.table(model.schedule), model.inputs.labels(None, count)
    conditions = model.conditions(count, recipe, labels, table)
    for _ in range(2):  # the first run is slower
        before = generator.seconds
        for _ in generator.batches(table, np.arange(count), batch_size=count, **conditions):
            pass
    return table.nfe * count / (generator.seconds - before)


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{int(seconds)} s"


def measure(
    cell: PlannedCell, evaluator: Evaluator, args: argparse.Namespace, asked: Asked = ALL_CLASSES
) -> dict[str, Any]:
    """Measures a cell whose samples are there; returns its record."""
    drawing = cell.shards.read(args.num_samples)._asdict()
    del drawing["images"]
    features = cell.shards.features(evaluator.network, args.num_samples)
    labels = asked.labels(cell.model.inputs, args.num_samples)
    prompts = asked.prompts(np.arange(args.num_samples))
    record = shards.settings(cell.recipe, args.seed) | {"cell": cell.name}
    if cell.family:
        record |= {"student": cell.family, "weights": cell.shards.identity["weights"]}
    record |= {"nfe": cell.nfe, "forward_passes": cell.passes}
    return record | scores.score(features, evaluator, labels, prompts) | drawing


def run(args: argparse.Namespace) -> None:
    """Plans, draws, measures and plots."""
    start, folder = time.perf_counter(), Path(args.workdir)
    files.check_folder(folder, f"--workdir {folder}")
    base, model = folder / args.name, checkpoints.load(args.checkpoint)
    args.clip = args.clip or model.recipe.clip
    network = feature_networks.load(args.features)
    metrics.check_count(args.num_samples, network.dimensions)
    if args.num_samples < scores.FEW:
        print(
            f"note: {network.names[0]} of {args.num_samples} samples is biased upwards; compare "
            "equal numbers only, and say how many beside it",
            file=sys.stderr,
        )
    statistics, real = scores.find_data(
        network, args.reference, args.real, model.codec.picture_shape, experiment.cut(model.config)
    )
    generator = model.generator(Recipe(clip=args.clip))
    asked = find_asked(model.inputs, args.asked, args.asked_split, network.gallery)
    cells = sweep.plan(args, model, generator, asked)
    names = [cell.name for cell in cells]
    results.check_name(base, names, args.num_samples)
    others = results.read(args.also, args.num_samples, network.names[0])
    announce(cells, model, generator, args)
    if args.plan:
        return
    with tqdm(total=real and len(real), unit="image", desc="real images", leave=False) as bar:
        evaluator = scores.make_evaluator(network, statistics, real, folder, update=bar.update)
    about = scores.provenance(model, evaluator) | {
        "num_samples": args.num_samples,
        "asked": asked.name or None,
        "cells": names,
        "baseline": shards.cell_name(sweep.baseline(args), args.seed) if args.baseline else None,
    }
    records = draw_and_measure(about, cells, evaluator, args, asked)
    few = [cell.shards.read(min(plots.SHOWN, args.num_samples)).images for cell in cells]
    written = plots.all_plots(base, about, records, network.names[0], few, others)
    if args.preset == "paper":
        base.with_suffix(".md").write_text(results.paper_table(records, network.names[0]))
        written.append(base.with_suffix(".md"))
    print(f"{_duration(time.perf_counter() - start)}: {base}.json, .csv", *written, sep="\n")


def draw_and_measure(
    about: dict[str, Any],
    cells: list[PlannedCell],
    evaluator: Evaluator,
    args: argparse.Namespace,
    asked: Asked = ALL_CLASSES,
) -> list[dict[str, Any]]:
    """Draws what is missing of each cell, measures it, and writes the records so far."""
    interrupts.keeping("what is drawn is kept; the same command continues from here")
    records, total = [], sum(cell.missing * cell.passes for cell in cells)
    with tqdm(total=total, unit="pass", unit_scale=True, disable=not total) as bar:
        for cell in cells:
            bar.set_description(cell.name)
            shards.draw(
                cell.model, cell.recipe, cell.generator, cell.shards, args.num_samples,
                asked=asked, seed=args.seed, batch_size=args.batch_size,
                update=lambda count, cell=cell: bar.update(count * cell.passes),
            )  # fmt: skip
            bar.set_description(f"{cell.name}: features")
            records.append(measure(cell, evaluator, args, asked))
            results.write(Path(args.workdir) / args.name, about, records)
            tqdm.write(_summary(records[-1], cell, evaluator.network))
    return records


def _summary(record: dict[str, Any], cell: PlannedCell, network: FeatureNetwork) -> str:
    """A cell's main numbers in one line."""
    shown = (network.names[0], "precision", "recall", "accuracy", "top1", "top5")
    shown += ("bounce", "same", "flicker", "spectral", "label") if network.compare else ()
    parts = [f"{name} {record[name]:.4g}" for name in shown if name in record]
    return f"{cell.name}: NFE {cell.nfe}, {', '.join(parts)}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line and checks it as far as it can be without a network."""
    args = _parser().parse_args(argv)
    if args.steps and args.nfe:
        raise ValueError("give --steps or --nfe, not both")
    if args.preset and (args.nfe or args.solver != ["ddim"]):
        raise ValueError("--preset=paper has its own solvers; give neither --solver nor --nfe")
    if args.preset and max(len(args.stride), len(args.guidance_scale)) > 1:
        raise ValueError("--preset=paper is one table: give one --stride and one --guidance_scale")
    if not args.name or Path(args.name).name != args.name:
        raise ValueError(f"--name must be a name without folders, got {args.name!r}")
    check_count(args.num_samples, args.batch_size)
    for nfe in args.nfe:
        check_range("--nfe", nfe, f"[1, {MOST_STEPS}]", whole=True)
    keys.check_seed(args.seed, "--seed")
    parallel.check_batch(args.batch_size, jax.local_device_count())
    return args


def _parser() -> command_line.Parser:
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="digits", help="as of sample.py")
    add(
        "--students", type=_list(str), default=[],
        help="distilled models, each drawn as its own checkpoint says, in the same plot, like "
        "runs/distill_digits/4_step,digits_2step; PATH:1:2 says how many steps",
    )  # fmt: skip
    add("--solver", type=_list(str), default=["ddim"], help="names, like ddim,unipc_2")
    add(
        "--stride", type=_list(str), default=[],
        help="names, also with options like quadratic:fraction=1, or files of learned strides like "
        "strides/digits-{solver}-{steps}.json; default each solver's own",
    )  # fmt: skip
    add("--steps", type=_list(int), default=[], help="intervals of the stride; default 5,10,20,50")
    add("--nfe", type=_list(int), default=[], help="instead of --steps: as many as fit in these")
    add("--eta", type=_list(float), default=[], help="of ddim: 0 adds no noise, 1 is ddpm")
    add("--guidance_scale", type=_list(float), default=[1.0], help="1 for no guidance")
    add("--preset", choices=["paper"], help="paper: rows and columns of DDIM's Table 1")
    add("--baseline", default="", help="solver:steps to compare with, like ddpm:1000")
    add(
        "--also", type=_list(str), default=[],
        help="CSV files of other sweeps of this checkpoint, of as many samples, to join the plots",
    )  # fmt: skip
    add("--num_samples", type=int, default=5000, help="of each cell")
    add("--batch_size", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--clip", choices=list(CLIPS), help="of the clean estimate; default the checkpoint's own")
    add("--features", default="digits", help=feature_networks.NAMES)
    add("--reference", help="npz of statistics, digits_train or digits_test")
    add("--real", help="real images for KID, precision and recall, like npz:PATH")
    add_flags(parser)
    add("--workdir", default="runs/quality", help="for samples and results")
    add("--name", default="tradeoff", help="of the results")
    add("--plan", action="store_true", help="say what it would cost, and stop")
    return parser


def _list(kind: type):
    read_one = whole_number if kind is int else kind

    def read(text: str) -> list:
        return [read_one(part) for part in text.split(",")]

    read.__name__ = f"list of {kind.__name__}"
    return read


def main(argv: list[str] | None = None) -> None:
    """Runs a sweep from the command line."""
    command_line.run("tradeoff", lambda: run(parse(argv)))


if __name__ == "__main__":
    main()
