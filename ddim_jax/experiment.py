"""From a config to the model it describes, before it has weights.

A config (see `configs/`) is an `ml_collections.ConfigDict` with the sections `data`, `model`,
`schedule`, `prediction`, `loss`, `optimizer`, `ema`, `train` and `sample`. A section with a `name`
is that function's options, so `schedule = {name: "cosine", log_snr_min: -15}` is
`schedules.cosine(log_snr_min=-15)`. What only training needs is built in `training/method.py`.

The fields `data.image_shape`, `model.out_channels` and `model.num_classes` may be None: they follow
the data, see `resolve`. What a workdir keeps is resolved. With `data.frames`, T, what is trained on
and drawn are clips of T frames of that shape, [B, T, H, W, C].
"""

import importlib.metadata
from typing import Any

import ml_collections

from ddim_jax import codecs, data
from ddim_jax.data.images import height_width
from ddim_jax.frame_noise import FRAME_NOISES
from ddim_jax.inputs import Inputs
from ddim_jax.model import Model
from ddim_jax.names import as_whole, check_options, check_range, lookup, make
from ddim_jax.networks import AUTOENCODERS, NETWORKS
from ddim_jax.networks.clip import TEXT_ENCODERS
from ddim_jax.predictions import PREDICTIONS
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import SCHEDULES
from ddim_jax.texts import Texts


def load_data(config: ml_collections.ConfigDict, **options: Any) -> Any:
    """The data that a config's section `data` names, a `Source`.

    Args:
        config: see `configs/`.
        **options: further ones of `data.load`.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: an option out of range, or data that cannot be used as they are.
    """
    section = config.data
    for name in ("flip", "pad", "skip_unreadable"):
        if not isinstance(section.get(name, False), bool):
            raise ValueError(f"config.data.{name} must be True or False, got {section[name]!r}")
    for name in ("name", "caption"):
        if not isinstance(section.get(name) or "", str):
            raise ValueError(f"config.data.{name} must be text, got {section[name]!r}")
    if section.get("resize"):
        for side in height_width(section.resize):
            hint = "None keeps the size"
            check_range("config.data.resize", side, "[1, 65536]", hint, whole=True)
    if section.get("channels") not in (None, 1, 3):
        raise ValueError(
            f"config.data.channels must be 1 (grey), 3 (RGB) or None (as stored), got "
            f"{section.channels!r}"
        )
    frames = _frames(config)
    source = data.load(
        section.name,
        section.split,
        frames=frames,
        image_size=section.get("resize") or None,
        channels=section.get("channels"),
        **cut(config),
        pad=section.get("pad", False),
        skip_unreadable=section.get("skip_unreadable", False),
        caption=section.get("caption") or None,
        **options,
    )
    if frames == 1 and not num_frames(config):
        source = source.single()
    if getattr(source, "autoencoder", None) and section.get("flip") and not source.mirrors:
        raise ValueError(
            f"{source.name} holds no mirrored images, and config.data.flip=True asks for them; "
            "encode them with --flip, or set it to False"
        )
    return source


def num_frames(config: ml_collections.ConfigDict) -> int:
    """Frames of the clips that a config is about, `config.data.frames`; 0: it is about pictures.

    To a network of pictures clips of one frame are pictures.
    """
    frames = _frames(config)
    return 0 if frames == 1 and not draws_clips(config) else frames


def _frames(config: ml_collections.ConfigDict) -> int:
    frames, hint = config.data.get("frames") or 0, "0 or None for pictures"
    return check_range("config.data.frames", frames, "[0, 65536]", hint, whole=True)


