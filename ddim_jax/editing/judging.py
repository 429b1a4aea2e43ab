"""What the bundled encoders read in edited pictures; the one place of editing that measures."""

from typing import Any

import numpy as np

from ddim_jax.editing.pictures import NOTHING, Asked, decoded
from ddim_jax.evaluation import feature_networks, metrics, references, video
from ddim_jax.evaluation.features import Features
from ddim_jax.evaluation.gallery import found
from ddim_jax.model import Model

ENOUGH = 500
"""Pictures in a row from which on the row's FDD is worth giving."""


def judge(model: Model, rows: dict[str, Any], asked: Asked = NOTHING) -> dict[str, Any]:
    """Classifies samples of digits, looks for emoji; returns {} for a model of other pictures.

    The rows are name -> [N, *sample_shape], or uint8 pictures; digits of the first are what the
    others are compared with. Emoji are those of whose names and styles the gallery has pictures.

    Returns:
        Of clips "flicker": name -> the change of pixels from frame to frame. Of moving digits,
        grey ones, it is measured after they are centred, and with it are "read" and "same", the
        share of frames read as what the clip is mostly read as.
        Of digits "read": name -> the class of each picture; "changed": name -> share of pictures
        whose class is not that of the first row; with `ENOUGH` pictures also "FDD": name ->
        distance to MNIST. Of emoji "judged", how many, and name -> share of pictures that are
        found: "top1" and "top5", as `evaluation.retrieval` says it; that are in the "style"; and
        "top1_in_style", "top5_in_style", both. The untouched picture is often found, and in the
        wrong style.
    """
    if model.codec.frames:
        return _clips(model, rows)
    if asked.texts and asked.class_names and asked.labels is not None:
        network = feature_networks.load("emoji")
        if set(asked.class_names) <= set(network.gallery.styles):
            return _emoji(model, rows, asked, network)
    network = feature_networks.load("digits")
    if tuple(model.codec.picture_shape) != network.image_shape:
        return {}
    features = {name: network.extract(decoded(model, x)) for name, x in rows.items()}
    return _digits(features)


def _clips(model: Model, rows: dict[str, Any]) -> dict[str, Any]:
    """Whether clips flicker, and of moving digits what they show."""
    grey = model.codec.picture_shape[-1] == 1  # as the digit classifier takes them
    digits = grey and model.config.data.get("name") == "moving_digits"
    network = feature_networks.load("moving_digits") if digits else None
    shown = {name: decoded(model, x) for name, x in rows.items()}
    seen = {
        name: network.extract(x).further if network else {"flicker": video.flicker(x)}
        for name, x in shown.items()
    }
    result: dict[str, Any] = {
        "flicker": {name: float(one["flicker"].mean()) for name, one in seen.items()}
    }
    print(", ".join(f"{name}: flicker {one:.3g}" for name, one in result["flicker"].items()))
    if not digits:
        return result
    result |= {"read": {}, "same": {}}
    for name, one in seen.items():
        mostly = np.array([np.bincount(row).argmax() for row in one["read"]])
        result["read"][name] = mostly.tolist()
        result["same"][name] = float(np.mean(one["read"] == mostly[:, None]))
    return result


def _digits(features: dict[str, Features]) -> dict[str, Any]:
    """From the features of the rows."""
    classes = {name: row.logits.argmax(axis=1) for name, row in features.items()}
    original = next(iter(classes.values()))
    result: dict[str, Any] = {
        "read": {name: row.tolist() for name, row in classes.items()},
        "changed": {name: float(np.mean(row != original)) for name, row in classes.items()},
    }
    if len(original) >= ENOUGH:
        mnist = references.load(references.BUNDLED[0]).pool
        result["FDD"] = {
            name: metrics.frechet_distance(metrics.moments(row.pool), mnist)
            for name, row in features.items()
        }
    return result


def _emoji(
    model: Model, rows: dict[str, Any], asked: Asked, network: feature_networks.FeatureNetwork
) -> dict[str, Any]:
    """Looks for what was asked for; also prints it."""
    gallery = network.gallery
    number = np.array([gallery.styles.index(name) for name in asked.class_names])
    styles = number[asked.labels]
    known = np.flatnonzero(gallery.known(asked.texts, styles))
    if not len(known):
        return {}
    texts, styles = [asked.texts[i] for i in known], styles[known]
    shares: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        features = network.extract(decoded(model, row)[known])
        right = features.logits.argmax(-1) == styles
        ranks = gallery.ranks(features.pool, texts, styles)
        both = found(np.where(right, ranks, len(gallery.name)))
        own = found(ranks) | {"style": float(right.mean())}
        own |= {f"{what}_in_style": share for what, share in both.items()}
        for what, share in own.items():
            shares.setdefault(what, {})[name] = share
        said = ", ".join(f"{what} {share:.1%}" for what, share in own.items())
        print(f"{name}, looked for as what was asked for: {said}", flush=True)
    return {"judged": len(known)} | shares
