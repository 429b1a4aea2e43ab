"""Attention against its plain definition: values, derivatives both ways, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.networks.attention import Attention, FeedForward, attention

jit = jax.jit


def dense(q, k, v, seen=None):
    """The definition, all pairs at once."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    if seen is not None:
        logits = jnp.where(seen(jnp.arange(q.shape[1]))[:, None], logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


def test_equals_plain_softmax():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(0, s, (2, 7, 3, 5)).astype(np.float32) for s in (1, 6, 11))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k).astype(np.float64) / np.sqrt(5)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, v)
    np.testing.assert_allclose(jit(attention)(q, k, v), expected, atol=1e-4, rtol=1e-4)


@functools.cache
def arrays(queries, keys):
    """q, k, v, and a direction for each."""
    rng = np.random.default_rng(queries)
    sizes = 2 * (queries, keys, keys)
    return [rng.normal(size=(2, size, 2, 3)).astype(np.float32) for size in sizes]


def derivatives(function, queries, keys):
    """The value, its slope along the direction, the gradient, and the slope of the gradient."""
    q, k, v, *direction = arrays(queries, keys)

    def loss(q, k, v):
        return jnp.sin(function(q, k, v)).sum()

    def everything(*args):
        value, slope = jax.jvp(function, args, tuple(direction))
        grad = jax.grad(loss, argnums=(0, 1, 2))
        return value, slope, jax.jvp(grad, args, tuple(direction))

    return jit(everything)(q, k, v)


def earlier(places):
    """Which of 12 keys queries at these places see: those that are no later."""
    return (jnp.arange(12)[None] <= places[:, None])[None]


@pytest.mark.parametrize(
    "queries, keys, most, seen",
    [(12, 12, 72, None), (13, 7, 21, None), (5, 11, 3, None), (13, 12, 60, earlier)],
)
def test_any_number_of_tokens_in_blocks(queries, keys, most, seen):
    """Even, odd, a last block that is not full, fewer pairs than keys: all as the dense one."""
    blocks = functools.partial(attention, most=most, seen=seen)
    whole = functools.partial(dense, seen=seen)
    found, expected = (derivatives(f, queries, keys) for f in (blocks, whole))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_slopes_are_those_of_finite_differences():
    q, k, v, *direction = (np.asarray(a, np.float64) for a in arrays(13, 7))

    def value(step):
        moved = [a + step * d for a, d in zip((q, k, v), direction, strict=True)]
        logits = np.einsum("bqhd,bkhd->bhqk", *moved[:2]) / np.sqrt(3)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("bhqk,bkhd->bqhd", weights, moved[2])

    expected = (value(1e-5) - value(-1e-5)) / 2e-5
    found = derivatives(functools.partial(attention, most=21), 13, 7)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def temporaries(function, tokens):
    """Bytes that the compiled function of q, k, v needs beside arguments and results."""
    x = jax.ShapeDtypeStruct((1, tokens, 1, 8), jnp.float32)
    memory = jit(function).lower(x, x, x).compile().memory_analysis()
    return memory.temp_size_in_bytes


WAYS = {
    "value": lambda f: f,
    "gradient": lambda f: jax.grad(lambda *a: jnp.square(f(*a)).sum(), argnums=(0, 1, 2)),
    "slope": lambda f: lambda *a: jax.jvp(f, a, a),
    "slope of the gradient": lambda f: lambda *a: jax.jvp(WAYS["gradient"](f), a, a),
}


@pytest.mark.parametrize("way", WAYS)
def test_memory_grows_with_tokens_not_with_pairs(way):
    function = WAYS[way](functools.partial(attention, most=2**14))
    small, large = (temporaries(function, tokens) for tokens in (1022, 4094))
    assert large < 5 * small  # 4 times the tokens, 16 times the pairs
    assert large < 4 * 4094**2 / 8  # of one array of logits


def test_memory_is_bounded_by_default():
    grad = WAYS["gradient"](attention)
    assert temporaries(grad, 4095) < 4 * 4095**2  # of one array of logits; without blocks three


def test_heads_must_divide_the_width():
    x = jnp.zeros((1, 3, 10))
    with pytest.raises(ValueError, match="heads must divide the width 10, got 3"):
        jax.eval_shape(Attention(3).init, jax.random.key(0), x)


def test_layers_drop_by_row_keys():
    """Dropout of a row depends on its key alone; without keys there is none."""
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    x = jnp.ones((2, 3, 4))
    for layer in (Attention(2, dropout=0.5), FeedForward("gelu", dropout=0.5)):
        params = layer.init(jax.random.key(0), x)
        plain = layer.apply(params, x)
        np.testing.assert_array_equal(plain[0], plain[1])
        dropped = layer.apply(params, x, dropout_keys=keys)
        assert np.abs(dropped[0] - dropped[1]).max() > 1e-3
        alone = layer.apply(params, x[1:], dropout_keys=keys[1:])
        np.testing.assert_allclose(alone[0], dropped[1], atol=1e-6)
