"""Solvers by family: published errors, identities between them, and papers' loops written out."""

import numpy as np
import pytest

from ddim_jax import schedules, solvers, strides
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SOLVERS, analytical_first_step
from ddim_jax.solvers.dpm_solver import fast_orders
from tests.oracles import GaussianData, Mixture, level_of

VP = schedules.vp_linear()
X = np.linspace(-2, 2, 9)
STEPS = (20, 40, 80, 160, 320)
PROCESSES = {name: make() for name, make in schedules.SCHEDULES.items()}


def log_snr_times(steps, cleanest=1e-2):
    """Even in log-SNR from t = 1 to `cleanest`: the fixture of the published errors."""
    return VP.time_of(np.linspace(VP.half_log_snr(1.0), VP.half_log_snr(cleanest), steps + 1))


@pytest.fixture(scope="module")
def mixture_end():
    return Mixture().flow(X, VP.level(1.0), VP.level(1e-2), steps=2500)


def errors(solver, end, steps=STEPS):
    return [np.abs(solver(VP, log_snr_times(n)).run_numpy(Mixture(), X) - end).max() for n in steps]


def draws(table, shape=X.shape, seed=0):
    return np.random.default_rng(seed).standard_normal((table.nfe, *shape))


def same(one, other, times, schedule=VP, atol=1e-12, denoise=None):
    """The two solvers map the same noise to the same samples."""
    ends = []
    for solver in (one, other):
        table = solver(schedule, times)
        ends.append(table.run_numpy(denoise or Mixture(), X, draws(table)))
    np.testing.assert_allclose(*ends, atol=atol)


# --- errors that an independent implementation makes ----------------------------------------------

