"""Codecs: what a network sees (samples) to and from what a person sees (uint8 pictures).

`encode(params, pictures, key)` makes samples `[B, *sample_shape]`, `decode(params, x)` makes uint8
pictures `[B, *picture_shape]`. Both run inside jit. Samplers, losses and solvers see samples only
and never know which codec made them.

`pixels` is the codec of networks that work on the pixels themselves: 0 <-> -1 and 255 <-> 1.
`to_unit_range` and `to_uint8` are its formulas. They take numpy or JAX arrays and return the same
kind, and `to_uint8(to_unit_range(u)) == u` exactly.

`latents` is the codec of networks that work on what an autoencoder makes of the pixels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import parallel
from ddim_jax.networks import strips

Array = Any
MOST_PIXELS = 2**20
"""Of a picture that is decoded as a whole, 1024 x 1024; a larger one is in strips."""
TOGETHER = 2**17
"""Pixels that are encoded at a time: two pictures of 256 x 256, or 128 of 32 x 32."""


class Codec(NamedTuple):
    """How samples and pictures are converted into each other.

    Attributes:
        sample_shape: of one sample, without the batch.
        picture_shape: of one picture, (H, W, C), without the batch.
        encode: `(params, pictures, key) -> x`, uint8 [B, *picture_shape] to float
            [B, *sample_shape]; the key is for codecs that draw, None for those that do not.
        decode: `(params, x) -> pictures`, float [B, *sample_shape] to uint8 [B, *picture_shape].
        make: `(picture_shape, params) -> Codec`, the same for other pictures or parameters.
        params: the first argument of both; None for a codec without parameters.
        moments: `(params, pictures) -> [B, ..., 2 C]`, mean and std of each of a sample's C
            channels, for codecs that draw; None for those that do not.
        unrounded: `(params, x) -> pictures`, float [B, *picture_shape] in about [-1, 1], of which
            `decode` makes uint8; for programs that round elsewhere.
    """

    sample_shape: tuple[int, ...]
    picture_shape: tuple[int, ...]
    encode: Callable[[Any, Array, Array | None], Array]
    decode: Callable[[Any, Array], Array]
    make: Callable[[tuple[int, ...], Any], "Codec"]
    params: Any = None
    moments: Callable[[Any, Array], Array] | None = None
    unrounded: Callable[[Any, Array], Array] = lambda params, x: x

    def at(self, height: int, width: int) -> "Codec":
        """The codec of pictures of another size."""
        return self.make((height, width, self.picture_shape[-1]), self.params)

    def given(self, params: Any) -> "Codec":
        """The codec with other parameters."""
        return self.make(self.picture_shape, params)


def pixels(image_shape: tuple[int, ...]) -> Codec:
    """Returns the codec of samples that are the pictures themselves, in [-1, 1].

    `encode` converts uint8 with `to_unit_range` and returns floating point arrays as they are:
    they are samples already. `decode` is `to_uint8`. Neither uses parameters or a key. Both raise
    ValueError for arrays that do not end in `image_shape`.

    Args:
        image_shape: (H, W, C) of one picture.
    """
    shape = tuple(image_shape)

    def encode(params: Any, pictures: Array, key: Array | None = None) -> Array:
        _check_shape(pictures, shape, "pictures")
        return to_unit_range(pictures) if pictures.dtype.kind in "biu" else pictures

    def decode(params: Any, x: Array) -> Array:
        _check_shape(x, shape, "samples")
        return to_uint8(x)

    return Codec(shape, shape, encode, decode, lambda shape, params: pixels(shape))


def latents(autoencoder: Any, picture_shape: tuple[int, ...], params: Any = None) -> Codec:
    """Returns the codec of an autoencoder's latents, which have about unit variance.

    `encode` returns the mean of a picture's latents, or with keys [B] a sample of them. Instead of
    pictures it takes what `moments` made of them, and floating point arrays that end in the
    latents' shape are returned as they are: they are samples already.
    `decode` takes as many pictures at a time as there are devices, so that any number fits; within
    a program, one after the other. Both raise ValueError for arrays that do not end in the codec's
    shapes.

    Args:
        autoencoder: an `AutoencoderKL` or `AutoencoderTiny`.
        picture_shape: (H, W, C) of one picture.
        params: of the autoencoder.

    Raises:
        ValueError: H or W is not divisible by the autoencoder's factor, mostly 8.
    """
    shape, factor = tuple(picture_shape), autoencoder.factor
    if odd := [side for side in shape[:2] if side % factor or side < factor]:
        raise ValueError(
            f"height and width must be multiples of {factor} for latents, got {odd[0]}; use "
            f"{max(1, round(odd[0] / factor)) * factor}"
        )
    sample_shape = (shape[0] // factor, shape[1] // factor, autoencoder.latent_channels)
    in_strips = shape[0] * shape[1] > MOST_PIXELS and hasattr(autoencoder, "decode_last")
    placed: list = []  # parameters, the same on all devices, and those devices

    def moments(params: Any, pictures: Array) -> Array:
        _check_shape(pictures, shape, "pictures")
        return _encoder(autoencoder)(params, pictures)

    def encode(params: Any, pictures: Array, key: Array | None = None) -> Array:
        found = tuple(pictures.shape[-3:]) if pictures.dtype.kind == "f" else ()
        if found == sample_shape:
            return pictures
        both = found == (*sample_shape[:2], 2 * sample_shape[2])
        return drawn(pictures if both else moments(params, pictures), key)

    def decode(params: Any, x: Array) -> Array:
        _check_shape(x, sample_shape, "samples")
        if isinstance(x, jax.core.Tracer):
            program = _decoder(autoencoder, in_strips)
            return jax.lax.map(lambda z: program(params, z[None])[0], x)
        if not placed or placed[0] is not params:
            mesh = parallel.make_mesh(jax.local_devices())
            placed[:] = params, parallel.replicate(params, mesh), mesh
        program = _decoder(autoencoder, in_strips, placed[2])
        return _in_parts(program, placed[1], np.asarray(x), placed[2])

    make = functools.partial(latents, autoencoder)

    def unrounded(params: Any, x: Array) -> Array:
        return autoencoder.apply({"params": params}, x, method="decode")

    return Codec(sample_shape, shape, encode, decode, make, params, moments, unrounded)


def drawn(moments: Array, keys: Array | None = None) -> Array:
    """Samples of latents, `mean + std * noise`; without keys their means.

    Args:
        moments: [B, h, w, 2 C], means and then standard deviations.
        keys: [B].

    Returns:
        [B, h, w, C].
    """
    mean, std = jnp.split(moments, 2, axis=-1)
    if keys is None:
        return mean
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys)
    return mean + std * noise


def _in_parts(program: Callable, params: Any, x: np.ndarray, mesh: Any) -> np.ndarray:
    """`program(params, x)` of as many rows at a time as the mesh has devices."""
    size, parts = mesh.size, []
    for first in range(0, len(x), size):
        rows = np.minimum(np.arange(first, first + size), len(x) - 1)
        parts.append(program(params, parallel.shard(x[rows], mesh)))
    return np.concatenate([np.asarray(part) for part in parts])[: len(x)]


@functools.lru_cache(maxsize=8)
def _encoder(autoencoder: Any) -> Callable[[Any, Array], Array]:
    """The jitted `(params, pictures) -> moments`, few pictures after the other."""

    def encode(params, pictures):
        def one(picture):
            x = picture[None]
            x = to_unit_range(x) if x.dtype == jnp.uint8 else x
            return jnp.concatenate(autoencoder.apply({"params": params}, x, method="encode"), -1)[0]

        few = max(1, TOGETHER // (pictures.shape[1] * pictures.shape[2]))
        return jax.lax.map(one, pictures, batch_size=min(few, len(pictures)))

    return jax.jit(encode)


@functools.lru_cache(maxsize=8)
def _decoder(autoencoder: Any, in_strips: bool, mesh: Any = None) -> Callable[[Any, Array], Array]:
    """The jitted `(params, latents) -> uint8 pictures`; of a mesh each device decodes its own."""

    def decode(params, z):
        if in_strips:
            return to_uint8(strips.decode(autoencoder, params, z))
        return to_uint8(autoencoder.apply({"params": params}, z, method="decode"))

    return jax.jit(decode if mesh is None else parallel.by_rows(decode, mesh))


def to_unit_range(image: Array) -> Array:
    """Converts a uint8 array of any shape to float32 in [-1, 1].

    Args:
        image: numpy or JAX array, uint8.

    Raises:
        ValueError: `image` is not uint8 (it may have been converted already).
    """
    if image.dtype != np.uint8:
        raise ValueError(
            f"to_unit_range takes uint8 images, got {image.dtype}; "
            "images in [-1, 1] need no conversion, others convert with .astype('uint8') first"
        )
    return image.astype(np.float32) / 127.5 - 1


def to_uint8(x: Array) -> Array:
    """Converts a float array of any shape, in [-1, 1], to uint8: rounds and clips.

    Args:
        x: numpy or JAX array, floating point; values outside [-1, 1] are clipped.

    Raises:
        ValueError: `x` is not floating point (it may have been converted already).
    """
    # numpy gives bfloat16 the kind "V", so the check names the integer kinds
    if x.dtype.kind in "biu":
        raise ValueError(
            f"to_uint8 takes floating point images in [-1, 1], got {x.dtype}; "
            "integer images in 0..255 need no conversion"
        )
    xp = x.__array_namespace__()
    return xp.clip(xp.round((x.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def _check_shape(array: Array, shape: tuple[int, ...], what: str) -> None:
    if tuple(array.shape[array.ndim - len(shape) :]) != shape or array.ndim < len(shape):
        raise ValueError(
            f"{what} must be [..., {', '.join(map(str, shape))}], got {list(array.shape)}; "
            "crop and resize them first"
        )
