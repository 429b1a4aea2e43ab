"""LoRA merged into the parameters of networks, and trained factors written.

    path, scale = lora.parse("lcm.safetensors:0.8")
    params, text_params = lora.apply(path, scale, params, net, text=((text_params, text_net),))

The weight of a layer of a file (`lora_file`) becomes W + scale * alpha / r * up down.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax import files
from ddim_jax.checkpoints import tensor_names
from ddim_jax.checkpoints.lora_file import PREFIXES, Factors, find, prefix_of, read
from ddim_jax.checkpoints.tensors import Entry, to_ours, to_theirs
from ddim_jax.names import check_range, few
from ddim_jax.networks import DiT, TextUNet, UNet
from ddim_jax.networks.clip import ClipText, Tokens
from ddim_jax.networks.low_rank import LowRank

__all__ = ["Factors", "apply", "find", "merge", "parse", "read", "save"]

ENTRIES = {
    UNet: tensor_names.unet,
    TextUNet: tensor_names.text_unet,
    DiT: tensor_names.dit,
    ClipText: tensor_names.clip_text,
    Tokens: lambda net: (),
}
"""Names of layers by class; networks of clips have those of pictures, on every frame."""


def parse(text: str) -> tuple[Path, float]:
    """The file and the scale, 1 by default, of FILE or FILE:scale.

    Raises:
        ValueError: a scale that is no finite number.
    """
    name, colon, tail = text.rpartition(":")
    try:
        name, scale = (name, float(tail)) if colon else (text, 1.0)
    except ValueError:
        if not Path(text).exists():
            raise ValueError(f"a LoRA is FILE or FILE:scale like {name}:0.8, got {text}") from None
        name, scale = text, 1.0
    check_range(f"the scale of {name}", scale, hint="1 is all of it, 0 none")
    return Path(name), scale


def _entries(net: Any, **options: Any) -> Iterable[Entry]:
    """The layers of a network that files of LoRA have names for."""
    for kind, entries in ENTRIES.items():
        if isinstance(net, kind):
            return entries(net, **options)
    known = ", ".join(kind.__name__ for kind in (UNet, TextUNet, DiT))
    raise ValueError(
        f"a LoRA file is of one of {known} or of a video network, and of a CLIP text encoder; it "
        f"has no names for the layers of {type(net).__name__}: keep the whole network in a file"
    )


# --- merging --------------------------------------------------------------------------------------


def apply(
    path: str | Path, scale: float, params: Any, net: Any, text: Iterable[tuple[Any, Any]] = ()
) -> tuple[Any, tuple[Any, ...]]:
    """Merges a file into a network and its text encoders; several files one after the other.

    Args:
        path: as of `read`.
        scale: of the change.
        params: of the network.
        net: a UNet, TextUNet or DiT, or one of clips.
        text: (parameters, ClipText or Tokens) of each text encoder.

    Returns:
        The parameters and those of the text encoders; in the dtypes, and on the devices, of these.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as of `read`; a layer that these networks lack, or of another shape.
    """
    networks = [(params, net), *text]
    layers, missing = [{} for _ in networks], []
    places = [_places(_entries(net), params) for params, net in networks]
    found = read(path)
    for key, factors in found.items():
        number, name = PREFIXES[prefix_of(key)], _plain(key)
        if number < len(networks) and name in places[number]:
            layers[number][key] = factors
        else:
            missing.append(key)
    _check_none(missing, len(found), path)
    params, *text_params = (
        merge(params, _entries(net), its, scale)
        for (params, net), its in zip(networks, layers, strict=True)
    )
    return params, tuple(text_params)


def merge(
    params: Any, entries: Iterable[Entry], lora: Mapping[str, Factors], scale: float = 1.0
) -> Any:
    """Merges layers into the parameters of one network.

    Args:
        params: of the network.
        entries: of the network, from `tensor_names`.
        lora: layers by name, as of `read`.
        scale: of the change.

    Raises:
        ValueError: a layer that the network lacks, is of another shape, or is there twice; weights
            that are not finite.
    """
    flat, places = flatten_dict(params, sep="/"), _places(entries, params)
    _check_none([key for key in lora if _plain(key) not in places], len(lora), "the LoRA")
    changes: dict[Entry, dict[str, tuple[str, Factors]]] = {}
    for key, factors in lora.items():
        entry, name = places[_plain(key)]
        its = changes.setdefault(entry, {})
        if name in its:
            raise ValueError(f"the LoRA changes one layer twice, as {its[name][0]} and {key}")
        its[name] = key, factors
    for entry, its in changes.items():
        flat[entry.ours] = _changed(flat[entry.ours], entry, its, scale)
    return unflatten_dict(flat, sep="/")


def _check_none(missing: list[str], count: int, path: Any) -> None:
    """Raises ValueError if there are layers that the network lacks."""
    if missing:
        raise ValueError(
            f"{path} is of another network: of the {count} layers that it changes this one lacks "
            f"{len(missing)}: {few(missing)}"
        )


def _places(entries: Iterable[Entry], params: Any) -> dict[str, tuple[Entry, str]]:
    """Plain name of each of a network's layers -> its entry, and its name there."""
    flat = flatten_dict(params, sep="/")
    places = {
        name.removesuffix(".weight"): (entry, name)
        for entry in entries
        if entry.ours in flat and entry.ours.endswith("kernel")
        for name in entry.theirs
    }
    return {_plain(name): place for name, place in places.items()} | {
        _plain(other): places[name] for name, other in _original_names(places)
    }


def _plain(key: str) -> str:
    """The name of a layer without what its writers differ in."""
    name = key.removeprefix(prefix_of(key)).replace(".processor.", ".").replace(".", "_")
    name = re.sub(r"self_attn_to_(q|k|v|out)$", r"self_attn_\1_proj", name)
    return re.sub(r"_to_out$", "_to_out_0", name.removeprefix("text_model_"))


RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    **{"conv_in": "input_blocks.0.0", "conv_out": "out.2"},
    **{f"time_embedding.linear_{i + 1}": f"time_embed.{2 * i}" for i in range(2)},
    **{f"add_embedding.linear_{i + 1}": f"label_emb.0.{2 * i}" for i in range(2)},
}


def _original_names(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name of diffusers, name of the authors) of layers of Stable Diffusion's UNet."""
    names = list(names)
    size = 1 + sum(bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1", n)) for n in names)
    for name in names:
        if name in OUTSIDE:
            yield name, OUTSIDE[name]
        match = re.fullmatch(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
        if not match or match[3] not in ("resnets", "attentions", "downsamplers", "upsamplers"):
            continue
        way, level, kind, i, layer = match.groups()
        level, i, attends = int(level or 0), int(i), kind == "attentions"
        layer = RESNET.get(layer, layer)
        if way == "mid":
            yield name, f"middle_block.{1 if attends else 2 * i}.{layer}"
        elif kind == "downsamplers":
            yield name, f"input_blocks.{(level + 1) * size}.0.op"
        elif kind == "upsamplers":
            after = any(one.startswith(f"up_blocks.{level}.attentions.") for one in names)
            yield name, f"output_blocks.{level * size + size - 1}.{1 + after}.conv"
        else:
            blocks, first = ("input_blocks", 1) if way == "down" else ("output_blocks", 0)
            yield name, f"{blocks}.{first + level * size + i}.{int(attends)}.{layer}"


def _changed(value: Any, entry: Entry, its: dict[str, tuple[str, Factors]], scale: float) -> Any:
    """A parameter with the changes of the tensors that it is made of; a shape stays one."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return value
    tensors = to_theirs([entry], unflatten_dict({entry.ours: np.asarray(value)}, sep="/"))
    for name, (key, factors) in its.items():
        weight = tensors[name]
        rank, features = len(factors.down), len(factors.up)
        change = factors.up.reshape(features, rank) @ factors.down.reshape(rank, -1)
        if change.shape != (len(weight), weight[0].size):
            raise ValueError(
                f"the LoRA is of another network: {key} changes {change.shape[1]} inputs to "
                f"{features} outputs, this network's layer has {weight[0].size} and {len(weight)}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.float32(scale * factors.scale) * change.reshape(weight.shape)
            tensors[name] = (weight.astype(np.float32) + change).astype(weight.dtype)
        if not np.all(np.isfinite(tensors[name].astype(np.float32))):
            raise ValueError(
                f"the LoRA at scale {scale:g} makes weights that are not finite of {key}: give a "
                "lower scale, or use another file"
            )
    new = flatten_dict(to_ours([entry], tensors, value.dtype), sep="/")[entry.ours]
    return jax.device_put(new, value.sharding) if isinstance(value, jax.Array) else new


# --- writing --------------------------------------------------------------------------------------


def save(
    path: str | Path,
    factors: Any,
    net: Any,
    low_rank: LowRank,
    dtype: str = "float32",
    linear: bool | None = None,
) -> None:
    """Writes trained factors as peft and diffusers name them; alpha / rank goes into up.

    Args:
        path: ending in .safetensors; must not exist.
        factors: of `low_rank`.
        net: the network that they change.
        low_rank: their scale.
        dtype: "float32" or "float16".
        linear: as of `tensor_names.text_unet`; None: as in the published networks, where texts of
            768 features (Stable Diffusion 1) go with 1x1 convolutions.

    Raises:
        FileExistsError: the file exists.
        ValueError: another ending; a kernel that published networks do not have, or parameters
            that are trained whole.
    """
    path = files.check_new(path, what="the file", suffixes=(".safetensors",), overwrite=None)
    flat, tensors = flatten_dict(jax.device_get(factors), sep="/"), {}
    if whole := [path for path in flat if path.rpartition("/")[2] not in ("down", "up")]:
        raise ValueError(
            f"a LoRA file holds factors alone, and {min(whole)} was trained whole; export the "
            "whole network: leave out --lora"
        )
    prefix = "transformer." if isinstance(net, DiT) else "unet."
    options = {}
    if isinstance(net, TextUNet):
        options = {"linear": net.context_dim != 768 if linear is None else linear}
    entries = {entry.ours.removesuffix("kernel"): entry for entry in _entries(net, **options)}
    if unnamed := {path.removesuffix("down").removesuffix("up") for path in flat} - set(entries):
        raise ValueError(
            f"published networks have no layer {min(unnamed).removesuffix('/')}, and a LoRA file "
            "no name for it; export the whole network: leave out --lora"
        )
    for place, entry in entries.items():
        if f"{place}down" not in flat:
            continue
        down, up = flat.pop(f"{place}down"), low_rank.scale * flat.pop(f"{place}up")
        each = 1 if entry.copies else len(entry.theirs) // (entry.blocks or 1)
        spatial = down.ndim == 4 or entry.pointwise or bool(entry.patch)
        parts = (
            ("A", entry._replace(theirs=entry.theirs[::each]), down),
            ("B", entry._replace(pointwise=spatial, patch=0), up),
        )
        for part, half, value in parts:
            half = half._replace(ours="kernel")
            found = to_theirs([half], {"kernel": value})
            for i, name in enumerate(entry.theirs):
                its = found[half.theirs[i // each]] if part == "A" else found[name]
                name = f"{prefix}{name.removesuffix('.weight')}.lora_{part}.weight"
                tensors[name] = np.ascontiguousarray(its, dtype)
    content = safetensors.numpy.save(tensors, {"format": "pt"})
    files.save(path, lambda file: file.write(content))
