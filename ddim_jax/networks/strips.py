"""Decodes latents in strips of rows: pictures whose features do not fit in memory, exactly.

Most of an autoencoder's memory goes to its finest level, whose features have the picture's size.
Here they exist a strip at a time. A convolution needs a row more on both sides of a strip, and
zeros outside the picture; a norm needs mean and variance of the whole picture. So the finest
level's norms are taken one after another: each time all strips are run up to the norm, which
leaves the statistics of each row, and these are put together for the next pass. The last pass has
them all and leaves the picture, which is that of `decode` but for rounding.

The finest level is computed as often as it has norms, each time as far as the norm; in Stable
Diffusion's decoder it is a third of the work, and the whole takes two to three times as long.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.layers import Conv3x3, GroupNorm

Array = Any


def decode(net: AutoencoderKL, params: Any, latents: Array, rows: int = 64) -> Array:
    """Decodes latents to pictures as `AutoencoderKL.decode` does, in less memory.

    Args:
        net: the autoencoder, of two levels or more.
        params: its parameters.
        latents: [B, h, w, latent_channels], scaled; one picture is decoded after the other.
        rows: of the picture that are computed at a time, an even number.

    Returns:
        [B, H, W, channels] float32.

    Raises:
        ValueError: rows is odd, or the network has one level.
    """
    if rows < 2 or rows % 2 or len(net.widths) < 2:
        raise ValueError(
            f"strips must have an even number of rows, of a network of two levels or more; got "
            f"{rows} rows and {len(net.widths)} levels"
        )

    def one(z):
        h = net.apply({"params": params}, z[None], method="decode_but_last")
        return _finish(net, params, h, rows // 2)[0]

    return jax.lax.map(one, latents)


def _finish(net: AutoencoderKL, params: Any, h: Array, rows: int) -> Array:
    """The finest level, of features h [1, H / 2, W / 2, C], `rows` of which make a strip."""
    height = h.shape[1]
    edge = net.num_blocks + 2  # rows of h on each side: half a row for each convolution
    count = -(-height // rows)
    padded = jnp.pad(h, ((0, 0), (edge, edge + count * rows - height), (0, 0), (0, 0)))
    size = rows + 2 * edge

    def strip(i: Array, known: dict, wanted: str | None) -> Array:
        """A strip of the picture; or of the statistics of the rows at the norm that is wanted."""
        part = jax.lax.dynamic_slice_in_dim(padded, i * rows, size, axis=1)
        places = 2 * (i * rows - edge) + jnp.arange(2 * size)
        inside = (places >= 0) & (places < 2 * height)
        seen: dict = {}
        with nn.intercept_methods(_in_strips(inside.reshape(1, -1, 1, 1), known, seen)):
            found = net.apply({"params": params}, part, method="decode_last")
        found = seen[wanted] if wanted else found
        return jax.tree.map(lambda a: a[:, 2 * edge : 2 * (edge + rows)], found)

    def all_strips(known: dict, wanted: str | None = None) -> Array:
        found = jax.lax.map(lambda i: strip(i, known, wanted), jnp.arange(count))
        whole = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(1, -1, *a.shape[3:]), found)
        return jax.tree.map(lambda a: a[:, : 2 * height], whole)

    known: dict = {}
    for name in _norms(net, params, h):
        mean, variance = all_strips(known, name)  # [1, H, C] each
        whole = mean.mean(axis=1, keepdims=True)
        variance = (variance + jnp.square(mean - whole)).mean(axis=1)
        known = known | {name: (whole[:, 0], variance)}
    return all_strips(known)


def _in_strips(inside: Array, known: dict, seen: dict) -> Callable:
    """An interceptor: convolutions see zeros outside the picture, norms the `known` statistics.

    Norms leave those of their rows in `seen`.
    """

    def intercept(call, args, kwargs, context):
        net = context.module
        if context.method_name != "__call__" or not isinstance(net, (Conv3x3, GroupNorm)):
            return call(*args, **kwargs)
        x = args[0]
        if isinstance(net, Conv3x3):
            return call(jnp.where(inside, x, 0), **kwargs)
        name, x = "/".join(net.path), x.astype(jnp.float32)
        mean = x.mean(axis=2)
        seen[name] = mean, jnp.square(x - mean[:, :, None]).mean(axis=2)
        return call(x, statistics=known[name]) if name in known else x.astype(net.dtype)

    return intercept


def _norms(net: AutoencoderKL, params: Any, h: Array) -> list[str]:
    """Names of the finest level's norms in the order in which they are computed."""
    seen: dict = {}
    with nn.intercept_methods(_in_strips(jnp.array(True), {}, seen)):
        jax.eval_shape(lambda: net.apply({"params": params}, h, method="decode_last"))
    return list(seen)
