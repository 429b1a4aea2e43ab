"""Searches the times of a few-step sampler by the quality of what it draws, and writes a stride.

    python -m ddim_jax.evaluation.times --checkpoint=runs/digits_ect --steps=2,4
    python sample.py --checkpoint=runs/digits_ect --stride=strides/FILE.json

For samplers that add noise, such as those of consistency models, there is no end point of a teacher
to match (`strides.fit` does that for deterministic ones), so the samples are judged as a set: by
the Frechet distance. Times are found one after another, each by golden-section search over half
log-SNR between the one before and the clean end; all candidates draw from the same noise. It is
a fit to that noise and that many samples: measure the result with another seed.

Source: Song et al. 2023 (arXiv:2303.01469), section 3 and appendix D, where the search is ternary.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddim_jax import commands, data, experiment, generation
from ddim_jax.evaluation import features, metrics, scores
from ddim_jax.guidance import Guidance
from ddim_jax.models import pretrained
from ddim_jax.solvers import SOLVERS
from ddim_jax.strides import files

GOLDEN = (5**0.5 - 1) / 2
ROOM = 0.05
"""Half log-SNR that neighbouring times are apart at least."""


def golden_section(
    score: Callable[[float], float], low: float, high: float, trials: int
) -> tuple[float, float]:
    """(where, how little) of the least of `trials` values of a function, unimodal in low..high.

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
    """Half log-SNRs [steps] of the evaluations, beginning with `first`, one found after another.

    Args:
        score: of the half log-SNRs of the evaluations; less is better.
        first: the noisiest.
        last: the cleanest that is allowed.
        steps: evaluations.
        trials: scores taken for each.
    """
    found = [first]
    while len(found) < steps:
        low, high = found[-1] + ROOM, last - ROOM * (steps - len(found) - 1)
        found.append(golden_section(lambda lam: score([*found, lam]), low, high, trials)[0])
    return found


class Judge:
    """The Frechet distance of what a sampler draws at given times, from the same noise always.

    The first time is that of the network's own stride.
    """

    def __init__(self, model: pretrained.Pretrained, args: argparse.Namespace):
        """Loads the feature network and the statistics.

        Raises:
            ValueError: too few samples; what `generate` cannot do; no such statistics.
        """
        self.schedule, own = model.experiment.schedule, model.config.sample
        stride = own.get("stride_options")
        self.start = experiment.build_times(self.schedule, own.stride, 1, stride)[0]
        self.solver_name = args.solver or own.solver
        info = experiment.lookup(SOLVERS, self.solver_name, "solver")
        options = {} if args.solver else dict(own.get("solver_options") or {})
        self._solver = info.make(**options)
        self.scale = own.get("guidance_scale", 1.0)
        if args.guidance_scale is not None:
            self.scale = args.guidance_scale
        self._guidance = None if self.scale == 1 else Guidance(self.scale)
        generation.check(model, args.num_samples, args.batch_size, self._guidance)
        self._network = features.load(args.features)
        metrics.check_count(args.num_samples, self._network.dimensions)
        found = scores.find_data(
            self._network, args.reference, args.real, model.experiment.image_shape
        )
        self._real = scores.make_ruler(self._network, *found).reference.pool
        self._generator = generation.Generator(model, clip=own.clip)
        self._labels = generation.make_labels(model, None, args.num_samples)
        self._args = args

    def times(self, lam: list[float]) -> np.ndarray:
        """[steps + 1] times of evaluations at these half log-SNRs, to the clean end."""
        inner = [float(self.schedule.time_of(value)) for value in lam[1:]]
        return np.array([self.start, *inner, self.schedule.t_span[1]])

    def __call__(self, lam: list[float]) -> float:
        """The distance."""
        table = self._solver(self.schedule, self.times(lam)).validate()
        count, size, parts = self._args.num_samples, self._args.batch_size, []
        for first in range(0, count, size):
            index = np.arange(first, min(first + size, count))
            labels = None if self._labels is None else self._labels[index]
            drawn = self._generator.draw(
                table, index, seed=self._args.seed, labels=labels, guidance=self._guidance
            )
            parts.append(self._network.extract(data.to_uint8(drawn.x)).pool)
        return metrics.frechet_distance(metrics.moments(iter(parts)), self._real)


