"""Makes an npz file that the recipes of CIFAR-10 train on, of pictures as JPEG bytes.

    python -m benchmarks.cifar_data cifar10_jpeg.npz cifar10.npz
    python train.py --config=cifar10 --config.data.name=npz:cifar10.npz

For machines without TFDS's copy. The first file holds for both splits `train_jpeg`, the bytes of
all pictures, `train_offset` [N + 1] where each begins, and `train_label` [N]. JPEG loses detail, so
distances to these pictures are comparable with one another alone.
"""

import io
import sys

import numpy as np
from PIL import Image

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def main() -> None:
    """Reads, decodes, writes."""
    if len(sys.argv) != 3:
        sys.exit("\n".join(__doc__.splitlines()[2:3]).strip())
    packed = np.load(sys.argv[1])
    arrays = {"class_names": np.array(CLASSES)}
    for split in ("train", "test"):
        jpeg, offset = packed[f"{split}_jpeg"].tobytes(), packed[f"{split}_offset"]
        arrays[f"{split}_x"] = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(jpeg[first:last])).convert("RGB"))
                for first, last in zip(offset, offset[1:], strict=False)
            ]
        )
        arrays[f"{split}_y"] = packed[f"{split}_label"].astype(np.int32)
    np.savez(sys.argv[2], **arrays)
    print(f"{sys.argv[2]}: {len(arrays['train_x']):,} to train on, {len(arrays['test_x']):,} test")


if __name__ == "__main__":
    main()
