"""Texts as features, where a network learns those of its tokens itself.

Numbers of tokens can be neither mixed, as walks between prompts do, nor fitted, as null texts are;
the features that the network makes of them can. The network that is told these is the same one, its
own layers before them taken out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ddim_jax.model import Model
from ddim_jax.networks.transformer import DiT


@dataclasses.dataclass(frozen=True)
class Features:
    """What a network makes of texts: P of them -> {"text": float32 [P, L, W]}.

    Attributes:
        encode: texts to numbers of tokens, see `texts.Texts`.
        apply: numbers [P, L] to features.
    """

    encode: Callable[[Sequence[str]], dict[str, np.ndarray]]
    apply: Callable[[np.ndarray], Any]

    @property
    def null(self) -> str:
        """As of `texts.Texts`."""
        return getattr(self.encode, "null", "encode")

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encodes texts."""
        return {"text": np.asarray(self.apply(self.encode(texts)["text"]))}


def told_features(model: Model) -> Model:
    """The model with its network told features of texts; as it is where it is told those already.

    Its prompts are texts as before, and it draws the same to rounding.
    """
    net = model.network
    if not getattr(net, "vocabulary", 0):
        return model
    layers, params = net.text_tokens.clone(name=None), model.params["text"]
    encoder = jax.jit(layers.apply)

    def apply(ids: np.ndarray) -> Any:
        return encoder({"params": params}, ids)

    network = net.clone(vocabulary=0, context_dim=layers.width)
    told = {name: leaf for name, leaf in model.params.items() if name != "text"}
    if isinstance(net, DiT):  # which has a layer here
        told["text"] = {"kernel": np.eye(layers.width, dtype=np.float32)}
        told["text"]["bias"] = np.zeros(layers.width, np.float32)
    null = apply(np.full((1, net.text_length), net.inputs["text"].null, np.int32))[0]
    declared = network.inputs["text"]._replace(null=np.asarray(null))
    inputs = dataclasses.replace(
        model.inputs,
        declared=dict(model.inputs.declared) | {"text": declared},
        encode=Features(model.inputs.encode, apply),
    )
    return model.replace(network=network, params=told, inputs=inputs)
