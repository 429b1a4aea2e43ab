"""Consistency distillation of the bundled digits network, guided: one step, or more for quality.

    python train.py --config=digits_cd
    python sample.py --checkpoint=runs/digits_cd/consistency

Makes two runs in runs/digits_cd: a network that gives the guided prediction in one evaluation, for
every scale from 1 to 1.5, and the consistency model, distilled from it. For two steps or more
search the times, and lower the scale:

    python -m ddim_jax.evaluation.times --checkpoint=runs/digits_cd/consistency --steps=2,4 \\
        --guidance_scale=1.2
    python sample.py --checkpoint=runs/digits_cd/consistency --guidance_scale=1.35 \\
        --stride=strides/consistency-consistency-4.json

With `--config.data.name=npz:mnist.npz` on 2 CPU cores: 26 minutes; FDD of 10,000 samples
(docs/quality.md) 4.44, 2.99 and 2.53 in 1, 2 and 4 steps.
"""

from configs.digits import get_config as digits


def get_config():
    """Song et al. 2023 (arXiv:2303.01469), CD, with the guided teacher of Meng et al. 2023.

    On this v-prediction network, x0 is the identity at the clean end, as it has to be.
    """
    config = digits()
    config.start_from = "digits"
    config.model.scalars = ("guidance",)
    guidance = (1.0, 1.5)
    config.loss = dict(name="guided", guidance=guidance)
    config.optimizer = dict(
        name="radam", learning_rate=5e-4, decay="linear", clip_norm=1.0, b2=0.99
    )
    config.ema = dict(name="constant", decay=0.995)
    config.train.update(batch_size=64, log_every=50, checkpoint_every=200, sample_every=500)
    config.stages = [
        dict(
            name="guided",
            train=dict(steps=1000),
            sample=dict(steps=20, guidance_scale=1.2),
        ),
        dict(
            name="consistency",
            loss=dict(
                name="consistency",
                distil=True,
                guidance=guidance,
                pairs=dict(
                    name="grid",
                    points=dict(name="constant", points=16),
                    sigma_min=0.0,
                    sigma_max=20.0,
                    rho=4.0,
                ),
                weight="gap",
            ),
            optimizer=dict(learning_rate=3e-4),
            train=dict(steps=3000),
            sample=dict(
                solver="consistency",
                solver_options=dict(sigma_min=0.0),
                stride="karras",
                stride_options=dict(lam_min=-3.0),
                steps=1,
                guidance_scale=1.5,
            ),
        ),
    ]
    return config
