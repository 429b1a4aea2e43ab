"""The 5,000 handwritten digits that come with the package, 28 x 28 x 1, each class 500 times."""

import importlib.resources

import numpy as np


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [5000, 28, 28, 1] and labels uint8 [5000].

    Args:
        split: only "train".

    Raises:
        ValueError: another split.
    """
    if split != "train":
        raise ValueError(
            f"digits has only the split 'train', got {split!r}; for the others use the TFDS "
            "dataset 'mnist', of whose training images these digits are a part"
        )
    asset = importlib.resources.files("ddim_jax.assets") / "digits.npz"
    with asset.open("rb") as file, np.load(file) as arrays:
        return arrays["images"][..., None], arrays["labels"]
