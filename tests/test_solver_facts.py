"""What a solver says of itself: the facts by name, by options, and where it cannot start."""

import dataclasses
import inspect
import re

import numpy as np
import pytest

from ddim_jax import schedules, solvers, strides
from ddim_jax.solvers import SOLVERS, Solver, analytical_first_step
from tests.oracles import Mixture, level_of

VP = schedules.vp_linear()
X = np.linspace(-2, 2, 9)
LIMITED = [name for name, solver in SOLVERS.items() if solver.lam_min is not None]

# name: order, evaluations of S steps, stochastic, starts at lam, stride, source
FACTS = """
ddim                1 S    no  any  uniform Song et al. 2021, arXiv:2010.02502
ddnm                - S    yes any  uniform Wang et al. 2023, arXiv:2212.00490
ddpm                - S    yes any  uniform Ho et al. 2020, arXiv:2006.11239
ddpm_large          - S    yes any  uniform Song et al. 2021, arXiv:2010.02502
euler               1 S    no  -5.1 uniform Karras et al. 2022, arXiv:2206.00364
euler_ancestral     - S    yes any  uniform Song et al. 2021, arXiv:2010.02502
heun                2 2S-1 no  -5.1 karras  Karras et al. 2022, arXiv:2206.00364
heun_flow           2 2S-1 no  any  uniform Karras et al. 2022, arXiv:2206.00364
heun_angle          2 2S-1 no  any  uniform Karras et al. 2022, arXiv:2206.00364
heun_churn          - 2S-1 yes -5.1 karras  Karras et al. 2022, arXiv:2206.00364
midpoint            2 2S-1 no  -5.1 uniform Karras et al. 2022, arXiv:2206.00364
rk4                 4 4S-3 no  any  uniform Runge, Kutta; over the angle
plms                2 S+1  no  -5.1 karras  Liu et al. 2022, arXiv:2202.09778
s_pndm              2 S+1  no  -5.1 karras  Liu et al. 2022, arXiv:2202.09778
pndm                2 S+9  no  -5.1 karras  Liu et al. 2022, arXiv:2202.09778
ipndm               2 S    no  -5.1 uniform Zhang & Chen 2023, arXiv:2204.13902
ipndm_v             4 S    no  -5.1 uniform Zhou et al. 2024, arXiv:2312.00094
deis                4 S    no  -5.1 uniform Zhang & Chen 2023, arXiv:2204.13902
deis_rho            4 S    no  -5.1 uniform Zhang & Chen 2023, arXiv:2204.13902
lms                 4 S    no  -5.1 uniform k-diffusion; Zhang & Chen 2023, arXiv:2204.13902
dpm_solver_1        1 S    no  -5.1 uniform Lu et al. 2022, arXiv:2206.00927
dpm_solver_2        2 2S-1 no  -5.1 uniform Lu et al. 2022, arXiv:2206.00927
dpm_solver_3        3 3S-2 no  -5.1 uniform Lu et al. 2022, arXiv:2206.00927
dpm_solver_fast     2 S    no  -5.1 log_snr Lu et al. 2022, arXiv:2206.00927
dpm_solver++_2s     2 2S-1 no  -5.1 uniform Lu et al. 2022, arXiv:2211.01095
dpm_solver++_3s     3 3S-2 no  -5.1 uniform Lu et al. 2022, arXiv:2211.01095
dpm_solver++_fast   2 S    no  -5.1 uniform Lu et al. 2022, arXiv:2211.01095
dpm_solver++_2m     2 S    no  any  uniform Lu et al. 2022, arXiv:2211.01095
dpm_solver++_3m     3 S    no  any  uniform Lu et al. 2022, arXiv:2211.01095
sde_dpm_solver++_1  - S    yes any  uniform Lu et al. 2022, arXiv:2211.01095
sde_dpm_solver++_2m - S    yes any  uniform Lu et al. 2022, arXiv:2211.01095
sde_dpm_solver++_2s - 2S-1 yes -5.1 uniform Lu et al. 2022, arXiv:2211.01095
unipc_1             2 S    no  any  uniform Zhao et al. 2023, arXiv:2302.04867
unipc_2             3 S    no  any  uniform Zhao et al. 2023, arXiv:2302.04867
unipc_3             4 S    no  any  uniform Zhao et al. 2023, arXiv:2302.04867
consistency         - S    yes any  uniform Song et al. 2023, arXiv:2303.01469
lcm                 - S    yes any  uniform Luo et al. 2023, arXiv:2310.04378
tcd                 - S    yes any  uniform Zheng et al. 2024, arXiv:2402.19159
"""
FACTS = [line.split(maxsplit=6) for line in FACTS.strip().splitlines()]


