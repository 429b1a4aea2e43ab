"""A LoRA of a published latent model on pictures of your own, such as Stable Diffusion 1, 2 or XL.

    python train.py --config=sd_lora --config.start_from=FOLDER --config.data.name=folder:photos
    python sample.py --checkpoint=runs/sd_lora --prompt="a photo of my dog"
    python -m ddim_jax.checkpoints runs/sd_lora my_dog.safetensors --lora
    python sample.py --checkpoint=FOLDER --lora=my_dog.safetensors:0.8 --prompt="a photo of my dog"

FOLDER is as diffusers writes it, photos/ holds pictures with captions: 1.png and 1.txt. Network,
schedule, autoencoder and text encoders are the folder's, and only the factors are trained. Settings
are those that are common for Stable Diffusion 1.5; nothing was trained by them here.
"""

from configs.digits import get_config as digits


def get_config():
    """Hu et al. 2021 (arXiv:2106.09685) on attention, AdamW."""
    config = digits()
    del config.model, config.schedule, config.prediction  # those of what start_from names
    with config.data.ignore_type():
        config.data.update(name="folder:photos", resize=512, channels=3, cache=True)
    config.loss = dict(name="diffusion", label_dropout=0.1)
    config.optimizer = dict(name="adamw", learning_rate=1e-4, warmup_steps=20, clip_norm=1.0)
    config.ema = dict(name="constant", decay=0.99)
    config.train.update(
        steps=1000, batch_size=4, checkpoint_every=200, sample_every=200,
        lora=dict(rank=8, targets="attention"),
    )  # fmt: skip
    config.sample = dict(num_samples=4)
    return config
