"""Strides learned from a network: shortest paths, curvature, and what they gain on a mixture."""

import functools
import itertools

import jax
import numpy as np
import pytest

from ddim_jax import sampling, schedules, solvers, strides
from ddim_jax.strides import from_trajectories as learn
from ddim_jax.strides import trajectories
from tests.oracles import GaussianData, Mixture, level_of

SCHEDULES = {name: make() for name, make in schedules.SCHEDULES.items()}
EDM = schedules.edm(sigma_min=0.02, sigma_max=80.0)
MIXTURE = Mixture()
MIXTURE_STD = 0.78619


def follow(denoise, schedule, times, x):
    """A trajectory by Heun's method over sigma / alpha; x [B, D] at the first of the times."""
    level = schedule.level(times)
    ratio = level.sigma / level.alpha
    y, eps = [x / level.alpha[0]], []

    def slope(point, at):
        return np.asarray(denoise(point, level_of(1.0, at)).eps)

    for here, there in zip(ratio[:-1], ratio[1:], strict=True):
        eps.append(slope(y[-1], here))
        step = there - here
        euler = y[-1] + step * eps[-1]
        y.append(euler if there == 0 else y[-1] + step * (eps[-1] + slope(euler, there)) / 2)
    return trajectories.Trajectory(times, ratio, np.array(y), np.array(eps))


def noise_of(schedule, time, *shape):
    level = schedule.level(time)
    x = np.random.default_rng(0).normal(size=shape)
    return x * np.hypot(level.alpha * MIXTURE_STD, level.sigma)


@functools.cache
def trajectory_on(name, nodes=31):
    schedule = SCHEDULES[name]
    times = strides.karras(schedule, nodes, lam_min=-5.1)
    return follow(MIXTURE, schedule, times, noise_of(schedule, times[0], 4, 3))


# --- shortest paths -------------------------------------------------------------------------------


def cost_of(path, costs, discount):
    steps = zip(path[:-1], path[1:], strict=True)
    return sum(discount**k * costs[i, j] for k, (i, j) in enumerate(steps))


def matrices():
    random = np.random.default_rng(1).normal(size=(13, 13))
    trajectory = trajectory_on("edm", nodes=12)
    kinds = {metric: learn.path_costs(trajectory, metric) for metric in learn.METRICS}
    ratio = np.geomspace(80, 0.02, 13)
    return kinds | {
        "random": random,
        "elbo": learn.elbo_costs(ratio, ratio**2 / (1 + ratio**2)),
    }


@pytest.mark.parametrize("kind", ["random", "elbo", *learn.METRICS])
@pytest.mark.parametrize("discount", [0.8, 1.0, 1.15])
def test_shortest_path_is_the_best_of_all_subsets(kind, discount):
    costs, last = matrices()[kind], 12
    inner = itertools.combinations(range(1, last), 3)
    best = min(cost_of((0, *middle, last), costs, discount) for middle in inner)
    path = learn.shortest_path(costs, 4, discount)
    assert path[0] == 0 and path[-1] == last and np.all(np.diff(path) > 0)
    assert cost_of(path, costs, discount) == pytest.approx(best, rel=1e-12)


def test_shortest_path_of_all_steps_visits_every_node():
    costs = np.random.default_rng(2).normal(size=(9, 9))
    np.testing.assert_array_equal(learn.shortest_path(costs, 8), np.arange(9))
    np.testing.assert_array_equal(learn.shortest_path(costs, 1), [0, 8])


@pytest.mark.parametrize("name", list(strides.STRIDES))
def test_no_fixed_stride_is_cheaper_on_the_same_table(name):
    trajectory = trajectory_on("edm", nodes=61)
    costs, nodes = learn.path_costs(trajectory, "l2"), trajectory.times
    for steps in (3, 5, 10, 20):
        knots = strides.STRIDES[name](SCHEDULES["edm"], steps)
        fixed = np.unique(np.abs(nodes[:, None] - knots).argmin(0))
        path = learn.shortest_path(costs, len(fixed) - 1)
        assert cost_of(path, costs, 1.0) <= cost_of(fixed, costs, 1.0)


