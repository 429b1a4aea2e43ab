"""Layers over tokens [B, N, C] that the latent networks share: attention, feed-forward, norms.

Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3; GEGLU: Shazeer 2020 (arXiv:2002.05202).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddim_jax.networks.layers import Dropout, fan_avg, fan_avg_qkv, zeros
from ddim_jax.networks.options import check_divides

Array = Any

UNSEEN = -1e30
"""Logit of a key that a query does not see."""
gelu = functools.partial(jax.nn.gelu, approximate=False)
ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def attention(
    q: Array,
    k: Array,
    v: Array,
    most: int = 2**21,
    seen: Callable[[Array], Array] | None = None,
) -> Array:
    """Softmax attention, the softmax in float32.

    Of more than `most` pairs of a query and a key, queries are taken in blocks, one after another,
    and computed again backwards: memory grows with N + M, not N * M (as in Rabe & Staats 2021,
    arXiv:2112.05682), and the numbers are the same. Queries that are missing in the last block are
    zeros, whose results are left out. Derivatives are those of the whole, backwards and forwards.

    Args:
        q: [B, N, heads, d] queries.
        k: [B, M, heads, d] keys.
        v: [B, M, heads, d] values.
        most: pairs, of one sample and head, whose logits are in memory at a time.
        seen: places of n queries in line -> bool [1 or B, n, M], which keys each sees; None: all.

    Returns:
        [B, N, heads, d], in the dtype of v.
    """
    count = math.ceil(q.shape[1] / max(1, most // k.shape[1]))
    if count <= 1:
        return _attend(q, k, v, seen and seen(jnp.arange(q.shape[1])))
    size = math.ceil(q.shape[1] / count)
    blocks = jnp.pad(q, ((0, 0), (0, count * size - q.shape[1]), (0, 0), (0, 0)))
    blocks = blocks.reshape(q.shape[0], count, size, *q.shape[2:]).swapaxes(0, 1)

    def of_block(block: tuple[Array, Array]) -> Array:
        return _attend(block[0], k, v, seen and seen(block[1]))

    rows = jnp.arange(count * size).reshape(count, size)
    blocks = jax.lax.map(jax.checkpoint(of_block), (blocks, rows))
    mixed = blocks.swapaxes(0, 1).reshape(q.shape[0], count * size, *q.shape[2:])
    return mixed[:, : q.shape[1]]


def _attend(q: Array, k: Array, v: Array, seen: Array | None = None) -> Array:
    """Attention of all queries at once.

    What is not seen has a logit that is finite still: a query may be padding, and see nothing.

    The division by the softmax sum comes after the product with v: it then touches d numbers a
    query instead of N, and the products are otherwise the same.
    """
    f32 = jnp.float32
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=f32)
    logits = logits * (1 / math.sqrt(q.shape[-1]))
    if seen is not None:
        logits = jnp.where(seen[:, None], logits, UNSEEN)
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1).transpose(0, 2, 1)[..., None]
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v, preferred_element_type=f32)
    return (mixed / total).astype(v.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation in float32, in two passes, so that a large mean does not spoil it.

    Attributes:
        eps: added to the variance.
        affine: whether parameters `scale` and `bias` follow.
        dtype: of the result.

    Source: Ba et al. 2016 (arXiv:1607.06450), equation 4.
    """

    eps: float = 1e-5
    affine: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        """Normalises x [B, N, C] over C."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + self.eps)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
            y = y * scale[None, None] + self.param("bias", zeros, x.shape[-1:])[None, None]
        return y.astype(self.dtype)


class Attention(nn.Module):
    """Attention of tokens [B, N, C] to a context [B, M, D], or to themselves.

    Attributes:
        heads: number of them; they divide C.
        bias: of the projections to queries, keys and values; the one out of it has a bias always.
        dropout: rate on what is added to the tokens, of calls with keys.
        qkv_init: of the kernel [C, 3C] that queries, keys and values share without a context.
        dtype: compute dtype.
    """

    heads: int
    bias: bool = False
    dropout: float = 0.0
    qkv_init: Callable[..., Array] = fan_avg_qkv
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, context=None, dropout_keys=None, beside=None):
        """Returns [B, N, C].

        Args:
            x: [B, N, C].
            context: [B, M, D] tokens that x attends to; None: x attends to itself.
            dropout_keys: [B], one key per sample; None for no dropout.
            beside: [B, M, D] further tokens that x attends to beside itself; without a context.

        Raises:
            ValueError: heads do not divide C.
        """
        width = x.shape[-1]
        check_divides("heads", self.heads, width)
        dense = functools.partial(nn.Dense, kernel_init=fan_avg, dtype=self.dtype)
        if context is None:
            init = dict(kernel_init=self.qkv_init, use_bias=self.bias)
            q, k, v = jnp.split(dense(3 * width, **init, name="qkv")(x), 3, axis=-1)
            if beside is not None:
                more = jnp.split(dense(2 * width, **init, name="kv")(beside), 2, axis=-1)
                k, v = (jnp.concatenate(both, axis=1) for both in zip((k, v), more, strict=True))
        else:
            q = dense(width, use_bias=self.bias, name="q")(x)
            k, v = (dense(width, use_bias=self.bias, name=name)(context) for name in "kv")
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1) for part in (q, k, v))
        mixed = dense(width, name="out")(attention(q, k, v).reshape(x.shape))
        return Dropout(self.dropout, name="dropout")(mixed, dropout_keys)


class FeedForward(nn.Module):
    """Two dense layers with several times the width between them.

    Attributes:
        activation: a name in ACTIVATIONS, or "geglu": half of the hidden features gate the others.
        expansion: hidden features (that are gated) in units of C.
        dropout: rate on the hidden features, of calls with keys.
        dtype: compute dtype.
    """

    activation: str = "geglu"
    expansion: int = 4
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, dropout_keys=None):
        """Maps [B, N, C] to [B, N, C]."""
        hidden, gated = self.expansion * x.shape[-1], self.activation == "geglu"
        dense = functools.partial(nn.Dense, kernel_init=fan_avg, dtype=self.dtype)
        h = dense(hidden * (2 if gated else 1), name="in")(x)
        if gated:
            h, gate = jnp.split(h, 2, axis=-1)
            h = h * gelu(gate)
        else:
            h = ACTIVATIONS[self.activation](h)
        h = Dropout(self.dropout, name="dropout")(h, dropout_keys)
        return dense(x.shape[-1], name="out")(h)
