"""What a network of latents and texts is trained with: autoencoder, text encoders, tokenizers.

    config.codec = dict(start_from="runs/digits_vae")   a trained autoencoder, or a pipeline's
    config.text = dict(start_from=FOLDER)               the text encoders of a pipeline, or
    config.text = dict(encoders=(dict(...),))           random ones, and a tokenizer of the captions

`start_from` fills in the section's other fields; a run that starts from a network of latents or
texts (`config.start_from`) has that one's, whatever its own sections say. None of these networks is
trained. The scale of an autoencoder that was trained here is measured, so that its latents have
unit variance. The workdir keeps a copy of all, see `checkpoints/around.py`, so that it draws alone.

Source: Rombach et al. 2022 (arXiv:2112.10752), appendix G (the scale).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ddim_jax import checkpoints, experiment
from ddim_jax.checkpoints import around
from ddim_jax.checkpoints.parts import Pipeline, pipeline_of
from ddim_jax.codecs import to_unit_range
from ddim_jax.data import captions, latent_sets
from ddim_jax.fingerprints import fingerprint
from ddim_jax.inputs import FRAME_RATE
from ddim_jax.model import Model
from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.clip import Tokens
from ddim_jax.networks.tokenizer import Tokenizer
from ddim_jax.rows import Rows

MEASURED = 1024
"""Pictures that the scale is measured with."""
BATCH = 64


def load(
    config: ml_collections.ConfigDict, workdir: Path, source: Any, start: Model | None = None
) -> tuple[ml_collections.ConfigDict, Pipeline | None]:
    """The config with complete sections `codec` and `text`, and the parameters of what they name.

    Args:
        config: of the run.
        workdir: of the run, which may hold them.
        source: pictures, and captions for a network that is told texts.
        start: what the run starts from, if anything: of latents and texts, it brings its own.

    Returns:
        The config, and a pipeline without its own network; None where neither section is. Of
        tokens there are as many as captions make; a network that learns them has at most as many
        as the section says.

    Raises:
        FileNotFoundError: what a section starts from is not there.
        ValueError: it has no such part; there are no captions; a tokenizer that does not fit.
    """
    if not (config.get("codec") or config.get("text")):
        return config, None
    config = config.copy_and_resolve_references()
    kept = around.read(workdir)
    with config.unlocked(), config.ignore_type():
        if kept is not None:
            for name, section in kept.config.items():
                given = {k: v for k, v in (config.get(name) or {}).items() if v is not None}
                config[name] = ml_collections.ConfigDict({**section, **given})
            _count_tokens(config, kept.tokenizers)
            check_encoded(config, kept.codec_params, source)
            return config, kept._replace(config=config)
        given = Pipeline(config, None) if start is None else pipeline_of(start)
        codec_params, texts = given.codec_params, given[3:]
        if config.get("codec") and codec_params is None:
            codec_params = _codec(config, source)
        check_encoded(config, codec_params, source)
        if config.get("text") and not texts[0]:
            texts = _texts(config, source)
    return config, Pipeline(config, None, codec_params, *texts)


def _codec(config: ml_collections.ConfigDict, source: Any) -> Any:
    """Fills in the section; returns the parameters."""
    name = config.codec.get("start_from")
    if not name:
        raise ValueError(
            "config.codec.start_from must name a trained autoencoder: a workdir of "
            "config.loss.name='autoencoder', or a pipeline's folder"
        )
    given = {k: v for k, v in config.codec.items() if v is not None}
    scale = given.get("scale") or getattr(source, "autoencoder", {}).get("scale")
    own, params = autoencoder(name, source, scale)
    free = ("scale", "shift", "dtype", "start_from")
    for option, value in given.items():
        theirs = own.get(option, getattr(AutoencoderKL, option, None))
        if option not in free and _plain(value) != _plain(theirs):
            raise ValueError(
                f"config.codec.{option} is {value!r}, {name} has {theirs!r}; leave out what the "
                "autoencoder says itself"
            )
    config.codec = ml_collections.ConfigDict(own | given)
    return params


def autoencoder(name: str, source: Any, scale: float | None = None) -> tuple[dict[str, Any], Any]:
    """The section `codec` and the parameters of a trained autoencoder.

    Args:
        name: a workdir of one, or a model that has one.
        source: pictures, by which the scale of one that was trained here is measured.
        scale: of its latents, where it is known.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is none, and has none.
    """
    model = checkpoints.load(name, accelerated=False)
    if model.config.loss.get("name") == "autoencoder":
        own = dict(name="autoencoder_kl") | dict(model.config.model)
        _check_channels(own, source)
        own["scale"] = scale or measure_scale(model, source)
        params = model.params
    elif model.codec.params is not None:
        own, params = dict(model.config.codec), model.codec.params
        _check_channels(own, source)
    else:
        raise ValueError(f"{name} is no autoencoder, and has none; name one that is trained")
    return own, jax.device_get(params)


def _check_channels(section: dict[str, Any], source: Any) -> None:
    """Raises ValueError for pictures of other channels than the autoencoder's."""
    channels = experiment.build_autoencoder(section).channels
    if source is not None and source.image_shape[-1] != channels:
        raise ValueError(
            f"{source.name} has pictures of {source.image_shape[-1]} channels, the autoencoder "
            f"takes {channels}; give channels={channels}"
        )


