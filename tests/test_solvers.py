"""Every solver of `SOLVERS`, in float64 numpy, against closed forms.

Order of convergence, both ends of every schedule, and the statistics of the stochastic ones. What
no list can say is in `test_solver_families.py`.
"""

import inspect

import numpy as np
import pytest

from ddim_jax import schedules, strides
from ddim_jax.schedules import NoiseLevel
from ddim_jax.solvers import SOLVERS
from tests.oracles import GaussianData, Mixture, level_of, reference_flow

VP = schedules.vp_linear()
X = np.linspace(-2, 2, 9)
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
STOCHASTIC = [name for name, solver in SOLVERS.items() if solver.stochastic]
PROCESSES = {name: make() for name, make in schedules.SCHEDULES.items()} | {
    "zero SNR": schedules.zero_terminal_snr(schedules.ddpm_linear()),
    "cosine to alpha = 0": schedules.cosine(-np.inf, np.inf),
}


def times_for(name, schedule, steps, **options):
    return strides.uniform(schedule, steps, lam_min=SOLVERS[name].lam_min, **options)


def normals(table, shape):
    return np.random.default_rng(0).standard_normal((table.nfe, *shape))


def test_the_reference_flow_agrees_with_the_gaussian_closed_form():
    data = GaussianData(0.3, 0.4)
    numeric = reference_flow(data, X, VP.level(1.0), VP.level(1e-2), 1000)
    np.testing.assert_allclose(numeric, data.flow(X, VP.level(1.0), VP.level(1e-2)), atol=1e-11)


# --- order of convergence -------------------------------------------------------------------------

SPANS = {"vp_linear": (1.0, 1e-2), "edm": (50.0, 0.1), "rectified_flow": (0.98, 0.1)}


@pytest.fixture(scope="module")
def flow_end():
    """schedule name -> where the mixture's flow takes prior_std * X."""
    ends = {}
    for name, span in SPANS.items():
        start, end = (PROCESSES[name].level(t) for t in span)
        x = PROCESSES[name].prior_std(span[0]) * X
        ends[name] = Mixture().flow(x, start, end, 1500)
    return ends


def run_with_exact_history(table, data, rows):
    """`run_numpy`, the first rows taken from the flow itself: a low-order start caps the order."""
    level = lambda k: NoiseLevel(*(field[k] for field in table.level))  # noqa: E731
    points = [table.start[0] * X]
    for k in range(rows):
        points.append(data.flow(points[-1], level(k), level(k + 1), 50))
    seen = np.zeros((table.history.shape[-1], len(X)))
    # the second point, where it is used (UniPC), is the sample one step back
    state = np.stack(
        [points[rows], points[rows - 1] if np.any(table.state[..., 1]) else points[-1]]
    )
    for k in range(table.nfe):
        x0, eps = data(points[k] if k < rows else state[0], level(k))
        seen[table.slot[k]] = table.store[k, 0] * x0 + table.store[k, 1] * eps
        if k >= rows:
            state = np.tensordot(table.state[k], state, 1) + np.tensordot(table.history[k], seen, 1)
    return state[0]


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("process", SPANS)
def test_order_of_convergence(name, process, flow_end):
    solver, schedule = SOLVERS[name], PROCESSES[process]
    if "lower_order_final" in inspect.signature(solver.make).parameters:
        solver = solver.make(lower_order_final=False)
    lam = schedule.half_log_snr(np.array(SPANS[process]))
    error, pair = [], (322, 640) if solver.order == 4 else (160, 322)
    if name.endswith("fast"):  # 1 modulo 3, so that one step of the lowest order ends both; it
        pair = (640, 1279)  # shows once the third-order blocks have become exact beside it
    for steps in pair:
        times = schedule.time_of(np.linspace(*lam, steps + 1))
        times[[0, -1]] = SPANS[process]
        table = solver(schedule, times)
        if solver.order > 2 and solver.stages == 1:
            end = run_with_exact_history(table, Mixture(), solver.order - 1)
        else:
            end = table.run_numpy(Mixture(), X)
        error.append(np.abs(end - flow_end[process]).max())
    slope = np.log(error[0] / error[1]) / np.log(pair[1] / pair[0])
    assert slope == pytest.approx(solver.order, abs=0.2 if solver.order == 4 else 0.15), error


