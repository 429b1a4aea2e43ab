"""LoRA files in every style of names, for tiny networks; what diffusers' fuse_lora makes of them.

Weights and factors follow from names. `fixtures/lora.npz` holds numbers of the changed tensors;
`python -m tests.lora_files` records it where torch, diffusers, transformers and peft are installed.
"""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from tests.latent_networks import CASES, weight

GOLDEN = Path(__file__).parent / "fixtures" / "lora.npz"
STRIDE = 61
"""Of each changed tensor every so many numbers are kept."""
NETWORKS = {"sd1": ("sd1", "clip"), "sdxl": ("sdxl", "clip", "openclip")}
"""Networks and text encoders of a pipeline, by their names in `latent_networks.CASES`."""
PLACES = ("unet", "text_encoder", "text_encoder_2")
ORIGINAL = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_1_0_emb_layers_1": "down_blocks.0.resnets.0.time_emb_proj",
    "input_blocks_1_0_out_layers_3": "down_blocks.0.resnets.0.conv2",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_3_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_3_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_3_1_transformer_blocks_1_attn2_to_k": (
        "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    ),
    "input_blocks_3_1_transformer_blocks_0_ff_net_0_proj": (
        "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "middle_block_0_in_layers_2": "mid_block.resnets.0.conv1",
    "middle_block_1_transformer_blocks_0_attn1_to_q": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ),
    "middle_block_1_transformer_blocks_1_attn1_to_out_0": (
        "mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0"
    ),
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_0_1_proj_out": "up_blocks.0.attentions.0.proj_out",
    "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_3_0_skip_connection": "up_blocks.1.resnets.1.conv_shortcut",
    "out_2": "conv_out",
}
"""Layers of Stable Diffusion XL's authors and of diffusers, at one block a level."""


