"""Random pictures, and whether examples of a source are equal."""

import numpy as np

RNG = np.random.default_rng(0)


def noise(*shape):
    """uint8 of that shape, different at every call."""
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def equal(a, b):
    """Whether two examples or batches of a source hold the same images and labels."""
    return all(np.array_equal(a[key], b[key]) for key in ("image", "label"))
