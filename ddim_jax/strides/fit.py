"""Learns strides from a model, for a solver and numbers of steps, and writes them to files.

    python -m ddim_jax.strides.fit --solver=ddim --steps=5,8,12
    python sample.py --solver=ddim --stride=strides/digits-ddim-8.json

A teacher, a sampler of many steps, takes some noise to images. Its trajectories give the learned
candidates (`strides.from_trajectories`), which are raced with the fixed strides on held-out noise
by the actual solver, with the checkpoint's own guidance and clip (`strides.search`). With --refine
the winner's times, and with --coefficients its solver's weights too, are improved by gradients. So
by distance to the teacher the result is at least as good as the best fixed stride. Beside each file
goes a plot of the times and of the distances. At the end all strides are measured on fresh noise
against DDIM of --reference_steps.
"""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ddim_jax import checkpoints, command_line, files, interrupts, parallel, sampling
from ddim_jax.batch_loop import Generator
from ddim_jax.evaluation.asked import ALL_CLASSES, Asked, add_flags, find
from ddim_jax.model import Model
from ddim_jax.names import check_range, lookup, whole_number
from ddim_jax.recipe import MOST_STEPS, Recipe
from ddim_jax.sampling import RunResult
from ddim_jax.schedules import Schedule
from ddim_jax.solvers import SOLVERS, SolverTable
from ddim_jax.strides import learned, search, trajectories
from ddim_jax.strides.search import Drawer, TeacherSamples
from ddim_jax.strides.search_space import FIXED, Evidence, choose

SEED = 0
"""Of all noise; sets of noise differ in their indices."""

SHOWN = ("uniform", "quadratic, fraction 0.8", "quadratic, fraction 1")
"""The fixed strides that learned ones are measured beside."""


class NoiseToImage:
    """A model that takes noise to images by one recipe, on the devices of this process.

    Sample i is that of `sample.py --seed=0`, under class i modulo the number of classes, or as the
    i-th that is asked for.

    Attributes:
        model: the model.
        recipe: its solver, guidance and clip.
        drawer: the sampler as the search takes it: one batch, and differentiable.

    Raises:
        ValueError: guidance that the model was not trained for.
    """

    def __init__(self, model: Model, recipe: Recipe, asked: Asked = ALL_CLASSES):
        model.check(recipe)
        self.model, self.recipe, self._asked = model, recipe, asked
        self._mesh = parallel.make_mesh(jax.local_devices())
        self._sampler = model.sampler(recipe)
        self._guidance = self._conditions(np.arange(1))["guidance"]
        self._generators: dict[tuple[str, ...], Generator] = {}
        params = parallel.replicate(model.params, self._mesh)
        self.drawer = Drawer(self._sample, params, model.schedule, recipe.make_solver())

    def _sample(self, params, table, noise, keys, inputs) -> Any:
        return self._sampler(params, table, noise, keys, inputs, self._guidance).x

    def _conditions(self, index: np.ndarray) -> dict[str, Any]:
        labels = self._asked.labels(self.model.inputs, int(index[-1]) + 1)
        labels = None if labels is None else labels[index]
        prompts = self._asked.prompts(index)
        return self.model.conditions(len(index), self.recipe, labels, prompt=prompts)

    def draw(
        self, table: SolverTable, index: np.ndarray, x: Any = None, collect: Iterable[str] = ()
    ) -> RunResult:
        """Carries the samples `index` along a table, in batches; returns arrays of the host.

        Args:
            table: the sampler.
            index: [N] rising places of the samples, which decide their noise and classes.
            x: [N, ...] what the table starts from, or a `State`; default the noise.
            collect: see `sampling.run`.
        """
        collect = tuple(collect)
        if collect not in self._generators:
            self._generators[collect] = self.model.generator(self.recipe, collect=collect)
        batches = self._generators[collect].batches(
            table, index, seed=SEED, x=jax.tree.map(np.asarray, x), **self._conditions(index)
        )
        results = [result for _, result in batches]
        collected = {
            name: np.concatenate([result.collected[name] for result in results], axis=1)
            for name in collect
        }
        pairs = [(result.x, result.state) for result in results]
        x, state = jax.tree.map(lambda *parts: np.concatenate(parts), *pairs)
        return RunResult(x, state, collected)

    def sampler(self, index: np.ndarray) -> trajectories.Sample:
        """`draw` of the samples `index`, as `trajectories` takes a sampler."""
        return lambda table, x, keys, collect: self.draw(table, index, x, collect)

    def noise(self, index: np.ndarray) -> tuple[Any, Any]:
        """The noise [N, *sample_shape] and keys [N] of the samples `index`."""
        keys = sampling.sample_keys(SEED, index)
        return self.model.initial_noise(keys), keys

    def teacher_samples(self, index: np.ndarray, samples: np.ndarray) -> TeacherSamples:
        """The samples `index`, drawn by a teacher, on the devices with all they depend on."""
        noise, keys = self.noise(index)
        inputs = jax.tree.map(np.asarray, self._conditions(index)["inputs"])
        return parallel.shard(TeacherSamples(noise, keys, inputs, samples), self._mesh)


