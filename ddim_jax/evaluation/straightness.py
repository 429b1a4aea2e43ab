"""How straight are the paths of a flow? 0 where one step of Euler is as good as any number.

    python -m ddim_jax.evaluation.straightness --checkpoint=runs/digits_reflow/reflow

Of Euler paths from noise to images, in variables in which a straight path at constant speed is
possible: rectified flow, `x = (1 - t) x0 + t eps`.

Source: Liu et al. 2022 (arXiv:2209.03003), section 2.2, by pixel.
"""

import argparse
from typing import Any

import numpy as np

from ddim_jax import commands, experiment, generation, sampling
from ddim_jax.models import pretrained

Array = Any


def straightness(path: Array, times: Array) -> np.ndarray:
    """Mean square of velocity less mean velocity: of [E + 1, N, ...] points at times [E + 1], [N].

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


def measure(model: pretrained.Pretrained, steps: int, count: int, seed: int = 0) -> np.ndarray:
    """[count] straightness of the paths of a network, labels in rotation.

    Raises:
        ValueError: the network is not of a rectified flow.
    """
    if model.config.schedule.name != "rectified_flow":
        raise ValueError(
            f"straightness is of rectified flows, and {model.name} was trained on the schedule "
            f"{model.config.schedule.name!r}; configs/digits_reflow.py trains one"
        )
    generation.check(model, count, 1, None)
    times = experiment.build_times(model.experiment.schedule, "uniform", steps)
    table = experiment.build_table(model.experiment.schedule, "ddim", "uniform", steps)
    generator = generation.Generator(model, clip="none", collect=("x",))
    labels = generation.make_labels(model, None, count)
    index = np.arange(count)
    path = generator.draw(table, index, seed=seed, labels=labels).collected["x"]
    keys = sampling.sample_keys(seed, index)
    noise = np.asarray(sampling.initial_noise(keys, model.experiment.image_shape))
    return straightness(np.concatenate([noise[None], path]), times)


def main(argv: list[str] | None = None) -> None:
    """Prints the mean over paths, and its standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="training workdir or file")
    parser.add_argument("--steps", type=int, default=32, help="of Euler")
    parser.add_argument("--num_samples", type=int, default=64, help="paths")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    commands.run(__file__, lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Measures, prints."""
    found = measure(pretrained.load(args.checkpoint), args.steps, args.num_samples, args.seed)
    deviation = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0
    print(f"straightness {found.mean():.4g} +- {deviation:.2g}, {args.steps} steps")


if __name__ == "__main__":
    main()
