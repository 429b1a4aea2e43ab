"""Guided digits in 8, 4 and 2 steps: the guidance scale is an input of the student.

    python train.py --config=configs/digits_guided.py
    python sample.py --checkpoint=runs/digits_guided/4_step --guidance_scale=2

The first stage learns the guided prediction of the bundled network for every scale from 1 to 4 in
one evaluation instead of two, the others halve the steps.
"""

from configs.digits import get_config as digits


def get_config():
    """Meng et al. 2023 (arXiv:2210.03142), algorithms 1 and 2; their w is the scale less 1."""
    config = digits()
    config.start_from = "digits"
    config.model.scalars = ("guidance",)
    guidance = (1.0, 4.0)
    config.loss = dict(name="guided", guidance=guidance)
    config.optimizer = dict(
        name="adam", learning_rate=3e-4, decay="linear", decay_steps=0, clip_norm=1.0, b2=0.99
    )
    config.ema = dict(name="constant", decay=0.99)
    config.train.update(batch_size=64, log_every=50, checkpoint_every=200, sample_every=500)
    config.stages = [
        stage("guided", 16, dict(name="guided", guidance=guidance)),
        *(
            stage(f"{steps}_step", steps, dict(name="progressive", steps=steps, guidance=guidance))
            for steps in (8, 4, 2)
        ),
    ]
    return config


def stage(name: str, steps: int, loss: dict) -> dict:
    """A stage of 1,500 training steps, whose samples are drawn in so many."""
    return dict(
        name=name,
        loss=loss,
        optimizer=dict(decay_steps=1500),
        train=dict(steps=1500),
        sample=dict(steps=steps),
    )
