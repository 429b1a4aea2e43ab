"""Class-conditional digits on a CPU, from the 5,000 MNIST digits that come with the package.

    python train.py

Takes 8 minutes on 2 cores of a Xeon, to recognisable digits. The bundled network is of `mnist`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """A 1.5M-parameter network on 14 x 14 patches of 28 x 28 digits, v-prediction, cosine."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.parallel = "jit"
    config.start_from = ""
    config.data = dict(
        name="digits", split="train", image_shape=None, flip=False, resize=0, data_dir=""
    )
    config.model = dict(
        out_channels=None,
        channels=48,
        channel_mults=(1, 2),
        num_blocks=1,
        attention_resolutions=(),
        patch_size=2,
        num_classes=None,
        dtype="float32",
        remat="none",
    )
    config.schedule = dict(name="cosine")
    config.prediction = dict(name="v")
    config.loss = dict(
        name="diffusion",
        times=dict(name="uniform"),
        weighting=dict(name="simple"),
        label_dropout=0.1,
    )
    config.optimizer = dict(
        name="adam", learning_rate=1e-3, warmup_steps=50, clip_norm=1.0, b2=0.99
    )
    config.ema = dict(name="power", relative_std=0.1)
    config.train = dict(
        steps=600,
        batch_size=64,
        accumulate=1,
        log_every=20,
        checkpoint_every=100,
        keep=2,
        sample_every=100,
    )
    config.sample = dict(solver="ddim", stride="uniform", steps=50, num_samples=40, clip="static")
    return config
