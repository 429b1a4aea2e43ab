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


@pytest.mark.parametrize("rows", [8, 10, 64])
def test_equals_the_whole(rows):
    """Strips that fill the picture of 36 x 24, that do not, and one that is larger than it."""
    params = CASE.params()
    z = random("z", 2, 9, 6, 4)
    whole = functools.partial(CASE.net.apply, method="decode")
    expected = jax.jit(whole)({"params": params}, z)
    found = jax.jit(lambda z: strips.decode(CASE.net, params, z, rows))(z)
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
    in_strips = temporaries(lambda params, z: strips.decode(net, params, z, 32))
    assert in_strips < whole / 2


@pytest.mark.parametrize("rows, widths", [(7, (8, 8)), (0, (8, 8)), (8, (8,))])
def test_strips_that_there_are_not(rows, widths):
    net = AutoencoderKL(widths=widths, groups=4)
    with pytest.raises(ValueError, match=f"got {rows} rows and {len(widths)} levels"):
        strips.decode(net, {}, jnp.zeros((1, 2, 2, 4)), rows)
