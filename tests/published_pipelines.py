"""Tiny published pipelines: the config files that diffusers wrote, and weights by tensors' names.

`fixtures/published_pipelines.json` holds, for every case, the text of its JSON files and what torch
made of it, and the configs of real models; `python -m tests.published_pipelines` records it, where
torch, diffusers and transformers are installed.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from ddim_jax.checkpoints.component_configs import KINDS
from ddim_jax.checkpoints.parts import network_shapes
from ddim_jax.checkpoints.scheduler_options import Options
from ddim_jax.checkpoints.tensors import to_theirs
from tests import tokenizer_texts
from tests.latent_networks import random, weight

GOLDEN = Path(__file__).parent / "fixtures" / "published_pipelines.json"
MERGES = json.loads(tokenizer_texts.FIXTURE.read_text())["merges"]
VOCABULARY = len(tokenizer_texts.layout(MERGES))
LENGTH = 12
TEXTS = ["a photograph of a cat", ""]
TIMES = np.array([999.0, 17.0], np.float32)

UNET = dict(
    block_out_channels=(32, 64), layers_per_block=1, sample_size=8, attention_head_dim=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=32,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip
XL = dict(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=36,
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=8, attention_head_dim=(2, 4),
    projection_class_embeddings_input_dim=24 + 6 * 8, transformer_layers_per_block=(1, 2),
)  # fmt: skip
VAE = dict(
    block_out_channels=(32, 64), layers_per_block=1, sample_size=16,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
)  # fmt: skip
TINY = dict(
    encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
)  # fmt: skip
DIT = dict(
    num_attention_heads=4, attention_head_dim=7, in_channels=4, out_channels=8, num_layers=2,
    sample_size=8, num_embeds_ada_norm=3, norm_elementwise_affine=False,
)  # fmt: skip
CLIP = dict(
    vocab_size=VOCABULARY, max_position_embeddings=LENGTH, bos_token_id=VOCABULARY - 2,
    eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
)  # fmt: skip
L = CLIP | dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    projection_dim=16,
)  # fmt: skip
G = CLIP | dict(
    hidden_size=20, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24,
    projection_dim=24, hidden_act="gelu",
)  # fmt: skip
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
PNDM = dict(skip_prk_steps=True, steps_offset=1, **BETAS)
ZERO = dict(
    prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    clip_sample=False, set_alpha_to_one=False, steps_offset=1, **BETAS,
)  # fmt: skip
SD = dict(vae=("AutoencoderKL", VAE), text_encoder=("CLIPTextModel", L | dict(hidden_size=32)))
LABELS = {0: "tench, Tinca tinca", 1: "crane", 2: "crane"}
CASES = {
    "sd": ("StableDiffusionPipeline", {}, SD | dict(
        unet=("UNet2DConditionModel", UNET), scheduler=("PNDMScheduler", PNDM),
    )),
    "inpaint": ("StableDiffusionInpaintPipeline", {}, SD | dict(
        unet=("UNet2DConditionModel", UNET | dict(in_channels=9, use_linear_projection=True)),
        vae=("AutoencoderTiny", TINY), scheduler=("DDIMScheduler", ZERO),
    )),
    "xl": ("StableDiffusionXLPipeline", {}, SD | dict(
        unet=("UNet2DConditionModel", UNET | XL), text_encoder=("CLIPTextModel", L),
        text_encoder_2=("CLIPTextModelWithProjection", G),
        scheduler=("EulerDiscreteScheduler", dict(timestep_spacing="leading", **BETAS)),
    )),
    "lcm": ("LatentConsistencyModelPipeline", {}, SD | dict(
        unet=("UNet2DConditionModel", UNET | dict(time_cond_proj_dim=16)),
        scheduler=("LCMScheduler", BETAS),
    )),
    "dit": ("DiTPipeline", dict(id2label=LABELS), dict(
        transformer=("DiTTransformer2DModel", DIT), vae=SD["vae"],
        scheduler=("DDIMScheduler", dict(clip_sample=False)),
    )),
}  # fmt: skip
"""Pipeline, its own options, and class and options of each component."""

REAL = {
    "sd15": dict(cross_attention_dim=768, sample_size=64),
    "sd21": dict(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True,
        sample_size=96, upcast_attention=True,
    ),
    "sdxl": dict(
        XL, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, sample_size=128,
        attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10),
        projection_class_embeddings_input_dim=2816, addition_time_embed_dim=256,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
}  # fmt: skip
REAL_VAE = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
REAL_DIT = dict(out_channels=8, num_embeds_ada_norm=1000)
LARGE = dict(hidden_act="gelu")
REAL_CLIP = {
    "clip-l": dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
    "openclip-h": LARGE | dict(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23
    ),
    "openclip-g": LARGE | dict(
        hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32,
        projection_dim=1280,
    ),
}  # fmt: skip


def recorded(name: str) -> dict:
    """A case, or "real", of the fixture."""
    return json.loads(GOLDEN.read_text())[name]


def write(folder: Path, name: str, dtype: str = "float32", case: dict | None = None) -> Path:
    """The folder of a case, as diffusers leaves it, with weights by the tensors' names."""
    for place, content in (case or recorded(name))["files"].items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        if path.name == "config.json":
            kind, tensors = weights(json.dumps(content))
            tensors = {key: value.astype(dtype) for key, value in tensors.items()}
            file = path.parent / f"{kind.stem}.safetensors"
            safetensors.numpy.save_file(tensors, file, {"format": "pt"})
        if path.parent.name.startswith("text_encoder"):
            write_tokenizer(folder / path.parent.name.replace("text_encoder", "tokenizer"))
    return folder