NO_FALL = {"lower_order_final": False}
PUBLISHED = {  # largest error at 20, 40, 80, 160, 320 steps, and its slope
    "ddim": (solvers.ddim(), [9.63e-02, 4.73e-02, 2.37e-02, 1.19e-02, 5.93e-03], 1.00),
    "heun": (solvers.heun(), [2.52e-02, 5.76e-03, 1.38e-03, 3.38e-04, 8.35e-05], 2.02),
    "dpm2": (solvers.singlestep(2), [1.29e-02, 3.02e-03, 7.31e-04, 1.80e-04, 4.46e-05], 2.01),
    "2S": (
        solvers.singlestep(2, "data"),
        [9.32e-03, 2.43e-03, 6.21e-04, 1.57e-04, 4.02e-05],
        1.97,
    ),
    "dpm3": (solvers.singlestep(3), [2.67e-04, 3.08e-05, 3.60e-06, 4.30e-07, 5.24e-08], 3.04),
    "2M": (
        solvers.multistep(2, **NO_FALL),
        [1.93e-02, 5.82e-03, 1.53e-03, 3.86e-04, 9.69e-05],
        2.00,
    ),
    "3M as published": (
        solvers.multistep(3, exact=False, **NO_FALL),
        [1.27e-02, 1.91e-03, 3.58e-04, 8.09e-05, 1.96e-05],
        2.05,
    ),
    "3M": (
        solvers.multistep(3, **NO_FALL),
        [1.08e-02, 8.28e-04, 5.73e-05, 5.23e-06, 6.56e-07],
        3.00,
    ),
    "UniPC-1": (
        solvers.unipc(1, **NO_FALL),
        [2.88e-02, 7.38e-03, 1.87e-03, 4.69e-04, 1.18e-04],
        2.00,
    ),
    "UniPC-2": (
        solvers.unipc(2, **NO_FALL),
        [1.30e-02, 1.83e-03, 2.16e-04, 2.54e-05, 3.06e-06],
        3.05,
    ),
    "UniPC-3": (
        solvers.unipc(3, **NO_FALL),
        [3.68e-03, 1.58e-04, 2.54e-05, 2.08e-06, 1.44e-07],
        3.85,
    ),
    "rhoAB1": (solvers.deis(1, "rho"), [3.69e-02, 1.05e-02, 2.82e-03, 7.33e-04, 1.87e-04], 1.97),
    "rhoAB2": (solvers.deis(2, "rho"), [2.19e-02, 3.86e-03, 5.78e-04, 7.93e-05, 1.08e-05], 2.88),
    "rhoAB3": (solvers.deis(3, "rho"), [1.60e-02, 1.96e-03, 2.06e-04, 1.63e-05, 1.12e-06], 3.86),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_errors_on_the_mixture(name, mixture_end):
    """UniPC's errors are those of the corrected last point, which takes one more evaluation."""
    solver, published, slope = PUBLISHED[name]
    assert solver.order == round(slope)
    if name.startswith("UniPC"):
        error = []
        for steps in STEPS:
            times = np.append(log_snr_times(steps), 0.009)  # one row more: it corrects the last
            end = solver(VP, times).run_numpy_state(Mixture(), X).base
            error.append(np.abs(end - mixture_end).max())
    else:
        error = errors(solver, mixture_end)
    np.testing.assert_allclose(error, published, rtol=5e-3)
    assert np.log2(error[-2] / error[-1]) == pytest.approx(slope, abs=0.01)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (solvers.singlestep(2, "eps", "taylor"), 2),
        (solvers.singlestep(2, "data", "taylor"), 2),
        (solvers.singlestep(3, "eps", "taylor"), 3),
        (solvers.singlestep(3, "data", "taylor"), 3),
        (solvers.multistep(2, derivative="taylor", **NO_FALL), 2),
        (solvers.multistep(2, "eps", **NO_FALL), 2),
        (solvers.multistep(2, "eps", derivative="taylor", **NO_FALL), 2),
        (solvers.multistep(2), 2),
        (solvers.unipc(2, "eps", **NO_FALL), 3),
        (solvers.unipc(2, variant="bh1", **NO_FALL), 3),
        (solvers.unipc(1, variant="bh1", **NO_FALL), 2),
        (solvers.unipc(2, corrector=False, **NO_FALL), 2),
        (solvers.midpoint("flow"), 2),
        (solvers.midpoint("angle"), 2),
        (solvers.rk4("sigma"), 4),
        (solvers.rk4("flow"), 4),
        (solvers.euler("angle"), 1),
        (solvers.heun_churn(churn=0), 2),
    ],
)
def test_options_keep_or_lower_the_order(solver, order, mixture_end):
    assert solver.order == order
    error = errors(solver, mixture_end, (160, 320))
    assert np.log2(error[0] / error[1]) == pytest.approx(order, abs=0.15), error


def test_adams_bashforth_on_even_times_is_second_order(mixture_end):
    """The fixed numbers are for equal steps, and those of sigma / alpha are not."""
    error = []
    for steps in (160, 320, 640):
        times = np.linspace(1.0, 1e-2, steps + 1)
        end = solvers.pndm()(VP, times).run_numpy(Mixture(), X)
        error.append(np.abs(end - mixture_end).max())
    np.testing.assert_allclose(error, [3.2e-5, 7.9e-6, 2.0e-6], rtol=0.03)


# --- DDIM and DDPM --------------------------------------------------------------------------------


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


# --- one-step integrators -------------------------------------------------------------------------


@pytest.mark.parametrize("space", solvers.SPACES)
@pytest.mark.parametrize("process", ["vp_linear", "edm", "rectified_flow", "ddpm_cosine"])
def test_euler_in_every_space_is_ddim(space, process):
    schedule = PROCESSES[process]
    times = strides.uniform(schedule, 10, lam_min=-5.1)
    euler = solvers.euler(space)(schedule, times).run_numpy(Mixture(), X)
    np.testing.assert_allclose(
        euler, solvers.ddim()(schedule, times).run_numpy(Mixture(), X), atol=1e-12
    )


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
    exact = Mixture().flow(X, schedule.level(1.0), level_of(1.0, 1e-9), 1000)
    error = np.abs(solvers.heun(space)(schedule, times).run_numpy(Mixture(), X) - exact).max()
    unchecked = solvers.heun("sigma").make_table(schedule, times)
    blown = np.abs(unchecked.run_numpy(Mixture(), X) - exact).max()
    assert error < 0.15 < 10 < blown


