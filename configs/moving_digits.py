"""Clips of bouncing digits on a CPU: 16 frames of 16 x 16, made from the package's own digits.

    python train.py --config=moving_digits
    python sample.py --checkpoint=runs/moving_digits/clips

Two stages: `frames` trains the network of `digits` on single frames; `clips` starts from it and
adds what mixes frames. Half of the clips have one noise level for all frames, in a quarter some are
known, in the rest each has its own, so that the network draws clips, goes on from a first frame,
fills in between and draws on and on. One in ten is cut apart, so that single frames stay learnt.
`--config=moving_digits:joint` draws clips alone, at one noise level.
"""

import ml_collections

from configs.digits import get_config as digits
from ddim_jax.names import lookup

FRAMES = 16
KINDS = {"frames": (0.55, 0.25), "joint": None}
"""Kinds of clips in training, see `losses.time_samplers.of_frames`, by name."""


def get_config(kind: str = "frames") -> ml_collections.ConfigDict:
    """Attention over time at 8 x 8, over all places of all frames at 4 x 4, where identity is."""
    config = digits()
    with config.ignore_type():
        config.data.update(name="moving_digits", image_shape=(16, 16, 1), resize=16, frames=1)
        config.model.update(out_channels=1, num_classes=10)
    config.model.update(channels=48, channel_mults=(1, 2), num_blocks=2, patch_size=2)
    config.loss.weighting = dict(name="snr_plus_one", most=10.0)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=100, decay="cosine")
    config.train.update(batch_size=128, log_every=50, checkpoint_every=500, sample_every=1000)
    config.sample.update(solver="ddim", steps=20, num_samples=20)
    clips = dict(
        name="clips",
        data=dict(frames=FRAMES),
        model=dict(
            name="video_unet", time_heads=4, joint_attention=(4,), time_convolution=(8, 4),
        ),
        loss=dict(alone=0.1),
        train=dict(steps=8000, batch_size=8),
    )  # fmt: skip
    if levels := lookup(KINDS, kind, "kind of clips"):
        clips["loss"]["frame_levels"] = levels
    config.stages = [dict(name="frames", train=dict(steps=700)), clips]
    return config
