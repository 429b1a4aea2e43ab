"""ADM on ImageNet at 64 x 64, class-conditional: 296M parameters, cosine betas, fixed variance.

    tfds build imagenet_resized/64x64 --file_format=array_record     (where tensorflow is installed)
    python train.py --config=imagenet64 --config.model.remat=blocks

The paper learns the variance too, and trained 540,000 steps of batch 2048 on V100s. Here one label
in ten is dropped, so that the model can be guided. Published, not ours: FID 2.07 (Dhariwal & Nichol
2021, arXiv:2105.05233, authors' repository).
"""

from configs.cifar10 import get_config as cifar10


def get_config():
    """Dhariwal & Nichol 2021, table 11, with a null label."""
    config = cifar10()
    config.data.update(name="imagenet_resized/64x64")
    config.model = dict(
        out_channels=None,
        channels=192,
        channel_mults=(1, 2, 3, 4),
        num_blocks=3,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        dropout=0.1,
        num_classes=None,
        scale_shift=True,
        resample_blocks=True,
        time_embedding="adm",
        norm_eps=1e-5,
        dtype="bfloat16",
        remat="none",
    )
    config.schedule = dict(name="ddpm_cosine")
    config.loss.label_dropout = 0.1
    config.optimizer = dict(name="adamw", learning_rate=3e-4, warmup_steps=0, clip_norm=0.0)
    config.train.update(steps=540_000, batch_size=2048)
    config.sample.update(stride="uniform", steps=50, num_samples=40)
    return config
