"""The digit classifier: the feature network of the Frechet digit distance (FDD).

Inception was trained on photographs and says little about 28 x 28 digits. This network was trained
on MNIST's 60,000 training images; its 128 features before the last layer take the place of
Inception's 2048. Distances between them are called FDD and are comparable with each other only.

    python -m ddim_jax.evaluation.digits --data=npz:mnist.npz --out=digit_classifier.npz

trains it again, prints its accuracy on the test images, and writes beside the weights the reference
statistics of the 60,000 training and 10,000 test images. This command made the files in
`ddim_jax/assets`. Distances under other weights are not comparable with those.
"""

import argparse
import functools
import hashlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from ddim_jax import command_line, data, files
from ddim_jax.evaluation import features, metrics, references
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.networks.layers import space_to_depth

FEATURES = 128
SHIFT = 2
"""Most pixels by which training images are shifted, each way."""


class DigitClassifier(nn.Module):
    """Four 3x3 convolutions on 2 x 2 patches, two of them halving, and two dense layers."""

    @nn.compact
    def __call__(self, x, dropout_key=None):
        """Maps x [B, 28, 28, 1] in [-1, 1] to (features [B, 128], logits [B, 10]).

        Features are after the ReLU and, in training (with a dropout_key), before the dropout.
        """
        x = space_to_depth(x, 2)
        for stride in (1, 2, 1, 2):
            x = nn.relu(nn.Conv(64, (3, 3), strides=stride)(x))
        pool = nn.relu(nn.Dense(FEATURES)(x.reshape(x.shape[0], -1)))
        x = pool
        if dropout_key is not None:
            x = nn.Dropout(0.5, deterministic=False)(x, rng=dropout_key)
        return pool, nn.Dense(10)(x)


def save(path: Path, params) -> None:
    """Writes the weights, float16, to an npz whose names are the flax paths."""
    flat = flatten_dict(jax.device_get(params), sep="/")
    with open(path, "xb") as file:
        np.savez(file, **{name: value.astype(np.float16) for name, value in sorted(flat.items())})


def feature_network(path: Path) -> FeatureNetwork:
    """Loads the classifier from a file of `save` for FDD, KDD and DS."""
    with np.load(path) as file:
        flat = {name: jnp.asarray(file[name], jnp.float32) for name in file}
    params = unflatten_dict(flat, sep="/")

    @jax.jit
    def apply(images) -> Features:
        return Features(*DigitClassifier().apply({"params": params}, data.to_unit_range(images)))

    return FeatureNetwork(
        name="digits",
        dimensions=FEATURES,
        names=("FDD", "KDD", "DS"),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        resize="none",
        image_shape=(28, 28, 1),
        num_classes=10,
        apply=apply,
    )


def train(images: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int = 0):
    """Parameters after Adam with a cosine decay, on randomly shifted uint8 [N, 28, 28, 1]."""
    model, batch_size = DigitClassifier(), 128
    per_epoch = len(images) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, epochs * per_epoch))
    params = model.init(jax.random.key(seed), jnp.zeros((1, 28, 28, 1)))["params"]

    def loss(params, x, y, key):
        shift_key, dropout_key = jax.random.split(key)
        moves = jax.random.randint(shift_key, (len(x), 2), -SHIFT, SHIFT + 1)
        x = jax.vmap(lambda image, move: jnp.roll(image, move, (0, 1)))(x, moves)
        _, logits = model.apply({"params": params}, x, dropout_key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y, key):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y, key), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(seed)
    keys = iter(jax.random.split(jax.random.key(seed + 1), epochs * per_epoch))
    for _ in tqdm(range(epochs), unit="epoch"):
        for chosen in rng.permutation(len(images))[: per_epoch * batch_size].reshape(per_epoch, -1):
            x = data.to_unit_range(images[chosen])
            params, state = step(params, state, x, labels[chosen], next(keys))
    return params


def main(argv: list[str] | None = None) -> None:
    """Trains the classifier and writes it with its reference statistics."""
    parser = command_line.Parser(description=main.__doc__)
    parser.add_argument("--data", default="mnist", help="npz:PATH with train and test, or mnist")
    parser.add_argument("--out", default="digit_classifier.npz", help="must not exist")
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args(argv)
    command_line.run("digits", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Trains, measures and writes."""
    out = files.check_new(args.out, what="--out", overwrite=None)
    sources = {split: data.load(args.data, split) for split in ("train", "test")}
    statistics = {
        split: files.check_new(out.with_name(f"digits_{split}_statistics.npz"), overwrite=None)
        for split in sources
    }
    images, labels = features.read_images(sources["train"])
    save(out, train(images, labels, epochs=args.epochs))
    network = feature_network(out)
    for split, source in sources.items():
        images, labels = features.read_images(source)
        extracted = network.extract(images)
        accuracy = np.mean(extracted.logits.argmax(-1) == labels)
        moments = metrics.moments(extracted.pool)
        references.save(statistics[split], moments, network, f"mnist {split} images")
        print(f"{split}: {100 * accuracy:.2f}% of {len(labels)} images right; {statistics[split]}")
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 {network.sha256}")


if __name__ == "__main__":
    main()
