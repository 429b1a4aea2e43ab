"""DMD2 of DiT-XL/2 on ImageNet at 256 x 256: one step, taught by the published network.

    python -m ddim_jax.data.latents imagenet2012 --resize=256 --flip --autoencoder=FOLDER \\
        --out=imagenet256
    python train.py --config=imagenet256_dmd2 --config.start_from=FOLDER \\
        --config.data.name=latents:imagenet256

FOLDER is a DiT as diffusers writes it, or runs/imagenet256_dit; the latents are what the head
compares with. Student, critic and teacher are in memory: up to 19.64 GB of each of 256 v5e by
`--plan=v5e:16x16 --quick`, a bound from above (docs/pods.md). A network that predicts eps says x0
with an error that grows as sigma / alpha, 157 at the noisy end of DiT's schedule: the student
begins at 14.6, where Stable Diffusion's does.

Nobody published these settings, and nothing was trained by them here: the rates are those of DMD2
on ImageNet at 64 x 64, the times those on Stable Diffusion (Yin et al. 2024, arXiv:2405.14867), the
guidance scale that of DiT.
"""

from configs.imagenet256_dit import get_config as imagenet256_dit


def get_config():
    """Yin et al. 2024 on ImageNet-64: AdamW at 2e-6, the student's turn in every fifth step."""
    config = imagenet256_dit()
    del config.model, config.schedule, config.prediction, config.codec  # those of start_from
    config.model, config.teacher_dtype = dict(remat="blocks", dtype="bfloat16"), "bfloat16"
    config.loss = dict(
        name="distribution_matching", gan=3e-3, every=5, start=14.6, guidance_scale=1.5,
        times=dict(name="uniform", low=0.02, high=0.98), critic_times=dict(name="uniform"),
    )  # fmt: skip
    config.optimizer = dict(
        name="adamw", learning_rate=2e-6, weight_decay=0.01, warmup_steps=0, clip_norm=10.0
    )
    config.ema = dict(name="constant", decay=0.0, warmup=False)
    config.train.update(steps=200_000, batch_size=256, checkpoint_every=500, sample_every=1000)
    config.sample = dict(
        num_samples=16, solver="consistency", solver_options=dict(sigma_min=0.0), stride="uniform",
        stride_options=dict(lam_min=-2.681), steps=1, guidance_scale=1.0,
    )  # fmt: skip
    return config
