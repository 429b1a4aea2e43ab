"""Noise schedules: published values, exact ends, inverses, numpy against jax, error messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import schedules
from ddim_jax.names import make
from ddim_jax.schedules import SCHEDULES

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ALL = {name: make() for name, make in SCHEDULES.items()} | {
    "ddpm_linear, zero SNR": schedules.zero_terminal_snr(schedules.ddpm_linear()),
    "ddpm_scaled_linear, zero SNR": schedules.zero_terminal_snr(schedules.ddpm_scaled_linear()),
    "cosine, no limits": schedules.cosine(-np.inf, np.inf),
    "cosine, shifted": schedules.cosine(resolution=256),
    "rectified_flow, shifted": schedules.rectified_flow(3.0),
    "ddpm_linear, T = 10": schedules.ddpm_linear(10, 1e-2, 0.9),
}
DISCRETE = [name for name, schedule in ALL.items() if schedule.num_steps]


@pytest.fixture(params=ALL)
def schedule(request):
    return ALL[request.param]


def inner_times(schedule, count=201):
    return np.linspace(schedule.t_min, schedule.t_span[0], count)


# --- properties of every schedule -----------------------------------------------------------------


def test_clean_end_is_exact(schedule):
    for t in (schedule.t_span[1], jnp.float32(schedule.t_span[1])):
        level = schedule.level(t)
        assert level.alpha == 1 and level.sigma == 0
        assert schedule.half_log_snr(t) == np.inf
        assert np.isfinite(level.model_time)


def test_lam_is_the_log_ratio_and_falls_towards_noise(schedule):
    t = inner_times(schedule)
    level, lam = schedule.level(t), schedule.half_log_snr(t)
    np.testing.assert_allclose(level.alpha, np.exp(lam) * level.sigma, rtol=1e-9, atol=1e-15)
    assert np.all(np.diff(lam) < 0)
    assert np.all(np.isfinite(np.stack(level)))


def test_variance_is_preserved_or_of_the_family(schedule):
    level = schedule.level(inner_times(schedule))
    if schedule.name == "edm":
        np.testing.assert_array_equal(level.alpha, 1)
    elif schedule.name == "rectified_flow":
        np.testing.assert_allclose(level.alpha + level.sigma, 1, rtol=1e-14)
    else:
        np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-14)


def test_time_of_inverts_lam(schedule):
    t = inner_times(schedule, 997)
    np.testing.assert_allclose(schedule.time_of(schedule.half_log_snr(t)), t, rtol=1e-6, atol=1e-9)
    assert schedule.time_of(np.inf) == schedule.t_span[1]
    assert schedule.time_of(-1e4) == schedule.t_span[0]
    for lam in (-np.inf, jnp.float32(-np.inf), -1e300, jnp.float32(-1e38)):
        assert schedule.time_of(lam) == schedule.t_span[0]
    assert schedule.time_of(jnp.float32(np.inf)) == schedule.t_span[1]


def test_jax_agrees_with_numpy_inside_jit(schedule):
    t = jnp.asarray(inner_times(schedule), jnp.float32)
    host_t = np.asarray(t, np.float64)
    level, host = jax.jit(schedule.level)(t), schedule.level(host_t)
    np.testing.assert_allclose(level.alpha, host.alpha, atol=2e-7)
    np.testing.assert_allclose(level.sigma, host.sigma, rtol=1e-5)
    np.testing.assert_allclose(level.model_time, host.model_time, rtol=1e-6, atol=1e-4)
    lam = jax.jit(schedule.half_log_snr)(t)
    assert lam.dtype == jnp.float32
    np.testing.assert_allclose(lam, schedule.half_log_snr(host_t), rtol=1e-5, atol=1e-5)
    back = jax.jit(schedule.time_of)(lam)
    np.testing.assert_allclose(back, t, rtol=1e-5, atol=1e-6)


def test_lam_has_the_gradient_of_its_finite_difference(schedule):
    noise = schedule.t_span[0]
    t, h = 0.6303 * noise, 1e-6 * noise
    slope = (schedule.half_log_snr(t + h) - schedule.half_log_snr(t - h)) / (2 * h)
    assert jax.grad(schedule.half_log_snr)(jnp.float32(t)) == pytest.approx(slope, rel=1e-3)


def test_levels_have_the_gradient_of_their_finite_difference_at_indices_too():
    """Where the time is put on an index exactly, t keeps its derivative."""
    schedule = schedules.ddpm_linear()
    for index in (1, 2, 500, 999):
        t, h = index / 1000, 1e-6
        after = (schedule.level(t + h + 1e-6).sigma - schedule.level(t + 1e-6).sigma) / h
        found = jax.grad(lambda t: schedule.level(t).sigma)(jnp.float32(t))
        assert found == pytest.approx(after, rel=2e-2)


def test_the_model_time_has_its_whole_derivative_at_both_ends(schedule):
    for end, inwards in ((schedule.t_span[0], -1), (schedule.t_min, 1)):
        h = inwards * 1e-6 * end
        slope = (schedule.level(end + h).model_time - schedule.level(end).model_time) / h
        found = jax.grad(lambda t: schedule.level(t).model_time)(jnp.float32(end))
        assert found == pytest.approx(slope, rel=1e-3)


def test_times_outside_are_named(schedule):
    with pytest.raises(ValueError, match=r"lie in \[0.0, .*use schedule.t_span"):
        schedule.level(schedule.t_span[0] * 1.01)
    with pytest.raises(ValueError, match="lie in"):
        schedule.level(np.array([0.1, np.nan]))


def test_model_time_stays_in_the_trained_range(schedule):
    clean, cleanest = schedule.level(0.0), schedule.level(schedule.t_min)
    assert clean.model_time == cleanest.model_time


# --- published values -----------------------------------------------------------------------------


def abar(schedule, index):
    return schedule.level((index + 1) / schedule.num_steps).alpha ** 2


def sigma_ratio(schedule, index):
    return np.exp(-schedule.half_log_snr((index + 1) / schedule.num_steps))


def test_ddpm_linear_values():
    schedule = schedules.ddpm_linear()  # products of the betas of Ho et al. 2020, section 4
    assert abar(schedule, 0) == pytest.approx(0.9999, rel=1e-12)
    assert abar(schedule, 999) == pytest.approx(4.035830e-05, rel=1e-6)
    assert sigma_ratio(schedule, 0) == pytest.approx(0.010001, rel=1e-4)
    assert sigma_ratio(schedule, 999) == pytest.approx(157.4073, rel=1e-6)


def test_ddpm_scaled_linear_values():
    schedule = schedules.ddpm_scaled_linear()  # Stable Diffusion's sigma_max and sigma_min
    assert abar(schedule, 999) == pytest.approx(4.660099e-03, rel=1e-6)
    assert sigma_ratio(schedule, 999) == pytest.approx(14.6146, rel=1e-5)
    assert sigma_ratio(schedule, 0) == pytest.approx(0.02917, rel=1e-3)


def test_ddpm_cosine_values():
    schedule = schedules.ddpm_cosine()  # equation 17 of Nichol & Dhariwal 2021, evaluated
    assert 1 - abar(schedule, 0) == pytest.approx(4.1284e-05, rel=1e-4)
    assert abar(schedule, 998) == pytest.approx(2.429e-06, rel=1e-3)
    assert abar(schedule, 999) == pytest.approx(2.429e-09, rel=1e-3)
    assert schedule.half_log_snr(1.0) == pytest.approx(-9.918, abs=1e-3)


@pytest.mark.parametrize("name", ["ddpm_linear", "ddpm_scaled_linear", "ddpm_cosine"])
def test_discrete_levels_are_the_products_of_betas(name):
    betas = {
        "ddpm_linear": np.linspace(1e-4, 0.02, 1000),
        "ddpm_scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
        "ddpm_cosine": np.minimum(
            [
                1 - (np.cos((b + 8) / 1008 * np.pi / 2) / np.cos((b + 7) / 1008 * np.pi / 2)) ** 2
                for b in range(1, 1001)
            ],
            0.999,
        ),
    }[name]
    t = np.arange(1, 1001) / 1000
    product = np.cumprod(1 - betas)
    np.testing.assert_allclose(ALL[name].level(t).alpha ** 2, product, rtol=1e-10)
    np.testing.assert_allclose(ALL[name].level(t).sigma ** 2, 1 - product, rtol=1e-10)


def test_vp_linear_values():
    t = np.array([1e-3, 0.2, 0.7, 1.0])  # sigma / alpha = sqrt(exp(19.9 t^2 / 2 + 0.1 t) - 1)
    ratio = np.sqrt(np.expm1(19.9 / 2 * t**2 + 0.1 * t))
    np.testing.assert_allclose(np.exp(-ALL["vp_linear"].half_log_snr(t)), ratio, rtol=1e-12)


def test_cosine_values():
    t = np.linspace(0, 1, 11)
    level = ALL["cosine, no limits"].level(t)
    np.testing.assert_allclose(level.alpha, np.cos(np.pi / 2 * t), atol=1e-15)
    np.testing.assert_allclose(level.sigma, np.sin(np.pi / 2 * t), atol=1e-15)
    assert level.alpha[-1] == 0 and level.sigma[-1] == 1
    c0 = np.arctan(np.exp(-10))  # VDM: log_snr = -2 log tan(c1 t + c0), from 20 to -20
    c1 = np.arctan(np.exp(10)) - c0
    lam = -np.log(np.tan(c1 * t[1:] + c0))
    np.testing.assert_allclose(ALL["cosine"].half_log_snr(t[1:]), lam, rtol=1e-9, atol=1e-12)
    assert lam[-1] == pytest.approx(-10)
    assert ALL["cosine"].half_log_snr(1e-12) == pytest.approx(10, abs=1e-6)


def test_cosine_holds_up_to_its_noisy_end_in_float32():
    schedule = ALL["cosine, no limits"]
    level = jax.jit(schedule.level)(jnp.float32([0.999, 1.0]))
    np.testing.assert_allclose(level.alpha, [np.cos(np.pi / 2 * 0.999), 0], rtol=2e-4)
    assert level.alpha[1] == 0 and level.sigma[1] == 1


@pytest.mark.parametrize("resolution", [32, 64, 256])
def test_cosine_shift_is_two_logs_of_the_resolution_ratio(resolution):
    t = np.linspace(0.1, 1, 10)
    shifted = schedules.cosine(resolution=resolution).half_log_snr(t)
    full = 2 * (shifted - ALL["cosine"].half_log_snr(t))
    np.testing.assert_allclose(full, 2 * np.log(64 / resolution), atol=1e-12)


def test_edm_is_its_own_sigma():
    t = np.array([80, 2.5, 0.002])
    level = ALL["edm"].level(t)
    np.testing.assert_array_equal(level.sigma, t)
    np.testing.assert_allclose(level.model_time, np.log(t) / 4)
    assert ALL["edm"].t_span == (80, 0) and ALL["edm"].t_min == 0.002


def test_flow_is_straight():
    t = np.linspace(0, 1, 11)
    level = ALL["rectified_flow"].level(t)
    np.testing.assert_allclose(level.alpha, 1 - t, atol=1e-15)
    np.testing.assert_allclose(level.sigma, t, atol=1e-15)


def test_flow_shift_lowers_lam_and_composes():
    t = np.linspace(0.05, 0.95, 19)
    lam = ALL["rectified_flow"].half_log_snr(t)
    np.testing.assert_allclose(
        ALL["rectified_flow, shifted"].half_log_snr(t), lam - np.log(3), atol=1e-12
    )
    once = schedules.rectified_flow(2.0).level(t).sigma
    twice = schedules.rectified_flow(3.0).level(once).sigma
    np.testing.assert_allclose(twice, schedules.rectified_flow(6.0).level(t).sigma, rtol=1e-12)
    np.testing.assert_allclose(
        ALL["rectified_flow, shifted"].level(t).model_time, 1000 * 3 * t / (1 + 2 * t)
    )


# --- discrete schedules between the indices -------------------------------------------------------


@pytest.mark.parametrize("name", DISCRETE)
def test_model_time_is_the_index(name):
    schedule = ALL[name]
    index = np.arange(schedule.num_steps)
    level = schedule.level((index + 1) / schedule.num_steps)
    np.testing.assert_allclose(level.model_time, index, atol=1e-9)


@pytest.mark.parametrize("name", ["ddpm_linear", "ddpm_cosine", "ddpm_linear, zero SNR"])
@pytest.mark.parametrize("low", [0, 1, 499, 997, 998])
def test_log_alpha_is_linear_between_indices(name, low):
    ends = ALL[name].level(np.array([low, low + 1]) / 1000).alpha
    between = ALL[name].level((low + 0.25) / 1000).alpha
    assert between == pytest.approx(ends[0] ** 0.75 * ends[1] ** 0.25, rel=1e-9)


@pytest.mark.parametrize("name", ["ddpm_linear", "ddpm_scaled_linear"])
def test_zero_terminal_snr(name):
    before, after = ALL[name], ALL[f"{name}, zero SNR"]
    t = np.arange(1, 1001) / 1000
    old, new = before.level(t).alpha, after.level(t).alpha
    assert new[-1] == 0 and after.level(1.0).sigma == 1
    assert after.half_log_snr(1.0) == -np.inf
    assert new[0] == pytest.approx(old[0], rel=1e-15)
    np.testing.assert_allclose(new, (old - old[-1]) * old[0] / (old[0] - old[-1]), rtol=1e-12)
    halfway = after.level(0.9995).alpha  # log alpha has no end here: alpha itself is linear
    assert halfway == pytest.approx(new[-2] / 2, rel=1e-9)
    assert after.time_of(after.half_log_snr(0.9995)) == pytest.approx(0.9995, abs=1e-9)


@pytest.mark.parametrize("name", ["ddpm_linear", "ddpm_scaled_linear", "ddpm_cosine"])
def test_zero_terminal_snr_is_an_option_that_configs_can_name(name):
    made = schedules.SCHEDULES[name]
    named, wrapped = made(zero_terminal_snr=True), schedules.zero_terminal_snr(made())
    t = np.linspace(0, 1, 77)
    np.testing.assert_array_equal(named.level(t), wrapped.level(t))
    assert named.level(1.0).alpha == 0 and named.name == wrapped.name
    with pytest.raises(ValueError, match="schedule has no option 'zero_snr'"):
        make(schedules.SCHEDULES, {"name": name, "zero_snr": True}, "schedule")


def test_a_wrapped_schedule_keeps_what_it_starts_from_and_what_it_tells():
    plain = schedules.ddpm_linear(prior="total", model_time="rounded")
    wrapped = schedules.zero_terminal_snr(plain)
    assert wrapped.prior == "total" and wrapped.level(0.5002).model_time == 499
    with pytest.raises(ValueError, match="'log_sigma' needs a finite log-SNR"):
        schedules.zero_terminal_snr(schedules.ddpm_linear(model_time="log_sigma"))


# --- the rest -------------------------------------------------------------------------------------


def test_prior_std():
    assert ALL["edm"].prior_std(80.0) == 80
    assert ALL["edm"].prior_std(3.0) == 3
    assert ALL["ddpm_linear"].prior_std(1.0) == 1
    assert ALL["ddpm_linear"].prior_std(0.5) == 1
    assert ALL["rectified_flow"].prior_std(1.0) == 1
    assert ALL["rectified_flow"].prior_std(0.5) == 0.5


def test_model_time_is_an_argument():
    schedule = schedules.ddpm_linear(model_time=lambda t: 7 * t)
    assert schedule.level(0.5).model_time == 3.5
    assert schedule.level(0.0).model_time == pytest.approx(0.007)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.from_betas([0.1, 1.0, 0.1], name="x"), "only the last may be 1"),
        (lambda: schedules.from_betas([0.1, -0.1], name="x"), r"vector of 2 or more in \(0, 1\)"),
        (lambda: schedules.from_betas([[0.1]], name="x"), "must be a vector"),
        (lambda: schedules.from_betas([], name="x"), "a vector of 2 or more in"),
        (lambda: schedules.from_betas([0.1], name="x"), "a vector of 2 or more in"),
        (lambda: schedules.from_betas([0.1, np.nan, 0.2], name="x"), "betas must .* of nan..nan"),
        (
            lambda: schedules.ddpm_linear(zero_terminal_snr=True, last_alpha=0.5),
            r"last_alpha must be below .*, the alpha of the level before, got 0.5; 0 leaves",
        ),
        (
            lambda: schedules.ddpm_linear(zero_terminal_snr=True, model_time="log_sigma"),
            r"'log_sigma' needs a finite log-SNR.* a little last_alpha",
        ),
        (lambda: schedules.ddpm_linear(1), "got 1; DDPM uses 1000"),
        (lambda: schedules.edm(2.0, 1.0), "0 < sigma_min < sigma_max, got 2.0, 1.0"),
        (lambda: schedules.rectified_flow(0.0), "got 0.0; 1 means none, SD3"),
        (lambda: schedules.zero_terminal_snr(schedules.cosine()), "needs a discrete schedule"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- what a name asks for -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lam", "ratio"])
def test_interpolation_between_indices(name):
    """Linear in lam, or in sigma / alpha, as k-diffusion's schedulers interpolate them."""
    plain, other = schedules.ddpm_linear(), schedules.ddpm_linear(interpolation=name)
    whole = (np.arange(1000) + 1) / 1000
    np.testing.assert_allclose(other.level(whole).alpha, plain.level(whole).alpha, rtol=1e-12)
    index = np.array([0.5, 3.25, 700.1])
    measure = {"lam": lambda lam: lam, "ratio": lambda lam: np.exp(-lam)}[name]
    between = np.interp(index, np.arange(1000), measure(plain.half_log_snr(whole)))
    lam = other.half_log_snr((index + 1) / 1000)
    np.testing.assert_allclose(measure(lam), between, rtol=1e-9)
    np.testing.assert_allclose(other.time_of(lam) * 1000 - 1, index, atol=1e-7)
    traced = jax.jit(lambda t: other.level(t).alpha)(jnp.float32(index + 1) / 1000)
    np.testing.assert_allclose(traced, other.level((index + 1) / 1000).alpha, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("index", [999, 3.7, 0]),
        ("rounded", [999, 4, 0]),
        ("floored", [999, 3, 0]),
        ("floored_under", [998, 3, 0]),
    ],
)
def test_model_times_by_name(name, told):
    schedule = schedules.ddpm_linear(model_time=name)
    times = np.array([1.0, 4.7e-3, 1e-3])
    np.testing.assert_allclose(schedule.level(times).model_time, told, atol=1e-9)
    traced = jax.jit(lambda t: schedule.level(t).model_time)(jnp.float32(times))
    np.testing.assert_allclose(traced, told, atol=1e-3)


