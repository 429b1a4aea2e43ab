"""Decoding in strips: the picture of the whole decoder, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax.networks import strips
from ddim_jax.networks.autoencoder import AutoencoderKL
from tests.latent_networks import CASES, random

CASE = CASES["autoencoder"]


@pytest.mark.parametrize("levels, rows", [(1, 10), pytest.param(2, 12, marks=pytest.mark.slow)])
def test_equals_the_whole(levels, rows):
    """Strips that do not fill a picture of 36 x 24, and strips that do."""
    params = CASE.params()
    z = random("z", 2, 9, 6, 4)
    whole = functools.partial(CASE.net.apply, method="decode")
    expected = jax.jit(whole)({"params": params}, z)
    found = jax.jit(lambda z: strips.decode(CASE.net, params, z, levels, rows))(z)
    assert found.shape == (2, 36, 24, 3) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_takes_less_memory():
    net = AutoencoderKL(widths=(16, 16), groups=4, num_blocks=0, attention=False)
    z = jax.ShapeDtypeStruct((1, 256, 64, 4), jnp.float32)
    picture = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), picture)["params"]

    def temporaries(decode):
        return jax.jit(decode).lower(params, z).compile().memory_analysis().temp_size_in_bytes

    whole = temporaries(lambda params, z: net.apply({"params": params}, z, method="decode"))
    in_strips = temporaries(lambda params, z: strips.decode(net, params, z, 1, 32))
    assert in_strips < whole / 2


@pytest.mark.parametrize(
    "levels, rows, message",
    [
        (1, 7, r"rows must be a multiple of 2 = 2 \*\* 1 levels, got 7"),
        (2, 6, r"rows must be a multiple of 4 = 2 \*\* 2 levels, got 6"),
        (1, 0, "rows must be a multiple of 2 .* got 0"),
        (3, 8, r"levels in strips must be 1\.\.2 of 3, got 3"),
    ],
)
def test_strips_that_there_are_not(levels, rows, message):
    with pytest.raises(ValueError, match=message):
        strips.decode(CASE.net, {}, jnp.zeros((1, 2, 2, 4)), levels, rows)