def cut(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Which frames of clips a config takes, and where TFDS keeps data, as `data.load` takes it."""
    section = config.data
    return {
        "frame_rate": section.get("frame_rate") or None,
        "frame_stride": section.get("frame_stride") or 1,
        "data_dir": section.get("data_dir") or None,
    }


def draws_clips(config: ml_collections.ConfigDict) -> bool:
    """Whether the network of a config is one of clips."""
    name = (config.get("model") or {}).get("name", "unet")
    return getattr(NETWORKS.get(name), "draws_clips", False)


def _check_frames(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for clips with a network of pictures, and the other way round."""
    name = config.model.get("name", "unet")
    if draws_clips(config) and not _frames(config):
        raise ValueError(
            f"config.model.name={name!r} draws clips: set config.data.frames to how many frames "
            "they have, and config.data.name to clips"
        )
    if num_frames(config) and not draws_clips(config):
        raise ValueError(
            f"config.data.frames={_frames(config)} is of networks of clips, and {name!r} is one of "
            "pictures: set config.model.name='video_unet' (of a 'dit' 'video_dit'), which may "
            "start from trained pictures by config.start_from; or frames=1, for single frames"
        )
    if config.get("frame_noise") and not draws_clips(config):
        raise ValueError("config.frame_noise is of networks of clips; leave it out")


def samples_latents(config: ml_collections.ConfigDict) -> bool:
    """Whether training draws latents anew in each step; else it takes their means.

    By default those of a set are drawn, and of pictures that are encoded here the means are taken.

    Raises:
        ValueError: config.data.latents is something else.
    """
    chosen = config.data.get("latents")
    if chosen not in (None, "sample", "mean"):
        raise ValueError(
            f"config.data.latents must be 'sample', 'mean' or None, got {chosen!r}; None: 'sample' "
            "of latents:DIR, 'mean' of pictures"
        )
    return chosen == "sample" or (chosen is None and data_kind(config) == "latents")


def data_kind(config: ml_collections.ConfigDict) -> str:
    """What the name of a config's data begins with, such as "folder" or "latents"."""
    return str(config.data.name).partition(":")[0]


def is_open(config: ml_collections.ConfigDict) -> bool:
    """Whether a config leaves something to its data."""
    fields = [config.model.get(name, 0) for name in ("out_channels", "num_classes")]
    return None in (config.data.get("image_shape"), *fields)


def resolve(config: ml_collections.ConfigDict, source: Any = None) -> ml_collections.ConfigDict:
    """The config with what it leaves to the data: shape of the pictures, channels, classes.

    A network that is told neither class nor text has nothing to drop or to be guided by.

    Args:
        config: see `configs/`.
        source: has the image_shape and num_classes; default the data that the config names, which
            are only looked at.

    Raises:
        FileNotFoundError: the data are asked for, and not there.
        ValueError: as `load_data`.
    """
    config = _whole_numbers(config)
    if not is_open(config):
        return config
    source = load_data(config, checked=False) if source is None else source
    with config.unlocked(), config.ignore_type():
        if config.data.get("image_shape") is None:
            config.data.image_shape = tuple(source.image_shape)
        if config.model.get("out_channels", 0) is None:
            config.model.out_channels = check_shape(config)[-1]
        if config.model.get("num_classes", 0) is None:
            config.model.num_classes = source.num_classes
            told_nothing = not source.num_classes and not config.get("text")
            if told_nothing and config.loss.get("label_dropout"):
                config.loss.label_dropout = 0.0
            if told_nothing and config.sample.get("guidance_scale"):
                config.sample.guidance_scale = 1.0
    return config


def _whole_numbers(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with counts like 1e5 as integers; options of what it names are seen to there."""
    config = config.copy_and_resolve_references()
    sections = [config.get("data"), config.get("train")]  # where no number has a fraction
    fields = [(section, name) for section in filter(None, sections) for name in section]
    for section, name in [*fields, (config, "seed"), (config.get("sample", {}), "num_samples")]:
        value = section.get(name)
        several = isinstance(value, list | tuple)
        whole = type(value)(map(as_whole, value)) if several else as_whole(value)
        if repr(whole) != repr(value):
            with config.unlocked():
                del section[name]  # whose type stays otherwise
                section[name] = whole
    return config


def version() -> str:
    """Of the package; configs in files say it. A copy that runs uninstalled has none."""
    try:
        return importlib.metadata.version("ddim_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def of_file(config: dict[str, Any]) -> ml_collections.ConfigDict:
    """A config read from a workdir or an exported file, as the version that wrote it meant it.

    Version 0.1 said no version. Its quadratic strides began at 0.8 T on every schedule.
    """
    sample, config = dict(config.get("sample") or {}), dict(config)
    options = dict(sample.get("stride_options") or {})
    if "version" not in config and sample.get("stride") == "quadratic":
        sample["stride_options"] = {"fraction": 0.8} | options
        config["sample"] = sample
    return ml_collections.ConfigDict(config)


def build(config: ml_collections.ConfigDict) -> Model:
    """The model that a config describes, without parameters; its config is resolved.

    Raises:
        ValueError: an unknown name or option, or a schedule that the prediction cannot serve.
    """
    config = resolve(config)
    shape = check_shape(config)
    # an autoencoder says neither
    schedule = make(SCHEDULES, config.get("schedule") or {"name": "cosine"}, "schedule")
    prediction = config.get("prediction") or {"name": "v"}
    if prediction["name"] == "eps" and schedule.level(schedule.t_span[0]).alpha == 0:
        raise ValueError(
            f"prediction 'eps' says nothing about x0 where alpha = 0, as {schedule.name} is at its "
            "noisy end; use prediction 'v' or 'flow'"
        )
    _check_frames(config)
    if frames := num_frames(config):
        shape = (frames, *shape)
    network, codec = build_network(config.model), _codec(config.get("codec"), shape)
    texts = build_texts(config.get("text"))
    check_told(network, texts)
    inputs = Inputs(network.inputs, tuple(config.data.get("class_names") or ()), texts)
    noise = config.get("frame_noise")
    further = (config.get("extra") or {}).get("channels", 0)
    return Model(
        network=network,
        params=None,
        schedule=schedule,
        parameterization=make(PREDICTIONS, prediction, "prediction"),
        inputs=inputs.with_channels(codec.sample_shape, further),
        codec=codec,
        recipe=Recipe.of(config),
        config=config,
        frame_noise=make(FRAME_NOISES, noise, "frame_noise") if noise else None,
    )


def _codec(section: ml_collections.ConfigDict | None, picture_shape: tuple) -> codecs.Codec:
    """The codec that a config's section `codec` names: an autoencoder; without one, the pixels."""
    if not section:
        return codecs.pixels(picture_shape)
    return codecs.latents(build_autoencoder(section), picture_shape)


def build_autoencoder(section: ml_collections.ConfigDict) -> Any:
    """The autoencoder of a config's section `codec`: a name in `AUTOENCODERS`, and options.

    Raises:
        ValueError: an unknown name or option.
    """
    options = _with_tuples(section)
    options.pop("start_from", None)
    if options.get("scale") is not None:
        check_range("config.codec.scale", options["scale"], "(0, inf)")
    return make(AUTOENCODERS, options, "codec")


def build_texts(section: ml_collections.ConfigDict | None) -> Texts | None:
    """The text encoders of a config's section `text`, without parameters and tokenizers."""
    if not section:
        return None
    encoders = [dict(one) for one in section.get("encoders") or ()]
    if not encoders:
        raise ValueError(
            "config.text.encoders must hold an encoder or more, and is empty; describe one, or name"
            " a folder that has some by config.text.start_from"
        )
    take = tuple(one.pop("take", "last") for one in encoders)
    pooled = tuple(one.pop("pooled", False) for one in encoders)
    networks = tuple(
        make(TEXT_ENCODERS, {"name": "clip"} | one, "text encoder") for one in encoders
    )
    return Texts(networks, take=take, pooled=pooled, null=section.get("null", "encode"))


def check_told(network: Any, texts: Texts | None) -> None:
    """Raises ValueError where text encoders say something else than a network is told."""
    if texts is None or not getattr(network, "text_length", 0):
        return
    pairs = [("context_dim", sum(one.width for one in texts.networks))]
    for one in texts.networks:
        if not one.width:  # numbers of tokens: one beyond the network's would be read as NaN
            pairs += [("vocabulary", one.vocabulary), ("text_length", one.length)]
    for name, said in pairs:
        if (own := getattr(network, name, said)) != said:
            raise ValueError(
                f"config.model.{name} is {own}, and config.text.encoders say {said}; give both the "
                "same"
            )


def check_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(height, width, channels) of a resolved config's pictures; ValueError if it is none."""
    shape = config.data.image_shape
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        raise ValueError(
            f"config.data.image_shape must be (height, width, channels), got {shape!r}; None "
            "follows the data"
        )
    for side in shape:
        check_range(
            "config.data.image_shape", side, "[1, 65536]", "None follows the data", whole=True
        )
    return tuple(shape)


def build_network(section: ml_collections.ConfigDict) -> Any:
    """The network of a config's section `model`: a name in `NETWORKS`, default "unet", and options.

    Raises:
        ValueError: an unknown name or option.
    """
    options = dict(section)
    if not options.get("vector_dim"):  # which version 0.1 had, and nothing could use
        options.pop("vector_dim", None)
    network = lookup(NETWORKS, options.pop("name", "unet"), "network")
    options = check_options(network, options, "model")
    return network(**_with_tuples(options))


def _with_tuples(section: Any) -> dict[str, Any]:
    """A section's options, lists as tuples: networks are hashed."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in dict(section).items()}
