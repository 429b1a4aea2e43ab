"""Our networks written again on torch, with the same names of parameters, to be measured beside.

    net = twin(network, channels, size)     of a `UNet`, `TextUNet` or `DiT` of ours
    copy(params, net)                       our parameters into it
    F = net(x, t, inputs)                   x [B, C, H, W] in its dtype, t [B] float32

Norms, attention (`scaled_dot_product_attention`), convolutions and dense layers are torch's own;
feature maps may have channels last. Only options that the measured networks use are there.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ddim_jax.networks.layers import group_count
from ddim_jax.networks.text_unet import TextUNet
from ddim_jax.networks.transformer import FREQUENCIES, DiT, positions
from ddim_jax.networks.unet import UNet


def time_embedding(t: torch.Tensor, channels: int, kind: str) -> torch.Tensor:
    """Sines and cosines [B, channels] of t [B], as our function of this name."""
    half = channels // 2
    spacing = math.log(10000.0) / (half if kind == "adm" else half - 1)
    frequencies = torch.exp(-spacing * torch.arange(half, device=t.device))
    angles = t[:, None] * frequencies
    parts = (angles.sin(), angles.cos())
    return torch.cat(parts if kind == "ddpm" else parts[::-1], dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of [B, N, C] to [B, M, C]."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.ModuleDict):
    """Of tokens to themselves, or to a context of `context` features."""

    def __init__(self, width: int, heads: int, context: int = 0, bias: bool = False):
        if context:
            parts = {name: nn.Linear(context, width, bias=False) for name in "kv"}
            parts["q"] = nn.Linear(width, width, bias=False)
        else:
            parts = {"qkv": nn.Linear(width, 3 * width, bias=bias)}
        super().__init__(parts | {"out": nn.Linear(width, width)})
        self.heads = heads

    def forward(self, x, context=None):
        """Returns [B, N, C]."""
        if context is None:
            q, k, v = self["qkv"](x).chunk(3, dim=-1)
        else:
            q, k, v = self["q"](x), self["k"](context), self["v"](context)
        return self["out"](attend(q, k, v, self.heads))


class FeedForward(nn.ModuleDict):
    """Two layers, GEGLU or GELU by tanh."""

    def __init__(self, width: int, gated: bool):
        hidden = nn.Linear(width, 4 * width * (1 + gated))
        super().__init__({"in": hidden, "out": nn.Linear(4 * width, width)})
        self.gated = gated

    def forward(self, x):
        """Returns [B, N, C]."""
        h = self["in"](x)
        if not self.gated:
            return self["out"](F.gelu(h, approximate="tanh"))
        h, gate = h.chunk(2, dim=-1)
        return self["out"](h * F.gelu(gate))


class DiTBlock(nn.ModuleDict):
    """Attention and feed-forward, modulated and gated."""

    def __init__(self, net: DiT):
        width = net.width
        parts = {"modulation": nn.Linear(width, 6 * width)}
        parts["attention"] = Attention(width, net.heads, bias=True)
        super().__init__(parts | {"feed": FeedForward(width, gated=False)})
        self.width, self.eps = width, net.eps

    def forward(self, x, emb):
        """Returns x of the next block."""
        six = self["modulation"](emb)[:, None].chunk(6, dim=-1)
        shift_0, scale_0, gate_0, shift_1, scale_1, gate_1 = six
        h = F.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale_0) + shift_0
        x = x + gate_0 * self["attention"](h)
        h = F.layer_norm(x, (self.width,), eps=self.eps) * (1 + scale_1) + shift_1
        return x + gate_1 * self["feed"](h)


class TorchDiT(nn.ModuleDict):
    """`DiT` of labels, on torch."""

    def __init__(self, net: DiT, channels: int, size: int):
        width, patch = net.width, net.patch_size
        features = patch**2 * (net.out_channels + net.unused_channels)
        parts = {"time_0": nn.Linear(FREQUENCIES, width), "time_1": nn.Linear(width, width)}
        if net.num_classes:
            parts["label"] = nn.Embedding(net.num_classes + net.null_label, width)
        parts["patches"] = nn.Linear(patch**2 * channels, width)
        parts["blocks"] = nn.ModuleList(DiTBlock(net) for _ in range(net.depth))
        parts["modulation_out"] = nn.Linear(width, 2 * width)
        super().__init__(parts | {"out": nn.Linear(width, features)})
        self.net = net
        places = positions(size // patch, size // patch, width, net.position_grid)
        self.register_buffer("places", torch.from_numpy(places))

    def forward(self, x, t, inputs):
        """Returns [B, out_channels, H, W]."""
        net, patch = self.net, self.net.patch_size
        features = time_embedding(net.time_scale * t, FREQUENCIES, net.time_embedding)
        emb = self["time_1"](F.silu(self["time_0"](features.to(x.dtype))))
        if net.num_classes:
            emb = emb + self["label"](inputs["label"])
        emb = F.silu(emb)
        b, c, height, width = x.shape
        grid = x.reshape(b, c, height // patch, patch, width // patch, patch)
        tokens = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        h = self["patches"](tokens) + self.places.to(x.dtype)
        for block in self["blocks"]:
            h = block(h, emb)
        shift, scale = self["modulation_out"](emb)[:, None].chunk(2, dim=-1)
        h = self["out"](F.layer_norm(h, (net.width,), eps=1e-6) * (1 + scale) + shift)
        h = h.reshape(b, height // patch, width // patch, patch, patch, -1)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)[:, : net.out_channels]


class ResBlock(nn.ModuleDict):
    """Norm, swish, convolution, embedding, norm, swish, dropout, convolution."""

    def __init__(self, inner: int, outer: int, emb: int, norm: Any, dropout: float):
        parts = {"norm_0": norm(inner), "conv_0": nn.Conv2d(inner, outer, 3, padding=1)}
        parts |= {"emb": nn.Linear(emb, outer), "norm_1": norm(outer)}
        parts["conv_1"] = nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            parts["skip"] = nn.Conv2d(inner, outer, 1)
        super().__init__(parts)
        self.dropout = dropout

    def forward(self, x, emb):
        """Returns a feature map of the other width."""
        h = self["conv_0"](F.silu(self["norm_0"](x)))
        h = F.silu(self["norm_1"](h + self["emb"](emb)[:, :, None, None]))
        h = self["conv_1"](F.dropout(h, self.dropout, self.training))
        return h + (self["skip"](x) if "skip" in self else x)


class AttentionBlock(nn.ModuleDict):
    """Self-attention over the positions of a feature map."""

    def __init__(self, width: int, heads: int, norm: Any):
        parts = {"norm": norm(width), "qkv": nn.Linear(width, 3 * width)}
        super().__init__(parts | {"out": nn.Linear(width, width)})
        self.heads = heads

    def forward(self, x, text):
        """Returns x and what is added."""
        h = self["norm"](x).flatten(2).transpose(1, 2)
        h = self["out"](attend(*self["qkv"](h).chunk(3, dim=-1), self.heads))
        return x + h.transpose(1, 2).reshape(x.shape)


class TextBlock(nn.ModuleDict):
    """Self-attention, attention to a text, feed-forward."""

    def __init__(self, width: int, heads: int, context: int):
        parts = {f"norm_{i}": nn.LayerNorm(width) for i in range(3)}
        parts |= {"self": Attention(width, heads), "cross": Attention(width, heads, context)}
        super().__init__(parts | {"feed": FeedForward(width, gated=True)})

    def forward(self, x, text):
        """Returns [B, N, C]."""
        x = x + self["self"](self["norm_0"](x))
        x = x + self["cross"](self["norm_1"](x), text)
        return x + self["feed"](self["norm_2"](x))


class SpatialTransformer(nn.ModuleDict):
    """Blocks over the positions of a feature map, which see a text."""

    def __init__(self, width: int, depth: int, heads: int, context: int, groups: int):
        parts = {"norm": nn.GroupNorm(groups, width, eps=1e-6), "in": nn.Linear(width, width)}
        parts |= {f"block_{i}": TextBlock(width, heads, context) for i in range(depth)}
        super().__init__(parts | {"out": nn.Linear(width, width)})
        self.depth = depth

    def forward(self, x, text):
        """Returns x and what is added."""
        h = self["in"](self["norm"](x).flatten(2).transpose(1, 2))
        for i in range(self.depth):
            h = self[f"block_{i}"](h, text)
        return x + self["out"](h).transpose(1, 2).reshape(x.shape)


class TorchUNet(nn.ModuleDict):
    """`UNet` and `TextUNet` on torch."""

    def __init__(self, net: UNet | TextUNet, channels: int, size: int):
        super().__init__()
        self.net, self.told = net, isinstance(net, TextUNet)
        mults = () if self.told else net.channel_mults
        self.widths = net.widths if self.told else [int(net.channels * mult) for mult in mults]
        self.levels, self.first = len(self.widths), self.widths[0]
        self.symmetric = net.down_padding == "symmetric"
        emb = 4 * self.first
        self["time_0"], self["time_1"] = nn.Linear(self.first, emb), nn.Linear(emb, emb)
        self["conv_in"] = nn.Conv2d(channels, self.first, 3, padding=1)
        skips, width = [self.first], self.first
        for level in range(self.levels):
            if level:
                padding = 1 if self.symmetric else 0
                resample = nn.Conv2d(width, width, 3, stride=2, padding=padding)
                self[f"down_{level - 1}_resample"] = resample
                skips.append(width)
            for i in range(net.num_blocks):
                self._block(f"down_{level}_{i}", width, level, size >> level)
                width = self.widths[level]
                skips.append(width)
        self["mid_0"], self["mid_1"] = (self._res(width, width) for _ in range(2))
        self["mid_attention"] = self._attention(-1, net.mid_depth if self.told else 1)
        for level in reversed(range(self.levels)):
            for i in range(net.num_blocks + 1):
                self._block(f"up_{level}_{i}", width + skips.pop(), level, size >> level)
                width = self.widths[level]
            if level:
                self[f"up_{level}_resample"] = nn.Conv2d(width, width, 3, padding=1)
        self["norm_out"] = self._norm(width)
        self["conv_out"] = nn.Conv2d(width, net.out_channels, 3, padding=1)

    def _norm(self, width):
        groups = self.net.groups if self.told else group_count(width, self.net.group_channels)
        return nn.GroupNorm(groups, width, eps=self.net.norm_eps)

    def _res(self, inner, outer):
        return ResBlock(inner, outer, 4 * self.first, self._norm, self.net.dropout)

    def _attention(self, level, depth):
        net, width = self.net, self.widths[level]
        if not self.told:
            return AttentionBlock(width, net.num_heads, self._norm)
        return SpatialTransformer(width, depth, net.heads[level], net.context_dim, net.groups)

    def _block(self, name, inner, level, side):
        self[name] = self._res(inner, self.widths[level])
        depth = self.net.depths[level] if self.told else side in self.net.attention_resolutions
        if depth:
            self[f"{name}_attention"] = self._attention(level, depth)

    def forward(self, x, t, inputs):
        """Returns [B, out_channels, H, W]."""
        features = time_embedding(self.net.time_scale * t, self.first, self.net.time_embedding)
        emb = F.silu(self["time_1"](F.silu(self["time_0"](features.to(x.dtype)))))
        through = functools.partial(self._through, emb=emb, text=inputs.get("text"))
        h = self["conv_in"](x)
        skips = [h]
        for level in range(self.levels):
            if level:
                h = h if self.symmetric else F.pad(h, (0, 1, 0, 1))
                h = self[f"down_{level - 1}_resample"](h)
                skips.append(h)
            for i in range(self.net.num_blocks):
                h = through(f"down_{level}_{i}", h)
                skips.append(h)
        h = through("mid_0", h)
        h = self["mid_attention"](h, inputs.get("text"))
        h = through("mid_1", h)
        for level in reversed(range(self.levels)):
            for i in range(self.net.num_blocks + 1):
                h = through(f"up_{level}_{i}", torch.cat([h, skips.pop()], dim=1))
            if level:
                h = self[f"up_{level}_resample"](F.interpolate(h, scale_factor=2.0))
        return self["conv_out"](F.silu(self["norm_out"](h)))

    def _through(self, name, h, emb, text):
        h = self[name](h, emb)
        attention = f"{name}_attention"
        return self[attention](h, text) if attention in self else h


def twin(net: Any, channels: int, size: int) -> nn.Module:
    """The network of x [B, channels, size, size] on torch, with torch's own parameters."""
    return (TorchDiT if isinstance(net, DiT) else TorchUNet)(net, channels, size)


