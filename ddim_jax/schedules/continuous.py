"""Continuous schedules: ScoreSDE's, the cosine, EDM's, straight paths."""

from collections.abc import Callable

import numpy as np

from ddim_jax.names import check_range, lookup
from ddim_jax.schedules.schedule import MODEL_TIMES, PRIORS, Schedule, numpy_like

CLEANEST_TIME = 1e-3
"""`t_min` of the schedules on [0, 1] (ScoreSDE's and rectified flow's end time)."""


def _check_cleanest(t_min: float) -> None:
    check_range("t_min", t_min, "(0, 1)", f"{CLEANEST_TIME} is usual")


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
    check_range("beta_min", beta_min, "(0, inf)", "0.1 is usual")
    check_range("beta_max", beta_max, f"({beta_min}, 1000]", "20 is usual")
    _check_cleanest(t_min)
    slope = beta_max - beta_min

    def log_alpha(t):
        return -(t**2) * slope / 4 - t * beta_min / 2

    def alpha_sigma(t):
        xp = numpy_like(t)
        return xp.exp(log_alpha(t)), xp.sqrt(-xp.expm1(2 * log_alpha(t)))

    def lam_of(t):
        xp = numpy_like(t)
        return log_alpha(t) - 0.5 * xp.log(-xp.expm1(2 * log_alpha(t)))

    def inverse(lam):
        xp = numpy_like(lam)
        q = 2 * slope * xp.minimum(xp.logaddexp(-2 * lam, 0.0), 1e30)  # finite, far beyond t = 1
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
    if not log_snr_min < log_snr_max:
        raise ValueError(
            f"log_snr_min must be below log_snr_max, got {log_snr_min} and {log_snr_max}; -20 and "
            "20 are usual"
        )
    for name, side in (("resolution", resolution), ("base_resolution", base_resolution)):
        if side is not None:
            check_range(name, side, "[1, 65536]")
    _check_cleanest(t_min)
    low = np.arctan(np.exp(-log_snr_max / 2))
    above = np.arctan(np.exp(log_snr_min / 2))  # what is missing to pi / 2 at t = 1
    span = np.pi / 2 - above - low
    shift = 0.0 if resolution is None else float(np.log(base_resolution / resolution))

    def lam_of(t):
        xp = numpy_like(t)
        # the cosine as a sine of the complement, exact next to t = 1
        return xp.log(xp.sin(span * (1 - t) + above)) - xp.log(xp.sin(span * t + low)) + shift

    def alpha_sigma(t):
        xp, lam = numpy_like(t), lam_of(t)
        return xp.exp(-0.5 * xp.logaddexp(0.0, -2 * lam)), xp.exp(-0.5 * xp.logaddexp(0.0, 2 * lam))

    def inverse(lam):
        xp = numpy_like(lam)
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
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(
            "sigma_min and sigma_max must be finite, 0 < sigma_min < sigma_max, got "
            f"{sigma_min}, {sigma_max}; 0.002 and 80 are usual"
        )
    lookup(PRIORS, prior or "sigma", "prior")

    def alpha_sigma(t):
        xp = numpy_like(t)
        if not preserving:
            return xp.ones_like(t), t
        total = xp.hypot(t, 1.0)
        return 1 / total, t / total

    return Schedule(
        name="edm",
        t_span=(float(sigma_max), 0.0),
        t_min=sigma_min,
        alpha_sigma=alpha_sigma,
        lam_of=lambda t: -numpy_like(t).log(t),
        inverse=lambda lam: numpy_like(lam).exp(-lam),
        model_time=lambda t: numpy_like(t).log(t) / 4,
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
        model_time: shifted time t' -> network time; by name "index", `num_steps * t'`,
            "floored", its whole part, or "to_data", `1 - t'`, the clock of SiT.
        num_steps: of the named model times.
        single: rounds sigma to single precision before alpha is taken from it, which loses digits
            of alpha next to pure noise (diffusers).
        prior: a name in `PRIORS`.

    Raises:
        ValueError: a shift that is not positive, an unknown name of a model time or prior.

    Source: Liu et al. 2022; shift: Esser et al. 2024, equation 23.
    """
    check_range("shift", shift, "(0, 10000]", "1 means none, SD3 uses 3")
    num_steps = check_range("num_steps", num_steps, "[2, 1000000]", whole=True)
    _check_cleanest(t_min)
    lookup(PRIORS, prior or "sigma", "prior")
    if isinstance(model_time, str):
        if model_time not in ("index", "floored", "to_data"):
            known = "'index', 'floored' or 'to_data'"
            raise ValueError(f"model_time must be {known}, got {model_time!r}")
        named = MODEL_TIMES.get(model_time)

        def model_time(sigma):
            return named(num_steps * sigma, None) if named else 1 - sigma

    def shifted(t):
        return shift * t / (1 + (shift - 1) * t)

    def alpha_sigma(t):
        if not single:
            return (1 - t) / (1 + (shift - 1) * t), shifted(t)
        sigma = shifted(t).astype(np.float32).astype(t.dtype)
        return 1 - sigma, sigma

    def lam_of(t):
        xp = numpy_like(t)
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
        inverse=lambda lam: 1 / (1 + shift * numpy_like(lam).exp(lam)),
        model_time=lambda t: model_time(shifted(t)),
        prior=prior,
    )
