"""Trains the emoji encoder: the feature network of the Frechet emoji distance (FED).

    python -m ddim_jax.evaluation.emoji --data=emoji.npz --out=emoji_encoder.npz
    python -m ddim_jax.evaluation.emoji --data=emoji.npz --out=checked.npz --check

The data are an npz of `webp` bytes of all pictures, `offset` [N + 1] where each begins, `emoji` [N]
rows of the lists `name` and `category`, and `style` [N] rows of `styles`. All pictures are learned,
randomly damaged (`emoji_damage.py`): which emoji it is by the cosine to a learned direction for
each, the style, the category, the damage. With `--check` a tenth of the emoji and a tenth of the
other pictures are held out, and the command says how many of them are found by their picture in
another style among all pictures of that style, and by themselves when they are blurred.
"""

import argparse
import functools
import io
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from tqdm import tqdm

from ddim_jax import command_line, files, keys
from ddim_jax.data import npz
from ddim_jax.evaluation import emoji_encoder
from ddim_jax.evaluation.emoji_damage import damaged
from ddim_jax.evaluation.emoji_encoder import SIZE, Encoder
from ddim_jax.evaluation.features import FeatureNetwork
from ddim_jax.evaluation.gallery import Gallery, found
from ddim_jax.evaluation.sanity_check import blur
from ddim_jax.names import check_range

SHARPNESS = 20.0
"""Factor of cosines in the loss."""

WEIGHTS = {"emoji": 1.0, "style": 1.0, "category": 0.3, "damage": 10.0}
"""Of the parts of the loss."""

BLURRED = 1.5
"""Standard deviation in pixels of the blur under which pictures are looked for in their style."""


class Emoji(NamedTuple):
    """Pictures of emoji and what they show.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        emoji: int [N], rows of names.
        style: int [N].
        category: int [N].
        names: of all emoji.
        styles: their names.
        categories: their names.
    """

    images: np.ndarray
    emoji: np.ndarray
    style: np.ndarray
    category: np.ndarray
    names: tuple[str, ...]
    styles: tuple[str, ...]
    categories: tuple[str, ...]


