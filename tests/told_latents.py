"""A model of latents and texts in closed form, whose programs compile in no time: `told_latents()`.

Its network is that of Gaussian data, whose mean the text says, and a ripple that makes it
nonlinear; its autoencoder averages 2 x 2 pixels.
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
from ddim_jax.recipe import Recipe
from tests.latent_networks import random

TOKENS, WIDTH, STD = 3, 4, 0.9


class Network(nn.Module):
    """eps of N(mean of tanh(text W), STD^2), alpha = cos and sigma = sin of t, an angle."""

    ripple: float = 0.2
    multiple = 1
    inputs = {"text": Input((TOKENS, WIDTH), null=0.0)}

    @nn.compact
    def __call__(self, x, t, inputs, dropout_keys=None):
        """Channels beyond the fourth are something more to add to the mean."""
        weights = self.param("weights", lambda key: jnp.asarray(random("weights", WIDTH, 4)))
        mean = jnp.mean(jnp.tanh(10 * inputs["text"] @ weights), 1)[:, None, None]
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


def told_latents(further: int = 0, kind: str = "inpaint", **options) -> Model:
    """The model; with further channels, of that kind."""
    config = ml_collections.ConfigDict()
    config.model, config.schedule, config.prediction = {}, {}, {}
    config.loss = dict(name="diffusion", label_dropout=0.1)
    if further:
        config.extra = dict(channels=further, kind=kind)
    codec = codecs.latents(Autoencoder(), (16, 16, 3), {})
    network = Network(**options)
    inputs = Inputs(network.inputs, encode=encode).with_channels(codec.sample_shape, further)
    schedule = schedules.cosine(-8.0, model_time=lambda t: np.pi / 2 * t)
    model = Model(
        network, None, schedule, predictions.PREDICTIONS["eps"](), inputs, codec,
        Recipe("ddim", steps=6, clip="none", guidance_scale=3.0), config, "told",
    )  # fmt: skip
    return model.replace(params=model.init(jax.random.key(0)))