def test_model_times_of_other_clocks():
    log_sigma = schedules.ddpm_linear(model_time="log_sigma").level(1.0)
    np.testing.assert_allclose(log_sigma.model_time, np.log(log_sigma.sigma / log_sigma.alpha) / 4)
    flow = schedules.rectified_flow(model_time="floored", num_steps=500)
    assert flow.level(0.7131).model_time == 356
    t = np.linspace(0.1, 1, 10)
    flow = schedules.rectified_flow(3.0, model_time="index", num_steps=500)
    np.testing.assert_allclose(flow.level(t).model_time, 500 * 3 * t / (1 + 2 * t))
    flow = schedules.rectified_flow(3.0, model_time="to_data")
    np.testing.assert_allclose(flow.level(t).model_time, 1 - 3 * t / (1 + 2 * t), atol=1e-15)


def test_a_little_signal_at_the_end():
    """diffusers' alpha^2 = 2^-24 in place of none; 0 is Lin et al.'s."""
    plain = schedules.zero_terminal_snr(schedules.ddpm_scaled_linear())
    little = schedules.ddpm_scaled_linear(
        zero_terminal_snr=True, last_alpha=2.0**-12, interpolation="lam"
    )
    times = np.linspace(0.001, 0.999, 999)
    np.testing.assert_allclose(little.level(times).alpha, plain.level(times).alpha, rtol=1e-12)
    np.testing.assert_allclose(little.level(1.0).alpha, 2.0**-12, rtol=1e-12)
    assert schedules.ddpm_scaled_linear(zero_terminal_snr=True).level(1.0).alpha == 0