@torch.no_grad()
def copy(params: Any, net: nn.Module) -> None:
    """Copies our parameters into a network of `twin`.

    Args:
        params: nested dicts of torch tensors.
        net: on the same device.

    Raises:
        ValueError: a parameter is on one side only.
    """
    used = set()
    for name, parameter in net.named_parameters():
        *path, kind = name.split(".")
        index = int(path.pop(1)) if path[0] == "blocks" else None  # ours are stacked
        found = functools.reduce(lambda tree, key: tree[key], path, params)
        names = {"weight": ("kernel", "scale", "embedding"), "bias": ("bias",)}[kind]
        (key,) = [key for key in names if key in found]
        used.add((*path, key))
        value = found[key] if index is None else found[key][index]
        if key == "kernel":  # [..., I, O] to [O, I, ...]
            value = value.movedim((-1, -2), (0, 1))
        parameter.copy_(value.reshape(parameter.shape))
    ours = set(_paths(params))
    if ours != used:
        raise ValueError(f"parameters that the twin lacks: {sorted(ours - used)}")


def _paths(tree: Any, path: tuple[str, ...] = ()):
    for key, value in tree.items():
        yield from _paths(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]


def update(net: nn.Module, adam: torch.optim.Optimizer, average: list, loss: torch.Tensor) -> None:
    """What follows the loss in a train step: gradients, clipping, Adam and the moving average."""
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    adam.step()
    with torch.no_grad():
        torch._foreach_lerp_(average, list(net.parameters()), 1e-4)
