"""Whole published pipelines: folders of diffusers read into a `Pipeline`, and written from one.

    folder/model_index.json                            the class, and that of each component
    folder/unet, vae, text_encoder, tokenizer, ...     config.json and weights of each
    folder/scheduler/scheduler_config.json             betas, prediction, recipe

Read are those of `PIPELINES`, networks of pixels (`diffusers.py`), and folders of one network
alone. The safety checker, its feature extractor and the encoder of image prompts are left aside:
pictures are not checked. Every tensor is used exactly once and every option understood, or the
folder is refused with the name of what is not.
"""

from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from ddim_jax import experiment, files
from ddim_jax.checkpoints import diffusers, parts, tensor_files
from ddim_jax.checkpoints.component_configs import KINDS, Kind
from ddim_jax.checkpoints.diffusers_schedulers import sections
from ddim_jax.checkpoints.parts import Pipeline
from ddim_jax.checkpoints.pipeline_writer import linear_projection, write
from ddim_jax.checkpoints.published_configs import CONFIGS, PIPELINES, unasked
from ddim_jax.checkpoints.scheduler_options import Options
from ddim_jax.checkpoints.tensors import check_dtype, to_ours
from ddim_jax.names import lookup
from ddim_jax.networks.options import check_counts
from ddim_jax.networks.tokenizer import Tokenizer

__all__ = [
    "PIPELINES", "Pipeline", "is_folder", "linear_projection", "read", "read_component", "shapes",
    "write",
]  # fmt: skip

NETWORKS = {
    "unet": ["UNet2DConditionModel"],
    "transformer": ["DiTTransformer2DModel", "Transformer2DModel"],
}
AUTOENCODERS = ["AutoencoderKL", "AutoencoderTiny"]
ENCODERS = ["CLIPTextModel", "CLIPTextModelWithProjection"]
TOKENIZERS = ["CLIPTokenizer", "CLIPTokenizerFast"]
LEFT_ASIDE = {"safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker"}
SCHEDULER = diffusers.SCHEDULER
_STABLE = {"steps_offset": 1, "clip_sample": False}
MENDED = {
    "StableDiffusionPipeline": _STABLE,
    "StableDiffusionImg2ImgPipeline": _STABLE,
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
}
"""What these pipelines of diffusers set in any scheduler that has other values, or none."""
GUIDANCE_RANGE = (1.0, 20.0)
"""Scales that networks of latent consistency are told; they were trained on 3 to 15 or so."""


class Component(NamedTuple):
    """One network of a folder: its class, arguments, parameters, and the other options."""

    kind: Kind
    arguments: dict[str, Any]
    params: Any
    options: Options

    @property
    def section(self) -> dict[str, Any]:
        """Of a config."""
        return {"name": self.kind.name, **self.arguments}


def is_folder(path: Path) -> bool:
    """Whether a folder holds a pipeline, or a network alone, of a class that is known or not."""
    return (path / "model_index.json").exists() or _class_name(path) is not None


def _class_name(path: Path) -> str | None:
    """The class of a network's own folder."""
    file = path / "config.json"
    return files.read_json(file).get("_class_name") if file.exists() else None


def read(folder: str | Path, dtype: str | None = None) -> Pipeline:
    """Reads a folder.

    Args:
        folder: as diffusers' `save_pretrained` leaves it.
        dtype: of the parameters, "float32", "bfloat16" or "float16"; None keeps the files' own.

    Returns:
        The pipeline, with numpy arrays.

    Raises:
        FileNotFoundError: a component has no files in safetensors.
        ValueError: a class, an option, a tensor or a schedule that has no counterpart here.
    """
    check_dtype(dtype)
    folder = Path(folder)
    try:
        pipeline = _read(folder, dtype)
        experiment.build(pipeline.config)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{folder}: an option in its .json files has a value that cannot be ({error}); fetch "
            "the folder again"
        ) from error
    except ValueError as error:
        named = str(folder) in str(error)
        raise error if named else ValueError(f"{folder}: {error}") from error
    return pipeline


