"""A gallery: features of real pictures whose names and styles are known, to look for an asked one.

A drawn picture was asked for by a name and a style. Its rank is how near the real picture of that
name and style is to it among all real pictures of that style: 1 if none is nearer. Nearness is the
cosine of embeddings, e = W f + b of features f. Pictures that are equal under two names count as
one: finding either is right. Of others that are as near, the asked one is the last.
"""

from collections.abc import Mapping, Sequence
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

    def ranks(self, pool: np.ndarray, names: Sequence[str], styles: np.ndarray) -> np.ndarray:
        """Ranks of asked pictures, int [M].

        Args:
            pool: [M, D] features of the drawn pictures.
            names: M texts that they were asked by.
            styles: int [M], in which style.

        Raises:
            ValueError: there is no real picture of that name in that style.
        """
        numbers = {name: k for k, name in enumerate(self.names)}
        unknown = [name for name in names if name not in numbers]
        if unknown:
            hint = did_you_mean(unknown[0], self.names)
            raise ValueError(
                f"the gallery has no picture named {unknown[0]!r}{hint}; ask for its names"
            )
        asked, styles = np.array([numbers[name] for name in names]), np.asarray(styles)
        drawn, real = self.embed(np.asarray(pool)), self.embed(self.pool)
        _, equal = np.unique(self.pool, axis=0, return_inverse=True)
        equal = equal.ravel()
        ranks = np.zeros(len(asked), int)
        for style in np.unique(styles):
            rows, shown = np.flatnonzero(styles == style), np.flatnonzero(self.style == style)
            near = drawn[rows] @ real[shown].T
            right = self.name[shown] == asked[rows, None]
            if not right.any(axis=1).all():
                missing = asked[rows[np.argmin(right.any(axis=1))]]
                known = 0 <= style < len(self.styles)
                where = self.styles[style] if known else f"style {style} of {len(self.styles)}"
                raise ValueError(f"the gallery has no {self.names[missing]!r} in {where}")
            own = np.where(right, near, -np.inf)
            same = equal[shown] == equal[shown[own.argmax(axis=1)]][:, None]
            nearer = (near >= own.max(axis=1, keepdims=True)) & ~same
            ranks[rows] = 1 + nearer.sum(axis=1)
        return ranks


def found(ranks: np.ndarray) -> Mapping[str, float]:
    """The shares of pictures found among the first: {"top1": ..., "top5": ...}."""
    return {f"top{most}": float(np.mean(ranks <= most)) for most in SHOWN}
