r"""DiT on ImageNet at 256 x 256, in latents of 32 x 32 x 4: DiT-XL/2, 674,834,720 parameters.

    tfds build imagenet2012 --file_format=array_record       (where tensorflow is installed)
    python -m ddim_jax.data.latents imagenet2012 --resize=256 --flip --autoencoder=FOLDER \
        --out=imagenet256
    python train.py --config=imagenet256_dit --config.data.name=latents:imagenet256 \
        --config.codec.start_from=FOLDER

FOLDER is a Stable Diffusion 1, whose encoder the authors use, or runs/imagenet256_vae. Without
latents:... every step encodes its pictures. Either way it draws a sample of each latent, as the
authors do. `--config=imagenet256_dit:b_2` trains another size, see SIZES.

The authors trained 7M steps on TPU v3 pods; `--plan=v5e:16x16` is in docs/real_models.md. Their
code also learns the variance of a step, by the variational bound; here the second half of the
output channels is there, as in their weights, and not trained. Published, not ours: FID 2.27 by 250
steps of DDPM at guidance scale 1.5, 9.62 without guidance (Peebles & Xie 2022, arXiv:2212.09748).
"""

import ml_collections

from ddim_jax.names import lookup

SIZES = {
    "b_4": dict(width=768, depth=12, heads=12, patch_size=4),
    "b_2": dict(width=768, depth=12, heads=12, patch_size=2),
    "l_2": dict(width=1024, depth=24, heads=16, patch_size=2),
    "xl_2": dict(width=1152, depth=28, heads=16, patch_size=2),
}
"""Of the network, by name; the last digit is the patch."""


def get_config(size: str = "xl_2") -> ml_collections.ConfigDict:
    """Peebles & Xie 2022, section 4, and the authors' train.py."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.parallel = "fsdp"
    config.start_from = ""
    config.data = dict(
        name="imagenet2012", split="train", image_shape=(256, 256, 3), flip=True, resize=256,
        channels=3, data_dir="", latents="sample",
    )  # fmt: skip
    config.codec = dict(
        start_from="runs/imagenet256_vae",
        name="autoencoder_kl",
        channels=3,
        latent_channels=4,
        widths=(128, 256, 512, 512),
        num_blocks=2,
        attention=True,
        groups=32,
    )
    config.model = dict(
        name="dit",
        out_channels=4,
        unused_channels=4,
        num_classes=1000,
        time_scale=1.0,
        dtype="bfloat16",
        remat="none",
        **lookup(SIZES, size, "size"),
    )
    config.schedule = dict(name="ddpm_linear")
    config.prediction = dict(name="eps")
    config.loss = dict(
        name="diffusion",
        times=dict(name="uniform"),
        weighting=dict(name="simple"),
        label_dropout=0.1,
    )
    config.optimizer = dict(name="adamw", learning_rate=1e-4, warmup_steps=0, clip_norm=0.0)
    config.ema = dict(name="constant", decay=0.9999, warmup=False)
    config.train = dict(
        steps=7_000_000,
        batch_size=256,
        accumulate=1,
        log_every=100,
        checkpoint_every=5000,
        keep=2,
        sample_every=50_000,
    )
    config.sample = dict(
        solver="ddpm",
        stride="uniform",
        steps=250,
        num_samples=16,
        clip="none",
        guidance_scale=1.5,
        guidance_channels=3,
    )
    return config
