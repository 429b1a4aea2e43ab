"""Noise schedules: how much signal and how much noise there is at a time.

Every family is one forward process, `x_t = alpha(t) * x0 + sigma(t) * eps`, `eps ~ N(0, I)`. A
`Schedule` gives the `NoiseLevel` at a time; DDPM's discrete tables, the cosine, EDM and rectified
flow are constructors of it, not code paths. Time runs from `t_span[0]` (noise) to `t_span[1]`
(clean data, exactly `alpha = 1, sigma = 0`); `t_min` is the cleanest level a network is asked at.

    lam(t) = log(alpha / sigma)        half the log-SNR; `log_snr = 2 * lam`

The functions accept numpy (float64, on the host: strides and solver tables) and jax arrays (inside
losses), and answer in kind. Discrete schedules put index n = 0..T-1 at t = (n + 1) / T, so that
t = 0 is the clean image, and interpolate log alpha between indices (DPM-Solver, arXiv:2206.00927).

Sources: DDPM (arXiv:2006.11239), improved DDPM (arXiv:2102.09672), ScoreSDE (arXiv:2011.13456),
VDM (arXiv:2107.00630), simple diffusion (arXiv:2301.11093), EDM (arXiv:2206.00364),
rectified flow (arXiv:2209.03003), SD3 (arXiv:2403.03206), zero terminal SNR (arXiv:2305.08891).
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.names import lookup

Array = Any
"""A numpy array or scalar on the host, a jax array inside jit."""

CLEANEST_TIME = 1e-3
"""`t_min` of the continuous schedules on [0, 1] (ScoreSDE's and rectified flow's end time)."""


class NoiseLevel(NamedTuple):
    """A point of the forward process; the fields are scalars or arrays of one shape.

    Attributes:
        t: time on the schedule's own clock, between `t_span[0]` (noise) and `t_span[1]` (clean).
        alpha: multiple of the clean image.
        sigma: standard deviation of the noise.
        model_time: what the network is given as its time.
    """

    t: Array
    alpha: Array
    sigma: Array
    model_time: Array


def _numpy_like(x: Array):
    """The array namespace of `x`: jax inside jit and losses, numpy float64 on the host."""
    return jnp if isinstance(x, jax.Array) else np


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A forward process on a clock. Made by the constructors of this module.

    Attributes:
        name: for messages and files.
        t_span: (noise, clean): the times of pure noise and of data; (1, 0), for EDM (80, 0).
        t_min: the cleanest time at which a network is evaluated.
        alpha_sigma: t -> (alpha, sigma).
        lam_of: t -> log(alpha / sigma), stable at both ends.
        inverse: lam -> t.
        model_time: t -> the network's time input, before clipping to `[t_min, t_span[0]]`.
        num_steps: T of a discrete schedule, None for a continuous one.
        prior: a name in `PRIORS`: what sampling starts from; None: see `prior_std`.
    """

    name: str
    t_span: tuple[float, float]
    t_min: float
    alpha_sigma: Callable[[Array], tuple[Array, Array]]
    lam_of: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    model_time: Callable[[Array], Array]
    num_steps: int | None = None
    prior: str | None = None

    def level(self, t: Array) -> NoiseLevel:
        """The noise level at time `t` (any shape); exactly (1, 0) at the clean end.

        Args:
            t: times in `t_span`; numpy is computed in float64, jax arrays in their own dtype.

        Raises:
            ValueError: a host-side time lies outside `t_span`.
        """
        xp = _numpy_like(t)
        t = xp.asarray(t, dtype=None if xp is jnp else np.float64)
        noise, clean = self.t_span
        if xp is np and np.any((t > noise) | (t < clean) | np.isnan(t)):
            raise ValueError(
                f"times of the {self.name} schedule lie in [{clean}, {noise}], got "
                f"{t.min()}..{t.max()}; use schedule.t_span for its ends"
            )
        with np.errstate(divide="ignore"):
            alpha, sigma = self.alpha_sigma(t)
            model_time = self.model_time(xp.clip(t, self.t_min, noise))
        at_clean = t == clean
        alpha, sigma = xp.where(at_clean, 1.0, alpha), xp.where(at_clean, 0.0, sigma)
        return NoiseLevel(t, alpha, sigma, model_time)

    def half_log_snr(self, t: Array) -> Array:
        """`lam(t) = log(alpha / sigma)`, +inf at the clean end."""
        xp = _numpy_like(t)
        t = xp.asarray(t, dtype=None if xp is jnp else np.float64)
        with np.errstate(divide="ignore"):
            return xp.where(t == self.t_span[1], np.inf, self.lam_of(t))

    def time_of(self, lam: Array) -> Array:
        """The time at which `half_log_snr` is `lam`, clipped to `t_span`."""
        xp = _numpy_like(lam)
        lam = xp.asarray(lam, dtype=None if xp is jnp else np.float64)
        noise, clean = self.t_span
        with np.errstate(over="ignore"):
            return xp.clip(self.inverse(lam), clean, noise)

    def prior_std(self, t: float) -> float:
        """Standard deviation of the noise that sampling starts from at time `t`.

        1 where the process preserves variance (DDPM, ScoreSDE), otherwise sigma (EDM, flow);
        `prior` names another.
        """
        level = self.level(t)
        if self.prior is not None:
            return float(lookup(PRIORS, self.prior, "prior")(level))
        preserving = abs(level.alpha**2 + level.sigma**2 - 1) < 1e-9
        return 1.0 if preserving else float(level.sigma)


