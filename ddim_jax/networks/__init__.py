"""Networks f(x, t, inputs) -> F, plain flax.linen modules that declare their `inputs`."""

from ddim_jax.networks.unet import UNet

NETWORKS = {"unet": UNet}
"""Networks by the name that configs use."""

__all__ = ["NETWORKS", "UNet"]