@pytest.mark.parametrize("steps", [4, 9])
def test_flow_matching_euler_and_heun(steps):
    """Plain Euler on the velocity is DDIM; plain Heun, the last step Euler's, is heun_flow."""
    schedule, data = schedules.rectified_flow(), Mixture()
    times = strides.uniform(schedule, steps)

    def velocity(x, t):
        prediction = data(x, level_of(1 - t, t))
        return prediction.eps - prediction.x0

    euler = heun = X
    for t, s in zip(times[:-1], times[1:], strict=True):
        euler = euler + (s - t) * velocity(euler, t)
        first = velocity(heun, t)
        second = velocity(heun + (s - t) * first, s) if s > 0 else first
        heun = heun + (s - t) * (first + second) / 2
    for solver, end in ((solvers.ddim(), euler), (solvers.heun("flow"), heun)):
        np.testing.assert_allclose(solver(schedule, times).run_numpy(data, X), end, atol=1e-12)


def test_midpoint_in_sigma_is_dpm_solver_2():
    """The geometric mean of sigma is the middle in log-SNR."""
    same(solvers.midpoint(), solvers.singlestep(2), log_snr_times(7))
    same(solvers.midpoint(), solvers.singlestep(2), np.linspace(1.0, 0.1, 6))


@pytest.mark.parametrize("churn", [0.0, 3.0, 40.0])
def test_churn_is_algorithm_2_of_edm(churn):
    schedule, data = schedules.edm(), Mixture()
    t = strides.karras(schedule, 6)
    table = solvers.heun_churn(churn, 0.05, 50.0, 1.007)(schedule, t)
    noise, start_noise = draws(table), np.zeros(len(X))
    used = iter(np.flatnonzero(table.noise[:, 0]))
    x = 80 * X
    for i in range(6):
        gamma = min(churn / 6, np.sqrt(2) - 1) if 0.05 <= t[i] <= 50 else 0
        high = t[i] * (1 + gamma)
        if gamma:
            x = x + np.sqrt(high**2 - t[i] ** 2) * 1.007 * noise[next(used)]
        d = (x - data(x, level_of(1, high)).x0) / high
        y = x + (t[i + 1] - high) * d
        if t[i + 1] != 0:
            d_next = (y - data(y, level_of(1, t[i + 1])).x0) / t[i + 1]
            y = x + (t[i + 1] - high) * (d + d_next) / 2
        x = y
    end = table.run_numpy(data, X, noise, start_noise)
    np.testing.assert_allclose(end, x, atol=1e-11)
    assert next(used, None) is None and table.deterministic == (churn == 0)


def test_churn_can_act_before_the_first_step():
    """EDM's first level is above S_max; on a stride that starts below, the start draws noise."""
    schedule = schedules.edm()
    times = np.array([40.0, 5.0, 0.0])
    table = solvers.heun_churn(1.0, 0.05, 50.0, 1.0)(schedule, times)
    high = 40 * np.sqrt(2)
    assert table.level.t[0] == pytest.approx(min(high, 60.0))
    np.testing.assert_allclose(table.start, [40, np.sqrt(table.level.t[0] ** 2 - 40**2)])
    top = solvers.heun_churn(1.0, 0.0, 100.0)(schedule, strides.karras(schedule, 4))
    # not beyond the trained levels
    assert top.level.t[0] == 80 and top.start[0] == 80 and top.start[1] == 0


