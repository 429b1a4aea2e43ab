"""Animated emoji, 16 frames of 32 x 32 RGB: a loop, a still emoji set in motion.

    python -m benchmarks.emoji_data emoji_strips.npz emoji_video.npz
    python train.py --config=emoji_video --config.data.name=npz:emoji_video.npz
    python sample.py --checkpoint=runs/emoji_video/clips

As `moving_digits`: first the frames, then the clips, of which some have known frames. A quarter of
those with known frames begin with the first frame alone, so a still picture can be animated. Text,
labels and frame rates are not told. Under 5 MB in float16.
"""

import ml_collections

from configs.moving_digits import KINDS
from configs.moving_digits import get_config as moving_digits
from ddim_jax.names import lookup


def get_config(kind: str = "frames") -> ml_collections.ConfigDict:
    """Attention over time at 16 x 16, over all places of all frames at 8 x 8 and 4 x 4."""
    lookup(KINDS, kind, "kind of clips")
    config = moving_digits(kind)
    with config.ignore_type():
        config.data.update(
            name="npz:emoji_video.npz", image_shape=(32, 32, 3), resize=None, frame_rate="own"
        )
    config.model.update(
        out_channels=3, channels=64, channel_mults=(1, 1.5, 2), num_classes=0, dropout=0.1
    )
    config.loss.label_dropout = 0.0
    config.optimizer.update(learning_rate=5e-4, warmup_steps=500)
    config.train.update(checkpoint_every=1000, sample_every=2000)
    frames, clips = (dict(stage) for stage in config.stages)
    frames["train"] = dict(steps=4000, batch_size=128)
    clips["train"] = dict(steps=20_000, batch_size=16)
    clips["model"] = dict(
        name="video_unet", time_heads=4, joint_attention=(8, 4), time_convolution=(8, 4)
    )
    config.stages = [frames, clips]
    return config
