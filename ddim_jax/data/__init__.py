"""From pictures on disk to batches: `load` a source, draw `batches` from it, look at a `grid`.

source = data.load("digits")
for batch in data.batches(source, 128, seed=0):
    x0 = data.to_unit_range(batch["image"])

source        `Source`: random access to pictures, clips or latents
sources       `load`: it reads digits, npz, folders, tfds, noise_pairs, latent_sets,
              and of clips moving_digits, clips, clip_files
pipeline      shuffles and batches
images        resizes, arranges on sheets, writes PNG and GIF
clip_writers  writes clips: GIF, WebP, APNG, MP4, sheets of frames
noise_pairs   the files of noise-image pairs for reflow
latent_sets   the files of latents
"""

from ddim_jax.codecs import to_uint8, to_unit_range
from ddim_jax.data.clip_writers import save_clips
from ddim_jax.data.images import grid, save_gif, save_grid, save_png
from ddim_jax.data.pipeline import batches
from ddim_jax.data.source import Source
from ddim_jax.data.sources import load

__all__ = [
    "Source", "batches", "grid", "load", "save_clips", "save_gif", "save_grid", "save_png",
    "to_uint8", "to_unit_range",
]  # fmt: skip
