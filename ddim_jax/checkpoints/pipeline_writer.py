"""Writes a `Pipeline` as a folder that diffusers reads; see `pipelines`."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from ddim_jax import files
from ddim_jax.checkpoints import diffusers, parts, tensor_files
from ddim_jax.checkpoints.component_configs import KINDS, Kind
from ddim_jax.checkpoints.diffusers_schedulers import sections
from ddim_jax.checkpoints.parts import Pipeline
from ddim_jax.checkpoints.published_configs import PIPELINES
from ddim_jax.checkpoints.tensors import to_theirs

VERSION = "0.42.1"
"""Of diffusers, whose files these are like; some of its classes read it."""


def write(folder: str | Path, pipeline: Pipeline) -> None:
    """Writes a pipeline to a new folder, which diffusers' `from_pretrained` reads.

    Tensors have the dtype of the parameters. Where the schedule, the prediction and the recipe are
    those that were read, so is the scheduler; else it is a DDIMScheduler of the schedule's betas.

    Args:
        folder: must not exist.
        pipeline: what to write.

    Raises:
        FileExistsError: the folder exists.
        ValueError: diffusers has no such network or schedule.
    """
    folder, config = Path(folder), pipeline.config
    if config.model.get("name", "unet") == "unet":
        diffusers.write(folder, config, pipeline.params)
        return
    files.check_new(folder, overwrite=None)
    content, scheduler = _their_components(pipeline), _their_scheduler(config)
    with files.new_folder(folder) as part:
        for place, (kind, options, tensors) in content.items():
            (part / place).mkdir(parents=True, exist_ok=True)
            files.write_json(part / place / "config.json", options)
            weights = part / place / f"{kind.stem}{tensor_files.SUFFIX}"
            tensor_files.save(weights, tensors, {"format": "pt"})
        for i, tokenizer in enumerate(pipeline.tokenizers):
            tokenizer.write(part / (f"tokenizer_{i + 1}" if i else "tokenizer"))
        if scheduler:
            (part / "scheduler").mkdir()
            files.write_json(part / "scheduler" / "scheduler_config.json", scheduler)
        if config.get("codec"):
            files.write_json(part / "model_index.json", _their_index(config, content, scheduler))


def linear_projection(config: ml_collections.ConfigDict) -> bool:
    """Whether a config's `text_unet` is written with dense layers around its transformers."""
    return bool((config.get("published") or {}).get("linear_projection", False))


def _their_components(pipeline: Pipeline) -> dict[str, tuple[Kind, dict, dict]]:
    """Folder -> kind, config.json and tensors of each network."""
    config, nets = pipeline.config, parts.networks(pipeline.config)
    for net in nets.text:
        if type(net) not in [kind.module for kind in KINDS.values()]:
            raise ValueError(
                f"diffusers has no text encoder like {type(net).__name__}, of a network that "
                "learns tokens itself; write one .safetensors file"
            )
    (size, width, _), codec = config.data.image_shape, nets.codec
    factor = codec.factor if codec else 1
    own = size // factor
    if width != size and config.model.name == "text_unet":
        own = [own, width // factor]
    channels = nets.model.out_channels + (config.get("extra") or {}).get("channels", 0)
    more, names = {"sample_size": own, "in_channels": channels}, {}
    if config.model.name == "text_unet":
        linear = linear_projection(config)
        more, names = more | {"use_linear_projection": linear}, {"linear": linear}
    place = ("unet" if config.model.name == "text_unet" else "transformer") if codec else "."
    rows = [(place, nets.model, pipeline.params, more, names)]
    if codec:
        size = {"sample_size": size} if config.codec.name == "autoencoder_kl" else {}
        rows.append(("vae", codec, pipeline.codec_params, size, {}))
    for i, (net, params) in enumerate(zip(nets.text, pipeline.text_params, strict=True)):
        place = f"text_encoder_{i + 1}" if i else "text_encoder"
        more = {"dtype": str(jax.tree.leaves(params)[0].dtype)}
        more |= {"pad_token_id": pipeline.tokenizers[i].pad} if pipeline.tokenizers else {}
        rows.append((place, net, params, more, {}))
    content = {}
    for place, net, params, more, names in rows:
        kind = next(kind for kind in KINDS.values() if kind.module is type(net))
        tensors = to_theirs(kind.entries(net, **names), jax.device_get(params))
        content[place] = (kind, kind.options(net) | more, tensors)
    return content


def _their_scheduler(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The scheduler_config.json that was read, if it still holds, or another."""
    published = (config.get("published") or {}).get("scheduler")
    if published is not None:
        published = json.loads(json.dumps(_plain(published)))
        now = {name: config[name] for name in sections(published)}
        then = diffusers.drawing(published)
        now["sample"] = {name: now["sample"].get(name) for name in then["sample"]}
        then["sample"] |= {name: now["sample"][name] for name in ("steps", "num_samples")}
        if json.dumps(_plain(now), sort_keys=True) == json.dumps(then, sort_keys=True):
            return published
    return diffusers.their_scheduler(config)


def _plain(value: Any) -> Any:
    """Without ConfigDicts."""
    if isinstance(value, (dict, ml_collections.ConfigDict)):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _their_index(config: Any, content: dict, scheduler: dict[str, Any]) -> dict[str, Any]:
    """model_index.json."""
    name = (config.get("published") or {}).get("pipeline")
    name = name if name in PIPELINES else _pipeline_of(config)
    index = {"_class_name": name, "_diffusers_version": VERSION}
    index["scheduler"] = ["diffusers", scheduler.get("_class_name", "DDIMScheduler")]
    for place, (_, options, _) in content.items():
        library = "diffusers" if "_class_name" in options else "transformers"
        theirs = options.get("_class_name") or options["architectures"][0]
        index[place] = [library, theirs]
        if place.startswith("text_encoder"):
            index[place.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if config.model.name == "dit":
        names = config.data.get("class_names") or ()
        return index | (
            {"id2label": {str(i): name for i, name in enumerate(names)}} if names else {}
        )
    index |= {"feature_extractor": [None, None], "image_encoder": [None, None]}
    if len(config.text["encoders"]) > 1:
        index["force_zeros_for_empty_prompt"] = config.text["null"] == "zeros"
    else:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    return index


def _pipeline_of(config: ml_collections.ConfigDict) -> str:
    """The class of a pipeline that was not read."""
    if config.model.name == "dit":
        return "DiTPipeline"
    kind = "XL" if len(config.text["encoders"]) > 1 else ""
    if config.model.get("guidance_dim") and not kind:
        return "LatentConsistencyModelPipeline"
    inpaints = (config.get("extra") or {}).get("kind") == "inpaint"
    return f"StableDiffusion{kind}{'Inpaint' if inpaints else ''}Pipeline"