def learn(model: pretrained.Pretrained, judge: Judge, steps: int, args) -> files.LearnedStride:
    """The stride that was found, with the distance of every one that was tried."""
    schedule, tried = judge.schedule, {}
    first = max(float(schedule.half_log_snr(judge.start)), args.lam_min)
    total = (steps - 1) * args.trials
    with tqdm(total=total, desc=f"{steps} steps", unit="trial") as bar:

        def score(lam: list[float]) -> float:
            name = _name(lam)
            tried[name] = judge(lam)
            bar.update()
            bar.set_postfix(distance=f"{tried[name]:.3f}", at=name)
            return tried[name]

        last = float(schedule.half_log_snr(schedule.t_min)) - ROOM
        found = search(score, first, last, steps, args.trials)
    times = judge.times(found)
    tqdm.write(f"sigma / alpha {_name(found)}: distance {tried[_name(found)]:.4g}")
    return files.LearnedStride(
        times=times,
        method=f"least Frechet distance of {args.num_samples} samples",
        scores=dict(sorted(tried.items(), key=lambda item: item[1])),
        solver=judge.solver_name,
        lam=schedule.half_log_snr(times[:-1]),
        guidance=judge.scale,
        checkpoint=model.name,
        weights=pretrained.fingerprint(model.params),
    )


def _name(lam: list[float]) -> str:
    """The levels after the first as sigma / alpha, by which the field knows them."""
    return ", ".join(f"{np.exp(-value):.4g}" for value in lam[1:])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as it can be without a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="digits", help="as of sample.py")
    add("--solver", help="default the network's own, from its config")
    add("--steps", default="2", help="numbers of steps, like 2,4")
    add("--guidance_scale", type=float, help="default the network's own")
    add("--num_samples", type=int, default=1000, help="judged at a time")
    add("--trials", type=int, default=10, help="for each time")
    add("--lam_min", type=float, default=-4.0, help="half log-SNR from which to search")
    add("--batch_size", type=int, default=100)
    add("--seed", type=int, default=1, help="of the noise")
    add("--features", default="digits", help=features.NAMES)
    add("--reference", help="npz of statistics, or digits_train, digits_test")
    add("--real", help="data instead of statistics, like npz:PATH")
    add("--out", default="strides", help="folder")
    add("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    steps = args.steps.split(",")
    if not all(n.isdigit() and int(n) > 1 for n in steps):
        raise ValueError(f"--steps must be numbers from 2 on, like 2,4, got {args.steps}")
    args.steps = [int(n) for n in steps]
    if args.trials < 2:
        raise ValueError(f"--trials must be at least 2, got {args.trials}")
    return args


def run(args: argparse.Namespace) -> None:
    """Checks, searches, writes."""
    model = pretrained.load(args.checkpoint)
    solver = args.solver or model.config.sample.solver
    paths = {n: Path(args.out) / f"{model.name}-{solver}-{n}.json" for n in args.steps}
    for path in paths.values():
        if path.exists() and not args.overwrite:
            raise FileExistsError(f"{path} exists; choose another --out, or pass --overwrite")
    judge = Judge(model, args)
    for steps, path in paths.items():
        stride = learn(model, judge, steps, args)
        files.save(path, stride, args.overwrite)
        print(f"{path}: the best of {len(stride.scores)}")


def main(argv: list[str] | None = None) -> None:
    """Searches from the command line."""
    commands.run(__file__, lambda: run(parse(argv)))


if __name__ == "__main__":
    main()
