"""Quality against network evaluations: the samples, the numbers, the plots.

    python -m ddim_jax.evaluation.tradeoff --solver=ddim,unipc_2 --nfe=5,8,10,15,20
    python -m ddim_jax.evaluation.tradeoff --preset=paper --num_samples=50000 \\
        --checkpoint=runs/cifar10 --stride=quadratic --features=inception:pt_inception.pth \\
        --reference=cifar10.npz

sweeps solvers x strides x steps x eta x guidance scales over a checkpoint. It says what that costs
before it starts, keeps every shard of 500 samples (`cells.py`), so that the same command goes on
where it was stopped, and writes to --workdir

    NAME.json, NAME.csv    every number with what it was measured with (`scores.py`)
    NAME_*.png             quality, Pareto front, guidance, cost, and the pictures (`plots.py`)
    NAME.md                with --preset=paper, the layout of DDIM's Table 1

All cells of a sweep have the same number of samples and the same noise. Sweeps in one workdir share
their samples. Distilled students join the checkpoint's samplers in one plot:

    python -m ddim_jax.evaluation.tradeoff --steps=5,10,20 --students=digits_4step,runs/ect:1:2

as do the results of earlier sweeps, by --also=NAME.csv.
"""

import argparse
import inspect
import itertools
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import commands, experiment, generation, parallel
from ddim_jax.evaluation import cells, features, metrics, plots, results, scores
from ddim_jax.evaluation.cells import Cell, Shards
from ddim_jax.models import pretrained
from ddim_jax.solvers import SOLVERS

PAPER = {"eta": (0.0, 0.2, 0.5, 1.0), "steps": (10, 20, 50, 100, 1000)}
"""DDIM's Table 1 (Song et al. 2021), to which `ddpm_large` adds the row of sigma-hat."""


class Planned(NamedTuple):
    """A cell with its place.

    Attributes:
        model: what draws it.
        family: of a student, the name of its curve; empty for the checkpoint.
        cell: how it is drawn.
        shards: where its samples are.
        nfe: network evaluations of a sample.
        passes: forward passes of a sample; guided evaluations take two.
        missing: samples to draw.
    """

    model: pretrained.Pretrained
    family: str
    cell: Cell
    shards: Shards
    nfe: int
    passes: int
    missing: int

    @property
    def name(self) -> str:
        """Of its folder, without the rest of the path."""
        return self.shards.folder.name


def grid(args: argparse.Namespace) -> list[Cell]:
    """The cells that the command line asks for, in its order.

    Raises:
        ValueError: an unknown solver, or an eta that none takes.
    """
    etas = args.eta or PAPER["eta"] if args.preset == "paper" else args.eta
    chosen = ["ddim", "ddpm_large"] if args.preset == "paper" else args.solver
    takes_eta = {name: "eta" in _parameters(name) for name in chosen}
    if etas and not any(takes_eta.values()):
        raise ValueError(f"--eta is for ddim and its like, got --solver={','.join(chosen)}")
    found = []
    for solver in chosen:
        for stride, eta, scale in itertools.product(
            args.stride or [None],
            etas if etas and takes_eta[solver] else [None],
            args.guidance_scale,
        ):
            for steps in _steps(args, solver):
                name = stride or SOLVERS[solver].stride
                name = name.replace("{solver}", solver).replace("{steps}", str(steps))
                same = "ddpm" if solver == "ddim" and eta == 1 else solver  # so drawn once
                options = (("eta", eta),) if eta and same == solver else ()
                found.append(Cell(same, name, steps, options, scale, args.clip, args.seed))
    if args.baseline:
        found.append(_baseline(args))
    return list(dict.fromkeys(found))


def _parameters(solver: str) -> Any:
    return inspect.signature(experiment.lookup(SOLVERS, solver, "solver").make).parameters


def _steps(args: argparse.Namespace, solver: str) -> Iterator[int]:
    """Numbers of steps; with --nfe, as many as the evaluations allow."""
    if not args.nfe:
        yield from args.steps or (PAPER["steps"] if args.preset == "paper" else [5, 10, 20, 50])
        return
    for nfe in args.nfe:
        steps = max((s for s in range(1, nfe + 1) if SOLVERS[solver].nfe(s) <= nfe), default=0)
        if steps:
            yield steps
        else:
            print(f"{solver} needs more than {nfe} evaluations: left out", file=sys.stderr)


def _baseline(args: argparse.Namespace) -> Cell:
    solver, _, steps = args.baseline.partition(":")
    if not steps.isdigit():
        raise ValueError(f"--baseline must be like ddpm:1000, got {args.baseline}")
    stride = experiment.lookup(SOLVERS, solver, "solver").stride
    return Cell(solver, stride, int(steps), clip=args.clip, seed=args.seed)