def test_churn_leaves_a_noisy_end_as_it_is():
    """No step follows that would take the noise out again; N of algorithm 2 counts the steps."""
    schedule = schedules.edm()
    times = strides.karras(schedule, 6, terminal="min")
    free = {"s_min": 0.0, "s_max": np.inf}
    table = solvers.heun_churn(2.0, **free)(schedule, times)
    assert np.all(table.noise[-1] == 0) and table.end.sigma == 0.002
    high = times[1] * (1 + 2.0 / 6)
    assert table.level.t[2] == pytest.approx(high)


# --- Adams-Bashforth ------------------------------------------------------------------------------


def pndm_transfer(x, e, now, after):
    """Liu et al. 2022, equation 11, as printed; `now`, `after` are alpha^2."""
    part = x / (np.sqrt(now) * (np.sqrt(now) + np.sqrt(after)))
    root = np.sqrt((1 - after) * now) + np.sqrt((1 - now) * after)
    return x + (after - now) * (part - e / (np.sqrt(now) * root))


@pytest.mark.parametrize("warm_up", ["runge_kutta", "heun"])
def test_pndm_written_out(warm_up):
    data = Mixture()
    times = np.linspace(1.0, 0.1, 9)
    abar = lambda t: VP.level(t).alpha ** 2  # noqa: E731
    e = lambda x, t: data(x, VP.level(t)).eps  # noqa: E731
    move = lambda x, eps, t, s: pndm_transfer(x, eps, abar(t), abar(s))  # noqa: E731
    x, seen = X, []
    for t, s in zip(times[:-1], times[1:], strict=True):
        e1, middle = e(x, t), (t + s) / 2
        seen.append(e1)
        if warm_up == "runge_kutta" and len(seen) <= 3:
            e2 = e(move(x, e1, t, middle), middle)
            e3 = e(move(x, e2, t, middle), middle)
            e4 = e(move(x, e3, t, s), s)
            mean = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        elif warm_up == "heun" and len(seen) == 1:
            mean = (e1 + e(move(x, e1, t, s), s)) / 2
        else:
            newest = seen[: -min(len(seen), 4) - 1 : -1]
            weights = {
                2: (3 / 2, -1 / 2),
                3: (23 / 12, -16 / 12, 5 / 12),
                4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
            }[len(newest)]
            mean = sum(w * past for w, past in zip(weights, newest, strict=True))
        x = move(x, mean, t, s)
    solver = solvers.pndm() if warm_up == "runge_kutta" else solvers.plms()
    np.testing.assert_allclose(solver(VP, times).run_numpy(data, X), x, atol=1e-11)


def test_pndm_needs_six_slots_and_nine_more_evaluations():
    table = solvers.pndm()(VP, strides.uniform(VP, 12, lam_min=-5.1))
    assert table.history.shape[-1] == 6 and table.nfe == 12 + 9
    for name, more in (("plms", 1), ("s_pndm", 1), ("ipndm", 0)):
        assert SOLVERS[name](VP, strides.uniform(VP, 12)).nfe == 12 + more


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_is_that_of_k_diffusion(order):
    """Integrals of Lagrange polynomials in sigma, by antiderivatives, on a non-uniform grid."""
    schedule, data = schedules.edm(), Mixture()
    t = strides.karras(schedule, 8, terminal="min")
    x, seen = 80 * X, []
    for i in range(8):
        seen.append((x - data(x, level_of(1, t[i])).x0) / t[i])
        count = min(i + 1, order)
        for j in range(count):
            basis = np.poly1d([1.0])
            for k in range(count):
                if k != j:
                    basis *= np.poly1d([1, -t[i - k]]) / (t[i - j] - t[i - k])
            whole = basis.integ()
            x = x + (whole(t[i + 1]) - whole(t[i])) * seen[-1 - j]
    for solver in (
        solvers.lms(order),
        solvers.deis(order - 1, "rho"),
        solvers.ipndm(order, variable=True),
    ):
        np.testing.assert_allclose(solver(schedule, t).run_numpy(data, X), x, atol=1e-10)


