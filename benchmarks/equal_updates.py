"""Every few-step method of digits, trained for equally many updates, in one table and plot.

    python -m benchmarks.equal_updates --updates=1000 --config.data.name=npz:mnist.npz

Each method is its recipe in configs/ but for its length: all stages of it together take so many
updates, in the recipe's proportions, and all begin with the bundled network. Runs are in --workdir,
go on where they were stopped, and are not trained again once they are done. Then
`ddim_jax.evaluation.tradeoff` measures the students. --methods trains some of them only, and --also
joins what was measured of others, a CSV file of --workdir/quality.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ddim_jax.commands import configs
from ddim_jax.names import lookup

METHODS = {
    "progressive": ("distill_digits", "/4_step,/2_step,/1_step"),
    "reflow": ("digits_reflow", "/one_step"),
    "consistency_distilled": ("digits_cd", "/consistency:1:2:4"),
    "consistency_from_data": ("digits_ect --config.loss.pairs.every={quarter}", ":1:4"),
    "mean_flow": ("digits_mean_flow", ":1:2:4"),
    "shortcut": ("digits_shortcut", ":1:2:4"),
    "flow_map_lsd": ("digits_flow_map", "/flow_map:1:2:4"),
    "flow_map_psd": ("digits_flow_map --config.stages[1].loss.kind=psd", "/flow_map:1:2:4"),
    "moment_matching": ("digits_imm", ":1:2:4"),
    "dmd": ("digits_dmd", "/one_step"),
    "dmd_with_head": ("digits_dmd --config.stages[1].loss.gan=0.01", "/one_step"),
    "sid": ("digits_dmd --config.stages[1].loss.objective=sid", "/one_step"),
}
"""Method -> its recipe with overrides; which of its runs are measured, and in how many steps."""


def main() -> None:
    """Trains what is not trained yet, then measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--also", default="")
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--workdir", type=Path, default=Path("runs/equal_updates"))
    args, others = parser.parse_known_args()
    if args.updates < 100:
        sys.exit(f"--updates must be 100 or more, got {args.updates}: some have six stages")
    students = []
    for name in args.methods.split(","):
        students += train(name, args, others)
    measure(students, args)


def train(name: str, args: argparse.Namespace, others: Sequence[str]) -> list[str]:
    """Runs train.py by a method; answers its students, as `tradeoff --students` wants them."""
    recipe, students = lookup(METHODS, name, "method")
    config, *overrides = recipe.format(quarter=args.updates // 4).split()
    config = configs.load(config, configs.split(overrides)[1])
    stages = {f"stages[{i}].": stage for i, stage in enumerate(config.get("stages", []))}
    stages = stages or {"": config}
    whole = sum(stage["train"]["steps"] for stage in stages.values())
    for path, stage in stages.items():
        length = round(args.updates * stage["train"]["steps"] / whole)
        overrides.append(f"--config.{path}train.steps={length}")
    workdir = args.workdir / name
    named = f"--config={recipe.split()[0]}"
    print(f"{name}: {named} {' '.join(overrides)}", flush=True)
    run = [sys.executable, "train.py", named, f"--workdir={workdir}", *overrides, *others]
    if subprocess.run(run).returncode:
        sys.exit(f"{name} was stopped; the same command goes on")
    return [f"{workdir}{student}" for student in students.split(",")]


def measure(students: list[str], args: argparse.Namespace) -> None:
    """FDD of each student, beside two samplers of the bundled network."""
    command = [sys.executable, "-m", "ddim_jax.evaluation.tradeoff", "--name=equal_updates"]
    command += ["--solver=ddim,unipc_2", "--steps=4,10", "--guidance_scale=1.25"]
    command += [f"--num_samples={args.num_samples}", f"--students={','.join(students)}"]
    command += [f"--workdir={args.workdir / 'quality'}"]
    command += [f"--also={args.also}"] if args.also else []
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
