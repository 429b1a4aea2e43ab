"""Inductive moment matching of digits, tuned from the bundled network: one to eight steps.

python train.py --config=digits_imm
python sample.py --checkpoint=runs/digits_imm --steps=4
"""

import math

from configs.digits import get_config as digits


def get_config():
    """Zhou et al. 2025 (arXiv:2503.07565): groups of four, no teacher; gaps for a short run."""
    config = digits()
    config.start_from = "digits"
    config.model.update(scalars=("interval",), interval_scale=0.02)
    config.loss = dict(name="moment_matching", group=4, halvings=6, label_dropout=0.1)
    config.optimizer = dict(
        name="radam", learning_rate=5e-4, decay="linear", clip_norm=1.0, b2=0.99
    )
    config.train.update(
        steps=2600, batch_size=64, log_every=50, checkpoint_every=200, sample_every=500
    )
    config.sample.update(steps=2, stride_options=dict(lam_min=-math.log(80.0)))
    return config
