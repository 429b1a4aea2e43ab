"""Emoji drawn from a name in a style as `emoji` does, in pixels, without an autoencoder.

    python train.py --config=emoji_pixels --config.data.name=npz:emoji.npz
    python sample.py --checkpoint=runs/emoji_pixels --prompt="crying cat face" --labels=fluent

The same transformer on 64 patches of 8 x 8 pixels, which predicts the picture itself ("JiT", Li &
He 2025, arXiv:2511.13720): its error is that in the velocity, its times lie nearer to noise. On 16
patches of 16 x 16, by `--config.model.patch_size=16`, it was at FED 9.1 after 281,000 pictures,
behind `emoji` (docs/emoji.md).
"""

from configs.emoji import get_config as emoji


def get_config():
    """`emoji` without its codec: x0-prediction on patches of pixels, logit-normal(0.8, 0.8)."""
    config = emoji()
    del config.codec
    config.data.cache = False  # of latents
    config.model.update(out_channels=3, patch_size=8)
    config.prediction = dict(name="x0")
    config.loss.weighting = dict(name="flow")
    config.loss.times.update(mean=0.8, std=0.8)
    config.sample.clip = "static"
    return config
