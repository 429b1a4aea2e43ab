"""The emoji encoder: which emoji a picture shows, in which style, and how damaged it is.

    network = emoji_encoder.load(path)
    pool = network.extract(images).pool                          # [N, 128]
    network.gallery.ranks(pool, names, styles)                   # 1: nothing is nearer

One small network has 128 features, the pool, and four linear heads on them: an embedding in which
the pictures of one emoji are neighbours whatever their style, the style, the category, and how
blurred, noisy and blotched the picture is. The heads for style and damage keep in the features what
an embedding would forget, so that a distance between sets of features (FED, Frechet emoji distance)
sees it. `emoji.py` trains it.

The file also holds the features of all real pictures, not the pictures: statistics for FED, data
for precision and recall, and the gallery in which an asked emoji is looked for.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax import data, files
from ddim_jax.data import npz
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.evaluation.gallery import Gallery
from ddim_jax.networks.layers import space_to_depth

SIZE = 64
FEATURES = 128
LEVELS = 127
"""Features of real pictures are kept in whole numbers up to this, a scale for each feature."""

DAMAGES = ("blur", "noise", "blotches")


class Encoder(nn.Module):
    """3x3 convolutions on 4 x 4 patches, two at each of 16 x 16, 8 x 8 and 4 x 4.

    Attributes:
        styles: how many there are.
        categories: how many there are.
        widths: channels at each size.
        embedding: dimensions in which emoji are compared.
    """

    styles: int
    categories: int
    widths: tuple[int, ...]
    embedding: int = 128

    @nn.compact
    def __call__(self, x):
        """Maps x [B, 64, 64, 3] in [-1, 1] to (pool [B, 128], heads by name)."""
        x = space_to_depth((1 - x) / 2, 4)  # white is zero, as beyond the border
        for level, width in enumerate(self.widths):
            x = _convolved(x, width, 2 if level else 1)
            x = x + _convolved(x, width, 1)
        x = nn.relu(nn.Conv(48, (1, 1))(x))
        pool = nn.Dense(FEATURES, name="pool")(x.reshape(len(x), -1))
        heads = {
            "emoji": self.embedding,
            "style": self.styles,
            "category": self.categories,
            "damage": len(DAMAGES),
        }
        return pool, {name: nn.Dense(size, name=name)(pool) for name, size in heads.items()}


def _convolved(x, width: int, stride: int):
    x = nn.Conv(width, (3, 3), strides=stride, use_bias=False)(x)
    return nn.relu(nn.LayerNorm()(x))


def save(path: Path, params: Any, about: dict[str, Any], gallery: Gallery) -> None:
    """Writes weights, float16, and what the gallery holds, in bytes.

    Args:
        path: must not exist.
        params: of an `Encoder`.
        about: its fields, JSON; `load` reads styles, categories and widths.
        gallery: of the real pictures.
    """
    flat = flatten_dict(jax.device_get(params), sep="/")
    arrays = {name: value.astype(np.float16) for name, value in sorted(flat.items())}
    scale = np.abs(gallery.pool).max(axis=0) / LEVELS + 1e-12
    arrays |= {
        "gallery_pool": np.rint(gallery.pool / scale).astype(np.int8),
        "gallery_scale": scale.astype(np.float32),
        "gallery_name": gallery.name.astype(np.uint16),
        "gallery_style": gallery.style.astype(np.uint8),
        "names": np.frombuffer("\n".join(gallery.names).encode(), np.uint8),
    }
    arrays["about"] = json.dumps(about)
    files.save(path, lambda file: np.savez_compressed(file, **arrays), new=True)


def load(path: Path) -> FeatureNetwork:
    """Loads a file of `save` as a feature network; errors are those of `read`."""
    params, about, gallery = read(path)
    net = Encoder(len(about["styles"]), len(about["categories"]), tuple(about["widths"]))

    @jax.jit
    def apply(images) -> Features:
        resized = (len(images), SIZE, SIZE, images.shape[-1])
        x = jax.image.resize(data.to_unit_range(images), resized, "linear")
        pool, heads = net.apply({"params": params}, x)
        return Features(pool, heads["style"])

    return FeatureNetwork(
        name="emoji",
        dimensions=FEATURES,
        names=("FED", "KED", "style score"),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        resize="linear",
        image_shape=(None, None, 3),
        num_classes=len(gallery.styles),
        apply=apply,
        gallery=gallery,
    )


def read(path: Path) -> tuple[Any, dict[str, Any], Gallery]:
    """Reads what `save` wrote: parameters, float32, what they are of, and the gallery.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file with other contents.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no emoji encoder at {path}; python -m ddim_jax.evaluation.emoji trains one"
        )
    try:
        with np.load(path) as file:
            flat = {name: file[name] for name in file.files}
        about = json.loads(str(flat.pop("about")))
        kept = {name: flat.pop(f"gallery_{name}") for name in ("pool", "scale", "name", "style")}
        names = tuple(flat.pop("names").tobytes().decode().split("\n"))
        styles, _, _ = tuple(about["styles"]), about["categories"], about["widths"]
        head = [flat[f"emoji/{part}"].astype(np.float32) for part in ("kernel", "bias")]
    except (ValueError, KeyError, OSError, *files.DAMAGED) as error:
        raise ValueError(f"{path} is no emoji encoder: {npz.fault(error)}") from None
    params = unflatten_dict({k: jnp.asarray(v, jnp.float32) for k, v in flat.items()}, sep="/")
    of, pool = (kept["name"].astype(int), kept["style"].astype(int)), kept["pool"] * kept["scale"]
    return params, about, Gallery(names, styles, *of, pool, *head)