def write_tokenizer(folder: Path) -> None:
    """The tiny one."""
    folder.mkdir(exist_ok=True)
    tokenizer_texts.write(folder, MERGES, model_max_length=LENGTH)


@functools.cache
def weights(text: str):
    """Kind and tensors of a config.json."""
    content = json.loads(text)
    name = content.get("_class_name") or content["architectures"][0]
    kind = KINDS[name]
    net = kind.module(**kind.arguments(Options("", content)))
    shape = (8, 8, content["in_channels"]) if kind.name in ("text_unet", "dit") else (16, 16, 3)
    linear = {"linear": True} if content.get("use_linear_projection") else {}
    found = network_shapes(net, shape)
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), found)
    shapes = to_theirs(kind.entries(net, **linear), empty)
    return kind, {key: weight(key, value.shape) for key, value in shapes.items()}


def samples(name: str) -> dict[str, np.ndarray]:
    """What the networks of a case are given, channels last."""
    channels = 9 if name == "inpaint" else 4
    return {"x": random("x", 2, 8, 8, channels), "z": random("z", 1, 8, 8, 4)}


SIZES = np.array([[64, 64, 0, 0, 64, 64], [48, 64, 3, 5, 64, 32]], np.float32)
SCALE = 8.5


# --- recording ------------------------------------------------------------------------------------


def save(folder: Path, name: str) -> None:
    """A case by diffusers' own `save_pretrained`, whatever its weights."""
    import diffusers
    import transformers

    pipeline, own, parts = CASES[name]
    made = {}
    for part, (cls, options) in parts.items():
        if cls.startswith("CLIP"):
            options = transformers.CLIPTextConfig(**options)
            made[part] = getattr(transformers, cls)(options)
        else:
            made[part] = getattr(diffusers, cls)(**options)
    for i in range(sum(part.startswith("text") for part in parts)):
        place = folder / f"source_{i}"
        place.mkdir()
        tokenizer_texts.write(place, MERGES, model_max_length=LENGTH)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(place)
        made[f"tokenizer_{i + 1}" if i else "tokenizer"] = tokenizer
    if "XL" not in pipeline and pipeline != "DiTPipeline":
        own = own | dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    getattr(diffusers, pipeline)(**made, **own).save_pretrained(folder / "saved")


