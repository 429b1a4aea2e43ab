"""Distribution matching of digits: one step, by a critic of what the student draws.

    python train.py --config=digits_dmd
    python sample.py --checkpoint=runs/digits_dmd/one_step

Makes two runs in runs/digits_dmd: a network that gives the bundled network's guided prediction in
one evaluation, and the one-step student of it. With `--config.data.name=npz:mnist.npz`: 20 minutes
on 2 CPU cores, tests beside; FDD of 10,000 samples (docs/quality.md) 2.97 in one step, recall 0.71.
Stages of 1,000 and 2,200 steps came to 5.98. With a head that looks at real digits as well:

    python train.py --config=digits_dmd "--config.stages[1].loss.gan=0.01"

Score identity distillation instead:

    python train.py --config=digits_dmd "--config.stages[1].loss.objective=sid"
"""

import math

from configs.digits import get_config as digits


def get_config():
    """Yin et al. 2024 (arXiv:2405.14867); the critic learns twice as fast as the student."""
    config = digits()
    config.start_from = "digits"
    config.model.scalars = ("guidance",)
    config.loss = dict(name="guided", guidance=(1.0, 1.5))
    config.optimizer = dict(name="adam", learning_rate=5e-4, decay="linear", clip_norm=1.0, b2=0.99)
    config.train.update(batch_size=64, log_every=50, checkpoint_every=200, sample_every=200)
    config.stages = [
        dict(name="guided", train=dict(steps=312), sample=dict(steps=20, guidance_scale=1.25)),
        dict(
            name="one_step",
            loss=dict(
                name="distribution_matching",
                guidance=(1.25, 1.25),
                start=5.0,
                times=dict(name="log_normal", mean=0.0, std=1.2, low=0.03, high=30.0),
            ),
            optimizer=dict(b1=0.5, parts=dict(critic=dict(learning_rate=1e-3))),
            train=dict(steps=688),
            sample=dict(
                solver="consistency",
                solver_options=dict(sigma_min=0.0),
                stride="uniform",
                stride_options=dict(lam_min=-math.log(5.0)),
                steps=1,
                guidance_scale=1.25,
            ),
        ),
    ]
    return config
