"""Strides that are even in some measure of noise: Karras, log-SNR, beta, align your steps."""

import numpy as np
import scipy.special

from ddim_jax.schedules import Schedule
from ddim_jax.strides.by_index import uniform
from ddim_jax.strides.ends import (
    ALL_TERMINALS,
    check_finite,
    check_steps,
    count_knots,
    finish,
    finite_noisy_end,
    noisy_end,
)

ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""sigma / alpha of the ends of ten steps that were optimised for a network, by its name."""


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    terminal: str = "zero",
    lam_min: float | None = None,
    spacing: str | None = None,
    offset: int = 0,
    space: str = "sigma",
) -> np.ndarray:
    """EDM's grid: `(sigma / alpha)^(1 / rho)` evenly spaced. Source: Karras et al. 2022, eq. 5.

    Args:
        rho: 7 in the paper; 1 is uniform in sigma / alpha; `log_snr` is the limit of large rho.
        spacing: between the first and the last index of `uniform` in this spacing, on a discrete
            schedule; None: between the schedule's own ends.
        offset: of spacing "leading".
        space: "sigma" spaces sigma / alpha, "flow" sigma / (alpha + sigma).
    """
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}; EDM uses 7")

    def grid(high, low, knots):
        with np.errstate(divide="ignore"):  # the last point is then put where it belongs
            return high - rho * np.log(np.linspace(1.0, np.exp((high - low) / rho), knots))

    steps, *within = _within(schedule, steps, "karras", terminal, lam_min, spacing, offset, space)
    return _by_lam(schedule, steps, grid, terminal, within, space)


def log_snr(
    schedule: Schedule,
    steps: int,
    *,
    terminal: str = "zero",
    lam_min: float | None = None,
    spacing: str | None = None,
    offset: int = 0,
    space: str = "sigma",
) -> np.ndarray:
    """Evenly spaced in log-SNR. Source: Lu et al. 2022, section 3.3.

    Args:
        spacing: between the first and the last index of `uniform` in this spacing, on a discrete
            schedule; None: between the schedule's own ends.
        offset: of spacing "leading".
        space: "sigma" spaces sigma / alpha, "flow" sigma / (alpha + sigma).
    """
    steps, *within = _within(schedule, steps, "log_snr", terminal, lam_min, spacing, offset, space)
    return _by_lam(schedule, steps, np.linspace, terminal, within, space)


def beta(
    schedule: Schedule,
    steps: int,
    *,
    a: float = 0.6,
    b: float = 0.6,
    terminal: str = "zero",
    lam_min: float | None = None,
    spacing: str | None = None,
    offset: int = 0,
    space: str = "sigma",
) -> np.ndarray:
    """sigma / alpha at even quantiles of a beta distribution.

    Args:
        a: the distribution's first parameter; below 1 puts points at the clean end.
        b: the second; below 1 puts points at the noisy end.
        spacing: between the first and the last index of `uniform` in this spacing, on a discrete
            schedule; None: between the schedule's own ends.
        offset: of spacing "leading".
        space: "sigma" spaces sigma / alpha, "flow" sigma / (alpha + sigma).

    Source: Lee et al. 2024 (arXiv:2407.12173), as k-diffusion's successors have it.
    """
    if not (0 < a < np.inf and 0 < b < np.inf):
        raise ValueError(f"a and b must be positive and finite, got {a} and {b}; the paper has 0.6")

    def grid(high, low, knots):
        part = scipy.special.betaincinv(a, b, np.linspace(1, 0, knots))
        return -np.log(np.exp(-low) + part * (np.exp(-high) - np.exp(-low)))

    steps, *within = _within(schedule, steps, "beta", terminal, lam_min, spacing, offset, space)
    return _by_lam(schedule, steps, grid, terminal, within, space)


def poly_exponential(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 1.0,
    terminal: str = "zero",
    lam_min: float | None = None,
) -> np.ndarray:
    """A power law in log-SNR: `log(sigma / alpha) = low + (high - low) ramp^rho`, ramp 1 to 0.

    Args:
        rho: 1 is `log_snr`; more puts more points at the clean end, less at the noisy end.

    Source: k-diffusion (code), `get_sigmas_polyexponential`.
    """
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}; 1 is even in log-SNR")

    def grid(high, low, knots):
        return low + (high - low) * np.linspace(1, 0, knots) ** rho

    steps, *within = _within(schedule, steps, "poly_exponential", terminal, lam_min)
    return _by_lam(schedule, steps, grid, terminal, within)


def align_your_steps(
    schedule: Schedule,
    steps: int,
    *,
    knots: str = "sd15",
    terminal: str = "zero",
    lam_min: float | None = None,
) -> np.ndarray:
    """Published levels, optimised for one network and ten steps; log-linear between them.

    The eleven levels are interpolated at steps + 1 points, the last of which gives way to the end
    that `terminal` names. The first is the schedule's noisy end, whatever the first level.

    Args:
        schedule: the forward process; the knots belong to `ddpm_scaled_linear` ("sd15", "sdxl") and
            to EDM's with sigma up to 700 ("svd").
        steps: intervals, at least 1; 10 meets the published levels.
        knots: a name in `ALIGN_YOUR_STEPS`.
        terminal: "zero" and "skip" end at the clean image, "min" at `schedule.t_min`; the
            evaluations are the same.

    Raises:
        ValueError: unknown knots, knots beyond the schedule's ends, steps out of range, an infinite
            end, unknown terminal.

    Source: Sabour et al. 2024, and the authors' released levels.
    """
    steps = check_steps(schedule, steps, terminal)
    if knots not in ALIGN_YOUR_STEPS:
        raise ValueError(f"unknown knots {knots!r}; they are {', '.join(ALIGN_YOUR_STEPS)}")
    noise, first = finite_noisy_end(schedule, lam_min, "align_your_steps")
    _, *inner, last = ALIGN_YOUR_STEPS[knots]
    highest, lowest = np.exp(-first), np.exp(-schedule.half_log_snr(schedule.t_min))
    if inner[0] >= highest or inner[-1] <= lowest:
        raise ValueError(
            f"the {knots} knots, sigma / alpha {inner[0]:g}..{inner[-1]:g} within the ends, do not "
            f"fit between {highest:.4g} and {lowest:.4g}, the ends of {schedule.name}; use other "
            "knots, a lower lam_min or strides.log_snr"
        )
    lam = -np.log([highest, *inner, max(last, lowest)])
    at = np.linspace(0, len(lam) - 1, steps + 1)
    times = schedule.time_of(np.interp(at, np.arange(len(lam)), lam))
    times[[0, -1]] = noise, schedule.t_min
    return finish(schedule, times, "min" if terminal == "min" else "skip")


def _within(
    schedule, steps, name, terminal, lam_min, spacing=None, offset=0, space="sigma"
) -> tuple[int, float, float]:
    """(steps, noisiest, cleanest time) of a stride that is even in some measure of noise."""
    between = "leave spacing out"
    steps = check_steps(schedule, steps, terminal, spacing is not None, ALL_TERMINALS, between)
    if space not in ("sigma", "flow"):
        raise ValueError(f"space must be 'sigma' or 'flow', got {space!r}")
    if spacing is not None:
        if schedule.num_steps is None:
            raise ValueError(f"spacing={spacing!r} needs a discrete schedule, got {schedule.name}")
        to_t_min = count_knots(steps, terminal) > steps
        at = {"spacing": spacing, "offset": offset, "terminal": "min" if to_t_min else "zero"}
        within = uniform(schedule, steps, lam_min=lam_min, **at)
        if space == "sigma":
            check_finite(schedule, within[0], name)
        return steps, float(within[0]), float(within[-1 if to_t_min else -2])
    if offset:
        raise ValueError("offset belongs to spacing='leading'")
    if space == "flow":  # finite where there is no signal
        return steps, noisy_end(schedule, lam_min), schedule.t_min
    return steps, finite_noisy_end(schedule, lam_min, name)[0], schedule.t_min


def _by_lam(schedule, steps, grid, terminal, within, space="sigma") -> np.ndarray:
    """`grid(high, low, knots)` spaces -log of a measure of noise."""
    knots, lam = count_knots(steps, terminal), schedule.half_log_snr(np.array(within))
    if space == "sigma":
        at = grid(lam[0], lam[1], knots)
    else:
        with np.errstate(divide="ignore"):
            at = np.log(np.expm1(grid(*np.logaddexp(0.0, lam), knots)))
    times = schedule.time_of(at)
    times[0] = within[0]
    if knots > 1:
        times[-1] = within[1]
    return finish(schedule, times, terminal)
