"""What the samples of a set are asked for: classes in rotation, or the texts and classes of data.

A network that is told texts is measured on texts: those of the pictures of `--asked`, or, with
features that come with a gallery (`gallery.py`), the names and styles of its real pictures. They
are in one random order, so that the first N samples of a set stand for all.
"""

import argparse
import hashlib
import sys
from typing import NamedTuple

import numpy as np

from ddim_jax import data
from ddim_jax.evaluation.gallery import Gallery
from ddim_jax.inputs import Inputs
from ddim_jax.names import few


class Asked(NamedTuple):
    """What samples are asked for, in rotation.

    Attributes:
        name: of the data and what of it; "" for all classes.
        classes: int [P]; None for all.
        texts: P of them; None for none.
    """

    name: str = ""
    classes: np.ndarray | None = None
    texts: tuple[str, ...] | None = None

    def labels(self, inputs: Inputs, count: int) -> np.ndarray | None:
        """Of the first samples, int32 [count]; None for a network without classes."""
        return inputs.labels(self.classes if inputs.num_classes else None, count)

    def prompts(self, index: np.ndarray) -> list[str] | None:
        """Of samples at these places; None for a network that is told none."""
        return None if self.texts is None else [self.texts[i % len(self.texts)] for i in index]


ALL_CLASSES = Asked()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `find` to a command."""
    about = "of a network told texts: data whose captions and labels it is asked for"
    parser.add_argument("--asked", help=about)
    parser.add_argument("--asked_split", default="train", help="of these data")


def find(inputs: Inputs, spec: str | None, split: str, gallery: Gallery | None = None) -> Asked:
    """What to ask a network for.

    Args:
        inputs: of the network.
        spec: data whose labels and captions are asked for; None for the gallery's names in its
            styles, where the network is told both, or else for all classes.
        split: of the data.
        gallery: of the features that samples are measured in; None for none.

    Raises:
        FileNotFoundError: no such data.
        ValueError: a network that is told texts, and neither data with captions nor a gallery to
            ask it for; data without the network's classes, or with another order of styles than
            the gallery's.
    """
    told = inputs.takes("text")
    if spec is not None:
        source = data.load(spec, split)
        if told and not source.captions:
            raise ValueError(f"{spec} has no captions to ask for; {inputs.describe()} is drawn")
        if told and gallery is not None and inputs.class_names not in ((), gallery.styles):
            raise ValueError(
                f"the features look for names in the styles {', '.join(gallery.styles)}, and the "
                f"network's classes are {few(inputs.class_names)}; take other --features"
            )
        order = np.random.default_rng(0).permutation(len(source))
        labels = np.array([source[i]["label"] for i in order]) if inputs.num_classes else None
        if labels is not None:
            labels = inputs.labels_of(source, labels)
            if labels is None:
                raise ValueError(
                    f"{spec} has {source.num_classes} classes"
                    f"{f' ({few(source.class_names)})' if source.class_names else ''}, which are "
                    f"not those to ask for: {inputs.describe()} is drawn"
                )
        texts = tuple(source.captions[i] for i in order) if told else None
        if gallery is not None and labels is not None and texts:
            _note_unknown(spec, gallery.known(texts, labels), texts)
        return _named(f"{spec} {split}", labels, texts)
    if told and gallery is not None and inputs.class_names in ((), gallery.styles):
        texts, labels = gallery.pairs()
        return _named("the gallery", labels if inputs.num_classes else None, texts)
    if told:  # the empty text shows what nobody asks for, and guidance has nowhere to lead to
        raise ValueError(
            "this network draws from a text: say what to ask it for by --asked, data with captions "
            "such as npz:PATH"
        )
    return ALL_CLASSES


def _note_unknown(spec: str, known: np.ndarray, texts: tuple[str, ...]) -> None:
    """Says of how many texts there is no real picture to look for."""
    if not known.all():
        which = f"{np.sum(~known):,} of {len(known):,} pairs of a text and a class in {spec}"
        told = f"such as {texts[int(np.argmin(known))]!r}: those are drawn and not looked for"
        print(f"note: there is no real picture of {which}, {told}", file=sys.stderr)


def _named(name: str, labels: np.ndarray | None, texts: tuple[str, ...] | None) -> Asked:
    """With what decides the samples in the name."""
    content = "\n".join(texts or ()).encode() + (b"" if labels is None else labels.tobytes())
    return Asked(f"{name}, {hashlib.sha256(content).hexdigest()[:16]}", labels, texts)
