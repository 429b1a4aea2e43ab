"""Arithmetic with emoji, over all analogies that their names make.

    python -m benchmarks.emoji_analogies --checkpoint=runs/emoji --images=npz:emoji.npz

The words say that "crying cat face" - "crying face" + "pouting face" is "pouting cat face". Do the
latents? Pictures of a, b and c are inverted; a - b + c, in the norm of c, is drawn. Is the real d
the nearest to what is drawn of all emoji of the style (top 1), or among the nearest five?
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ddim_jax import checkpoints, command_line, data, files, keys
from ddim_jax.editing import latents
from ddim_jax.editing.editor import Editor
from ddim_jax.editing.inversion import round_trip
from ddim_jax.evaluation import feature_networks
from ddim_jax.evaluation.features import read_images
from ddim_jax.evaluation.gallery import Gallery, found
from ddim_jax.model import Model
from ddim_jax.names import check_range

Array = np.ndarray


class Analogy(NamedTuple):
    """Four names: a - b + c = d."""

    a: str
    b: str
    c: str
    d: str


def analogies(names: Sequence[str], most: int | None = None, seed: int = 0) -> list[Analogy]:
    """All analogies that words make: a is the words of b and others, d those of c and the same.

    Args:
        names: texts; the order of their words does not count.
        most: so many, chosen at random, of those with the same others; None for all.
        seed: of that choice.
    """
    known = {tuple(sorted(name.split())): name for name in names}
    pairs = defaultdict(set)  # others -> {(a, b)}
    for words, a in known.items():
        sizes = (itertools.combinations(range(len(words)), k) for k in range(1, len(words)))
        for places in itertools.chain.from_iterable(sizes):
            if b := known.get(tuple(words[i] for i in places)):
                others = tuple(word for i, word in enumerate(words) if i not in places)
                pairs[others].add((a, b))
    chosen, rng = [], np.random.default_rng(seed)
    for others in sorted(pairs):
        both = itertools.permutations(sorted(pairs[others]), 2)
        own = [Analogy(a, b, c, d) for (a, b), (d, c) in both if len({a, b, c, d}) == 4]
        chosen += [own[i] for i in sorted(rng.permutation(len(own))[:most])]
    return chosen


def choose(
    model: Model, gallery: Gallery, args: argparse.Namespace
) -> tuple[list[Analogy], dict[str, Array]]:
    """At most `--num` analogies whose d the gallery has, and pictures of a, b and c by name."""
    source = data.load(args.images, args.split)
    styled = args.style in source.class_names and model.inputs.is_class(args.style)
    if not (model.inputs.takes("text") and styled and source.captions):
        raise ValueError(
            f"this takes captioned images and a network told texts and the style {args.style!r}"
        )
    images, labels = read_images(source)
    own = np.flatnonzero(labels == source.class_names.index(args.style))
    pictures = {source.captions[i]: images[i] for i in own}
    shown = gallery.name[gallery.style == gallery.styles.index(args.style)]
    real = {gallery.names[k] for k in shown}
    whole = analogies(sorted(real | set(pictures)), args.most)
    whole = [one for one in whole if set(one[:3]) <= set(pictures) and one.d in real]
    if not whole:
        raise ValueError(f"the names of {args.images} in style {args.style!r} make no analogy")
    asked = [whole[i] for i in np.random.default_rng(args.seed).permutation(len(whole))][: args.num]
    example = "{} - {} + {} = {}".format(*asked[0])
    print(f"{len(asked)} of {len(whole)} analogies, such as {example}\n")
    return asked, pictures


def draw(
    model: Model, pictures: dict[str, Array], asked: list[Analogy], args: argparse.Namespace
) -> dict[str, Array]:
    """What is drawn for d in several ways, each uint8 [N, H, W, C]."""
    names, d = sorted({name for one in asked for name in one[:3]}), [one.d for one in asked]
    x = model.codec.encode(model.codec.params, np.stack([pictures[name] for name in names]), None)
    a, b, c = ([names.index(one[k]) for one in asked] for k in range(3))
    plain = Editor(model, batch_size=args.batch_size)
    trip = round_trip(model.schedule, args.method, args.steps)
    ways = {  # label, prompts of the inversion, prompts of what is drawn
        "latents, told nothing": (None, "", ""),
        "latents, told the style": (args.style, "", ""),
        "latents, told the style and names": (args.style, names, d),
    }
    rows = {name: np.stack([pictures[one[k]] for one in asked]) for k, name in enumerate("abc")}
    for way, (label, up, down) in ways.items():
        z = plain.invert(trip, x, label, prompt=up).state.evaluate
        moved = np.asarray(jax.vmap(latents.add)(z[c], z[a] - z[b]))
        rows[way] = model.pictures(plain.draw(trip.down, moved, label, prompt=down))
    noise = keys.initial_noise(keys.sample_keys(args.seed, np.arange(len(d))), x.shape[1:])
    for scale in (1.0, args.guidance_scale):
        editor = Editor(model, guidance_scale=scale, batch_size=args.batch_size)
        drawn = editor.draw(model.recipe.table(model.schedule), noise, args.style, prompt=d)
        rows[f"noise, told the style and d, guidance {scale:g}"] = model.pictures(drawn)
    return rows


def run(args: argparse.Namespace) -> None:
    """Chooses analogies, draws, looks for d, and prints a table."""
    for name in ("num", "most", "steps", "batch_size"):
        check_range(f"--{name}", vars(args)[name], "[1, 1000000]", whole=True)
    out = files.check_new(args.out, what="--out", overwrite=None, suffixes=(".png",))
    network, model = feature_networks.load("emoji"), checkpoints.load(args.checkpoint)
    asked, pictures = choose(model, network.gallery, args)
    styles = np.full(len(asked), network.gallery.styles.index(args.style))
    rows = draw(model, pictures, asked, args)
    print("| picture | top 1 | top 5 |\n|---|---|---|")
    for name, row in rows.items():
        ranks = network.gallery.ranks(network.extract(row).pool, [one.d for one in asked], styles)
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in found(ranks).values()) + " |")
    most = min(10, len(asked))
    names = [text for name in rows for text in (name, *[""] * (most - 1))]
    data.save_grid(out, np.concatenate([row[:most] for row in rows.values()]), names, columns=most)


def main(argv: list[str] | None = None) -> None:
    """Says how often arithmetic with emoji finds what their names say."""
    parser = command_line.Parser(description=main.__doc__)
    add = parser.add_argument
    add("--checkpoint", default="emoji", help="of a network told names and styles")
    add("--images", default="npz:emoji.npz", help="with names for captions and styles for labels")
    add("--split", default="train", help="of the images")
    add("--style", default="fluent", help="of all pictures")
    add("--num", type=int, default=128, help="most analogies")
    add("--most", type=int, default=6, help="of those with the same difference of a and b")
    add("--method", default="bdia", help="inversion")
    add("--steps", type=int, default=20, help="of the inversion")
    add("--guidance_scale", type=float, default=3.0, help="of the text alone")
    add("--batch_size", type=int, default=64)
    add("--seed", type=int, default=0, help="of the choice and of noise")
    add("--out", default="edits/analogies.png", help="the first ten; must not exist")
    args = parser.parse_args(argv)
    command_line.run("emoji_analogies", lambda: run(args))


if __name__ == "__main__":
    main()