def test_costs_of_one_step_by_hand():
    """y_0 = (4, 0) to y_2 = (0, 0): the chord is the first axis, heights are second coordinates."""
    times, ratio = np.array([2.0, 1.0, 0.0]), np.array([2.0, 1.0, 0.0])
    y = np.array([[[4.0, 0.0]], [[3.0, 2.0]], [[0.0, 0.0]]])
    eps = np.array([[[1.0, -1.0]], [[3.0, 3.0]]])
    trajectory = trajectories.Trajectory(times, ratio, y, eps)
    # landing points: 0 -> 1 at (3, 1), 0 -> 2 at (2, 2), 1 -> 2 at (0, -1)
    expected = {
        "l2": np.array([1.0, np.sqrt(8), 1.0]) / np.sqrt(2),
        "l1": np.array([0.5, 2.0, 0.5]),
        "dev": np.array([1.0 - 2.0, 2.0, 1.0]) / np.sqrt(2),
    }
    for metric, values in expected.items():
        costs = learn.path_costs(trajectory, metric)
        np.testing.assert_allclose(costs[[0, 0, 1], [1, 2, 2]], values, atol=1e-14)
        assert np.all(np.isposinf(costs[np.tril_indices(3)]))


def test_elbo_is_klub_and_a_constant():
    """KLUB of Gaussian data from the joint law of two levels, not from the martingale."""
    ratio = np.geomspace(80, 0.02, 121)
    std = 0.5

    def mse(s):
        return std**2 * s**2 / (std**2 + s**2)

    def gain(s):
        return std**2 / (std**2 + s**2)

    def klub(start, end):  # int E |x0hat(y_s) - x0hat(y_start)|^2 / s^3 ds, over log s
        s = np.geomspace(end, start, 4001)
        own = (gain(s) - gain(start)) ** 2 * (std**2 + s**2)  # what both levels share
        added = gain(start) ** 2 * (start**2 - s**2)
        return np.trapezoid((own + added) / s**2, np.log(s))

    s = np.geomspace(ratio[-1], ratio[0], 40001)
    constant = np.trapezoid(mse(s) / s**2, np.log(s))
    costs = learn.elbo_costs(ratio, mse(ratio))
    for path in ([0, 30, 60, 90, 120], [0, 50, 70, 80, 100, 120]):
        levels = ratio[path]
        total = sum(klub(*ends) for ends in zip(levels[:-1], levels[1:], strict=True))
        assert cost_of(path, costs, 1.0) - constant == pytest.approx(total, rel=1e-4)


# --- curvature ------------------------------------------------------------------------------------


def bent(eps_of, ratio=None):
    """A trajectory on EDM's schedule whose eps is a function of sigma; its y is 1."""
    times = np.append(np.geomspace(80, 0.02, 121) if ratio is None else ratio, 0.0)
    eps = eps_of(times[:-1])[:, None, None] * np.ones((1, 2, 3))
    return trajectories.Trajectory(times, times, np.ones((len(times), 2, 3)), eps)


@pytest.mark.parametrize("slope", [3.0, 0.0])
def test_constant_curvature_is_even_in_sigma(slope):
    """So is none at all."""
    trajectory = bent(lambda s: slope * s)
    times = learn.curvature(EDM, trajectory, 7, propagate=False, terminal="min")
    np.testing.assert_allclose(times, np.linspace(80, 0.02, 8), rtol=1e-9)


def test_constant_second_derivative_is_even_in_sigma():
    trajectory = bent(lambda s: 3 * s**2, np.linspace(80, 0.02, 400))
    times = learn.curvature(EDM, trajectory, 7, order=2, propagate=False, terminal="min")
    np.testing.assert_allclose(np.diff(times), (0.02 - 80) / 7, rtol=0.01)


@pytest.mark.parametrize("order", [1, 2])
def test_constant_curvature_of_x0_is_even_in_log_snr(order):
    # eps = (y - x0) / sigma with y = 1 and x0 = lam^order: gradient() is exact up to the ends
    trajectory = bent(lambda s: (1 - (-np.log(s)) ** order) / s)
    times = learn.curvature(
        EDM, trajectory, 7, order=order, space="lam", propagate=False, terminal="min"
    )
    tolerance = 1e-9 if order == 1 else 0.02
    np.testing.assert_allclose(np.diff(np.log(times)), np.log(0.02 / 80) / 7, rtol=tolerance)


