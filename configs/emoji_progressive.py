"""Progressive distillation of `emoji` to 4, 2 and 1 steps, with the guidance inside.

    python train.py --config=emoji_progressive --config.data.name=npz:emoji.npz
    python sample.py --checkpoint=runs/emoji_progressive/4_step --prompt="crying cat face" \\
        --labels=fluent

Starts from the bundled `emoji`, guided in the first stage alone; autoencoder and tokens are its.
The first student is of 4 steps, because in 8 the teacher draws nearly as well as in 50.
"""

import ml_collections

from configs.distill_clips import halvings
from configs.emoji import get_config as emoji

LENGTHS = {4: 1500, 2: 1500, 1: 2000}
"""Steps of a student -> its training steps."""
GUIDE = dict(name="classifier_free", scale=3.0)


def get_config() -> ml_collections.ConfigDict:
    """Salimans & Ho 2022, algorithm 2; linear decay in every stage."""
    config = emoji()
    config.start_from = "emoji"
    config.loss = dict(name="progressive", steps=4)
    config.optimizer = dict(name="adam", learning_rate=3e-4, decay="linear", clip_norm=1.0, b2=0.99)
    config.ema = dict(name="constant", decay=0.99)
    config.sample.update(solver="ddim", guidance_scale=1.0)
    config.stages = halvings(LENGTHS, GUIDE)
    return config