def plan(args: argparse.Namespace, model: pretrained.Pretrained) -> list[Planned]:
    """Every cell's table made and its folder opened: what can be wrong is found here.

    Raises:
        ValueError: what `generate` cannot do, steps out of range, samples drawn otherwise.
    """
    wanted = [(model, "", cell, cell.name) for cell in grid(args)]
    for text in args.students:
        student, name, steps = _student(text)
        family = f"{_family(name)}, {student.config.loss.name}"
        for cell in (_own_cell(student, n, args.seed) for n in steps):
            wanted.append((student, family, cell, f"{name.replace('/', '-')}_{cell.name}"))
    planned = []
    for model, family, cell, name in wanted:
        generation.check(model, args.num_samples, args.batch_size, cell.guidance)
        table = cell.table(model.experiment.schedule)
        shards = Shards(Path(args.workdir) / "cells" / name, cells.identity(cell, model, table))
        missing = sum(len(places) for places in shards.missing(args.num_samples))
        guided = cell.guidance is not None and not model.experiment.takes_guidance
        passes = table.nfe * (1 + guided)
        planned.append(Planned(model, family, cell, shards, table.nfe, passes, missing))
    return planned


def _student(text: str) -> tuple[pretrained.Pretrained, str, list[int]]:
    """PATH or PATH:1:2 as (network, name, steps); its own steps if none are given."""
    path, *steps = text.split(":")
    if not all(n.isdigit() and int(n) for n in steps):
        raise ValueError(f"--students must be like PATH or PATH:1:2, got {text!r}")
    model = pretrained.load(path)
    folder = Path(path)
    name = f"{folder.parent.name}/{folder.name}" if folder.is_dir() else folder.stem
    return model, name.lstrip("/"), [int(n) for n in steps] or [model.config.sample.steps]


def _family(name: str) -> str:
    """`digits_4step`, `runs/4_step` and `runs/2_step` without their steps: digits, runs, runs."""
    return re.sub(r"[_/]?\d+_?steps?$", "", name) or name


def _own_cell(model: pretrained.Pretrained, steps: int, seed: int) -> Cell:
    """How a network's config says that it is to be sampled."""
    own = model.config.sample
    options = dict(own.get("stride_options") or {})
    stride = ":".join([own.stride, *(f"{name}={value!r}" for name, value in options.items())])
    solver_options = tuple(dict(own.get("solver_options") or {}).items())
    scale = own.get("guidance_scale", 1.0)
    return Cell(own.solver, stride, steps, solver_options, scale, own.clip, seed)


def announce(planned: list[Planned], generator: generation.Generator, args) -> int:
    """Says what is to be drawn and how long it will take; returns the forward passes."""
    total = sum(p.missing * p.passes for p in planned)
    evaluations = sum(p.missing * p.nfe for p in planned)
    print(
        f"{len(planned)} cells x {args.num_samples} samples of {generator.model.name}: "
        f"{sum(p.missing for p in planned):,} samples to draw, {evaluations:,} network evaluations"
        + (f", {total:,} forward passes with guidance" if total != evaluations else "")
    )
    if total:
        table = Cell("ddim", "uniform", 4).table(generator.model.experiment.schedule)
        index = np.arange(args.batch_size)
        labels = generation.make_labels(generator.model, None, args.batch_size)
        for _ in range(2):  # the first compiles
            before = generator.seconds
            generator.draw(table, index, labels=labels)
        rate = 4 * args.batch_size / (generator.seconds - before)
        print(f"about {_duration(total / rate)} at {rate:,.0f} forward passes a second", flush=True)
    return total


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{int(seconds)} s"


def measure(item: Planned, ruler: scores.Ruler, num_samples: int) -> dict[str, Any]:
    """The record of a cell whose samples are there."""
    drawn = item.shards.read(num_samples)
    found = item.shards.features(ruler.network, num_samples)
    labels = generation.make_labels(item.model, None, num_samples)
    settings = item.cell._asdict() | {"solver_options": dict(item.cell.solver_options)}
    settings |= {"cell": item.name, "stride": Path(item.cell.stride).name}
    if item.family:
        settings |= {"student": item.family, "weights": item.shards.identity["weights"]}
    return (
        settings
        | {"nfe": item.nfe, "forward_passes": item.passes}
        | scores.score(found, ruler, labels)
        | {
            "images_per_second": drawn.images_per_second,
            "process_bytes": drawn.process_bytes,
            "program_bytes": drawn.program_bytes,
        }
    )


