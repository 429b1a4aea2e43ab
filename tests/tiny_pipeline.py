"""Models with tiny networks and random weights: of texts and latents, and of labels."""

import json
import tempfile
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import digits
from ddim_jax import experiment
from ddim_jax.networks import AUTOENCODERS
from ddim_jax.networks.clip import ClipText
from ddim_jax.networks.tokenizer import Tokenizer
from ddim_jax.recipe import Recipe
from tests import tokenizer_texts
from tests.latent_networks import random
from tests.tiny import tiny

MERGES = json.loads(tokenizer_texts.FIXTURE.read_text())["merges"]
LENGTH = tokenizer_texts.LENGTH
END = max(tokenizer_texts.layout(MERGES).values())
ENCODER = dict(vocabulary=END + 1, length=LENGTH, width=16, layers=2, heads=2, hidden=32, end=END)
UNET = dict(
    name="text_unet", widths=(8, 16), num_blocks=1, depths=(1, 0), heads=(2, 2), groups=4,
    text_length=LENGTH, context_dim=16,
)  # fmt: skip
XL = dict(context_dim=32, vector_dim=12, sizes=6, size_dim=4)


def config(kind: str = "sd") -> ml_collections.ConfigDict:
    """Of "sd", one encoder; "xl", two, sizes and a null of zeros; "lcm", a guidance input."""
    made = ml_collections.ConfigDict()
    made.data = dict(name="diffusers:tiny", image_shape=(16, 16, 3))
    made.model = UNET | (XL if kind == "xl" else dict(guidance_dim=8) if kind == "lcm" else {})
    made.schedule = dict(
        name="ddpm_scaled_linear", num_steps=1000, beta_start=0.00085, beta_end=0.012
    )
    made.prediction = dict(name="eps")
    made.loss = dict(name="diffusion", label_dropout=0.1)
    if kind == "lcm":
        made.loss.guidance = (1.0, 15.0)
    made.sample = dict(solver="ddim", steps=4, clip="none", guidance_scale=3.0)
    made.codec = dict(name="autoencoder_kl", widths=(8, 8), num_blocks=1, groups=4, scale=0.5)
    encoders = [dict(ENCODER)]
    if kind == "xl":
        encoders[0] |= dict(take="penultimate")
        encoders += [dict(ENCODER, projection=12, take="penultimate", pooled=True)]
    made.text = dict(encoders=tuple(encoders), null="zeros" if kind == "xl" else "encode")
    return made


def filled(shapes):
    """Random parameters, the same always; none is zero."""
    flat = flatten_dict(shapes, sep="/")
    values = {
        name: random(name, *leaf.shape) * (max(1, np.prod(leaf.shape[:-1])) ** -0.5)
        + np.float32(name.endswith("scale"))
        for name, leaf in flat.items()
    }
    return unflatten_dict(values, sep="/")


def tokenizer() -> Tokenizer:
    """Of a tiny vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_texts.write(Path(folder), MERGES)
        return Tokenizer.read(folder)


def tiny_pipeline(kind: str = "sd"):
    """The model, with parameters of all its networks."""
    made = config(kind)
    model = experiment.build(made)
    texts = model.inputs.encode
    net = AUTOENCODERS[made.codec.name](**{k: v for k, v in made.codec.items() if k != "name"})
    pictures = np.zeros((1, *made.data.image_shape), np.float32)
    codec_shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), pictures))["params"]
    ids = np.zeros((1, LENGTH), np.int32)

    def text_params(net: ClipText):
        return filled(jax.eval_shape(lambda: net.init(jax.random.key(0), ids))["params"])

    return model.with_parts(
        params=jax.tree.map(
            jax.numpy.asarray, filled(jax.eval_shape(model.init, jax.random.key(0)))
        ),
        codec_params=filled(codec_shapes),
        text_params=tuple(text_params(net) for net in texts.networks),
        tokenizers=(tokenizer(),) * len(texts.networks),
    )


def tiny_digits():
    """Of labels and pixels: pictures without meaning that depend on all they are told."""
    model = experiment.build(tiny(digits.get_config(), levels=1))
    params = filled(jax.eval_shape(model.init, jax.random.key(0)))
    recipe = Recipe(solver="ddim", steps=4, guidance_scale=1.0)
    return model.replace(params=jax.tree.map(jax.numpy.asarray, params), recipe=recipe, name="tiny")
