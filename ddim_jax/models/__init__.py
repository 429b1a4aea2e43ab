"""Networks f(x, t, cond) -> F, plain flax.linen modules."""

from ddim_jax.models.unet import UNet

__all__ = ["UNet"]
