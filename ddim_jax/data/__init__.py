"""From pictures on disk to batches: `load` a source, draw `batches` from it, look at `grid`.

    source = data.load("digits")
    for batch in data.batches(source, 128, seed=0):
        x0 = data.to_unit_range(batch["image"])

`sources.py` reads, `pipeline.py` shuffles and batches, `images.py` converts and shows.
"""

from ddim_jax.data.images import grid, save_gif, save_png, to_uint8, to_unit_range
from ddim_jax.data.pipeline import batches
from ddim_jax.data.sources import Source, load

__all__ = [
    "Source",
    "batches",
    "grid",
    "load",
    "save_gif",
    "save_png",
    "to_uint8",
    "to_unit_range",
]
