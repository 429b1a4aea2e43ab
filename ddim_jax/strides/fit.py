"""Learns strides from a network, for a solver and numbers of steps, and writes them to files.

    python -m ddim_jax.strides.fit --solver=ddim --steps=5,8,12
    python sample.py --solver=ddim --stride=strides/digits-ddim-8.json

A teacher pass over some noise gives the trajectories that candidates are derived from
(`strides.adaptive`); all of them, and the fixed strides, are raced with the actual solver at the
actual guidance (`strides.search`) on held-out noise; with --refine the winner's times, and with
--coefficients its solver's weights too, go on by gradients. So the result is not further from the
teacher, by that measure, than the best fixed stride. Beside each file goes a plot of the knots and
of the distances. At the end the strides are measured once more, on fresh noise, against DDIM of
--reference_steps.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import commands, experiment, generation, parallel, sampling
from ddim_jax.guidance import Guidance
from ddim_jax import checkpoints
from ddim_jax.schedules import Schedule
from ddim_jax.solvers import LIMIT, SOLVERS, Solver, SolverInfo
from ddim_jax.strides import adaptive, learned, search
from ddim_jax.strides.search_space import FIXED, LASTS, STARTS, Candidate, Evidence, families, propose

FEW = 16
"""Samples on which the many candidates are sifted before the race."""


class Pupil:
    """A network with its condition and guidance, over the devices of this process, and noise."""

    def __init__(self, model: checkpoints.Pretrained, guidance_scale: float):
        self.model, self.parts = model, model.experiment
        self.mesh = parallel.make_mesh(jax.local_devices())
        self.params = parallel.replicate(model.params, self.mesh)
        self.guidance = None if guidance_scale == 1 else Guidance(guidance_scale)
        generation.check(model, 1, 1, self.guidance)
        self._samplers = {}

    def run(self, params, table, x, keys, cond, collect=()):
        """`sampling.RunResult` of a table."""
        if collect not in self._samplers:
            self._samplers[collect] = self.parts.sampler(collect=collect)
        return self._samplers[collect](params, table, x, keys, cond, self.guidance)

    def sample(self, params, table, x, keys, cond):
        """The samples alone; see `search.Sample`."""
        return self.run(params, table, x, keys, cond).x

    def noise(self, first: int, count: int):
        """(x, keys, cond) of the samples with these indices, all classes in rotation."""
        labels = generation.make_labels(self.model, None, first + count)
        index = np.arange(first, first + count)
        keys = sampling.sample_keys(0, index)
        labels = None if labels is None else labels[index]
        x = sampling.initial_noise(keys, self.parts.image_shape)
        return parallel.shard((x, keys, self.parts.cond(labels)), self.mesh)

    def collector(self, cond):
        """A sampler as `adaptive` takes it."""

        def sample(table, x, keys, collect):
            return self.run(self.params, table, x, keys, cond, collect)

        return sample

    def teach(self, first: int, count: int, nodes: int):
        """A teacher's trajectory and the lesson it ends in."""
        x, keys, cond = self.noise(first, count)
        schedule = self.parts.schedule
        trajectory = adaptive.teacher(self.collector(cond), schedule, x, keys, nodes=nodes)
        end = parallel.shard(trajectory.y[-1].reshape(x.shape), self.mesh)
        return trajectory, search.Lesson(x, keys, cond, end)

    def observe(self, trajectory: adaptive.Trajectory, lesson: search.Lesson) -> Evidence:
        """The trajectory, and the errors at its nodes on what it ended in, noised again."""
        sample, times = self.collector(lesson.cond), trajectory.times[:-1]
        mse = adaptive.noising_errors(sample, self.parts.schedule, lesson.end, lesson.keys, times)
        return Evidence(trajectory, mse)


class Course(NamedTuple):
    """What strides of one network are learned from."""

    pupil: Pupil
    evidence: Evidence
    lesson: search.Lesson
    held_out: search.Lesson


