"""Loads feature networks by name.

    network = feature_networks.load("digits")                       # in the package
    network = feature_networks.load("emoji")                        # in the package
    network = feature_networks.load("inception:pt_inception.pth")   # the FID network, from a file
    network = feature_networks.load("own:photos.npz")               # one of `own_features.py`
    network = feature_networks.load("moving_digits")                # clips, see `video.py`
    network = feature_networks.load("clips:emoji")                  # clips by features of frames

A distance is named after its network: FID, KID and IS (Frechet and kernel Inception distance,
Inception score) for the Inception of 2015-12-05 alone; FDD, KDD and DS (D for digit) for the digit
classifier; FED and KED for the emoji encoder; FD(photos) and so on for one's own; of clips "clip
FDD" and "frame FDD".
"""

import importlib.resources
from pathlib import Path

from ddim_jax.evaluation import emoji_encoder, inception, own_features, video
from ddim_jax.evaluation.features import FeatureNetwork

_ASSETS = importlib.resources.files("ddim_jax.assets")
INCEPTIONS = {"inception": "pytorch_fid", "inception_tensorflow": "tensorflow"}
"""Names of the FID network, and how each resizes pictures: their FIDs differ by some tenths."""

BUNDLED = {
    "digits": ("digit_classifier.npz", own_features.feature_network),
    "emoji": ("emoji_encoder.npz", emoji_encoder.load),
}
"""Networks in the package: their files, and what loads them and others of their kind."""

NAMES = (
    "digits, emoji, digits:PATH.npz, emoji:PATH.npz, own:PATH.npz, "
    + " or ".join(f"{name}:PATH" for name in INCEPTIONS)
    + "; of clips moving_digits, or clips:NAME with one of these"
)


def load(name: str) -> FeatureNetwork:
    """Loads a feature network.

    Args:
        name: "digits" or "emoji" for the networks in the package, "digits:PATH.npz" for another of
            its kind, "own:PATH.npz" for one of `own_features`, "inception:PATH" for the FID network
            with pictures resized as pytorch-fid does, "inception_tensorflow:PATH" as torch-fidelity
            and ADM do (see `inception.py`); for clips "moving_digits", or "clips:NAME" with any of
            these names, frame by frame.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, or a file with other contents.
    """
    kind, _, path = name.partition(":")
    if name == "moving_digits":
        return video.of_moving_digits(load("digits"))
    if kind == "clips" and path:
        return video.of_frames(load(path))
    if kind in BUNDLED:
        file, read = BUNDLED[kind]
        if path:
            return read(Path(path))
        if name == kind:
            with importlib.resources.as_file(_ASSETS / file) as bundled:
                return read(bundled)
    if kind == "own" and path:
        return own_features.feature_network(Path(path))
    if kind in INCEPTIONS:
        return inception.feature_network(path, INCEPTIONS[kind])
    raise ValueError(f"unknown features {name!r}; they are {NAMES}")
