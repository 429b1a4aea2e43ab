"""Strides chosen by formula: `(schedule, steps, **options) -> times`, float64 [steps + 1].

`steps` counts intervals. The last point is exactly clean (alpha = 1, sigma = 0) unless
`terminal="min"`, which ends at the cleanest trained level `schedule.t_min`. `lam_min` (half
log-SNR) moves the noisy end to the first trained level above it, for solvers that cannot start
from pure noise. Times are strictly monotone. On a discrete schedule the index strides (uniform,
quadratic) visit whole indices n at t = (n + 1) / T; the others interpolate.

Sources: Song et al. 2021 (arXiv:2010.02502), appendix D.2 (uniform, quadratic); Lin et al. 2024
(arXiv:2305.08891), table 2 (leading, linspace, trailing); Karras et al. 2022 (arXiv:2206.00364),
equation 5; Lu et al. 2022 (arXiv:2206.00927), section 3.3 (log-SNR).
"""

from collections.abc import Callable

import numpy as np

from ddim_jax.schedules import Schedule

TERMINALS = ("zero", "min")


def uniform(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "trailing",
    offset: int = 0,
    terminal: str = "zero",
    lam_min: float | None = None,
) -> np.ndarray:
    """Evenly spaced times.

    Args:
        schedule: the forward process.
        steps: intervals, at least 1; at most T on a discrete schedule.
        spacing: "trailing" starts at pure noise, e.g. indices 999, 899, ..., 99; "linspace" spreads
            the evaluations over T-1 .. 0, ends included; "leading" is 900, 800, ..., 0 (it never
            evaluates at pure noise).
        offset: added to the indices of "leading" (Stable Diffusion uses 1).
        terminal: "zero" ends at the clean image, "min" at `schedule.t_min`.
        lam_min: see the module.

    Raises:
        ValueError: steps out of range, unknown spacing or terminal.
    """
    if spacing not in ("trailing", "linspace", "leading"):
        raise ValueError(f"unknown spacing {spacing!r}; it is 'trailing', 'linspace' or 'leading'")
    if spacing == "leading" and steps == 1:
        raise ValueError(
            "steps=1 with leading spacing would start at the clean end; use spacing='trailing'"
        )
    _check(schedule, steps, terminal, discrete=True)
    if offset and (spacing != "leading" or schedule.num_steps is None):
        raise ValueError("offset belongs to spacing='leading' on a discrete schedule")
    knots = steps + (terminal == "min")
    noise, t_min = _noisy_end(schedule, lam_min), schedule.t_min
    if schedule.num_steps is None:
        if spacing == "trailing":
            last = schedule.t_span[1] if terminal == "zero" else t_min
            return _checked(np.linspace(noise, last, steps + 1))
        if spacing == "linspace":
            times = np.linspace(noise, t_min, knots)
        else:
            times = t_min + (noise - t_min) * np.arange(knots)[::-1] / knots
        return _end(schedule, times, terminal)
    total = _indices(schedule, noise, knots)
    if spacing == "trailing":
        index = np.round(total - np.arange(steps) * total / steps) - 1
        if terminal == "min":  # strides below 1.5 indices would round to index 0 twice
            index = np.maximum(np.append(index, 0), np.arange(knots)[::-1])
    elif spacing == "linspace":
        index = np.round(np.linspace(0, total - 1, knots))[::-1] if knots > 1 else [total - 1]
    else:
        index = np.arange(knots)[::-1] * (total // knots) + offset
        if index[0] >= total:
            raise ValueError(
                f"offset {offset} moves index {index[0] - offset} past the last, {total - 1}; "
                "use a smaller one"
            )
    return _end(schedule, _at_index(schedule, index), terminal)


def quadratic(
    schedule: Schedule,
    steps: int,
    *,
    fraction: float = 0.8,
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
        schedule: the forward process.
        steps: intervals, at least 1; at most T on a discrete schedule.
        fraction: the noisiest point as a share of the schedule, in (0, 1].
        terminal: "zero" ends at the clean image, "min" at `schedule.t_min`.
        lam_min: see the module.

    Raises:
        ValueError: steps or fraction out of range, unknown terminal.

    Source: Song et al. 2021, appendix D.2 and the authors' code.
    """
    _check(schedule, steps, terminal, discrete=True)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}; DDIM's code uses 0.8")
    knots = steps + (terminal == "min")
    noise = _noisy_end(schedule, lam_min)
    if schedule.num_steps is None:
        roots = np.linspace(np.sqrt(fraction * noise), np.sqrt(schedule.t_min), knots)
        return _end(schedule, np.clip(roots**2, schedule.t_min, noise), terminal)
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
    return _end(schedule, _at_index(schedule, index[::-1]), terminal)


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    terminal: str = "zero",
    lam_min: float | None = None,
) -> np.ndarray:
    """EDM's grid: `(sigma / alpha)^(1 / rho)` evenly spaced. Source: Karras et al. 2022, eq. 5.

    Args:
        schedule: the forward process.
        steps: intervals, at least 1.
        rho: 7 in the paper; 1 is uniform in sigma / alpha; `log_snr` is the limit of large rho.
        terminal: "zero" ends at the clean image, "min" at `schedule.t_min`.
        lam_min: see the module; needed where the schedule ends at alpha = 0.

    Raises:
        ValueError: steps or rho out of range, an infinite end, unknown terminal.
    """
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}; EDM uses 7")

    def grid(high, low, knots):
        ends = np.exp(-high / rho), np.exp(-low / rho)
        return -rho * np.log(np.linspace(*ends, knots))

    return _by_lam(schedule, steps, grid, "karras", terminal, lam_min)


def log_snr(
    schedule: Schedule, steps: int, *, terminal: str = "zero", lam_min: float | None = None
) -> np.ndarray:
    """Evenly spaced in log-SNR. Source: Lu et al. 2022, section 3.3.

    Args:
        schedule: the forward process.
        steps: intervals, at least 1.
        terminal: "zero" ends at the clean image, "min" at `schedule.t_min`.
        lam_min: see the module; needed where the schedule ends at alpha = 0.

    Raises:
        ValueError: steps out of range, an infinite end, unknown terminal.
    """
    return _by_lam(schedule, steps, np.linspace, "log_snr", terminal, lam_min)


def _by_lam(schedule, steps, grid, name, terminal, lam_min) -> np.ndarray:
    _check(schedule, steps, terminal, discrete=False)
    noise = _noisy_end(schedule, lam_min)
    first, last = schedule.half_log_snr(noise), schedule.half_log_snr(schedule.t_min)
    if not np.isfinite(first):
        raise ValueError(
            f"{name} needs a finite log-SNR, but {schedule.name} has none at t = {noise}; "
            "pass lam_min=-5.1, or use strides.uniform"
        )
    knots = steps + (terminal == "min")
    times = schedule.time_of(grid(first, last, knots))
    times[0] = noise
    if knots > 1:
        times[-1] = schedule.t_min
    return _end(schedule, times, terminal)


def _check(schedule: Schedule, steps: int, terminal: str, discrete: bool) -> None:
    if terminal not in TERMINALS:
        raise ValueError(f"terminal must be 'zero' or 'min', got {terminal!r}")
    total = schedule.num_steps if discrete else None
    limit = total - (terminal == "min") if total else None
    if steps != int(steps) or steps < 1 or (limit and steps > limit):
        allowed = f"1..{limit} for a {total}-step schedule" if limit else "a whole number >= 1"
        hint = "; use strides.log_snr or karras to go between the indices" if limit else ""
        raise ValueError(f"steps must be {allowed}, got {steps}{hint}")


def _noisy_end(schedule: Schedule, lam_min: float | None) -> float:
    """The noisiest time with `lam >= lam_min`; a whole index on a discrete schedule."""
    noise = schedule.t_span[0]
    if lam_min is None or schedule.half_log_snr(noise) >= lam_min:
        return noise
    if schedule.num_steps is None:
        return float(schedule.time_of(lam_min))
    grid = np.arange(1, schedule.num_steps + 1) / schedule.num_steps
    return float(grid[schedule.half_log_snr(grid) >= lam_min].max())


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


def _end(schedule: Schedule, times: np.ndarray, terminal: str) -> np.ndarray:
    return _checked(np.append(times, schedule.t_span[1]) if terminal == "zero" else times)


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
}
"""Fixed strides by name."""
