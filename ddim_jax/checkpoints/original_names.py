"""Names of tensors in original single files of Stable Diffusion, by those of diffusers.

`unet` and `autoencoder` rename what `tensor_names` yields; `openclip` yields entries of its own,
for queries, keys and values are one tensor there.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from ddim_jax.checkpoints.tensor_names import stacked
from ddim_jax.checkpoints.tensors import Entry
from ddim_jax.networks.clip import ClipText

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AUTOENCODER = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def _replaced(name: str, names: dict[str, str]) -> str:
    """The name with those parts of it replaced that names says."""
    for theirs, original in names.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.)", rf"\g<1>{original}", name)
    return name


def unet(num_blocks: int, crosses: Sequence[bool]) -> Callable[[str], str]:
    """Renames tensors of UNet2DConditionModel.

    Args:
        num_blocks: of a level.
        crosses: whether a level attends to the text, from the finest.
    """
    layer = re.compile(r"(down|up)_blocks\.(\d+)\.(resnet|attention|downsampler|upsampler)s\.(\d+)")

    def place(match: re.Match) -> str:
        way, level, kind, i = match[1], int(match[2]), match[3], int(match[4])
        first = level * (num_blocks + 1) + (way == "down")
        blocks = "input_blocks" if way == "down" else "output_blocks"
        if kind in ("resnet", "attention"):
            return f"{blocks}.{first + i}.{int(kind == 'attention')}"
        if kind == "downsampler":
            return f"{blocks}.{first + num_blocks}.0.op"
        return f"{blocks}.{first + num_blocks}.{1 + crosses[-1 - level]}.up"

    def rename(name: str) -> str:
        name = _replaced(name, UNET)
        name = layer.sub(place, name)
        name = name.replace(".op.conv.", ".op.").replace(".up.conv.", ".conv.")
        return name if "transformer_blocks" in name else _replaced(name, RES_BLOCK)

    return rename


def autoencoder(levels: int) -> Callable[[str], str]:
    """Renames tensors of AutoencoderKL."""
    layer = re.compile(r"(down|up)_blocks\.(\d+)\.(resnet|downsampler|upsampler)s\.(\d+)")

    def place(match: re.Match) -> str:
        way, level, kind, i = match[1], int(match[2]), match[3], match[4]
        level = level if way == "down" else levels - 1 - level
        inner = f"block.{i}" if kind == "resnet" else f"{way}sample"
        return f"{way}.{level}.{inner}"

    return lambda name: layer.sub(place, _replaced(name, AUTOENCODER))


OPENCLIP_LAYER = {"out": "attn.out_proj", "dense_0": "mlp.c_fc", "dense_1": "mlp.c_proj"}


def openclip(net: ClipText, tensors: Sequence[str]) -> Iterator[Entry]:
    """Of OpenCLIP's text tower, whose layers after those of the network are left out (SD 2)."""
    yield Entry("token/embedding", ("token_embedding.weight",))
    yield Entry("place", ("positional_embedding",))

    def name(part: str) -> Callable[[int], str]:
        return lambda i: f"transformer.resblocks.{i}.{part}"

    for part, ours in (("weight", "kernel"), ("bias", "bias")):
        names = tuple(name(f"attn.in_proj_{part}")(i) for i in range(net.layers))
        yield Entry(f"layers/qkv/{ours}", names, blocks=net.layers)
    for ours, theirs in OPENCLIP_LAYER.items():
        yield from stacked(f"layers/{ours}", net.layers, name(theirs))
    for i in range(2):
        for part, ours in (("weight", "scale"), ("bias", "bias")):
            names = tuple(name(f"ln_{i + 1}.{part}")(j) for j in range(net.layers))
            yield Entry(f"layers/norm_{i}/{ours}", names, blocks=net.layers)
    yield Entry("norm_out/scale", ("ln_final.weight",))
    yield Entry("norm_out/bias", ("ln_final.bias",))
    if net.projection:
        yield Entry("projection/kernel", ("text_projection",), turned=True)
    unused = {"logit_scale", "attn_mask"} | ({"text_projection"} if not net.projection else set())
    later = f"transformer.resblocks.{net.layers}."
    yield Entry("", tuple(name for name in tensors if name in unused or name.startswith(later)))
