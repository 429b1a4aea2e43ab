"""A flow map of digits: jumps from any time to any other, in any number of steps.

    python train.py --config=digits_flow_map
    python sample.py --checkpoint=runs/digits_flow_map/flow_map --steps=2

Makes two runs in runs/digits_flow_map: a network that gives the bundled network's guided prediction
in one evaluation, and the map along its trajectories. `--config.stages[1].loss.kind=psd` learns
that two jumps are one long one instead.
"""

from configs.digits import get_config as digits


def get_config():
    """Boffi et al. 2025 (arXiv:2505.18825), Lagrangian; the embedding of time stays as it is."""
    config = digits()
    config.start_from = "digits"
    config.model.scalars = ("guidance",)
    config.loss = dict(name="guided", guidance=(1.0, 1.5))
    config.optimizer = dict(
        name="radam", learning_rate=5e-4, decay="linear", clip_norm=1.0, b2=0.99
    )
    config.train.update(batch_size=64, log_every=50, checkpoint_every=200, sample_every=200)
    config.stages = [
        dict(name="guided", train=dict(steps=1000), sample=dict(steps=20, guidance_scale=1.25)),
        dict(
            name="flow_map",
            model=dict(scalars=("guidance", "interval"), interval_scale=0.02),
            loss=dict(name="flow_map", kind="lsd", distil=True, guidance=(1.25, 1.25)),
            train=dict(steps=2400),
            sample=dict(steps=1, guidance_scale=1.25),
        ),
    ]
    return config
