"""Strides: the published lists, exact ends, the number of intervals, error messages."""

import numpy as np
import pytest
import scipy.stats

from ddim_jax import schedules, strides
from ddim_jax.strides import ends

LINEAR = schedules.ddpm_linear()
ZERO_SNR = schedules.ddpm_scaled_linear(zero_terminal_snr=True)
SCHEDULES = {name: make() for name, make in schedules.SCHEDULES.items()}


def index_of(times, schedule=LINEAR):
    """Indices n of the evaluated points, t = (n + 1) / T."""
    index = times[times > 0] * schedule.num_steps - 1
    np.testing.assert_allclose(index, np.round(index), atol=1e-9)
    return np.round(index).astype(int).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(steps=10), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (dict(steps=7), [999, 856, 713, 570, 428, 285, 142]),
        (dict(steps=10, spacing="leading"), [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (dict(steps=5, spacing="leading", offset=1), [801, 601, 401, 201, 1]),
        (dict(steps=3, spacing="leading"), [666, 333, 0]),
        (dict(steps=5, spacing="linspace"), [999, 749, 500, 250, 0]),
        (dict(steps=1), [999]),
        (dict(steps=1, spacing="linspace"), [999]),
        (dict(steps=2, terminal="min"), [999, 499, 0]),
        (dict(steps=2, terminal="min", spacing="linspace"), [999, 500, 0]),
    ],
)
def test_uniform_indices(options, expected):
    """Table 2 of Lin et al. 2024 (arXiv:2305.08891)."""
    assert index_of(strides.uniform(LINEAR, **options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(steps=2, terminal="skip", spacing="linspace"), [999, 500]),
        (dict(steps=3, terminal="skip", spacing="leading", offset=1), [751, 501, 251]),
        (dict(steps=3, terminal="min", spacing="leading", offset=1), [751, 501, 251, 0]),
        (dict(steps=1, terminal="skip", spacing="leading"), [500]),
        (dict(steps=2, terminal="zero_to_min"), [999, 499, 0]),
        (dict(steps=2, terminal="zero_to_min", spacing="linspace"), [999, 0, 0]),
        (dict(steps=2, terminal="repeat"), [999, 499, 499]),
        (dict(steps=4, among=50), [999, 759, 499, 259]),
    ],
)
def test_uniform_indices_of_diffusers(options, expected):
    """Its schedulers' `timesteps`, and 0 where they end at sigma_min."""
    times = strides.uniform(LINEAR, **options)
    assert index_of(times) == expected
    assert (times[-1] == 0) == (len(expected) == options["steps"])


def test_fractional_indices_and_the_grids_between_two_of_them():
    """As k-diffusion's schedulers have them in diffusers."""
    times = strides.uniform(LINEAR, 20, spacing="linspace", rounded=False)
    np.testing.assert_allclose(times[:-1] * 1000 - 1, np.linspace(999, 0, 20), atol=1e-9)
    for stride in (strides.karras, strides.log_snr, strides.beta):
        times = stride(LINEAR, 20, spacing="trailing")
        np.testing.assert_allclose(times[[0, -2]] * 1000 - 1, [999, 49], atol=1e-9)
        assert times[-1] == 0 and len(times) == 21
        ends = stride(LINEAR, 20, spacing="leading", offset=1)[[0, -2]]
        np.testing.assert_allclose(ends * 1000 - 1, [951, 1], atol=1e-9)


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_grids_between_indices_end_as_every_stride_does(spacing):
    """ "min" at the cleanest level, "skip" with the points of "min" but the last."""
    for stride in (strides.karras, strides.log_snr, strides.beta):
        least = stride(LINEAR, 10, spacing=spacing, terminal="min")
        skips = stride(LINEAR, 10, spacing=spacing, terminal="skip")
        assert least[-1] == LINEAR.t_min
        np.testing.assert_array_equal(skips, np.append(least[:-1], 0))
        first = strides.uniform(LINEAR, 10, spacing=spacing, terminal="min")[0]
        assert len(least) == 11 and least[0] == first
    np.testing.assert_array_equal(
        strides.log_snr(LINEAR, 1, spacing=spacing, terminal="min")[-1:], LINEAR.t_min
    )


