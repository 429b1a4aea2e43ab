"""Makes the npz files that the recipes of emoji train on, of pictures or of clips.

    python -m benchmarks.emoji_data emoji_pictures.npz emoji.npz
    python -m benchmarks.emoji_data emoji_strips.npz emoji_video.npz

The first file holds `webp` bytes of all pictures, `offset` [N + 1] where each begins, `emoji` [N]
rows of the list `name`, and `style` [N] rows of `styles`, as `ddim_jax.evaluation.emoji` reads it.
The second has the splits train and test: `train_x` [N, 64, 64, 3], `train_y` (the style),
`train_captions` (the name). A tenth of the pictures are test, each of an emoji whose pictures in
the other two styles are in train.

Clips are strips of 16 square frames side by side; such a file holds the `milliseconds` [N] that
each loop lasts. Then `train_x` is [N, 16, H, W, 3], `train_y` the style, fluent, and
`train_frame_rate` frames a second. A tenth of the emoji are test, and in no train clip: skin tones
and genders of one, which share its name up to a colon, stay together.
"""

import io
import sys

import numpy as np
from PIL import Image

FRAMES = 16
STYLES = ("noto", "twemoji", "fluent")


def main() -> None:
    """Reads, splits, writes."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    data = dict(np.load(sys.argv[1]))  # each is read once
    offset = data["offset"]
    webp = [data["webp"][first:last] for first, last in zip(offset, offset[1:], strict=False)]
    images = np.stack(
        [np.asarray(Image.open(io.BytesIO(one.tobytes())).convert("RGB")) for one in webp]
    )
    arrays = clips(images, data) if "milliseconds" in data else pictures(images, data)
    np.savez(sys.argv[2], **arrays)
    train, test = (len(arrays[f"{split}_x"]) for split in ("train", "test"))
    print(f"{sys.argv[2]}: {train:,} to train on, {test} held out")


def pictures(images: np.ndarray, data: dict) -> dict[str, np.ndarray]:
    """The arrays of pictures [N, 64, 64, 3]."""
    emoji, style = data["emoji"], data["style"].astype(np.int32)
    rng, names = np.random.default_rng(0), data["name"][emoji]
    whole = np.flatnonzero(np.bincount(emoji) == len(data["styles"]))
    chosen = rng.choice(whole, size=len(emoji) // 10, replace=False)
    held = {int(one): int(rng.integers(len(data["styles"]))) for one in chosen}
    test = np.array([held.get(int(e)) == s for e, s in zip(emoji, style, strict=True)])
    arrays = {"class_names": data["styles"]}
    for split, rows in (("train", ~test), ("test", test)):
        arrays |= {f"{split}_x": images[rows], f"{split}_y": style[rows]}
        arrays |= {f"{split}_captions": names[rows]}
    return arrays


def clips(strips: np.ndarray, data: dict) -> dict[str, np.ndarray]:
    """The arrays of strips [N, H, 16 H, 3]."""
    frames = np.stack(np.split(strips, FRAMES, axis=2), axis=1)
    names = data["name"][data["emoji"]]
    bases = np.array([name.partition(":")[0] for name in names])
    kinds = np.unique(bases)
    held = np.random.default_rng(0).choice(kinds, size=len(kinds) // 10, replace=False)
    test, arrays = np.isin(bases, held), {"class_names": np.array(STYLES)}
    labels = np.full(len(names), STYLES.index("fluent"), np.int32)
    for split, rows in (("train", ~test), ("test", test)):
        arrays |= {f"{split}_x": frames[rows], f"{split}_y": labels[rows]}
        arrays |= {f"{split}_captions": names[rows]}
        arrays |= {f"{split}_frame_rate": 1000 * FRAMES / data["milliseconds"][rows]}
    return arrays


if __name__ == "__main__":
    main()
