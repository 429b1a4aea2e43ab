"""EDM's training of CIFAR-10: its schedule, preconditioning, noise levels and weighting.

    tfds build cifar10 --file_format=array_record        (once, where tensorflow is installed)
    python train.py --config=cifar10_edm

The network is ours (46.7M parameters), not the paper's DDPM++ (55.7M), and the moving average is
EDM2's, not one of the last 500,000 images. So the published figure is no target here. The paper
trained on 200 million images with 8 V100. Published, not ours: FID 1.97, unconditional, 35
evaluations (Karras et al. 2022, arXiv:2206.00364, table 2).
"""

from configs.cifar10 import get_config as cifar10


def get_config():
    """Karras et al. 2022, tables 1, 6 and 7; the warm-up lasts for 10 million images.

    The augmentation mirrors too, and the network is told.
    """
    config = cifar10()
    config.data.update(flip=False, augment=dict(name="edm", probability=0.12))
    config.model.update(
        channel_mults=(2, 2, 2), num_blocks=3, scale_shift=True, dropout=0.13, augment=9
    )
    config.schedule = dict(name="edm")
    config.prediction = dict(name="edm", sigma_data=0.5)
    config.loss.times = dict(name="log_normal", mean=-1.2, std=1.2)
    config.loss.weighting = dict(name="edm", sigma_data=0.5)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=19_531, clip_norm=0.0)
    config.ema = dict(name="power", relative_std=0.1)
    config.train.update(steps=390_000, batch_size=512)
    config.sample.update(solver="heun", stride="karras", steps=18, clip="none")
    return config