def evaluations(formula, steps):
    """Of "2S-1" for a number of steps."""
    factor, more = re.fullmatch(r"(\d*)S([+-]\d+)?", formula).groups()
    return int(factor or 1) * steps + int(more or 0)


def test_solvers_are_these_in_this_order():
    assert [line[0] for line in FACTS] == list(SOLVERS)


@pytest.mark.parametrize("line", FACTS, ids=[line[0] for line in FACTS])
def test_facts_by_name(line):
    name, order, formula, stochastic, lam_min, stride, source = line
    solver = SOLVERS[name]
    assert solver.name == name and solver.source == source and solver.stride == stride
    assert solver.order == (None if order == "-" else int(order))
    assert solver.stochastic is (stochastic == "yes")
    assert solver.lam_min == (None if lam_min == "any" else float(lam_min))
    assert [solver.nfe(s) for s in (4, 9, 30)] == [evaluations(formula, s) for s in (4, 9, 30)]


def test_consistency_models_are_not_asked_where_they_are_the_identity():
    names = {s.name for s in SOLVERS.values() if s.terminal != "zero"}
    assert names == {"consistency", "lcm", "tcd"}
    assert SOLVERS["lcm"].nfe(4, "skip") == SOLVERS["lcm"].nfe(4) == 4
    assert SOLVERS["heun"].nfe(4, "skip") == 7 and SOLVERS["heun"].nfe(4, "min") == 8


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_makes_itself_again(name):
    solver, times = SOLVERS[name], strides.uniform(VP, 7)
    again = solver.make()
    same = dataclasses.replace(again, make_table=solver.make_table, make=solver.make)
    assert same == solver and again.make is not None
    for one, other in zip(again(VP, times), solver(VP, times), strict=True):
        np.testing.assert_array_equal(one, other)


