"""EDM's augmentation: each operation by what the network is told of it, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from configs import cifar10_edm, cifar10_mean_flow
from ddim_jax import experiment, parallel
from ddim_jax.data import augmentation
from ddim_jax.data.augmentation import OPERATIONS, SYM6, edm
from ddim_jax.dropping import AUGMENT
from ddim_jax.losses.loss import conditions
from ddim_jax.training import loop, method
from tests.errors import rejects
from tests.tiny import tiny

COUNT = 16


def pictures(size=(12, 12), channels=3, count=COUNT):
    return np.random.default_rng(0).uniform(-1, 1, (count, *size, channels)).astype(np.float32)


def changed(operation, x, probability=1.0, seed=0):
    """What became of pictures, and what is told of it; by an operation, or several as "a, b"."""
    made = edm(probability=probability, operations=operation.split(", "))
    keys = jax.random.split(jax.random.key(seed), len(x))
    y, told = map(np.asarray, jax.jit(made.apply)(keys, x))
    assert told.shape == (len(x), made.size) and y.shape == x.shape
    return y, told


def test_nothing_changes_at_probability_zero():
    x, made = pictures(), edm(probability=0.0, operations=tuple(OPERATIONS))
    assert made.size == 19 and edm().size == 9
    y, told = jax.jit(made.apply)(jax.random.split(jax.random.key(1), COUNT), x)
    np.testing.assert_allclose(y, x, atol=1e-5)
    np.testing.assert_array_equal(told, 0)


@pytest.mark.parametrize("operation, axis", [("xflip", 1), ("yflip", 0)])
def test_mirrors_are_exact(operation, axis):
    x = pictures()
    y, told = changed(operation, x)
    assert 0 < told.sum() < COUNT
    for before, after, (w,) in zip(x, y, told, strict=True):
        np.testing.assert_array_equal(after, np.flip(before, axis) if w else before)


def test_quarter_turns_are_exact():
    x, seen = pictures(), set()
    y, told = changed("rotate_int", x)
    for before, after, numbers in zip(x, y, told, strict=True):
        turns = {(0, 0): 0, (1, 0): 1, (1, 1): 2, (0, 1): 3}[tuple(numbers)]
        np.testing.assert_array_equal(after, np.rot90(before, turns))
        seen.add(turns)
    assert seen == {0, 1, 2, 3}
    with rejects(ValueError, "rotate_int is of square pictures, got 12 x 8; drop it"):
        changed("rotate_int", pictures((12, 8)))


def test_moves_by_whole_pixels_are_exact():
    x = pictures((16, 24))
    y, told = changed("translate_int", x)
    for before, after, numbers in zip(x, y, told, strict=True):
        right, up = np.round(numbers * [24 / 8, 16 / 8]).astype(int)
        wide = np.pad(before, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(after, wide[4 + up :, 4 - right :][:16, :24])
    assert np.ptp(told) > 1


def by_hand(x, matrix):
    """The authors' procedure: pad, insert zeros, filter, sample, filter, leave every second."""
    height, width, channels = x.shape
    out = []
    for c in range(channels):
        image = np.pad(
            x[..., c].astype(np.float64), ((height - 1,) * 2, (width - 1,) * 2), "reflect"
        )
        for axis in (0, 1):
            spread = np.zeros([n * (1 + (axis == k)) for k, n in enumerate(image.shape)])
            spread[(slice(None, None, 2), slice(None))[:: 1 - 2 * axis]] = image
            filtered = np.apply_along_axis(lambda row: np.convolve(row, SYM6), axis, spread)
            image = np.take(filtered, np.arange(spread.shape[axis]) + 5, axis)
        size = 2 * height + 12, 2 * width + 12
        y, x_ = np.meshgrid(*(np.arange(n) + 0.5 - n / 2 for n in size), indexing="ij")
        to = matrix @ np.stack([(x_ + 0.5) / 2, (y + 0.5) / 2, np.ones(size)]).reshape(3, -1)
        places = [2 * to[k] - 0.5 + image.shape[1 - k] / 2 - 0.5 for k in (1, 0)]
        image = map_coordinates(image, places, order=1).reshape(size)
        for axis in (0, 1):
            filtered = np.apply_along_axis(
                lambda row: np.convolve(row, SYM6[::-1], "valid"), axis, image
            )
            image = np.take(filtered, np.arange(1, filtered.shape[axis], 2), axis)
        out.append(image)
    return np.stack(out, axis=-1)


def test_placing_is_the_authors_procedure():
    x, rng = pictures((10, 12), 2, 1)[0], np.random.default_rng(1)
    for matrix in (
        np.eye(3),
        *(np.eye(3) + rng.normal(size=(3, 3)) * [[0.2, 0.2, 1]] for _ in "ab"),
    ):
        matrix[2] = (0, 0, 1)
        found = augmentation.placed(jnp.asarray(x), jnp.float32(matrix))
        np.testing.assert_allclose(found, by_hand(x, matrix), atol=2e-5)
    np.testing.assert_allclose(augmentation.placed(x, jnp.eye(3)), x, atol=1e-6)


