"""Diffusion transformers: blocks that time and label scale, shift and gate.

Patches of x are tokens; sines and cosines of their column and row are added to them. Time, label
and scalars add up to one embedding, from which every block has six vectors: scale and shift before
attention and before the feed-forward layers, and a gate after each.

    size  width  depth  heads    parameters with patches of 2 x 2 latents
    S       384     12      6      33M
    B       768     12     12     130M
    L      1024     24     16     458M
    XL     1152     28     16     675M    DiT-XL/2, SiT-XL/2: the defaults, unused_channels=4

SiT is the same network trained on a flow. Published weights have twice the output channels; the
second half, DiT's variance, is `unused_channels`. In diffusers DiT has time_embedding="dit",
eps=1e-5. Gates start at zero (a fresh block adds nothing) and so does the last layer: a fresh
network returns zeros.

A text's tokens join those of the picture: every block attends over both, and their mean is added to
the embedding. With `text_as="keys"` the picture's tokens alone pass through the blocks, and attend
to the text's as well: less work, where a text is about as long as the picture. Small networks learn
the tokens' features themselves (`vocabulary`) and share the six vectors' layer among the blocks
(`modulation="shared"`), which is a third of a block's parameters.

Sources: Peebles & Xie 2022 (arXiv:2212.09748), section 3.2, there "in-context conditioning" too;
Nichol et al. 2021 (arXiv:2112.10741), section 3.1, texts as keys; Ma et al. 2024
(arXiv:2401.08740); Chen et al. 2023 (arXiv:2310.00426), section 2.3, adaLN-single.
"""

from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.inputs import Input
from ddim_jax.networks.attention import Attention, FeedForward, LayerNorm
from ddim_jax.networks.blocks import MIDDLE
from ddim_jax.networks.frames import CACHE
from ddim_jax.networks.layers import (
    depth_to_space,
    fan_avg,
    space_to_depth,
    time_embedding,
    two_layers,
    zeros,
)
from ddim_jax.networks.options import (
    check_divides,
    check_inputs,
    check_options,
    check_text,
    kept,
    scalar,
)

FREQUENCIES = 256
LOOP = "blocks"
"""Name of the parameters of all blocks, stacked along their first axis."""
normal = nn.initializers.normal(0.02)