class TeacherData(NamedTuple):
    """What strides are learned from.

    Attributes:
        evidence: the teacher's trajectories, and the network's errors at their nodes.
        training: the end points of these trajectories.
        held_out: end points of others, to choose by.
    """

    evidence: Evidence
    training: TeacherSamples
    held_out: TeacherSamples


def run_teacher(
    noise_to_image: NoiseToImage, index: np.ndarray, nodes: int
) -> tuple[trajectories.Trajectory, np.ndarray]:
    """Returns a teacher's trajectories from the noise of the samples `index`, and their ends."""
    schedule, sampler = noise_to_image.model.schedule, noise_to_image.sampler(index)
    noise, keys = noise_to_image.noise(index)
    trajectory = trajectories.teacher(sampler, schedule, noise, keys, nodes=nodes)
    return trajectory, trajectory.y[-1].reshape(noise.shape)


def make_teacher_data(noise_to_image: NoiseToImage, num_samples: int, nodes: int) -> TeacherData:
    """Runs the teacher on noise to learn from and on noise to choose by."""
    index = np.arange(num_samples)
    with tqdm(total=3, desc=f"teacher, {2 * nodes - 1} evaluations", unit="pass") as bar:
        trajectory, samples = run_teacher(noise_to_image, index, nodes)
        bar.update()
        sampler, (_, keys) = noise_to_image.sampler(index), noise_to_image.noise(index)
        schedule, times = noise_to_image.model.schedule, trajectory.times[:-1]
        mse = trajectories.noising_errors(sampler, schedule, samples, keys, times)
        bar.update()
        _, others = run_teacher(noise_to_image, num_samples + index, nodes)
        bar.update()
    return TeacherData(
        Evidence(trajectory, mse),
        noise_to_image.teacher_samples(index, samples),
        noise_to_image.teacher_samples(num_samples + index, others),
    )


def refine(
    drawer: Drawer, data: TeacherData, times: np.ndarray, args: argparse.Namespace
) -> search.Refined:
    """`search.refine` with a bar."""
    with tqdm(total=args.refine, desc=f"{len(times) - 1} steps: refine", unit="iteration") as bar:

        def progress(iteration: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(distance=f"{loss:.4f}")

        options = {"iterations": args.refine, "coefficients": args.coefficients}
        return search.refine(
            drawer, times, data.training, data.held_out, progress=progress, **options
        )


def learn(
    noise_to_image: NoiseToImage, data: TeacherData, steps: int, args: argparse.Namespace
) -> learned.LearnedStride:
    """Returns the best stride of the race, refined if that brings it nearer."""
    model, recipe, drawer = noise_to_image.model, noise_to_image.recipe, noise_to_image.drawer
    times, method, scores = choose(drawer, data.evidence, data.held_out, steps)
    history = None
    if args.refine and steps > 1:
        refined = refine(drawer, data, times, args)
        if refined.distance < scores[method]:
            times, history, method = refined.times, refined.history, f"{method}, refined"
            scores = {method: refined.distance} | scores
    return learned.LearnedStride(
        times=times,
        method=method,
        scores=scores,
        solver=recipe.solver,
        lam=model.schedule.half_log_snr(times[:-1]),
        guidance=recipe.guidance_scale,
        checkpoint=model.name,
        weights=model.fingerprint,
        history=history,
    )


def plot(
    path: Path, schedule: Schedule, times: dict[str, np.ndarray], scores: dict[str, float]
) -> None:
    """Plots the levels of the evaluations of some strides, and the distances of all candidates."""
    figure = Figure(figsize=(13, 3.6), layout="tight")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, (name, points) in enumerate(times.items()):
        ratio = np.exp(-schedule.half_log_snr(points[:-1]))
        left.plot(ratio, np.full(len(ratio), -row), "|-", markersize=14, label=name)
    left.set_xscale("log")
    left.invert_xaxis()
    left.margins(y=0.3)
    left.set_yticks([-row for row in range(len(times))], list(times))
    left.set_xlabel("sigma / alpha of the evaluations, noise to clean")
    right.barh(list(scores)[::-1], list(scores.values())[::-1])
    right.set_xlabel("distance to the teacher (RMS)")
    right.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=110)


def _fixed_times(drawer: Drawer, name: str, steps: int) -> np.ndarray:
    return FIXED[name](drawer.schedule, steps, lam_min=drawer.solver.lam_min)


