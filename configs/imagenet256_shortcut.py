r"""A shortcut model of ImageNet at 256 x 256: any power of two of steps, from 128 to one.

    python train.py --config=imagenet256_shortcut --config.data.name=latents:imagenet256 \
        --config.codec.start_from=FOLDER
    python sample.py --checkpoint=runs/imagenet256_shortcut --steps=1

Data and autoencoder are those of `imagenet256_dit`; XL/2 has 676,440,592 parameters, and
`:b_2` is the authors' smaller one. The authors trained on TPU v3s. Their network is told t in 0..1
and log2(1 / d), and divides queries by the width of a head; ours is told 1000 t and 1000 d, and
divides by its root. Their code takes an equal number of rows of each d, here d is drawn. Published,
not ours: FID 10.6, 7.8 and 3.8 in 1, 4 and 128 steps; B/2 40.3, 28.3 and 15.5 (Frans et al. 2024,
arXiv:2410.12557, authors' repository).
"""

from configs.imagenet256_dit import get_config as imagenet256_dit


def get_config(size: str = "xl_2"):
    """Frans et al. 2024, table 3, and the authors' train.py; one row in 8 takes longer steps."""
    config = imagenet256_dit(size)
    config.model.update(unused_channels=0, scalars=("interval",))
    config.schedule = dict(name="rectified_flow")
    config.prediction = dict(name="flow")
    config.loss = dict(
        name="shortcut",
        finest=128,
        every=8,
        limit=4.0,
        target_decay=0.999,
        guidance_scale=1.5,
        label_dropout=0.1,
    )
    config.optimizer.weight_decay = 0.1
    config.ema.decay = 0.999
    config.train.steps = 810_000
    config.sample = dict(solver="ddim", stride="uniform", steps=4, num_samples=16, clip="none")
    return config