def enroll(pupil: Pupil, num_samples: int, nodes: int) -> Course:
    """Teacher passes over noise to learn from and noise to choose by, and one over noised ends."""
    with tqdm(total=3, desc=f"teacher, {2 * nodes - 1} evaluations", unit="pass") as bar:
        trajectory, lesson = pupil.teach(0, num_samples, nodes)
        bar.update()
        evidence = pupil.observe(trajectory, lesson)
        bar.update()
        _, held_out = pupil.teach(num_samples, num_samples, nodes)
        bar.update()
    return Course(pupil, evidence, lesson, held_out)


def choose(course: Course, solver: Solver, info: SolverInfo, steps: int):
    """(times of the winner, its name, all scores): the race, sifted on few samples before."""
    schedule, order = course.pupil.parts.schedule, info.order
    limit = LIMIT if info.lam_min is None else info.lam_min
    few = course.held_out.take(np.arange(min(FEW, len(course.held_out.x))))

    def race(candidates: Iterable[Candidate], lesson: search.Lesson, what: str):
        times = propose(candidates, schedule, course.evidence, steps, order)
        with tqdm(total=len(times), desc=f"{steps} steps: {what}", unit="stride") as bar:
            scores = search.race(
                course.pupil.sample, course.pupil.params, solver, schedule, times, lesson,
                progress=lambda *_: bar.update(),
            )  # fmt: skip
        return scores, times

    first, _ = race(
        [Candidate(name, limit, last) for name in families(order) for last in (None, *LASTS)],
        few, "kinds and last levels",
    )  # fmt: skip
    best = list(first)[:4]
    second, _ = race([c._replace(start=start) for c in best for start in STARTS], few, "starts")
    best = sorted({**first, **second}.items(), key=lambda item: item[1])[:6]
    plain = [Candidate(name, info.lam_min) for name in FIXED]
    scores, times = race([*plain, *(c for c, _ in best)], course.held_out, "race")
    winner = next(iter(scores))
    return times[winner], str(winner), {str(name): score for name, score in scores.items()}