@pytest.mark.parametrize("process", ["ddpm_linear", "edm"])
@pytest.mark.parametrize("rho", [0.2, 5e-3, 1e-4])
def test_karras_of_any_positive_rho(process, rho):
    """Where `(sigma / alpha)^(1 / rho)` itself is beyond what a float holds."""
    schedule = SCHEDULES[process]
    times = strides.karras(schedule, 4, rho=rho)
    lam = schedule.half_log_snr(times)
    assert np.all(np.diff(times) < 0) and times[-2] == schedule.t_min
    inner = np.log([1, 2 / 3, 1 / 3])  # beside which the clean end counts nothing
    clean = np.exp((lam[0] - lam[3]) / rho)
    inner = np.log(np.exp(inner) + (1 - np.exp(inner)) * clean)
    np.testing.assert_allclose(lam[:3], lam[0] - rho * inner, rtol=1e-3)


@pytest.mark.parametrize("process", ["vp_linear", "rectified_flow"])
def test_a_last_step_as_long_as_rounding_has_no_length(process):
    times = strides.uniform(SCHEDULES[process], 1000, terminal="zero_to_min")
    assert times[-1] == times[-2] == pytest.approx(1e-3)


def test_beta_quantiles():
    """Those of scipy.stats, between the ends in sigma / alpha."""
    sigma = strides.beta(schedules.edm(1.0, 2.0), 5, a=0.5, b=0.7)[:-1]
    expected = scipy.stats.beta.ppf(np.linspace(1, 0, 5), 0.5, 0.7)
    np.testing.assert_allclose(sigma - 1, expected, atol=1e-9)


def test_even_in_the_flows_own_sigma():
    """Where alpha + sigma = 1 and there is no signal at the noisy end."""
    flow = schedules.rectified_flow()
    sigma = flow.level(strides.karras(flow, 6, space="flow")).sigma[:-1]
    np.testing.assert_allclose(np.diff(sigma ** (1 / 7), 2), 0, atol=1e-9)
    np.testing.assert_allclose(sigma[[0, -1]], [1, 0.001])


def test_quadratic_indices_of_the_released_code():
    """int(linspace(0, sqrt(0.8 T), S)^2): the top index is 800."""
    times = strides.quadratic(LINEAR, 10)
    assert index_of(times) == [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]


@pytest.mark.parametrize(("steps", "evaluations"), [(10, 10), (50, 49), (100, 96)])
def test_quadratic_drops_repeated_indices(steps, evaluations):
    assert len(strides.quadratic(LINEAR, steps)) - 1 == evaluations


@pytest.mark.parametrize("process", SCHEDULES)
def test_quadratic_starts_in_noise_unless_told_otherwise(process):
    """0.8 T holds 0.32 of the picture on cosine, 0.25 on rectified flow, 0.04 on DDPM's betas."""
    schedule = SCHEDULES[process]
    noise = schedule.t_span[0]
    top = strides.quadratic(schedule, 10)[0]
    assert np.exp(schedule.half_log_snr(top)) <= 0.2
    keeps = process not in ("cosine", "ddpm_cosine", "rectified_flow")
    assert top == pytest.approx(0.8 * noise if keeps else noise, abs=2e-3 * noise)
    top = strides.quadratic(schedule, 10, fraction=0.8)[0]  # what is said is done
    assert top == pytest.approx(0.8 * noise, abs=2e-3 * noise)


def test_quadratic_of_the_paper_reaches_the_last_index():
    times = strides.quadratic(LINEAR, 10, fraction=1)
    assert index_of(times) == [int(999 * (k / 9) ** 2) for k in range(9, -1, -1)]


@pytest.mark.parametrize(
    "stride",
    [
        lambda s, n: strides.uniform(s, n),
        lambda s, n: strides.uniform(s, n, spacing="leading"),
        lambda s, n: strides.uniform(s, n, spacing="linspace"),
        lambda s, n: strides.quadratic(s, n),
        lambda s, n: strides.quadratic(s, n, fraction=1),
    ],
)
def test_all_steps_use_every_index(stride):
    assert index_of(stride(LINEAR, 1000)) == list(range(999, -1, -1))