@pytest.mark.parametrize("process", ["vp_linear", "rectified_flow", "ddpm_linear"])
def test_deis_coefficients_are_its_integrals(process):
    """tAB3 against a fine midpoint rule over sigma / alpha, in which the integral is defined."""
    schedule = PROCESSES[process]
    times = strides.uniform(schedule, 9, lam_min=-4.0)
    table = solvers.deis(3)(schedule, times)
    level = schedule.level(times)
    u = level.sigma / level.alpha
    k, count = 5, 200_000
    edges = np.linspace(u[k], u[k + 1], count + 1)
    t = schedule.time_of(-np.log((edges[1:] + edges[:-1]) / 2))
    nodes = times[k - 3 : k + 1]
    for j in range(4):
        others = np.delete(nodes, j)
        basis = np.prod((t[:, None] - others) / (nodes[j] - others), axis=1)
        expected = basis.mean() * (u[k + 1] - u[k]) * level.alpha[k + 1]
        got = table.history[k, 0, table.slot[k - 3 + j]]
        assert got == pytest.approx(expected, rel=2e-4, abs=1e-5)
    total = table.history[k, 0].sum() / level.alpha[k + 1]
    assert total == pytest.approx(u[k + 1] - u[k], rel=1e-12)


# --- DPM-Solver and UniPC -------------------------------------------------------------------------


def test_fast_orders():
    """The published lists for budgets of 3 to 8, and that every budget is used up."""
    assert [fast_orders(n) for n in range(3, 9)] == [
        [2, 1],
        [3, 1],
        [3, 2],
        [3, 2, 1],
        [3, 3, 1],
        [3, 3, 2],
    ]
    assert all(sum(fast_orders(n)) == n for n in range(60))


def test_fast_is_singlestep_blocks():
    """On a stride even in log-SNR, inner points fall on 1/3 and 2/3: blocks of DPM-Solver-3."""
    times = log_snr_times(11)  # 3 + 3 + 3 + 2
    blocks = solvers.concatenate(
        solvers.singlestep(3)(VP, times[:10:3]), solvers.singlestep(2)(VP, times[[9, 11]])
    )
    got = solvers.fast()(VP, times).run_numpy(Mixture(), X)
    np.testing.assert_allclose(got, blocks.run_numpy(Mixture(), X), atol=1e-12)


@pytest.mark.parametrize("form", ["data", "eps"])
def test_first_order_of_every_kind_is_ddim(form):
    times = log_snr_times(7)
    for solver in (
        solvers.singlestep(1, form),
        solvers.multistep(1, form),
        solvers.unipc(1, form, corrector=False),
        solvers.lms(1),
        solvers.deis(0),
        solvers.ipndm(1),
    ):
        same(solver, solvers.ddim(), times)


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.stages == 1])
def test_a_multistep_solver_of_one_step_is_ddim(name):
    solver = SOLVERS[name]
    if solver.stochastic or solver.warm_up:
        return
    same(solver, solvers.ddim(), log_snr_times(1))


@pytest.mark.parametrize("process", ["vp_linear", "edm", "rectified_flow", "ddpm_cosine"])
def test_unip_is_dpm_solver(process):
    """UniP-2 with bh2 is 2M, UniP-3 is 3M with the exact coefficient."""
    schedule = PROCESSES[process]
    times = strides.uniform(schedule, 11)
    for order in (2, 3):
        same(
            solvers.unipc(order, corrector=False), solvers.multistep(order), times, schedule, 1e-13
        )


def test_bh1_and_bh2_differ():
    ends = [
        solvers.unipc(2, variant=v)(VP, log_snr_times(6)).run_numpy(Mixture(), X)
        for v in ("bh1", "bh2")
    ]
    assert 1e-2 < np.abs(ends[0] - ends[1]).max() < 0.3


