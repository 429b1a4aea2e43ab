"""Decodes latents in strips of rows: pictures whose features do not fit in memory, exactly.

Most of an autoencoder's memory goes to its finest levels, whose features have the picture's size.
Here they exist a strip at a time. A convolution needs a row more on both sides of a strip, and
zeros outside the picture; a norm needs mean and variance of the whole picture. So the norms are
taken one after another: each time all strips are run up to the norm, which leaves the statistics of
each row, and these are put together for the next pass. The last pass has them all and leaves the
picture, which is that of `decode` but for rounding.

The levels in strips are computed as often as they have norms, each time as far as the norm: with
the finest level in strips, decoding Stable Diffusion's latents takes 3 times as long in half the
memory; with two levels, 8 times as long in a fifth (docs/networks.md).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.layers import Conv3x3, GroupNorm

Array = Any


def decode(
    net: AutoencoderKL, params: Any, latents: Array, levels: int = 1, rows: int = 64
) -> Array:
    """Decodes latents to pictures as `AutoencoderKL.decode` does, in less memory.

    Args:
        net: the autoencoder.
        params: its parameters.
        latents: [B, h, w, latent_channels], scaled; one picture is decoded after the other.
        levels: how many of the finest levels are computed in strips.
        rows: of the picture that are computed at a time, a multiple of 2 ** levels.

    Returns:
        [B, H, W, channels] float32.

    Raises:
        ValueError: there are not so many levels, or rows do not fit them.
    """
    if not 1 <= levels < len(net.widths):
        raise ValueError(
            f"levels in strips must be 1..{len(net.widths) - 1} of {len(net.widths)}, got {levels}"
        )
    factor = 2**levels
    if rows < 1 or rows % factor:
        raise ValueError(f"rows must be a multiple of {factor} = 2 ** {levels} levels, got {rows}")
    finish = functools.partial(_finish, net, params, levels=levels, rows=rows // factor)

    def one(z):
        variables = {"params": params}
        return finish(net.apply(variables, z[None], levels, method="decode_but_last"))[0]

    return jax.lax.map(one, latents)


def _finish(net: AutoencoderKL, params: Any, h: Array, levels: int, rows: int) -> Array:
    """The finest levels, of features h [1, H, W, C] before them, `rows` of which make a strip."""
    height = h.shape[1]
    convolutions = 2 * net.num_blocks + 3  # of a level; one more follows the last
    reach = sum(convolutions / 2**i for i in range(1, levels + 1)) + 0.5**levels
    edge = math.ceil(reach)  # rows of h that a strip needs on each side
    count, size = -(-height // rows), rows + 2 * edge
    padded = jnp.pad(h, ((0, 0), (edge, edge + count * rows - height), (0, 0), (0, 0)))
    last = functools.partial(net.apply, {"params": params}, method="decode_last")

    def strip(i: Array, known: dict, wanted: str | None) -> Any:
        """A strip of the picture; or, of the norm that is wanted, the statistics of its rows."""
        part = jax.lax.dynamic_slice_in_dim(padded, i * rows, size, axis=1)
        seen: dict = {}

        def inside(x):
            factor = x.shape[1] // size
            places = factor * (i * rows - edge) + jnp.arange(x.shape[1])
            return ((places >= 0) & (places < factor * height)).reshape(1, -1, 1, 1)

        with nn.intercept_methods(_in_strips(inside, known, seen)):
            found = last(part, levels)
        return jax.tree.map(middle_rows, seen[wanted] if wanted else found)

    def middle_rows(x: Array) -> Array:
        factor = x.shape[1] // size
        return x[:, factor * edge : factor * (edge + rows)]

    def all_strips(known: dict, wanted: str | None = None) -> Any:
        found = jax.lax.map(lambda i: strip(i, known, wanted), jnp.arange(count))
        return jax.tree.map(joined, found)

    def joined(x: Array) -> Array:  # [strips, 1, rows, ...] -> [1, rows of the picture, ...]
        factor = x.shape[2] // rows
        return x.reshape(1, -1, *x.shape[3:])[:, : factor * height]

    known: dict = {}
    for name in _norms(last, h, levels):
        mean, variance = all_strips(known, name)
        whole = mean.mean(axis=1, keepdims=True)
        variance = (variance + jnp.square(mean - whole)).mean(axis=1)
        known = known | {name: (whole[:, 0], variance)}
    return all_strips(known)


def _in_strips(inside: Callable[[Array], Array], known: dict, seen: dict) -> Callable:
    """An interceptor: convolutions see zeros outside the picture, norms the `known` statistics.

    Norms leave those of their rows in `seen`; what follows a norm that is not known is not used.
    """

    def intercept(call, args, kwargs, context):
        layer = context.module
        if context.method_name != "__call__" or not isinstance(layer, (Conv3x3, GroupNorm)):
            return call(*args, **kwargs)
        x = args[0]
        if isinstance(layer, Conv3x3):
            return call(jnp.where(inside(x), x, 0))
        name, x = "/".join(layer.path), x.astype(jnp.float32)
        mean = x.mean(axis=2)
        seen[name] = mean, jnp.square(x - mean[:, :, None]).mean(axis=2)
        return call(x, statistics=known[name]) if name in known else x.astype(layer.dtype)

    return intercept


def _norms(last: Callable, h: Array, levels: int) -> list[str]:
    """Names of the norms of the finest levels, in the order in which they are computed."""
    seen: dict = {}
    with nn.intercept_methods(_in_strips(lambda x: True, {}, seen)):
        jax.eval_shape(lambda: last(h, levels))
    return list(seen)
