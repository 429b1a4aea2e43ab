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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    """

    name: str
    t_span: tuple[float, float]
    t_min: float
    alpha_sigma: Callable[[Array], tuple[Array, Array]]
    lam_of: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    model_time: Callable[[Array], Array]
    num_steps: int | None = None

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

        1 where the process preserves variance (DDPM, ScoreSDE), otherwise sigma (EDM, flow).
        """
        level = self.level(t)
        preserving = abs(level.alpha**2 + level.sigma**2 - 1) < 1e-9
        return 1.0 if preserving else float(level.sigma)


# --- discrete: a table of betas -------------------------------------------------------------------


def from_betas(
    betas: np.ndarray,
    *,
    name: str,
    zero_terminal_snr: bool = False,
    model_time: Callable | None = None,
) -> Schedule:
    """A discrete variance-preserving schedule, `alpha_n^2 = prod_{m <= n} (1 - beta_m)`.

    Args:
        betas: [T] in (0, 1]; only the last may be 1 (zero terminal SNR).
        name: for messages.
        zero_terminal_snr: see the function of that name.
        model_time: t in (0, 1] -> network time; default the index, `T * t - 1`.

    Raises:
        ValueError: betas out of range.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or np.any(betas <= 0) or np.any(betas[:-1] >= 1) or betas[-1] > 1:
        raise ValueError(
            f"betas must be a vector in (0, 1), of which only the last may be 1, got {betas}"
        )
    with np.errstate(divide="ignore"):
        log_alpha = np.concatenate([[0.0], np.cumsum(0.5 * np.log1p(-betas))])
    schedule = _from_log_alpha(log_alpha, name, model_time)
    return _silenced(schedule) if zero_terminal_snr else schedule


def _from_log_alpha(log_alpha: np.ndarray, name: str, model_time: Callable | None) -> Schedule:
    """`log_alpha`: [T + 1] at t = 0, 1/T, ..., 1; the last may be -inf."""
    steps = len(log_alpha) - 1
    alpha_table = np.exp(log_alpha)
    silent = bool(np.isneginf(log_alpha[-1]))  # alpha itself is interpolated in the last cell
    safe = np.where(np.isneginf(log_alpha), 0.0, log_alpha)

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
        if not silent:
            return t
        last = 1 - xp.exp(log_a) / alpha_table[-2] / steps
        return xp.where(log_a < log_alpha[-2], last, t)

    return Schedule(
        name=name,
        t_span=(1.0, 0.0),
        t_min=1 / steps,
        alpha_sigma=alpha_sigma,
        lam_of=lam_of,
        inverse=inverse,
        model_time=model_time or (lambda t: steps * t - 1),
        num_steps=steps,
    )


def _check_steps(num_steps: int) -> None:
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, got {num_steps}; DDPM uses 1000")


def ddpm_linear(
    num_steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    zero_terminal_snr: bool = False,
    model_time: Callable | None = None,
) -> Schedule:
    """DDPM's linear betas. Source: Ho et al. 2020, section 4.

    Args:
        num_steps: T; for other than 1000 the betas should be scaled by 1000 / T.
        beta_start: the first beta.
        beta_end: the last beta.
        zero_terminal_snr: see the function of that name.
        model_time: see `from_betas`.
    """
    _check_steps(num_steps)
    betas = np.linspace(beta_start, beta_end, num_steps)
    options = {"zero_terminal_snr": zero_terminal_snr, "model_time": model_time}
    return from_betas(betas, name="ddpm_linear", **options)


def ddpm_scaled_linear(
    num_steps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    *,
    zero_terminal_snr: bool = False,
    model_time: Callable | None = None,
) -> Schedule:
    """Latent diffusion's betas, linear in their square root. Source: Rombach et al. 2022 (code)."""
    _check_steps(num_steps)
    betas = np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num_steps) ** 2
    options = {"zero_terminal_snr": zero_terminal_snr, "model_time": model_time}
    return from_betas(betas, name="ddpm_scaled_linear", **options)


def ddpm_cosine(
    num_steps: int = 1000,
    max_beta: float = 0.999,
    *,
    zero_terminal_snr: bool = False,
    model_time: Callable | None = None,
) -> Schedule:
    """The discrete cosine schedule. Source: Nichol & Dhariwal 2021, equation 17.

    Its last level has lam near -9.9; solvers in sigma space start below it (their `lam_min`).
    """
    _check_steps(num_steps)
    u = np.arange(num_steps + 1) / num_steps
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], max_beta)
    options = {"zero_terminal_snr": zero_terminal_snr, "model_time": model_time}
    return from_betas(betas, name="ddpm_cosine", **options)


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
    return _silenced(schedule)


def _silenced(schedule: Schedule) -> Schedule:
    alpha = schedule.level(np.linspace(0, 1, schedule.num_steps + 1)[1:]).alpha
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
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


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """Variance exploding, with the noise level as the clock: alpha = 1, sigma = t.

    The network is given `log(sigma) / 4`. Source: Karras et al. 2022, table 1.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}")
    return Schedule(
        name="edm",
        t_span=(float(sigma_max), 0.0),
        t_min=sigma_min,
        alpha_sigma=lambda t: (_numpy_like(t).ones_like(t), t),
        lam_of=lambda t: -_numpy_like(t).log(t),
        inverse=lambda lam: _numpy_like(lam).exp(-lam),
        model_time=lambda t: _numpy_like(t).log(t) / 4,
    )


def rectified_flow(
    shift: float = 1.0,
    *,
    t_min: float = CLEANEST_TIME,
    model_time: Callable = lambda sigma: 1000 * sigma,
) -> Schedule:
    """Straight paths: `alpha = 1 - t', sigma = t'` with `t' = shift t / (1 + (shift - 1) t)`.

    Noise is at t = 1 (the rectified-flow papers run the clock the other way).

    Args:
        shift: SD3's resolution shift; lowers lam by `log(shift)` everywhere.
        t_min: the cleanest time a network is asked at.
        model_time: shifted time t' -> network time.

    Source: Liu et al. 2022; shift: Esser et al. 2024, equation 23.
    """
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}; 1 means none, SD3 uses 3")

    def shifted(t):
        return shift * t / (1 + (shift - 1) * t)

    def lam_of(t):
        xp = _numpy_like(t)
        return xp.log1p(-t) - xp.log(t) - np.log(shift)

    return Schedule(
        name="rectified_flow",
        t_span=(1.0, 0.0),
        t_min=t_min,
        alpha_sigma=lambda t: ((1 - t) / (1 + (shift - 1) * t), shifted(t)),
        lam_of=lam_of,
        inverse=lambda lam: 1 / (1 + shift * _numpy_like(lam).exp(lam)),
        model_time=lambda t: model_time(shifted(t)),
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "ddpm_linear": ddpm_linear,
    "ddpm_scaled_linear": ddpm_scaled_linear,
    "ddpm_cosine": ddpm_cosine,
    "vp_linear": vp_linear,
    "cosine": cosine,
    "edm": edm,
    "rectified_flow": rectified_flow,
}
"""Schedules by the name that configs use."""
