"""Texts to what a network is told of them: tokenizers and text encoders of one model.

    encode = Texts(networks, params, tokenizers, take=("last",))
    encode(["a red apple"])                # {"text": [1, 77, 768]}

Of two encoders (Stable Diffusion XL) the features lie side by side, and the pooled text of those
that have one is the input "vector".

Sources: Rombach et al. 2022 (arXiv:2112.10752), section 3.3; Podell et al. 2023 (arXiv:2307.01952),
section 2.1.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.networks.clip import ClipText
from ddim_jax.networks.tokenizer import Tokenizer

Array = Any
TAKES = ("last", "penultimate")
"""Which features of an encoder the network is told."""
FEW, MANY = 2, 16
"""Texts at a time: one program for a prompt and its negative one, one for lists."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """The text encoders of a model, from the texts on.

    Attributes:
        networks: the encoders.
        params: of each, kept on the host: devices hold them while they encode, no longer.
        tokenizers: of each.
        take: of each, a name in `TAKES`.
        pooled: of each, whether its pooled text is told too.
        null: what is told where no text is: "encode", the encoded empty text; or "zeros".

    Raises:
        ValueError: an unknown name.
    """

    networks: tuple[ClipText, ...]
    params: tuple[Any, ...] = ()
    tokenizers: tuple[Tokenizer, ...] = ()
    take: tuple[str, ...] = ("last",)
    pooled: tuple[bool, ...] = (False,)
    null: str = "encode"

    def __post_init__(self):
        """Checks names."""
        for take in self.take:
            if take not in TAKES:
                raise ValueError(f"take must be one of {', '.join(TAKES)}, got {take!r}")
        if self.null not in ("encode", "zeros"):
            raise ValueError(f"null must be 'encode' or 'zeros', got {self.null!r}")

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encodes texts.

        Args:
            texts: P of them; what is beyond the tokenizer's length is cut off with a warning.

        Returns:
            "text" [P, L, W] float32, and of encoders with a pooled text "vector" [P, V]; of
            `Tokens` [P, L] int32.

        Raises:
            ValueError: the model came without weights of its encoders, or without tokenizers.
        """
        if not self.params or not self.tokenizers:
            raise ValueError(
                "this checkpoint has no text encoder to encode a prompt with; load one that has, "
                "or give the features of the text"
            )
        parts = [self._encode(number, texts) for number in range(len(self.networks))]
        told = {"text": np.concatenate([part["text"] for part in parts], axis=-1)}
        vectors = [part["vector"] for part in parts if "vector" in part]
        return told | ({"vector": np.concatenate(vectors, axis=-1)} if vectors else {})

    def _encode(self, number: int, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What one encoder says, in batches of one size."""
        ids = self.tokenizers[number](texts)
        size = FEW if len(ids) <= FEW else MANY
        program = _program(self.networks[number], self.take[number], self.pooled[number])
        params, parts = jax.device_put(self.params[number]), []
        for first in range(0, len(ids), size):
            rows = np.minimum(np.arange(first, first + size), len(ids) - 1)
            parts.append(program(params, ids[rows]))
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts])[: len(ids)]
            for name in parts[0]
        }


@functools.lru_cache(maxsize=8)
def _program(network: ClipText, take: str, pooled: bool) -> Any:
    """The jitted encoder `(params, ids) -> {"text": ..., "vector": ...}`."""

    def encode(params, ids):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        text = network.apply({"params": params}, ids)
        told = {"text": getattr(text, take)}
        return told | ({"vector": text.pooled} if pooled else {})

    return jax.jit(encode)
