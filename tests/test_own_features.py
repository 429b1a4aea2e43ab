"""A feature network of one's own pictures: trained with classes and without, kept, used by name."""

import numpy as np
import pytest

from ddim_jax import data
from ddim_jax.evaluation import feature_networks, metrics, own_features


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """600 digits as npz files, with labels and without."""
    folder, source = tmp_path_factory.mktemp("own"), data.load("digits")
    examples = [source[i] for i in range(600)]
    images = np.stack([e["image"] for e in examples])
    np.savez(folder / "bare.npz", train_x=images)
    np.savez(folder / "digits.npz", train_x=images, train_y=[e["label"] for e in examples])
    return folder, images


@pytest.mark.parametrize(
    "name, said",
    [pytest.param("digits", "class of 10", marks=pytest.mark.slow), ("bare", "which way up, of 4")],
)
def test_a_network_learns_what_the_pictures_offer(pictures, name, said, capsys):
    folder, images = pictures
    out = folder / f"{name}_features.npz"
    own_features.main([f"--data=npz:{folder / name}.npz", f"--out={out}", "--epochs=8"])
    line = capsys.readouterr().out
    assert said in line and float(line.split("%")[0].split()[-1]) > 60
    network = feature_networks.load(f"own:{out}")
    assert network.names[0] == f"FD({name}_features)"
    assert network.num_classes == (10 if name == "digits" else 0)
    half, other = (metrics.moments([network.extract(part).pool]) for part in np.split(images, 2))
    noisy = images[:300] ^ np.random.default_rng(0).integers(0, 64, (300, 28, 28, 1), np.uint8)
    worse = metrics.moments([network.extract(noisy).pool])
    assert metrics.frechet_distance(worse, half) > 2 * metrics.frechet_distance(half, other)
    with pytest.raises(SystemExit, match="own_features: .* exists"):
        own_features.main([f"--data=npz:{folder / name}.npz", f"--out={out}"])


def test_turns_are_quarters_of_squares_and_halves_of_others():
    square, wide = np.arange(8.0).reshape(1, 2, 2, 2), np.arange(8.0).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(own_features.turned(square, [1])[0], np.rot90(square[0]))
    np.testing.assert_array_equal(own_features.turned(wide, [1])[0], wide[0, ::-1, ::-1])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs=0"], r"--epochs must be in \[1, 10000\], got 0"),
        (["--seed=-1"], "--seed must be a whole number in 0..2.64 - 1, got -1"),
        ([f"--seed={10**30}"], "--seed must be a whole number"),
        (["--resize=9"], "an even height and width of at least 8, got 9 x 9"),
        (["--data=npz:none.npz"], "none.npz"),
    ],
)
def test_what_is_refused(pictures, flags, message, tmp_path):
    given = [f"--data=npz:{pictures[0] / 'bare.npz'}", f"--out={tmp_path / 'f.npz'}", *flags]
    with pytest.raises(SystemExit, match=message):
        own_features.main(given)
    assert not (tmp_path / "f.npz").exists()


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="no feature network of own_features"):
        feature_networks.load(f"own:{tmp_path / 'x.npz'}")
    with pytest.raises(FileNotFoundError, match="no feature network at"):
        feature_networks.load("own:none.npz")