def theirs(folder: Path, name: str) -> dict[str, np.ndarray]:
    """What diffusers makes of a folder: features of texts, the network's output, a picture."""
    import diffusers
    import torch

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    x, z = (torch.tensor(a).permute(0, 3, 1, 2) for a in samples(name).values())
    with torch.no_grad():
        image = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
        if name == "dit":
            told = dict(class_labels=torch.tensor([1, 3]))
            output = pipe.transformer(x, torch.tensor(TIMES), **told).sample[:, :4]
            return _numbers(F=output, image=image)
        rows, told = [], {}
        for end in ("", "_2") if name == "xl" else ("",):
            options = dict(padding="max_length", truncation=True, return_tensors="pt")
            ids = getattr(pipe, f"tokenizer{end}")(TEXTS, max_length=LENGTH, **options).input_ids
            out = getattr(pipe, f"text_encoder{end}")(ids, output_hidden_states=True)
            rows.append(out.hidden_states[-2] if name == "xl" else out[0])
        text = torch.cat(rows, dim=-1)
        if name == "xl":
            added = {"text_embeds": out[0], "time_ids": torch.tensor(SIZES)}
            told["added_cond_kwargs"] = added
        if name == "lcm":
            embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
            told["timestep_cond"] = embed(None, torch.full((2,), SCALE - 1), 16)
        output = pipe.unet(x, torch.tensor(TIMES), text, **told).sample
    return _numbers(F=output, image=image, text=text[:, None])


def _numbers(**tensors) -> dict[str, np.ndarray]:
    return {key: value.movedim(1, -1).numpy() for key, value in tensors.items()}


def some(values: np.ndarray) -> np.ndarray:
    """Every so many of the values, about 24."""
    flat = np.asarray(values, np.float32).ravel()
    return flat[:: max(1, flat.size // 24)]


def real() -> dict:
    """config.json of published networks, as diffusers writes them for their arguments."""
    import diffusers
    import torch
    import transformers

    networks = {name: ("UNet2DConditionModel", options) for name, options in REAL.items()}
    networks["lcm"] = ("UNet2DConditionModel", REAL["sd15"] | dict(time_cond_proj_dim=256))
    networks["inpaint"] = ("UNet2DConditionModel", REAL["sd15"] | dict(in_channels=9))
    networks |= {"vae": ("AutoencoderKL", REAL_VAE), "taesd": ("AutoencoderTiny", {})}
    networks["vae-xl"] = ("AutoencoderKL", REAL_VAE | dict(scaling_factor=0.13025))
    networks["dit"] = ("DiTTransformer2DModel", REAL_DIT)
    found = {}
    with torch.device("meta"):
        for name, (cls, options) in networks.items():
            found[name] = json.loads(getattr(diffusers, cls)(**options).to_json_string())
    for name, options in REAL_CLIP.items():
        config = transformers.CLIPTextConfig(**options)
        cls = "CLIPTextModelWithProjection" if name.endswith("g") else "CLIPTextModel"
        config.architectures = [cls]
        found[name] = json.loads(config.to_json_string(use_diff=False))
    return found


def record() -> None:
    """Writes the fixture."""
    import tempfile

    found = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as place:
            save(Path(place), name)
            saved = Path(place) / "saved"
            files = {
                str(path.relative_to(saved)): json.loads(path.read_text())
                for path in sorted(saved.rglob("*.json"))
                if "tokenizer" not in str(path.parent)
            }
            if name == "dit":  # which published folders have, and diffusers does not save
                files["model_index.json"]["id2label"] = CASES[name][1]["id2label"]
            found[name] = {"files": files}
            outputs = theirs(write(Path(place) / "whole", name, case=found[name]), name)
            found[name]["outputs"] = {
                key: [float(f"{value:.7g}") for value in some(a)] for key, a in outputs.items()
            }
    found["real"] = real()
    GOLDEN.write_text(json.dumps(found, indent=None, separators=(",", ":")))
    print(GOLDEN.stat().st_size, "bytes")


if __name__ == "__main__":
    record()
