"""Measures of clips: what each says of clips made for it, and which notices which damage."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import data
from ddim_jax.data import moving_digits
from ddim_jax.editing import judging
from ddim_jax.evaluation import (
    clip_damage,
    feature_networks,
    features,
    motion,
    sanity_check,
    scores,
    video,
)
from ddim_jax.evaluation.features import FeatureNetwork, Features
from tests.errors import rejects
from tests.pictures import noise

F = np.arange(16)


def line(phase, velocity, room, start=0.0):
    """Places [1, T, 2] of one that bounces on the first axis and rests on the second."""
    y = moving_digits.fold(phase + velocity * F, room) + start
    return np.stack([y, np.full(16, 7.0)], -1)[None]


@pytest.mark.parametrize("room", [5.0, 21.0])
@pytest.mark.parametrize("phase, velocity", [(1.3, 0.83), (4.9, 1.47), (7.2, 0.52), (0.0, 0.0)])
def test_a_bouncing_line_is_found(room, phase, velocity):
    (residual,), (speed,) = motion.bounce_fit(line(phase, velocity, room, 3.7), (room, room))
    assert residual < 0.02 and abs(speed - velocity) < 0.01


def test_what_does_not_bounce_leaves_its_deviation():
    places = line(2.0, 0.0, 21.0)
    places[0, :, 1] += 0.4 * (-1.0) ** F  # to and fro, which no slow line follows
    assert np.isclose(motion.bounce_fit(places, (21.0, 21.0))[0][0], 0.4, rtol=0.05)
    rng = np.random.default_rng(0)
    apart = line(1.0, 0.9, 21.0).repeat(50, 0) + 0.5 * rng.normal(size=(50, 16, 2))
    residual = np.sqrt(np.mean(motion.bounce_fit(apart, (21.0, 21.0))[0] ** 2))
    # of 32 numbers with variance 1/4 six are fitted
    assert np.isclose(residual, np.sqrt(2 * 0.25 * 26 / 32), rtol=0.1)


def test_frames_without_a_digit_count():
    places = line(1.3, 0.83, 5.0).repeat(3, 0)
    places[1, ::3], places[2, :9] = np.nan, np.nan
    residual, speed = motion.bounce_fit(places, (5.0, 5.0))
    assert residual[1] < 0.02 and abs(speed[1] - 0.83) < 0.01
    assert residual[2] == motion.WORST and speed[2] == 0


def test_jerk_is_the_third_difference():
    curve = np.stack([F**3 / 6, 0.0 * F], -1)[None]
    straight = line(0.0, 1.2, 100.0)
    found = motion.jerk(np.concatenate([curve, straight, np.full((1, 16, 2), np.nan)]))
    np.testing.assert_allclose(found[:2], [1, 0], atol=1e-9)
    assert np.isnan(found[2])


def test_wasserstein_of_a_shift_and_a_stretch():
    x = np.random.default_rng(0).normal(size=20_000)
    assert np.isclose(motion.wasserstein(x, x + 0.3), 0.3)
    u = np.linspace(0, 1, 10_001)
    assert np.isclose(motion.wasserstein(u, 2 * u), 0.5, atol=1e-3)


def test_centroids_and_centred_digits():
    images = moving_digits.of_split("test")[0]
    row, rng = moving_digits.which(len(images), 0, 3)
    corners = moving_digits.path(rng, 16, (32, 32))
    clip = moving_digits.read("test", 3)[0][None]
    places, mass = video.centroids(clip)
    offset = np.asarray(places[0]) - corners / 2
    assert np.ptp(offset, axis=0).max() < 0.1 and (np.asarray(mass) > video.LEAST).all()
    shown = np.asarray(video.centred(clip, places))
    assert shown.shape == (1, 16, 28, 28, 1)
    again, _ = video.centroids(shown)
    assert np.abs(np.asarray(again) - 13.5).max() < 0.3
    empty, mass = video.centroids(np.zeros((1, 2, 10, 8, 1), np.uint8))
    assert (np.asarray(empty) == [4.5, 3.5]).all() and (np.asarray(mass) == 0).all()


def test_flicker_and_sharpness_of_made_clips():
    still = noise(1, 1, 8, 8, 3).repeat(6, 1) // 4
    on_off = still.copy()
    on_off[:, 1::2] = 0
    found = video._pixels(np.concatenate([still, on_off]))
    np.testing.assert_allclose(found["flicker"], [0, 2**0.5], rtol=1e-5)
    ramp = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None], (1, 2, 10, 10, 1))
    energy = np.mean(np.arange(10.0) ** 2)
    assert np.isclose(video._pixels(ramp)["sharp"][0], 0.5 / energy, rtol=1e-5)
    # white paper is no contrast: what is drawn on it counts as on black
    assert np.allclose(video._pixels(255 - on_off)["flicker"], 2**0.5)


def test_the_spectrum_parts_times_and_sizes():
    wave = np.cos(2 * np.pi * 3 * F / 16)  # frequency 3
    fine = (-1.0) ** (np.arange(16)[:, None] + np.arange(16))  # a chessboard, band 0
    x = 128 + 60 * wave[:, None, None] * fine
    found = np.exp(video.spectrum(np.rint(x).astype(np.uint8)[None, ..., None]))[0]
    found = found.reshape(video.BANDS, 9)  # bands, frequencies
    share = (60 / 255) ** 2 * 16 / 4  # energy of a cosine at one of its two frequencies
    assert np.isclose(found[0, 3], share, rtol=0.02)
    # the rest is the mean of the grey, at frequency 0 of the last band
    assert np.isclose(found[2, 0], (128 / 255) ** 2 * 16, rtol=0.02)
    found[0, 3] = found[2, 0] = 0
    assert found.max() < 1e-3
    assert video.spectrum(noise(2, 5, 10, 13, 3)).shape == (2, 3 * 3 * 3)  # odd sizes too


def levels_network():
    """Features: one of four levels that a frame has."""

    def apply(images):
        level = jnp.round(images.astype(jnp.float32).mean((1, 2, 3)) / 60).astype(int)
        return Features(jax.nn.one_hot(level, 4), 20.0 * jax.nn.one_hot(level, 4))

    names = ("FD(levels)", "KD(levels)", "score")
    return FeatureNetwork("levels", 4, names, "0", "none", (None, None, 1), 4, apply)


def of_levels(*levels):
    return np.broadcast_to(
        np.uint8(60 * np.array(levels))[:, :, None, None, None],
        (len(levels), len(levels[0]), 8, 8, 1),
    )


def test_features_of_frames_say_what_stays():
    network = video.of_frames(levels_network())
    assert (network.name, network.dimensions) == ("clips_levels", 8)
    assert network.names[0] == "clip FD(levels)" and network.num_classes == 0
    clips = of_levels([0, 0, 0, 1], [2, 2, 2, 2], [3, 0, 3, 0])
    found = network.extract(clips)
    mean, change = np.split(found.pool, 2, axis=1)
    np.testing.assert_allclose(mean[0], [0.75, 0.25, 0, 0])
    np.testing.assert_allclose(change[[0, 1]], [[1 / 3, 1 / 3, 0, 0], [0] * 4], atol=1e-6)
    assert found.further["read"].tolist() == [[0, 0, 0, 1], [2, 2, 2, 2], [3, 0, 3, 0]]
    real = network.extract(of_levels(*([[i % 4] * 4 for i in range(40)])))
    many = found.further | {"spectrum": real.further["spectrum"]}
    record = network.compare(found._replace(further=many), real)
    assert np.isclose(record["same"], (3 + 4 + 2) / 12)
    # frames 0 and 3 are compared: 1 is as far from all others, 2 is found, 0 is found as the first
    assert record["first"] == 2 / 3
    # squared changes 2/3, 0 and 2 in the mean; two real clips are apart by 2
    assert np.isclose(record["drift"], (2 / 3 + 0 + 2) / 3 / 2)
    assert record["frame FD(levels)"] > 0 and "bounce" not in record
    assert "spectral" in record and "label" not in record


def measured(*damages):
    """What is said of 30 real clips, unchanged and damaged, beside 30 others; name -> numbers."""
    network = feature_networks.load("moving_digits")
    source = data.load("moving_digits", "test", image_size=16)
    real, clips = (features.read_images(source, range(k, k + 30)) for k in (0, 30))
    theirs, rng = network.extract(real[0]), np.random.default_rng(0)
    changes = {"none": lambda x, rng: x} | {name: clip_damage.DAMAGES[name] for name in damages}
    return {
        name: network.compare(network.extract(change(clips[0], rng)), theirs, clips[1])
        for name, change in changes.items()
    }


def check_worse(found, damage, factor, *names):
    for name in names:
        assert found[damage][name] > factor * found["none"][name], (damage, name)


def test_what_does_not_move_like_a_digit_is_noticed():
    found = measured("frames shuffled", "frames of different clips", "reversed")
    none = found["none"]
    assert none["bounce"] < 0.3 and none["same"] > 0.98 and none["label"] > 0.95
    assert none["missing"] == 0 and none["speed_w1"] < 0.25 and none["drift"] < 0.05
    for name in set(none) - {"first"}:
        assert np.isclose(found["reversed"][name], none[name], rtol=1e-3, atol=1e-3), name
    check_worse(found, "frames shuffled", 3, "bounce", "jerk", "spectral")
    assert found["frames shuffled"]["same"] == none["same"]
    different = "frames of different clips"
    check_worse(found, different, 3, "bounce", "drift", "flicker", "spectral")
    assert found[different]["same"] < 0.5 and found[different]["label"] < 0.4
    assert none["first"] > 0.85 and found[different]["first"] < 0.2


@pytest.mark.slow
def test_each_damage_is_noticed():
    found = measured(*clip_damage.DAMAGES)
    none = found["none"]
    check_worse(found, "jittered by a pixel", 3, "bounce", "jerk", "spectral")
    assert found["frozen"]["bounce"] < 0.01 and found["frozen"]["speed_w1"] > 0.5
    check_worse(found, "frozen", 20, "spectral")
    check_worse(found, "blurred", 2, "frame FDD")
    assert found["blurred"]["sharp"] < 0.5 * none["sharp"]
    check_worse(found, "smeared in time", 2, "spectral")
    check_worse(found, "flickering", 1.2, "flicker")
    check_worse(found, "cut to another clip", 2, "bounce")
    assert found["cut to another clip"]["same"] < 0.75


def test_features_of_clips_are_kept(tmp_path):
    network = video.of_frames(levels_network())
    found = network.extract(of_levels([0, 1, 2], [3, 3, 3]))
    features.write(tmp_path / "a.npz", found)
    again = features.read(tmp_path / "a.npz")
    jax.tree.map(np.testing.assert_array_equal, again, found)
    joined = Features.join([found, found.first(1)])
    assert len(joined.pool) == len(joined.further["read"]) == 3


def test_clips_are_scored_beside_real_ones():
    network, shape = feature_networks.load("moving_digits"), (4, 16, 16, 1)
    statistics, source = scores.find_data(network, None, None, shape)
    assert statistics is None and (source.name, source.shape) == ("moving_digits", shape)
    assert len(source) == 2000
    emoji = feature_networks.load("clips:emoji")
    assert (emoji.name, emoji.names[0], emoji.dimensions) == ("clips_emoji", "clip FED", 256)
    with rejects(ValueError, "nothing to compare", "--real"):
        scores.find_data(emoji, None, None, (4, 16, 16, 3))
    with rejects(ValueError, "'digits' are not of clips", "clips:NAME"):
        scores.find_data(feature_networks.load("digits"), None, None, shape)
    with rejects(ValueError, "'moving_digits' are not of pictures", "--features=digits"):
        scores.find_data(network, None, None, (16, 16, 1))
    with rejects(ValueError, "unknown features 'films'", "clips:NAME"):
        feature_networks.load("films")


def test_scores_of_clips(tmp_path):
    network = video.of_frames(levels_network())
    rng = np.random.default_rng(0)
    clips = of_levels(*rng.integers(0, 4, (40, 4)))
    source = data.Source("levels", (8, 8, 1), 4, 40, lambda i: (clips[i], i % 4), frames=4)
    evaluator = scores.make_evaluator(network, None, source, tmp_path)
    assert evaluator.reference.name == "levels, 40 clips"
    record = scores.score(network.extract(clips), evaluator, np.arange(40) % 4)
    assert abs(record["clip FD(levels)"]) < 1e-6 and "accuracy" not in record
    assert abs(record["spectral"]) < 1e-3 and record["num_samples"] == 40
    again = scores.make_evaluator(network, None, source, tmp_path)  # from the folder
    jax.tree.map(np.testing.assert_array_equal, again.further, evaluator.further)


@pytest.mark.parametrize("frames", [1, 3])
def test_short_clips_have_no_later_frames_to_find(frames):
    source = data.load("moving_digits", "test", image_size=16, frames=frames)
    clips, network = (
        features.read_images(source, range(8))[0],
        feature_networks.load("moving_digits"),
    )
    found = network.extract(clips)
    record = network.compare(found, found)
    assert not {"first", "jerk"} & set(record) and np.isfinite([*record.values()]).all()


def test_emoji_clips_by_their_frames():
    network = feature_networks.load("clips:emoji")
    found = network.extract(noise(2, 3, 32, 32, 3))
    assert found.pool.shape == (2, 256) and found.further["read"].shape == (2, 3)
    assert "places" not in found.further


@pytest.mark.parametrize("channels, judged", [(1, {"flicker", "read", "same"}), (3, {"flicker"})])
def test_edited_clips_are_read_if_they_are_grey_digits(channels, judged):
    codec = types.SimpleNamespace(frames=4, picture_shape=(4, 16, 16, channels))
    config = types.SimpleNamespace(data={"name": "moving_digits"})
    model = types.SimpleNamespace(codec=codec, config=config)
    source = data.load("moving_digits", "test", image_size=16, frames=4, channels=channels)
    one, other = (source[i]["image"] for i in (0, 1))
    cut = np.stack([one, np.concatenate([other[:3], one[3:]])])
    found = judging.judge(model, {"image": cut, "still": one[None, :1].repeat(4, axis=1)})
    assert set(found) == judged
    assert found["flicker"]["still"] < 1e-6 < found["flicker"]["image"]
    if channels == 1:  # of the second clip one frame in four is of another digit
        labels = [source[i]["label"] for i in (0, 1)]
        assert labels[0] != labels[1] and found["read"] == {"image": labels, "still": labels[:1]}
        assert found["same"] == {"image": 7 / 8, "still": 1.0}


@pytest.mark.slow
def test_the_command_prints_a_table(capsys):
    arguments = ["--features=moving_digits", "--num_samples=257", "--resize=16", "--frames=8"]
    sanity_check.main(arguments)
    lines = [row for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    assert len(lines) == 2 + 1 + len(clip_damage.DAMAGES) and "clip FDD" in lines[0]


def test_the_command_says_how_many_clips_it_needs(capsys):
    for count, parts in [("100", ["257", "got 100"]), ("1001", ["half of the 2,000", "got 1001"])]:
        with pytest.raises(SystemExit) as stop:
            sanity_check.main(["--features=moving_digits", f"--num_samples={count}"])
        assert all(part in str(stop.value) + capsys.readouterr().err for part in parts)
