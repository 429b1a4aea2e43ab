"""Options of solvers by which they do what other libraries' samplers do."""

from functools import partial

import numpy as np
import pytest

from ddim_jax import schedules, solvers, strides
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import NoiseLevel
from ddim_jax.solvers import jumps
from ddim_jax.solvers.ddim import landings
from ddim_jax.solvers.dpm_solver import fast_orders
from tests.errors import rejects
from tests.oracles import GaussianData

VP = schedules.vp_linear()
LINEAR = schedules.ddpm_linear()
EXACT = GaussianData(0.3, 0.5)


def test_orders_fall_only_in_few_steps():
    """A number is that of the steps from which on the last ones keep their order."""
    for solver in (solvers.multistep, solvers.unipc):
        for steps, falls in ((8, True), (9, False)):
            times = strides.log_snr(VP, steps, terminal="min")
            table = solver(3, lower_order_final=9)(VP, times)
            same = solver(3, lower_order_final=falls)(VP, times)
            np.testing.assert_array_equal(table.history, same.history)
    with pytest.raises(ValueError, match="a whole number above 1, got 2.5"):
        solvers.multistep(2, lower_order_final=2.5)(VP, strides.log_snr(VP, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: solvers.ddim(eta=0.5),
        lambda: solvers.multistep(3, lower_order_final=False),
        lambda: solvers.multistep(2, "eps", lower_order_final=False),
        lambda: solvers.unipc(3, lower_order_final=False),
        lambda: solvers.deis(2, "log_rho"),
        lambda: solvers.fast("data", order=2, lower_order_final=False),
    ],
)
def test_a_step_of_no_length_changes_nothing(make):
    """Where a stride repeats its last point; the evaluation there is to no purpose."""
    times = strides.karras(LINEAR, 6, terminal="repeat")
    longer, shorter = make()(LINEAR, times), make()(LINEAR, times[:-1])
    assert longer.nfe == shorter.nfe + 1
    data = GaussianData(0.3, 0.5)

    def run(table):
        noise = np.zeros((table.nfe, 3))
        return table.run_numpy(data, np.array([-1, 0.2, 2]), noise)

    if make().name in ("unipc", "fast"):  # which end differently by the number of steps
        assert np.all(np.isfinite(run(longer)))
    else:
        np.testing.assert_allclose(run(longer), run(shorter), rtol=1e-12)


NOWHERE = {f"{end}, {spacing}": (spacing, end) for spacing in ("trailing", "linspace")
           for end in ("repeat", "zero_to_min")}  # fmt: skip
NOISED_ANEW = ("ddnm", "consistency", "lcm", "tcd")
MORE = {
    "sde_dpm_solver++_2s over sigma": solvers.sde_singlestep(path="sigma"),
    "dpm_solver++_3s, taylor": solvers.singlestep(3, "data", "taylor"),
    "midpoint, ancestral": solvers.midpoint(ancestral=True),
    "plms of v": solvers.plms(average="v", lower_order_final=False),
}


@pytest.mark.parametrize("name", [*solvers.SOLVERS, *MORE])
@pytest.mark.parametrize("end", NOWHERE)
def test_a_last_step_to_where_it_is_leaves_the_sample(name, end):
    """Of both terminals that may end so; at 7 steps "zero_to_min" does in spacing linspace."""
    solver, (spacing, terminal) = {**solvers.SOLVERS, **MORE}[name], NOWHERE[end]
    for steps in (2, 7):
        times = strides.uniform(LINEAR, steps, spacing=spacing, terminal=terminal, lam_min=-5.1)
        table = solver(LINEAR, times)
        assert table.nfe == solver.nfe(steps, "min")
        noise = np.random.default_rng(0).standard_normal((table.nfe, 3))
        ends = []
        for rows in (table.nfe, table.nfe - solver.stages):
            level = NoiseLevel(*(field[:rows] for field in table.level))
            fields = ("store", "slot", "state", "history", "noise", "active")
            cut = {field: getattr(table, field)[:rows] for field in fields}
            x = np.array([-1, 0.2, 2])
            ends.append(table._replace(level=level, **cut).run_numpy(EXACT, x, noise[:rows]))
        assert np.all(np.isfinite(ends))
        moves = name in NOISED_ANEW or name.startswith("unipc") or "fast" in name
        if times[-1] == times[-2] and not moves and not (steps == 2 and solver.warm_up):
            np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


