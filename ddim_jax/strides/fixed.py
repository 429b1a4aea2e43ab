"""Strides chosen by formula: `(schedule, steps, **options) -> times`, float64 [steps + 1].

All take these, beside options of their own, and raise ValueError for a value that is out of range:

    schedule  the forward process
    steps     intervals, at least 1
    terminal  "zero": the last point is exactly clean (alpha = 1, sigma = 0); "min": it is the
              cleanest trained level, `schedule.t_min`; "skip": as "min", but clean in its place, so
              that no evaluation is at `t_min`. Some take two more: "zero_to_min" has the points of
              "zero", the last of them replaced by the cleanest trained level; "repeat" the last
              replaced by the one before. Where it coincides with the point before, the last step
              leaves the sample as it is
    lam_min   moves the noisy end to the first trained level above this half log-SNR, for solvers
              that cannot start from pure noise; None leaves it

Times are strictly monotone. On a discrete schedule the index strides (uniform, quadratic) visit
whole indices n at t = (n + 1) / T and hold at most T steps; the others interpolate, and
need a finite log-SNR: give them `lam_min` where the schedule ends at alpha = 0.

Sources: Song et al. 2021 (arXiv:2010.02502), appendix D.2 (uniform, quadratic); Lin et al. 2024
(arXiv:2305.08891), table 2 (leading, linspace, trailing); Karras et al. 2022 (arXiv:2206.00364),
equation 5; Lu et al. 2022 (arXiv:2206.00927), section 3.3 (log-SNR); k-diffusion (code;
polyexponential); Sabour et al. 2024 (arXiv:2404.14507) (align your steps).
"""

from collections.abc import Callable

import numpy as np
import scipy.special

from ddim_jax.schedules import Schedule

