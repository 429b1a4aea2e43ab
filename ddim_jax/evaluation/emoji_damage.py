"""Pictures a little moved, resized, blurred, noisy, blotched, tinted and with a piece missing.

Moving, resizing and blurring are two matrices a picture, one for the rows and one for the columns,

    y = R x C^T      R = G L,  L linear interpolation at moved places, G a Gaussian

so that all of it is a few matrix products. Pictures are ink here: 1 - x, so that white is 0, as it
is beyond the border.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = Any
BLUR, NOISE, BLOTCH = 1.5, 0.15, 0.15
"""Most of each damage: standard deviations, in pixels and of 1."""

COARSE = 8
"""Height and width of the noise that becomes blotches."""


def resampling(size: int, scale: Array, shift: Array, blur: Array) -> Array:
    """[B, size, size]: row i weighs the old places that make place i; each argument is [B].

    Places are scaled around the middle, moved by `shift` pixels, and blurred by a Gaussian whose
    standard deviation is `blur` pixels.
    """
    place = jnp.arange(size, dtype=jnp.float32)
    middle = (size - 1) / 2
    old = (place - middle)[None] / scale[:, None] + middle - shift[:, None]
    linear = jnp.maximum(0, 1 - jnp.abs(old[:, :, None] - place[None, None]))
    return _gaussian(size, blur) @ linear


def _gaussian(size: int, blur: Array) -> Array:
    """[B, size, size]; what lies beyond the border counts as 0."""
    reach = jnp.arange(-size, size + 1, dtype=jnp.float32)
    width = 2 * jnp.maximum(blur, 1e-2)[:, None, None] ** 2
    total = jnp.exp(-(reach[None, None] ** 2) / width).sum(axis=2, keepdims=True)
    distance = reach[size : 2 * size, None] - reach[None, size : 2 * size]
    return jnp.exp(-(distance[None] ** 2) / width) / total


def damaged(images: Array, key: Array) -> tuple[Array, Array]:
    """Random changes of uint8 [B, H, H, C], of which about a sixth have no damage.

    Returns:
        float32 pictures in [-1, 1], and [B, 3] how much blur, noise and blotch each has, in 0..1.
    """
    count, size, _, channels = images.shape
    keys = iter(jax.random.split(key, 16))

    def uniform(low, high, *shape):
        return jax.random.uniform(next(keys), (count, *shape), minval=low, maxval=high)

    which = uniform(0, 1, 3) < 0.45
    damage = jnp.where(which, uniform(0, 1, 3) ** 1.5, 0.0)
    # half of the pictures move by whole pixels alone, which blurs nothing
    free = uniform(0, 1) < 0.5
    scale = jnp.where(free[:, None], uniform(0.88, 1.12, 1) * uniform(0.95, 1.05, 2), 1.0)
    shift = uniform(-3, 3, 2)
    shift = jnp.where(free[:, None], shift, jnp.round(shift))
    rows, columns = (
        resampling(size, scale[:, i], shift[:, i], BLUR * damage[:, 0]) for i in range(2)
    )
    ink = 1 - images.astype(jnp.float32) / 255
    ink = jnp.einsum("bij,bjkc,blk->bilc", rows, ink, columns)
    ink = ink * uniform(0.88, 1.1, 1, 1, 1) * uniform(0.95, 1.05, 1, 1, channels)
    place = jnp.arange(size, dtype=jnp.float32)
    middle, half = uniform(0, size, 2, 1), uniform(2, 10, 2, 1)
    inside = jnp.abs(place[None, None] - middle) < half * (uniform(0, 1, 1, 1) < 0.25)
    ink = ink * (1 - inside[:, 0, :, None, None] * inside[:, 1, None, :, None])
    coarse = jax.random.normal(next(keys), (count, COARSE, COARSE, channels))
    ink = ink + BLOTCH * damage[:, 2, None, None, None] * jax.image.resize(
        coarse, (count, size, size, channels), "linear"
    )
    noise = jax.random.normal(next(keys), ink.shape)
    ink = jnp.clip(ink + NOISE * damage[:, 1, None, None, None] * noise, 0, 1)
    return 1 - 2 * ink, damage