def positions(height: int, width: int, features: int, grid: int | None = None) -> np.ndarray:
    """Sines and cosines of each token's column, then of its row.

    Args:
        height: rows of tokens.
        width: columns of tokens.
        features: a multiple of 4.
        grid: rows and columns that coordinates are stretched to; None: tokens are 1 apart.

    Returns:
        [height * width, features] float32, row by row.
    """
    frequencies = 10000.0 ** -(np.arange(features // 4) / (features // 4))

    def line(size):
        angles = np.outer(np.arange(size) * ((grid or size) / size), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    columns, rows = np.broadcast_arrays(line(width)[None], line(height)[:, None])
    both = np.concatenate([columns, rows], axis=-1)
    return both.reshape(height * width, features).astype(np.float32)


def modulate(x, shift, scale):
    """Scales and shifts x [B, N, C] by [B, C]."""
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """Attention and feed-forward, each modulated before and gated after: [B, N, C] -> same."""

    heads: int
    eps: float = 1e-6
    dropout: float = 0.0
    dtype: str = "float32"
    shared: bool = False

    @nn.compact
    def __call__(self, x, emb, dropout_keys=None, text=None):
        """Returns x of the next block and None.

        emb is [B, C], activated; of blocks that share a layer [B, 6C], what came out of that.
        text is [B, L, D], tokens that x attends to beside itself; None: there are none.
        """
        if self.shared:
            own = self.param("modulation", zeros, (6 * x.shape[-1],))
            six = emb + own.astype(self.dtype)[None]
        else:
            dense = nn.Dense(
                6 * x.shape[-1], kernel_init=zeros, dtype=self.dtype, name="modulation"
            )
            six = dense(emb)
        shift_0, scale_0, gate_0, shift_1, scale_1, gate_1 = jnp.split(six, 6, axis=-1)
        norm = LayerNorm(1e-6, affine=False, dtype=self.dtype)
        attention = Attention(self.heads, True, self.dropout, fan_avg, self.dtype, name="attention")
        h = modulate(norm(x), shift_0, scale_0)
        h = attention(h, dropout_keys=dropout_keys, beside=text)
        x = x + gate_0[:, None] * h
        norm = LayerNorm(self.eps, affine=False, dtype=self.dtype)
        feed = FeedForward("gelu_tanh", dropout=self.dropout, dtype=self.dtype, name="feed")
        h = feed(modulate(norm(x), shift_1, scale_1), dropout_keys)
        return x + gate_1[:, None] * h, None


class TextTokens(nn.Module):
    """Features of a text's tokens: int [B, L] -> [B, L, width] float32.

    An embedding with places and transformer blocks with layer norms, in which every token attends
    to all; then a dense layer to the width of the network.

    Attributes:
        vocabulary: number of tokens.
        features: of a token, before the last layer.
        depth: number of blocks.
        width: of the network.
        dtype: compute dtype.
    """

    vocabulary: int
    features: int
    depth: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids):
        """Embeds token numbers."""
        embed = nn.Embed(self.vocabulary, self.features, embedding_init=normal, name="token")
        place = self.param("place", normal, (ids.shape[1], self.features))
        h = (embed(ids) + place[None]).astype(self.dtype)
        heads = max(1, self.features // 64)
        for i in range(self.depth):
            norm = LayerNorm(dtype=self.dtype, name=f"norm_{i}_0")
            attention = Attention(heads, True, dtype=self.dtype, name=f"attention_{i}")
            h = h + attention(norm(h))
            norm = LayerNorm(dtype=self.dtype, name=f"norm_{i}_1")
            feed = FeedForward("gelu_tanh", dtype=self.dtype, name=f"feed_{i}")
            h = h + feed(norm(h))
        h = LayerNorm(dtype="float32", name="norm_out")(h)
        return nn.Dense(self.width, kernel_init=fan_avg, name="out")(h)


class DiT(nn.Module):
    """F = DiT(...).apply({"params": p}, x, t, inputs); see the module docstring.

    Attributes:
        out_channels: channels of F.
        unused_channels: further ones that published weights have and nothing here reads.
        width: features of a token, a multiple of 4 and of `heads`.
        depth: number of blocks; one is compiled for all.
        heads: of each attention.
        patch_size: a token is patch_size x patch_size numbers of every channel.
        position_grid: tokens on a side that positions are stretched to, as diffusers does at sizes
            other than the trained one; None: tokens are 1 apart at every size.
        num_classes: 0 for none; else inputs["label"] is wanted, [B] int in 0..num_classes, where
            num_classes is the null label.
        null_label: whether the embedding has that extra row.
        text_length: tokens of a text; 0: no text is told.
        context_dim: features of a token; inputs["text"] is [B, text_length, context_dim]. 0: it is
            [B, text_length] int, numbers of tokens whose features are learnt.
        vocabulary: number of those tokens.
        text_features: of a learnt token, a multiple of 64 or less.
        text_depth: blocks that learnt tokens pass through.
        text_as: "tokens": a text's tokens pass through the blocks as the picture's do; "keys":
            every block attends to them, as they are, beside the picture's.
        modulation: "block": each block has a layer to its six vectors; "shared": one for all, to
            whose vectors each adds its own.
        scalars: further inputs, as in `UNet`.
        time_scale: of t and scalars before they are embedded, as in `UNet`.
        interval_scale: of the interval, as in `UNet`.
        time_embedding: "adm" in the authors' code, "dit" in diffusers', see `time_embedding`.
        eps: of the second norm of a block, 1e-6 in the authors' code, 1e-5 in diffusers'.
        dropout: rate on the output of attention and on hidden features, of calls with keys.
        dtype: compute dtype, "float32" or "bfloat16"; the last norm and layer are float32.
        remat: what the backward pass recomputes to save memory: "none"; "products" keeps the
            outputs of dense layers and recomputes norms, activations and attention; "blocks" (and
            "convolutions", for there are none) recomputes whole blocks.
    """

    out_channels: int = 4
    unused_channels: int = 0
    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch_size: int = 2
    position_grid: int | None = None
    num_classes: int = 1000
    null_label: bool = True
    text_length: int = 0
    context_dim: int = 0
    vocabulary: int = 0
    text_features: int = 128
    text_depth: int = 1
    text_as: str = "tokens"
    modulation: str = "block"
    scalars: tuple[str, ...] = ()
    time_scale: float = 1.0
    interval_scale: float | None = None
    time_embedding: str = "adm"
    eps: float = 1e-6
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"

    @property
    def multiple(self) -> int:
        """Of what number height and width of x must be multiples."""
        return self.patch_size

    @property
    def inputs(self) -> dict[str, Input]:
        """What the network is told beside x and t, by name."""
        told = {"label": Input((), "int32", self.num_classes)} if self.num_classes else {}
        if self.text_length and self.context_dim:
            told["text"] = Input((self.text_length, self.context_dim), null=0.0)
        elif self.text_length:
            told["text"] = Input((self.text_length,), "int32", 0)
        return told | {name: Input() for name in self.scalars}

    @nn.compact
    def __call__(self, x, t, inputs=MappingProxyType({}), dropout_keys=None):
        """Evaluates the network.

        Args:
            x: [B, H, W, C] float32; H and W divisible by patch_size.
            t: [B] float32 model time: 0..999 for DiT, 0..1 for SiT.
            inputs: name -> [B], exactly those of `self.inputs`.
            dropout_keys: [B], one key per sample, for training; None for no dropout.

        Returns:
            [B, H, W, out_channels] float32.

        Raises:
            ValueError: shapes or inputs do not fit the attributes; raised while tracing.
        """
        self._check(x, t, inputs, dropout_keys)
        text = self._text(inputs["text"]) if self.text_length else None
        return self._through(x, self._embed(t, inputs, text), text, dropout_keys)

    def _through(self, x, emb, text, keys, block=DiTBlock, told=()):
        """F of x, its embedding and its text's tokens; `told` comes after keys in every block."""
        emb = nn.swish(emb)
        patches = space_to_depth(x, self.patch_size)
        _, rows, columns, _ = patches.shape
        tokens = patches.reshape(x.shape[0], rows * columns, -1)
        h = nn.Dense(self.width, kernel_init=fan_avg, dtype=self.dtype, name="patches")(tokens)
        places = positions(rows, columns, self.width, self.position_grid)
        h = h + jnp.asarray(places, self.dtype)[None]
        text = text if text is None else text.astype(self.dtype)
        if text is not None and self.text_as == "tokens":
            h, text = jnp.concatenate([h, text], axis=1), None
        keys = keys if self.dropout else None
        h = self._blocks(block, h, emb.astype(self.dtype), keys, (text, *told))
        h = h[:, : rows * columns]
        self.sow("intermediates", MIDDLE, h.reshape(x.shape[0], rows, columns, self.width))
        two = nn.Dense(2 * self.width, kernel_init=zeros, name="modulation_out")(emb)
        norm = LayerNorm(1e-6, affine=False, dtype="float32")
        h = modulate(norm(h), *jnp.split(two, 2, axis=-1))
        features = self.patch_size**2 * (self.out_channels + self.unused_channels)
        h = nn.Dense(features, kernel_init=zeros, name="out")(h)
        h = depth_to_space(h.reshape(x.shape[0], rows, columns, features), self.patch_size)
        return h[..., : self.out_channels]

    def _text(self, text):
        """Features of a text's tokens, [B, L, width] float32."""
        if self.context_dim:
            return nn.Dense(self.width, kernel_init=fan_avg, name="text")(text)
        return self.text_tokens(text)

    @property
    def text_tokens(self) -> TextTokens:
        """The layers that learn features of tokens."""
        options = (self.vocabulary, self.text_features, self.text_depth, self.width, self.dtype)
        return TextTokens(*options, name="text")

    def _blocks(self, block, h, emb, keys, told):
        """All blocks in a loop that is compiled once; each has dropout keys of its own."""
        if keys is not None:
            fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
            keys = jax.vmap(fold, in_axes=(None, 0))(keys, jnp.arange(self.depth))
        shared = self.modulation == "shared"
        if shared:
            dense = nn.Dense(6 * self.width, kernel_init=zeros, dtype=self.dtype, name="modulation")
            emb = dense(emb)
        options = (self.heads, self.eps, self.dropout, self.dtype, shared)
        return self._loop(block, options, h, emb, keys, told)

    def _loop(self, block, options, h, emb, keys, told):
        """Blocks of one program, whose parameters lie stacked."""
        loop = nn.scan(
            kept(block, self.remat, prevent_cse=False),
            variable_axes={"params": 0, CACHE: 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, *(nn.broadcast for _ in told)),
            length=self.depth,
        )
        return loop(*options, name=LOOP)(h, emb, keys, *told)[0]

    def _check(self, x, t, inputs, dropout_keys):
        check_options(self, modulation=("block", "shared"), text_as=("tokens", "keys"))
        if self.text_length:
            check_text(self)
        check_divides("heads", self.heads, self.width)
        if self.width % 4:
            raise ValueError(f"width must be a multiple of 4 for the positions, got {self.width}")
        factors = {f"patch_size {self.patch_size}": self.patch_size}
        decided_by = ("num_classes", "text_length", "scalars")
        options = dict(factors=factors, decided_by=decided_by)
        check_inputs(self, x, t, inputs, dropout_keys, **options)

    def _embed(self, t, inputs, text):
        """Sums the embeddings of time, label, text and scalars: [B, width] float32."""
        emb = self._number("time", t, normal)
        if text is not None:
            emb = emb + nn.Dense(self.width, kernel_init=fan_avg, name="text_mean")(text.mean(1))
        if self.num_classes:
            rows = self.num_classes + int(self.null_label)
            embed = nn.Embed(rows, self.width, embedding_init=normal, name="label")
            emb = emb + embed(inputs["label"])
        for name in self.scalars:
            emb = emb + self._number(name, scalar(self, name, inputs[name]), zeros)
        return emb

    def _number(self, name, value, last_init):
        features = time_embedding(self.time_scale * value, FREQUENCIES, self.time_embedding)
        return two_layers(name, features, self.width, normal, last_init)