@pytest.mark.parametrize("lower", [True, False])
def test_lower_orders_at_the_end(lower):
    """The rows of 3M use 1, 2, 3, ..., 3 predictions, then 2 and 1 if asked for."""
    table = solvers.multistep(3, lower_order_final=lower)(VP, log_snr_times(6))
    used = np.sum(table.history[:, 0] != 0, axis=1)
    np.testing.assert_array_equal(used, [1, 2, 3, 3, 2, 1] if lower else [1, 2, 3, 3, 3, 3])
    clean = solvers.multistep(3, lower_order_final=lower)(VP, strides.uniform(VP, 6))
    assert np.sum(clean.history[-1, 0] != 0) == 1  # in either case


def test_euler_at_final():
    times = log_snr_times(8)
    table = solvers.multistep(2, lower_order_final=False, euler_at_final=True)(VP, times)
    last = solvers.ddim()(VP, times[-2:])
    before = table._replace(active=np.arange(8) < 7).run_numpy(Mixture(), X)
    np.testing.assert_allclose(
        table.run_numpy(Mixture(), X),
        last._replace(start=np.array([1.0, 0.0])).run_numpy(Mixture(), before),
        atol=1e-13,
    )
    full = solvers.multistep(2, lower_order_final=False)(VP, times)
    assert not np.allclose(full.history[-1], table.history[-1])


@pytest.mark.parametrize("solver", [solvers.multistep(3), solvers.unipc(2), solvers.unipc(3)])
@pytest.mark.parametrize("schedule", [schedules.rectified_flow(), schedules.cosine(-np.inf)])
def test_data_form_starts_at_pure_noise(solver, schedule):
    """From alpha = 0, where a prediction has no log-SNR, it stays near the flow."""
    times = strides.uniform(schedule, 40)
    table = solver(schedule, times)
    x = table.start[0] * X
    exact = Mixture().flow(x, schedule.level(times[0]), level_of(1.0, 1e-9), 1000)
    assert np.abs(table.run_numpy(Mixture(), X) - exact).max() < 0.02


# --- stochastic -----------------------------------------------------------------------------------


def test_euler_ancestral_and_the_first_order_sde_are_ddpm():
    """k-diffusion's ancestral step and SDE-DPM-Solver++ 1, written out, on the same noise."""
    schedule, data = schedules.edm(), Mixture()
    t = strides.karras(schedule, 8)
    noise = np.random.default_rng(0).standard_normal((8, len(X)))
    ancestral = sde = 80 * X
    for i in range(8):
        now, after = t[i], t[i + 1]
        up = min(after, np.sqrt(after**2 * (now**2 - after**2) / now**2))
        down = np.sqrt(after**2 - up**2)
        d = (ancestral - data(ancestral, level_of(1, now)).x0) / now
        ancestral = ancestral + (down - now) * d + up * noise[i]
        x0 = data(sde, level_of(1, now)).x0
        h = np.log(now / after) if after else np.inf
        sde = after / now * np.exp(-h) * sde - np.expm1(-2 * h) * x0
        sde = sde + after * np.sqrt(-np.expm1(-2 * h)) * noise[i]
    np.testing.assert_allclose(ancestral, sde, atol=1e-12)
    for name in ("ddpm", "euler_ancestral", "sde_dpm_solver++_1"):
        end = SOLVERS[name](schedule, t).run_numpy(data, X, noise)
        np.testing.assert_allclose(end, sde, atol=1e-11)


@pytest.mark.parametrize("derivative", ["midpoint", "taylor"])
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_sde_2m_written_out(eta, derivative):
    data, times = Mixture(), log_snr_times(8)
    noise = np.random.default_rng(0).standard_normal((8, len(X)))
    lam, level = VP.half_log_snr(times), VP.level(times)
    x, before = X, None
    for i in range(8):
        h, x0 = lam[i + 1] - lam[i], data(x, VP.level(times[i])).x0
        full = h * (1 + eta)
        new = level.sigma[i + 1] / level.sigma[i] * np.exp(-eta * h) * x
        new = new - level.alpha[i + 1] * np.expm1(-full) * x0
        if before is not None:
            slope = (x0 - before) * h / (lam[i] - lam[i - 1])
            weight = -np.expm1(-full) / 2
            if derivative == "taylor":
                weight = -np.expm1(-full) / -full + 1
            new = new + level.alpha[i + 1] * weight * slope
        x = new + level.sigma[i + 1] * np.sqrt(-np.expm1(-2 * eta * h)) * noise[i]
        before = x0
    solver = solvers.multistep(2, eta=eta, derivative=derivative, lower_order_final=False)
    np.testing.assert_allclose(solver(VP, times).run_numpy(data, X, noise), x, atol=1e-12)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("part", [0.5, 0.3])
