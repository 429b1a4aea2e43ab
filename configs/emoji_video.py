"""Emoji set in motion, 16 frames of 64 x 64: a loop from a name, or from a still emoji.

    python -m benchmarks.emoji_data emoji_strips.npz emoji_video.npz
    python train.py --config=emoji_video --config.data.name=npz:emoji_video.npz
    python sample.py --checkpoint=runs/emoji_video --prompt="crying cat face" --labels=fluent

The bundled `emoji` draws every frame, in its latents; what is trained is attention over the frames
at each place, after each of its blocks, which begins as the identity, and nothing else. Of half of
the clips with known frames the first alone is known, so a still picture can be animated.
"""

import ml_collections

from configs.emoji import get_config as emoji
from configs.moving_digits import FRAMES, KINDS
from ddim_jax.names import lookup


def get_config(kind: str = "frames") -> ml_collections.ConfigDict:
    """Guo et al. 2023 (arXiv:2307.04725): what moves a network of pictures that stays as it is."""
    levels = lookup(KINDS, kind, "kind of clips")
    config = emoji()
    config.start_from = "emoji"
    with config.ignore_type():
        config.data.update(
            name="npz:emoji_video.npz", resize=64, frames=FRAMES, frame_rate="own", cache=True
        )
    config.model.update(name="video_dit", frame_rate=True)
    config.schedule.shift = 3.0  # frames of a clip are alike, so more noise hides as much
    config.loss.alone = 0.1
    if levels:
        config.loss.frame_levels = levels
    config.train.update(
        lora=dict(targets=()), steps=4000, batch_size=8, log_every=50, checkpoint_every=500
    )
    config.optimizer.warmup_steps = 100
    config.sample.update(num_samples=10)
    return config