def check_encoded(config: ml_collections.ConfigDict, params: Any, source: Any) -> None:
    """Raises ValueError for latents that another autoencoder than `config.codec` made."""
    made = getattr(source, "autoencoder", None)
    if not made:
        return
    own = {name: config.codec.get(name, made.get(name)) for name in ("scale", "shift")}
    changed = [f"{name} {made.get(name)}" for name in own if made.get(name) != own[name]]
    if made["weights"] != fingerprint(params):
        changed = [f"weights {made['weights'][:8]}"]
    if changed:
        raise ValueError(
            f"{source.name} was encoded with an autoencoder of {changed[0]}, which "
            f"config.codec.start_from={config.codec.get('start_from')!r} is not; name the one that "
            f"made it, {made.get('start_from')!r}, or encode the pictures again"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def measure_scale(model: Model, source: Any, count: int = MEASURED) -> float:
    """One over the standard deviation of an autoencoder's latents, all numbers together.

    Args:
        model: an autoencoder.
        source: pictures, of which `count` are taken, evenly spaced.
        count: most of them.
    """

    @jax.jit
    def moments(params, pictures):
        coded = model.apply(params, to_unit_range(pictures), jnp.zeros(len(pictures)), {})
        second = jnp.mean(coded.mean**2 + coded.std**2)
        return jnp.stack([jnp.mean(coded.mean), second])

    frames = getattr(source, "frames", 0) or 1
    count, batch = -(-count // frames), max(1, BATCH // frames)
    places = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    found = [
        moments(model.params, np.concatenate([_frames(source[int(i)]["image"]) for i in some]))
        for some in np.array_split(places, -(-len(places) // batch))
    ]
    mean, second = np.mean(found, axis=0, dtype=np.float64)
    return float((second - mean**2) ** -0.5)


def _frames(picture: np.ndarray) -> np.ndarray:
    """A picture [H, W, C], or the frames of a clip, as [T, H, W, C]."""
    return picture.reshape(-1, *picture.shape[-3:])


def _texts(config: ml_collections.ConfigDict, source: Any) -> tuple[tuple, tuple]:
    """Fills in the section; returns parameters of the encoders, and tokenizers."""
    if name := config.text.get("start_from"):
        model = checkpoints.load(name, accelerated=False)
        if model.inputs.encode is None:
            raise ValueError(f"{name} is told no text; config.text.start_from needs one that is")
        given = {k: v for k, v in config.text.items() if v is not None}
        config.text = ml_collections.ConfigDict({**model.config.text, **given})
        return model.inputs.encode.params, model.inputs.encode.tokenizers
    check_captions(config, source)
    first = experiment.build(config).inputs.encode.networks[0]
    # a network learns tokens: rare words in pieces; of random ones each word is better off whole
    most = first.vocabulary if isinstance(first, Tokens) else None
    tokenizer = Tokenizer.of_texts(sorted(set(source.captions)), first.length, most)
    _count_tokens(config, (tokenizer,))
    networks = experiment.build(config).inputs.encode.networks
    params = [_init(network, config.seed, i) for i, network in enumerate(networks)]
    return tuple(params), (tokenizer,) * len(networks)


def _count_tokens(config: ml_collections.ConfigDict, tokenizers: tuple[Tokenizer, ...]) -> None:
    """Fills in how many tokens the captions make, where the tokenizer is made of them."""
    section = config.get("text") or {}
    if not tokenizers or section.get("start_from") or config.get("start_from"):
        return
    end = tokenizers[0].end
    counted = dict(vocabulary=end + 1, end=end)
    config.text.encoders = tuple({**one, **counted} for one in section.encoders)
    if config.model.get("vocabulary"):
        config.model.vocabulary = end + 1


def _init(network: Any, seed: int, number: int) -> Any:
    """Random parameters of a text encoder."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    ids = jnp.zeros((1, network.length), jnp.int32)
    return jax.device_get(jax.jit(network.init)(key, ids).get("params", {}))


def check_captions(config: ml_collections.ConfigDict, source: Any) -> None:
    """Raises ValueError for a network that is told texts, and data without."""
    if not getattr(source, "captions", ()):
        raise ValueError(
            f"{config.data.name} has no captions for a network that is told texts; put "
            "metadata.jsonl into the folder, or 'captions' into the npz file ('train_captions' "
            "beside 'train_x'), or name a feature of a TFDS dataset with config.data.caption, see "
            "docs/training.md"
        )


def check(config: ml_collections.ConfigDict, model: Model, source: Any) -> None:
    """Checks that `told` can be made of the data, before a workdir is written.

    Raises:
        ValueError: no captions; a cache of clips that have frames to spare.
    """
    if model.inputs.takes("text"):
        check_captions(config, source)
    if _encodes_once(config, source) and source.at:
        raise ValueError(
            f"config.data.cache keeps one latent a clip, and those of {source.name} have more "
            f"frames than config.data.frames={config.data.frames}: set config.data.cache=False, or "
            "as many frames as they have"
        )


def _encodes_once(config: ml_collections.ConfigDict, source: Any) -> bool:
    """Whether `told` makes latents of pictures."""
    return bool(config.data.get("cache", False)) and not getattr(source, "autoencoder", None)


def note(model: Model, source: Any) -> str:
    """What the captions of a run lack, in words; "" for nothing."""
    return captions.note(getattr(source, "captions", ())) if model.inputs.takes("text") else ""


def told(config: ml_collections.ConfigDict, model: Model, source: Any) -> Any:
    """The source with what the network is told of it; with `data.cache` as latents.

    Each distinct caption is encoded once. Frames a second that clips do not say are 0: unknown.

    Args:
        config: of the run.
        model: with text encoders and autoencoder.
        source: of the run, as `check` wants it.
    """
    if model.inputs.takes("text"):
        texts = list(dict.fromkeys(source.captions))
        number = {text: place for place, text in enumerate(texts)}
        places = np.array([number[text] for text in source.captions])
        encoded = model.inputs.encode(texts).items()
        texts = {k: Rows(v, places) for k, v in encoded}
        source = dataclasses.replace(source, told={**source.told, **texts})
    if model.inputs.takes(FRAME_RATE) and FRAME_RATE not in source.told:
        unknown = {FRAME_RATE: np.zeros(len(source), np.float32)}
        source = dataclasses.replace(source, told={**source.told, **unknown})
    if not _encodes_once(config, source):
        return source
    mirrors = config.data.get("flip", False)
    moments, labels = latent_sets.Encoder(model.codec, mirrors)(source, range(len(source)))
    if not experiment.samples_latents(config):
        moments = np.split(moments, 2, axis=-1)[0]
    moments, labels = np.concatenate(moments), np.tile(labels, 1 + mirrors)
    taken = latent_sets.reading(lambda rows: (moments[rows], labels[rows]))
    return dataclasses.replace(source, mirrors=mirrors, at=None, **taken)
