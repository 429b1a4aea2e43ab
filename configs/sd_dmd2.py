"""DMD2 of a published latent model, such as Stable Diffusion 1.5: one step, taught by the model.

    python train.py --config=sd_dmd2 --config.start_from=FOLDER --config.data.name=folder:photos
    python sample.py --checkpoint=runs/sd_dmd2 --prompt="a red fox"

FOLDER is as diffusers writes it, photos/ holds pictures with captions, 1.png and 1.txt; of the
pictures nothing is used but their captions. Network, schedule, autoencoder and text encoders are
the folder's. Student, critic and teacher are in memory, eight times its numbers (docs/few_step.md);
`--config.start_from=shapes:sd15 --plan=v5e:16x16 --quick` says what that comes to.

Then with a head on real pictures, which are encoded once and kept; the critic goes on:

    python train.py --config=sd_dmd2 --workdir=runs/sd_dmd2_gan --config.start_from=runs/sd_dmd2 \\
        --config.teacher=FOLDER --config.data.name=folder:photos --config.loss.gan=1e-3 \\
        --config.optimizer.learning_rate=5e-7 --config.train.steps=2000

Other than in the authors' script the head is on the teacher's features, at the levels of the
matching term, nothing warms up, and teacher and critic compute in bfloat16, theirs the critic in
float32: `--config.model.dtype=float32`. Published, not ours: FID 8.35 on COCO in one step, of both
runs together (Yin et al. 2024, arXiv:2405.14867, table 3).
"""

from configs.sd_lora import get_config as sd_lora


def get_config():
    """Yin et al. 2024 and the authors' script for Stable Diffusion 1.5: batch 2048, no EMA."""
    config = sd_lora()
    config.parallel = "fsdp"
    config.model, config.teacher_dtype = dict(remat="blocks", dtype="bfloat16"), "bfloat16"
    config.loss = dict(
        name="distribution_matching", every=10, guidance_scale=1.75,
        times=dict(name="uniform", low=0.02, high=0.98), critic_times=dict(name="uniform"),
    )  # fmt: skip
    config.optimizer = dict(
        name="adamw", learning_rate=1e-5, weight_decay=0.01, warmup_steps=0, clip_norm=10.0
    )
    config.ema = dict(name="constant", decay=0.0, warmup=False)
    del config.train.lora
    config.train.update(steps=40_000, batch_size=2048, checkpoint_every=500, sample_every=1000)
    config.sample = dict(
        num_samples=16, solver="consistency", solver_options=dict(sigma_min=0.0), stride="uniform",
        steps=1, guidance_scale=1.0,
    )  # fmt: skip
    return config
