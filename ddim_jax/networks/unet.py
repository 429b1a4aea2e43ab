"""The convolutional UNet of DDPM and ADM, one flax module for both families.

A stack of resolution levels, each of `num_blocks` residual blocks (with attention at the sizes
listed in `attention_resolutions`), goes down, through a middle of block / attention / block, and
up again with a skip connection from every feature map of the way down. Time, label and scalars add
up to one embedding that shifts (DDPM) or scales and shifts (ADM) the features of every block.

    published network              arguments beside the sizes
    DDPM  (arXiv:2006.11239)       the defaults
    ADM   (arXiv:2105.05233)       scale_shift, resample_blocks, head_channels=64,
                                   time_embedding="adm", norm_eps=1e-5, null_label=False

The last convolution of each residual block, the output projection of attention and the final
convolution start at zero, so a fresh network returns zeros; other weights follow DDPM (uniform
variance scaling over the mean of fan-in and fan-out). Feature maps are [B, H, W, C]. Parameters,
normalisation statistics, the embedding of t and the output are float32 whatever `dtype` is.
"""

import functools
from types import MappingProxyType

import flax.linen as nn

from ddim_jax.dropping import AUGMENT
from ddim_jax.inputs import Input
from ddim_jax.names import check_range
from ddim_jax.networks.blocks import MIDDLE, AttentionBlock, ResBlock, ascend, descend
from ddim_jax.networks.layers import (
    PADDINGS,
    Conv3x3,
    GroupNorm,
    depth_to_space,
    space_to_depth,
    time_embedding,
    two_layers,
    upsample,
    zeros,
)
from ddim_jax.networks.options import check_inputs, check_options, kept, scalar


