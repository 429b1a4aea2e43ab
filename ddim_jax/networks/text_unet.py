"""The UNet of latent diffusion: DDPM's residual blocks, and transformers that attend to a text.

    published network          arguments beside the defaults
    Stable Diffusion 1         -
    Stable Diffusion 2         heads=(5, 10, 20, 20), context_dim=1024
    Stable Diffusion XL        widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10,
                               heads=(5, 10, 20), context_dim=2048, vector_dim=1280, sizes=6
    latent consistency (SD 1)  guidance_dim=256
    inpainting                 -; x has 9 channels: noisy latents, mask, latents of what is kept
    x4 upscaler                widths=(256, 512, 512, 1024), depths=(0, 1, 1, 1), context_dim=1024,
                               num_classes=1000, text_only=(True, True, True, False); x has 7
                               channels: noisy latents, small picture

Turbo and Lightning networks are those of the models that they were distilled from. The last
convolution of each residual block, the output projection of each transformer and the final
convolution start at zero, as in `UNet`: a fresh network returns zeros.

Sources: Rombach et al. 2022 (arXiv:2112.10752); Podell et al. 2023 (arXiv:2307.01952), section 2.2,
for the sizes; Luo et al. 2023 (arXiv:2310.04378), section 4.3, for the guidance scale.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from ddim_jax.inputs import Input
from ddim_jax.networks.blocks import MIDDLE, ResBlock, SpatialTransformer, ascend, descend
from ddim_jax.networks.layers import (
    PADDINGS,
    Conv3x3,
    GroupNorm,
    time_embedding,
    two_layers,
    upsample,
    zeros,
)
from ddim_jax.networks.options import check_inputs, check_options, check_text, kept, scalar
from ddim_jax.networks.transformer import TextTokens

GUIDANCE_UNITS = 1000.0


class TextUNet(nn.Module):
    """F = TextUNet(...).apply({"params": p}, x, t, inputs); see the module docstring.

    Attributes:
        out_channels: channels of F.
        widths: of the levels, from the finest to the coarsest.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        depths: transformer blocks after each residual block of a level; 0 for none.
        mid_depth: of the middle.
        heads: attention heads of each level; they divide its width.
        text_only: levels whose positions do not attend to each other but twice to the text; () for
            none.
        text_length: tokens of a text.
        context_dim: features of a token; inputs["text"] is [B, text_length, context_dim]. 0: it is
            [B, text_length] int, numbers of tokens whose features are learnt, as in `DiT`.
        vocabulary: number of those tokens.
        text_features: of a learnt token, a multiple of 64 or less.
        text_depth: blocks that learnt tokens pass through.
        vector_dim: features of inputs["vector"], the pooled text of SDXL; 0 for none.
        sizes: numbers in inputs["sizes"], with a vector: in SDXL height and width of the original,
            top and left of its crop, height and width wanted, in pixels.
        size_dim: features that each of those is embedded in.
        guidance_dim: features of inputs["guidance"], the guidance scale of LCM; 0: it is no input.
        num_classes: 0 for none; else rows of an embedding for inputs["label"], [B] int (of the x4
            upscaler: how much noise the small picture was given).
        null_label: one row more, for the label num_classes, which stands for none and is what a
            label is dropped for.
        scalars: further inputs, as in `UNet`.
        time_scale: of t and scalars before they are embedded, as in `UNet`.
        time_embedding: see `time_embedding`.
        dropout: rate inside residual blocks, of calls with dropout keys.
        norm_eps: of the residual blocks' norms and the last one.
        groups: of every group norm; they divide each width, and the sums of neighbouring ones.
        down_padding: "symmetric" or "same", for the strided convolutions, as in `UNet`.
        dtype: compute dtype, "float32" or "bfloat16"; the last norm and convolution are float32.
        remat: what the backward pass recomputes, as in `UNet`.
    """

    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    num_blocks: int = 2
    depths: tuple[int, ...] = (1, 1, 1, 0)
    mid_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    text_only: tuple[bool, ...] = ()
    text_length: int = 77
    context_dim: int = 768
    vocabulary: int = 0
    text_features: int = 128
    text_depth: int = 1
    vector_dim: int = 0
    sizes: int = 0
    size_dim: int = 256
    guidance_dim: int = 0
    num_classes: int = 0
    null_label: bool = False
    scalars: tuple[str, ...] = ()
    time_scale: float = 1.0
    time_embedding: str = "adm"
    dropout: float = 0.0
    norm_eps: float = 1e-5
    groups: int = 32
    down_padding: str = "symmetric"
    dtype: str = "float32"
    remat: str = "none"

    multiple = 1
    """Of what number height and width of x must be multiples."""

    @property
    def inputs(self) -> dict[str, Input]:
        """What the network is told beside x and t, by name.

        A text's null value is zeros; models whose null text is an encoded one replace it.
        """
        if self.context_dim:
            told = {"text": Input((self.text_length, self.context_dim), null=0.0)}
        else:
            told = {"text": Input((self.text_length,), "int32", 0)}
        if self.vector_dim:
            told["vector"] = Input((self.vector_dim,), null=0.0)
        if self.sizes:
            told["sizes"] = Input((self.sizes,))
        if self.guidance_dim:
            told["guidance"] = Input()
        if self.num_classes:
            told["label"] = Input((), "int32", self.num_classes if self.null_label else None)
        return told | {name: Input() for name in self.scalars}

    @nn.compact
    def __call__(self, x, t, inputs, dropout_keys=None):
        """Evaluates the network.

        Args:
            x: [B, H, W, C] float32, of any height and width.
            t: [B] float32 model time, 0..999.
            inputs: name -> [B, ...], exactly those of `self.inputs`.
            dropout_keys: [B], one key per sample, for training; None for no dropout.

        Returns:
            [B, H, W, out_channels] float32.

        Raises:
            ValueError: shapes or inputs do not fit the attributes; raised while tracing.
        """
        self._check(x, t, inputs, dropout_keys)
        keys = dropout_keys if self.dropout else None
        emb = nn.swish(self._embed(t, inputs)).astype(self.dtype)
        text = inputs["text"] if self.context_dim else self.text_tokens(inputs["text"])
        text = text.astype(self.dtype)
        depth = len(self.widths), self.num_blocks
        block = functools.partial(self._block, emb=emb, text=text, keys=keys)
        h = self._conv(self.widths[0], "conv_in")(x)
        h, skips = descend(h, *depth, block, self._down)
        h = self._res("mid_0", -1)(h, emb, keys)
        h = self._transformer("mid_attention", -1, self.mid_depth)(h, text)
        h = self._res("mid_1", -1)(h, emb, keys)
        self.sow("intermediates", MIDDLE, h)
        h = ascend(h, skips, *depth, block, self._up)
        h = nn.swish(GroupNorm(self.norm_eps, groups=self.groups, name="norm_out")(h))
        return Conv3x3(self.out_channels, kernel_init=zeros, name="conv_out")(h)

    def _check(self, x, t, inputs, dropout_keys):
        check_options(self, down_padding=tuple(PADDINGS))
        check_text(self)
        levels = len(self.widths)
        for name in ("depths", "heads"):
            given = getattr(self, name)
            if len(given) != levels:
                raise ValueError(f"{name} must be {levels} numbers, one per width, got {given}")
        if len(self.text_only) not in (0, levels):
            raise ValueError(f"text_only must be () or {levels} truths, got {self.text_only}")
        if self.sizes and not self.vector_dim:
            raise ValueError(f"sizes={self.sizes} need a vector; give vector_dim, 1280 in SDXL")
        if self.guidance_dim and "guidance" in self.scalars:
            raise ValueError("guidance is embedded by guidance_dim or as one of scalars, not both")
        decided_by = ["text_length", "context_dim", "vocabulary", "vector_dim", "sizes"]
        decided_by += ["guidance_dim", "num_classes", "scalars"]
        check_inputs(self, x, t, inputs, dropout_keys, factors={}, decided_by=decided_by)

    def _conv(self, features, name, stride=1):
        padding = self.down_padding if stride == 2 else "same"
        return Conv3x3(features, stride=stride, padding=padding, dtype=self.dtype, name=name)

    def _res(self, name, level):
        return kept(ResBlock, self.remat)(
            self.widths[level],
            dropout=self.dropout,
            norm_eps=self.norm_eps,
            groups=self.groups,
            dtype=self.dtype,
            name=name,
        )

    def _transformer(self, name, level, depth, text_only=False):
        module = kept(SpatialTransformer, self.remat)
        return module(depth, self.heads[level], self.groups, text_only, self.dtype, name=name)

    def _block(self, name, level, h, emb, text, keys):
        h = self._res(name, level)(h, emb, keys)
        if self.depths[level]:
            text_only = bool(self.text_only) and self.text_only[level]
            options = (level, self.depths[level], text_only)
            h = self._transformer(f"{name}_attention", *options)(h, text)
        return h

    def _down(self, level, h):
        return self._conv(h.shape[-1], f"down_{level}_resample", stride=2)(h)

    def _up(self, level, h, size):
        h = upsample(h)[:, : size[0], : size[1]]
        return self._conv(h.shape[-1], f"up_{level}_resample")(h)

    def _embed(self, t, inputs):
        """Sums the embeddings of all inputs but the text: [B, 4 * widths[0]] float32."""
        width, features = 4 * self.widths[0], self._features(t)
        if self.guidance_dim:
            scale = GUIDANCE_UNITS * (inputs["guidance"] - 1)
            scale = time_embedding(scale, self.guidance_dim, "ddpm")
            project = nn.Dense(self.widths[0], use_bias=False, kernel_init=zeros, name="guidance")
            features = features + project(scale)
        emb = two_layers("time", features, width)
        if self.num_classes:
            init = nn.initializers.normal(1.0)
            rows = self.num_classes + int(self.null_label)
            embed = nn.Embed(rows, width, embedding_init=init, name="label")
            emb = emb + embed(inputs["label"])
        if self.vector_dim:
            emb = emb + two_layers("vector", self._vector(inputs), width)
        for name in self.scalars:
            features = self._features(scalar(self, name, inputs[name]))
            emb = emb + two_layers(name, features, width, last_init=zeros)
        return emb

    def _vector(self, inputs):
        """The vector, and beside it each size embedded: [B, vector_dim + sizes * size_dim]."""
        if not self.sizes:
            return inputs["vector"]
        sizes = time_embedding(inputs["sizes"].reshape(-1), self.size_dim, "adm")
        sizes = sizes.reshape(inputs["sizes"].shape[0], -1)
        return jnp.concatenate([inputs["vector"], sizes], axis=-1)

    @property
    def text_tokens(self) -> TextTokens:
        """The layers that learn features of tokens."""
        features, dtype = self.text_features, self.dtype
        return TextTokens(self.vocabulary, features, self.text_depth, features, dtype, name="text")

    def _features(self, t):
        return time_embedding(self.time_scale * t, self.widths[0], self.time_embedding)
