"""Original checkpoints in one `.safetensors` file: Stable Diffusion 1, 2, XL; DiT, SiT.

    pipeline = read("v1-5-pruned.safetensors", tokenizer="stable-diffusion/tokenizer")
    pipeline = read("v2-1_768.safetensors", prediction="v", tokenizer=...)
    pipeline = read("SiT-XL-2-256.safetensors", autoencoder="sd-vae-ft-mse")

Which network it is, the shapes of its tensors say. Heads are not among them: 8 in Stable Diffusion
1, else 64 wide, 72 in DiT-XL. Left aside are moving averages beside the weights (`model_ema`), the
schedule's tables, the discriminator of the autoencoder, and the last layer of OpenCLIP-H, which
Stable Diffusion 2 does not read.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_collections

from ddim_jax.checkpoints import hub, original_names, parts, pipelines, tensor_names
from ddim_jax.checkpoints.parts import Pipeline
from ddim_jax.checkpoints.published_configs import CONFIGS, SCHEDULERS, SIT, drawn_by
from ddim_jax.checkpoints.tensor_files import Tensors, Under
from ddim_jax.checkpoints.tensors import Entry, check_dtype, renamed, to_ours
from ddim_jax.names import lookup
from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.clip import ClipText
from ddim_jax.networks.text_unet import TextUNet
from ddim_jax.networks.tokenizer import END, Tokenizer
from ddim_jax.networks.transformer import DiT

TABLES = re.compile(
    r"(log_|sqrt_|posterior_)?(one_minus_|recipm?1?_)?(betas|alphas_cumprod(_prev)?|variance|"
    r"log_variance_clipped|mean_coef[12])|log_one_minus_alphas_cumprod|logvar|lvlb_weights|"
    r"denoiser\.sigmas|global_step|v_pred|ztsnr|model_ema\..*"
)
"""Names of what a file may hold beside networks."""
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
TEXT = {
    "sd15": [("cond_stage_model.transformer.", "clip")],
    "sd21": [("cond_stage_model.model.", "openclip")],
    "sdxl": [
        ("conditioner.embedders.0.transformer.", "clip"),
        ("conditioner.embedders.1.model.", "openclip"),
    ],
}
"""Where the text encoders of each family are, and of which kind."""
UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."


def read(
    path: str | Path,
    dtype: str | None = None,
    *,
    tokenizer: str | Path | None = None,
    autoencoder: str | Path | None = None,
    prediction: str | None = None,
) -> Pipeline:
    """Reads a file.

    Args:
        path: of the file.
        dtype: of the parameters, "float32", "bfloat16" or "float16"; None keeps the file's own.
        tokenizer: a folder with vocab.json and merges.txt, that of any Stable Diffusion; None looks
            beside the file, there and in `tokenizer`.
        autoencoder: the folder of a published one, or "hf:ORG/NAME", for transformers; None looks
            for `vae` beside the file, and does without.
        prediction: what the network predicts, "eps", "v" or, of SiT, "flow". None: "eps" for Stable
            Diffusion 1 and XL; for 2, which has both, it must be given; DiT and SiT by file name.

    Raises:
        FileNotFoundError: there is no tokenizer.
        ValueError: the file is damaged or of another network; a tensor is missing or left over.
    """
    check_dtype(dtype)
    path = Path(path)
    tensors = Tensors([path])
    try:
        if "x_embedder.proj.weight" in tensors:
            pipeline = _read_transformer(path, tensors, dtype, autoencoder, prediction)
        else:
            pipeline = _read_stable(path, tensors, dtype, tokenizer, prediction)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    parts.check(pipeline, str(path))
    return pipeline


def is_original(path: Path) -> bool:
    """Whether a `.safetensors` file holds an original checkpoint."""
    try:
        tensors = Tensors([path])
    except ValueError:
        return False
    return "x_embedder.proj.weight" in tensors or f"{UNET}out.2.weight" in tensors


def converted_to(path: Path) -> str:
    """What follows such a file in the command that converts it."""
    if "x_embedder.proj.weight" in Tensors([path]):  # which no folder of diffusers holds
        return "NEW.safetensors --autoencoder=VAE_FOLDER"
    return "FOLDER --tokenizer=TOKENIZER_FOLDER"


# --- Stable Diffusion -----------------------------------------------------------------------------


def _read_stable(
    path: Path, tensors: Tensors, dtype: Any, tokenizer: Any, prediction: str | None
) -> Pipeline:
    family = _family(tensors)
    places = [UNET, AUTOENCODER, *(place for place, _ in TEXT[family])]
    for name in tensors:
        if not name.startswith(tuple(places)) and not TABLES.fullmatch(name):
            raise ValueError(f"the file holds {name}, for which there is no place")
    if not prediction and family == "sd21":
        raise ValueError(
            "Stable Diffusion 2 predicts v at 768 x 768 and eps at 512 x 512 (base), which tensors "
            "do not tell: give prediction=v or prediction=eps"
        )
    prediction = prediction or ("v" if "v_pred" in tensors else "eps")
    theirs = lookup(PREDICTIONS, prediction, "prediction of Stable Diffusion")
    tokens = _tokenizer(path, tokenizer)
    encoders = [
        _read_encoder(Under(tensors, place), kind, family, dtype) for place, kind in TEXT[family]
    ]
    vector = encoders[-1][0]["projection"] if family == "sdxl" else 0
    unet = Under(tensors, UNET)
    model, linear = _unet_arguments(unet, family, vector)
    net, crosses = TextUNet(**model), [bool(depth) for depth in model["depths"]]
    rename = original_names.unet(net.num_blocks, crosses)
    params = _convert(unet, lambda names: tensor_names.text_unet(net, names), rename, dtype)
    codec, codec_params = _read_autoencoder(Under(tensors, AUTOENCODER, "loss."), family, dtype)
    config = ml_collections.ConfigDict(CONFIGS[family])
    size = 512 if family == "sd21" and prediction == "eps" else config.data.image_shape[0]
    config.data.update(name=f"original:{path.stem}", image_shape=(size, size, 3))
    config.model = dict(name="text_unet", **model, text_length=encoders[0][0]["length"])
    config.codec = codec
    extra = unet.shape("input_blocks.0.0.weight")[1] - net.out_channels
    if extra:
        config.extra = dict(channels=extra, kind=parts.EXTRA_KINDS.get(extra, "other"))
    scheduler = SCHEDULERS[family] | dict(prediction_type=theirs)
    if "ztsnr" in tensors:
        scheduler |= {"rescale_betas_zero_snr": True}
        if family == "sd15":  # whose PNDM has no such option
            scheduler |= {"_class_name": "DDIMScheduler"}
            scheduler.pop("skip_prk_steps")
    told = bool(net.guidance_dim)
    with config.unlocked():
        config.update(drawn_by(_class_of(family, net, extra), scheduler, linear, told))
        if told:
            config.loss = dict(name="diffusion", guidance=pipelines.GUIDANCE_RANGE)
    rows = zip(encoders, config.text["encoders"], strict=True)
    taken = [made | dict(take=one["take"], pooled=one["pooled"]) for (made, _), one in rows]
    config.text = dict(encoders=tuple(taken), null=config.text["null"])
    tokenizers = tuple(
        Tokenizer(**tokens | dict(length=made["length"], pad="!" if kind == "openclip" else END))
        for (made, _), (_, kind) in zip(encoders, TEXT[family], strict=True)
    )
    text_params = tuple(found for _, found in encoders)
    return Pipeline(config, params, codec_params, text_params, tokenizers)


def _family(tensors: Tensors) -> str:
    """The name of the family, by where the text encoders are."""
    for family, places in TEXT.items():
        if all(any(name.startswith(place) for name in tensors) for place, _ in places):
            return family
    raise ValueError(
        "no checkpoint of Stable Diffusion 1, 2 or XL with its text encoders, nor one of DiT or "
        "SiT; other files must be a folder that diffusers wrote"
    )


def _class_of(family: str, net: TextUNet, extra: int) -> str:
    """The pipeline's class."""
    if net.guidance_dim and family != "sdxl":
        return "LatentConsistencyModelPipeline"
    inpaints = "Inpaint" if parts.EXTRA_KINDS.get(extra) == "inpaint" else ""
    return f"StableDiffusion{'XL' if family == 'sdxl' else ''}{inpaints}Pipeline"


