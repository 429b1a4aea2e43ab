"""Random changes of pictures that the network is told of, so that it draws none of them.

    config.data.augment = dict(name="edm", probability=0.12)
    config.model.augment = 9                                    # how many numbers it is told

Each operation happens to a picture with that probability, by random amounts w, all independent. The
amounts, 0 for what did not happen, are the network's input "augment", zeros when it draws.

    operation        told              does
    xflip            w                 mirrors, always for half of the pictures
    yflip            w                 turns upside down, half of the times
    rotate_int       w = 1, 2; 2, 3    w quarter turns, w = 0..3
    translate_int    w_x, w_y          moves by whole pixels, up to 1/8 of a side, w in -1..1
    scale            w                 scales by 2^(0.2 w)                           w ~ N(0, 1)
    rotate_frac      cos w - 1, sin w  turns counterclockwise by an angle w
    aniso            w cos r, w sin r  stretches by 2^(0.2 w), and across by 1 / that, w ~ N(0, 1);
                                       half of the times along an angle r
    translate_frac   w_x, w_y          moves by w / 8 of a side                      w ~ N(0, 1)
    brightness       w                 adds 0.2 w to pictures in -1..1               w ~ N(0, 1)
    contrast         w                 multiplies by 2^(0.5 w)                       w ~ N(0, 1)
    lumaflip         w                 inverts the luma, half of the times
    hue              cos w - 1, sin w  turns colours by an angle w about grey
    saturation       w                 multiplies what is not grey by 2^w            w ~ N(0, 1)

What scales, turns, stretches and moves is one map, for which pictures are continued by reflection
and resampled at twice their size between wavelet filters (sym6): without it nothing changes.

Sources: Karras et al. 2022 (arXiv:2206.00364), appendix F.2, table 6 and the authors' code, whose
training has the operations of `GEOMETRIC`; Karras et al. 2020 (arXiv:2006.06676), appendix B.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.names import check_range

Array = Any
GEOMETRIC = ("xflip", "yflip", "scale", "rotate_frac", "aniso", "translate_frac")
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""Low-pass filter of the wavelet: a + b = 0 mod 2 apart it is orthogonal to itself."""
MARGIN = 3
"""Pixels around a picture that its last filter looks at."""
MOST = 1 / 8
LUMA = np.float32([1, 1, 1, 0]) / np.sqrt(3, dtype=np.float32)
EXACT = jax.lax.Precision.HIGHEST


class Augmentation(NamedTuple):
    """Changes pictures, and says how.

    Attributes:
        size: how many numbers the network is told.
        apply: (keys [B], pictures float [B, H, W, C] in -1..1) -> pictures, told [B, size]; of
            clips [B, T, H, W, C] the same happens to all frames of one.
    """

    size: int
    apply: Callable[[Array, Array], tuple[Array, Array]]


def none(size: int) -> Augmentation:
    """Changes nothing, and says so to a network that is told `size` numbers."""
    return Augmentation(size, lambda keys, x: (x, jnp.zeros((len(x), size))))


def edm(*, probability: float = 0.12, operations: Sequence[str] = GEOMETRIC) -> Augmentation:
    """EDM's augmentation.

    Args:
        probability: of each operation; at 0 none happens.
        operations: those of the module's table; they happen, and are told, in its order.

    Raises:
        ValueError: a probability out of range, an unknown operation or none.

    Source: Karras et al. 2022, appendix F.2.
    """
    check_range("config.data.augment.probability", probability, "[0, 1]", "0.12 is usual")
    unknown = sorted(set(operations) - set(OPERATIONS))
    if unknown or not operations:
        raise ValueError(
            f"config.data.augment.operations must be some of {', '.join(OPERATIONS)}, got "
            f"{unknown[0] if unknown else operations!r}"
        )
    chosen = [name for name in OPERATIONS if name in operations]
    size = sum(OPERATIONS[name].told for name in chosen)

    def one(key: Array, x: Array) -> tuple[Array, Array]:
        place, colour, told = jnp.eye(3), jnp.eye(4), []
        for name in chosen:
            number, operation = [*OPERATIONS].index(name), OPERATIONS[name]
            gate, key_of = jax.random.split(jax.random.fold_in(key, number))
            rate = float(probability > 0) if name == "xflip" else probability
            on = jax.random.uniform(gate) < rate
            numbers, change = operation.draw(key_of, on.astype(x.dtype), x.shape)
            told += numbers
            if operation.kind == "pixels":
                x = change(x)
            elif operation.kind == "place":
                place = jnp.matmul(place, change, precision=EXACT)
            else:
                colour = jnp.matmul(change, colour, precision=EXACT)
        kinds = {OPERATIONS[name].kind for name in chosen}
        x = placed(x, place) if "place" in kinds else x
        x = coloured(x, colour) if "colour" in kinds else x
        return x, jnp.stack(told)

    def apply(keys: Array, x: Array) -> tuple[Array, Array]:
        if x.ndim == 4:
            return jax.vmap(one)(keys, x)
        changed, told = jax.vmap(jax.vmap(one, in_axes=(None, 0)))(keys, x)
        return changed, told[:, 0]

    return Augmentation(size, apply)