def test_whole_landings():
    """diffusers' DDIM goes down T // steps from wherever it is: 142 indices in 7 steps."""
    times = strides.uniform(LINEAR, 7)
    index = times[:-1] * 1000 - 1
    lands = landings(LINEAR, times, "whole") * 1000 - 1
    np.testing.assert_allclose(lands, index - 142, atol=1e-9)
    assert lands[-1] == pytest.approx(0)  # from 142: not clean
    even = strides.uniform(LINEAR, 10)
    for make in (solvers.ddim, solvers.plms, solvers.pndm):
        tables = [make(landing=landing)(LINEAR, even) for landing in ("next", "whole")]
        np.testing.assert_allclose(tables[0].history, tables[1].history, atol=1e-9)
    with pytest.raises(
        ValueError, match="landing='whole' needs a discrete schedule, got vp_linear"
    ):
        solvers.ddim(landing="whole")(VP, strides.uniform(VP, 5))
    with pytest.raises(ValueError, match="landing must be 'next' or 'whole', got 'far'"):
        solvers.plms(landing="far")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (solvers.midpoint(exact_middle=True), "exact_middle needs a discrete schedule"),
        (solvers.ddim(landing=3), "landing=3 needs a discrete schedule"),
        (solvers.pndm(landing=3), "landing=3 needs a discrete schedule"),
    ],
)
def test_what_goes_by_index_refuses_a_continuous_schedule(made, said):
    with pytest.raises(ValueError, match=said + ", got vp_linear; leave it out"):
        made(VP, strides.uniform(VP, 5, lam_min=made.lam_min))


def test_an_inverse_ends_at_the_noisy_end():
    table = solvers.ddim(inverse=True)(LINEAR, strides.uniform(LINEAR, 5))
    assert table.end.t == 1 and table.level.t[0] == 0
    np.testing.assert_allclose(table.level.model_time, [199, 399, 599, 799, 999])
    with pytest.raises(ValueError, match="inverse=True needs eta=0, got 1"):
        solvers.ddim(eta=1, inverse=True)


@pytest.mark.parametrize("make", [solvers.lms, solvers.plms, solvers.pndm])
def test_the_order_is_kept_into_the_clean_end(make):
    """The last row's weights sum to DDIM's and reach further back."""
    times = strides.karras(LINEAR, 8)
    kept = make(lower_order_final=False)(LINEAR, times)
    fallen = make()(LINEAR, times)
    np.testing.assert_array_equal(kept.history[:-1, :, :3], fallen.history[:-1, :, :3])
    assert np.count_nonzero(kept.history[-1, 0]) == 4
    level = kept.level
    np.testing.assert_allclose(kept.state[-1, 0, 0], 1 / level.alpha[-1])
    np.testing.assert_allclose(np.sum(kept.history[-1, 0]), -level.sigma[-1] / level.alpha[-1])


def test_averages_of_v_are_those_of_eps_where_one_prediction_is_used():
    times = strides.uniform(LINEAR, 6, spacing="leading", offset=1)
    data = GaussianData(0.3, 0.5)
    x = np.array([-1.0, 0.2, 2.0])
    ends = [
        solvers.plms(1, average=average)(LINEAR, times).run_numpy(data, x)
        for average in ("eps", "v")
    ]
    assert np.max(np.abs(ends[0] - ends[1])) < 0.1  # the warm-up's mean differs, no more
    with pytest.raises(ValueError, match="average must be 'eps' or 'v', got 'x0'"):
        solvers.pndm(average="x0")


@pytest.mark.parametrize("schedule", [VP, schedules.rectified_flow(), schedules.edm()])
@pytest.mark.parametrize("make", [solvers.plms, partial(solvers.plms, 2), solvers.pndm])
def test_means_of_v_are_first_order_on_every_schedule(make, schedule):
    """v is alpha eps - sigma x0 also where alpha^2 + sigma^2 is not 1."""
    solver, x, error = make(average="v"), np.linspace(-2, 2, 9), []
    for steps in (40, 80, 160):
        times = strides.karras(schedule, steps, lam_min=-4.0, terminal="min")
        table = solver(schedule, times)
        exact = EXACT.flow(table.start[0] * x, schedule.level(times[0]), table.end)
        error.append(np.abs(table.run_numpy(EXACT, x) - exact).max())
    assert error[1] < 0.05
    assert np.log2(error[1] / error[2]) == pytest.approx(solver.order, abs=0.1) and error[0] < 0.1


@pytest.mark.parametrize("falls", [True, False, 5, 9])
def test_orders_of_deis_over_log_rho_fall_as_asked(falls):
    """Only into the clean end, which log sigma does not reach, is it first order in any case."""
    times = strides.log_snr(VP, 7, lam_min=-5.1)
    table = solvers.deis(2, "log_rho", lower_order_final=falls)(VP, times)
    used = np.count_nonzero(table.history[:, 0], axis=1)
    ends = [2, 1] if falls in (True, 9) else [3, 1]
    assert used.tolist() == [1, 2, 3, 3, 3, *ends]