@functools.cache
def shapes(case: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's tensors, by diffusers' and transformers' names."""
    return {name: value.shape for name, value in CASES[case].tensors().items()}


def layers(case: str, only: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of the dense layers and convolutions whose names hold a text."""
    found = {name: shape for name, shape in shapes(case).items() if len(shape) in (2, 4)}
    left_out = ("embedding.weight", "class_embedding")
    return {
        name.removesuffix(".weight"): shape
        for name, shape in found.items()
        if only in name and not name.endswith(left_out)
    }


def pair(name: str, shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Down and up of a layer."""
    down = weight(f"{name} down", (rank, *shape[1:]))
    return down, weight(f"{name} up", (shape[0], rank, *[1] * (len(shape) - 2)))


def kohya_file(pipeline: str, original: bool = False) -> dict[str, np.ndarray]:
    """Every layer at rank 3, alpha 2 in the network and 1 in text encoders.

    diffusers loses alphas of attention where those of one network differ.
    """
    net, *text = NETWORKS[pipeline]
    names = {other: layers(net)[name] for other, name in ORIGINAL.items()} if original else None
    made = {}
    prefixes = ("lora_unet_", "lora_te1_", "lora_te2_") if text[1:] else ("lora_unet_", "lora_te_")
    for prefix, case in zip(prefixes, (net, *text), strict=True):
        its = names if names and case == net else layers(case)
        for name, shape in its.items():
            if "text_projection" not in name:
                name = prefix + name.replace(".", "_")
                down, up = pair(name, shape, 3)
                made |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                made[f"{name}.alpha"] = np.array(2 if case == net else 1, np.float32)
    return made


def peft_file() -> dict[str, np.ndarray]:
    """Attention at rank 2, convolutions at rank 5, no alphas."""
    made = {}
    for place, case, only in (
        ("unet", "sd1", "attn"), ("unet", "sd1", "conv"), ("text_encoder", "clip", "layers"),
    ):  # fmt: skip
        for name, shape in layers(case, only).items():
            name = f"{place}.{name}"
            down, up = pair(name, shape, 5 if only == "conv" else 2)
            made |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return made


def older_file(processor: bool) -> dict[str, np.ndarray]:
    """Of diffusers before 0.25, and of the first releases."""
    made = {}
    for name, shape in layers("sd1", "attn").items():
        down, up = pair(f"unet.{name}", shape, 2)
        if processor:
            block, _, layer = name.partition(".to_")
            name = f"{block}.processor.to_{layer.removesuffix('.0')}_lora"
        else:
            name = f"{name}.lora"
        made |= {f"unet.{name}.down.weight": down, f"unet.{name}.up.weight": up}
    for name, shape in layers("clip", "self_attn").items():
        down, up = pair(f"text_encoder.{name}", shape, 2)
        name = f"text_encoder.{name}"
        if processor:
            name = name.replace("_proj", "_lora").replace("self_attn.", "self_attn.to_")
        else:
            name = f"{name}.lora_linear_layer"
        made |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return made


OPTIONS = {
    "unet.r": 2,
    "unet.lora_alpha": 7,
    "unet.use_rslora": True,
    "unet.alpha_pattern": {"mid_block.resnets.0.conv1": 3, "attn2.to_k": 5},
    "unet.rank_pattern": {name: 5 for name in layers("sd1", "conv")},
    "unet.target_modules": sorted({*layers("sd1", "attn"), *layers("sd1", "conv")}),
    "text_encoder.r": 2,
    "text_encoder.lora_alpha": 3,
    "text_encoder.target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
METADATA = {"lora_adapter_metadata": json.dumps(OPTIONS)}
FILES = {
    "kohya": ("sd1", lambda: [(kohya_file("sd1"), {}, 0.7)]),
    "kohya, names of the authors": ("sdxl", lambda: [(kohya_file("sdxl", original=True), {}, 1.0)]),
    "peft": ("sd1", lambda: [(peft_file(), {}, -0.5)]),
    "peft with options": ("sd1", lambda: [(peft_file(), METADATA, 1.0)]),
    "diffusers before 0.25": ("sd1", lambda: [(older_file(False), {}, 1.0)]),
    "first diffusers": ("sd1", lambda: [(older_file(True), {}, 1.0)]),
    "two at once": ("sd1", lambda: [(kohya_file("sd1"), {}, 0.7), (peft_file(), {}, 0.4)]),
}
"""Name -> pipeline, and what makes (tensors, metadata, scale) of each file."""


def write(path: Path, file: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    safetensors.numpy.save_file(file, path, metadata or None)
    return path


# --- recording ------------------------------------------------------------------------------------


def kept(value: np.ndarray) -> np.ndarray:
    """The numbers of a tensor that are stored."""
    return np.asarray(value).ravel()[::STRIDE]


def pipeline(name: str):
    """A pipeline of diffusers with the weights of our networks."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    modules = {}
    for place, case in zip(PLACES, NETWORKS[name], strict=False):
        modules[place], tensors = CASES[case].theirs(), CASES[case].tensors()
        if "text_model.final_layer_norm.weight" not in modules[place].state_dict():
            tensors = {key.removeprefix("text_model."): value for key, value in tensors.items()}
        modules[place].load_state_dict({key: torch.tensor(one) for key, one in tensors.items()})
    others = dict(
        vae=CASES["autoencoder"].theirs(),
        scheduler=DDIMScheduler(clip_sample=False),
        tokenizer=None,
    )
    if name == "sdxl":
        return StableDiffusionXLPipeline(**modules, **others, tokenizer_2=None)
    others |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return StableDiffusionPipeline(**modules, **others)


def theirs(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Numbers of the tensors that diffusers' fuse_lora changes, by place and name."""
    kind, make = FILES[name]
    loras = make()
    made = pipeline(kind)
    before = state(made)
    for number, (file, metadata, scale) in enumerate(loras):
        path = write(folder / f"{number}.safetensors", file, metadata)
        made.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"a{number}")
        made.fuse_lora(
            components=list(PLACES[: len(NETWORKS[kind])]),
            lora_scale=scale,
            adapter_names=[f"a{number}"],
        )
        made.unload_lora_weights()
    after = state(made)
    assert set(after) == set(before)
    changed = [key for key in after if not np.array_equal(before[key], after[key])]
    layers = sum(key.endswith(("down.weight", "A.weight")) for lora in loras for key in lora[0])
    print(f"{name}: {len(changed)} tensors changed by {layers} layers")
    return {key: kept(after[key]) for key in changed}


def state(made) -> dict[str, np.ndarray]:
    found = {}
    for place in PLACES:
        for key, value in getattr(made, place).state_dict().items() if hasattr(made, place) else ():
            found[f"{place}/{key}"] = value.detach().numpy().copy()
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name in FILES:
            arrays = theirs(name, Path(folder))
            found[f"{name}/names"] = np.array(sorted(arrays))
            found[f"{name}/values"] = np.concatenate([arrays[key] for key in sorted(arrays)])
    np.savez_compressed(GOLDEN, **found)
    print(f"{GOLDEN.stat().st_size} bytes in {GOLDEN}")
