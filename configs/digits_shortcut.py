"""A shortcut model of digits, tuned from the bundled network: any number of steps, by one network.

    python train.py --config=digits_shortcut
    python sample.py --checkpoint=runs/digits_shortcut --steps=8

With `--config.data.name=npz:mnist.npz` on 2 CPU cores: 7 minutes; FDD of 10,000 samples
(docs/quality.md) 15.1, 8.8, 5.6 and 4.5 in 1, 2, 4 and 8 steps.
"""

from configs.digits import get_config as digits


def get_config():
    """Frans et al. 2024 (arXiv:2410.12557), table 3, at this size.

    The shortest step is 1/16; half of a batch trains longer ones.
    """
    config = digits()
    config.start_from = "digits"
    config.schedule = dict(name="rectified_flow")
    config.prediction = dict(name="flow")
    config.model.scalars = ("interval",)
    config.loss = dict(
        name="shortcut",
        finest=16,
        every=2,
        target_decay=0.99,
        guidance_scale=1.2,
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam",
        learning_rate=1e-3,
        warmup_steps=50,
        decay="linear",
        clip_norm=1.0,
        b2=0.99,
    )
    config.train.update(steps=1200, log_every=50, checkpoint_every=200, sample_every=500)
    config.sample.update(steps=4)
    return config
