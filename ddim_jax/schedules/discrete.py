"""Discrete schedules, by a table of betas: DDPM's and its kin."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddim_jax.names import check_range, lookup
from ddim_jax.schedules.schedule import MODEL_TIMES, PRIORS, Schedule, numpy_like


def from_betas(
    betas: np.ndarray,
    *,
    name: str,
    zero_terminal_snr: bool = False,
    last_alpha: float = 0.0,
    model_time: Callable | str | None = None,
    interpolation: str = "log_alpha",
    prior: str | None = None,
    single: bool = False,
) -> Schedule:
    """A discrete variance-preserving schedule, `alpha_n^2 = prod_{m <= n} (1 - beta_m)`.

    Args:
        betas: [T] in (0, 1]; only the last may be 1 (zero terminal SNR).
        name: for messages.
        zero_terminal_snr: see the function of that name.
        last_alpha: what the last level then holds of the signal: 0, or a little where the log-SNR
            must be finite.
        model_time: t in (0, 1] -> network time, or a name in `MODEL_TIMES`; default the index,
            `T * t - 1`.
        interpolation: what is linear between two indices: "log_alpha" (DPM-Solver), "lam", or
            "ratio", sigma / alpha (the last two as k-diffusion has them).
        prior: a name in `PRIORS`.
        single: rounds the betas, one minus them and alpha^2 to single precision, which moves the
            cleanest levels by some 1e-4 of themselves (diffusers).

    Raises:
        ValueError: betas out of range, or fewer than two; an unknown name; a last_alpha outside
            [0, 1), or not below the alpha before it; no signal at the end of an interpolation or a
            model time that needs a finite log-SNR.
    """
    if not 0 <= last_alpha < 1 or (last_alpha and not zero_terminal_snr):
        raise ValueError(
            f"last_alpha must be in [0, 1), and 0 without zero_terminal_snr, got {last_alpha}"
        )
    betas = np.asarray(betas, np.float64)
    inside = (betas > 0) & (betas <= 1)  # of NaN False
    if betas.ndim != 1 or len(betas) < 2 or not np.all(inside) or np.any(betas[:-1] == 1):
        held = f" of {betas.min():g}..{betas.max():g}" if betas.size else ""
        raise ValueError(
            "betas must be a vector of 2 or more in (0, 1), of which only the last may be 1, got "
            f"shape {betas.shape}{held}"
        )
    with np.errstate(divide="ignore"):
        log_alpha = np.concatenate([[0.0], np.cumsum(0.5 * np.log1p(-betas))])
        if single:
            kept = np.cumprod(np.float32(1) - betas.astype(np.float32), dtype=np.float64)
            log_alpha[1:] = 0.5 * np.log(kept.astype(np.float32).astype(np.float64))
        if zero_terminal_snr:
            alpha = _without_terminal_signal(np.exp(log_alpha[1:]))
            if last_alpha >= alpha[-2]:
                raise ValueError(
                    f"last_alpha must be below {alpha[-2]:.4g}, the alpha of the level before, got "
                    f"{last_alpha:.4g}; 0 leaves no signal at all"
                )
            log_alpha = np.log(np.concatenate([[1.0], alpha[:-1], [last_alpha]]))
            name = f"{name}, zero SNR"
    return _from_log_alpha(log_alpha, name, model_time, interpolation, prior)


def _without_terminal_signal(alpha: np.ndarray) -> np.ndarray:
    """Alpha of the indices, shifted to end at 0 and scaled to keep the first."""
    return (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])


def _between_indices(log_alpha: np.ndarray, interpolation: str) -> tuple[Callable, Callable]:
    """(value, inverse) of what is interpolated: value(xp, low, part) -> lam, inverse(lam) -> t."""
    with np.errstate(divide="ignore"):
        lam = log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))
    lam[0] = 2 * lam[1] - lam[2]  # never used: the first cell ends at the clean image
    known = np.exp(-lam) if interpolation == "ratio" else -lam
    grid = np.linspace(0, 1, len(lam))

    def value(xp, low, part, dtype):
        table = xp.asarray(known, dtype=dtype)
        at = table[low] + part * (table[low + 1] - table[low])
        return -xp.log(at) if interpolation == "ratio" else -at

    def inverse(lam):
        xp = numpy_like(lam)
        return xp.interp(xp.exp(-lam) if interpolation == "ratio" else -lam, known[1:], grid[1:])

    return value, inverse


def _from_log_alpha(
    log_alpha: np.ndarray,
    name: str,
    model_time: Callable | str | None,
    interpolation: str = "log_alpha",
    prior: str | None = None,
) -> Schedule:
    """`log_alpha`: [T + 1] at t = 0, 1/T, ..., 1; the last may be -inf."""
    steps = len(log_alpha) - 1
    alpha_table = np.exp(log_alpha)
    silent = bool(np.isneginf(log_alpha[-1]))  # alpha itself is interpolated in the last cell
    safe = np.where(np.isneginf(log_alpha), 0.0, log_alpha)
    if interpolation not in ("log_alpha", "lam", "ratio"):
        raise ValueError(
            f"interpolation must be 'log_alpha', 'lam' or 'ratio', got {interpolation!r}"
        )
    if silent and interpolation != "log_alpha":
        raise ValueError(
            f"interpolation={interpolation!r} needs a finite log-SNR, and {name} ends without "
            "signal; use last_alpha=2**-12, or interpolation='log_alpha'"
        )
    if silent and model_time == "log_sigma":
        raise ValueError(
            f"model_time='log_sigma' needs a finite log-SNR, and {name} ends without signal; use a "
            "little last_alpha, such as 2**-12, or another model time"
        )
    lookup(PRIORS, prior or "sigma", "prior")
    own = None if interpolation == "log_alpha" else _between_indices(log_alpha, interpolation)

    def cell(xp, t):
        position = t * steps
        # an index is met exactly, whatever t * T rounds to, and the derivative by t stays T
        off = xp.round(position) - position
        off = off if xp is np else jax.lax.stop_gradient(off)
        position = xp.where(abs(off) < 1e-4, position + off, position)
        low = xp.clip(xp.floor(position), 0, steps - 1)
        return low.astype(int), position - low

    def log_alpha_at(xp, t):
        low, part = cell(xp, t)
        table = xp.asarray(safe, dtype=t.dtype)
        value = table[low] + part * (table[low + 1] - table[low])
        if own:
            lam = own[0](xp, low, part, t.dtype)
            value = xp.where(low > 0, -0.5 * xp.logaddexp(0.0, -2 * lam), value)
        if not silent:
            return value
        with np.errstate(divide="ignore"):
            last = xp.log(alpha_table[-2] * (1 - part))
        return xp.where(low == steps - 1, last, value)

    def alpha_sigma(t):
        xp = numpy_like(t)
        log_a = log_alpha_at(xp, t)
        return xp.exp(log_a), xp.sqrt(-xp.expm1(2 * log_a))

    def lam_of(t):
        xp = numpy_like(t)
        log_a = log_alpha_at(xp, t)
        return log_a - 0.5 * xp.log(-xp.expm1(2 * log_a))

    def inverse(lam):
        xp = numpy_like(lam)
        log_a = -0.5 * xp.logaddexp(-2 * lam, 0.0)
        grid = np.linspace(0, 1, steps + 1)
        known = slice(None, -1) if silent else slice(None)
        t = xp.interp(-log_a, -safe[known], grid[known])
        if own:
            return xp.where(log_a < safe[1], own[1](lam), t)
        if not silent:
            return t
        last = 1 - xp.exp(log_a) / alpha_table[-2] / steps
        return xp.where(log_a < log_alpha[-2], last, t)

    if isinstance(model_time, str):
        named = lookup(MODEL_TIMES, model_time, "model time")

        def model_time(t):
            return named(steps * t - 1, lam_of(t))

    return Schedule(
        name=name,
        t_span=(1.0, 0.0),
        t_min=1 / steps,
        alpha_sigma=alpha_sigma,
        lam_of=lam_of,
        inverse=inverse,
        model_time=model_time or (lambda t: steps * t - 1),
        num_steps=steps,
        prior=prior,
    )


def _check_steps(num_steps: int) -> int:
    return check_range("num_steps", num_steps, "[2, 1000000]", "DDPM uses 1000", whole=True)


def _check_betas(beta_start: float, beta_end: float) -> None:
    check_range("beta_start", beta_start, "(0, 1)", "1e-4 is DDPM's")
    check_range("beta_end", beta_end, "(0, 1)", "0.02 is DDPM's")


def _of_betas(make: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """Puts the options of `from_betas` into a function's signature, by which names are checked."""
    own = inspect.signature(make).parameters.values()
    shared = [
        p for p in inspect.signature(from_betas).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    kept = [p for p in own if p.kind is not p.VAR_KEYWORD] + [p for p in shared if p.name != "name"]
    vars(make)["__signature__"] = inspect.Signature(kept)
    return make


@_of_betas
def ddpm_linear(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options: Any
) -> Schedule:
    """DDPM's linear betas. Source: Ho et al. 2020, section 4.

    Args:
        num_steps: T; for other than 1000 the betas should be scaled by 1000 / T.
        beta_start: the first beta.
        beta_end: the last beta.
        **options: of `from_betas`: `zero_terminal_snr`, `last_alpha`, `model_time`,
            `interpolation`, `prior`, `single`.
    """
    num_steps = _check_steps(num_steps)
    _check_betas(beta_start, beta_end)
    return from_betas(np.linspace(beta_start, beta_end, num_steps), name="ddpm_linear", **options)


@_of_betas
def ddpm_scaled_linear(
    num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, **options: Any
) -> Schedule:
    """Latent diffusion's betas, linear in their square root. Source: Rombach et al. 2022 (code)."""
    num_steps = _check_steps(num_steps)
    _check_betas(beta_start, beta_end)
    betas = np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num_steps) ** 2
    return from_betas(betas, name="ddpm_scaled_linear", **options)