def run(args: argparse.Namespace) -> None:
    """Plans, draws, measures, plots."""
    base = Path(args.workdir) / args.name
    model = pretrained.load(args.checkpoint)
    network = features.load(args.features)
    _check_counts(args.num_samples, network)
    found = scores.find_data(network, args.reference, args.real, model.experiment.image_shape)
    planned = plan(args, model)
    names = [item.name for item in planned]
    results.check_name(base, names, args.num_samples)
    others = results.read(args.also, args.num_samples, network.names[0])
    generators = {(id(model), args.clip): generation.Generator(model, clip=args.clip)}
    total = announce(planned, generators[id(model), args.clip], args)
    if args.plan:
        return
    real = 0 if found[1] is None else len(found[1])
    with tqdm(total=real, unit="image", desc="real images", leave=False) as bar:
        ruler = scores.make_ruler(network, *found, Path(args.workdir), bar.update)
    about = scores.provenance(model, ruler) | {
        "num_samples": args.num_samples,
        "cells": names,
        "baseline": _baseline(args).name if args.baseline else None,
    }
    records, start = [], time.perf_counter()
    with tqdm(total=total, unit="pass", unit_scale=True, disable=not total) as bar:
        for item in planned:
            bar.set_description(item.name)
            key = (id(item.model), item.cell.clip)
            if key not in generators:
                generators[key] = generation.Generator(item.model, clip=item.cell.clip)
            cells.draw(
                item.cell, generators[key], item.shards, args.num_samples,
                batch_size=args.batch_size, update=lambda n, i=item: bar.update(n * i.passes),
            )  # fmt: skip
            bar.set_description(f"{item.name}: features")
            records.append(measure(item, ruler, args.num_samples))
            results.write(base, about, records)
            tqdm.write(_line(records[-1], item, network))
    few = [item.shards.read(min(plots.SHOWN, args.num_samples)).images for item in planned]
    written = plots.all_plots(base, about, records, network.names[0], few, others)
    if args.preset == "paper":
        base.with_suffix(".md").write_text(results.paper_table(records, network.names[0]))
        written.append(base.with_suffix(".md"))
    print(f"{_duration(time.perf_counter() - start)}: {base}.json, .csv")
    print("\n".join(str(path) for path in written))


def _line(record: dict[str, Any], item: Planned, network: features.FeatureNetwork) -> str:
    shown = (*network.names[:1], "precision", "recall", "accuracy")
    parts = [f"{name} {record[name]:.4g}" for name in shown if name in record]
    return f"{item.name}: NFE {item.nfe}, {', '.join(parts)}"


def _check_counts(num_samples: int, network: features.FeatureNetwork) -> None:
    metrics.check_count(num_samples, network.dimensions)
    if num_samples < scores.FEW:
        print(
            f"note: {network.names[0]} of {num_samples} samples is biased upwards; compare equal "
            f"numbers only, and quote none below {scores.FEW}",
            file=sys.stderr,
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as it can be without a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="digits", help="as of sample.py")
    add(
        "--students", type=_list(str), default=[],
        help="networks that draw as their own config says, in the same plot, like "
        "runs/distill_digits/4_step,digits_2step; PATH:1:2 says how many steps",
    )  # fmt: skip
    add("--solver", type=_list(str), default=["ddim"], help="names of SOLVERS, like ddim,unipc_2")
    add(
        "--stride", type=_list(str), default=[],
        help="names of STRIDES, also like quadratic:fraction=1, or learned ones like "
        "strides/digits-{solver}-{steps}.json; default each solver's own",
    )  # fmt: skip
    add("--steps", type=_list(int), default=[], help="intervals of the stride; default 5,10,20,50")
    add("--nfe", type=_list(int), default=[], help="instead of steps: as many as fit in these")
    add("--eta", type=_list(float), default=[], help="of ddim")
    add("--guidance_scale", type=_list(float), default=[1.0])
    add("--preset", choices=["paper"], help="paper: rows and columns of DDIM's Table 1")
    add("--baseline", default="", help="solver:steps to compare with, like ddpm:1000")
    add(
        "--also", type=_list(str), default=[],
        help="CSV files of other sweeps of this checkpoint, of as many samples, to join the plots",
    )  # fmt: skip
    add("--num_samples", type=int, default=5000, help="of each cell")
    add("--batch_size", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--clip", default="static", choices=["none", "static", "dynamic"])
    add("--features", default="digits", help=features.NAMES)
    add("--reference", help="npz of statistics, or digits_train, digits_test")
    add("--real", help="data for KID, precision and recall, like npz:PATH")
    add("--workdir", default="runs/quality", help="for samples and results")
    add("--name", default="tradeoff", help="of the results")
    add("--plan", action="store_true", help="say what it would cost, and stop")
    args = parser.parse_args(argv)
    if args.steps and args.nfe:
        raise ValueError("give --steps or --nfe, not both")
    if args.preset and (args.nfe or args.solver != ["ddim"]):
        raise ValueError("--preset=paper has its own solvers; give neither --solver nor --nfe")
    if args.preset and max(len(args.stride), len(args.guidance_scale)) > 1:
        raise ValueError("--preset=paper is one table: give one --stride and one --guidance_scale")
    parallel.check_batch(args.batch_size, jax.local_device_count())
    return args


def _list(kind: type):
    def read(text: str) -> list:
        return [kind(part) for part in text.split(",")]

    read.__name__ = f"list of {kind.__name__}"
    return read


def main(argv: list[str] | None = None) -> None:
    """Runs a sweep from the command line."""
    try:
        commands.run(__file__, lambda: run(parse(argv)))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