def test_gamma_goes_from_ddim_to_latent_consistency():
    times = strides.uniform(LINEAR, 4)
    consistent, ddim = solvers.consistency(0.0)(LINEAR, times), solvers.ddim()(LINEAR, times)
    for gamma, like in ((1.0, consistent), (0.0, ddim)):
        table = solvers.consistency(0.0, gamma=gamma)(LINEAR, times)
        np.testing.assert_allclose(table.noise, like.noise, atol=1e-12)
        mixed = table.history[:, 0, 0, None] * table.store
        np.testing.assert_allclose(mixed, like.history[:, 0, 0, None] * like.store, atol=1e-12)
    half = solvers.consistency(0.0, gamma=0.5)(LINEAR, times)
    after = LINEAR.level(times[1:])
    kept = half.store[:, 1] * half.history[:, 0, 0]
    np.testing.assert_allclose(kept**2 + half.noise[:, 0] ** 2, after.sigma**2, atol=1e-12)
    with pytest.raises(ValueError, match="gamma must be in .0, 1., and 1 unless sigma_min is 0"):
        solvers.consistency(gamma=0.5)


ROWS = {
    # flow and cosine, 4 steps, gamma .3: weights of x, of x0 and of the noise, row by row
    "flow": [
        (0.276316, 0.25, 0.697244), (0.358974, 0.410256, 0.421325), (0.318182, 0.590909, 0.192847),
        (0, 1, 0),
    ],
    "cosine": [
        (0.413985, 0.382683, 0.825936), (0.469017, 0.527622, 0.558782),
        (0.368489, 0.663319, 0.280276), (0, 1, 0),
    ],
}  # fmt: skip
CONTINUOUS = {"flow": schedules.rectified_flow(), "cosine": schedules.cosine()}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_gamma_sampling(name):
    schedule = CONTINUOUS[name]
    times = strides.uniform(schedule, 4)
    table = solvers.SOLVERS["tcd"](schedule, times)
    x0, eps = (table.history[:, 0, 0, None] * table.store).T  # of x = alpha x0 + sigma eps
    alpha, sigma = table.level.alpha, table.level.sigma
    found = np.stack([eps / sigma, x0 - eps * alpha / sigma, table.noise[:, 0]], 1)
    np.testing.assert_allclose(found, ROWS[name], atol=2e-6 if name == "flow" else 5e-5)
    ddim = solvers.SOLVERS["tcd"].make(gamma=0.0)(schedule, times)
    for one, other in zip(ddim, solvers.ddim()(schedule, times), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    lcm = solvers.SOLVERS["tcd"].make(gamma=1.0)(schedule, times)
    for one, other in zip(lcm, solvers.SOLVERS["lcm"](schedule, times), strict=True):
        np.testing.assert_array_equal(one, other)


def ends(name, steps, gamma, contracted=1.0):
    """Mean and std that a sampler ends with whose network is told its jump, of N(.3, .5^2).

    It answers with the jump of the exact map, contracted about the mean; both are linear, so two
    points and the noise's weights say all.
    """
    schedule, m, std = CONTINUOUS[name], 0.3, 0.5
    table = solvers.SOLVERS["tcd"].make(gamma=gamma)(schedule, strides.uniform(schedule, steps))
    base, slope = jumps.line(table, schedule)
    np.testing.assert_allclose(jumps.jumps(table, schedule), base + slope * table.level.t)
    spread = lambda level: np.hypot(level.alpha * std, level.sigma)  # noqa: E731

    def denoise(x, level):
        after = schedule.level(np.maximum(level.t - (base + slope * level.t), 0.0))
        to = after.alpha * m + contracted * spread(after) / spread(level) * (x - level.alpha * m)
        det = level.alpha * after.sigma - level.sigma * after.alpha
        x0 = (after.sigma * x - level.sigma * to) / det
        return x0, (level.alpha * to - after.alpha * x) / det

    def run(x, noise):
        return table.run_numpy(denoise, np.float64(x), np.asarray(noise, np.float64))

    none = np.zeros(steps)
    mean = run(0.0, none)
    parts = [run(1.0, none) - mean] + [run(0.0, row) - mean for row in np.eye(steps)]
    return mean, np.sqrt(np.sum(np.square(parts)))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_gamma_sampling_is_exact_for_the_exact_map(name):
    for steps in (1, 2, 4):
        for gamma in (0.0, 0.3, 1.0):
            # the cosine schedule begins with a signal of 5e-5
            off = 1e-9 if name == "flow" else 5e-5
            np.testing.assert_allclose(ends(name, steps, gamma), (0.3, 0.5), atol=off)


def test_noise_repairs_a_map_that_contracts():
    found = [ends("flow", 8, gamma, 0.98)[1] for gamma in (0.0, 0.3, 1.0)]
    np.testing.assert_allclose(found, [0.4254, 0.4661, 0.4719], atol=1e-4)


def test_jumps_are_where_rows_go():
    """Of steps that are equally long, or on a line; of others, and of two stages, there is none."""
    flow, vp = schedules.rectified_flow(), schedules.vp_linear()
    times = strides.uniform(flow, 4)
    for gamma, long in ((0.0, [0.25] * 4), (1.0, [1, 0.75, 0.5, 0.25]), (0.5, [5, 4, 3, 2])):
        table = solvers.SOLVERS["tcd"].make(gamma=gamma)(flow, times)
        long = np.array(long) / (8 if gamma == 0.5 else 1)
        np.testing.assert_allclose(jumps.jumps(table, flow), long, atol=1e-9)
        np.testing.assert_allclose(jumps.jumps(table.pad(6, 3), flow), long, atol=1e-9)
    assert jumps.line(solvers.ddim()(vp, strides.uniform(vp, 5)), vp) == pytest.approx((0.2, 0))
    up = strides.uniform(flow, 4)[:-1][::-1]  # inversion
    np.testing.assert_allclose(jumps.jumps(solvers.ddim()(flow, up), flow), -0.25, atol=1e-9)
    linear = strides.uniform(LINEAR, 4)  # whole indices, of 1000
    base, slope = jumps.line(solvers.SOLVERS["tcd"](LINEAR, linear), LINEAR)
    assert abs(slope - 0.3) < 0.01 and abs(base - 0.7 / 4) < 0.01
    with rejects(ValueError, "no length of their own", "tcd to add noise"):
        jumps.jumps(solvers.multistep(2)(flow, times), flow)
    with rejects(ValueError, "the table's differ", "on the uniform stride"):
        jumps.line(solvers.ddim()(flow, np.array([1, 0.9, 0.5, 0.2, 0])), flow)


def test_ancestral_midpoints_keep_the_marginals():
    """Down and up again by noise: what is kept and what is fresh make the next level."""
    times = strides.uniform(LINEAR, 6)
    table = solvers.midpoint(ancestral=True)(LINEAR, times)
    level, after = LINEAR.level(times[:-1]), LINEAR.level(times[1:])
    u, s = level.sigma / level.alpha, after.sigma / after.alpha
    up = s[:-1] * np.sqrt(1 - (s[:-1] / u[:-1]) ** 2)
    np.testing.assert_allclose(table.noise[1::2, 0], (after.alpha[:-1] * up)[:5])
    with pytest.raises(ValueError, match="ancestral=True needs space='sigma', got 'flow'"):
        solvers.midpoint("flow", ancestral=True)


@pytest.mark.parametrize(
    ("evaluations", "order", "falls", "blocks"),
    [
        (6, 3, True, [3, 2, 1]),
        (6, 3, False, [3, 3]),
        (7, 3, False, [3, 3, 1]),
        (6, 2, True, [2, 2, 1, 1]),
        (6, 2, False, [2, 2, 2]),
        (3, 1, True, [1, 1, 1]),
        (0, 2, True, []),
    ],
)
def test_blocks_of_every_order(evaluations, order, falls, blocks):
    assert fast_orders(evaluations, order, falls) == blocks


def test_noise_over_sigma_is_as_much_as_over_log_snr():
    times = strides.uniform(LINEAR, 5)
    own = solvers.sde_singlestep()(LINEAR, times)
    other = solvers.sde_singlestep(path="sigma")(LINEAR, times)
    np.testing.assert_allclose(other.noise[::2, 0], own.noise[::2, 0])

    def total(table):  # of a step: carried by the base, and fresh
        return (table.state[1::2, 0, 1] * table.noise[:-1:2, 1]) ** 2 + table.noise[1::2, 0] ** 2

    np.testing.assert_allclose(total(other), total(own))
    with pytest.raises(ValueError, match="path must be 'log_snr' or 'sigma', got 'time'"):
        solvers.sde_singlestep(path="time")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"analytical_first_step": "x"}, "analytical_first_step must be a number, got 'x'"),
        ({"analytical_first_step": 0}, r"analytical_first_step must be in \(0, 1000\], got 0"),
        ({"analytical_first_step": 1e300}, r"in \(0, 1000\], got 1e\+300; images have about 0.5"),
        ({"lam_min": "low"}, "lam_min must be a number, got 'low'; None lifts it"),
        ({"uncorrected": 3}, r"uncorrected must be steps like \(0, 1\), got 3"),
        ({"uncorrected": "012"}, "uncorrected must be steps like"),
    ],
)
def test_options_of_another_type_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(solver="unipc_2", steps=5, solver_options=options).table(VP)
