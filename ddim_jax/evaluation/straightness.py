"""Measures how straight the paths of a flow are: 0 where one step of Euler is as good as many.

    python -m ddim_jax.evaluation.straightness --checkpoint=runs/digits_reflow/reflow

The paths are those of Euler from noise to images, in variables in which a straight path at constant
speed is possible: rectified flow, `x = (1 - t) x0 + t eps`.

Source: Liu et al. 2022 (arXiv:2209.03003), section 2.2; here divided by the number of pixels.
"""

import argparse
from typing import Any

import numpy as np

from ddim_jax import checkpoints, command_line, keys
from ddim_jax.batch_loop import check_count
from ddim_jax.evaluation.asked import ALL_CLASSES, Asked, add_flags, find
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe

Array = Any


def straightness(path: Array, times: Array) -> np.ndarray:
    """Computes the mean square of velocity minus mean velocity, over time and pixels; [N] float64.

    The N paths have points [E + 1, N, ...] at times [E + 1].

    Raises:
        ValueError: fewer than two points, or not as many as times.
    """
    path, times = np.asarray(path, np.float64), np.asarray(times, np.float64)
    if len(path) < 2 or times.shape != path.shape[:1]:
        raise ValueError(
            f"a path needs two points or more and a time for each, got {path.shape} and "
            f"{times.shape}"
        )
    spans = np.diff(times).reshape(-1, *[1] * (path.ndim - 1))
    velocity = np.diff(path, axis=0) / spans
    mean = (path[-1] - path[0]) / spans.sum()
    squares = ((velocity - mean) ** 2).mean(tuple(range(2, path.ndim)))
    return (squares * (spans / spans.sum()).reshape(-1, 1)).sum(0)


def measure(
    model: Model, steps: int, count: int, seed: int = 0, asked: Asked = ALL_CLASSES
) -> np.ndarray:
    """Measures [count] paths of a model, which must be a rectified flow."""
    if model.config.schedule.name != "rectified_flow":
        raise ValueError(
            f"straightness is of rectified flows, and {model.name} was trained on the schedule "
            f"{model.config.schedule.name!r}; configs/digits_reflow.py trains one"
        )
    recipe = Recipe("ddim", "uniform", steps, clip="none")
    table, times = recipe.table(model.schedule), recipe.times(model.schedule)
    labels, index, parts = asked.labels(model.inputs, count), np.arange(count), []
    noise = np.asarray(model.initial_noise(keys.sample_keys(seed, index)))
    generator = model.generator(recipe, collect=("x",))
    prompts = asked.prompts(index)
    conditions = model.conditions(count, recipe, labels, table, prompt=prompts)
    for rows, result in generator.batches(table, index, seed=seed, x=noise, **conditions):
        path = np.concatenate([noise[rows][None], result.collected["x"]])
        parts.append(straightness(path, times))
    return np.concatenate(parts)


def main(argv: list[str] | None = None) -> None:
    """Prints the mean over paths, and its standard error."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="training workdir or file")
    parser.add_argument("--steps", type=int, default=32, help="of Euler")
    parser.add_argument("--num_samples", type=int, default=64, help="paths")
    parser.add_argument("--seed", type=int, default=0)
    add_flags(parser)
    args = parser.parse_args(argv)
    command_line.run("straightness", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    keys.check_seed(args.seed, "--seed")
    check_count(args.num_samples, args.num_samples)
    model = checkpoints.load(args.checkpoint)
    model.check_weights()
    asked = find(model.inputs, args.asked, args.asked_split)
    values = measure(model, args.steps, args.num_samples, args.seed, asked)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    print(f"straightness {values.mean():.4g} +- {error:.2g}, {args.steps} steps")


if __name__ == "__main__":
    main()
