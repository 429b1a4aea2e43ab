"""Transformers without their loop over blocks, which formats run slowly, if at all."""

import dataclasses

import jax

from ddim_jax.model import Model
from ddim_jax.networks.transformer import LOOP, DiT


class PlainDiT(DiT):
    """A `DiT` whose blocks are written one after the other, each with parameters of its own."""

    def _loop(self, block, options, h, emb, keys, told):
        for i in range(self.depth):
            h, _ = block(*options, name=f"block_{i}")(h, emb, keys, *told)
        return h


def unlooped(model: Model) -> Model:
    """The model, with the blocks of a transformer written out; others as they are."""
    network = model.network
    if type(network) is not DiT:
        return model
    names = {field.name for field in dataclasses.fields(network)} - {"parent", "name"}
    plain = PlainDiT(**{name: getattr(network, name) for name in names})
    blocks = {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], model.params[LOOP])
        for i in range(network.depth)
    }
    others = {name: value for name, value in model.params.items() if name != LOOP}
    return model.replace(network=plain, params=others | blocks)
