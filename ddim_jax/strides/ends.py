"""Where strides begin and end: shared by all that are made by formula."""

import numbers

import numpy as np

from ddim_jax.names import as_whole
from ddim_jax.schedules import Schedule

TERMINALS = ("zero", "min", "skip")
ALL_TERMINALS = (*TERMINALS, "zero_to_min", "repeat")


def count_knots(steps: int, terminal: str) -> int:
    """How many points from noise to `t_min`, or to the last evaluation, a stride has."""
    return steps + (terminal in ("min", "skip"))


def check_steps(
    schedule: Schedule,
    steps: int,
    terminal: str,
    discrete: bool = False,
    terminals: tuple[str, ...] = TERMINALS,
    between: str = "use strides.log_snr or karras",
) -> int:
    """The steps as an integer; ValueError for a bad terminal, or what a stride cannot hold.

    `between` says how to go between the indices of a discrete schedule.
    """
    if terminal not in terminals:
        raise ValueError(
            f"terminal must be {', '.join(map(repr, terminals[:-1]))} or {terminals[-1]!r}, got "
            f"{terminal!r}"
        )
    total = schedule.num_steps if discrete else None
    limit = total - (terminal in ("min", "skip")) if total else None
    whole = as_whole(steps)
    if isinstance(whole, bool) or not isinstance(whole, numbers.Integral) or whole < 1:
        whole = 0
    if not whole or (limit and whole > limit):
        allowed = f"1..{limit} for a {total}-step schedule" if limit else "a whole number >= 1"
        hint = f"; {between} to go between the indices" if limit else ""
        raise ValueError(f"steps must be {allowed}, got {steps}{hint}")
    return whole


def noisy_end(schedule: Schedule, lam_min: float | None) -> float:
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


def finite_noisy_end(schedule: Schedule, lam_min: float | None, name: str) -> tuple[float, float]:
    """(time, lam) of the noisy end."""
    noise = noisy_end(schedule, lam_min)
    return noise, check_finite(schedule, noise, name)


def check_finite(schedule: Schedule, noise: float, name: str) -> float:
    """lam at the noisy end of the stride of that name; ValueError where it is infinite."""
    lam = schedule.half_log_snr(noise)
    if not np.isfinite(lam):
        raise ValueError(
            f"{name} needs a finite log-SNR, but {schedule.name} has none at t = {noise}; "
            "pass lam_min=-5.1, or use strides.uniform"
        )
    return lam


def indices(schedule: Schedule, noise: float, knots: int) -> int:
    """How many indices there are up to `noise`."""
    total = int(round(noise * schedule.indices("times by index")))
    if knots > total:
        raise ValueError(
            f"{knots} points do not fit on the {total} indices up to t = {noise}; use fewer steps "
            "or a lower lam_min"
        )
    return total


def at_index(schedule: Schedule, index) -> np.ndarray:
    """The times of indices."""
    return (np.asarray(index, np.float64) + 1) / schedule.indices("times by index")


def finish(schedule: Schedule, times: np.ndarray, terminal: str) -> np.ndarray:
    """The times with the end that terminal names, checked to be monotone.

    Args:
        times: [steps] to the last evaluation, or [steps + 1] to `t_min` for "min" and "skip".
    """
    if terminal == "min":
        return _checked(times)
    if terminal in ("zero_to_min", "repeat"):
        last = times[-1]
        goes_on = terminal == "zero_to_min" and schedule.t_min < last * (1 - 1e-9)
        return np.append(_checked(times), schedule.t_min if goes_on else last)
    kept = times[:-1] if terminal == "skip" else times
    return _checked(np.append(kept, schedule.t_span[1]))


def _checked(times: np.ndarray) -> np.ndarray:
    if not np.all(np.diff(times) < 0):  # of NaN too
        raise ValueError(
            f"{len(times) - 1} steps do not fit: two points of the stride coincide; use fewer "
            "steps, or options nearer to the default"
        )
    return times
