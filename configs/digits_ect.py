"""A consistency model of digits, tuned from the bundled network: one step, or more for quality.

    python train.py --config=digits_ect
    python sample.py --checkpoint=runs/digits_ect --steps=4

With `--config.data.name=npz:mnist.npz` on 2 CPU cores: FDD of 10,000 samples (docs/quality.md) 24.8
and 9.7 in 1 and 4 steps, the fourth wasted at the cleanest level (`--stride_options=lam_min=-3,
terminal=zero`; now it is not); `digits_cd`, from a guided teacher, is far ahead.
"""

from configs.digits import get_config as digits


def get_config():
    """Geng et al. 2024 (arXiv:2406.14548): from denoising to consistency, the gap halved in stages.

    On this v-prediction network, x0 is the identity at the clean end, as it has to be.
    """
    config = digits()
    config.start_from = "digits"
    config.loss = dict(
        name="consistency",
        pairs=dict(name="shrinking", every=1000, mean=-0.5, std=2.0, sigma_max=20.0),
        distance="huber",
        weight="gap",
    )
    config.optimizer = dict(
        name="radam", learning_rate=3e-4, decay="linear", clip_norm=1.0, b2=0.99
    )
    config.ema = dict(name="constant", decay=0.995)
    config.train.update(steps=4000, batch_size=64, log_every=50, checkpoint_every=200)
    config.train.sample_every = 500
    config.sample.update(
        solver="consistency",
        solver_options=dict(sigma_min=0.0),
        stride="karras",
        stride_options=dict(lam_min=-3.0),
        steps=1,
    )
    return config
