"""Rectified flow on CIFAR-10, straightened once, then distilled to one step.

    python train.py --config=cifar10_reflow

Needs `lpips_vgg.safetensors`, see `cifar10_cd`. The second stage first draws a million pairs by
Heun in 64 steps (the authors: RK45). LPIPS sees images at 224 pixels, as in consistency models.
Published, not ours (Liu et al. 2022, arXiv:2209.03003; the network there is DDPM++): FID 2.58 of
the first flow by RK45 (127 evaluations), 12.21 of the second in one step, 4.85 of its distillation.
"""

from configs.cifar10 import get_config as cifar10


def get_config():
    """The authors' configs: Adam at 2e-4, batch 128; LPIPS for the last stage.

    The first flow is trained longer than the others, with more dropout and a longer average.
    """
    config = cifar10()
    config.schedule = dict(name="rectified_flow")
    config.prediction = dict(name="flow")
    config.sample.update(solver="heun_flow", stride="uniform", steps=10)
    pairs = dict(count=1_000_000, solver="heun_flow", steps=64)
    one_step = dict(
        times=dict(name="nodes", steps=1), distance="lpips:lpips_vgg.safetensors", name="diffusion"
    )
    config.stages = [
        dict(
            name="flow",
            model=dict(dropout=0.15),
            ema=dict(name="constant", decay=0.999999),
            train=dict(steps=1_300_000),
        ),
        dict(name="reflow", pairs=pairs, data=dict(flip=False), train=dict(steps=300_000)),
        dict(
            name="one_step",
            data=dict(name="pairs", flip=False),
            loss=one_step,
            train=dict(steps=300_000),
            sample=dict(solver="ddim", steps=1),
        ),
    ]
    return config
