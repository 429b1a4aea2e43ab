"""Makes emoji.npz, which the recipes `emoji_vae` and `emoji` train on.

    python -m benchmarks.emoji_data emoji_webp.npz emoji.npz

The first file holds `webp` bytes of all pictures, `offset` [N + 1] where each begins, `emoji` [N]
rows of the list `name`, and `style` [N] rows of `styles`, as `ddim_jax.evaluation.emoji` reads it.
The second has the splits train and test: `train_x` [N, 64, 64, 3], `train_y` (the style),
`train_captions` (the name). A tenth of the pictures are test, each of an emoji whose pictures in
the other two styles are in train.
"""

import io
import sys

import numpy as np
from PIL import Image


def main() -> None:
    """Reads, splits, writes."""
    if len(sys.argv) != 3:
        sys.exit(__doc__.splitlines()[2].strip())
    data = np.load(sys.argv[1])
    webp, offset, emoji = data["webp"], data["offset"], data["emoji"]  # each is read once
    style = data["style"].astype(np.int32)
    pictures = [webp[first:last] for first, last in zip(offset, offset[1:], strict=False)]
    images = np.stack(
        [np.asarray(Image.open(io.BytesIO(one.tobytes())).convert("RGB")) for one in pictures]
    )
    rng, names = np.random.default_rng(0), data["name"][emoji]
    whole = np.flatnonzero(np.bincount(emoji) == len(data["styles"]))
    chosen = rng.choice(whole, size=len(emoji) // 10, replace=False)
    held = {int(one): int(rng.integers(len(data["styles"]))) for one in chosen}
    test = np.array([held.get(int(e)) == s for e, s in zip(emoji, style, strict=True)])
    arrays = {"class_names": data["styles"]}
    for split, rows in (("train", ~test), ("test", test)):
        arrays |= {f"{split}_x": images[rows], f"{split}_y": style[rows]}
        arrays |= {f"{split}_captions": names[rows]}
    np.savez(sys.argv[2], **arrays)
    print(f"{sys.argv[2]}: {np.sum(~test):,} pictures to train on, {np.sum(test)} held out")


if __name__ == "__main__":
    main()