def test_karras_grid():
    """The 18 noise levels of Karras et al. 2022, table 1 (equation 5 evaluated), then 0."""
    expected = [80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.4009, 5.3152, 3.2568, 1.9233]
    expected += [1.0882, 0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.002, 0]
    times = strides.karras(schedules.edm(), 18)
    np.testing.assert_allclose(times, expected, rtol=1e-4, atol=6e-5)
    np.testing.assert_array_equal(times[[0, -2, -1]], [80, 0.002, 0])


@pytest.mark.parametrize("name", ["vp_linear", "rectified_flow", "ddpm_linear"])
def test_karras_is_a_power_law_in_the_noise_ratio_of_any_schedule(name):
    schedule = SCHEDULES[name]
    times = strides.karras(schedule, 9, rho=3, lam_min=-4, terminal="min")
    ratio = np.exp(-schedule.half_log_snr(times)) ** (1 / 3)
    np.testing.assert_allclose(np.diff(ratio), (ratio[-1] - ratio[0]) / 9, rtol=1e-6)


@pytest.mark.parametrize("name", ["vp_linear", "edm", "cosine", "ddpm_scaled_linear"])
def test_log_snr_is_even_in_lam(name):
    times = strides.log_snr(SCHEDULES[name], 12, terminal="min")
    steps = np.diff(SCHEDULES[name].half_log_snr(times))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-6)


def test_poly_exponential_is_a_power_law_in_log_sigma():
    """k-diffusion's formula; with rho = 1 it is log_snr, which k-diffusion calls exponential."""
    schedule, ramp = schedules.edm(), np.linspace(1, 0, 7)
    times = strides.poly_exponential(schedule, 7, rho=2.5)
    sigma = np.exp(ramp**2.5 * (np.log(80) - np.log(0.002)) + np.log(0.002))
    np.testing.assert_allclose(times, np.append(sigma, 0), rtol=1e-12)
    even = strides.STRIDES["exponential"](schedule, 7)
    np.testing.assert_allclose(strides.poly_exponential(schedule, 7), even, rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.log(even[:-1])), np.log(0.002 / 80) / 6, rtol=1e-9)


