"""Autoencoders: pictures come back from a few latents, which are near a standard normal.

    z ~ N(mean, std^2) of the encoder,  x_hat = decoder(z),  over the n numbers of a picture
    loss = mean |x - x_hat| + distance_weight * distance(x, x_hat) + kl / n * KL
    KL = sum over latents of (mean^2 + std^2 - 1 - log std^2) / 2

That is the authors' loss, whose sums are over a picture, divided by n, and without a discriminator;
with a small `kl` the latents are hardly narrowed, only kept from growing. What they come to is
measured afterwards: `config.codec.scale`.

Source: Rombach et al. 2022 (arXiv:2112.10752), section 3.1, appendix G; Kingma & Welling 2014
(arXiv:1312.6114), appendix B (KL).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ddim_jax.losses.loss import Loss, Net
from ddim_jax.names import check_range, lookup

Array = Any
ERRORS = {"l1": jnp.abs, "l2": jnp.square}
"""Of a number of a picture, by the name that configs use."""


def autoencoder(
    net: Net,
    *,
    error: str = "l1",
    kl: float = 1e-6,
    distance: Callable[[Array, Array], Array] | None = None,
    distance_weight: float = 1.0,
) -> Loss:
    """The loss of an autoencoder; batches need no more than pictures.

    Args:
        net: an autoencoder, `autoencoder_kl`.
        error: a name in ERRORS.
        kl: weight of the divergence from a standard normal; 1e-6 is Stable Diffusion's.
        distance: function of two batches of pictures [B, H, W, C] that is added, such as
            `lpips.load(path)`, in configs "lpips:FILE".
        distance_weight: of that.

    Returns:
        The loss; its metrics are "error", "mse" and "kl", the divergence in nats of a picture.

    Raises:
        ValueError: an unknown error, a weight out of range, a distance that is none.

    Source: Rombach et al. 2022, appendix G.
    """
    difference = lookup(ERRORS, error, "error")
    check_range("config.loss.kl", kl, "[0, inf)", "1e-6 is usual")
    check_range("config.loss.distance_weight", distance_weight, "[0, inf)", "1 is usual")
    if distance is not None and not callable(distance):
        raise ValueError(
            f"config.loss.distance must be lpips:FILE, got {distance!r}; leave it out for none"
        )

    def compute(params, frozen, batch, keys, step):
        x = batch["image"]
        coded = net.apply(params, x, jnp.zeros(len(x)), {}, keys)
        kept = jnp.mean(difference(coded.pictures - x))
        nats = jnp.mean(divergence(coded.mean, coded.std))
        value = kept + kl * nats / x[0].size
        if distance is not None:
            value += distance_weight * jnp.mean(distance(coded.pictures, x))
        mse = jnp.mean((coded.pictures - x) ** 2)
        return value, {"loss": value, "error": kept, "mse": mse, "kl": nats}

    return Loss(compute)


def divergence(mean: Array, std: Array) -> Array:
    """KL(N(mean, std^2) | N(0, 1)) in nats, [B], summed over all but the first axis."""
    each = (mean**2 + std**2 - 1) / 2 - jnp.log(std)
    return jnp.sum(each, axis=tuple(range(1, each.ndim)))
