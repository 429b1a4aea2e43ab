"""Improved consistency training on CIFAR-10: no teacher, no moving target, no LPIPS.

    python train.py --config=cifar10_ict

Published, not ours: FID 2.83 in one step, 2.46 in two (Song & Dhariwal 2023, arXiv:2310.14189,
table 2; the network there is NCSN++, whose Fourier features of the noise level they scale by 0.02;
the authors published no code).
"""

from configs.cifar10_cd import get_config as cifar10_cd


def get_config():
    """Song & Dhariwal 2023, section 4 and appendix: 400,000 steps of batch 1024, RAdam at 1e-4."""
    config = cifar10_cd()
    config.start_from = ""
    config.model.dropout = 0.3
    points = dict(name="doubling", start=10, end=1280)
    config.loss = dict(
        name="consistency",
        pairs=dict(name="grid", points=points, log_normal=(-1.1, 2.0)),
        distance="huber",
        weight="gap",
    )
    config.optimizer.learning_rate = 1e-4
    config.ema.decay = 0.99993
    config.train.update(steps=400_000, batch_size=1024)
    return config
