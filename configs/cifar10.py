"""DDPM on CIFAR-10: the 35.7M-parameter network, linear betas, T = 1000, eps-prediction.

    tfds build cifar10 --file_format=array_record        (once, where tensorflow is installed)
    python train.py --config=cifar10

The paper trained 800,000 steps on a TPU v3-8. Published, not ours: FID 3.17 at 1000 steps (Ho et
al. 2020, arXiv:2006.11239); DDIM, eta = 0, at 10, 20, 50, 100, 1000 steps: 13.36, 6.84, 4.67, 4.16,
4.04 (Song et al. 2021, arXiv:2010.02502, table 1, quadratic stride).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Ho et al. 2020, appendix B."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.parallel = "jit"
    config.start_from = ""
    config.data = dict(
        name="cifar10", split="train", image_shape=None, flip=True, resize=0, data_dir=""
    )
    config.model = dict(
        out_channels=None,
        num_classes=0,
        channels=128,
        channel_mults=(1, 2, 2, 2),
        num_blocks=2,
        attention_resolutions=(16,),
        dropout=0.1,
        dtype="float32",
        remat="none",
    )
    config.schedule = dict(name="ddpm_linear")
    config.prediction = dict(name="eps")
    config.loss = dict(name="diffusion", times=dict(name="uniform"), weighting=dict(name="simple"))
    config.optimizer = dict(name="adam", learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0)
    config.ema = dict(name="constant", decay=0.9999)
    config.train = dict(
        steps=800_000,
        batch_size=128,
        accumulate=1,
        log_every=100,
        checkpoint_every=5000,
        keep=2,
        sample_every=10_000,
    )
    config.sample = dict(solver="ddim", stride="quadratic", steps=50, num_samples=64, clip="static")
    return config
