"""Says how many pictures show the emoji that was asked for, in the style that was asked for.

    python sample.py --checkpoint=runs/emoji --prompt=@names.txt --labels=fluent --out=drawn.npz
    python -m ddim_jax.evaluation.retrieval --pictures=npz:drawn.npz

The pictures are any data with captions, the names, and with labels, the styles. Each is looked for
among all real pictures of its style (`gallery.py`): top 1 says that the asked emoji is the nearest,
top 5 that it is among the nearest five. `tradeoff --features=emoji` draws and says the same.
"""

import argparse

import numpy as np

from ddim_jax import command_line, data
from ddim_jax.data import Source
from ddim_jax.evaluation import feature_networks, features
from ddim_jax.evaluation.gallery import Gallery, found
from ddim_jax.names import check_range


def main(argv: list[str] | None = None) -> None:
    """Prints a table: a row for each style, and one for all pictures."""
    parser = command_line.Parser(description=main.__doc__)
    add = parser.add_argument
    add("--pictures", required=True, help="with captions and labels, like npz:PATH or folder:PATH")
    add("--split", default="train", help="of the pictures")
    add("--features", default="emoji", help="emoji, or emoji:PATH.npz")
    add("--worst", type=int, default=0, help="also list so many of the pictures found last")
    args = parser.parse_args(argv)
    command_line.run("retrieval", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Reads, looks for every picture, and prints."""
    check_range("--worst", args.worst, "[0, inf)", whole=True)
    network, source = feature_networks.load(args.features), data.load(args.pictures, args.split)
    gallery = network.gallery
    if gallery is None:
        raise ValueError(f"--features must be emoji or emoji:PATH.npz, got {args.features}")
    if not source.captions:
        raise ValueError(f"{args.pictures} has no captions to say what was asked for")
    if not source.num_classes:
        raise ValueError(
            f"{args.pictures} has no labels to say in which style; {', '.join(gallery.styles)} are "
            "0, 1 and so on"
        )
    network.check(source.image_shape)
    images, labels = features.read_images(source)
    names, styles = np.array(source.captions), styles_of(gallery, source, labels)
    known = gallery.known(names.tolist(), styles)
    if not known.any():
        raise ValueError(
            f"no caption of {args.pictures} is a name of the gallery in its style, such as "
            f"{gallery.names[0]!r} in {gallery.styles[0]}"
        )
    if not known.all():
        print(f"{np.sum(~known)} pictures of other names are left out, such as {names[~known][0]}")
    names, styles = names[known], styles[known]
    extracted = network.extract(images[known])
    ranks = gallery.ranks(extracted.pool, names.tolist(), styles)
    right = extracted.logits.argmax(-1) == styles
    print("| asked style | pictures | top 1 | top 5 | median rank | style right |")
    print("|---|---|---|---|---|---|")
    for number, style in [*enumerate(gallery.styles), (None, "all")]:
        own = (styles == number) | (number is None)
        if own.any():
            top = " | ".join(f"{share:.1%}" for share in found(ranks[own]).values())
            rest = f"{np.median(ranks[own]):g} | {right[own].mean():.1%}"
            print(f"| {style} | {own.sum()} | {top} | {rest} |")
    for i in np.argsort(-ranks, kind="stable")[: args.worst]:
        print(f"rank {ranks[i]}: {names[i]} in {gallery.styles[styles[i]]}")


def styles_of(gallery: Gallery, source: Source, labels: np.ndarray) -> np.ndarray:
    """Labels as the gallery numbers its styles: by their names, where the data have names.

    Args:
        gallery: of the network.
        source: the pictures.
        labels: int [N], its.

    Raises:
        ValueError: classes of other names than the styles.
    """
    if not source.class_names:
        return labels
    unknown = sorted(set(source.class_names) - set(gallery.styles))
    if unknown:
        raise ValueError(
            f"classes of the pictures must be {', '.join(gallery.styles)}, got {unknown[0]!r}"
        )
    return np.array([gallery.styles.index(name) for name in source.class_names])[labels]


if __name__ == "__main__":
    main()