def test_priors_by_name():
    """Noise of the level's sigma, of noise and data together, or of 1."""
    assert schedules.ddpm_linear(prior="sigma").prior_std(1.0) == pytest.approx(0.99998, abs=1e-5)
    assert schedules.edm(prior="total").prior_std(80.0) == pytest.approx(np.sqrt(6401))
    assert schedules.rectified_flow(prior="unit").prior_std(0.5) == 1


def test_levels_in_single_precision():
    """The first level of squaredcos_cap_v2 as diffusers holds it, 4e-4 of itself away."""
    sigma = schedules.ddpm_cosine(single=True).level(0.001).sigma
    plain = schedules.ddpm_cosine().level(0.001).sigma
    np.testing.assert_allclose(sigma, plain, rtol=1e-3)
    assert abs(sigma / plain - 1) > 1e-4
    flow = schedules.rectified_flow(3.0, single=True).level(0.999)
    assert flow.sigma == np.float32(flow.sigma) and flow.alpha == 1 - flow.sigma


def test_edm_of_unit_variance():
    level = schedules.edm(preserving=True).level(np.array([80.0, 0.5]))
    np.testing.assert_allclose(level.sigma / level.alpha, [80, 0.5])
    np.testing.assert_allclose(level.sigma**2 + level.alpha**2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.ddpm_linear(interpolation="sigma"), "must be 'log_alpha', 'lam' or"),
        (lambda: schedules.ddpm_linear(model_time="seconds"), "unknown model time 'seconds'"),
        (lambda: schedules.ddpm_linear(prior="none"), "unknown prior 'none'"),
        (lambda: schedules.edm(prior="none"), "unknown prior 'none'"),
        (lambda: schedules.ddpm_linear(last_alpha=0.1), "0 without zero_terminal_snr, got 0.1"),
        (
            lambda: schedules.ddpm_linear(zero_terminal_snr=True, interpolation="lam"),
            "ends without signal; use last_alpha=2\\*\\*-12",
        ),
        (
            lambda: schedules.rectified_flow(model_time="rounded"),
            "must be 'index', 'floored' or 'to_data'",
        ),
    ],
)
def test_unknown_names_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