def polish(course: Course, solver: Solver, times: np.ndarray, args) -> search.Refined:
    """`search.refine` with a bar."""
    with tqdm(total=args.refine, desc=f"{len(times) - 1} steps: refine", unit="iteration") as bar:

        def progress(iteration: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(distance=f"{loss:.4f}")

        return search.refine(
            course.pupil.sample, course.pupil.params, solver, course.pupil.parts.schedule,
            times, course.lesson, course.held_out,
            iterations=args.refine, coefficients=args.coefficients, progress=progress,
        )  # fmt: skip


def learn(course: Course, steps: int, args) -> files.LearnedStride:
    """The best stride of the race, refined."""
    info, model = SOLVERS[args.solver], course.pupil.model
    solver = info.make()
    times, method, scores = choose(course, solver, info, steps)
    history = None
    if args.refine and steps > 1:
        refined = polish(course, solver, times, args)
        if refined.distance < scores[method]:
            times, history, method = refined.times, refined.history, f"{method}, refined"
            scores = {method: refined.distance} | scores
    return files.LearnedStride(
        times=times,
        method=method,
        scores=scores,
        solver=args.solver,
        lam=model.experiment.schedule.half_log_snr(times[:-1]),
        guidance=args.guidance_scale,
        checkpoint=model.name,
        weights=checkpoints.fingerprint(model.params),
        history=history,
    )


def plot(path: Path, schedule: Schedule, times: dict[str, np.ndarray], scores: dict) -> None:
    """Knots over sigma / alpha, and the distances of all candidates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 3.6), width_ratios=(3, 2))
    for row, (name, points) in enumerate(times.items()):
        ratio = np.exp(-schedule.half_log_snr(points[:-1]))
        left.plot(ratio, np.full(len(ratio), -row), "|-", markersize=14, label=name)
    left.set_xscale("log")
    left.invert_xaxis()
    left.margins(y=0.3)
    left.set_yticks([-row for row in range(len(times))], list(times))
    left.set_xlabel("sigma / alpha of the evaluations, noise to clean")
    names, values = [str(name) for name in scores], list(scores.values())
    right.barh(names[::-1], values[::-1])
    right.set_xlabel("distance to the teacher (RMS)")
    right.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def check_on_fresh_noise(course: Course, learned: dict[int, files.LearnedStride], args) -> None:
    """Prints distances to DDIM of many steps, on noise that nothing was chosen by."""
    pupil, schedule, info = course.pupil, course.pupil.parts.schedule, SOLVERS[args.solver]
    x, keys, cond = pupil.noise(2 * args.num_samples, args.num_samples)
    print(f"drawing {len(x)} references of {args.reference_steps} steps ...", flush=True)
    many = experiment.build_table(schedule, "ddim", "uniform", args.reference_steps)
    end = pupil.sample(pupil.params, many, x, keys, cond)
    lesson = search.Lesson(x, keys, cond, end)
    shown = ("uniform", "quadratic", "quadratic, fraction 1")
    print("distance to them:", f"{'steps':>8}", *(f"{name:>22}" for name in (*shown, "learned")))
    for steps, stride in learned.items():
        plain = [FIXED[name](schedule, steps, lam_min=info.lam_min) for name in shown]
        tables = [info.make()(schedule, times) for times in plain]
        tables.append(stride.table(schedule, info.make()))
        far = [search.distance(pupil.sample, pupil.params, t, lesson) for t in tables]
        print(" " * 17 + f"{steps:>8}", *(f"{value:22.4f}" for value in far), flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as it can be without a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="digits", help="as of sample.py")
    parser.add_argument("--solver", default="ddim", help="a deterministic one of SOLVERS")
    parser.add_argument("--steps", default="8", help="numbers of steps, like 5,8,12")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--num_samples", type=int, default=64, help="of each set of noise")
    parser.add_argument("--nodes", type=int, default=61, help="of the teacher's trajectory")
    parser.add_argument(
        "--refine", type=int, default=0, help="gradient steps after the race, like 40"
    )
    parser.add_argument("--coefficients", action="store_true", help="also refine the solver's")
    parser.add_argument("--reference_steps", type=int, default=1000, help="0: no last measurement")
    parser.add_argument("--out", default="strides", help="folder")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    try:
        args.steps = [int(steps) for steps in args.steps.split(",")]
    except ValueError:
        raise ValueError(f"--steps must be whole numbers like 5,8,12, got {args.steps}") from None
    experiment.lookup(SOLVERS, args.solver, "solver")
    if SOLVERS[args.solver].stochastic:
        raise ValueError(
            f"strides are learned from where noise ends up, and {args.solver} adds its own; learn "
            "for a deterministic solver such as ddim and use the stride with both"
        )
    if min(args.steps) < 1 or max(args.steps) >= args.nodes:
        raise ValueError(f"--steps must be 1..{args.nodes - 1} (below --nodes), got {args.steps}")
    if args.num_samples < 1:
        raise ValueError(f"--num_samples must be at least 1, got {args.num_samples}")
    parallel.check_batch(args.num_samples, jax.local_device_count())
    return args


def path_of(args, name: str, steps: int) -> Path:
    """The stride's file, which may be written."""
    path = Path(args.out) / f"{name}-{args.solver}-{steps}.json"
    if path.exists() and not args.overwrite:
        raise FileExistsError(f"{path} exists; choose another --out, or pass --overwrite")
    return path


def run(args: argparse.Namespace) -> None:
    """Learns, writes, plots, measures."""
    model = checkpoints.load(args.checkpoint)
    paths = {steps: path_of(args, model.name, steps) for steps in args.steps}
    pupil = Pupil(model, args.guidance_scale)
    course, learned = enroll(pupil, args.num_samples, args.nodes), {}
    schedule, lam_min = model.experiment.schedule, SOLVERS[args.solver].lam_min
    for steps, path in paths.items():
        learned[steps] = stride = learn(course, steps, args)
        files.save(path, stride, args.overwrite)
        fixed = {
            name: FIXED[name](schedule, steps, lam_min=lam_min) for name in ("uniform", "quadratic")
        }
        plot(path.with_suffix(".png"), schedule, fixed | {"learned": stride.times}, stride.scores)
        print(f"{path}: {stride.method}; distance to the teacher on held-out noise:")
        for name, score in list(stride.scores.items())[:12]:
            print(f"  {score:.4f}  {name}")
    if args.reference_steps:
        check_on_fresh_noise(course, learned, args)


def main(argv: list[str] | None = None) -> None:
    """Learns strides from the command line."""
    commands.run(__file__, lambda: run(parse(argv)))


if __name__ == "__main__":
    main()
