"""Clips of UCF-101 by class: 16 frames of 64 x 64 from 9,537 videos, the training part of split 1.

    pip install tensorflow                  # TFDS reads no videos without it
    tfds build ucf101 --file_format=array_record
    python train.py --config=ucf101_64
    python train.py --config=ucf101_64 --plan=v5e:4x4

The network of pictures is ADM's of 64 x 64 pixels, made smaller; between its blocks frames are
mixed by attention over time at 64 and 32, jointly at 16 and 8. One in five clips is cut apart, so
that frames are trained on as pictures too (Ho et al. 2022, arXiv:2204.03458, section 3.1). All
13,320 videos of the set, the test part too, have 29 frames or more. Not trained by us.
"""

import ml_collections

from configs.digits import get_config as digits


def get_config() -> ml_collections.ConfigDict:
    """v-prediction on the cosine schedule; half of the clips have one noise level."""
    config = digits()
    config.parallel = "fsdp"
    with config.ignore_type():
        config.data.update(name="ucf101", image_shape=(64, 64, 3), resize=64, flip=True, frames=16)
    config.model = dict(
        name="video_unet",
        out_channels=3,
        channels=128,
        channel_mults=(1, 2, 3, 4),
        num_blocks=2,
        attention_resolutions=(16, 8),
        head_channels=64,
        scale_shift=True,
        resample_blocks=True,
        num_classes=101,
        dropout=0.1,
        time_heads=8,
        joint_attention=(16, 8),
        time_convolution=(16, 8),
        dtype="bfloat16",
        remat="blocks",
    )
    config.loss.update(
        weighting=dict(name="snr_plus_one", most=10.0), frame_levels=(0.55, 0.25), alone=0.2
    )
    config.optimizer.update(learning_rate=2e-4, warmup_steps=2000)
    config.ema = dict(name="power", relative_std=0.1)
    config.train.update(
        steps=200_000, batch_size=128, log_every=100, checkpoint_every=5000, sample_every=20_000
    )
    config.sample.update(
        solver="unipc_2", steps=20, num_samples=16, clip="dynamic", guidance_scale=2.0
    )
    return config
