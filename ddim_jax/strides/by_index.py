"""Strides over the clock: uniform and quadratic, of whole indices on a discrete schedule."""

import numpy as np

from ddim_jax.names import check_range
from ddim_jax.schedules import Schedule
from ddim_jax.strides.ends import (
    ALL_TERMINALS,
    at_index,
    check_steps,
    count_knots,
    finish,
    indices,
    noisy_end,
)

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
    if (spacing, terminal) == ("trailing", "skip"):
        terminal = "zero"  # whose last evaluation is above t_min
    steps = check_steps(schedule, steps, terminal, discrete=True, terminals=ALL_TERMINALS)
    if spacing == "leading" and count_knots(steps, terminal) == 1:
        raise ValueError(
            "steps=1 with leading spacing would start at the clean end; use spacing='trailing'"
        )
    among = _check_index_options(schedule, spacing, rounded, among, steps)
    offset = check_range("offset", offset, f"[0, {2**31}]", whole=True)
    if offset and (spacing != "leading" or schedule.num_steps is None):
        raise ValueError("offset belongs to spacing='leading' on a discrete schedule")
    knots = count_knots(steps, terminal)
    noise, t_min = noisy_end(schedule, lam_min), schedule.t_min
    if schedule.num_steps is None:
        if spacing == "trailing":
            last = t_min if knots > steps else schedule.t_span[1]
            return finish(schedule, np.linspace(noise, last, steps + 1)[:knots], terminal)
        if spacing == "linspace":
            times = np.linspace(noise, t_min, knots)
        else:
            times = t_min + (noise - t_min) * np.arange(knots)[::-1] / knots
        return finish(schedule, times, terminal)
    total = indices(schedule, noise, knots)
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
    return finish(schedule, at_index(schedule, index), terminal)


def _check_index_options(schedule, spacing, rounded, among, steps) -> int | None:
    """`among` as an integer."""
    if not rounded and (spacing != "linspace" or schedule.num_steps is None):
        raise ValueError("rounded=False belongs to spacing='linspace' on a discrete schedule")
    if among is None:
        return None
    if spacing != "trailing" or schedule.num_steps is None:
        raise ValueError("among belongs to spacing='trailing' on a discrete schedule")
    hint = f"the {steps} steps are chosen from so many of the schedule"
    return check_range("among", among, f"[{steps}, {schedule.num_steps}]", hint, whole=True)


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
    steps = check_steps(schedule, steps, terminal, discrete=True)
    noise = noisy_end(schedule, lam_min)
    if fraction is None:
        silent = schedule.half_log_snr(0.8 * noise) <= np.log(SILENT)
        fraction = 0.8 if silent else 1.0
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}; DDIM's code uses 0.8")
    knots = count_knots(steps, terminal)
    if schedule.num_steps is None:
        roots = np.linspace(np.sqrt(fraction * noise), np.sqrt(schedule.t_min), knots)
        return finish(schedule, np.clip(roots**2, schedule.t_min, noise), terminal)
    total = indices(schedule, noise, knots)
    part = np.linspace(0, 1, knots) if knots > 1 else np.ones(1)
    if knots == total:
        index = np.arange(total)
    elif fraction == 1:
        index = np.maximum(np.floor((total - 1) * part**2 + 1e-9), np.arange(knots))
    else:
        index = np.unique(np.floor((np.sqrt(fraction * total) * part) ** 2 + 1e-9))
    if knots == 1:
        index = np.minimum(index, total - 1)
    return finish(schedule, at_index(schedule, index[::-1]), terminal)
