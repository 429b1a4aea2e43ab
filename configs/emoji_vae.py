"""An autoencoder of emoji, 64 x 64 in RGB to latents of 16 x 16 x 4, for `emoji`.

    python train.py --config=emoji_vae --config.data.name=npz:emoji.npz

emoji.npz holds train_x [N, 64, 64, 3], train_y (the style), train_captions (the name) and
class_names; `benchmarks/emoji_data.py` makes it. Takes 22 minutes on 2 CPU cores;
docs/emoji.md has what `emoji` draws with it.
"""

from configs.digits_vae import get_config as digits_vae


def get_config():
    """L1 and a small KL, as in `digits_vae`; twice the width."""
    config = digits_vae()
    config.data.update(name="npz:emoji.npz", image_shape=(64, 64, 3), resize=None, channels=None)
    config.model.update(widths=(16, 32, 64))
    config.optimizer = dict(
        name="adam", learning_rate=2e-3, warmup_steps=100, decay="cosine", clip_norm=1.0, b2=0.99
    )
    config.train.update(
        steps=1800, batch_size=32, log_every=50, checkpoint_every=200, sample_every=600
    )
    return config