PRIORS: dict[str, Callable[[NoiseLevel], Array]] = {
    "sigma": lambda level: level.sigma,
    "total": lambda level: np.hypot(level.alpha, level.sigma),
    "unit": lambda level: 1.0,
}
"""Standard deviation of what sampling starts from, by name: the level's sigma, the root of its
alpha^2 + sigma^2 (of data of variance 1 and noise together), or 1."""


# --- discrete: a table of betas -------------------------------------------------------------------


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
        ValueError: betas out of range; an unknown name; a last_alpha outside [0, 1); no signal at
            the end of an interpolation that needs a finite log-SNR.
    """
    if not 0 <= last_alpha < 1 or (last_alpha and not zero_terminal_snr):
        raise ValueError(
            f"last_alpha must be in [0, 1), and 0 without zero_terminal_snr, got {last_alpha}"
        )
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or np.any(betas <= 0) or np.any(betas[:-1] >= 1) or betas[-1] > 1:
        raise ValueError(
            f"betas must be a vector in (0, 1), of which only the last may be 1, got {betas}"
        )
    with np.errstate(divide="ignore"):
        log_alpha = np.concatenate([[0.0], np.cumsum(0.5 * np.log1p(-betas))])
        if single:
            kept = np.cumprod(np.float32(1) - betas.astype(np.float32), dtype=np.float64)
            log_alpha[1:] = 0.5 * np.log(kept.astype(np.float32).astype(np.float64))
        if zero_terminal_snr:
            alpha = _without_terminal_signal(np.exp(log_alpha[1:]))
            log_alpha = np.log(np.concatenate([[1.0], alpha[:-1], [last_alpha]]))
            name = f"{name}, zero SNR"
    return _from_log_alpha(log_alpha, name, model_time, interpolation, prior)


def _without_terminal_signal(alpha: np.ndarray) -> np.ndarray:
    """Alpha of the indices, shifted to end at 0 and scaled to keep the first."""
    return (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])


MODEL_TIMES: dict[str, Callable[[Array, Array], Array]] = {
    "index": lambda index, lam: index,
    "rounded": lambda index, lam: _numpy_like(index).round(index),
    "floored": lambda index, lam: _numpy_like(index).floor(index + 1e-4),
    "floored_under": lambda index, lam: _numpy_like(index).maximum(
        _numpy_like(index).floor(index - 1e-4), 0
    ),
    "log_sigma": lambda index, lam: -lam / 4,
}
"""What networks of a discrete schedule are told, by name: (index, lam) -> time. "floored" is the
whole part of the index, "floored_under" that of a little less; "log_sigma" EDM's log(sigma) / 4."""


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
        xp = _numpy_like(lam)
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
    lookup(PRIORS, prior or "sigma", "prior")
    own = None if interpolation == "log_alpha" else _between_indices(log_alpha, interpolation)

    def cell(xp, t):
        position = t * steps
        nearest = xp.round(position)  # an index is met exactly, whatever t * T rounds to
        position = xp.where(abs(position - nearest) < 1e-4, nearest, position)
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
        xp = _numpy_like(t)
        log_a = log_alpha_at(xp, t)
        return xp.exp(log_a), xp.sqrt(-xp.expm1(2 * log_a))

    def lam_of(t):
        xp = _numpy_like(t)
        log_a = log_alpha_at(xp, t)
        return log_a - 0.5 * xp.log(-xp.expm1(2 * log_a))

    def inverse(lam):
        xp = _numpy_like(lam)
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