def read(path: str | Path) -> Emoji:
    """Reads the pictures.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it lacks arrays, is damaged or cut short, or pictures are of another size.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no emoji at {path}; --data is the npz of their pictures")
    try:
        with np.load(path) as file:
            given = {key: file[key] for key in file.files}
        webp, offset, emoji = given["webp"], given["offset"], given["emoji"].astype(int)
        parts = [webp[a:b].tobytes() for a, b in zip(offset[:-1], offset[1:], strict=True)]
        images = np.stack([np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in parts])
        categories, category = np.unique(given["category"], return_inverse=True)
        names, styles = map(str, given["name"]), map(str, given["styles"])
        style, of_pictures = given["style"].astype(int), category[emoji]
    except (ValueError, OSError, *files.ODD) as error:
        why = npz.fault(error)
        raise ValueError(f"{path} holds no emoji as this command reads them: {why}") from None
    if images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"pictures must be {SIZE} x {SIZE}, {path} has {images.shape[1:3]}")
    return Emoji(
        images, emoji, style, of_pictures, tuple(names), tuple(styles), tuple(map(str, categories))
    )


def held_out(emoji: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows to hold out: all pictures of a tenth of the emoji, and a tenth of the others."""
    rng, kinds = np.random.default_rng(seed), np.unique(emoji)
    unseen = np.isin(emoji, rng.permutation(kinds)[: max(1, len(kinds) // 10)])
    others = rng.permutation(np.flatnonzero(~unseen))
    return np.flatnonzero(unseen), np.sort(others[: max(1, len(others) // 10)])


def train(
    pictures: Emoji,
    rows: np.ndarray,
    *,
    widths: tuple[int, ...],
    batch_size: int,
    learning_rate: float,
    minutes: float,
    steps: int | None = None,
    seed: int = 0,
    start: tuple[Any, Gallery] | None = None,
) -> Any:
    """Parameters of an `Encoder` after AdamW, whose rate falls like a cosine.

    Args:
        pictures: of which `rows` are learned.
        rows: int [M].
        widths: of the encoder.
        batch_size: pictures a step.
        learning_rate: after a twentieth of the training.
        minutes: how long, without compilation.
        steps: ends it where that is earlier.
        seed: of all random numbers.
        start: parameters to go on from, and their gallery; None for fresh ones.
    """
    net = Encoder(len(pictures.styles), len(pictures.categories), tuple(widths))
    key = keys.key(seed)
    params = {
        "net": net.init(key, jnp.zeros((1, SIZE, SIZE, 3)))["params"],
        "emoji": jax.random.normal(key, (len(pictures.names), net.embedding)),
    }
    if start is not None:
        params = {"net": start[0], "emoji": _directions(start[1])}
    optimizer, step = _stepper(net, batch_size)
    labels = {"emoji": pictures.emoji, "style": pictures.style, "category": pictures.category}
    labels = {name: jnp.asarray(values[rows], jnp.int32) for name, values in labels.items()}
    images, state = jnp.asarray(pictures.images[rows]), optimizer.init(params)
    began, done, count = 0.0, 0.0, 0
    with tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}{postfix}") as bar:
        while done < 1:
            rate = learning_rate * min(1, 20 * done + 0.01) * (0.5 + 0.5 * np.cos(np.pi * done))
            own = jax.random.fold_in(key, count)
            params, state, parts = step(params, state, images, labels, own, np.float32(rate))
            if count % 10 == 0:  # also waits for what was started
                shown = {name: f"{part:.3f}" for name, part in jax.device_get(parts).items()}
                bar.set_postfix(step=count, **shown, refresh=False)
            began, count = began or time.perf_counter(), count + 1  # after the compilation
            of_minutes = (time.perf_counter() - began) / (60 * minutes)
            done = max(of_minutes, count / steps if steps else 0)
            bar.update(min(100, round(100 * done)) - bar.n)
    print(f"{count} steps, {count * batch_size / len(rows):.0f} times every picture")
    return params["net"]


def _stepper(net: Encoder, batch_size: int) -> tuple[optax.GradientTransformation, Callable]:
    """AdamW without its rate, and (params, state, images, labels, key, rate) -> the next ones."""
    decays = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.99),
        optax.add_decayed_weights(0.05, mask=decays),
    )

    def loss(params, x, wanted):
        _, heads = net.apply({"params": params["net"]}, x)
        heads["emoji"] = SHARPNESS * _unit(heads["emoji"]) @ _unit(params["emoji"]).T
        classes = optax.softmax_cross_entropy_with_integer_labels
        parts = {
            name: classes(heads[name], wanted[name]).mean() for name in wanted if name != "damage"
        }
        parts["damage"] = jnp.mean((heads["damage"] - wanted["damage"]) ** 2)
        return sum(WEIGHTS[name] * part for name, part in parts.items()), parts

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, images, labels, key, rate):
        choice, change = jax.random.split(key)
        chosen = jax.random.randint(choice, (batch_size,), 0, len(images))
        x, damage = damaged(images[chosen], change)
        wanted = {name: values[chosen] for name, values in labels.items()} | {"damage": damage}
        grads, parts = jax.grad(loss, has_aux=True)(params, x, wanted)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state, parts

    return optimizer, step


def _directions(gallery: Gallery) -> np.ndarray:
    """[K, E]: where the pictures of each emoji lie, by which training goes on."""
    e = gallery.embed(gallery.pool)
    sums = np.zeros((len(gallery.names), e.shape[1]), np.float32)
    np.add.at(sums, gallery.name, e)
    return sums


def _unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def write(path: Path, params: Any, pictures: Emoji, widths: tuple[int, ...]) -> FeatureNetwork:
    """Writes the encoder with the gallery of all pictures, and loads it.

    Equal pictures get equal features, to the last bit.
    """
    head = [np.asarray(params["emoji"][part]) for part in ("kernel", "bias")]
    about = {"styles": pictures.styles, "categories": pictures.categories, "widths": widths}
    names = (pictures.names, pictures.styles, pictures.emoji, pictures.style)
    nothing = np.zeros((len(pictures.emoji), emoji_encoder.FEATURES), np.float32)
    flat = pictures.images.reshape(len(pictures.images), -1)
    _, first, which = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    with tempfile.TemporaryDirectory() as folder:  # by the weights as they are kept
        partly = Path(folder) / "encoder.npz"
        emoji_encoder.save(partly, params, about, Gallery(*names, nothing, *head))
        pool = emoji_encoder.load(partly).extract(pictures.images[first]).pool[which.ravel()]
    emoji_encoder.save(path, params, about, Gallery(*names, pool, *head))
    return emoji_encoder.load(path)


def check(network: FeatureNetwork, pictures: Emoji, rows: np.ndarray, what: str) -> None:
    """Prints how well these pictures are found by their pictures in each style.

    In their own style they are looked for blurred: unblurred they would find themselves.
    """
    images, styles, shown = pictures.images[rows], pictures.style[rows], pictures.styles
    features, names = network.extract(images), [pictures.names[k] for k in pictures.emoji[rows]]
    blurred = network.extract(blur(images, BLURRED)).pool
    right = np.mean(features.logits.argmax(-1) == styles)
    print(f"\n{len(rows)} {what}: style right {right:.1%}\n")
    print("| drawn in | looked for in | pictures | top 1 | top 5 |\n|---|---|---|---|---|")
    for a, b in itertools.product(range(len(shown)), repeat=2):
        known = (styles == a) & network.gallery.known(names, np.full(len(rows), b))
        if known.any():
            own, pool = np.flatnonzero(known), blurred if a == b else features.pool
            asked = [names[i] for i in own]
            ranks = network.gallery.ranks(pool[own], asked, np.full(len(own), b))
            top = " | ".join(f"{share:.1%}" for share in found(ranks).values())
            drawn = shown[a] + f", blurred by {BLURRED} pixels" * (a == b)
            print(f"| {drawn} | {shown[b]} | {len(own)} | {top} |")


def main(argv: list[str] | None = None) -> None:
    """Trains the emoji encoder and writes it with the features of all pictures."""
    parser = command_line.Parser(description=main.__doc__)
    add = parser.add_argument
    add(
        "--data",
        default="emoji.npz",
        help="npz of webp, offset, emoji, name, category, style, styles",
    )
    add("--out", default="emoji_encoder.npz", help="must not exist")
    add("--minutes", type=float, default=20.0, help="of training")
    add("--steps", type=int, help="of training, where they end before the minutes")
    add("--batch_size", type=int, default=64)
    add("--learning_rate", type=float, default=3e-3)
    add("--start_from", help="an encoder of the same pictures to go on with, in its widths")
    add("--widths", default="64,128,160", help="channels at 16 x 16, 8 x 8 and 4 x 4")
    add("--check", action="store_true", help="hold pictures out, and say how they are found")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    command_line.run("emoji", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Checks, trains, writes and says how well it knows the pictures."""
    check_range("--minutes", args.minutes, "(0, 10000]")
    check_range("--learning_rate", args.learning_rate, "(0, 1]")
    check_range("--batch_size", args.batch_size, "[1, 65536]", whole=True)
    if args.steps is not None:
        check_range("--steps", args.steps, "[1, inf)", whole=True)
    keys.check_seed(args.seed, "--seed")
    given = args.widths.split(",")
    if len(given) != 3 or not all(one.strip().isdecimal() and 0 < int(one) < 5000 for one in given):
        raise ValueError(f"--widths must be like 64,128,160, 1 to 4999 each, got {args.widths!r}")
    widths = tuple(int(width) for width in given)
    out = files.check_new(args.out, what="--out", overwrite=None)
    pictures = read(args.data)
    rows, unseen, others = np.arange(len(pictures.emoji)), np.arange(0), np.arange(0)
    if args.check:
        unseen, others = held_out(pictures.emoji)
        rows = np.setdiff1d(rows, np.concatenate([unseen, others]))
    start = None
    if args.start_from:
        params, about, gallery = emoji_encoder.read(Path(args.start_from))
        if gallery.names != pictures.names or args.check:
            raise ValueError(
                f"--start_from={args.start_from} must be of the pictures of --data, and has seen "
                "them all: leave out --check"
            )
        start, widths = (params, gallery), tuple(about["widths"])
    params = train(
        pictures, rows, widths=widths, batch_size=args.batch_size, minutes=args.minutes,
        learning_rate=args.learning_rate, steps=args.steps, seed=args.seed, start=start,
    )  # fmt: skip
    network = write(out, params, pictures, widths)
    for held, what in ((unseen, "pictures of unseen emoji"), (others, "unseen pictures")):
        if len(held):
            check(network, pictures, held, what)
    some = np.random.default_rng(0).permutation(rows)[:1000]
    check(network, pictures, some, "pictures that it learned")
    print(f"\n{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 {network.sha256}")


if __name__ == "__main__":
    main()
