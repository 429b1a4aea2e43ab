"""Searches the times of a few-step sampler by the quality of its samples, and writes a stride.

    python -m ddim_jax.evaluation.times --checkpoint=runs/digits_ect --steps=2,4
    python sample.py --checkpoint=runs/digits_ect --stride=strides/FILE.json

For samplers that add noise, such as those of consistency models, there is no end point of a teacher
to match (`strides.fit` does that for deterministic ones), so samples are compared as a set: by the
Frechet distance. Times are searched one after another, each by golden-section search over half
log-SNR between the one before and the clean end; all candidates draw from the same noise. The
result is a fit to that noise and that many samples: measure it with another seed.

Source: Song et al. 2023 (arXiv:2303.01469), section 3 and appendix D, where the search is ternary.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddim_jax import checkpoints, command_line, experiment, files, interrupts, keys
from ddim_jax.batch_loop import check_count
from ddim_jax.evaluation import asked, feature_networks, metrics, scores
from ddim_jax.model import Model
from ddim_jax.names import check_range, parse_value
from ddim_jax.strides import learned

GOLDEN = (5**0.5 - 1) / 2
ROOM = 0.05
"""The least distance of neighbouring times, in half log-SNR."""


def golden_section(
    score: Callable[[float], float], low: float, high: float, trials: int
) -> tuple[float, float]:
    """Searches the minimum of a function that is unimodal in low..high, by so many values of it.

    Returns:
        Argument and value.

    Raises:
        ValueError: fewer than two trials, or an empty interval.
    """
    if trials < 2 or not low < high:
        raise ValueError(f"a search needs 2 trials and low < high, got {trials} in {low}..{high}")
    points = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    values = {point: score(point) for point in points}
    for _ in range(trials - 2):
        left, right = points
        if values[left] <= values[right]:
            high, new = right, right - GOLDEN * (right - low)
            points = [new, left]
        else:
            low, new = left, left + GOLDEN * (high - left)
            points = [right, new]
        values[new] = score(new)
    best = min(values, key=values.get)
    return best, values[best]


def search(
    score: Callable[[list[float]], float], first: float, last: float, steps: int, trials: int
) -> list[float]:
    """Searches the half log-SNRs [steps] of the evaluations one after another.

    The noisiest is `first`, and none is cleaner than `last`. Less of the score, of some or all of
    them, is better; `trials` scores are taken for each.
    """
    chosen = [first]
    while len(chosen) < steps:
        low, high = chosen[-1] + ROOM, last - ROOM * (steps - len(chosen) - 1)
        chosen.append(golden_section(lambda lam: score([*chosen, lam]), low, high, trials)[0])
    return chosen


class FrechetObjective:
    """The Frechet distance of samples as a function of the sampler's times; the noise is fixed.

    Attributes:
        recipe: how samples are drawn but for the times.
        start: the first time, that of the recipe's stride.
    """

    def __init__(self, model: Model, args: argparse.Namespace):
        self._model, self._args, own = model, args, model.recipe
        self.recipe = own.replace(
            solver=args.solver, guidance_scale=args.guidance_scale,
            stride=own.stride or own.make_solver().stride,  # another solver starts there as well
            stride_options=own.stride_options,
        )  # fmt: skip
        model.check(self.recipe)
        self._solver = self.recipe.make_solver()
        self.start = float(self.recipe.replace(steps=1).times(model.schedule)[0])
        self._network = feature_networks.load(args.features)
        metrics.check_count(args.num_samples, self._network.dimensions)
        data = scores.find_data(
            self._network, args.reference, args.real, model.codec.picture_shape,
            experiment.cut(model.config),
        )  # fmt: skip
        self._reference = scores.make_evaluator(self._network, *data).reference.pool
        self._generator = model.generator(self.recipe)
        wanted = asked.find(model.inputs, args.asked, args.asked_split, self._network.gallery)
        self._labels = wanted.labels(model.inputs, args.num_samples)
        self._prompts = wanted.prompts(np.arange(args.num_samples))

    def times(self, lam: list[float]) -> np.ndarray:
        """Returns the times [steps + 1] of evaluations at these half log-SNRs, to the clean end."""
        schedule = self._model.schedule
        inner = [float(schedule.time_of(value)) for value in lam[1:]]
        return np.array([self.start, *inner, schedule.t_span[1]])

    def __call__(self, lam: list[float]) -> float:
        """Draws samples with evaluations at these half log-SNRs; returns their distance."""
        model, index = self._model, np.arange(self._args.num_samples)
        table = self._solver(model.schedule, self.times(lam)).validate()
        given = model.conditions(len(index), self.recipe, self._labels, table, prompt=self._prompts)
        given |= {"seed": self._args.seed, "batch_size": self._args.batch_size}
        batches = self._generator.batches(table, index, **given)
        pools = (self._network.extract(model.pictures(result.x)).pool for _, result in batches)
        return metrics.frechet_distance(metrics.moments(pools), self._reference)


def learn(
    model: Model, objective: FrechetObjective, steps: int, args: argparse.Namespace
) -> learned.LearnedStride:
    """Searches a stride; it lists the distance of every one that was tried."""
    schedule, tried = model.schedule, {}
    first = max(float(schedule.half_log_snr(objective.start)), args.lam_min)
    total = (steps - 1) * args.trials
    with tqdm(total=total, desc=f"{steps} steps", unit="trial") as bar:

        def score(lam: list[float]) -> float:
            name = _name(lam)
            tried[name] = objective(lam)
            bar.update()
            bar.set_postfix(distance=f"{tried[name]:.3f}", at=name)
            return tried[name]

        last = float(schedule.half_log_snr(schedule.t_min)) - ROOM
        best = search(score, first, last, steps, args.trials)
    times = objective.times(best)
    tqdm.write(f"sigma / alpha {_name(best)}: distance {tried[_name(best)]:.4g}")
    return learned.LearnedStride(
        times=times,
        method=f"least Frechet distance of {args.num_samples} samples",
        scores=dict(sorted(tried.items(), key=lambda item: item[1])),
        solver=objective.recipe.solver,
        lam=schedule.half_log_snr(times[:-1]),
        guidance=objective.recipe.guidance_scale,
        checkpoint=model.name,
        weights=model.fingerprint,
    )


def _name(lam: list[float]) -> str:
    """The levels after the first as sigma / alpha, as papers give them."""
    return ", ".join(f"{np.exp(-value):.4g}" for value in lam[1:])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line and checks it as far as it can be without a model."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="digits", help="as of sample.py")
    add("--solver", help="default the checkpoint's own")
    add("--steps", default="2", help="numbers of steps, like 2,4")
    add("--guidance_scale", type=float, help="default the checkpoint's own")
    add("--num_samples", type=int, default=1000, help="drawn for each distance")
    add("--trials", type=int, default=10, help="distances measured for each time")
    add("--lam_min", type=float, default=-4.0, help="half log-SNR from which to search")
    add("--batch_size", type=int, default=100)
    add("--seed", type=int, default=1, help="of the noise")
    add("--features", default="digits", help=feature_networks.NAMES)
    add("--reference", help="npz of statistics, digits_train or digits_test")
    add("--real", help="real images instead of statistics, like npz:PATH")
    asked.add_flags(parser)
    add("--out", default="strides", help="folder")
    add("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    args.steps = [
        check_range("--steps", parse_value(n), "[2, inf)", "one or more, like 2,4", whole=True)
        for n in args.steps.split(",")
    ]
    keys.check_seed(args.seed, "--seed")
    check_range("--trials", args.trials, "[2, 1000]", whole=True)
    check_range("--lam_min", args.lam_min)
    check_count(args.num_samples, args.batch_size)
    return args


def run(args: argparse.Namespace) -> None:
    """Checks, searches and writes."""
    model = checkpoints.load(args.checkpoint)
    model.check_weights()
    solver = args.solver or model.recipe.solver
    paths = {n: Path(args.out) / f"{model.name}-{solver}-{n}.json" for n in args.steps}
    for path in paths.values():
        files.check_new(path, what="--out", overwrite=args.overwrite)
    objective = FrechetObjective(model, args)
    for steps, path in paths.items():
        stride = learn(model, objective, steps, args)
        learned.save(path, stride, args.overwrite)
        interrupts.keeping(f"{path} and those before it are kept")
        print(f"{path}: the best of {len(stride.scores)}")


def main(argv: list[str] | None = None) -> None:
    """Searches from the command line."""
    command_line.run("times", lambda: run(parse(argv)))


if __name__ == "__main__":
    main()