TERMINALS = ("zero", "min", "skip")
ALL_TERMINALS = (*TERMINALS, "zero_to_min", "repeat")

ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""sigma / alpha of the ends of ten steps that were optimised for a network, by its name."""
SILENT = 0.2
"""alpha / sigma below which a level passes for pure noise."""


def uniform(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "trailing",
    offset: int = 0,
    rounded: bool = True,
    among: int | None = None,
    terminal: str = "zero",
    lam_min: float | None = None,
) -> np.ndarray:
    """Evenly spaced times.

    Args:
        spacing: "trailing" starts at pure noise, e.g. indices 999, 899, ..., 99; "linspace" spreads
            the evaluations over T-1 .. 0, ends included; "leading" is 900, 800, ..., 0 (it never
            evaluates at pure noise).
        offset: added to the indices of "leading" (Stable Diffusion uses 1).
        rounded: False leaves the indices of "linspace" fractional (k-diffusion).
        among: chooses from the trailing stride of this many steps (latent consistency models: 50).
    """
    if spacing not in ("trailing", "linspace", "leading"):
        raise ValueError(f"unknown spacing {spacing!r}; it is 'trailing', 'linspace' or 'leading'")
    knots = _knots(steps, terminal)
    if spacing == "leading" and knots == 1:
        raise ValueError(
            "steps=1 with leading spacing would start at the clean end; use spacing='trailing'"
        )
    if (spacing, terminal) == ("trailing", "skip"):
        terminal = "zero"  # whose last evaluation is above t_min
    check_steps(schedule, steps, terminal, discrete=True, terminals=ALL_TERMINALS)
    _check_index_options(schedule, spacing, rounded, among, steps)
    if offset < 0:
        raise ValueError(f"offset must be 0 or more, got {offset}")
    if offset and (spacing != "leading" or schedule.num_steps is None):
        raise ValueError("offset belongs to spacing='leading' on a discrete schedule")
    knots = _knots(steps, terminal)
    noise, t_min = _noisy_end(schedule, lam_min), schedule.t_min
    if schedule.num_steps is None:
        if spacing == "trailing":
            last = t_min if knots > steps else schedule.t_span[1]
            return finish(schedule, np.linspace(noise, last, steps + 1)[:knots], terminal)
        if spacing == "linspace":
            times = np.linspace(noise, t_min, knots)
        else:
            times = t_min + (noise - t_min) * np.arange(knots)[::-1] / knots
        return finish(schedule, times, terminal)
    total = _indices(schedule, noise, knots)
    if among is not None:
        own = np.arange(among, 0, -1) * (total // among) - 1
        index = own[np.floor(np.linspace(0, among, steps, endpoint=False)).astype(int)]
        index = np.append(index, 0) if knots > steps else index
    elif spacing == "trailing":
        index = np.round(total - np.arange(steps) * total / steps) - 1
        if knots > steps:  # strides below 1.5 indices would round to index 0 twice
            index = np.maximum(np.append(index, 0), np.arange(knots)[::-1])
    elif spacing == "linspace":
        index = np.linspace(0, total - 1, knots)[::-1] if knots > 1 else np.array([total - 1])
        index = np.round(index) if rounded else index
    else:
        index = np.arange(knots)[::-1] * (total // knots) + offset
        if index[0] >= total:
            raise ValueError(
                f"offset {offset} moves index {index[0] - offset} past the last, {total - 1}; "
                "use a smaller one"
            )
        if knots > steps:
            index[-1] = 0
    return finish(schedule, _at_index(schedule, index), terminal)


def _check_index_options(schedule, spacing, rounded, among, steps) -> None:
    if not rounded and (spacing != "linspace" or schedule.num_steps is None):
        raise ValueError("rounded=False belongs to spacing='linspace' on a discrete schedule")
    if among is None:
        return
    if spacing != "trailing" or schedule.num_steps is None:
        raise ValueError("among belongs to spacing='trailing' on a discrete schedule")
    if among != int(among) or not steps <= among <= schedule.num_steps:
        raise ValueError(
            f"among must be a whole number from steps, {steps}, to {schedule.num_steps}, got "
            f"{among}"
        )


def quadratic(
    schedule: Schedule,
    steps: int,
    *,
    fraction: float | None = None,
    terminal: str = "zero",
    lam_min: float | None = None,
) -> np.ndarray:
    """Times that grow with the square of the step: dense near the image.

    On a discrete schedule `fraction=0.8` gives the indices of DDIM's released code,
    `floor(linspace(0, sqrt(0.8 T), S)^2)`, whose top index is 800; repeated indices are dropped, so
    that it can hold fewer intervals than asked (49 for 50). `fraction=1` is the paper's rule, whose
    top index is T-1; it holds exactly `steps`. All T steps use every index. A continuous schedule
    uses `linspace(sqrt(fraction t_noise), sqrt(t_min))^2`.

    Args:
        fraction: the noisiest point as a share of the schedule, in (0, 1]. Default 0.8 where that
            is pure noise to the eye (alpha / sigma at most 0.2), as on DDPM's linear betas (0.04);
            else 1, as on cosine schedules (0.32) and rectified flow (0.25): sampling starts from
            pure noise, which holds nothing of the picture.

    Source: Song et al. 2021, appendix D.2 and the authors' code.
    """
    check_steps(schedule, steps, terminal, discrete=True)
    noise = _noisy_end(schedule, lam_min)
    if fraction is None:
        silent = schedule.half_log_snr(0.8 * noise) <= np.log(SILENT)
        fraction = 0.8 if silent else 1.0
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}; DDIM's code uses 0.8")
    knots = _knots(steps, terminal)
    if schedule.num_steps is None:
        roots = np.linspace(np.sqrt(fraction * noise), np.sqrt(schedule.t_min), knots)
        return finish(schedule, np.clip(roots**2, schedule.t_min, noise), terminal)
    total = _indices(schedule, noise, knots)
    part = np.linspace(0, 1, knots) if knots > 1 else np.ones(1)
    if knots == total:
        index = np.arange(total)
    elif fraction == 1:
        index = np.maximum(np.floor((total - 1) * part**2 + 1e-9), np.arange(knots))
    else:
        index = np.unique(np.floor((np.sqrt(fraction * total) * part) ** 2 + 1e-9))
    if knots == 1:
        index = np.minimum(index, total - 1)
    return finish(schedule, _at_index(schedule, index[::-1]), terminal)


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
        ends = np.exp(-high / rho), np.exp(-low / rho)
        return -rho * np.log(np.linspace(*ends, knots))

    within = _within(schedule, steps, "karras", terminal, lam_min, spacing, offset, space)
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
    within = _within(schedule, steps, "log_snr", terminal, lam_min, spacing, offset, space)
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

    within = _within(schedule, steps, "beta", terminal, lam_min, spacing, offset, space)
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

    within = _within(schedule, steps, "poly_exponential", terminal, lam_min)
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
    check_steps(schedule, steps, terminal)
    if knots not in ALIGN_YOUR_STEPS:
        raise ValueError(f"unknown knots {knots!r}; they are {', '.join(ALIGN_YOUR_STEPS)}")
    noise, first = _finite_noisy_end(schedule, lam_min, "align_your_steps")
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
) -> tuple[float, float]:
    """(noisiest, cleanest) time of a stride that is even in some measure of noise."""
    check_steps(schedule, steps, terminal, terminals=ALL_TERMINALS)
    if space not in ("sigma", "flow"):
        raise ValueError(f"space must be 'sigma' or 'flow', got {space!r}")
    if spacing is not None:
        if schedule.num_steps is None:
            raise ValueError(f"spacing={spacing!r} needs a discrete schedule, got {schedule.name}")
        within = uniform(schedule, steps, spacing=spacing, offset=offset, lam_min=lam_min)
        return float(within[0]), float(within[-2])
    if offset:
        raise ValueError("offset belongs to spacing='leading'")
    if space == "flow":  # finite where there is no signal
        return _noisy_end(schedule, lam_min), schedule.t_min
    return _finite_noisy_end(schedule, lam_min, name)[0], schedule.t_min


def _by_lam(schedule, steps, grid, terminal, within, space="sigma") -> np.ndarray:
    """`grid(high, low, knots)` spaces -log of a measure of noise."""
    knots, lam = _knots(steps, terminal), schedule.half_log_snr(np.array(within))
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


def _knots(steps: int, terminal: str) -> int:
    """How many points from noise to `t_min`, or to the last evaluation, a stride has."""
    return steps + (terminal in ("min", "skip"))


def check_steps(
    schedule: Schedule,
    steps: int,
    terminal: str,
    discrete: bool = False,
    terminals: tuple[str, ...] = TERMINALS,
) -> None:
    """Raises ValueError for a bad terminal, or steps that a (discrete) stride cannot hold."""
    if terminal not in terminals:
        raise ValueError(
            f"terminal must be {', '.join(map(repr, terminals[:-1]))} or {terminals[-1]!r}, got "
            f"{terminal!r}"
        )
    total = schedule.num_steps if discrete else None
    limit = total - (_knots(steps, terminal) > steps) if total else None
    if steps != int(steps) or steps < 1 or (limit and steps > limit):
        allowed = f"1..{limit} for a {total}-step schedule" if limit else "a whole number >= 1"
        hint = "; use strides.log_snr or karras to go between the indices" if limit else ""
        raise ValueError(f"steps must be {allowed}, got {steps}{hint}")


def _noisy_end(schedule: Schedule, lam_min: float | None) -> float:
    """The noisiest time with `lam >= lam_min`; a whole index on a discrete schedule."""
    noise = schedule.t_span[0]
    if lam_min is None or schedule.half_log_snr(noise) >= lam_min:
        return noise
    cleanest = schedule.half_log_snr(schedule.t_min)
    if not lam_min < cleanest:
        raise ValueError(
            f"lam_min must be below {cleanest:.4g}, the half log-SNR of the cleanest level of "
            f"{schedule.name}, got {lam_min}; -5.1 is usual"
        )
    if schedule.num_steps is None:
        return float(schedule.time_of(lam_min))
    grid = np.arange(1, schedule.num_steps + 1) / schedule.num_steps
    return float(grid[schedule.half_log_snr(grid) >= lam_min].max())


def _finite_noisy_end(schedule: Schedule, lam_min: float | None, name: str) -> tuple[float, float]:
    """(time, lam) of the noisy end."""
    noise = _noisy_end(schedule, lam_min)
    lam = schedule.half_log_snr(noise)
    if not np.isfinite(lam):
        raise ValueError(
            f"{name} needs a finite log-SNR, but {schedule.name} has none at t = {noise}; "
            "pass lam_min=-5.1, or use strides.uniform"
        )
    return noise, lam


def _indices(schedule: Schedule, noise: float, knots: int) -> int:
    """How many indices there are up to `noise`."""
    total = int(round(noise * schedule.num_steps))
    if knots > total:
        raise ValueError(
            f"{knots} points do not fit on the {total} indices up to t = {noise}; use fewer steps "
            "or a lower lam_min"
        )
    return total


def _at_index(schedule: Schedule, index) -> np.ndarray:
    return (np.asarray(index, np.float64) + 1) / schedule.num_steps


def finish(schedule: Schedule, times: np.ndarray, terminal: str) -> np.ndarray:
    """The times with the end that terminal names, checked to be monotone.

    Args:
        times: [steps] to the last evaluation, or [steps + 1] to `t_min` for "min" and "skip".
    """
    if terminal == "min":
        return _checked(times)
    if terminal in ("zero_to_min", "repeat"):
        end = schedule.t_min if terminal == "zero_to_min" else times[-1]
        return np.append(_checked(times), min(end, times[-1]))
    kept = times[:-1] if terminal == "skip" else times
    return _checked(np.append(kept, schedule.t_span[1]))


def _checked(times: np.ndarray) -> np.ndarray:
    if np.any(np.diff(times) >= 0):
        raise ValueError(
            f"{len(times) - 1} steps do not fit: two points of the stride coincide; use fewer steps"
        )
    return times


STRIDES: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "karras": karras,
    "log_snr": log_snr,
    "exponential": log_snr,  # k-diffusion's name for it
    "beta": beta,
    "poly_exponential": poly_exponential,
    "align_your_steps": align_your_steps,
}
"""Fixed strides by name."""
