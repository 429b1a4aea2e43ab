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

from ddim_jax import command_line, data, files
from ddim_jax.evaluation import features, metrics, own_features, references


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
    own_features.save(out, own_features.train(images, labels, 10, epochs=args.epochs))
    network = own_features.feature_network(out)
    for split, source in sources.items():
        images, labels = features.read_images(source)
        extracted = network.extract(images)
        right = (extracted.logits.argmax(-1) == labels).mean()
        references.save(
            statistics[split], metrics.moments(extracted.pool), network, f"mnist {split} images"
        )
        print(f"{split}: {right:.2%} of {len(labels)} images right; {statistics[split]}")
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 {network.sha256}")


if __name__ == "__main__":
    main()
