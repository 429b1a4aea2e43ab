"""Every solver of `SOLVERS`, in float64 numpy, against closed forms.

Order of convergence, identities between solvers, both ends of every schedule, and the statistics
of the stochastic ones. What no list can say is tested below the suite, by family.
"""

import numpy as np
import pytest

from ddim_jax import schedules, solvers, strides
from ddim_jax.solvers import SOLVERS
from tests.oracles import GaussianData, Mixture, level_of, reference_flow

VP = schedules.vp_linear()
X = np.linspace(-2, 2, 9)
STEPS = (20, 40, 80, 160, 320)
DETERMINISTIC = [name for name, info in SOLVERS.items() if not info.stochastic]
STOCHASTIC = [name for name, info in SOLVERS.items() if info.stochastic]
PROCESSES = {name: make() for name, make in schedules.SCHEDULES.items()} | {
    "zero SNR": schedules.zero_terminal_snr(schedules.ddpm_linear()),
    "cosine to alpha = 0": schedules.cosine(-np.inf, np.inf),
}


def log_snr_times(steps, cleanest=1e-2):
    """Even in log-SNR from t = 1 to `cleanest`: the fixture in which errors were published."""
    return VP.time_of(np.linspace(VP.half_log_snr(1.0), VP.half_log_snr(cleanest), steps + 1))


@pytest.fixture(scope="module")
def mixture_end():
    return Mixture().flow(X, VP.level(1.0), VP.level(1e-2), steps=4000)


def errors(solver, end):
    return [np.abs(solver(VP, log_snr_times(n)).run_numpy(Mixture(), X) - end).max() for n in STEPS]


def make(name):
    return SOLVERS[name].make()


def times_for(name, schedule, steps, **options):
    return strides.uniform(schedule, steps, lam_min=SOLVERS[name].lam_min, **options)


def normals(table, shape):
    return np.random.default_rng(0).standard_normal((table.nfe, *shape))


def test_the_reference_flow_agrees_with_the_gaussian_closed_form():
    data = GaussianData(0.3, 0.4)
    numeric = reference_flow(data, X, VP.level(1.0), VP.level(1e-2), 1000)
    np.testing.assert_allclose(numeric, data.flow(X, VP.level(1.0), VP.level(1e-2)), atol=1e-11)


