r"""Clips of 16 frames of 256 x 256 in latents of 32 x 32 x 4: a space-time DiT-XL/2.

    python -m ddim_jax.data.latents clips:FOLDER --resize=256 --frames=16 --frame_rate=8 \
        --autoencoder=VAE --out=clips256
    python train.py --config=video256_dit --config.data.name=latents:clips256 \
        --config.codec.start_from=VAE --config.start_from=runs/imagenet256_dit

VAE is a Stable Diffusion 1 or runs/imagenet256_vae; FOLDER holds a sub-folder of clips for each
class, or only clips (`--config.model.num_classes=0`). The network begins as that of
`imagenet256_dit`, on every frame, if that has as many classes: `--config.start_from` may be left
out. `--config=video256_dit:b_2` trains another size. `--plan=v5e:16x16` is in docs/video.md. Not
trained by us.
"""

import ml_collections

from configs.imagenet256_dit import get_config as imagenet256_dit


def get_config(size: str = "xl_2") -> ml_collections.ConfigDict:
    """Ma et al. 2024 (arXiv:2401.03048), variant 1, on 256 clips, with a level for each frame."""
    config = imagenet256_dit(size)
    with config.ignore_type():
        config.data.update(name="clips:clips", frames=16, frame_rate=8.0)
    config.model.update(name="video_dit", frame_rate=True, remat="blocks")
    config.loss.update(frame_levels=(0.55, 0.25), alone=0.1)
    config.train.update(steps=500_000, batch_size=256)
    config.sample.update(solver="dpm_solver++_2m", steps=30, num_samples=8, guidance_scale=4.0)
    return config
