"""Geometry of latents: the standard normals that a deterministic sampler maps to images.

Latents are [..., H, W, C] here; angles and norms are over one latent, of clips over one frame. A
normal in many dimensions lies near the sphere of radius sqrt(D), so paths keep to it: a straight
line would pass through norms that no image comes from, and end in grey.

Sources: Shoemake 1985 (slerp); Song et al. 2021 (arXiv:2010.02502), appendix D.5.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
PARALLEL = 1e-4
"""Angle, in radians, below which slerp is a straight line."""


def slerp(first: Array, second: Array, share: Array) -> Array:
    """Spherical interpolation; at the ends exactly the ends.

    From one [..., H, W, C] at share 0 to another at 1; N shares give a path [N, ..., H, W, C].

    Raises:
        ValueError: latents of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"latents must have one shape, got {first.shape} and {second.shape}")
    many = (1,) * jnp.ndim(share)
    first, second = (jnp.reshape(x, many + x.shape) for x in (first, second))
    norms = _norm(first) * _norm(second)
    angle = jnp.arccos(jnp.clip(_dot(first, second) / jnp.maximum(norms, 1e-12), -1, 1))
    share = jnp.reshape(share, jnp.shape(share) + (1,) * (first.ndim - jnp.ndim(share)))
    sine = jnp.sin(angle)
    straight = (angle < PARALLEL) | (sine < PARALLEL)
    sine = jnp.where(straight, 1.0, sine)
    a = jnp.where(straight, 1 - share, jnp.sin((1 - share) * angle) / sine)
    b = jnp.where(straight, share, jnp.sin(share * angle) / sine)
    path = a * first + b * second
    return jnp.where(share == 0, first, jnp.where(share == 1, second, path))


def straight(first: Array, second: Array, share: Array) -> Array:
    """Linear interpolation of [..., H, W, C], with shares as of `slerp`; for texts, not noises."""
    share = jnp.reshape(share, jnp.shape(share) + (1,) * first.ndim)
    first, second = (
        jnp.reshape(x, (1,) * (share.ndim - x.ndim) + x.shape) for x in (first, second)
    )
    return (1 - share) * first + share * second


PATHS = {"linear": straight, "slerp": slerp}
"""Ways from one to another by name."""


def chain(latents: Array, steps: int, between: Callable[..., Array] = slerp) -> Array:
    """A path through latents [N, H, W, C], so many steps from each to the next.

    `between` is in `PATHS`.

    Returns:
        [(N - 1) steps + 1, H, W, C].

    Raises:
        ValueError: fewer than two latents, or less than one step.
    """
    if len(latents) < 2 or steps < 1:
        raise ValueError(
            f"a path needs two latents and one step at least, got {len(latents)} and {steps}"
        )
    share = jnp.arange(steps) / steps
    legs = [between(a, b, share) for a, b in zip(latents[:-1], latents[1:], strict=True)]
    return jnp.concatenate([*legs, latents[-1:]])


def grid(corners: Array, rows: int, columns: int) -> Array:
    """Between four corners, [rows, columns, H, W, C]: slerps along the sides, and across.

    The corners [4, H, W, C] are top left, top right, bottom left and bottom right.

    Raises:
        ValueError: another number of corners, or a side below 2.
    """
    if len(corners) != 4 or min(rows, columns) < 2:
        raise ValueError(
            f"a grid needs 4 corners and sides of 2 or more, got {len(corners)} and {rows} x "
            f"{columns}"
        )
    down, across = jnp.linspace(0, 1, rows), jnp.linspace(0, 1, columns)
    left, right = slerp(corners[0], corners[2], down), slerp(corners[1], corners[3], down)
    return jnp.swapaxes(slerp(left, right, across), 0, 1)


def mean_direction(toward: Array, away: Array) -> Array:
    """[H, W, C]: from the mean of one set of latents to that of another.

    Raises:
        ValueError: an empty set.
    """
    for name, latents in (("toward", toward), ("away", away)):
        if not len(latents):
            raise ValueError(f"the set {name!r} is empty; a direction needs images on both sides")
    return jnp.mean(toward, 0) - jnp.mean(away, 0)


def probe_direction(latents: Array, positive: Array, ridge: float = 1.0) -> Array:
    """[H, W, C]: the normal of a linear probe of two classes, of the length of their distance.

    Ridge regression of +-1, its penalty in units of the mean eigenvalue of the latents' second
    moments; with a great penalty it is `mean_direction` of sets of equal size. The latents are
    [N, H, W, C], their classes bool [N].

    Raises:
        ValueError: one of the classes is empty, or a penalty that is not positive.
    """
    positive, latents = np.asarray(positive, bool), np.asarray(latents, np.float64)
    difference = np.asarray(mean_direction(latents[positive], latents[~positive]), np.float64)
    if ridge <= 0:
        raise ValueError(f"ridge must be positive, got {ridge}; 1 is usual")
    x = (latents - latents.mean(0)).reshape(len(latents), -1)
    y = np.where(positive, 1.0, -1.0)
    kernel = x @ x.T  # N is small beside the dimension, so the dual
    penalty = ridge * np.trace(kernel) / len(x)
    normal = x.T @ np.linalg.solve(kernel + penalty * np.eye(len(x)), y - y.mean())
    normal = normal.reshape(difference.shape) / max(np.linalg.norm(normal), 1e-12)
    return jnp.asarray(normal * np.sum(normal * difference), jnp.float32)


def add(latents: Array, direction: Array, strength: Array = 1.0) -> Array:
    """`latents + strength * direction`, brought back to the norms they had.

    The direction is [H, W, C]; the strength a number, or [N] like the latents' first axis.
    """
    direction = jnp.reshape(direction, (1,) * (latents.ndim - direction.ndim) + direction.shape)
    spread = (1,) * (latents.ndim - jnp.ndim(strength))
    moved = latents + jnp.reshape(strength, jnp.shape(strength) + spread) * direction
    return moved * _norm(latents) / jnp.maximum(_norm(moved), 1e-12)


def random_direction(key: Array, like: Array) -> Array:
    """Returns a random direction of the same norm: the baseline that an edit is compared with."""
    direction = jax.random.normal(key, like.shape)
    return direction * _norm(like) / _norm(direction)


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, (-3, -2, -1), keepdims=True)


def _norm(x: Array) -> Array:
    return jnp.sqrt(_dot(x, x))
