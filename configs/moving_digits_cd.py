"""Consistency distillation of `moving_digits`, guided: clips in four steps, or one.

    python train.py --config=moving_digits_cd
    python sample.py --checkpoint=runs/moving_digits_cd --steps=4

Beside `distill_clips`, which goes there by halves. Starts from runs/moving_digits/clips; in a third
of the clips some frames are known, as there.
"""

from configs.digits_cd import get_config as digits_cd
from configs.distill_clips import GUIDE
from configs.distill_clips import get_config as distill_clips


def get_config():
    """Song et al. 2023 (arXiv:2303.01469), CD, on the grid of `digits_cd`, at one scale."""
    config, digits = distill_clips(), digits_cd()
    consistency = digits.stages[1]
    config.loss = {
        **{name: value for name, value in consistency["loss"].items() if name != "guidance"},
        "known": config.loss.known,
        "label_dropout": config.loss.label_dropout,
    }
    config.guide = GUIDE
    config.optimizer = digits.optimizer
    config.optimizer.update(consistency["optimizer"])
    config.ema = digits.ema
    config.train.steps = 3000
    with config.ignore_type():
        config.sample.update(consistency["sample"], steps=4, guidance_scale=1.0)
    del config.stages
    return config
