"""Consistency distillation of `emoji`, guided: one step, or four for quality.

    python train.py --config=emoji_cd --config.data.name=npz:emoji.npz
    python sample.py --checkpoint=runs/emoji_cd/consistency --steps=4 --labels=fluent \\
        --prompt="crying cat face"

Makes two runs in runs/emoji_cd: a network that gives the guided prediction in one evaluation, for
every scale from 1 to 4, and the consistency model, distilled from it. Not run to its end yet.
"""

from configs.digits_cd import get_config as digits_cd
from configs.emoji import get_config as emoji


def get_config():
    """Song et al. 2023 (arXiv:2303.01469), CD, with the guided teacher of Meng et al. 2023."""
    config = emoji()
    config.start_from = "emoji"
    config.model.scalars = ("guidance",)
    guidance = (1.0, 4.0)
    config.loss = dict(name="guided", guidance=guidance)
    config.optimizer = digits_cd().optimizer
    config.ema = dict(name="constant", decay=0.999)
    guided, consistency = digits_cd().stages
    guided |= dict(train=dict(steps=3000), sample=dict(guidance_scale=2.0))
    consistency["loss"] |= dict(guidance=guidance)
    consistency["loss"]["pairs"] |= dict(points=dict(name="constant", points=18), sigma_max=33.0)
    consistency["sample"] |= dict(stride_options=dict(lam_min=-3.5), steps=4, guidance_scale=2.0)
    config.stages = [guided, consistency | dict(train=dict(steps=10_000))]
    return config
