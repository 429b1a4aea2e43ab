"""A flow map of `emoji`, guided: one to four steps, or any other number.

    python train.py --config=emoji_flow_map --config.data.name=npz:emoji.npz
    python sample.py --checkpoint=runs/emoji_flow_map/flow_map --steps=1 --labels=fluent \\
        --prompt="crying cat face"

Starts from the bundled `emoji`. Makes two runs in runs/emoji_flow_map: a network that is told a
guidance scale from 1 to 4 and gives the guided prediction in one evaluation, and the map along its
trajectories. Takes 22 and 39 minutes on 2 CPU cores; FED of 2,000 pictures in one step 2.30, where
the teacher's 50 steps are at 2.25 (docs/emoji.md).
"""

import ml_collections

from configs.digits_flow_map import get_config as digits_flow_map
from configs.emoji import get_config as emoji

SCALES = (1.0, 4.0)


def get_config() -> ml_collections.ConfigDict:
    """Boffi et al. 2025 (arXiv:2505.18825), Lagrangian; the embedding of time stays as it is."""
    config, digits = emoji(), digits_flow_map()
    config.start_from = "emoji"
    config.model.scalars = ("guidance",)
    config.loss = dict(name="guided", guidance=SCALES)
    config.optimizer = digits.optimizer
    config.ema = dict(name="constant", decay=0.999)
    guided, flow_map = digits.stages
    guided |= dict(train=dict(steps=1500), sample=dict(guidance_scale=3.0))
    flow_map["loss"]["guidance"] = SCALES
    flow_map |= dict(
        train=dict(steps=3000), sample=dict(solver="ddim", steps=1, guidance_scale=3.0)
    )
    config.stages = [guided, flow_map]
    return config
