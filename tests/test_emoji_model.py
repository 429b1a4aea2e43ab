"""The bundled emoji: what is drawn is what was asked for, by the ruler, in every style."""

import numpy as np
import pytest

import ddim_jax
from ddim_jax.evaluation import feature_networks

NAMES = ("tiger", "red apple", "crying cat face", "rainbow", "grinning face", "norway flag")


@pytest.fixture(scope="module")
def model():
    return ddim_jax.load("emoji")


@pytest.mark.parametrize("name, steps", [("emoji", 8), ("emoji_1step", 1)])
def test_names_are_drawn_in_every_style(name, steps):
    model = ddim_jax.load(name)
    styles = np.repeat(np.arange(3), len(NAMES))
    names = [*NAMES] * 3
    pictures = model.draw(prompt=names, label=styles.tolist(), steps=steps, seed=1)
    assert pictures.shape == (18, 64, 64, 3) and pictures.dtype == np.uint8
    network = feature_networks.load("emoji")
    found = network.extract(pictures)
    ranks = network.gallery.ranks(found.pool, names, styles)
    assert np.mean(ranks <= 5) >= 0.8, list(zip(names, ranks, strict=True))
    assert np.mean(found.logits.argmax(-1) == styles) >= 0.8


def test_styles_have_names(model):
    assert model.inputs.class_names == ("noto", "twemoji", "fluent")
    few = dict(prompt="tiger", steps=2)
    np.testing.assert_array_equal(model.draw(label="fluent", **few), model.draw(label=2, **few))
