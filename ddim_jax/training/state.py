"""What training carries: one pytree, one checkpoint; and the moving averages of the parameters.

Sources: Ho et al. 2020 (constant decay 0.9999); Karras et al. 2024 (arXiv:2312.02696), equations
122 to 127 (power function).
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.names import check_range

Array = Any
Ema = Callable[[Any, Any, Array], Any]
"""(ema, params, k) -> ema, where k = 1, 2, ... counts updates."""


@flax.struct.dataclass
class TrainState:
    """The whole of a training run at one step.

    Attributes:
        step: int32, updates done.
        params: network parameters, float32; or the low-rank factors that change frozen ones; or
            a dict of several networks', of which one is the student, or its factors, see
            `losses.Parts`.
        ema: their moving average, of the student alone, float32; what is sampled from.
        opt_state: of the optax optimizer.
        key: the run's random key; step k uses `fold_in(key, k)`.
        frozen: a teacher or target copy, and what factors change, by name; or None.
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    key: Array
    frozen: Any = None


def constant_ema(decay: float = 0.9999, warmup: bool = True) -> Ema:
    """`ema <- b ema + (1 - b) params`, with `b = min(decay, (1 + k) / (10 + k))` in warm-up.

    Args:
        decay: in [0, 1).
        warmup: follow the parameters closely at first.
    """
    check_range("config.ema.decay", decay, "[0, 1)", "DDPM uses 0.9999")
    if not isinstance(warmup, bool):
        raise ValueError(f"config.ema.warmup must be True or False, got {warmup!r}")

    def update(ema, params, k):
        k = k.astype(jnp.float32)
        b = jnp.minimum(decay, (1 + k) / (10 + k)) if warmup else jnp.float32(decay)
        return _mix(ema, params, b)

    return update


def power_ema(relative_std: float = 0.1) -> Ema:
    """EDM2's power-function profile: `b = (1 - 1/k)^(gamma + 1)`, weights of step i ~ i^gamma.

    Args:
        relative_std: width of the profile as a share of the training so far, in (0, 0.28).

    Source: Karras et al. 2024, equations 126 and 127.
    """
    check_range("config.ema.relative_std", relative_std, "(0, 0.28)", "EDM2 uses 0.05-0.2")
    gamma = power_gamma(relative_std)

    def update(ema, params, k):
        return _mix(ema, params, (1 - 1 / k.astype(jnp.float32)) ** (gamma + 1))

    return update


def power_gamma(relative_std: float) -> float:
    """The exponent of a profile with that relative width; 0.10 -> 6.94, 0.05 -> 16.97."""
    inverse = relative_std**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(np.real(roots[np.isreal(roots)]).max())


def _mix(ema, params, b):
    return jax.tree.map(lambda e, p: b * e + (1 - b) * p.astype(e.dtype), ema, params)


EMAS: dict[str, Callable[..., Ema]] = {"constant": constant_ema, "power": power_ema}
"""Moving averages by the name that configs use."""