def test_sde_2s_follows_one_path_of_the_noise(eta, part):
    """With a fixed clean estimate it is the first-order SDE on the refined stride."""
    times = log_snr_times(4)
    lam = VP.half_log_snr(times)
    inner = VP.time_of(lam[:-1] + part * np.diff(lam))
    refined = np.sort(np.concatenate([times, inner]))[::-1]
    point = GaussianData(0.37, 0.0)
    two = solvers.sde_singlestep(eta, part)(VP, times)
    one = solvers.multistep(1, eta=eta)(VP, refined)
    noise = draws(one)
    np.testing.assert_allclose(
        two.run_numpy(point, X, noise), one.run_numpy(point, X, noise), atol=1e-12
    )


def test_sde_solvers_without_noise_are_the_ode_solvers():
    times = log_snr_times(9)
    for order in (1, 2, 3):
        small = solvers.multistep(order, eta=1e-9)(VP, times)
        silent = small._replace(noise=0 * small.noise)
        exact = solvers.multistep(order)(VP, times)
        np.testing.assert_allclose(
            silent.run_numpy(Mixture(), X), exact.run_numpy(Mixture(), X), atol=1e-7
        )


def test_multistep_consistency_is_algorithm_1():
    """Song et al. 2023, on EDM's clock; the latent form re-noises to the full level."""
    schedule, data = schedules.edm(), Mixture()
    t = np.array([80.0, 20.0, 3.0, 0.0])
    for name, floor in (("consistency", 0.002), ("lcm", 0.0)):
        table = SOLVERS[name](schedule, t)
        noise = draws(table)
        x = data(80 * X, level_of(1, 80.0)).x0
        for i, tau in enumerate(t[1:-1]):
            x = data(x + np.sqrt(tau**2 - floor**2) * noise[i], level_of(1, tau)).x0
        np.testing.assert_allclose(table.run_numpy(data, X, noise), x, atol=1e-12)
        assert table.nfe == 3


@pytest.mark.parametrize("floor", [0.002, 0.0])
@pytest.mark.parametrize("steps", [2, 4])
def test_more_steps_of_an_exact_consistency_function_draw_anew(floor, steps):
    """They are other samples than those of one step, and no worse."""
    schedule, data, end = schedules.edm(), Mixture(), level_of(1.0, 0.002)
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal(1000), rng.standard_normal((steps, 1000))
    first = rng.random(1000) < 0.3
    drawn = np.sort(np.where(first, rng.normal(-1, 0.35, 1000), rng.normal(0.6, 0.25, 1000)))

    def function(x, level):
        prediction = data(x, level)
        return prediction._replace(x0=data.flow(x, level, end, steps=150))

    def draw(steps):
        recipe = Recipe("consistency", "karras", steps, {"sigma_min": floor})
        return recipe.table(schedule).run_numpy(function, x, noise)

    one, more = draw(1), draw(steps)
    distances = [np.abs(np.sort(ends) - drawn).mean() for ends in (one, more)]
    assert np.abs(one - more).mean() > 0.3
    assert distances[1] < distances[0] + 0.03 < 0.1


# --- the analytical first step --------------------------------------------------------------------

SINGLE_STAGE = [
    "ddim",
    "ipndm",
    "deis",
    "lms",
    "dpm_solver_1",
    "dpm_solver++_2m",
    "dpm_solver++_3m",
]


