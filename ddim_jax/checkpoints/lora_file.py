"""Reads LoRA files in every style of names that is about.

    lora_unet_down_blocks_0_..._to_q.lora_down.weight     kohya's; lora_te_, lora_te1_, lora_te2_
    lora_unet_input_blocks_1_1_..._to_q.lora_down.weight  kohya's of Stable Diffusion XL
    unet.down_blocks.0. ... .to_q.lora_A.weight           of peft and diffusers
    unet.down_blocks.0. ... .to_q.lora.down.weight        of diffusers before 0.25, and older ones

A layer has down [r, I, ...], up [O, r, ...] and perhaps alpha; without, it is what peft says beside
the tensors, or r.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from ddim_jax import files
from ddim_jax.names import check_range

PREFIXES = {
    **{"lora_unet_": 0, "lora_te1_": 1, "lora_te2_": 2, "lora_te_": 1},
    **{"unet.": 0, "transformer.": 0, "text_encoder_2.": 2, "text_encoder.": 1},
    **{"text_model.": 1, "": 0},
}
"""How names begin -> whose they are: of the network 0, of the first text encoder 1, ..."""
KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?[._]"
    r"(?P<part>A|B|down|up)(?:\.default)?\.weight|\.(?P<alpha>alpha))"
)
PARTS = {"A": "down", "B": "up"}
OTHER_KINDS = {
    **{"hada_": "LoHa", "lokr_": "LoKr", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA"},
    **{"oft_": "OFT", "boft": "BOFT", "lora_mid": "Tucker form", "ia3": "IA3"},
}
FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


class Factors(NamedTuple):
    """The change of one layer, scale * up down.

    Attributes:
        down: float32 [r, I, ...].
        up: float32 [O, r, ...].
        scale: alpha / r.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float


def find(path: str | Path) -> Path:
    """The file that a path names.

    Args:
        path: a `.safetensors` file, or a folder of diffusers or peft that holds one.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).exists()), path)
    if not path.is_file():
        export = f"; python -m ddim_jax.checkpoints {path} FILE.safetensors --lora writes a run's"
        raise FileNotFoundError(
            f"no LoRA {path}{files.missing_part(path)}{export if path.is_dir() else ''}"
        )
    return path


def read(path: str | Path) -> dict[str, Factors]:
    """The layers of a file by their names in it.

    Args:
        path: as of `find`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds something else than plain LoRA.
    """
    path = find(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        match = KEY.fullmatch(name)
        if match is None:
            kind = next((kind for part, kind in OTHER_KINDS.items() if part in name), "no LoRA")
            raise ValueError(f"{path} holds {name}, of {kind}; a LoRA has down, up and alpha alone")
        part = match["alpha"] or PARTS.get(match["part"], match["part"])
        layers.setdefault(match["layer"], {})[part] = np.asarray(value, np.float32)
    if not layers:
        raise ValueError(f"{path} changes nothing: it holds no tensors; save the LoRA again")
    options, prefixed = _adapter_options(path, metadata)
    return {
        name: _factors(path, name, parts, _under(prefix_of(name), options) if prefixed else options)
        for name, parts in layers.items()
    }


def _under(prefix: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options whose names begin with a prefix, without it."""
    its = {key: value for key, value in options.items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in its.items()}


def _factors(path: Path, name: str, parts: dict[str, np.ndarray], options: dict) -> Factors:
    missing = [part for part in ("down", "up") if part not in parts]
    if missing:
        raise ValueError(f"{path} is not whole: {name} has no {missing[0]}")
    rank = len(parts["down"])
    if parts["down"].ndim < 2 or parts["up"].size != len(parts["up"]) * rank:
        shapes = (parts["down"].shape, parts["up"].shape)
        raise ValueError(f"{path}: down {shapes[0]} and up {shapes[1]} of {name} do not fit")
    if (alpha := parts.pop("alpha", None)) is not None:
        return Factors(**parts, scale=_number(path, name, alpha) / rank)
    patterns = (options.get("alpha_pattern") or {}).items()
    fitting = (value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", name))
    alpha = _number(path, name, next(fitting, options.get("lora_alpha", rank)))
    return Factors(**parts, scale=alpha / (rank**0.5 if options.get("use_rslora") else rank))


def _number(path: Path, name: str, alpha: Any) -> float:
    """An alpha, which must be one finite number."""
    alpha = np.asarray(alpha)
    alpha = alpha.item() if alpha.size == 1 else alpha
    return float(check_range(f"{path}: alpha of {name}", alpha, hint="save the LoRA again"))


def _adapter_options(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any], bool]:
    """What peft says of the layers that have no alpha; whether names begin with a layer's prefix.

    They do in metadata, which are of several networks; a file beside is of one.
    """
    beside = path.with_name("adapter_config.json")
    if path.name == FILES[1] and beside.exists():
        return files.read_json(beside), False
    text = metadata.get("lora_adapter_metadata", "{}")
    try:
        options = json.loads(text)
    except json.JSONDecodeError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(
            f"{path}: lora_adapter_metadata must hold names and values in JSON, got {text[:40]!r}; "
            "save the LoRA again"
        )
    return options, True


def prefix_of(key: str) -> str:
    """How a layer's name begins, one of `PREFIXES`."""
    return next(prefix for prefix in PREFIXES if key.startswith(prefix))