def test_names_hold_with_other_options_and_fix_what_they_say():
    assert SOLVERS["ddim"].make(eta=0.2).make(eta=0.3).name == "ddim"
    assert SOLVERS["dpm_solver++_2s"].make(derivative="taylor").name == "dpm_solver++_2s"
    with pytest.raises(TypeError, match="order"):
        SOLVERS["dpm_solver_2"].make(order=3)
    options = inspect.signature(SOLVERS["dpm_solver_2"].make).parameters
    assert list(options) == ["form", "derivative"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        SOLVERS["ddim"].order = 2
    with pytest.raises(TypeError, match="positional"):
        Solver(SOLVERS["ddim"].make_table)


# --- facts follow from the options ----------------------------------------------------------------

BY_OPTIONS = [  # solver; order, stages, stochastic, lam_min, stride
    (solvers.ddim(eta=0.5), None, 1, True, None, "uniform"),
    (solvers.ddim(eta=0.0), 1, 1, False, None, "uniform"),
    (solvers.ddnm(eta=0.0), 1, 1, False, None, "uniform"),
    (solvers.ddpm(variance="large"), None, 1, True, None, "uniform"),
    (solvers.euler(space="flow"), 1, 1, False, None, "uniform"),
    (solvers.euler(space="angle"), 1, 1, False, None, "uniform"),
    (solvers.heun(space="sigma"), 2, 2, False, -5.1, "karras"),
    (solvers.heun(space="flow"), 2, 2, False, None, "uniform"),
    (solvers.heun_churn(churn=0.0), 2, 2, False, -5.1, "karras"),
    (solvers.heun_churn(s_noise=0.0), None, 2, False, -5.1, "karras"),
    (solvers.midpoint(space="flow"), 2, 2, False, None, "uniform"),
    (solvers.midpoint(space="angle"), 2, 2, False, None, "uniform"),
    (solvers.rk4(space="sigma"), 4, 4, False, -5.1, "uniform"),
    (solvers.rk4(space="flow"), 4, 4, False, None, "uniform"),
    (solvers.plms(order=1), 1, 1, False, -5.1, "karras"),
    (solvers.plms(order=2), 2, 1, False, -5.1, "karras"),
    (solvers.plms(order=3), 2, 1, False, -5.1, "karras"),
    (solvers.plms(average="v"), 1, 1, False, -5.1, "karras"),
    (solvers.ipndm(order=1), 1, 1, False, -5.1, "uniform"),
    (solvers.ipndm(order=3), 2, 1, False, -5.1, "uniform"),
    (solvers.ipndm(order=3, variable=True), 3, 1, False, -5.1, "uniform"),
    (solvers.deis(order=1), 2, 1, False, -5.1, "uniform"),
    (solvers.deis(order=2, space="rho"), 3, 1, False, -5.1, "uniform"),
    (solvers.lms(order=2), 2, 1, False, -5.1, "uniform"),
    (solvers.singlestep(order=1, form="data"), 1, 1, False, None, "uniform"),
    (solvers.singlestep(order=1, form="eps"), 1, 1, False, -5.1, "uniform"),
    (solvers.singlestep(order=3, derivative="taylor"), 3, 3, False, -5.1, "uniform"),
    (solvers.fast(form="data"), 2, 1, False, -5.1, "uniform"),
    (solvers.multistep(order=1), 1, 1, False, None, "uniform"),
    (solvers.multistep(order=2, form="eps"), 2, 1, False, -5.1, "uniform"),
    (solvers.multistep(order=3, exact=False), 2, 1, False, None, "uniform"),
    (solvers.multistep(order=3, eta=0.3), None, 1, True, None, "uniform"),
    (solvers.sde_singlestep(eta=0.3), None, 2, True, -5.1, "uniform"),
    (solvers.unipc(order=3, corrector=False), 3, 1, False, None, "uniform"),
    (solvers.unipc(order=1, corrector=False), 1, 1, False, None, "uniform"),
    (solvers.unipc(order=2, form="eps"), 3, 1, False, -5.1, "uniform"),
    (solvers.unipc(order=2, variant="bh1"), 3, 1, False, None, "uniform"),
    (solvers.consistency(sigma_min=0.1), None, 1, True, None, "uniform"),
    (SOLVERS["sde_dpm_solver++_2m"].make(eta=0.0), 2, 1, False, None, "uniform"),
    (SOLVERS["heun_flow"].make(space="sigma"), 2, 2, False, -5.1, "karras"),
]
IDS = [f"{k}-{line[0].name}" for k, line in enumerate(BY_OPTIONS)]


@pytest.mark.parametrize("line", BY_OPTIONS, ids=IDS)
def test_facts_by_options(line):
    solver, *facts = line
    names = ("order", "stages", "stochastic", "lam_min", "stride")
    assert [getattr(solver, name) for name in names] == facts


@pytest.mark.parametrize("line", BY_OPTIONS, ids=IDS)
def test_facts_are_what_the_tables_do(line):
    solver = line[0]
    for steps in (1, 2, 9):
        for terminal in ("zero", "min"):
            table = solver(VP, strides.uniform(VP, steps, terminal=terminal))
            assert table.nfe == solver.nfe(steps, terminal)
    if not solver.name.startswith("heun_churn"):  # whose noise has a range of its own
        assert table.deterministic != solver.stochastic


LOW_ORDERS = [line[0] for line in BY_OPTIONS if line[1] in (1, 2) and line[0].name != "fast"]


@pytest.mark.parametrize("solver", LOW_ORDERS)
def test_orders_of_options_are_measured(solver):
    """One and two, which low-order first and last steps do not hide."""
    lam = VP.half_log_snr(np.array([1.0, 1e-2]))
    exact = Mixture().flow(X, VP.level(1.0), VP.level(1e-2), 1500)
    error = []
    for steps in (320, 640):
        times = VP.time_of(np.linspace(*lam, steps + 1))
        error.append(np.abs(solver(VP, times).run_numpy(Mixture(), X) - exact).max())
    assert np.log2(error[0] / error[1]) == pytest.approx(solver.order, abs=0.15), error


@pytest.mark.parametrize("schedule", [schedules.rectified_flow(), schedules.cosine(-np.inf)])
@pytest.mark.parametrize(
    "solver",
    [line[0] for line in BY_OPTIONS if line[4] is None and not line[3]]
    + [s for s in SOLVERS.values() if s.lam_min is None and not s.stochastic],
)
def test_solvers_without_a_limit_start_at_pure_noise(solver, schedule):
    times = strides.uniform(schedule, 80)
    table = solver(schedule, times)
    start = table.start[0] * X
    exact = Mixture().flow(start, schedule.level(times[0]), level_of(1.0, 1e-9), 1000)
    assert np.abs(table.run_numpy(Mixture(), X) - exact).max() < 0.03


@pytest.mark.parametrize("name", ["ddim", "deis", "ipndm", "dpm_solver++_2m"])
def test_facts_with_an_analytical_first_step(name):
    solver = SOLVERS[name]
    spared = analytical_first_step(solver)
    for steps in (2, 3, 9):
        for terminal in ("zero", "min"):
            times = strides.uniform(VP, steps, terminal=terminal)
            assert (
                spared(VP, times).nfe
                == spared.nfe(steps, terminal)
                == solver.nfe(steps, terminal) - 1
            )
    for fact in ("order", "stages", "stochastic", "lam_min", "stride", "source", "name"):
        assert getattr(spared, fact) == getattr(solver, fact)


# --- where a solver cannot start ------------------------------------------------------------------

FROM_NOISE = {  # schedule, and its half log-SNR at the noisy end
    "cosine": (schedules.cosine(), "-10"),
    "ddpm_cosine": (schedules.ddpm_cosine(), "-9.918"),
    "rectified_flow": (schedules.rectified_flow(), "-inf"),
    "zero SNR": (schedules.zero_terminal_snr(schedules.ddpm_linear()), "-inf"),
    "edm to 700": (schedules.edm(sigma_max=700.0), "-6.551"),
}


def advised(solver, schedule, steps):
    """The stride that the error of a start at pure noise recommends, word for word."""
    with pytest.raises(ValueError) as error:
        solver(schedule, strides.uniform(schedule, steps))
    call = re.search(
        r"as in strides\.(\w+)\(schedule, steps, lam_min=([-.\d]+)\)", str(error.value)
    )
    return getattr(strides, call[1])(schedule, steps, lam_min=float(call[2]))


@pytest.mark.parametrize("name", LIMITED)
@pytest.mark.parametrize("process", FROM_NOISE)
def test_a_start_below_the_limit_is_refused(name, process):
    schedule, lam = FROM_NOISE[process]
    solver, times = SOLVERS[name], strides.uniform(schedule, 6)
    message = (
        f"{name} starts at half log-SNR -5.1 or above, and this stride starts at {lam}: give the "
        f"stride lam_min=-5.1, as in strides.{solver.stride}(schedule, steps, lam_min=-5.1)"
    )
    for start in (times, times[::-1], times[[0, -1]]):  # inversion runs upwards
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            solver(schedule, start)
    advised(solver, schedule, 6)


@pytest.mark.parametrize("name", LIMITED)
@pytest.mark.parametrize("process", ["cosine", "ddpm_cosine"])
def test_the_advised_stride_meets_the_oracle(name, process):
    """The same noise ends where the flow from the schedule's own noisy end takes it."""
    solver, schedule = SOLVERS[name], FROM_NOISE[process][0]
    table = solver(schedule, advised(solver, schedule, 20))
    rng = np.random.default_rng(0)
    if solver.stochastic:
        x, count = rng.standard_normal((table.nfe + 1, 20_000)), 20_000
        got = table.run_numpy(Mixture(), x[0], x[1:], rng.standard_normal(count))
        first = rng.random(count) < 0.3
        drawn = np.where(first, rng.normal(-1, 0.35, count), rng.normal(0.6, 0.25, count))
        error = np.abs(np.sort(got) - np.sort(drawn)).mean()
    else:
        exact = Mixture().flow(X, schedule.level(1.0), level_of(1.0, 1e-9), 1000)
        error = np.abs(table.run_numpy(Mixture(), X) - exact).max()
    assert error < 0.08


@pytest.mark.parametrize(("name", "silent"), [("heun", 2.5), ("plms", 1.57)])
def test_what_the_refusal_spares(name, silent):
    """The same 20 steps from lam = -10, unchecked: finite, and wrong; from -5.1 they are right."""
    solver, schedule = SOLVERS[name], schedules.cosine()
    exact = Mixture().flow(X, schedule.level(1.0), level_of(1.0, 1e-9), 1000)

    def error(table):
        return np.abs(table.run_numpy(Mixture(), X) - exact).max()

    below, above = (strides.uniform(schedule, 20, lam_min=lam) for lam in (None, solver.lam_min))
    unchecked = dataclasses.replace(solver, lam_min=None)
    assert error(unchecked(schedule, below)) == pytest.approx(silent, rel=0.02)
    assert error(solver(schedule, above)) < 0.06
    with pytest.raises(ValueError, match=f"{name} starts at half log-SNR -5.1 or above"):
        solver(schedule, below)


def test_the_limit_itself_is_allowed():
    """Whatever the rounding of its time; the tolerance is small."""
    schedule, solver = schedules.cosine(), SOLVERS["heun"]
    for lam in (-5.1, -5.1005):
        start = float(schedule.time_of(lam))
        solver(schedule, np.array([start, 0.5, 0.0]))
        solver(schedule, np.array([np.float32(start), 0.5, 0.0]))
        solver(schedule, np.array([0.1, 0.5, start]))
    with pytest.raises(ValueError, match="this stride starts at -5.11:"):
        solver(schedule, [float(schedule.time_of(-5.11)), 0.5, 0.0])


def test_a_solver_without_a_name_and_times_outside_the_schedule():
    nameless = dataclasses.replace(solvers.heun(), name="")
    with pytest.raises(ValueError, match="this solver starts at half log-SNR -5.1"):
        nameless(schedules.cosine(), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"times of the rectified_flow schedule lie in \[0.0, 1.0"):
        nameless(schedules.rectified_flow(), [1.5, 0.5, 0.0])


def test_a_call_validates_the_table():
    broken = solvers.ddim().make_table
    slotless = lambda *given: broken(*given)._replace(slot=np.full(5, 9))  # noqa: E731
    with pytest.raises(ValueError, match="slots must be 0..0"):
        Solver(make_table=slotless)(VP, strides.uniform(VP, 5))
