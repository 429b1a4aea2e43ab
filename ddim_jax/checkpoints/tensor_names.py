"""Tensors of diffusers, transformers and the authors of DiT by our parameters.

For every network a function yields its `Entry`s, by which `tensors` converts.

    entries = text_unet(net, tensors)             tensors: what a file holds, by name
    params = to_ours(entries, tensors)            every tensor is used exactly once
    tensors = to_theirs(text_unet(net), params)
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ddim_jax.checkpoints import diffusers
from ddim_jax.checkpoints.tensors import Entry
from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.clip import ClipText
from ddim_jax.networks.text_unet import TextUNet
from ddim_jax.networks.tiny_autoencoder import AutoencoderTiny
from ddim_jax.networks.transformer import DiT, positions
from ddim_jax.networks.unet import UNet

Array = Any
EVERY = diffusers._EveryName()
"""Stands for a file of which nothing is known: holds every name."""


# --- layers ---------------------------------------------------------------------------------------


def _of(pairs: Iterable[tuple[str, list[str]]]) -> Iterator[Entry]:
    """Entries of the names that UNet2DModel has too."""
    for ours, theirs in pairs:
        yield Entry(ours, tuple(theirs), pointwise=ours.endswith("/skip/kernel"))


def _layer(ours: str, *theirs: str, bias: bool = True, pointwise: bool = False) -> Iterator[Entry]:
    """A dense layer or a convolution; several of theirs lie side by side here."""
    yield Entry(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), pointwise=pointwise)
    if bias:
        yield Entry(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs))


def _norm(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _of(diffusers._norm(ours, theirs))


def _stacked(ours: str, blocks: int, *theirs: Callable[[int], str]) -> Iterator[Entry]:
    """A layer of all blocks, whose tensors side by side are theirs(i) of block i."""
    for part, name in (("weight", "kernel"), ("bias", "bias")):
        names = tuple(f"{one(i)}.{part}" for i in range(blocks) for one in theirs)
        yield Entry(f"{ours}/{name}", names, blocks=blocks)


# --- networks -------------------------------------------------------------------------------------


def unet(net: UNet, tensors: Any = EVERY) -> Iterator[Entry]:
    """Of diffusers' UNet2DModel."""
    yield from _of(diffusers._names(dataclasses.asdict(net), tensors))


def text_unet(net: TextUNet, tensors: Any = EVERY, linear: bool = False) -> Iterator[Entry]:
    """Of diffusers' UNet2DConditionModel.

    Args:
        net: the network.
        tensors: names that the file holds.
        linear: whether transformers are entered by dense layers there (`use_linear_projection`),
            rather than by 1x1 convolutions; matters for writing alone.
    """
    levels = len(net.widths)
    yield from _layer("conv_in", "conv_in")
    yield from _two_layers("time", "time_embedding")
    if net.guidance_dim:
        yield from _layer("guidance", "time_embedding.cond_proj", bias=False)
    if net.num_classes:
        yield Entry("label/embedding", ("class_embedding.weight",))
    if net.vector_dim:
        yield from _two_layers("vector", "add_embedding")
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for way, theirs, more in (("down", down, 0), ("up", up, 1)):
            for i in range(net.num_blocks + more):
                ours = f"{way}_{level}_{i}"
                yield from _of(diffusers._res(ours, f"{theirs}.resnets.{i}", tensors))
                if net.depths[level]:
                    place = (f"{ours}_attention", f"{theirs}.attentions.{i}", net.depths[level])
                    text_only = bool(net.text_only) and net.text_only[level]
                    yield from _spatial(*place, linear, text_only)
        if level < levels - 1:
            yield from _layer(f"down_{level}_resample", f"{down}.downsamplers.0.conv")
        if level > 0:
            yield from _layer(f"up_{level}_resample", f"{up}.upsamplers.0.conv")
    for i in range(2):
        yield from _of(diffusers._res(f"mid_{i}", f"mid_block.resnets.{i}", tensors))
    yield from _spatial("mid_attention", "mid_block.attentions.0", net.mid_depth, linear)
    yield from _norm("norm_out", "conv_norm_out")
    yield from _layer("conv_out", "conv_out")


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
            pairs = diffusers._attention(f"{middle}/attention", f"{theirs}.attentions.0")
            yield from _of(
                (ours, [_there(name, tensors) for name in names]) for ours, names in pairs
            )
        yield from _norm(f"{half}/norm_out", f"{half}.conv_norm_out")
        yield from _layer(f"{half}/conv_out", f"{half}.conv_out")
    if net.quant:
        yield from _layer("quant_out", "quant_conv", pointwise=True)
        yield from _layer("quant_in", "post_quant_conv", pointwise=True)


def _there(name: str, tensors: Any) -> str:
    """A name of an attention layer, the old one where the file has that."""
    for old, new in diffusers.OLD_NAMES.items():
        if name not in tensors and f".{new}." in name:
            return name.replace(f".{new}.", f".{old}.")
    return name


def _conv_block(ours: str, theirs: str, tensors: Any) -> Iterator[Entry]:
    for i in range(2):
        yield from _norm(f"{ours}/norm_{i}", f"{theirs}.norm{i + 1}")
        yield from _layer(f"{ours}/conv_{i}", f"{theirs}.conv{i + 1}")
    if f"{theirs}.conv_shortcut.weight" in tensors:
        yield from _layer(f"{ours}/skip", f"{theirs}.conv_shortcut", pointwise=True)


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
        yield from _stacked(f"layers/{ours}", net.layers, *(name(part) for part in theirs))
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
    yield from _stacked("blocks/attention/qkv", net.depth, *qkv)
    for ours, theirs in DIT_BLOCK.items():
        yield from _stacked(f"blocks/{ours}", net.depth, name(theirs))
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
        yield from _stacked(f"blocks/{ours}", net.depth, name)
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