def _convert(tensors: Under, entries: Callable, rename: Callable[[str], str], dtype: Any) -> Any:
    """Parameters of a network; entries are of diffusers' names."""
    names = _Renamed(tensors, rename)
    return _to_ours(tensors, renamed(entries(names), rename), dtype)


def _to_ours(tensors: Under, entries: Iterable[Entry], dtype: Any) -> Any:
    try:
        return to_ours(entries, tensors, dtype)
    except ValueError as error:
        raise ValueError(f"{tensors.prefix}*: {error}") from None


class _Renamed:
    """Which tensors a file holds, by other names."""

    def __init__(self, tensors: Under, rename: Callable[[str], str]):
        self._tensors, self._rename = tensors, rename

    def __contains__(self, name: str) -> bool:
        return self._rename(name) in self._tensors


def _count(tensors: Iterable[str], pattern: str) -> int:
    """How many things numbered from 0 there are; `pattern` begins a name, "{}" is the number."""
    numbers = {
        int(found[1])
        for name in tensors
        if (found := re.match(re.escape(pattern).replace(r"\{\}", r"(\d+)"), name))
    }
    return len(numbers)


def _heads(width: int) -> int:
    """As many heads of 64 features as a width has."""
    return max(1, width // 64)


def _unet_arguments(tensors: Under, family: str, vector: int) -> tuple[dict[str, Any], bool]:
    """The network's arguments, and whether its transformers are entered by dense layers."""
    widths, depths, blocks, first = [], [], [], None
    for i in range(1, _count(tensors, "input_blocks.{}.")):
        block = f"input_blocks.{i}"
        if f"{block}.0.op.weight" in tensors or i == 1:
            blocks.append(0)
        if f"{block}.0.op.weight" in tensors:
            continue
        blocks[-1] += 1
        if blocks[-1] == 1:
            widths.append(tensors.shape(f"{block}.0.out_layers.3.weight")[0])
            depths.append(_count(tensors, f"{block}.1.transformer_blocks.{{}}."))
            first = first or (f"{block}.1" if depths[-1] else None)
    if first is None or len(set(blocks)) != 1:
        raise ValueError(f"{tensors.prefix}* is no network of Stable Diffusion")
    arguments = dict(
        out_channels=tensors.shape("out.2.weight")[0],
        widths=tuple(widths),
        num_blocks=blocks[0],
        depths=tuple(depths),
        mid_depth=_count(tensors, "middle_block.1.transformer_blocks.{}."),
        heads=tuple(8 if family == "sd15" else _heads(width) for width in widths),
        context_dim=tensors.shape(f"{first}.transformer_blocks.0.attn2.to_k.weight")[1],
    )
    if vector:
        total = tensors.shape("label_emb.0.0.weight")[1]
        arguments |= dict(vector_dim=vector, sizes=6, size_dim=(total - vector) // 6)
    if "time_embed.cond_proj.weight" in tensors:
        arguments["guidance_dim"] = tensors.shape("time_embed.cond_proj.weight")[1]
    return arguments, len(tensors.shape(f"{first}.proj_in.weight")) == 2


def _read_autoencoder(tensors: Under, family: str, dtype: Any) -> tuple[dict[str, Any], Any]:
    """The section and the parameters."""
    if not len(tensors):
        raise ValueError(f"the file holds no autoencoder ({AUTOENCODER}*); take the whole one")
    levels = _count(tensors, "encoder.down.{}.")
    arguments = dict(
        latent_channels=tensors.shape("decoder.conv_in.weight")[1],
        widths=tuple(
            tensors.shape(f"encoder.down.{i}.block.0.conv2.weight")[0] for i in range(levels)
        ),
        num_blocks=_count(tensors, "encoder.down.0.block.{}."),
        scale=CONFIGS[family]["codec"]["scale"],
        shift=0.0,
    )
    net, rename = AutoencoderKL(**arguments), original_names.autoencoder(levels)
    entries = lambda names: tensor_names.autoencoder_kl(net, names)  # noqa: E731
    return dict(name="autoencoder_kl", **arguments), _convert(tensors, entries, rename, dtype)


def _read_encoder(tensors: Under, kind: str, family: str, dtype: Any) -> tuple[dict[str, Any], Any]:
    """The arguments and the parameters of a text encoder."""
    if kind == "clip":
        embeddings, layer = "text_model.embeddings.", "text_model.encoder.layers.{}."
        token, place = (
            f"{embeddings}token_embedding.weight",
            f"{embeddings}position_embedding.weight",
        )
        hidden, activation = "mlp.fc1.weight", "quick_gelu"
    else:
        token, place = "token_embedding.weight", "positional_embedding"
        layer, hidden, activation = "transformer.resblocks.{}.", "mlp.c_fc.weight", "gelu"
    vocabulary, width = tensors.shape(token)
    projects = kind == "openclip" and family == "sdxl"
    arguments = dict(
        vocabulary=vocabulary,
        length=tensors.shape(place)[0],
        width=width,
        layers=_count(tensors, layer) - (family == "sd21"),
        heads=_heads(width),
        hidden=tensors.shape(layer.format(0) + hidden)[0],
        activation=activation,
        projection=tensors.shape("text_projection")[1] if projects else 0,
        end=vocabulary - 1,
    )
    names = tensor_names.clip_text if kind == "clip" else original_names.openclip
    return arguments, _to_ours(tensors, names(ClipText(**arguments), tensors), dtype)


def _tokenizer(path: Path, folder: str | Path | None) -> dict[str, Any]:
    """The options of the tokenizer."""
    folders = [Path(folder)] if folder else [path.parent / "tokenizer", path.parent]
    for one in folders:
        if any((one / name).exists() for name in ("vocab.json", "tokenizer.json")):
            return Tokenizer.read(one).options()
    raise FileNotFoundError(
        f"a single file holds no tokenizer, and {folders[0]} is none: give tokenizer=FOLDER with "
        "vocab.json and merges.txt, which every published Stable Diffusion has in its folder "
        "tokenizer"
    )


# --- DiT and SiT ----------------------------------------------------------------------------------


def _read_transformer(
    path: Path, tensors: Tensors, dtype: Any, autoencoder: Any, prediction: str | None
) -> Pipeline:
    flows = _flows(path, prediction)
    model, size = _transformer_arguments(tensors)
    net = DiT(**model)
    params = to_ours(tensor_names.dit_authors(net, tensors), tensors, dtype)
    config = ml_collections.ConfigDict(CONFIGS["sit-xl-2" if flows else "dit-xl-2"])
    config.model = dict(name="dit", **model)
    with config.unlocked():
        config.update(SIT if flows else drawn_by("DiTPipeline", SCHEDULERS["dit-xl-2"]))
        for section in {"published", "codec"} & set(config):  # diffusers' DiT computes otherwise
            del config[section]
    folder = hub.local(str(autoencoder), dtype) if autoencoder else path.parent / "vae"
    codec_params, shape = None, (size, size, net.out_channels)
    if autoencoder or folder.exists():
        folder = folder / "vae" if (folder / "vae").exists() else folder
        codec = pipelines.read_component(folder, dtype)
        config.codec, codec_params = codec.section, codec.params
        factor = codec.kind.module(**codec.arguments).factor
        shape = (size * factor, size * factor, codec.arguments["channels"])
    config.data.update(name=f"original:{path.stem}", image_shape=shape)
    return Pipeline(config, params, codec_params)


def _flows(path: Path, prediction: str | None) -> bool:
    """Whether a transformer is SiT rather than DiT."""
    if prediction is not None:
        kinds = {"eps": False, "flow": True}
        return lookup(kinds, prediction, "prediction of transformers (DiT has eps, SiT flow)")
    said = {kind: kind in path.stem.lower() for kind in ("sit", "dit")}
    if said["sit"] == said["dit"]:
        raise ValueError(
            "tensors of DiT and SiT have the same names and shapes: give prediction=eps for DiT "
            "or prediction=flow for SiT, or put the name into that of the file"
        )
    return said["sit"]


def _transformer_arguments(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """The arguments, and height and width of the latents that it was trained on."""
    width, channels, patch, _ = tensors.shape("x_embedder.proj.weight")
    rows = tensors.shape("y_embedder.embedding_table.weight")[0]
    outputs = tensors.shape("final_layer.linear.weight")[0] // patch**2
    arguments = dict(
        out_channels=channels,
        unused_channels=outputs - channels,
        width=width,
        depth=_count(tensors, "blocks.{}."),
        heads=16 if width == 1152 else _heads(width),
        patch_size=patch,
        num_classes=rows - 1,
    )
    tokens = tensors.shape("pos_embed")[1] if "pos_embed" in tensors else (32 // patch) ** 2
    return arguments, round(tokens**0.5) * patch