@pytest.mark.parametrize(
    ("knots", "timesteps"),
    [
        ("sd15", [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
        ("sdxl", [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
    ],
)
def test_align_your_steps_meets_the_published_timesteps(knots, timesteps):
    schedule = SCHEDULES["ddpm_scaled_linear"]
    times = strides.align_your_steps(schedule, 10, knots=knots)
    np.testing.assert_allclose(times[:-1] * 1000 - 1, timesteps, atol=0.6)
    ratio = np.exp(-schedule.half_log_snr(times[:-1]))
    np.testing.assert_allclose(ratio, strides.ALIGN_YOUR_STEPS[knots][:-1], rtol=1e-4)
    noisy = strides.align_your_steps(schedule, 10, knots=knots, terminal="min")
    np.testing.assert_array_equal(noisy, np.append(times[:-1], schedule.t_min))


def test_align_your_steps_is_log_linear_between_the_knots():
    schedule = schedules.edm(sigma_max=700)
    published = np.array(strides.ALIGN_YOUR_STEPS["svd"])
    times = strides.align_your_steps(schedule, 20, knots="svd")
    np.testing.assert_allclose(times[:-1:2], published[:-1], rtol=1e-12)
    np.testing.assert_allclose(times[1:-1:2], np.sqrt(published[:-1] * published[1:]), rtol=1e-12)
    np.testing.assert_array_equal(strides.align_your_steps(schedule, 1), [700, 0])
    np.testing.assert_allclose(strides.align_your_steps(schedule, 2), [700, 1.396, 0])
    start = strides.align_your_steps(schedules.edm(), 20)[:3]  # 80 takes the first knot's place
    np.testing.assert_allclose(start, [80, np.sqrt(80 * 6.475), 6.475], rtol=1e-12)


@pytest.mark.parametrize("terminal", ["zero", "min", "skip"])
@pytest.mark.parametrize(("steps", "last"), [(5, 0.399), (10, 0.152), (20, 0.066), (40, 0.044)])
def test_align_your_steps_of_other_lengths_end_where_the_recipe_does(steps, last, terminal):
    """Eleven levels are interpolated, and only then is the last replaced."""
    schedule = SCHEDULES["ddpm_scaled_linear"]
    times = strides.align_your_steps(schedule, steps, terminal=terminal)
    ratio = np.exp(-schedule.half_log_snr(times[-2]))
    assert ratio == pytest.approx(last, abs=6e-4)
    assert times[-1] == (schedule.t_min if terminal == "min" else 0)


def test_continuous_uniform_and_quadratic():
    flow = SCHEDULES["rectified_flow"]
    np.testing.assert_allclose(strides.uniform(flow, 4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(
        strides.uniform(flow, 3, spacing="linspace"), [1, 0.5005, 0.001, 0], atol=1e-12
    )
    roots = np.sqrt(strides.quadratic(flow, 5, fraction=0.64)[:-1])
    np.testing.assert_allclose(roots, np.linspace(0.8, np.sqrt(1e-3), 5), atol=1e-12)


# --- what every stride keeps ----------------------------------------------------------------------

EVERY = {
    "trailing": (strides.uniform, {}),
    "linspace": (strides.uniform, dict(spacing="linspace")),
    "leading": (strides.uniform, dict(spacing="leading")),
    "quadratic": (strides.quadratic, dict(fraction=1)),
    "karras": (strides.karras, dict(lam_min=-5.1)),
    "log_snr": (strides.log_snr, dict(lam_min=-5.1)),
    "poly_exponential": (strides.poly_exponential, dict(lam_min=-5.1, rho=1.5)),
    "align_your_steps": (strides.align_your_steps, dict(lam_min=-5.1)),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("process", SCHEDULES)
@pytest.mark.parametrize("terminal", ["zero", "min", "skip"])
def test_intervals_order_and_ends(name, process, terminal):
    (stride, options), schedule = EVERY[name], SCHEDULES[process]
    for steps in (1, 2, 3, 7, 50, 300, 667, 999, 1000):
        if steps == 1 and name == "leading" or steps == 1000 and terminal != "zero":
            continue
        times = stride(schedule, steps, terminal=terminal, **options)
        assert times.shape == (steps + 1,) and times.dtype == np.float64
        assert np.all(np.diff(times) < 0)
        level = schedule.level(times[-1])
        if terminal != "min":
            assert level.alpha == 1 and level.sigma == 0
            # no evaluation is cleaner than what the network was trained on
            assert np.all(times[:-1] >= schedule.t_min - 1e-12)
            if terminal == "skip" and steps < 300:
                assert times[-2] > 1.01 * schedule.t_min
        else:
            assert times[-1] == pytest.approx(schedule.t_min, rel=1e-9)
        if name != "leading":
            lam = schedule.half_log_snr(times[0])
            assert times[0] == schedule.t_span[0] or -5.11 < lam < -5.05


@pytest.mark.parametrize("name", EVERY)
def test_lam_min_moves_the_noisy_end_to_a_trained_index(name):
    stride, options = EVERY[name]
    schedule = SCHEDULES["ddpm_cosine"]
    times = stride(schedule, 10, **options | dict(lam_min=-5.1))
    noisy = round(times[0] * 1000)
    assert times[0] == pytest.approx(noisy / 1000, abs=1e-12)
    assert schedule.half_log_snr(times[0]) >= -5.1
    if name != "leading":  # the first index above the limit, none is lost
        assert schedule.half_log_snr((noisy + 1) / 1000) < -5.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strides.uniform(LINEAR, 1200), "1..1000 for a 1000-step schedule, got 1200; use"),
        (lambda: strides.uniform(LINEAR, 1000, terminal="min"), "must be 1..999"),
        (lambda: strides.quadratic(LINEAR, 0), "steps must be 1..1000"),
        (lambda: strides.karras(LINEAR, 2.5), "whole number >= 1, got 2.5"),
        (lambda: strides.uniform(LINEAR, 5, spacing="even"), "unknown spacing 'even'; it is"),
        (lambda: strides.uniform(LINEAR, 5, terminal="end"), "or 'repeat', got 'end'"),
        (lambda: strides.uniform(LINEAR, 1, spacing="leading"), "use spacing='trailing'"),
        (lambda: strides.uniform(LINEAR, 5, rounded=False), "belongs to spacing='linspace'"),
        (lambda: strides.uniform(LINEAR, 5, spacing="leading", among=9), "among belongs to"),
        (lambda: strides.uniform(LINEAR, 5, among=4), r"among must be in \[5, 1000\], got 4"),
        (lambda: strides.quadratic(LINEAR, 5, terminal="repeat"), "or 'skip', got 'repeat'"),
        (lambda: strides.karras(LINEAR, 5, offset=1), "offset belongs to spacing='leading'"),
        (lambda: strides.karras(LINEAR, 5, space="angle"), "space must be 'sigma' or 'flow'"),
        (
            lambda: strides.karras(schedules.edm(), 5, spacing="leading"),
            "needs a discrete schedule",
        ),
        (lambda: strides.beta(LINEAR, 5, a=0.0), "a and b must be positive and finite, got 0.0"),
        (lambda: strides.uniform(LINEAR, 5, offset=1), "offset belongs to spacing='leading'"),
        (lambda: strides.uniform(LINEAR, 1000, spacing="leading", offset=1), "past the last, 999"),
        (
            lambda: strides.uniform(LINEAR, 5, spacing="leading", offset=1e300),
            r"offset must be in \[0, 2147483648\]",
        ),
        (lambda: strides.quadratic(LINEAR, 5, fraction=1.2), r"fraction must be in \(0, 1\]"),
        (lambda: strides.karras(LINEAR, 5, rho=0), "rho must be positive and finite, got 0"),
        (lambda: strides.karras(LINEAR, 5, rho=np.inf), "rho must be positive and finite"),
        (lambda: strides.karras(SCHEDULES["rectified_flow"], 5), "none at t = 1.0; pass lam_min"),
        (
            lambda: strides.log_snr(schedules.zero_terminal_snr(LINEAR), 5),
            "log_snr needs a finite log-SNR",
        ),
        *[
            (
                lambda make=make, spacing=spacing: make(ZERO_SNR, 4, spacing=spacing),
                "needs a finite log-SNR, .* none at t = 1.0; pass lam_min=-5.1",
            )
            for make in (strides.karras, strides.log_snr, strides.beta)
            for spacing in ("trailing", "linspace")
        ],
        (lambda: strides.karras(LINEAR, 5, rho=1e-20), "5 steps do not fit: two points .* nearer"),
        (
            lambda: strides.karras(schedules.ddpm_linear(4, 0.1, 0.5), 10, spacing="trailing"),
            "1..4 for a 4-step schedule, got 10; leave spacing out to go between",
        ),
        (
            lambda: strides.log_snr(LINEAR, 1000, spacing="linspace", terminal="min"),
            "must be 1..999 .* leave spacing out",
        ),
        (lambda: ends.finish(LINEAR, np.array([1, np.nan]), "zero"), "2 steps do not fit"),
        (lambda: strides.poly_exponential(LINEAR, 5, rho=-1), "rho must be positive and finite"),
        (lambda: strides.align_your_steps(LINEAR, 5, knots="sd3"), "unknown knots 'sd3'; they are"),
        (lambda: strides.align_your_steps(LINEAR, 0), "whole number >= 1, got 0"),
        (
            lambda: strides.align_your_steps(SCHEDULES["rectified_flow"], 5),
            "align_your_steps needs a finite log-SNR",
        ),
        (
            lambda: strides.align_your_steps(SCHEDULES["ddpm_scaled_linear"], 5, knots="svd"),
            "svd knots, .* 54.5..0.034 .* between 14.61 and 0.02917, the ends of ddpm_scaled_",
        ),
        (lambda: strides.align_your_steps(LINEAR, 5, lam_min=-1.5), "a lower lam_min"),
        (lambda: strides.uniform(LINEAR, 900, lam_min=2.0), "900 points do not fit on the"),
        (lambda: strides.quadratic(LINEAR, 900, fraction=1, lam_min=2.0), "points do not fit"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
