"""Options of solvers by which they do what other libraries' samplers do."""

import numpy as np
import pytest

from ddim_jax import schedules, solvers, strides
from ddim_jax.recipe import Recipe
from ddim_jax.solvers.ddim import landings
from ddim_jax.solvers.dpm_solver import fast_orders
from tests.oracles import GaussianData

VP = schedules.vp_linear()
LINEAR = schedules.ddpm_linear()


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