def rotation(angle):
    """Counterclockwise on a screen, of (x, y) with y downwards."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


MAPS = {
    "scale": lambda w: (2 ** (0.2 * w) * np.eye(2), [0, 0]),
    "rotate_frac": lambda c, s: (rotation(np.arctan2(s, c + 1)), [0, 0]),
    "aniso": lambda x, y: (
        rotation(np.arctan2(y, x))
        @ np.diag(2 ** (0.2 * np.hypot(x, y) * np.float64([1, -1])))
        @ rotation(-np.arctan2(y, x)),
        [0, 0],
    ),
    "translate_frac": lambda x, y: (np.eye(2), [8 * x, 8 * y]),
}
"""Of centred places, by what is told."""


@pytest.mark.parametrize("operation", MAPS)
def test_what_is_told_of_a_map_is_what_happened(operation):
    """By centre and spread of a blob in 64 x 64 pixels."""
    grid = np.stack(np.meshgrid(*[np.arange(64) - 31.5] * 2), axis=-1)
    centre, spread = np.array([3.0, -2.0]), np.array([[16.0, 5.0], [5.0, 7.0]])
    off = grid - centre
    blob = np.exp(-np.einsum("yxi,ij,yxj->yx", off, np.linalg.inv(spread), off) / 2)
    x = np.repeat(np.float32(blob)[None, ..., None], 6, axis=0)
    y, told = changed(operation, x, seed=3)
    for after, numbers in zip(y[..., 0].astype(np.float64), told, strict=True):
        maps = [MAPS[operation](*numbers.astype(np.float64))]
        if operation == "aniso":  # w along r is told as -w along the same line, backwards
            maps.append((np.linalg.inv(maps[0][0]), [0, 0]))
        mass = after / after.sum()
        mean = np.einsum("yx,yxi->i", mass, grid)
        found = np.einsum("yx,yxi,yxj->ij", mass, grid - mean, grid - mean)
        off = [
            max(
                np.abs(linear @ centre + shift - mean).max() / 0.15,  # the filter is not symmetric
                np.abs(linear @ spread @ linear.T - found).max() / 0.4,
            )
            for linear, shift in maps
        ]
        assert min(off) < 1


def test_maps_follow_one_another():
    """A picture is scaled, then turned, then moved."""
    x = pictures((64, 64), 1, 4)
    y, told = changed("scale, rotate_frac, translate_frac", x)
    for before, after, (w, cos, sin, *steps) in zip(x, y, np.float64(told), strict=True):
        (scaled, _), (turned, _) = MAPS["scale"](w), MAPS["rotate_frac"](cos, sin)
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = turned @ scaled, MAPS["translate_frac"](*steps)[1]
        expected = augmentation.placed(before, jnp.float32(np.linalg.inv(matrix)))
        np.testing.assert_allclose(after, expected, atol=1e-3)


def test_what_is_told_of_colours_is_what_happened():
    x = pictures()
    grey = x.mean(-1, keepdims=True)
    chroma = x - grey
    for operation, wanted in {
        "brightness": lambda w: x + 0.2 * w,
        "contrast": lambda w: x * 2 ** (0.5 * w),
        "lumaflip": lambda w: chroma + (1 - 2 * w) * grey,
        "saturation": lambda w: grey + 2**w * chroma,
    }.items():
        y, told = changed(operation, x)
        np.testing.assert_allclose(y, wanted(told[:, None, None]), rtol=1e-4, atol=1e-5)
        assert np.ptp(told) > 0.5
    y, told = changed("brightness, contrast", x)  # one after the other
    b, c = told[:, :1, None, None], told[:, 1:, None, None]
    np.testing.assert_allclose(y, (x + 0.2 * b) * 2 ** (0.5 * c), rtol=1e-4, atol=1e-5)
    y, told = changed("hue", x)
    turned = y - y.mean(-1, keepdims=True)
    np.testing.assert_allclose(y.mean(-1, keepdims=True), grey, atol=1e-5)
    cos, sin = (1 + told[:, 0])[:, None, None], told[:, 1][:, None, None]
    norm = (chroma**2).sum(-1)
    np.testing.assert_allclose((turned * chroma).sum(-1), cos * norm, atol=1e-4)
    across = np.cross(chroma, turned).sum(-1) / np.sqrt(3)
    np.testing.assert_allclose(across, sin * norm, atol=1e-4)


def test_grey_pictures_have_no_colours_to_turn():
    x = pictures(channels=1)
    for operation, wanted in {
        "brightness": lambda w: x + 0.2 * w, "contrast": lambda w: x * 2 ** (0.5 * w),
        "lumaflip": lambda w: (1 - 2 * w) * x, "saturation": lambda w: x,
    }.items():  # fmt: skip
        y, told = changed(operation, x)
        np.testing.assert_allclose(y, wanted(told[:, None, None]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(changed("hue", x)[0], x, atol=1e-5)


def test_how_often_each_operation_happens():
    names, x = tuple(OPERATIONS), pictures((4, 4), 3, 4000)
    made = edm(probability=0.12, operations=names)
    _, told = jax.jit(made.apply)(jax.random.split(jax.random.key(0), len(x)), x)
    rates, first = {}, 0
    for name in names:
        numbers = np.asarray(told)[:, first : first + OPERATIONS[name].told]
        rates[name] = np.any(numbers != 0, axis=1).mean()
        first += OPERATIONS[name].told
    wanted = dict.fromkeys(names, 0.12) | {"xflip": 0.5, "yflip": 0.06, "rotate_int": 0.09}
    wanted |= {"lumaflip": 0.06, "translate_int": 0}  # an eighth of 4 pixels is half of one
    rates["translate_int"] = 0
    for name in names:  # five standard deviations
        assert rates[name] == pytest.approx(wanted[name], abs=0.04 if name == "xflip" else 0.026)


def test_a_picture_is_changed_by_its_key_alone():
    x, keys = pictures(), jax.random.split(jax.random.key(0), COUNT)
    apply = jax.jit(edm(probability=0.5).apply)
    whole, told = apply(keys, x)
    half, of_half = apply(keys[8:], x[8:])
    np.testing.assert_allclose(half, whole[8:], atol=1e-5)
    np.testing.assert_array_equal(of_half, told[8:])


def test_all_frames_of_a_clip_change_alike():
    x, made = pictures(count=3), edm(probability=1.0, operations=("xflip", "scale", "brightness"))
    keys = jax.random.split(jax.random.key(0), 3)
    y, told = jax.jit(made.apply)(keys, x)
    clips = np.repeat(x[:, None], 4, axis=1)
    moving, also_told = jax.jit(made.apply)(keys, clips)
    np.testing.assert_allclose(moving, np.repeat(np.asarray(y)[:, None], 4, axis=1), atol=1e-5)
    np.testing.assert_allclose(also_told, told, atol=1e-6)


def test_networks_are_told_and_draw_as_if_nothing_had_happened():
    for config, size in ((cifar10_edm.get_config(), 9), (cifar10_mean_flow.get_config(), 6)):
        config = tiny(config, levels=1)
        model = experiment.build(config)
        assert method.build_augmentation(config, model).size == size
        inputs = model.conditions(3, model.recipe, None, model.recipe.table(model.schedule))
        np.testing.assert_array_equal(inputs["inputs"][AUGMENT], np.zeros((3, size)))
        config.data.augment = None  # as of a student of such a network
        made, x = method.build_augmentation(config, model), pictures()
        same, told = made.apply(None, x)
        assert same is x and told.shape == (COUNT, size) and not np.any(told)


def test_it_is_never_dropped():
    keys = jax.random.split(jax.random.key(0), 4)
    batch = {"label": np.arange(4), AUGMENT: np.ones((4, 9), np.float32)}
    dropped = conditions(batch, keys, {"label": 10}, 1.0)
    np.testing.assert_array_equal(dropped["label"], 10)
    np.testing.assert_array_equal(dropped[AUGMENT], 1)
    assert AUGMENT not in conditions({"label": np.arange(4)}, keys, {"label": 10}, 1.0)


@pytest.mark.parametrize(
    "model, data, message",
    [
        (
            dict(augment=6),
            {},
            "tells the network 9 numbers, it takes 6; set config.model.augment=9",
        ),
        (dict(augment=0), {}, "tells the network 9 numbers, it takes 0"),
        (
            {},
            dict(probability=1.2),
            r"config.data.augment.probability must be in \[0, 1\], got 1.2",
        ),
        ({}, dict(operations=("xflop",)), "operations must be some of xflip, .*, got 'xflop'"),
        ({}, dict(operations=()), r"operations must be some of xflip, .*, got \(\)"),
        ({}, dict(nme=3), "data.augment has no option 'nme'"),
        (dict(augment=-1), {}, "config.model.augment must be in .0, 256., got -1"),
    ],
)
def test_what_does_not_fit_is_refused(model, data, message):
    config = tiny(cifar10_edm.get_config(), levels=1)
    config.model.update(model)
    with config.unlocked(), config.ignore_type():
        config.data.augment.update(data)
    with pytest.raises(ValueError, match=message):
        method.build(config, None, parallel.make_mesh())


@pytest.mark.slow
def test_a_network_that_is_told_trains_and_draws(tmp_path):
    config = tiny(cifar10_edm.get_config(), levels=1)
    assert int(loop.train(config, tmp_path / "edm").step) == 2
    assert (tmp_path / "edm" / "samples" / "step_0000002.png").exists()
