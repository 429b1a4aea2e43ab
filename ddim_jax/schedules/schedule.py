"""What a schedule is: how much signal and noise there is at a time, and what networks are told."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.names import lookup

Array = Any
"""A numpy array or scalar on the host, a jax array inside jit."""


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


def numpy_like(x: Array):
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
        xp = numpy_like(t)
        t = xp.asarray(t, dtype=None if xp is jnp else np.float64)
        noise, clean = self.t_span
        if xp is np and np.any((t > noise) | (t < clean) | np.isnan(t)):
            raise ValueError(
                f"times of the {self.name} schedule lie in [{clean}, {noise}], got "
                f"{t.min()}..{t.max()}; use schedule.t_span for its ends"
            )
        with np.errstate(divide="ignore"):
            alpha, sigma = self.alpha_sigma(t)
            # no clip, whose derivative at the ends themselves is half of t's
            trained = xp.where(t > noise, noise, xp.where(t < self.t_min, self.t_min, t))
            model_time = self.model_time(trained)
        at_clean = t == clean
        alpha, sigma = xp.where(at_clean, 1.0, alpha), xp.where(at_clean, 0.0, sigma)
        return NoiseLevel(t, alpha, sigma, model_time)

    def half_log_snr(self, t: Array) -> Array:
        """`lam(t) = log(alpha / sigma)`, +inf at the clean end."""
        xp = numpy_like(t)
        t = xp.asarray(t, dtype=None if xp is jnp else np.float64)
        with np.errstate(divide="ignore"):
            return xp.where(t == self.t_span[1], np.inf, self.lam_of(t))

    def time_of(self, lam: Array) -> Array:
        """The time at which `half_log_snr` is `lam`, clipped to `t_span`."""
        xp = numpy_like(lam)
        lam = xp.asarray(lam, dtype=None if xp is jnp else np.float64)
        noise, clean = self.t_span
        with np.errstate(over="ignore"):
            return xp.clip(self.inverse(lam), clean, noise)

    def indices(self, what: str) -> int:
        """T, how many indices a discrete schedule has.

        Args:
            what: needs them, for the message.

        Raises:
            ValueError: the schedule is continuous.
        """
        if self.num_steps is None:
            raise ValueError(f"{what} needs a discrete schedule, got {self.name}; leave it out")
        return self.num_steps

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

MODEL_TIMES: dict[str, Callable[[Array, Array], Array]] = {
    "index": lambda index, lam: index,
    "rounded": lambda index, lam: numpy_like(index).round(index),
    "floored": lambda index, lam: numpy_like(index).floor(index + 1e-4),
    "floored_under": lambda index, lam: numpy_like(index).maximum(
        numpy_like(index).floor(index - 1e-4), 0
    ),
    "log_sigma": lambda index, lam: -lam / 4,
}
"""What networks of a discrete schedule are told, by name: (index, lam) -> time. "floored" is the
whole part of the index, "floored_under" that of a little less; "log_sigma" EDM's log(sigma) / 4."""
