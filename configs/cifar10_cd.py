"""Consistency distillation on CIFAR-10 from the network of `cifar10_edm`.

    python train.py --config=cifar10_edm          (the teacher)
    python train.py --config=cifar10_cd

`lpips_vgg.safetensors` holds LPIPS weights; `ddim_jax/losses/lpips.py` says how to write it.
Without it use `--config.loss.distance=l2`. Published, not ours: FID 3.55 in one step, 2.93 in two
(Song et al. 2023, arXiv:2303.01469, table 1; the network there is NCSN++).
"""

from configs.cifar10_edm import get_config as cifar10_edm


def get_config():
    """Song et al. 2023, table 3: 18 points, no decay of the target, RAdam at 4e-4, batch 512."""
    config = cifar10_edm()
    config.start_from = "runs/cifar10_edm"
    config.data.flip, config.data.augment = True, None
    config.model.dropout = 0.0
    config.prediction = dict(name="consistency", sigma_data=0.5, sigma_min=0.002)
    config.loss = dict(
        name="consistency",
        distil=True,
        pairs=dict(name="grid", points=dict(name="constant", points=18)),
        distance="lpips:lpips_vgg.safetensors",
        weight="uniform",
    )
    config.optimizer = dict(name="radam", learning_rate=4e-4, clip_norm=0.0)
    config.ema = dict(name="constant", decay=0.9999, warmup=False)
    config.train.update(steps=800_000, batch_size=512)
    config.sample.update(solver="consistency", stride="karras", steps=1, num_samples=64)
    return config