def measure_on_fresh_noise(
    noise_to_image: NoiseToImage,
    strides: dict[int, learned.LearnedStride],
    args: argparse.Namespace,
) -> None:
    """Prints distances to DDIM of many steps, on noise that nothing was chosen by."""
    drawer = noise_to_image.drawer
    index = np.arange(2 * args.num_samples, 3 * args.num_samples)
    print(f"drawing {len(index)} references of {args.reference_steps} steps ...", flush=True)
    table = Recipe("ddim", "uniform", args.reference_steps).table(drawer.schedule)
    fresh = noise_to_image.teacher_samples(index, noise_to_image.draw(table, index).x)
    print("distance to them:", f"{'steps':>8}", *(f"{name:>23}" for name in (*SHOWN, "learned")))
    for steps, stride in strides.items():
        fixed = [_fixed_times(drawer, name, steps) for name in SHOWN]
        tables = [drawer.solver(drawer.schedule, times) for times in fixed]
        tables.append(stride.table(drawer.schedule, drawer.solver))
        distances = [drawer.distance(table, fresh) for table in tables]
        print(" " * 17 + f"{steps:>8}", *(f"{value:23.4f}" for value in distances), flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Returns the flags, checked as far as it can be done without a model."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="digits", help="as of sample.py")
    add("--solver", default="ddim", help="a deterministic one of SOLVERS")
    add("--steps", default="8", help="numbers of steps, like 5,8,12")
    add("--guidance_scale", type=float, help="1: none; default the checkpoint's")
    add("--num_samples", type=int, default=64, help="of each set of noise")
    add_flags(parser)
    add("--nodes", type=int, default=61, help="of the teacher's trajectory")
    add("--refine", type=int, default=0, help="gradient steps after the race, like 40")
    add("--coefficients", action="store_true", help="with --refine: the solver's coefficients too")
    add("--reference_steps", type=int, help="0: no measurement on fresh noise; default 1000")
    add("--out", default="strides", help="folder")
    add("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_args(argv)
    try:
        args.steps = [whole_number(steps) for steps in args.steps.split(",")]
    except ValueError:
        raise ValueError(f"--steps must be whole numbers like 5,8,12, got {args.steps}") from None
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    if lookup(SOLVERS, args.solver, "solver").stochastic:
        raise ValueError(
            f"strides are learned from where noise ends up, and {args.solver} adds its own; learn "
            "for a deterministic solver such as ddim and use the stride with both"
        )
    check_range("--nodes", args.nodes, "[2, 1001]", whole=True)
    check_range("--refine", args.refine, "[0, inf)", whole=True)
    if args.coefficients and not args.refine:
        raise ValueError("--coefficients needs --refine, like --refine=40, got 0")
    if args.reference_steps is not None:
        check_range("--reference_steps", args.reference_steps, f"[0, {MOST_STEPS}]", whole=True)
    if min(args.steps) < 1 or max(args.steps) >= args.nodes:
        raise ValueError(f"--steps must be 1..{args.nodes - 1} (below --nodes), got {args.steps}")
    devices = jax.local_device_count()
    if args.num_samples < 1 or args.num_samples % devices:
        raise ValueError(
            f"--num_samples must be at least 1 and a multiple of the {devices} devices, got "
            f"{args.num_samples}; 64 is usual"
        )


def reference_steps(schedule: Schedule, asked: int | None) -> int:
    """The steps of --reference_steps: 1000 unless asked, or all of a schedule that has fewer.

    Raises:
        ValueError: more are asked for than the schedule has.
    """
    most = schedule.num_steps or MOST_STEPS
    if asked is None:
        return min(1000, most)
    hint = f"the schedule {schedule.name} has no more; 0 measures nothing"
    return check_range("--reference_steps", asked, f"[0, {most}]", hint, whole=True)


def run(args: argparse.Namespace) -> None:
    """Learns, writes, plots, measures."""
    model = checkpoints.load(args.checkpoint)
    model.check_weights()
    args.reference_steps = reference_steps(model.schedule, args.reference_steps)
    folder, overwrite = Path(args.out), args.overwrite
    paths = {steps: folder / f"{model.name}-{args.solver}-{steps}.json" for steps in args.steps}
    for path in paths.values():
        files.check_new(path, what="--out:", overwrite=overwrite)
    recipe = model.recipe.replace(solver=args.solver, guidance_scale=args.guidance_scale)
    asked = find(model.inputs, args.asked, args.asked_split)
    noise_to_image = NoiseToImage(model, recipe, asked)
    drawer, strides = noise_to_image.drawer, {}
    for steps, name in itertools.product(args.steps, SHOWN):
        _fixed_times(drawer, name, steps)  # says now which do not fit
    data = make_teacher_data(noise_to_image, args.num_samples, args.nodes)
    for steps, path in paths.items():
        strides[steps] = stride = learn(noise_to_image, data, steps, args)
        learned.save(path, stride, overwrite)
        interrupts.keeping(f"{', '.join(map(str, list(paths.values())[: len(strides)]))} are kept")
        names = ("uniform", "quadratic, fraction 1")
        times = {name: _fixed_times(drawer, name, steps) for name in names}
        times["learned"] = stride.times
        plot(path.with_suffix(".png"), model.schedule, times, stride.scores)
        print(f"{path}: {stride.method}; distance to the teacher on held-out noise:")
        for name, score in list(stride.scores.items())[:12]:
            print(f"  {score:.4f}  {name}")
    if args.reference_steps:
        measure_on_fresh_noise(noise_to_image, strides, args)


def main(argv: list[str] | None = None) -> None:
    """Learns strides from the command line."""
    command_line.run(__file__, lambda: run(parse(argv)))


if __name__ == "__main__":
    main()
