"""What the digit classifier reads in edited pictures; the one place of editing that measures."""

from typing import Any

import numpy as np

from ddim_jax.evaluation import feature_networks, metrics, references
from ddim_jax.model import Model

ENOUGH = 500
"""Pictures in a row from which on the row's FDD is worth giving."""


def judge(model: Model, rows: dict[str, Any]) -> dict[str, Any]:
    """Classifies samples of digits; returns {} for a model of other pictures.

    The rows are name -> [N, *sample_shape], or uint8 pictures; the first is what the others are
    compared with.

    Returns:
        "read": name -> the class of each picture; "changed": name -> share of pictures whose class
        is not that of the first row; with `ENOUGH` pictures also "FDD": name -> distance to MNIST.
    """
    network = feature_networks.load("digits")
    if tuple(model.codec.picture_shape) != network.image_shape:
        return {}

    def pictures(x):
        return x if x.dtype == np.uint8 else model.pictures(x)

    features = {name: network.extract(pictures(x)) for name, x in rows.items()}
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