@pytest.mark.parametrize("name", SINGLE_STAGE)
@pytest.mark.parametrize("process", ["vp_linear", "edm", "rectified_flow"])
@pytest.mark.parametrize("steps", [2, 3, 9])
def test_analytical_first_step_is_exact_on_gaussian_data(name, process, steps):
    """With the data's own std the network's first answer is known: one evaluation less."""
    schedule, data = PROCESSES[process], GaussianData(0.0, 0.7)
    times = strides.uniform(schedule, steps, lam_min=SOLVERS[name].lam_min)
    solver = SOLVERS[name]
    spared = analytical_first_step(solver, data_std=0.7)(schedule, times)
    full = solver(schedule, times)
    assert spared.nfe == full.nfe - 1 and spared.deterministic
    np.testing.assert_allclose(spared.run_numpy(data, X), full.run_numpy(data, X), atol=1e-12)


def test_analytical_first_step_is_close_on_a_mixture():
    times = strides.uniform(VP, 20)
    solver = solvers.multistep(3)
    ends = [s(VP, times).run_numpy(Mixture(), X) for s in (solver, analytical_first_step(solver))]
    assert 0 < np.abs(ends[0] - ends[1]).max() < 0.01


@pytest.mark.parametrize(
    ("solver", "steps", "message"),
    [
        (solvers.unipc(2), 6, "keeps one point, such as ddim"),
        (solvers.heun(), 6, "keeps one point"),
        (solvers.ddim(1.0), 6, "needs a deterministic solver"),
        (solvers.ddim(), 1, "at least 2 evaluations, got 1"),
    ],
)
def test_analytical_first_step_says_where_it_cannot_be(solver, steps, message):
    with pytest.raises(ValueError, match=message):
        analytical_first_step(solver)(VP, strides.uniform(VP, steps))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: solvers.ddim(1.2), r"eta must be in \[0, 1\], got 1.2"),
        (lambda: solvers.ddpm("learned"), "got 'learned'"),
        (lambda: solvers.ddpm(final_noise=True), "final_noise=True needs variance='large', got"),
        (lambda: solvers.heun("time"), "unknown space 'time'; the spaces are sigma, flow, angle"),
        (lambda: solvers.euler("time"), "unknown space 'time'"),
        (lambda: solvers.heun_churn(churn=-1), "churn >= 0"),
        (lambda: solvers.heun_churn(s_min=3, s_max=2), "got 40.0, 1.003, 3, 2"),
        (lambda: solvers.plms(5), "order must be 1..4, got 5"),
        (lambda: solvers.lms(0), "order must be 1..4, got 0"),
        (lambda: solvers.ipndm(5), "order must be 1..4, got 5"),
        (lambda: solvers.deis(4), r"order must be 0..3 \(the polynomial's degree\), got 4"),
        (lambda: solvers.deis(3, "sigma"), "space must be 't'"),
        (lambda: solvers.singlestep(4), "order must be 1, 2 or 3, got 4"),
        (lambda: solvers.singlestep(2, "x0"), "form must be 'data'"),
        (lambda: solvers.singlestep(2, "eps", "secant"), "'midpoint' or 'taylor', got 'secant'"),
        (lambda: solvers.fast("x0"), "form must be 'data'"),
        (lambda: solvers.multistep(4), "order must be 1, 2 or 3, got 4"),
        (lambda: solvers.multistep(2, eta=2.0), r"eta must be in \[0, 1\], got 2.0"),
        (lambda: solvers.multistep(2, "eps", eta=1.0), "eta = 1.0 needs form='data'"),
        (lambda: solvers.sde_singlestep(0.0), "eta and part must be in"),
        (lambda: solvers.unipc(4), "order must be 1, 2 or 3, got 4"),
        (lambda: solvers.unipc(2, variant="bh3"), "variant must be 'bh1' or 'bh2', got 'bh3'"),
        (lambda: solvers.consistency(-1.0), "sigma_min must be at least 0"),
        (lambda: analytical_first_step(solvers.ddim(), 0.0), "data_std must be positive"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
