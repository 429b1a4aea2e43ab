"""DMD2 on CIFAR-10 from the network of `cifar10_edm`: one step, with a head on real pictures.

    python train.py --config=cifar10_edm          (the teacher)
    python train.py --config=cifar10_dmd2

The student and the others take turns, four of five steps are theirs. Published, not ours: FID 1.99
in one step, of labelled pictures, with the network of EDM (FastGen, NVIDIA's code); 2.13 in the
paper (Yin et al. 2024, arXiv:2405.14867).
"""

from configs.cifar10_edm import get_config as cifar10_edm


def get_config():
    """FastGen's settings of DMD2; its head sees features at three depths, here at one."""
    config = cifar10_edm()
    config.start_from = "runs/cifar10_edm"
    config.data.flip, config.data.augment = True, None
    config.model.dropout = 0.0
    config.loss = dict(
        name="distribution_matching",
        gan=1e-3,
        start=80.0,
        every=5,
        alternate=True,
        times=dict(name="karras", low=0.02, high=0.98),
    )
    config.optimizer = dict(name="adamw", learning_rate=1e-4, weight_decay=0.01, clip_norm=10.0)
    config.ema = dict(name="constant", decay=0.9999, warmup=False)
    config.train.update(steps=100_000, batch_size=2048)
    config.sample.update(
        solver="consistency", solver_options=dict(sigma_min=0.0), stride="uniform", steps=1
    )
    return config
