"""Networks f(x, t, inputs) -> F, plain flax.linen modules that declare their `inputs`.

And what latent diffusion needs beside them: the autoencoder of pictures, the encoder of texts.
"""

from ddim_jax.networks.text_unet import TextUNet
from ddim_jax.networks.transformer import DiT
from ddim_jax.networks.unet import UNet

NETWORKS = {"unet": UNet, "dit": DiT, "text_unet": TextUNet}
"""Networks by the name that configs use."""

__all__ = ["NETWORKS", "DiT", "TextUNet", "UNet"]