def _check_steps(num_steps: int) -> None:
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, got {num_steps}; DDPM uses 1000")


def _of_betas(make: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """Puts the options of `from_betas` into a function's signature, by which names are checked."""
    own = inspect.signature(make).parameters.values()
    shared = [
        p for p in inspect.signature(from_betas).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    kept = [p for p in own if p.kind is not p.VAR_KEYWORD] + [p for p in shared if p.name != "name"]
    make.__signature__ = inspect.Signature(kept)
    return make


@_of_betas
def ddpm_linear(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options
) -> Schedule:
    """DDPM's linear betas. Source: Ho et al. 2020, section 4.

    Args:
        num_steps: T; for other than 1000 the betas should be scaled by 1000 / T.
        beta_start: the first beta.
        beta_end: the last beta.
        **options: of `from_betas`: `zero_terminal_snr`, `last_alpha`, `model_time`,
            `interpolation`, `prior`, `single`.
    """
    _check_steps(num_steps)
    return from_betas(np.linspace(beta_start, beta_end, num_steps), name="ddpm_linear", **options)


@_of_betas
def ddpm_scaled_linear(
    num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, **options
) -> Schedule:
    """Latent diffusion's betas, linear in their square root. Source: Rombach et al. 2022 (code)."""
    _check_steps(num_steps)
    betas = np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num_steps) ** 2
    return from_betas(betas, name="ddpm_scaled_linear", **options)


@_of_betas
def ddpm_cosine(num_steps: int = 1000, max_beta: float = 0.999, **options) -> Schedule:
    """The discrete cosine schedule. Source: Nichol & Dhariwal 2021, equation 17.

    Its last level has lam near -9.9; solvers in sigma space start below it (their `lam_min`).
    """
    _check_steps(num_steps)
    u = np.arange(num_steps + 1) / num_steps
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta), name="ddpm_cosine", **options)


@_of_betas
def ddpm_sigmoid(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options
) -> Schedule:
    """Betas that rise as a sigmoid over [-6, 6]. Source: Xu et al. 2022 (GeoDiff, code)."""
    _check_steps(num_steps)
    rise = 1 / (1 + np.exp(-np.linspace(-6, 6, num_steps)))
    return from_betas(beta_start + (beta_end - beta_start) * rise, name="ddpm_sigmoid", **options)


