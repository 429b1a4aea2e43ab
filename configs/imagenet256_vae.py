"""The autoencoder of latent diffusion: 256 x 256 in RGB to latents of 32 x 32 x 4, 83,653,863.

    tfds build imagenet2012 --file_format=array_record       (where tensorflow is installed)
    python train.py --config=imagenet256_vae

Needs `lpips_vgg.safetensors`, see `cifar10_cd`. Stable Diffusion's autoencoder is this one: where
that is at hand nothing is gained by training it again. The authors trained on random crops (of
OpenImages, for the weights that they published), with a learnt weight of the reconstruction and,
from step 50,001 on, against a discriminator, which sharpens what comes back; here pictures are
cropped at the centre, the weight is fixed and there is no discriminator. Published, not ours, with
it: reconstruction FID 0.90 and PSNR 24.19 after 246,803 steps (Rombach et al. 2022,
arXiv:2112.10752, authors' repository).
"""

from configs.digits_vae import get_config as digits_vae


def get_config():
    """Rombach et al. 2022, appendix G, and the authors' autoencoder_kl_32x32x4.yaml on one GPU.

    Batches of 12, two for a step; the learning rate is 4.5e-6 for each picture of both.
    """
    config = digits_vae()
    config.data.update(name="imagenet2012", image_shape=(256, 256, 3), resize=256, channels=3)
    config.model = dict(
        name="autoencoder_kl",
        channels=3,
        latent_channels=4,
        widths=(128, 256, 512, 512),
        num_blocks=2,
        attention=True,
        groups=32,
        scale=1.0,
        dtype="bfloat16",
    )
    config.loss = dict(
        name="autoencoder", error="l1", kl=1e-6, distance="lpips:lpips_vgg.safetensors"
    )
    config.optimizer = dict(
        name="adam", learning_rate=24 * 4.5e-6, warmup_steps=0, clip_norm=0.0, b1=0.5, b2=0.9
    )
    config.ema = dict(name="constant", decay=0.0)
    config.train.update(
        steps=246_803,
        batch_size=24,
        accumulate=2,
        log_every=100,
        checkpoint_every=5000,
        sample_every=5000,
    )
    return config
