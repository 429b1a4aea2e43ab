"""A model of latents and texts in closed form, whose programs compile in no time: `told_latents()`.

Its network is that of Gaussian data, whose mean the text (and the class, if it has some) says, and
a ripple that makes it nonlinear; its autoencoder averages 2 x 2 pixels. `told_tokens()` is told
numbers of tokens, a random transformer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ddim_jax import codecs, predictions, schedules
from ddim_jax.inputs import Input, Inputs
from ddim_jax.model import Model
from ddim_jax.networks.autoencoder import Moments
from ddim_jax.networks.transformer import DiT
from ddim_jax.recipe import Recipe
from tests.latent_networks import random

TOKENS, WIDTH, STD = 3, 4, 0.9


class Network(nn.Module):
    """eps of N(mean of tanh(text W), STD^2), alpha = cos and sigma = sin of t, an angle."""

    ripple: float = 0.2
    classes: int = 0
    multiple = 1

    @property
    def inputs(self):
        """A text, and a class if there are some."""
        label = {"label": Input((), "int32", self.classes)} if self.classes else {}
        return label | {"text": Input((TOKENS, WIDTH), null=0.0)}

    @nn.compact
    def __call__(self, x, t, inputs, dropout_keys=None):
        """Channels beyond the fourth are something more to add to the mean."""
        weights = self.param("weights", lambda key: jnp.asarray(random("weights", WIDTH, 4)))
        mean = jnp.mean(jnp.tanh(10 * inputs["text"] @ weights), 1)[:, None, None]
        if self.classes:
            mean = mean + (inputs["label"][:, None, None, None] - 1) / 2
        if x.shape[-1] > 4:
            mean = mean * x[..., 4:5] + x[..., 5:].mean(-1, keepdims=True)
        x, t = x[..., :4], t[:, None, None, None]
        alpha, sigma = jnp.cos(t), jnp.sin(t)
        eps = sigma * (x - alpha * mean) / ((alpha * STD) ** 2 + sigma**2)
        return eps + self.ripple * alpha * sigma * jnp.sin(3 * x + mean)


class Autoencoder(nn.Module):
    """Latents of three colours and their mean."""

    factor = 2
    latent_channels = 4

    def encode(self, x):
        """[B, H, W, 3] -> Moments of [B, H / 2, W / 2, 4]."""
        batch, height, width, _ = x.shape
        z = x.reshape(batch, height // 2, 2, width // 2, 2, 3).mean((2, 4))
        z = jnp.concatenate([z, z.mean(-1, keepdims=True)], -1)
        return Moments(z, jnp.zeros_like(z))

    def decode(self, z):
        """[B, h, w, 4] -> [B, 2 h, 2 w, 3]."""
        return jnp.repeat(jnp.repeat(z[..., :3], 2, 1), 2, 2)


def encode(texts):
    """Features by the letters of a text, of which a small change says much."""
    return {"text": np.stack([random(text, TOKENS, WIDTH) / 10 for text in texts])}


def told_latents(further: int = 0, kind: str = "inpaint", names=(), **options) -> Model:
    """The model; with further channels, of that kind; with classes of these names."""
    config = ml_collections.ConfigDict()
    config.data, config.model, config.schedule, config.prediction = {}, {}, {}, {}
    config.loss = dict(name="diffusion", label_dropout=0.1)
    if further:
        config.extra = dict(channels=further, kind=kind)
    codec = codecs.latents(Autoencoder(), (16, 16, 3), {})
    network = Network(classes=len(names), **options)
    inputs = Inputs(network.inputs, tuple(names), encode)
    inputs = inputs.with_channels(codec.sample_shape, further)
    return _model(network, codec, inputs, config)


def token_numbers(texts):
    """A token for each letter."""
    rows = np.zeros((len(texts), 6), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = [1 + ord(letter) % 19 for letter in text[:6]]
    return {"text": rows}


def told_tokens() -> Model:
    """A model that is told numbers of tokens, whose features it makes itself."""
    config = ml_collections.ConfigDict(dict(model={}, schedule={}, prediction={}))
    config.loss = dict(name="diffusion", label_dropout=0.1)
    network = DiT(
        width=16, depth=1, heads=2, num_classes=3, text_length=6, vocabulary=20, text_features=8,
        modulation="shared",
    )  # fmt: skip
    codec = codecs.latents(Autoencoder(), (16, 16, 3), {})
    inputs = Inputs(network.inputs, ("noto", "twemoji", "fluent"), token_numbers)
    model = _model(network, codec, inputs, config)
    leaves, tree = jax.tree.flatten(model.params)
    moved = [leaf + random(str(i), *leaf.shape) / 5 for i, leaf in enumerate(leaves)]
    return model.replace(params=jax.tree.unflatten(tree, moved))


def _model(network, codec, inputs, config) -> Model:
    schedule = schedules.cosine(-8.0, model_time=lambda t: np.pi / 2 * t)
    model = Model(
        network, None, schedule, predictions.PREDICTIONS["eps"](), inputs, codec,
        Recipe("ddim", steps=6, clip="none", guidance_scale=3.0), config, "told",
    )  # fmt: skip
    return model.replace(params=jax.jit(model.init)(jax.random.key(0)))