@_of_betas
def ddpm_cosine(num_steps: int = 1000, max_beta: float = 0.999, **options: Any) -> Schedule:
    """The discrete cosine schedule. Source: Nichol & Dhariwal 2021, equation 17.

    Its last level has lam near -9.9; solvers in sigma space start below it (their `lam_min`).
    """
    num_steps = _check_steps(num_steps)
    check_range("max_beta", max_beta, "(0, 1)", "0.999 is usual")
    u = np.arange(num_steps + 1) / num_steps
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta), name="ddpm_cosine", **options)


@_of_betas
def ddpm_sigmoid(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options: Any
) -> Schedule:
    """Betas that rise as a sigmoid over [-6, 6]. Source: Xu et al. 2022 (GeoDiff, code)."""
    num_steps = _check_steps(num_steps)
    _check_betas(beta_start, beta_end)
    rise = 1 / (1 + np.exp(-np.linspace(-6, 6, num_steps)))
    return from_betas(beta_start + (beta_end - beta_start) * rise, name="ddpm_sigmoid", **options)


@_of_betas
def trained_betas(betas: np.ndarray | None = None, **options: Any) -> Schedule:
    """A discrete schedule by betas of one's own, [T] in (0, 1], so that a config can name it.

    None stands for DDPM's. Options and errors are those of `from_betas`.
    """
    betas = np.linspace(1e-4, 0.02, 1000) if betas is None else betas
    return from_betas(betas, name="trained_betas", **options)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shifts and scales alpha so that the last level holds no signal at all.

    The first level is kept, and what sampling starts from and networks are told. Needs a network
    that predicts v or x0, and a stride that starts at the last index. Configs name it as an option:
    `dict(name="ddpm_linear", zero_terminal_snr=True)`.
    Source: Lin et al. 2024, algorithm 1.

    Raises:
        ValueError: the schedule is continuous, or networks are told the log-SNR, which has no end.
    """
    if schedule.num_steps is None:
        raise ValueError(
            f"zero_terminal_snr needs a discrete schedule, got {schedule.name}; "
            "schedules.cosine() without log-SNR limits ends at zero SNR already"
        )
    times, name = np.linspace(0, 1, schedule.num_steps + 1)[1:], f"{schedule.name}, zero SNR"
    level, of_lam = schedule.level(times), MODEL_TIMES["log_sigma"]
    by_lam = np.array_equal(level.model_time, of_lam(times, schedule.half_log_snr(times)))
    alpha = _without_terminal_signal(level.alpha)
    with np.errstate(divide="ignore"):
        log_alpha = np.concatenate([[0.0], np.log(alpha)])
    model_time = "log_sigma" if by_lam else schedule.model_time
    return _from_log_alpha(log_alpha, name, model_time, prior=schedule.prior)
