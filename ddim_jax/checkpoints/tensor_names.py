"""Tensors of diffusers, transformers and the authors of DiT by our parameters.

For every network a function yields its `Entry`s, by which `tensors` converts.

    entries = text_unet(net, tensors)             tensors: what a file holds, by name
    params = to_ours(entries, tensors)            every tensor is used exactly once
    tensors = to_theirs(text_unet(net), params)
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ddim_jax.checkpoints.tensors import Entry, EveryName
from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.clip import ClipText
from ddim_jax.networks.text_unet import TextUNet
from ddim_jax.networks.tiny_autoencoder import AutoencoderTiny
from ddim_jax.networks.transformer import DiT, positions
from ddim_jax.networks.unet import UNet

Array = Any
EVERY = EveryName()
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of attention layers of feature maps, before diffusers 0.15."""


# --- layers ---------------------------------------------------------------------------------------


def _layer(ours: str, *theirs: str, bias: bool = True, pointwise: bool = False) -> Iterator[Entry]:
    """A dense layer or a convolution; several of theirs lie side by side here."""
    yield Entry(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), pointwise=pointwise)
    if bias:
        yield Entry(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs))


def _norm(ours: str, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{ours}/scale", (f"{theirs}.weight",))
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",))


def _res(ours: str, theirs: str, tensors: Any) -> Iterator[Entry]:
    """A residual block with an embedding."""
    yield from _layer(f"{ours}/emb", f"{theirs}.time_emb_proj")
    yield from _conv_block(ours, theirs, tensors)


def _conv_block(ours: str, theirs: str, tensors: Any) -> Iterator[Entry]:
    for i in range(2):
        yield from _norm(f"{ours}/norm_{i}", f"{theirs}.norm{i + 1}")
        yield from _layer(f"{ours}/conv_{i}", f"{theirs}.conv{i + 1}")
    if f"{theirs}.conv_shortcut.weight" in tensors:
        yield from _layer(f"{ours}/skip", f"{theirs}.conv_shortcut", pointwise=True)


def _attention(ours: str, theirs: str, tensors: Any) -> Iterator[Entry]:
    """Attention over a feature map, by the older names where the file has those."""
    old = f"{theirs}.to_q.weight" not in tensors
    q, k, v, out = (f"{theirs}.{before if old else now}" for before, now in OLD_NAMES.items())
    yield from _norm(f"{ours}/norm", f"{theirs}.group_norm")
    yield from _layer(f"{ours}/qkv", q, k, v)
    yield from _layer(f"{ours}/out", out)


def stacked(ours: str, blocks: int, *theirs: Callable[[int], str]) -> Iterator[Entry]:
    """A layer of all blocks, whose tensors side by side are theirs(i) of block i."""
    for part, name in (("weight", "kernel"), ("bias", "bias")):
        names = tuple(f"{one(i)}.{part}" for i in range(blocks) for one in theirs)
        yield Entry(f"{ours}/{name}", names, blocks=blocks)


# --- networks -------------------------------------------------------------------------------------


def unet(net: UNet, tensors: Any = EVERY) -> Iterator[Entry]:
    """Of diffusers' UNet2DModel; attention layers also as they were named before 0.15."""
    levels = len(net.channel_mults)
    yield from _ends()
    if net.num_classes:
        yield Entry("label/embedding", ("class_embedding.weight",))
    for ours, theirs, _ in _blocks(levels, net.num_blocks):
        yield from _res(ours, theirs.format("resnets"), tensors)
        place = theirs.format("attentions")
        if any(f"{place}.{name}.weight" in tensors for name in ("to_q", "query")):
            yield from _attention(f"{ours}_attention", place, tensors)
    yield from _resampling(levels)
    yield from _attention("mid_attention", "mid_block.attentions.0", tensors)
    for i in range(2):
        yield from _res(f"mid_{i}", f"mid_block.resnets.{i}", tensors)


def _ends() -> Iterator[Entry]:
    """The first and last layers of a UNet, and those of its time."""
    yield from _layer("conv_in", "conv_in")
    yield from _two_layers("time", "time_embedding")
    yield from _norm("norm_out", "conv_norm_out")
    yield from _layer("conv_out", "conv_out")


def _blocks(levels: int, num_blocks: int) -> Iterator[tuple[str, str, int]]:
    """(our name, theirs around the kind of the layer, level) of a UNet's blocks."""
    for level in range(levels):
        for way, place, more in (("down", level, 0), ("up", levels - 1 - level, 1)):
            for i in range(num_blocks + more):
                yield f"{way}_{level}_{i}", f"{way}_blocks.{place}.{{}}.{i}", level


def _resampling(levels: int) -> Iterator[Entry]:
    for level in range(levels):
        if level < levels - 1:
            yield from _layer(f"down_{level}_resample", f"down_blocks.{level}.downsamplers.0.conv")
        if level > 0:
            place = f"up_blocks.{levels - 1 - level}"
            yield from _layer(f"up_{level}_resample", f"{place}.upsamplers.0.conv")


def text_unet(net: TextUNet, tensors: Any = EVERY, linear: bool = False) -> Iterator[Entry]:
    """Of diffusers' UNet2DConditionModel.

    Args:
        net: the network.
        tensors: names that the file holds.
        linear: whether transformers are entered by dense layers there (`use_linear_projection`),
            rather than by 1x1 convolutions; matters for writing alone.
    """
    yield from _ends()
    if net.guidance_dim:
        yield from _layer("guidance", "time_embedding.cond_proj", bias=False)
    if net.num_classes:
        yield Entry("label/embedding", ("class_embedding.weight",))
    if net.vector_dim:
        yield from _two_layers("vector", "add_embedding")
    for ours, theirs, level in _blocks(len(net.widths), net.num_blocks):
        yield from _res(ours, theirs.format("resnets"), tensors)
        if net.depths[level]:
            place = (f"{ours}_attention", theirs.format("attentions"), net.depths[level])
            text_only = bool(net.text_only) and net.text_only[level]
            yield from _spatial(*place, linear, text_only)
    yield from _resampling(len(net.widths))
    for i in range(2):
        yield from _res(f"mid_{i}", f"mid_block.resnets.{i}", tensors)
    yield from _spatial("mid_attention", "mid_block.attentions.0", net.mid_depth, linear)


def _two_layers(ours: str, theirs: str) -> Iterator[Entry]:
    for i in range(2):
        yield from _layer(f"{ours}_{i}", f"{theirs}.linear_{i + 1}")


def _spatial(
    ours: str, theirs: str, depth: int, linear: bool, text_only: bool = False
) -> Iterator[Entry]:
    yield from _norm(f"{ours}/norm", f"{theirs}.norm")
    yield from _layer(f"{ours}/in", f"{theirs}.proj_in", pointwise=not linear)
    for i in range(depth):
        block, place = f"{ours}/block_{i}", f"{theirs}.transformer_blocks.{i}"
        for j in range(3):
            yield from _norm(f"{block}/norm_{j}", f"{place}.norm{j + 1}")
        for name, attention in (("self", f"{place}.attn1"), ("cross", f"{place}.attn2")):
            parts = {x: f"{attention}.to_{x}" for x in "qkv"}
            if name == "self" and not text_only:
                yield from _layer(f"{block}/self/qkv", *parts.values(), bias=False)
            else:
                for x, part in parts.items():
                    yield from _layer(f"{block}/{name}/{x}", part, bias=False)
            yield from _layer(f"{block}/{name}/out", f"{attention}.to_out.0")
        yield from _layer(f"{block}/feed/in", f"{place}.ff.net.0.proj")
        yield from _layer(f"{block}/feed/out", f"{place}.ff.net.2")
    yield from _layer(f"{ours}/out", f"{theirs}.proj_out", pointwise=not linear)


def autoencoder_kl(net: AutoencoderKL, tensors: Any = EVERY) -> Iterator[Entry]:
    """Of diffusers' AutoencoderKL; attention layers also as they were named before 0.15."""
    levels = len(net.widths)
    for half, more in (("encoder", 0), ("decoder", 1)):
        down = half == "encoder"
        yield from _layer(f"{half}/conv_in", f"{half}.conv_in")
        for level in range(levels):
            # their sampler is the last of a level, ours the first of the next
            place, before = (level, level - 1) if down else (levels - 1 - level,) * 2
            ours = f"{half}/level_{level}"
            way = f"{half}.{'down' if down else 'up'}_blocks"
            for i in range(net.num_blocks + more):
                theirs = f"{way}.{place}.resnets.{i}"
                yield from _conv_block(f"{ours}/block_{i}", theirs, tensors)
            if level > 0 if down else level < levels - 1:
                sampler = "downsamplers" if down else "upsamplers"
                before = before if down else place - 1
                yield from _layer(f"{ours}/resample", f"{way}.{before}.{sampler}.0.conv")
        middle, theirs = f"{half}/middle", f"{half}.mid_block"
        for i in range(2):
            yield from _conv_block(f"{middle}/block_{i}", f"{theirs}.resnets.{i}", tensors)
        if net.attention:
            yield from _attention(f"{middle}/attention", f"{theirs}.attentions.0", tensors)
        yield from _norm(f"{half}/norm_out", f"{half}.conv_norm_out")
        yield from _layer(f"{half}/conv_out", f"{half}.conv_out")
    if net.quant:
        yield from _layer("quant_out", "quant_conv", pointwise=True)
        yield from _layer("quant_in", "post_quant_conv", pointwise=True)


def autoencoder_tiny(net: AutoencoderTiny, tensors: Any = EVERY) -> Iterator[Entry]:
    """Of diffusers' AutoencoderTiny, whose layers are numbered in a row, activations too."""
    number = 0
    for level, count in enumerate(net.encoder_blocks):
        ours, first = f"encoder/level_{level}", f"encoder.layers.{number}"
        yield from _layer(f"{ours}_in", first, bias=level == 0)
        yield from _tiny_blocks(ours, "encoder.layers", number + 1, count)
        number += 1 + count
    yield from _layer("encoder/conv_out", f"encoder.layers.{number}")
    yield from _layer("decoder/conv_in", "decoder.layers.0")
    number, levels = 2, len(net.decoder_blocks)
    for level, count in zip(reversed(range(levels)), net.decoder_blocks, strict=True):
        yield from _tiny_blocks(f"decoder/level_{level}", "decoder.layers", number, count)
        number += count + (level > 0)  # without parameters: the repetition
        name = f"level_{level}_resample" if level > 0 else "conv_out"
        yield from _layer(f"decoder/{name}", f"decoder.layers.{number}", bias=level == 0)
        number += 1


def _tiny_blocks(ours: str, theirs: str, first: int, count: int) -> Iterator[Entry]:
    for i in range(count):
        for j in range(3):
            yield from _layer(f"{ours}_{i}/conv_{j}", f"{theirs}.{first + i}.conv.{2 * j}")


def clip_text(net: ClipText, tensors: Any = EVERY) -> Iterator[Entry]:
    """Of transformers' CLIPTextModel and CLIPTextModelWithProjection.

    Before transformers 5 names begin with "text_model."; so they do in a file that is not known.
    """
    first = "text_model." if "text_model.final_layer_norm.weight" in tensors else ""
    yield Entry("token/embedding", (f"{first}embeddings.token_embedding.weight",))
    yield Entry("place", (f"{first}embeddings.position_embedding.weight",))
    if f"{first}embeddings.position_ids" in tensors:  # 0, 1, 2, ... in files of transformers < 4.31
        yield Entry("", (f"{first}embeddings.position_ids",))

    def name(part):
        return lambda i: f"{first}encoder.layers.{i}.{part}"

    for ours, *theirs in (
        ("qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("out", "self_attn.out_proj"),
        ("dense_0", "mlp.fc1"),
        ("dense_1", "mlp.fc2"),
    ):
        yield from stacked(f"layers/{ours}", net.layers, *(name(part) for part in theirs))
    for i in range(2):
        for part, ours in (("weight", "scale"), ("bias", "bias")):
            names = tuple(name(f"layer_norm{i + 1}.{part}")(j) for j in range(net.layers))
            yield Entry(f"layers/norm_{i}/{ours}", names, blocks=net.layers)
    yield from _norm("norm_out", f"{first}final_layer_norm")
    if net.projection:
        yield from _layer("projection", "text_projection", bias=False)


DIT_BLOCK = {
    "modulation": "norm1.linear",
    "attention/out": "attn1.to_out.0",
    "feed/in": "ff.net.0.proj",
    "feed/out": "ff.net.2",
}
DIT_AUTHORS_BLOCK = {
    "modulation": "adaLN_modulation.1",
    "attention/qkv": "attn.qkv",
    "attention/out": "attn.proj",
    "feed/in": "mlp.fc1",
    "feed/out": "mlp.fc2",
}


def dit(net: DiT, tensors: Any = EVERY) -> Iterator[Entry]:
    """Of diffusers' DiTTransformer2DModel, whose blocks hold a copy each of the embeddings."""

    def copies(ours, theirs):
        places = (f"transformer_blocks.{i}.norm1.emb.{theirs}" for i in range(net.depth))
        return Entry(ours, tuple(places), copies=True)

    yield Entry("patches/kernel", ("pos_embed.proj.weight",), patch=net.patch_size)
    yield Entry("patches/bias", ("pos_embed.proj.bias",))
    for i in range(2):
        for part, ours in (("weight", "kernel"), ("bias", "bias")):
            yield copies(f"time_{i}/{ours}", f"timestep_embedder.linear_{i + 1}.{part}")
    if net.num_classes:
        yield copies("label/embedding", "class_embedder.embedding_table.weight")

    def name(part):
        return lambda i: f"transformer_blocks.{i}.{part}"

    qkv = (name(f"attn1.to_{x}") for x in "qkv")
    yield from stacked("blocks/attention/qkv", net.depth, *qkv)
    for ours, theirs in DIT_BLOCK.items():
        yield from stacked(f"blocks/{ours}", net.depth, name(theirs))
    yield from _layer("modulation_out", "proj_out_1")
    yield from _layer("out", "proj_out_2")


def dit_authors(net: DiT, tensors: Any = EVERY) -> Iterator[Entry]:
    """Of the authors' DiT and SiT state dicts, also of those trained by their code, as REPA's.

    Raises:
        ValueError: the file holds other positions than the sines and cosines that the network adds.
    """
    if "pos_embed" in tensors:
        _check_positions(net, tensors)
        yield Entry("", ("pos_embed",))
    yield Entry("patches/kernel", ("x_embedder.proj.weight",), patch=net.patch_size)
    yield Entry("patches/bias", ("x_embedder.proj.bias",))
    yield from _layer("time_0", "t_embedder.mlp.0")
    yield from _layer("time_1", "t_embedder.mlp.2")
    if net.num_classes:
        yield Entry("label/embedding", ("y_embedder.embedding_table.weight",))
    for ours, theirs in DIT_AUTHORS_BLOCK.items():
        name = f"blocks.{{}}.{theirs}".format
        yield from stacked(f"blocks/{ours}", net.depth, name)
    yield from _layer("modulation_out", "final_layer.adaLN_modulation.1")
    yield from _layer("out", "final_layer.linear")


def _check_positions(net: DiT, tensors: Any) -> None:
    if tensors is EVERY:
        return
    places = np.asarray(tensors["pos_embed"], np.float32).reshape(-1, net.width)
    side = round(len(places) ** 0.5)
    if side**2 != len(places) or np.abs(positions(side, side, net.width) - places).max() > 1e-2:
        raise ValueError(
            f"pos_embed of {len(places)} patches is not the sines and cosines of a square of them, "
            f"which are the only positions of our network"
        )