class Operation(NamedTuple):
    """One row of the table.

    Attributes:
        kind: what `draw` returns: "pixels", a function of the picture; "place", a matrix [3, 3]
            from places (x, y, 1) of the new picture to those of the old, in pixels from its centre;
            "colour", a matrix [4, 4] of (red, green, blue, 1).
        told: how many numbers.
        draw: (key, 1.0 where it happens and 0.0 elsewhere, shape (H, W, C)) -> numbers, change.
    """

    kind: str
    told: int
    draw: Callable[[Array, Array, tuple], tuple[list[Array], Any]]


def _mirror(key, on, shape, *, axis):
    w = on * jax.random.randint(key, (), 0, 2)
    return [w], lambda x: jnp.where(w == 1, jnp.flip(x, axis), x)


def _quarter_turns(key, on, shape):
    if shape[0] != shape[1]:
        raise ValueError(f"rotate_int is of square pictures, got {shape[0]} x {shape[1]}; drop it")
    w = on * jax.random.randint(key, (), 0, 4)
    across, down = (w == 1) | (w == 2), (w == 2) | (w == 3)

    def turned(x):
        x = jnp.where(across, x[:, ::-1], x)
        x = jnp.where(down, x[::-1], x)
        return jnp.where((w == 1) | (w == 3), jnp.swapaxes(x, 0, 1), x)

    return [across.astype(w.dtype), down.astype(w.dtype)], turned


def _whole_pixels(key, on, shape):
    w = on * jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
    most = MOST * np.float32([shape[1], shape[0]])
    steps = jnp.round(w * most).astype(jnp.int32)
    rows = _reflected(jnp.arange(shape[0]) + steps[1], shape[0])  # y counts upwards here
    columns = _reflected(jnp.arange(shape[1]) - steps[0], shape[1])
    return list(steps / most), lambda x: x[rows][:, columns]


def _scale(key, on, shape):
    w = on * jax.random.normal(key)
    return [w], _diagonal(2 ** (-0.2 * w), 2 ** (-0.2 * w))


def _turn(key, on, shape):
    w = on * jax.random.uniform(key, minval=-np.pi, maxval=np.pi)
    return [jnp.cos(w) - 1, jnp.sin(w)], _rotation(w)


def _stretch(key, on, shape):
    amount, along, angle = jax.random.split(key, 3)
    w = on * jax.random.normal(amount)
    r = jax.random.uniform(angle, minval=-np.pi, maxval=np.pi)
    r = jnp.where(jax.random.uniform(along) < 0.5, r, 0.0)
    change = _diagonal(2 ** (-0.2 * w), 2 ** (0.2 * w))
    for one, other in ((_rotation(-r), change), (None, _rotation(r))):
        change = jnp.matmul(change if one is None else one, other, precision=EXACT)
    return [w * jnp.cos(r), w * jnp.sin(r)], change


def _move(key, on, shape):
    w = on * jax.random.normal(key, (2,))
    steps = MOST * w * np.float32([shape[1], shape[0]])
    return list(w), jnp.eye(3).at[:2, 2].set(-steps)


def _brightness(key, on, shape):
    w = on * jax.random.normal(key)
    return [w], jnp.eye(4).at[:3, 3].set(0.2 * w)


def _contrast(key, on, shape):
    w = on * jax.random.normal(key)
    return [w], _diagonal(*[2 ** (0.5 * w)] * 3)


def _luma_flip(key, on, shape):
    w = on * jax.random.randint(key, (), 0, 2)
    return [w], jnp.eye(4) - 2 * w * np.outer(LUMA, LUMA)


def _hue(key, on, shape):
    w = on * jax.random.uniform(key, minval=-np.pi, maxval=np.pi)
    x, y, z, _ = LUMA
    cross = np.float32([[0, -z, y, 0], [z, 0, -x, 0], [-y, x, 0, 0], [0, 0, 0, 0]])
    grey = np.outer(LUMA, LUMA) + np.diag(np.float32([0, 0, 0, 1]))
    turned = jnp.cos(w) * (np.eye(4, dtype=np.float32) - grey) + jnp.sin(w) * cross + grey
    return [jnp.cos(w) - 1, jnp.sin(w)], turned