def _read(folder: Path, dtype: str | None) -> Pipeline:
    index = folder / "model_index.json"
    o = Options(str(index), files.read_json(index) if index.exists() else {})
    if diffusers.is_folder(folder):
        return Pipeline(*diffusers.read(folder, dtype))
    if not index.exists():
        return _read_alone(folder, dtype)
    pipeline = _read_whole(folder, o, dtype)
    parts.check(pipeline, str(folder))
    return pipeline


def _read_alone(folder: Path, dtype: str | None) -> Pipeline:
    """A folder of one diffusion network."""
    name = _class_name(folder)
    known = [*NETWORKS["unet"], *NETWORKS["transformer"], "UNet2DModel"]
    if name not in known:
        raise ValueError(
            f"{folder} holds a {name}, no network that draws; it must be a pipeline's folder with "
            f"model_index.json, or one of {', '.join(known)}"
        )
    scheduler = diffusers.read_scheduler(folder)
    if not scheduler:  # betas and prediction would be guessed
        raise FileNotFoundError(
            f"{folder} has no scheduler_config.json, nor {SCHEDULER} there or beside it; put there "
            "that of the pipeline that the network is of"
        )
    network = read_component(folder, dtype)
    config = _config(folder, network, None, name, scheduler)
    pipeline = Pipeline(config, network.params)
    parts.check(pipeline, str(folder))
    return pipeline


def _read_whole(folder: Path, o: Options, dtype: str | None) -> Pipeline:
    name = files.read_json(Path(o.name)).get("_class_name")
    made_of = lookup(PIPELINES, name, "class of diffusers pipelines")
    if not (folder / SCHEDULER).exists():  # betas and prediction would be guessed
        raise FileNotFoundError(f"{folder / SCHEDULER} is missing; fetch the whole folder again")
    scheduler = _current(name, files.read_json(folder / SCHEDULER))
    network = _part(folder, o, made_of.network, NETWORKS[made_of.network], dtype)
    codec = _part(folder, o, "vae", AUTOENCODERS, dtype)
    encoders, tokenizers = [], []
    for i in range(made_of.encoders):
        end = f"_{i + 1}" if i else ""
        encoders.append(_part(folder, o, f"text_encoder{end}", ENCODERS, dtype))
        _class_of(o, f"tokenizer{end}", TOKENIZERS)
        tokenizers.append(Tokenizer.read(folder / f"tokenizer{end}"))
    config = _config(folder, network, codec, name, scheduler)
    if encoders:
        config.text = _text(encoders, o.get("force_zeros_for_empty_prompt", len(encoders) > 1))
        config.model.text_length = tokenizers[0].length
    config.data.class_names = _class_names(o.get("id2label") or {}, o.name)
    o.only(requires_aesthetics_score=False)
    o.get("scheduler")
    o.check_all_known(LEFT_ASIDE)
    text_params = tuple(encoder.params for encoder in encoders)
    return Pipeline(config, network.params, codec.params, text_params, tuple(tokenizers))


def _class_of(o: Options, part: str, known: list[str]) -> str:
    """The class of a component, one of those known."""
    row = o.get(part) or (None, None)
    if not isinstance(row, (list, tuple)) or len(row) != 2:
        raise ValueError(
            f"{o.name}: {part} must be a library and a class, got {row!r}; fetch the folder again"
        )
    name = row[1]
    if name is None:
        raise ValueError(f"{o.name} has no {part}, which is needed; save the whole pipeline")
    if name not in known:
        o.refuse(part, name, ", ".join(known))
    return name


def _part(folder: Path, o: Options, part: str, known: list[str], dtype: str | None) -> Component:
    return read_component(folder / part, dtype, _class_of(o, part, known))


