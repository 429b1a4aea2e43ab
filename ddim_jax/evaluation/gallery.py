"""A gallery: features of real pictures whose names and styles are known, to look for an asked one.

A drawn picture was asked for by a name and a style. Its rank is how near the real picture of that
name and style is to it among all real pictures of that style: 1 if none is nearer. Nearness is the
cosine of embeddings, e = W f + b of features f. Pictures that are equal under two names count as
one: finding either is right. Of others that are as near, the asked one is the last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddim_jax.names import did_you_mean

SHOWN = (1, 5)
"""The ranks up to which an asked picture counts as found."""


class Gallery(NamedTuple):
    """Features of N real pictures, K names, S styles.

    Attributes:
        names: K texts, by which pictures are asked for.
        styles: S names.
        name: int [N], of each picture.
        style: int [N], of each picture.
        pool: float32 [N, D] features.
        kernel: float32 [D, E], W transposed.
        bias: float32 [E].
    """

    names: tuple[str, ...]
    styles: tuple[str, ...]
    name: np.ndarray
    style: np.ndarray
    pool: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray

    def embed(self, pool: np.ndarray) -> np.ndarray:
        """Unit vectors [M, E] of features [M, D]."""
        e = pool @ self.kernel + self.bias
        return e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)

    def pairs(self, seed: int = 0) -> tuple[tuple[str, ...], np.ndarray]:
        """Names and styles [N] of all real pictures, in random order, to ask for."""
        order = np.random.default_rng(seed).permutation(len(self.name))
        return tuple(self.names[k] for k in self.name[order]), self.style[order].astype(np.int32)

    def known(self, names: Sequence[str], styles: np.ndarray) -> np.ndarray:
        """Whether there is a real picture of each of these names in its style, bool [M]."""
        there = {(self.names[k], s) for k, s in zip(self.name, self.style.tolist(), strict=True)}
        return np.array(
            [pair in there for pair in zip(names, np.ravel(styles).tolist(), strict=True)]
        )

    def ranks(self, pool: np.ndarray, names: Sequence[str], styles: np.ndarray) -> np.ndarray:
        """Ranks of asked pictures, int [M].

        Args:
            pool: [M, D] features of the drawn pictures.
            names: M texts that they were asked by.
            styles: int [M], in which style.

        Raises:
            ValueError: there is no real picture of that name in that style.
        """
        if not (known := self.known(names, styles)).all():
            name, style = names[np.argmin(known)], styles[np.argmin(known)]
            where = self.styles[style] if 0 <= style < len(self.styles) else f"style {style}"
            hint = "" if name in self.names else did_you_mean(name, self.names)
            raise ValueError(f"the gallery has no picture of {name!r} in {where}{hint}")
        texts, styles = np.array(names), np.asarray(styles)
        drawn, real, ranks = self.embed(pool), self.embed(self.pool), np.zeros(len(texts), int)
        equal = np.unique(self.pool, axis=0, return_inverse=True)[1].ravel()
        named = np.array(self.names)[self.name]
        for style in np.unique(styles):
            rows, shown = np.flatnonzero(styles == style), np.flatnonzero(self.style == style)
            near = drawn[rows] @ real[shown].T
            own = np.where(named[shown] == texts[rows, None], near, -np.inf)
            same = equal[shown] == equal[shown[own.argmax(axis=1)]][:, None]
            ranks[rows] = 1 + np.sum((near >= own.max(axis=1, keepdims=True)) & ~same, axis=1)
        return ranks

    def found(self, pool: np.ndarray, names: Sequence[str], styles: np.ndarray) -> dict[str, float]:
        """The shares of drawn pictures found among the nearest 1 and 5, of all and by style.

        What there is no real picture of does not count; arguments are those of `ranks`.
        """
        known = np.flatnonzero(self.known(names, styles))
        if not len(known):
            return {}
        styles = np.asarray(styles)[known]
        ranks = self.ranks(pool[known], [names[i] for i in known], styles)
        by_style = {
            f"{name} {self.styles[style]}": share
            for style in np.unique(styles)
            for name, share in found(ranks[styles == style]).items()
        }
        return found(ranks) | by_style


def found(ranks: np.ndarray) -> dict[str, float]:
    """The shares of pictures found among the first: {"top1": ..., "top5": ...}."""
    return {f"top{most}": float(np.mean(ranks <= most)) for most in SHOWN}