@_of_betas
def trained_betas(betas: np.ndarray | None = None, **options) -> Schedule:
    """A discrete schedule by betas of one's own, [T] in (0, 1], so that a config can name it.

    None stands for DDPM's. Options and errors are those of `from_betas`.
    """
    betas = np.linspace(1e-4, 0.02, 1000) if betas is None else betas
    return from_betas(betas, name="trained_betas", **options)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shifts and scales alpha so that the last level holds no signal at all.

    The first level is kept. Needs a network that predicts v or x0, and a stride that starts at the
    last index. Configs name it as an option: `dict(name="ddpm_linear", zero_terminal_snr=True)`.
    Source: Lin et al. 2024, algorithm 1.

    Raises:
        ValueError: the schedule is continuous.
    """
    if schedule.num_steps is None:
        raise ValueError(
            f"zero_terminal_snr needs a discrete schedule, got {schedule.name}; "
            "schedules.cosine() without log-SNR limits ends at zero SNR already"
        )
    alpha = schedule.level(np.linspace(0, 1, schedule.num_steps + 1)[1:]).alpha
    alpha = _without_terminal_signal(alpha)
    with np.errstate(divide="ignore"):
        log_alpha = np.concatenate([[0.0], np.log(alpha)])
    return _from_log_alpha(log_alpha, f"{schedule.name}, zero SNR", schedule.model_time)


# --- continuous -----------------------------------------------------------------------------------


def vp_linear(
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    *,
    t_min: float = CLEANEST_TIME,
    model_time: Callable = lambda t: 999 * t,
) -> Schedule:
    """The continuous variance-preserving SDE: `log alpha = -t^2 (b1 - b0) / 4 - t b0 / 2`.

    Source: Song et al. 2021 (ScoreSDE), appendix C.
    """
    slope = beta_max - beta_min

    def log_alpha(t):
        return -(t**2) * slope / 4 - t * beta_min / 2

    def alpha_sigma(t):
        xp = _numpy_like(t)
        return xp.exp(log_alpha(t)), xp.sqrt(-xp.expm1(2 * log_alpha(t)))

    def lam_of(t):
        xp = _numpy_like(t)
        return log_alpha(t) - 0.5 * xp.log(-xp.expm1(2 * log_alpha(t)))

    def inverse(lam):
        xp = _numpy_like(lam)
        q = 2 * slope * xp.logaddexp(-2 * lam, 0.0)
        return q / ((xp.sqrt(beta_min**2 + q) + beta_min) * slope)

    return Schedule("vp_linear", (1.0, 0.0), t_min, alpha_sigma, lam_of, inverse, model_time)


def cosine(
    log_snr_min: float = -20.0,
    log_snr_max: float = 20.0,
    *,
    resolution: int | None = None,
    base_resolution: int = 64,
    t_min: float = CLEANEST_TIME,
    model_time: Callable = lambda t: 1000 * t,
) -> Schedule:
    """The continuous cosine schedule, `log_snr = -2 log tan(c1 t + c0)` between its limits.

    With infinite limits it is `alpha = cos(pi t / 2), sigma = sin(pi t / 2)`. At t = 0 the image is
    clean, exactly, as in every schedule.

    Args:
        log_snr_min: full log-SNR at t = 1, before the shift.
        log_snr_max: full log-SNR next to t = 0, before the shift.
        resolution: image side d; shifts log_snr by `2 log(base_resolution / d)`. None: no shift.
        base_resolution: the side at which the shift is zero.
        t_min: the cleanest time a network is asked at.
        model_time: t -> network time.

    Source: Kingma et al. 2021 (VDM); Salimans & Ho 2022; shift: Hoogeboom et al. 2023, section 3.1.
    """
    low = np.arctan(np.exp(-log_snr_max / 2))
    above = np.arctan(np.exp(log_snr_min / 2))  # what is missing to pi / 2 at t = 1
    span = np.pi / 2 - above - low
    shift = 0.0 if resolution is None else float(np.log(base_resolution / resolution))

    def lam_of(t):
        xp = _numpy_like(t)
        # the cosine as a sine of the complement, exact next to t = 1
        return xp.log(xp.sin(span * (1 - t) + above)) - xp.log(xp.sin(span * t + low)) + shift

    def alpha_sigma(t):
        xp, lam = _numpy_like(t), lam_of(t)
        return xp.exp(-0.5 * xp.logaddexp(0.0, -2 * lam)), xp.exp(-0.5 * xp.logaddexp(0.0, 2 * lam))

    def inverse(lam):
        xp = _numpy_like(lam)
        return (xp.arctan(xp.exp(shift - lam)) - low) / span

    return Schedule("cosine", (1.0, 0.0), t_min, alpha_sigma, lam_of, inverse, model_time)


def edm(
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    *,
    preserving: bool = False,
    prior: str | None = None,
) -> Schedule:
    """Variance exploding, with the noise level as the clock: alpha = 1, sigma = t.

    The network is given `log(sigma) / 4`. Source: Karras et al. 2022, table 1.

    Args:
        sigma_min: the cleanest level.
        sigma_max: the noisiest.
        preserving: divides alpha and sigma by sqrt(1 + t^2): the same levels, and a network that
            takes its input at variance 1 (Stable Video Diffusion).
        prior: a name in `PRIORS`.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}")
    lookup(PRIORS, prior or "sigma", "prior")

    def alpha_sigma(t):
        xp = _numpy_like(t)
        if not preserving:
            return xp.ones_like(t), t
        total = xp.hypot(t, 1.0)
        return 1 / total, t / total

    return Schedule(
        name="edm",
        t_span=(float(sigma_max), 0.0),
        t_min=sigma_min,
        alpha_sigma=alpha_sigma,
        lam_of=lambda t: -_numpy_like(t).log(t),
        inverse=lambda lam: _numpy_like(lam).exp(-lam),
        model_time=lambda t: _numpy_like(t).log(t) / 4,
        prior=prior,
    )