def test_propagated_errors_are_weighed_by_the_flow():
    """Equal quantiles of the integral of (std^2 + s^2)^(-1/4)."""
    times = learn.curvature(EDM, bent(lambda s: s), 6, data_std=0.5, terminal="min")
    pieces = []
    for end, start in itertools.pairwise(times[::-1]):
        s = np.linspace(end, start, 20001)
        pieces.append(np.trapezoid((0.25 + s**2) ** -0.25, s))
    np.testing.assert_allclose(pieces, np.mean(pieces), rtol=0.02)
    assert np.all(np.diff(times, 2) > 0)


def test_data_std_is_that_of_the_end_points():
    trajectory = trajectory_on("edm")
    std = np.std(trajectory.y[-1])
    np.testing.assert_array_equal(
        learn.curvature(SCHEDULES["edm"], trajectory, 6),
        learn.curvature(SCHEDULES["edm"], trajectory, 6, data_std=std),
    )


# --- what they gain -------------------------------------------------------------------------------


def mixture_mse(ratio):
    """E |x0|^2 - E |x0hat|^2 by quadrature."""
    w, m, s = (np.array(field) for field in MIXTURE)
    found = []
    for sigma in ratio:
        y = np.linspace(-6, 6, 6001) * np.hypot(1, sigma)
        v = s**2 + sigma**2
        density = (w * np.exp(-((y[:, None] - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)).sum(1)
        x0 = MIXTURE(y, level_of(1.0, sigma)).x0
        found.append(np.trapezoid(density * ((w * (m**2 + s**2)).sum() - x0**2), y))
    return np.array(found)


@functools.cache
def fixture():
    """(trajectory on 121 levels, mse there, noise, exact end points); nine samples as one."""
    times = np.append(np.geomspace(80, 0.02, 121), 0.0)
    times[[0, 120]] = 80, 0.02
    x = np.linspace(-2, 2, 9)[None] * np.hypot(1, 80)
    end = MIXTURE.flow(x, level_of(1.0, 80.0), level_of(1.0, 0.02))
    return follow(MIXTURE, EDM, times, x), mixture_mse(times[:-1]), x / 80, end


def error_of(solver, times):
    _, _, x, end = fixture()
    return np.sqrt(np.mean((solver(EDM, times).run_numpy(MIXTURE, x) - end) ** 2))


def learned(method, steps):
    trajectory, mse, _, _ = fixture()
    options = dict(terminal="min")
    if method in ("karras", "log_snr"):
        return strides.STRIDES[method](EDM, steps, **options)
    if method == "elbo":
        return learn.elbo(EDM, trajectory.times[:-1], mse, steps, **options)
    if method.startswith("gits"):
        discount = float(method.split()[1])
        return learn.gits(EDM, trajectory, steps, metric="l2", discount=discount, **options)
    options |= dict(propagate="propagated" in method, data_std=MIXTURE_STD)
    if method.startswith("lam"):
        options |= dict(space="lam", order=2)
    return learn.curvature(EDM, trajectory, steps, **options)


TWO_M = solvers.multistep(2, lower_order_final=False)
MEASURED = {
    ("ddim", "karras"): (0.2877, 0.1756, 0.1172, 0.0701),
    ("ddim", "log_snr"): (0.2428, 0.1544, 0.1024, 0.0611),
    ("ddim", "elbo"): (0.4101, 0.2676, 0.1919, 0.1217),
    ("ddim", "gits 1.0"): (0.1443, 0.1001, 0.0673, 0.0416),
    ("ddim", "gits 1.15"): (0.1470, 0.0987, 0.0711, 0.0545),
    ("ddim", "sigma"): (0.1670, 0.1072, 0.0724, 0.0441),
    ("ddim", "sigma propagated"): (0.1425, 0.0899, 0.0606, 0.0368),
    ("2m", "log_snr"): (0.0599, 0.0407, 0.0177, 0.0082),
    ("2m", "lam propagated"): (0.0509, 0.0163, 0.0057, 0.0024),
    ("lms", "karras"): (0.1796, 0.0677, 0.0255, 0.0105),
    ("lms", "gits 1.0"): (0.0583, 0.0227, 0.0088, 0.0034),
    ("lms", "sigma propagated"): (0.0658, 0.0281, 0.0122, 0.0059),
}
"""Distance to the exact flow on the mixture, by an implementation that shares no code with this."""

COMPARED = {
    "ddim": (solvers.ddim(), (5, 8, 12, 20)),
    "2m": (TWO_M, (6, 10, 16, 24)),
    "lms": (solvers.lms(3), (6, 10, 16, 24)),
}


@pytest.mark.parametrize(("solver", "method"), MEASURED)
def test_distance_to_the_exact_flow(solver, method):
    make, counts = COMPARED[solver]
    errors = [error_of(make, learned(method, steps)) for steps in counts]
    np.testing.assert_allclose(errors, MEASURED[solver, method], rtol=0.05)


# --- what every learned stride keeps --------------------------------------------------------------

METHODS = {
    "gits dev": learn.gits,
    "gits l2": functools.partial(learn.gits, metric="l2", discount=1.0),
    "gits l1": functools.partial(learn.gits, metric="l1"),
    "curvature": learn.curvature,
    "curvature plain": functools.partial(learn.curvature, propagate=False),
    "curvature 3": functools.partial(learn.curvature, order=3),
    "curvature lam": functools.partial(learn.curvature, space="lam", order=2),
    "elbo": lambda schedule, trajectory, steps, **options: learn.elbo(
        schedule,
        trajectory.times[:-1],
        GaussianData(0.0, 0.5).std ** 2 / (1 + (0.5 / trajectory.ratio[:-1]) ** 2),
        steps,
        **options,
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("process", SCHEDULES)
def test_intervals_order_and_ends(method, process):
    schedule, trajectory = SCHEDULES[process], trajectory_on(process)
    for terminal, most in (("zero", 31), ("min", 30)):
        for steps in (1, 2, 3, 10, most):
            times = METHODS[method](schedule, trajectory, steps, terminal=terminal)
            assert times.shape == (steps + 1,) and times.dtype == np.float64
            assert np.all(np.diff(times) < 0)
            end = trajectory.times[-1 if terminal == "zero" else -2]
            np.testing.assert_array_equal(times[[0, -1]], [trajectory.times[0], end])
            if terminal == "zero" and steps > 1 and not method.startswith("gits"):
                assert times[-2] == trajectory.times[-2]
            if steps == most and not method.startswith("curvature"):
                np.testing.assert_array_equal(times, trajectory.times[: most + 1])


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_samples_does_not_matter(method):
    schedule, trajectory = SCHEDULES["vp_linear"], trajectory_on("vp_linear")
    shuffled = trajectory._replace(
        y=trajectory.y[:, [2, 0, 3, 1]], eps=trajectory.eps[:, [2, 0, 3, 1]]
    )
    times = METHODS[method](schedule, trajectory, 6)
    np.testing.assert_allclose(METHODS[method](schedule, shuffled, 6), times, rtol=1e-9)


def test_last_is_the_level_of_the_last_evaluation():
    schedule, trajectory = SCHEDULES["ddpm_linear"], trajectory_on("ddpm_linear")
    for space in ("sigma", "lam"):
        options = dict(space=space, last=0.1)
        times = learn.curvature(schedule, trajectory, 6, **options)
        assert np.exp(-schedule.half_log_snr(times[-2])) == pytest.approx(0.1, rel=1e-9)
        noisy = learn.curvature(schedule, trajectory, 5, terminal="min", **options)
        np.testing.assert_array_equal(noisy, times[:-1])


def test_between_keeps_the_nodes_of_a_range_and_the_end():
    trajectory = trajectory_on("edm")
    ratio = trajectory.ratio
    part = trajectories.between(trajectory, highest=ratio[3], lowest=ratio[20])
    np.testing.assert_array_equal(part.times, np.append(trajectory.times[3:21], 0.0))
    np.testing.assert_array_equal(part.y[-1], trajectory.y[-1])
    np.testing.assert_array_equal(part.eps, trajectory.eps[3:21])
    for whole, kept in zip(trajectory, trajectories.between(trajectory), strict=True):
        np.testing.assert_array_equal(whole, kept)


# --- what a network is asked ----------------------------------------------------------------------

GAUSSIAN = GaussianData(0.2, 0.5)


@functools.partial(jax.jit, static_argnames="collect")
def sample(table, x, keys, collect):
    return sampling.run(GAUSSIAN, table, x, keys, collect=collect)


@pytest.mark.parametrize("name", ["edm", "ddpm_linear", "rectified_flow"])
def test_teacher_follows_the_flow(name):
    schedule = SCHEDULES[name]
    keys = sampling.sample_keys(0, np.arange(4))
    x = sampling.initial_noise(keys, (2, 3))
    trajectory = trajectories.teacher(sample, schedule, x, keys)
    assert trajectory.y.shape == (62, 4, 6) and trajectory.eps.shape == (61, 4, 6)
    levels = [schedule.level(t) for t in trajectory.times]
    start = np.reshape(schedule.prior_std(trajectory.times[0]) * np.asarray(x), (4, 6))
    for i, level in enumerate(levels):
        exact = GAUSSIAN.flow(start, levels[0], level)
        atol = 2e-3 * max(1, trajectory.ratio[i])
        np.testing.assert_allclose(trajectory.y[i], exact / level.alpha, atol=atol)
        if level.sigma > 0:
            np.testing.assert_allclose(trajectory.eps[i], GAUSSIAN(exact, level).eps, atol=5e-3)


@pytest.mark.parametrize("name", ["edm", "ddpm_linear"])
def test_noising_errors_are_the_posterior_variance(name):
    schedule = SCHEDULES[name]
    keys = sampling.sample_keys(3, np.arange(4096))
    images = 0.2 + 0.5 * np.random.default_rng(4).normal(size=(4096, 2, 3)).astype(np.float32)
    times = strides.karras(schedule, 9, lam_min=-0.5, terminal="min")
    ratio = np.exp(-schedule.half_log_snr(times))
    mse = trajectories.noising_errors(sample, schedule, images, keys, times)
    np.testing.assert_allclose(mse, 6 * 0.25 * ratio**2 / (0.25 + ratio**2), rtol=0.04)


# --- bad arguments --------------------------------------------------------------------------------


def call(
    method=learn.gits,
    steps=5,
    schedule="edm",
    change=lambda trajectory: trajectory,
    **o,
):
    return lambda: method(SCHEDULES[schedule], change(trajectory_on("edm")), steps, **o)


def spoiled(trajectory):
    return trajectory._replace(y=np.where(trajectory.ratio[:, None, None] < 1, np.nan, 0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (call(steps=32), "steps must be in .1, 31., got 32; there are 32 nodes; use fewer"),
        (call(steps=31, terminal="min"), "steps must be in .1, 30."),
        (call(steps=0), "whole number >= 1, got 0"),
        (call(steps=2.5), "whole number >= 1, got 2.5"),
        (call(terminal="end"), "'min' or 'skip', got 'end'"),
        (call(metric="lpips"), "unknown metric 'lpips'; it is one of dev, l2, l1"),
        (call(discount=0), "discount must be positive and finite, got 0"),
        (call(schedule="cosine"), "times of the cosine schedule lie in"),
        (
            call(schedule="vp_linear", change=lambda _: trajectory_on("cosine")),
            "schedule vp_linear",
        ),
        (call(change=spoiled), "the trajectory is not finite; raise"),
        (call(learn.curvature, change=spoiled), "the trajectory is not finite"),
        (
            call(learn.curvature, space="rho"),
            "unknown space 'rho'; it is 'sigma' or 'lam'",
        ),
        (
            call(learn.curvature, order=0),
            "order must be in .1, 30., got 0; there are 31 noisy",
        ),
        (call(learn.curvature, last=90), r"last must be in \[0.002, 80\), .* got 90"),
        (call(learn.curvature, last=1e-4), "last must be in"),
        (lambda: trajectories.between(trajectory_on("edm"), 1e-3), "no node .* from 80 to 0.002"),
        (
            lambda: learn.shortest_path(np.full((3, 3), np.nan), 1),
            "costs must be finite",
        ),
        (
            lambda: learn.elbo(EDM, [1.0, 0.0], [1.0, 1.0], 1),
            "leave the clean end out of times",
        ),
        (
            lambda: learn.elbo(EDM, np.linspace(9, 1, 10), np.ones(10), 11),
            r"steps must be in \[1, 10\], got 11; there are 10 times",
        ),
        (
            lambda: learn.elbo(EDM, np.linspace(9, 1, 10), np.ones(10), 10, terminal="skip"),
            r"steps must be in \[1, 9\], got 10; there are 10 times",
        ),
        (lambda: trajectories.teacher(None, EDM, None, None, nodes=1), "at least 2, got 1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