# --- the suite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name, mixture_end):
    error = errors(make(name), mixture_end)
    slope = np.log2(error[-2] / error[-1])
    assert slope == pytest.approx(SOLVERS[name].order, abs=0.1), error


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("terminal", ["zero", "min"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_rows_are_evaluations(name, terminal, steps):
    table = make(name)(VP, strides.uniform(VP, steps, terminal=terminal))
    assert len(table.slot) == table.nfe == SOLVERS[name].nfe(steps, terminal)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_finite_from_end_to_end(name, process, steps):
    schedule = PROCESSES[process]
    table = make(name)(schedule, times_for(name, schedule, steps)).validate()
    assert table.end.alpha == 1 and table.end.sigma == 0
    x = table.run_numpy(GaussianData(0.2, 0.5), X, normals(table, X.shape))
    assert np.all(np.abs(x) < 10)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_one_step_to_the_clean_end_is_x0(name, process):
    schedule = PROCESSES[process]
    table = make(name)(schedule, times_for(name, schedule, 1))
    x0, _ = Mixture()(table.start[0] * X, level_of(table.level.alpha[0], table.level.sigma[0]))
    np.testing.assert_allclose(table.run_numpy(Mixture(), X, normals(table, X.shape)), x0, 1e-10)
    assert table.end.sigma == 0


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_point_mass_is_met_exactly(name, process):
    schedule = PROCESSES[process]
    table = make(name)(schedule, times_for(name, schedule, 4))
    end = table.run_numpy(GaussianData(0.37, 0.0), X, normals(table, X.shape))
    np.testing.assert_allclose(end, 0.37, atol=1e-10)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("process", ["vp_linear", "edm", "rectified_flow", "ddpm_linear"])
def test_gaussian_data_meets_its_closed_form(name, process):
    schedule, data = PROCESSES[process], GaussianData(0.3, 0.5)
    times = strides.karras(schedule, 200, lam_min=-4.0, terminal="min")
    table = make(name)(schedule, times)
    start, end = schedule.level(times[0]), table.end
    exact = data.flow(table.start[0] * X, start, end)
    tolerance = {1: 0.03, 2: 4e-4}[SOLVERS[name].order]
    np.testing.assert_allclose(table.run_numpy(data, X), exact, atol=tolerance)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_marginals(name):
    """Many steps on Gaussian data keep mean and variance within four standard errors."""
    count, data = 40_000, GaussianData(0.3, 0.5)
    rng = np.random.default_rng(0)
    table = make(name)(VP, strides.log_snr(VP, 400))
    x = rng.standard_normal(count)
    for k in range(table.nfe):  # one row at a time, so that noise need not be stored
        row = table._replace(
            **{f: getattr(table, f)[k : k + 1] for f in ("store", "slot", "state", "history")},
            level=type(table.level)(*(f[k : k + 1] for f in table.level)),
            noise=table.noise[k : k + 1],
            active=table.active[k : k + 1],
            start=np.array([1.0, 0.0]),
        )
        x = row.run_numpy(data, x, rng.standard_normal((1, count)))
    assert x.mean() == pytest.approx(0.3, abs=4 * 0.5 / np.sqrt(count))
    assert x.std() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * count) + 0.004)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_is_its_samples(name):
    table = make(name)(VP, strides.uniform(VP, 8))
    noise = normals(table, X.shape)
    together = table.run_numpy(Mixture(), X, noise)
    order = np.random.default_rng(1).permutation(len(X))
    shuffled = table.run_numpy(Mixture(), X[order], noise[:, order])
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_is_drawn_by_stochastic_solvers_only(name):
    table = make(name)(VP, strides.uniform(VP, 8))
    assert table.deterministic != SOLVERS[name].stochastic
    assert np.all(table.noise[-1] == 0)  # none in the step to the clean end


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: solvers.ddim(1.2), r"eta must be in \[0, 1\], got 1.2"),
        (lambda: solvers.ddpm("learned"), "got 'learned'"),
        (lambda: solvers.heun("time"), "unknown space 'time'; the spaces are sigma, flow, angle"),
        (lambda: solvers.euler("time"), "unknown space 'time'"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- DDIM and DDPM --------------------------------------------------------------------------------


def test_ddim_errors_on_the_mixture(mixture_end):
    """An independent DDIM, written from equation 12, makes these errors on this fixture."""
    published = [9.63e-02, 4.73e-02, 2.37e-02, 1.19e-02, 5.93e-03]
    np.testing.assert_allclose(errors(solvers.ddim(), mixture_end), published, rtol=5e-3)


@pytest.mark.parametrize("process", ["ddpm_linear", "edm", "rectified_flow"])
def test_ddim_on_gaussian_data_is_a_product(process):
    """eps is linear in x, so each step s -> t multiplies x - alpha m by a known number."""
    schedule, m, std = PROCESSES[process], 0.3, 0.5
    times = strides.karras(schedule, 7, lam_min=-4.0)
    level = schedule.level(times)
    x = schedule.prior_std(times[0]) * X
    above = x - level.alpha[0] * m
    for k in range(7):
        a, s, a2, s2 = level.alpha[k], level.sigma[k], level.alpha[k + 1], level.sigma[k + 1]
        above = above * (a2 / a + (s2 - a2 / a * s) * s / (a**2 * std**2 + s**2))
    got = solvers.ddim()(schedule, times).run_numpy(GaussianData(m, std), X)
    np.testing.assert_allclose(got, m + above, rtol=1e-11)


def coefficients(table, level):
    """Weights of (x0, x) and the noise variance of one-slot, single-stage rows.

    eps = (x - alpha x0) / sigma
    """
    weight = table.history[:, 0, 0, None] * table.store
    of_x = table.state[:, 0, 0] + weight[:, 1] / level.sigma
    return weight[:, 0] - weight[:, 1] * level.alpha / level.sigma, of_x, table.noise[:, 0] ** 2


def posterior(abar, abar_next):
    """q(x_prev | x, x0), Ho et al. 2020, equations 6 and 7, for a jump from abar to abar_next."""
    beta = 1 - abar / abar_next
    of_x0 = np.sqrt(abar_next) * beta / (1 - abar)
    of_x = np.sqrt(1 - beta) * (1 - abar_next) / (1 - abar)
    return of_x0, of_x, beta * (1 - abar_next) / (1 - abar), beta


@pytest.mark.parametrize(
    "solver", [solvers.ddim(1.0), solvers.ddpm("small"), solvers.ddpm("large")]
)
@pytest.mark.parametrize("steps", [1000, 50])
def test_coefficients_are_the_posterior_of_ddpm(solver, steps):
    """All 999 consecutive pairs, and strided ones."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[
        np.arange(1000 // steps - 1, 1000, 1000 // steps)
    ]
    of_x0, of_x, small, beta = posterior(abar[1:], abar[:-1])
    schedule = schedules.ddpm_linear()
    table = solver(schedule, strides.uniform(schedule, steps))
    rows = [f[:-1][::-1] for f in coefficients(table, table.level)]  # all but the step to clean
    large = not np.allclose(rows[2], small, rtol=1e-3)
    np.testing.assert_allclose(rows[0], of_x0, atol=1e-12)
    np.testing.assert_allclose(rows[1], of_x, atol=1e-12)
    np.testing.assert_allclose(rows[2], beta if large else small, atol=1e-12)


def test_large_variance_is_sigma_hat():
    schedule = schedules.ddpm_linear()
    times = strides.uniform(schedule, 20)
    small, large = (solvers.ddpm(v)(schedule, times) for v in ("small", "large"))
    abar = schedule.level(times).alpha ** 2
    sigma_hat = np.sqrt(1 - abar[:-1] / abar[1:])  # Song et al. 2021, appendix D.3
    np.testing.assert_allclose(large.noise[:-1, 0], sigma_hat[:-1], rtol=1e-10)
    assert large.noise[-1, 0] == 0
    np.testing.assert_array_equal(large.history, small.history)
    np.testing.assert_array_equal(large.state, small.state)


@pytest.mark.parametrize("eta", [0.2, 0.5, 1.0])
def test_eta_is_that_of_equation_16(eta):
    schedule = schedules.ddpm_linear()
    times = strides.uniform(schedule, 20)
    abar = schedule.level(times).alpha ** 2
    now, after = abar[:-1], abar[1:]
    std = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after)
    table = solvers.ddim(eta)(schedule, times)
    np.testing.assert_allclose(table.noise[:, 0], std, atol=1e-12)
    np.testing.assert_allclose(table.store[:, 0], np.sqrt(after), atol=1e-12)
    np.testing.assert_allclose(table.store[:, 1], np.sqrt(1 - after - std**2), atol=1e-10)


def test_the_whole_chain_of_ddim_with_eta_1_is_ddpm():
    schedule = schedules.ddpm_linear()
    times = strides.uniform(schedule, 1000)
    noise = np.random.default_rng(0).standard_normal((1000, *X.shape))
    ends = [
        solver(schedule, times).run_numpy(Mixture(), X, noise)
        for solver in (solvers.ddim(1.0), solvers.ddpm("small"))
    ]
    np.testing.assert_allclose(*ends, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [3, 50])
def test_point_mass_marginals_hold_for_every_eta(eta, steps):
    """x stays N(alpha m, sigma^2) at any number of steps: mean and variance, row by row."""
    times = strides.uniform(VP, steps)
    table = solvers.ddim(eta)(VP, times)
    after = VP.level(times[1:])
    of_x0, of_x, noise = coefficients(table, table.level)
    before = table.level
    np.testing.assert_allclose(of_x0 + of_x * before.alpha, after.alpha, atol=1e-12)
    np.testing.assert_allclose(of_x**2 * before.sigma**2 + noise, after.sigma**2, atol=1e-12)


def test_two_ddim_steps_with_one_prediction_are_one():
    """A -> P -> Q with the same (x0, eps) is A -> Q."""
    fixed = lambda x, level: (0.4 * np.ones_like(x), np.sin(X))  # noqa: E731
    times = VP.t_span[0] * np.array([1.0, 0.6, 0.3])
    x = VP.level(1.0).alpha * 0.4 + VP.level(1.0).sigma * np.sin(X)
    two = solvers.ddim()(VP, times).run_numpy(fixed, x)
    one = solvers.ddim()(VP, times[[0, 2]]).run_numpy(fixed, x)
    np.testing.assert_allclose(two, one, atol=1e-14)


# --- Euler and Heun -------------------------------------------------------------------------------


@pytest.mark.parametrize("space", solvers.SPACES)
@pytest.mark.parametrize("process", ["vp_linear", "edm", "rectified_flow", "ddpm_cosine"])
def test_euler_in_every_space_is_ddim(space, process):
    schedule = PROCESSES[process]
    times = strides.uniform(schedule, 10, lam_min=-5.1)
    euler = solvers.euler(space)(schedule, times).run_numpy(Mixture(), X)
    np.testing.assert_allclose(
        euler, solvers.ddim()(schedule, times).run_numpy(Mixture(), X), atol=1e-12
    )


def test_heun_errors_on_the_mixture(mixture_end):
    """An independent trapezoid in sigma space makes these errors on this fixture."""
    published = [2.52e-02, 5.76e-03, 1.38e-03, 3.38e-04, 8.35e-05]
    np.testing.assert_allclose(errors(solvers.heun(), mixture_end), published, rtol=5e-3)


def test_heun_is_algorithm_1_of_edm():
    """Karras et al. 2022, algorithm 1, written out on D(x; sigma)."""
    schedule, data = schedules.edm(), Mixture()
    t = strides.karras(schedule, 6)
    x = 80 * X
    for i in range(6):
        d = (x - data(x, level_of(1, t[i])).x0) / t[i]
        y = x + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d_next = (y - data(y, level_of(1, t[i + 1])).x0) / t[i + 1]
            y = x + (t[i + 1] - t[i]) * (d + d_next) / 2
        x = y
    np.testing.assert_allclose(solvers.heun()(schedule, t).run_numpy(data, X), x, atol=1e-11)


@pytest.mark.parametrize("space", ["flow", "angle"])
def test_heun_starts_from_pure_noise(space, mixture_end):
    """From lam = -10, where sigma space is useless at 8 steps, it stays close to the flow."""
    schedule = schedules.cosine()
    times = strides.uniform(schedule, 8)
    exact = Mixture().flow(X, schedule.level(1.0), level_of(1.0, 1e-9), 4000)
    error = np.abs(solvers.heun(space)(schedule, times).run_numpy(Mixture(), X) - exact).max()
    blown = np.abs(solvers.heun("sigma")(schedule, times).run_numpy(Mixture(), X) - exact).max()
    assert error < 0.15 < 10 < blown
