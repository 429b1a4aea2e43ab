"""An LCM-LoRA of a published latent model: four steps, by a file of a few percent of its weights.

    python train.py --config=sd_lcm_lora --config.start_from=FOLDER --config.data.name=folder:photos
    python -m ddim_jax.checkpoints runs/sd_lcm_lora lcm.safetensors --lora
    python sample.py --checkpoint=FOLDER --lora=lcm.safetensors --solver=lcm --steps=4 \\
        --guidance_scale=1 --prompt="a red fox"

FOLDER is as diffusers writes it, photos/ holds pictures with captions, 1.png and 1.txt. The teacher
is guided by a scale that is drawn row by row, 1 + w for the w of 5 to 15 of the authors' script;
the student is not told it. Unlike the script, points are those of EDM's grid, the target is a step
of Heun's method, x0 is the network's own without factors that make it the identity at the clean
end, and the distance is of the whole latent; nothing was trained by these settings here.
"""

from configs.sd_lora import get_config as sd_lora


def get_config():
    """Luo et al. 2023 (arXiv:2311.05556) and the script of diffusers: rank 64, 1000 steps."""
    config = sd_lora()
    config.guide = dict(name="classifier_free")
    config.loss = dict(
        name="consistency",
        distil=True,
        guidance=(6.0, 16.0),
        pairs=dict(
            name="grid", sigma_min=0.0, sigma_max=14.6, points=dict(name="constant", points=50)
        ),
        distance="huber",
        huber=0.128,
        weight="uniform",
    )
    config.train.update(
        batch_size=16, lora=dict(rank=64, targets="attention,convolutions,dense"), sample_every=0
    )
    config.sample = dict(num_samples=4, solver="lcm", stride="uniform", steps=4, guidance_scale=1.0)
    return config