# --- ends, counts, statistics ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("terminal", ["zero", "min"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_rows_are_evaluations(name, terminal, steps):
    table = SOLVERS[name](VP, strides.uniform(VP, steps, terminal=terminal))
    assert len(table.slot) == table.nfe == SOLVERS[name].nfe(steps, terminal)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_finite_from_end_to_end(name, process):
    schedule = PROCESSES[process]
    for steps in (1, 2, 10):
        table = SOLVERS[name](schedule, times_for(name, schedule, steps))
        assert table.end.alpha == 1 and table.end.sigma == 0
        if name == "pndm" and steps == 2:
            continue  # a Runge-Kutta step over half the schedule explodes, in the paper's too
        x = table.run_numpy(GaussianData(0.2, 0.5), X, normals(table, X.shape))
        assert np.all(np.abs(x) < 10), steps


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_one_step_to_the_clean_end_is_x0(name, process):
    schedule = PROCESSES[process]
    table = SOLVERS[name](schedule, times_for(name, schedule, 1))
    x0, _ = Mixture()(table.start[0] * X, level_of(table.level.alpha[0], table.level.sigma[0]))
    np.testing.assert_allclose(table.run_numpy(Mixture(), X, normals(table, X.shape)), x0, 1e-10)
    assert table.end.sigma == 0


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_point_mass_is_met_exactly(name, process):
    schedule = PROCESSES[process]
    table = SOLVERS[name](schedule, times_for(name, schedule, 4))
    end = table.run_numpy(GaussianData(0.37, 0.0), X, normals(table, X.shape))
    np.testing.assert_allclose(end, 0.37, atol=1e-10)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("process", ["vp_linear", "edm", "rectified_flow", "ddpm_linear"])
def test_gaussian_data_meets_its_closed_form(name, process):
    schedule, data = PROCESSES[process], GaussianData(0.3, 0.5)
    times = strides.karras(schedule, 200, lam_min=-4.0, terminal="min")
    table = SOLVERS[name](schedule, times)
    start, end = schedule.level(times[0]), table.end
    exact = data.flow(table.start[0] * X, start, end)
    tolerance = {1: 0.03, 2: 1e-3, 3: 3e-4, 4: 3e-4}[SOLVERS[name].order]
    np.testing.assert_allclose(table.run_numpy(data, X), exact, atol=tolerance)


class Draws:
    """Standard normals by row, drawn when they are asked for."""

    def __init__(self, count):
        self.rng, self.count = np.random.default_rng(0), count

    def __getitem__(self, row):
        return self.rng.standard_normal(self.count)


@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name not in ("ddnm", "tcd")])
def test_stochastic_marginals(name):
    """Many steps on Gaussian data keep mean and variance within four standard errors.

    A consistency model's samples keep them at any number of steps; its denoiser is the flow's end.
    `tcd` makes long jumps however many steps there are, see test_solver_options.
    """
    count, data = 20_000, GaussianData(0.3, 0.5)
    end = level_of(1.0, 0.002 if name == "consistency" else 0.0)

    def denoise(x, level):
        prediction = data(x, level)
        if name not in ("consistency", "lcm"):
            return prediction
        return prediction._replace(x0=data.flow(x, level, end))

    def sample(steps):
        options = {"s_noise": 1.0} if name == "heun_churn" else {}
        solver, draws = SOLVERS[name].make(**options), Draws(count)
        table = solver(VP, strides.log_snr(VP, steps, lam_min=solver.lam_min))
        return table.run_numpy(denoise, draws[0], draws, start_noise=draws[0])

    exact_at_any = name in ("consistency", "lcm")
    x = sample(5 if exact_at_any else 300)
    assert x.mean() == pytest.approx(0.3, abs=4 * 0.5 / np.sqrt(count))
    assert x.std() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * count))
    if not exact_at_any:  # and at fewer steps the spread is further off
        assert abs(sample(20).std() - 0.5) > 2 * abs(x.std() - 0.5)


@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "ddnm"])
def test_stochastic_solvers_end_at_the_level_of_a_noisy_end(name):
    """None adds noise that no step takes out again: a stride to `t_min` has the variance there."""
    schedule, data, count = schedules.vp_linear(t_min=0.2), GaussianData(0.3, 0.5), 4000
    end = schedule.level(0.2)

    def denoise(x, level):
        prediction = data(x, level)
        if name not in ("consistency", "lcm"):
            return prediction
        return prediction._replace(x0=data.flow(x, level, level_of(1.0, 0.0)))

    options = {"heun_churn": {"s_noise": 1.0}, "consistency": {"sigma_min": 0.0}}
    solver, draws = SOLVERS[name].make(**options.get(name, {})), Draws(count)
    times = strides.log_snr(schedule, 150, lam_min=solver.lam_min, terminal="min")
    x = solver(schedule, times).run_numpy(denoise, draws[0], draws, start_noise=draws[0])
    assert x.std() == pytest.approx(np.sqrt(data.variance(end)), rel=0.05)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_is_its_samples(name):
    table = SOLVERS[name](VP, strides.uniform(VP, 8))
    noise = normals(table, X.shape)
    together = table.run_numpy(Mixture(), X, noise)
    order = np.random.default_rng(1).permutation(len(X))
    shuffled = table.run_numpy(Mixture(), X[order], noise[:, order])
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_is_drawn_by_stochastic_solvers_only(name):
    table = SOLVERS[name](VP, strides.uniform(VP, 8))
    assert table.deterministic != SOLVERS[name].stochastic
    assert np.all(table.noise[-1] == 0)  # none in the step to the clean end
