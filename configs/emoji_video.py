"""Emoji set in motion, 16 frames of 64 x 64: a loop from a name, or from a still emoji.

    python -m benchmarks.emoji_data emoji_strips.npz emoji_video.npz
    python train.py --config=emoji_video --config.data.name=npz:emoji_video.npz
    python sample.py --checkpoint=runs/emoji_video/clips --prompt="crying cat face" --labels=fluent

The bundled `emoji` draws every frame, in its latents. `attention` trains attention over the frames
at each place, after each of its blocks, which begins as the identity, and nothing else; `clips`
trains it on, and low-rank changes of all other layers. Of half of the clips with known frames the
first alone is known, so a still picture can be animated.
"""

import ml_collections

from configs.emoji import get_config as emoji
from configs.moving_digits import FRAMES, KINDS
from ddim_jax.names import lookup

CHANGES = dict(rank=32, targets=("dense",), whole=("*time_attention*", "frame_rate*"))
"""What the second stage trains."""


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
    config.train.update(batch_size=8, log_every=50, checkpoint_every=500)
    config.stages = [
        dict(name="attention", train=dict(steps=4000, lora=dict(targets=()))),
        dict(name="clips", train=dict(steps=2500, lora=CHANGES)),
    ]
    config.optimizer.warmup_steps = 100
    config.sample.update(num_samples=10)
    return config