def _saturation(key, on, shape):
    w = on * jax.random.normal(key)
    grey = np.outer(LUMA, LUMA) + np.diag(np.float32([0, 0, 0, 1]))
    return [w], grey + 2**w * (np.eye(4, dtype=np.float32) - grey)


OPERATIONS = {
    "xflip": Operation("pixels", 1, functools.partial(_mirror, axis=1)),
    "yflip": Operation("pixels", 1, functools.partial(_mirror, axis=0)),
    "rotate_int": Operation("pixels", 2, _quarter_turns),
    "translate_int": Operation("pixels", 2, _whole_pixels),
    "scale": Operation("place", 1, _scale),
    "rotate_frac": Operation("place", 2, _turn),
    "aniso": Operation("place", 2, _stretch),
    "translate_frac": Operation("place", 2, _move),
    "brightness": Operation("colour", 1, _brightness),
    "contrast": Operation("colour", 1, _contrast),
    "lumaflip": Operation("colour", 1, _luma_flip),
    "hue": Operation("colour", 2, _hue),
    "saturation": Operation("colour", 1, _saturation),
}
"""By name, in the order in which they happen and are told."""
AUGMENTATIONS = {"edm": edm}
"""By the name that configs use."""


def _diagonal(*values):
    return jnp.diag(jnp.stack([*values, jnp.ones_like(values[0])]))


def _rotation(angle):
    cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    return jnp.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]).reshape(3, 3)


def _reflected(places, size):
    """Where in 0..size - 1 places come to lie when the outside mirrors the inside."""
    return size - 1 - abs(size - 1 - places % (2 * size - 2))


def placed(x: Array, matrix: Array) -> Array:
    """A picture [H, W, C] whose place p holds what was at `matrix p`; see `Operation`."""
    height, width, channels = x.shape
    double = jnp.einsum("yh,hwc,xw->yxc", _up(height), x, _up(width), precision=EXACT)
    rows, columns = ((np.arange(2 * n + 4 * MARGIN) + 1 - n) / 2 - MARGIN for n in (height, width))
    places = np.stack([*np.broadcast_arrays(columns[None], rows[:, None], np.float64(1))], axis=-1)
    sources = jnp.einsum("ij,yxj->yxi", matrix, np.float32(places), precision=EXACT)
    sources = 2 * sources[..., :2] + np.float32([width - 1, height - 1])[None, None]
    first = jnp.floor(sources)
    part, first = sources - first, first.astype(jnp.int32)
    flat, value = double.reshape(-1, channels), 0.0
    for down in (0, 1):
        for right in (0, 1):
            row = (first[..., 1] + down) % double.shape[0]
            column = (first[..., 0] + right) % double.shape[1]
            weight = abs(1 - right - part[..., 0]) * abs(1 - down - part[..., 1])
            value = value + weight[..., None] * flat[row * double.shape[1] + column]
    return jnp.einsum("hy,yxc,wx->hwc", _down(height), value, _down(width), precision=EXACT)


@functools.cache
def _up(size: int) -> np.ndarray:
    """[4 (size - 1), size]: a period of the reflected signal at twice its rate."""
    period = 4 * (size - 1)
    matrix = np.zeros((period, size), np.float32)
    for n in range(period):
        for tap, weight in enumerate(SYM6):
            if (5 + n - tap) % 2 == 0:
                matrix[n, _reflected((5 + n - tap) // 2, size)] += weight
    return matrix


@functools.cache
def _down(size: int) -> np.ndarray:
    """[size, 2 size + 4 MARGIN]: back to the signal's own rate, without the margins."""
    matrix = np.zeros((size, 2 * size + 4 * MARGIN), np.float32)
    for row in range(size):
        matrix[row, 2 * row + 1 : 2 * row + 1 + len(SYM6)] = SYM6
    return matrix


def coloured(x: Array, matrix: Array) -> Array:
    """A picture [H, W, C], C = 3 or 1, of changed colours; of a grey one their mean."""
    if x.shape[-1] == 1:
        mean = jnp.mean(matrix[:3], axis=0)
        return x * jnp.sum(mean[:3]) + mean[3]
    mixed = jnp.einsum("ij,yxj->yxi", matrix[:3, :3], x, precision=EXACT)
    return mixed + matrix[:3, 3][None, None]
