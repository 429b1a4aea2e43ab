"""Networks f(x, t, inputs) -> F, plain flax.linen modules that declare their `inputs`.

And what latent diffusion needs beside them: the autoencoder of pictures, the encoder of texts.
"""

from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.text_unet import TextUNet
from ddim_jax.networks.tiny_autoencoder import AutoencoderTiny
from ddim_jax.networks.transformer import DiT
from ddim_jax.networks.unet import UNet
from ddim_jax.networks.video import VideoDiT, VideoUNet

NETWORKS = {
    "unet": UNet,
    "dit": DiT,
    "text_unet": TextUNet,
    "video_unet": VideoUNet,
    "video_dit": VideoDiT,
    "autoencoder_kl": AutoencoderKL,
}
"""Networks by the name that configs use; an autoencoder is trained like the others."""

AUTOENCODERS = {"autoencoder_kl": AutoencoderKL, "autoencoder_tiny": AutoencoderTiny}
"""Autoencoders by the name that a config's section `codec` uses."""

__all__ = ["AUTOENCODERS", "NETWORKS", "DiT", "TextUNet", "UNet", "VideoDiT", "VideoUNet"]
