"""The commands `arithmetic` and `attribute`: a direction between latents, added to others.

The network is told no label or text, because a direction may be what these say; with `--told` those
of each image, both ways, and the direction is of what they do not say.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddim_jax import abilities, codecs, keys
from ddim_jax.editing import latents
from ddim_jax.editing.actions import apart, code_trip, make_editor, told
from ddim_jax.editing.judging import judge
from ddim_jax.editing.pictures import Asked, read, write
from ddim_jax.model import Model

Array = np.ndarray


class Images(NamedTuple):
    """Samples [N, ...], labels [N] or None, N texts or (), as `pictures.read` returns them."""

    x: Array
    labels: Array | None
    texts: Sequence[str]

    def rows(self, chosen: Array) -> "Images":
        """Those of a mask [N]."""
        labels = None if self.labels is None else self.labels[chosen]
        texts = [self.texts[i] for i in np.flatnonzero(chosen)] if self.texts else ()
        return Images(self.x[chosen], labels, texts)

    def followed(self, other: "Images") -> "Images":
        """These, then others; labels and texts where both have them."""
        both = self.labels is not None and other.labels is not None
        labels = np.concatenate([self.labels, other.labels]) if both else None
        texts = [*self.texts, *other.texts] if self.texts and other.texts else ()
        return Images(np.concatenate([self.x, other.x]), labels, texts)


def arithmetic(model: Model, args: argparse.Namespace) -> None:
    """Adds the difference of two sets of images to others."""
    _check(model, args)
    toward, away = (Images(*read(model, args, images)) for images in (args.toward, args.away))
    _add_direction(model, args, toward, away)


def attribute(model: Model, args: argparse.Namespace) -> None:
    """Adds a direction that is learned from classes, or from how bright images are."""
    _check(model, args)
    images = Images(*read(model, args, first=args.learn_from))
    if args.by == "ink":
        brightness = _brightness(model, images.x)
        low, high = np.quantile(brightness, (0.25, 0.75))
        sides = brightness > high, brightness < low
    else:
        toward, colon, away = args.by.partition(":")
        if images.labels is None or not colon:
            raise ValueError(
                f"--by must be ink, or two classes of labelled images like 7:1, got {args.by}"
            )
        sides = [images.labels == number for number in model.inputs.labels([toward, away], 2)]
    if not all(side.any() for side in sides):
        raise ValueError(
            f"--by={args.by} finds no images on one side among {len(images.x)}; raise --learn_from"
        )
    _add_direction(model, args, images.rows(sides[0]), images.rows(sides[1]))


def _check(model: Model, args: argparse.Namespace) -> None:
    """Raises ValueError where the network is told no label, and has not learnt to do without."""
    if model.inputs.num_classes and not args.told and not abilities.knows_null(model):
        raise ValueError(
            f"{model.name} was trained without label dropout, so it inverts images under their own "
            "labels alone: use --told"
        )


def _brightness(model: Model, x: Array) -> Array:
    """[N] mean pixel of samples, in -1..1."""
    x = codecs.to_unit_range(model.pictures(x)) if model.draws_latents else x
    return x.reshape(len(x), -1).mean(axis=1)


def _add_direction(model: Model, args: argparse.Namespace, toward: Images, away: Images) -> None:
    """Adds the direction from the latents of some images to those of others, in `--strength`s."""
    told_apart = args.told and (
        list(toward.texts) != list(away.texts) or not np.array_equal(toward.labels, away.labels)
    )
    if np.array_equal(toward.x, away.x) and not told_apart:
        raise ValueError(
            "both sides are the same images, so there is no direction from one to the other; give "
            "others"
        )
    editor, trip = make_editor(model, args), code_trip(model, args)
    images = Images(*read(model, args))

    def own(images: Images) -> tuple[Any, dict]:
        if not args.told:
            return None, apart(args)
        return images.labels, told(editor, args, images.texts)

    def inverted(images: Images) -> Array:
        labels, texts = own(images)
        return editor.invert(trip, images.x, labels, **texts).state.evaluate

    ends = inverted(toward.followed(away))
    positive = np.arange(len(ends)) < len(toward.x)
    if args.probe:
        direction = latents.probe_direction(ends, positive)
    else:
        direction = latents.mean_direction(ends[positive], ends[~positive])
    if args.random:
        direction = latents.random_direction(keys.key(args.seed), direction)
    start, rows = inverted(images), {"image": images.x}
    labels, texts = own(images)
    for strength in args.strength:
        moved = latents.add(start, direction, strength)
        rows[f"{strength:+g}"] = editor.draw(trip.down, moved, labels, **texts)
    numbers = {
        "toward": len(toward.x),
        "away": len(away.x),
        "direction": "random" if args.random else "probe" if args.probe else "mean",
        "norm": float(np.linalg.norm(direction)),
        "mean_brightness": {
            name: float(_brightness(model, row).mean()) for name, row in rows.items()
        },
    }
    asked = Asked.of(model.inputs, len(start), labels, images.texts if args.told else ())
    write(model, args, rows, numbers | judge(model, rows, asked), asked=asked)
