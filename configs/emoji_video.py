"""Emoji set in motion, 16 frames of 64 x 64: a loop from a name, or from a still emoji.

    python -m benchmarks.emoji_data emoji_strips.npz emoji_video.npz
    python train.py --config=emoji_video --config.data.name=npz:emoji_video.npz
    python sample.py --checkpoint=runs/emoji_video/clips --prompt="crying cat face" --labels=fluent

Starts from the bundled `emoji`. `frames` teaches it the look of the frames, by low-rank changes;
`clips` adds attention over the frames at each place, after each of its blocks, which begins as the
identity. Of more than a quarter of the clips with known frames the first alone is known, so a still
picture can be animated. Takes 35 and 70 minutes on 2 CPU cores; docs/video.md has what came of it.
"""

import ml_collections

from configs.emoji import get_config as emoji
from configs.moving_digits import FRAMES, KINDS
from ddim_jax.names import lookup


def get_config(kind: str = "frames") -> ml_collections.ConfigDict:
    """Guo et al. 2023 (arXiv:2307.04725): the look first, then what moves."""
    levels = lookup(KINDS, kind, "kind of clips")
    config = emoji()
    config.start_from = "emoji"
    with config.ignore_type():
        config.data.update(name="npz:emoji_video.npz", resize=64, frames=1, frame_rate="own")
    config.data.cache = False  # a frame of a clip at random, not always the first
    config.train.lora = dict(rank=32, targets=("dense",))
    config.train.update(log_every=50, checkpoint_every=500)
    config.optimizer.warmup_steps = 100
    config.sample.update(num_samples=10)
    clips = dict(
        name="clips",
        data=dict(frames=FRAMES, cache=True),
        model=dict(name="video_dit", frame_rate=True),
        schedule=dict(shift=3.0),  # frames of a clip are alike, so more noise hides as much
        loss=dict(alone=0.1) | ({"frame_levels": levels} if levels else {}),
        train=dict(steps=4000, batch_size=8),
    )
    config.stages = [dict(name="frames", train=dict(steps=4000)), clips]
    return config