def read_component(folder: Path, dtype: str | None = None, name: str | None = None) -> Component:
    """Reads the folder of one network: an autoencoder, a text encoder, a diffusion network.

    Args:
        folder: with config.json and weights.
        dtype: as of `read`.
        name: of its class; None: as its config.json says.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: as of `read`.
    """
    file = folder / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; fetch the whole folder again")
    given = files.read_json(file)
    name = name or given.get("_class_name") or given.get("architectures", [None])[0]
    kind = lookup(KINDS, name, "class of networks")
    o = Options(str(file), given | ({"architectures": [name]} if kind.name == "clip" else {}))
    arguments = kind.arguments(o)
    for option in ("in_channels", "sample_size"):
        o.get(option)
    o.check_all_known(set())
    net = kind.module(**arguments)
    try:
        check_counts(net)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    tensors = tensor_files.in_folder(folder, kind.stem, dtype)
    try:
        params = to_ours(kind.entries(net, tensors), tensors, dtype)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return Component(kind, arguments, params, o)


def _current(name: str, scheduler: dict[str, Any]) -> dict[str, Any]:
    """The options of a scheduler that a class of pipelines draws with: older files lack some."""
    mended = scheduler | MENDED.get(name, {})
    return mended if sections(mended) != sections(scheduler) else scheduler


def _config(
    folder: Path,
    network: Component,
    codec: Component | None,
    name: str,
    scheduler: dict[str, Any],
) -> ml_collections.ConfigDict:
    """All sections but that of the text."""
    config, channels = ml_collections.ConfigDict(), network.arguments["out_channels"]
    size = network.options.get("sample_size") or 64
    size = (size, size) if isinstance(size, int) else size
    if len(size) != 2:
        network.options.refuse("sample_size", size, "one number, or height and width")
    height, width = size
    shape = (height, width, channels)
    if codec:
        factor = codec.kind.module(**codec.arguments).factor
        shape = (height * factor, width * factor, codec.arguments["channels"])
    config.data = dict(name="diffusers:" + folder.resolve().name, image_shape=shape, class_names=())
    config.model = network.section
    config.update(diffusers.drawing(scheduler))
    config.loss = dict(name="diffusion", label_dropout=0.1)
    if network.arguments.get("guidance_dim"):
        config.loss = dict(name="diffusion", guidance=GUIDANCE_RANGE)
    config.sample.num_samples = 1
    if name in PIPELINES:
        told = bool(network.arguments.get("guidance_dim"))
        config.sample.update(unasked(name, scheduler, told))
    if codec:
        config.codec = codec.section
    if extra := network.options.get("in_channels", channels) - channels:
        config.extra = dict(channels=extra, kind=parts.EXTRA_KINDS.get(extra, "other"))
    linear = bool(network.options.get("use_linear_projection", False))
    config.published = dict(pipeline=name, scheduler=scheduler, linear_projection=linear)
    return config


def _text(encoders: list[Component], zeros: bool) -> dict[str, Any]:
    """The section: the last features of one encoder, those before of two (XL)."""
    take = "penultimate" if len(encoders) > 1 else "last"
    rows = [
        dict(**encoder.arguments, take=take, pooled=i > 0) for i, encoder in enumerate(encoders)
    ]
    return dict(encoders=tuple(rows), null="zeros" if zeros and len(encoders) > 1 else "encode")


def _class_names(labels: dict[str, str], where: str) -> tuple[str, ...]:
    """Names of the classes: of each the first, where that is its alone, else all."""
    rows = [labels.get(str(i)) for i in range(len(labels))]
    if None in rows:
        raise ValueError(f"{where}: id2label must name the classes 0..{len(rows) - 1}")
    first = [row.split(",")[0].strip() for row in rows]
    return tuple(
        one if first.count(one) == 1 else row for one, row in zip(first, rows, strict=True)
    )


def shapes(name: str) -> Pipeline:
    """A published pipeline without its numbers.

    Args:
        name: "sd15", "sd21", "sdxl", "dit-xl-2" or "sit-xl-2".

    Returns:
        The pipeline with `jax.ShapeDtypeStruct` for arrays, and no tokenizers.

    Raises:
        ValueError: an unknown name.
    """
    return parts.shapes_of(ml_collections.ConfigDict(lookup(CONFIGS, name, "published model")))
