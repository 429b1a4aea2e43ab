import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import codecs, data, parallel
from ddim_jax.checkpoints.parts import network_shapes
from ddim_jax.networks.autoencoder import AutoencoderKL
from tests.errors import rejects
from tests.latent_networks import random
from tests.selection import slow_but

LEVELS = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_pixels_round_trip(convert):
    codec = codecs.pixels((8, 8, 1))
    assert codec.sample_shape == codec.picture_shape == (8, 8, 1) and codec.params is None
    pictures = convert(LEVELS.reshape(4, 8, 8, 1))
    x = codec.encode(codec.params, pictures, None)
    assert type(x) is type(pictures) and x.dtype == np.float32 and x.shape == (4, 8, 8, 1)
    np.testing.assert_allclose(np.ravel(x), np.linspace(-1, 1, 256), atol=1e-6)
    back = codec.decode(codec.params, x)
    assert back.dtype == np.uint8 and np.array_equal(back, pictures)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_pixels_leave_samples_as_they_are(dtype):
    codec, x = codecs.pixels((2, 2, 3)), jnp.full((1, 2, 2, 3), 1.5, dtype)
    assert codec.encode(None, x, jax.random.key(0)) is x


def test_pixels_under_jit_and_of_trajectories():
    codec = codecs.pixels((8, 8, 1))
    pictures = LEVELS.reshape(2, 2, 8, 8, 1)
    through = jax.jit(lambda u: codec.decode(None, codec.encode(None, u, None)))
    assert np.array_equal(through(pictures), pictures)


def test_pixels_refuse_other_shapes_and_integers():
    codec = codecs.pixels((8, 8, 1))
    with rejects(ValueError, "pictures must be [..., 8, 8, 1]", "[4, 8, 8, 3]", "resize"):
        codec.encode(None, np.zeros((4, 8, 8, 3), np.uint8), None)
    with rejects(ValueError, "samples must be [..., 8, 8, 1]", "[8, 1]"):
        codec.decode(None, np.zeros((8, 1), np.float32))
    with rejects(ValueError, "takes uint8", "int32"):
        codec.encode(None, np.zeros((4, 8, 8, 1), np.int32), None)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_unit_range_round_trip(convert):
    levels = convert(LEVELS)
    x = codecs.to_unit_range(levels)
    assert type(x) is type(levels) and x.dtype == np.float32
    np.testing.assert_allclose(np.asarray(x), np.linspace(-1, 1, 256), atol=1e-6)
    back = codecs.to_uint8(x)
    assert type(back) is type(levels) and back.dtype == np.uint8
    assert np.array_equal(np.asarray(back), LEVELS)
    outside = convert(np.array([-7, -1.001, 1.001, 9, 1 / 255, 2.9 / 255], np.float32))
    assert [*np.asarray(codecs.to_uint8(outside))] == [0, 0, 255, 255, 128, 129]


def test_conversions_under_jit_and_in_bfloat16():
    through = jax.jit(lambda u: codecs.to_uint8(codecs.to_unit_range(u)))
    assert np.array_equal(through(LEVELS), LEVELS)
    half = jnp.array([-1, 0.5, 1], jnp.bfloat16)
    assert [*np.asarray(codecs.to_uint8(half))] == [0, 191, 255]
    assert [*codecs.to_uint8(np.asarray(half))] == [0, 191, 255]


def test_conversions_refuse_what_is_converted():
    with rejects(ValueError, "takes uint8", "got float32", "no conversion"):
        codecs.to_unit_range(np.zeros(3, np.float32))
    with rejects(ValueError, "floating point", "got uint8", "no conversion"):
        codecs.to_uint8(np.zeros(3, np.uint8))


def test_data_offers_the_conversions():
    assert (data.to_uint8, data.to_unit_range) == (codecs.to_uint8, codecs.to_unit_range)


@pytest.mark.parametrize("in_strips", slow_but([False, True], [True]))
def test_devices_decode_each_their_own_pictures(monkeypatch, in_strips):
    """Two devices and one give the same, of any number of pictures, whole or in strips."""
    net = AutoencoderKL(widths=(8, 8), num_blocks=0, groups=4, attention=False)
    params = jax.tree.map(
        lambda leaf: random(str(leaf.shape), *leaf.shape) / 4, network_shapes(net, (16, 24, 3))
    )
    monkeypatch.setattr(codecs, "MOST_PIXELS", 64 if in_strips else 2**20)
    z, devices = random("z", 5, 8, 12, 4), jax.local_devices()
    whole = jax.jit(lambda z: net.apply({"params": params}, z, method="decode"))(z)
    found = {}
    for count in (1, 2):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
        codec = codecs.latents(net, (16, 24, 3), params)
        found[count] = [codec.decode(params, z[:number]) for number in (5, 1)]
        one, first = found[count]
        np.testing.assert_allclose(np.int32(one), codecs.to_uint8(whole), atol=1)
        np.testing.assert_array_equal(one[:1], first)
    assert 10 < np.std(found[1][0]) and 0 < np.mean(found[1][0] % 255 > 0)
    np.testing.assert_array_equal(found[1][0], found[2][0])
    rows = parallel.shard(z[:2], parallel.make_mesh(devices))
    program = codecs._decoder(net, in_strips, parallel.make_mesh(devices))
    text = program.lower(params, rows).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
