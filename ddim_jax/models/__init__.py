"""Moved in version 0.2; this page says where to, and goes with version 0.3."""

MOVED = {
    "pretrained": "ddim_jax.checkpoints (ddim_jax.load gives a Model)",
    "diffusers": "ddim_jax.checkpoints.diffusers",
    "unet": "ddim_jax.networks.unet",
    "layers": "ddim_jax.networks.layers",
    "winograd": "ddim_jax.networks.winograd",
    "lpips": "ddim_jax.losses.lpips",
    "UNet": "ddim_jax.networks.UNet",
}


def __getattr__(name: str):
    if name in MOVED:
        raise ImportError(f"ddim_jax.models.{name} is now {MOVED[name]}")
    raise AttributeError(f"module 'ddim_jax.models' has no attribute {name!r}")
