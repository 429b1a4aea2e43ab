"""MeanFlow on CIFAR-10: one step, trained from scratch, without guidance.

    tfds build cifar10 --file_format=array_record        (once, where tensorflow is installed)
    python train.py --config=cifar10_mean_flow

Pictures are augmented as EDM's, without turns, and the network is told. The authors' code averages
with 0.9999, which is followed; the paper says 0.99995. Published, not ours: FID 2.92 in one step
(Geng et al. 2025, arXiv:2505.13447; the network there is DDPM++).
"""

from configs.cifar10 import get_config as cifar10


def get_config():
    """Geng et al. 2025, appendix A and the authors' code for CIFAR-10 (its version 0).

    Logit-normal (-2, 2), r = t for a quarter of a batch, p = 0.75.
    """
    config = cifar10()
    config.data.flip = False
    config.data.augment = dict(
        name="edm", probability=0.12, operations=("xflip", "scale", "aniso", "translate_frac")
    )
    config.model.update(dropout=0.2, scalars=("interval",), time_scale=0.001, augment=6)
    config.schedule = dict(name="rectified_flow")
    config.prediction = dict(name="flow")
    config.loss = dict(name="mean_flow", mean=-2.0, std=2.0, same=0.25, power=0.75, floor=1e-3)
    config.optimizer = dict(name="adam", learning_rate=6e-4, warmup_steps=10_000, clip_norm=0.0)
    config.ema = dict(name="constant", decay=0.9999, warmup=False)
    config.train.update(steps=800_000, batch_size=1024)
    config.sample.update(stride="uniform", steps=1)
    return config
