import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import codecs, data
from tests.errors import rejects

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
