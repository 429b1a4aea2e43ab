"""A feature network of one's own pictures, for sets that Inception knows nothing of.

    python -m ddim_jax.evaluation.own_features --data=folder:photos --resize=32 --out=photos.npz
    python -m ddim_jax.evaluation.tradeoff --features=own:photos.npz --real=folder:photos ...

trains a small convolutional classifier on the classes of the pictures, or, where they have none, on
which way up they are (Gidaris et al. 2018, arXiv:1803.07728): no labels are needed for that. Its
128 features before the last layer take the place of Inception's 2048. A distance between them is
named after the file, as in "FD(photos)", and is comparable with others under the same file alone.
The digit classifier (`digits.py`) is the same network on MNIST.
"""

import argparse
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from ddim_jax import command_line, data, files, keys
from ddim_jax.evaluation import features
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.names import check_range
from ddim_jax.networks.layers import space_to_depth

FEATURES = 128
BATCH = 128
TURNS = "which way up"
"""What is learned from pictures without classes."""


class Classifier(nn.Module):
    """3x3 convolutions on 2 x 2 patches, every second one halving, and two dense layers.

    Attributes:
        classes: K.
        halvings: of height and width.
    """

    classes: int = 10
    halvings: int = 2

    @nn.compact
    def __call__(self, x, dropout_key=None):
        """Maps x [B, H, W, C] in [-1, 1], even sizes, to (features [B, 128], logits [B, K]).

        Features are after the ReLU and, in training (with a dropout_key), before the dropout.
        """
        x = space_to_depth(x, 2)
        for stride in (1, 2) * self.halvings:
            x = nn.relu(nn.Conv(64, (3, 3), strides=stride)(x))
        pool = nn.relu(nn.Dense(FEATURES)(x.reshape(x.shape[0], -1)))
        x = pool
        if dropout_key is not None:
            x = nn.Dropout(0.5, deterministic=False)(x, rng=dropout_key)
        return pool, nn.Dense(self.classes)(x)


def halvings(image_shape: tuple[int, int, int]) -> int:
    """How often pictures are halved: to 4 x 4 or a little more.

    Raises:
        ValueError: odd sizes, or less than 8 pixels.
    """
    height, width, _ = image_shape
    if height % 2 or width % 2 or min(height, width) < 8:
        raise ValueError(
            f"pictures must have an even height and width of at least 8, got {height} x {width}; "
            "give --resize=32"
        )
    return max(1, round(np.log2(min(height, width) / 8)))


def save(path: Path, params: Any, about: dict[str, Any] | None = None) -> None:
    """Writes the weights, float16, to an npz whose names are the flax paths, and what they are of.

    Args:
        path: must not exist.
        params: of a `Classifier`.
        about: name, image_shape, learned ("classes" or `TURNS`); None for the digit classifier.
    """
    flat = flatten_dict(jax.device_get(params), sep="/")
    arrays = {name: value.astype(np.float16) for name, value in sorted(flat.items())}
    arrays |= {"about": json.dumps(about)} if about else {}
    files.save(path, lambda file: np.savez(file, **arrays), new=True)


