"""Rectified flow of digits: straight paths, straightened once more, then one step.

    python train.py --config=digits_reflow
    python sample.py --checkpoint=runs/digits_reflow/one_step

Makes three runs in runs/digits_reflow: a flow tuned from the bundled network, a second flow on
pairs of noise and image that the first one drew with guidance, and its distillation to one step on
the same pairs. With `--config.data.name=npz:mnist.npz` on 2 CPU cores: 45 minutes, beside other
work, pauses included; FDD of 10,000 samples (docs/quality.md) 3.08 by `one_step`, and 6.01, 3.37
and 2.67 by `reflow` in 1, 2 and 4 steps.
"""

from configs.digits import get_config as digits


def get_config():
    """Liu et al. 2022 (arXiv:2209.03003), algorithm 1 and section 3.2; flow = eps - x0."""
    config = digits()
    config.start_from = "digits"
    config.schedule = dict(name="rectified_flow")
    config.prediction = dict(name="flow")
    config.optimizer = dict(
        name="adam", learning_rate=1e-3, warmup_steps=50, decay="linear", clip_norm=1.0, b2=0.99
    )
    config.ema = dict(name="power", relative_std=0.1)
    config.train.update(log_every=50, checkpoint_every=200, sample_every=500)
    flow = dict(name="diffusion", times=dict(name="logit_normal"), label_dropout=0.1)
    one = dict(name="diffusion", times=dict(name="nodes", steps=1), label_dropout=0.0)
    config.loss = flow
    config.stages = [
        stage("flow", 2000, 20, loss=flow),
        stage(
            "reflow",
            2500,
            4,
            loss=dict(name="diffusion", times=dict(name="u_shaped"), label_dropout=0.0),
            pairs=dict(count=20_000, solver="heun_flow", steps=10, guidance_scale=1.25),
        ),
        stage("one_step", 2500, 1, loss=one, data=dict(name="pairs")),
    ]
    return config


def stage(name: str, length: int, steps: int, **changes) -> dict:
    """A stage of `length` training steps, whose samples are drawn in `steps`."""
    return dict(
        name=name,
        train=dict(steps=length),
        sample=dict(steps=steps),
        **changes,
    )
