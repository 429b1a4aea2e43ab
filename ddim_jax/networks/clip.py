"""The text encoders of latent diffusion: CLIP's, from token numbers to features.

    network            width  layers  heads  hidden  activation  projection  what is taken
    CLIP-L (SD 1)        768      12     12    3072  quick_gelu  -           last
    OpenCLIP-H (SD 2)   1024      23     16    4096  gelu        -           last
    CLIP-L (SDXL)        768      12     12    3072  quick_gelu  -           penultimate
    OpenCLIP-G (SDXL)   1280      32     20    5120  gelu        1280        penultimate, pooled

`Tokens` stands for an encoder where a network learns the features of tokens itself.

The 24th layer of OpenCLIP-H is left out in SD 2. Layers see the tokens before theirs only, so the
end token's features are of the whole text; padding after it changes nothing before it.

Source: Radford et al. 2021 (arXiv:2103.00020), section 2.4.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ddim_jax.networks.attention import ACTIVATIONS, LayerNorm
from ddim_jax.networks.options import DTYPES, check_choices, check_counts, check_divides

Array = Any

END = 49407
normal = nn.initializers.normal


class Text(NamedTuple):
    """What the encoder says of a text.

    Attributes:
        last: [B, L, width] features after the last layer, normalised.
        penultimate: [B, L, width] features before the last layer, not normalised.
        pooled: [B, width] or [B, projection], `last` at the first end token, projected.
    """

    last: Array
    penultimate: Array
    pooled: Array


class Tokens(nn.Module):
    """No encoder: what a network is told of a text are the numbers of its tokens.

    Attributes:
        vocabulary: number of tokens.
        length: most tokens of a text.
        end: the token after a text.
    """

    vocabulary: int
    length: int
    end: int

    width = 0
    """Features of a token: none."""

    def __call__(self, ids) -> Text:
        """Returns ids [B, L] int32, as all there is to say of a text."""
        return Text(ids, ids, ids)


class ClipLayer(nn.Module):
    """Causal self-attention and two dense layers, each after a layer norm."""

    heads: int
    hidden: int
    activation: str
    layers: int
    eps: float
    dtype: str

    @nn.compact
    def __call__(self, states):
        """Maps (features before, features [B, L, W]) to those of the next layer, and None."""
        _, x = states
        b, length, width = x.shape
        spread = width**-0.5  # of the authors; those that add to x are smaller in deep networks
        adding = (2 * self.layers) ** -0.5

        def dense(features, stddev, name):
            return nn.Dense(features, kernel_init=normal(stddev), dtype=self.dtype, name=name)

        h = LayerNorm(self.eps, dtype=self.dtype, name="norm_0")(x)
        h = dense(3 * width, spread, "qkv")(h).reshape(b, length, 3, self.heads, -1)
        mask = nn.make_causal_mask(jnp.ones((1, length)))
        h = nn.dot_product_attention(
            h[:, :, 0], h[:, :, 1], h[:, :, 2], mask=mask, dtype=self.dtype
        )
        h = x + dense(width, spread * adding, "out")(h.reshape(x.shape))
        y = LayerNorm(self.eps, dtype=self.dtype, name="norm_1")(h)
        y = dense(self.hidden, (2 * width) ** -0.5, "dense_0")(y)
        y = dense(width, spread * adding, "dense_1")(ACTIVATIONS[self.activation](y))
        return (x, h + y), None


class ClipText(nn.Module):
    """Text = ClipText(...).apply({"params": p}, ids); the defaults are CLIP-L's.

    Attributes:
        vocabulary: number of tokens.
        length: most tokens of a text.
        width: features of a token; a multiple of `heads`.
        layers: number of them; one is compiled for all.
        heads: of each attention.
        hidden: features between a layer's two dense ones.
        activation: between them, a name in ACTIVATIONS.
        projection: features of `pooled`; 0: it is not projected.
        end: the token whose features are `pooled`.
        eps: of the layer norms.
        dtype: compute dtype, "float32" or "bfloat16"; features are returned in float32.
    """

    vocabulary: int = 49408
    length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "quick_gelu"
    projection: int = 0
    end: int = END
    eps: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids) -> Text:
        """Encodes token numbers.

        Args:
            ids: int [B, L], L <= length; each row holds the end token.

        Raises:
            ValueError: shape or dtype of ids, or an attribute, do not fit; raised while tracing.
        """
        self._check(ids)
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=normal(0.02), name="token")
        place = self.param("place", normal(0.01), (self.length, self.width))
        x = (embed(ids) + place[None, : ids.shape[1]]).astype(self.dtype)
        loop = nn.scan(
            ClipLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        options = (self.heads, self.hidden, self.activation, self.layers, self.eps, self.dtype)
        (before, x), _ = loop(*options, name="layers")((x, x))
        last = LayerNorm(self.eps, dtype="float32", name="norm_out")(x)
        end = jnp.argmax(ids == self.end, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if self.projection:
            init = normal(self.width**-0.5)
            project = nn.Dense(self.projection, use_bias=False, kernel_init=init, name="projection")
            pooled = project(pooled)
        return Text(last, before.astype(jnp.float32), pooled)

    def _check(self, ids):
        check_choices(self, dtype=DTYPES, activation=tuple(ACTIVATIONS))
        check_counts(self, "config.text.")
        check_divides("heads", self.heads, self.width)
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.length:
            raise ValueError(
                f"ids must be [B, L] of at most {self.length} tokens, got {ids.shape}; the "
                "tokenizer cuts longer texts"
            )
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids must be integers, got {ids.dtype}")


TEXT_ENCODERS = {"clip": ClipText, "tokens": Tokens}
"""Text encoders by the name that a config's section `text` uses; "clip" where it has none."""