def feature_network(path: Path) -> FeatureNetwork:
    """Loads a file of `save`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file with other contents.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no feature network at {path}; own_features trains one")
    try:
        with files.interpreting(path), np.load(path) as file:
            flat = {name: file[name] for name in file.files}
            about = json.loads(str(flat.pop("about"))) if "about" in flat else None
            classes = len(flat["Dense_1/bias"])
            shape = tuple(about["image_shape"]) if about else (28, 28, 1)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no feature network of own_features: {error}") from None
    params = unflatten_dict({k: jnp.asarray(v, jnp.float32) for k, v in flat.items()}, sep="/")
    net = Classifier(classes, halvings(shape))

    @jax.jit
    def apply(images) -> Features:
        return Features(*net.apply({"params": params}, data.to_unit_range(images)))

    name = about["name"] if about else "digits"
    own = (f"FD({name})", f"KD({name})", f"score({name})")
    return FeatureNetwork(
        name=name,
        dimensions=FEATURES,
        names=own if about else ("FDD", "KDD", "DS"),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        resize="none",
        image_shape=shape,
        num_classes=0 if about and about["learned"] == TURNS else classes,
        apply=apply,
    )


def train(
    images: np.ndarray, labels: np.ndarray | None, classes: int, *, epochs: int, seed: int = 0
) -> Any:
    """Parameters after Adam with a cosine decay, on randomly shifted pictures.

    Args:
        images: uint8 [N, H, W, C].
        labels: int [N], in 0..classes - 1; None: it learns which way up pictures are, of 4 turns
            or, where height and width differ, of 2.
        classes: K.
        epochs: passes over the pictures.
        seed: of all random numbers, in 0..2^64 - 1.
    """
    model, size = Classifier(classes, halvings(images.shape[1:])), min(BATCH, len(images))
    per_epoch, most = len(images) // size, max(1, min(images.shape[1:3]) // 14)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, epochs * per_epoch))
    params = model.init(keys.key(seed), jnp.zeros((1, *images.shape[1:])))["params"]

    def loss(params, x, y, key):
        shift_key, dropout_key = jax.random.split(key)
        moves = jax.random.randint(shift_key, (len(x), 2), -most, most + 1)
        x = jax.vmap(lambda image, move: jnp.roll(image, move, (0, 1)))(x, moves)
        _, logits = model.apply({"params": params}, x, dropout_key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y, key):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y, key), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(seed)
    of_steps = keys.key((seed + 1) % keys.SEEDS)
    of_steps = iter(jax.random.split(of_steps, epochs * per_epoch))
    for _ in tqdm(range(epochs), unit="epoch"):
        for chosen in rng.permutation(len(images))[: per_epoch * size].reshape(per_epoch, -1):
            x = images[chosen]
            y = labels[chosen] if labels is not None else rng.integers(0, classes, size)
            x = x if labels is not None else turned(x, y)
            params, state = step(params, state, data.to_unit_range(x), y, next(of_steps))
    return params


def turned(images: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Pictures [N, H, W, C] by so many quarter turns, or half turns where H is not W."""
    quarter = 1 if images.shape[1] == images.shape[2] else 2
    return np.stack([np.rot90(x, quarter * n) for x, n in zip(images, turns, strict=True)])


def accuracy(network: FeatureNetwork, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of pictures whose class it says."""
    return float(np.mean(network.extract(images).logits.argmax(-1) == labels))


def main(argv: list[str] | None = None) -> None:
    """Trains a feature network on pictures and writes it."""
    parser = command_line.Parser(description=main.__doc__)
    parser.add_argument("--data", required=True, help="folder:PATH, npz:PATH or a TFDS name")
    parser.add_argument("--split", default="train", help="of the data")
    parser.add_argument("--resize", type=int, help="height and width; default as stored")
    parser.add_argument("--out", default="features.npz", help="must not exist")
    parser.add_argument("--name", help="in the distance's name; default that of --out")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the pictures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    command_line.run("own_features", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Trains on nine tenths, measures on the last tenth, and writes."""
    check_range("--epochs", args.epochs, "[1, 10000]", whole=True)
    keys.check_seed(args.seed, "--seed")
    out = files.check_new(args.out, what="--out", overwrite=None)
    source = data.load(args.data, args.split, image_size=args.resize)
    halvings(source.image_shape)
    held = len(source) // 10
    if held < 1:
        raise ValueError(f"{args.data} holds {len(source)} pictures; give at least 10")
    index = np.random.default_rng(0).permutation(len(source))
    images, labels = features.read_images(source, index)
    known = source.num_classes > 1
    classes = source.num_classes if known else 4 if len({*images.shape[1:3]}) == 1 else 2
    about = {"name": args.name or out.stem, "image_shape": list(source.image_shape)}
    about |= {"learned": "classes" if known else TURNS, "data": args.data}
    given = labels[held:] if known else None
    params = train(images[held:], given, classes, epochs=args.epochs, seed=args.seed)
    save(out, params, about)
    asked = labels[:held] if known else np.arange(held) % classes
    shown = images[:held] if known else turned(images[:held], asked)
    right = accuracy(feature_network(out), shown, asked)
    what = f"class of {classes}" if known else f"{TURNS}, of {classes} turns"
    print(f"{out}: {what}: {right:.1%} of {held} held-out pictures right, chance {1 / classes:.0%}")


if __name__ == "__main__":
    main()
