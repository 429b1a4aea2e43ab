"""Consistency distillation on ImageNet at 64 x 64: EDM's teacher, then CD with LPIPS.

    tfds build imagenet_resized/64x64 --file_format=array_record     (where tensorflow is installed)
    python train.py --config=imagenet64_cd --config.model.remat=blocks

Needs `lpips_vgg.safetensors`, see `cifar10_cd`. The paper trained on 64 A100. Published, not
ours: FID 6.20 in one step, 4.70 in two (Song et al. 2023, arXiv:2303.01469, table 2).
"""

from configs.imagenet64 import get_config as imagenet64


def get_config():
    """Song et al. 2023, table 3 and the authors' commands: 40 points, mu 0.95, RAdam at 8e-6.

    The network is told 1000 log(sigma) / 4, and LPIPS pools by averages, as in their code.
    """
    config = imagenet64()
    config.model.time_scale = 1000.0
    config.schedule = dict(name="edm")
    config.prediction = dict(name="edm", sigma_data=0.5)
    config.loss = dict(
        name="diffusion",
        times=dict(name="log_normal", mean=-1.2, std=1.2),
        weighting=dict(name="edm", sigma_data=0.5),
    )
    config.optimizer = dict(name="radam", learning_rate=1e-4, clip_norm=0.0)
    config.ema = dict(name="constant", decay=0.999943, warmup=False)
    config.train.update(steps=600_000, batch_size=4096)
    config.sample.update(solver="heun", stride="karras", steps=40)
    config.stages = [dict(name="teacher"), distilled(8e-6, 2048)]
    return config


def distilled(learning_rate: float, batch_size: int) -> dict:
    """The second stage."""
    return dict(
        name="cd",
        model=dict(dropout=0.0),
        prediction=dict(name="consistency", sigma_data=0.5, sigma_min=0.002),
        loss=dict(
            name="consistency",
            distil=True,
            pairs=dict(name="grid", points=dict(name="constant", points=40)),
            distance="lpips_average:lpips_vgg.safetensors",
            weight="uniform",
            target_decay=0.95,
        ),
        optimizer=dict(learning_rate=learning_rate),
        train=dict(steps=600_000, batch_size=batch_size),
        sample=dict(solver="consistency", stride="karras", steps=1),
    )