class UNet(nn.Module):
    """F = UNet(...).apply({"params": p}, x, t, inputs); see the module docstring.

    Attributes:
        out_channels: channels of F.
        channels: base width; must be even, the time embedding has as many features.
        channel_mults: width of each level in units of `channels`, from the finest to the coarsest.
        num_blocks: residual blocks per level on the way down; one more on the way up.
        attention_resolutions: heights of the feature maps, after patching, that get attention in
            every block. The middle always has it: () gives attention there only.
        num_heads: attention heads.
        head_channels: channels of each head; overrides num_heads.
        dropout: rate inside residual blocks, of calls with dropout keys.
        num_classes: 0 for none; else inputs["label"] is wanted, [B] int in 0..num_classes, where
            num_classes is the null label of classifier-free guidance.
        null_label: whether the embedding has that extra row; False for published ADM weights.
        scalars: further inputs, inputs[name] [B] float each, embedded like times: "guidance", the
            scale that a guided student was distilled at, "interval", the length of its step.
            Their embeddings start at zero: a network that is given one is unchanged at first.
        augment: how many numbers say how a picture was changed, inputs["augment"] [B, augment]; 0
            for none. A layer without bias, which starts at zero, adds them to the embedding.
        scale_shift: the embedding scales and shifts after the second norm (ADM), not adds before.
        resample_blocks: resample inside residual blocks (ADM) rather than by a strided convolution
            and by repetition followed by a convolution.
        down_padding: "same" (TF, DDPM) or "symmetric" (PyTorch), for the strided convolution.
        time_embedding: "ddpm", "adm" or "dit", see `time_embedding`.
        time_scale: of t and scalars before they are embedded. Losses with a derivative by time
            (MeanFlow, sCM) need it small: at 1 the fastest feature has a slope of 1,000 over a
            schedule of length 1.
        interval_scale: the same of the scalar "interval" alone, for losses with a derivative by it
            (flow maps); None: time_scale.
        norm_eps: epsilon of the group norms, 1e-6 in DDPM and 1e-5 in ADM.
        group_channels: least channels of a norm group; of at most 32 groups (see `GroupNorm`).
        patch_size: the network works on patch_size x patch_size pixels as channels.
        dtype: compute dtype, "float32" or "bfloat16"; the last norm and convolution are float32.
        remat: what the backward pass recomputes to save memory: "none"; "convolutions" keeps the
            outputs of convolutions and recomputes norms, activations and attention, which costs
            next to nothing; "products" keeps the outputs of dense layers too; "blocks" recomputes
            whole residual and attention blocks.

    Source: Ho et al. 2020, arXiv:2006.11239; Dhariwal & Nichol 2021, arXiv:2105.05233.
    """

    out_channels: int = 3
    channels: int = 128
    channel_mults: tuple[float, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    head_channels: int | None = None
    dropout: float = 0.0
    num_classes: int = 0
    null_label: bool = True
    scalars: tuple[str, ...] = ()
    augment: int = 0
    scale_shift: bool = False
    resample_blocks: bool = False
    down_padding: str = "same"
    time_embedding: str = "ddpm"
    time_scale: float = 1.0
    interval_scale: float | None = None
    norm_eps: float = 1e-6
    group_channels: int = 4
    patch_size: int = 1
    dtype: str = "float32"
    remat: str = "none"

    @property
    def inputs(self) -> dict[str, Input]:
        """What the network is told beside x and t, by name."""
        label = {"label": Input((), "int32", self.num_classes)} if self.num_classes else {}
        check_range("config.model.augment", self.augment, "[0, 256]", "9 is usual", whole=True)
        changes = {AUGMENT: Input((self.augment,))} if self.augment else {}
        return label | changes | {name: Input() for name in self.scalars}

    @nn.compact
    def __call__(self, x, t, inputs=MappingProxyType({}), dropout_keys=None):
        """Evaluates the network.

        Args:
            x: [B, H, W, C] float32; H and W divisible by patch_size * 2 ** (levels - 1).
            t: [B] float32 model time, in the units the network was trained on (0..999 for DDPM).
            inputs: name -> [B], exactly those of `self.inputs`.
            dropout_keys: [B], one key per sample, for training; None for no dropout.

        Returns:
            [B, H, W, out_channels] float32.

        Raises:
            ValueError: shapes or inputs do not fit the attributes; raised while tracing.
        """
        self._check(x, t, inputs, dropout_keys)
        return self._through(x, self._embed(t, inputs), dropout_keys)

    def _through(self, x, emb, keys, between=lambda name, h: h):
        """F of x and its embedding; `between` follows every block, of this name."""
        keys = keys if self.dropout else None
        emb = nn.swish(emb).astype(self.dtype)

        def block(name, level, h):
            return between(name, self._block(name, level, h, emb, keys))

        h = self._conv(self._width(0), "conv_in")(space_to_depth(x, self.patch_size))
        depth = len(self.channel_mults), self.num_blocks
        h, skips = descend(h, *depth, block, functools.partial(self._down, emb=emb, keys=keys))
        h = self._res("mid_0", -1)(h, emb, keys)
        h = between("mid", self._attention("mid_attention", h))
        h = self._res("mid_1", -1)(h, emb, keys)
        self.sow("intermediates", MIDDLE, h)
        h = ascend(h, skips, *depth, block, functools.partial(self._up, emb=emb, keys=keys))
        h = nn.swish(GroupNorm(self.norm_eps, self.group_channels, name="norm_out")(h))
        features = self.out_channels * self.patch_size**2
        h = Conv3x3(features, kernel_init=zeros, name="conv_out")(h)
        return depth_to_space(h, self.patch_size)

    def _check(self, x, t, inputs, dropout_keys):
        check_options(self, down_padding=tuple(PADDINGS))
        if not self.channel_mults:
            raise ValueError("config.model.channel_mults must have an entry for each level, got ()")
        for mult in self.channel_mults:
            check_range("an entry of config.model.channel_mults", mult, "(0, 1024]")
        for side in self.attention_resolutions:
            what = "an entry of config.model.attention_resolutions"
            check_range(what, side, "[1, 65536]", "16 or so", whole=True)
        if self.channels % 2 or self.channels < 4:
            raise ValueError(f"channels must be even and at least 4, got {self.channels}")
        levels = len(self.channel_mults)
        factors = {
            f"patch_size {self.patch_size}": self.patch_size,
            f"2 ** ({levels} levels - 1)": 2 ** (levels - 1),
        }
        decided_by = ("num_classes", "scalars", "augment")
        options = dict(factors=factors, decided_by=decided_by)
        check_inputs(self, x, t, inputs, dropout_keys, **options)

    def _width(self, level):
        return int(self.channels * self.channel_mults[level])

    def _conv(self, features, name, stride=1):
        padding = self.down_padding if stride == 2 else "same"
        return Conv3x3(features, stride=stride, padding=padding, dtype=self.dtype, name=name)

    def _res(self, name, level, resample="none"):
        norm = (self.norm_eps, self.group_channels)
        options = (self.dropout, self.scale_shift, resample, *norm, self.dtype)
        return kept(ResBlock, self.remat)(self._width(level), *options, name=name)

    def _attention(self, name, h):
        module = kept(AttentionBlock, self.remat)
        channels = h.shape[-1]
        if channels % (self.head_channels or self.num_heads):
            raise ValueError(
                f"attention at width {channels} needs head_channels or num_heads to divide it, "
                f"got head_channels={self.head_channels}, num_heads={self.num_heads}"
            )
        heads = channels // self.head_channels if self.head_channels else self.num_heads
        return module(heads, self.norm_eps, self.group_channels, self.dtype, name=name)(h)

    def _block(self, name, level, h, emb, keys):
        h = self._res(name, level)(h, emb, keys)
        if h.shape[1] in self.attention_resolutions:
            h = self._attention(f"{name}_attention", h)
        return h

    def _down(self, level, h, emb, keys):
        name = f"down_{level}_resample"
        if self.resample_blocks:
            return self._res(name, level, "down")(h, emb, keys)
        return self._conv(h.shape[-1], name, stride=2)(h)

    def _up(self, level, h, size, emb, keys):
        name = f"up_{level}_resample"
        if self.resample_blocks:
            return self._res(name, level, "up")(h, emb, keys)
        return self._conv(h.shape[-1], name)(upsample(h))

    def _embed(self, t, inputs):
        """Sums the embeddings of time, label and scalars: [B, 4 * channels] float32."""
        width = 4 * self.channels
        emb = two_layers("time", self._features(t), width)
        if self.num_classes:
            rows = self.num_classes + int(self.null_label)
            init = nn.initializers.normal(1.0)
            emb = emb + nn.Embed(rows, width, embedding_init=init, name="label")(inputs["label"])
        if self.augment:
            dense = nn.Dense(width, use_bias=False, kernel_init=zeros, name=f"{AUGMENT}_0")
            emb = emb + dense(inputs[AUGMENT])
        for name in self.scalars:
            features = self._features(scalar(self, name, inputs[name]))
            emb = emb + two_layers(name, features, width, last_init=zeros)
        return emb

    def _features(self, t):
        return time_embedding(self.time_scale * t, self.channels, self.time_embedding)