def rectified_flow(
    shift: float = 1.0,
    *,
    t_min: float = CLEANEST_TIME,
    model_time: Callable | str = lambda sigma: 1000 * sigma,
    num_steps: int = 1000,
    single: bool = False,
    prior: str | None = None,
) -> Schedule:
    """Straight paths: `alpha = 1 - t', sigma = t'` with `t' = shift t / (1 + (shift - 1) t)`.

    Noise is at t = 1 (the rectified-flow papers run the clock the other way).

    Args:
        shift: SD3's resolution shift; lowers lam by `log(shift)` everywhere.
        t_min: the cleanest time a network is asked at.
        model_time: shifted time t' -> network time; by name "index", `num_steps * t'`, or
            "floored", its whole part.
        num_steps: of the named model times.
        single: rounds sigma to single precision before alpha is taken from it, which loses digits
            of alpha next to pure noise (diffusers).
        prior: a name in `PRIORS`.

    Raises:
        ValueError: a shift that is not positive, an unknown name of a model time or prior.

    Source: Liu et al. 2022; shift: Esser et al. 2024, equation 23.
    """
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}; 1 means none, SD3 uses 3")
    lookup(PRIORS, prior or "sigma", "prior")
    if isinstance(model_time, str):
        if model_time not in ("index", "floored"):
            raise ValueError(f"model_time must be 'index' or 'floored', got {model_time!r}")
        named = MODEL_TIMES[model_time]

        def model_time(sigma):
            return named(num_steps * sigma, None)

    def shifted(t):
        return shift * t / (1 + (shift - 1) * t)

    def alpha_sigma(t):
        if not single:
            return (1 - t) / (1 + (shift - 1) * t), shifted(t)
        sigma = shifted(t).astype(np.float32).astype(t.dtype)
        return 1 - sigma, sigma

    def lam_of(t):
        xp = _numpy_like(t)
        if single:
            alpha, sigma = alpha_sigma(t)
            return xp.log(alpha) - xp.log(sigma)
        return xp.log1p(-t) - xp.log(t) - np.log(shift)

    return Schedule(
        name="rectified_flow",
        t_span=(1.0, 0.0),
        t_min=t_min,
        alpha_sigma=alpha_sigma,
        lam_of=lam_of,
        inverse=lambda lam: 1 / (1 + shift * _numpy_like(lam).exp(lam)),
        model_time=lambda t: model_time(shifted(t)),
        prior=prior,
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "ddpm_linear": ddpm_linear,
    "ddpm_scaled_linear": ddpm_scaled_linear,
    "ddpm_cosine": ddpm_cosine,
    "ddpm_sigmoid": ddpm_sigmoid,
    "trained_betas": trained_betas,
    "vp_linear": vp_linear,
    "cosine": cosine,
    "edm": edm,
    "rectified_flow": rectified_flow,
}
"""Schedules by the name that configs use."""
