"""Weights on the squared error `|x0_hat - x0|^2`, functions of lam = log(alpha / sigma).

`loss.regress` turns them into weights on the network's own output, so that "truncated_snr" means
the same for eps, x0, v, flow and EDM's F; "simple" is the plain mean over F, whatever F is.

Sources: Salimans & Ho 2022 (arXiv:2202.00512), section 4; Hang et al. 2023 (arXiv:2303.09556,
min-SNR); Karras et al. 2022 (arXiv:2206.00364), table 1; Li & He 2025 (arXiv:2511.13720).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddim_jax.names import check_range

Array = Any
Weighting = Callable[[Array], Array]
"""lam = log(alpha / sigma) [B] -> weight on the squared error of x0 [B]."""


def truncated_snr() -> Weighting:
    """max(SNR, 1): the larger squared error of x0 and eps. Source: Salimans & Ho 2022, eq. 9."""
    return lambda lam: jnp.maximum(jnp.exp(2 * lam), 1.0)


TRUNCATED_SNR = truncated_snr()


def snr_plus_one(most: float = np.inf) -> Weighting:
    """SNR + 1: the squared error in v. Source: Salimans & Ho 2022, equation 10.

    Args:
        most: the weight grows no more than this, as in `min_snr`; above 1.

    Raises:
        ValueError: it is out of range.
    """
    if most != np.inf:
        check_range("config.loss.weighting.most", most, "(1, inf)", "10 is usual; leave it out")
    return lambda lam: jnp.minimum(jnp.exp(2 * lam) + 1.0, most)


def flow(smallest: float = 0.05) -> Weighting:
    """`(sqrt(SNR) + 1)^2`, which is 1 / t^2 on a rectified flow: the squared error in its velocity.

    What a network that predicts x0 of pixels is trained by. Source: Li & He 2025, table 1 (3).

    Args:
        smallest: t below which the weight grows no more, in (0, 1).

    Raises:
        ValueError: it is out of range.
    """
    check_range("config.loss.weighting.smallest", smallest, "(0, 1)", "0.05 is usual")
    return lambda lam: jnp.minimum(jnp.exp(lam) + 1, 1 / smallest) ** 2


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma). Source: Hang et al. 2023, section 3.4."""
    check_range("config.loss.weighting.gamma", gamma, "(0, inf)", "5 is usual")
    return lambda lam: jnp.minimum(jnp.exp(2 * lam), gamma)


def edm(sigma_data: float = 0.5) -> Weighting:
    """`SNR + 1 / sigma_data^2`: EDM's `(s^2 + sd^2) / (s sd)^2`, the squared error in its F."""
    check_range("config.loss.weighting.sigma_data", sigma_data, "(0, 1000]", "0.5 is usual")
    return lambda lam: jnp.exp(2 * lam) + 1 / sigma_data**2


WEIGHTINGS: dict[str, Callable[..., Weighting] | None] = {
    "simple": None,
    "truncated_snr": truncated_snr,
    "snr_plus_one": snr_plus_one,
    "flow": flow,
    "min_snr": min_snr,
    "edm": edm,
}
"""Weightings by the name that configs use; "simple" is the unweighted mean squared error of F."""
