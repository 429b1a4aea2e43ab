"""Reflow to one step, then distribution matching with a head that looks at real digits.

    python train.py --config=digits_reflow_dmd
    python sample.py --checkpoint=runs/digits_reflow_dmd/dmd

Makes the three runs of `digits_reflow`, and a fourth which goes on from its one-step network. The
teacher there is the bundled network, guided in two evaluations; it is on another schedule, which
does not matter to what the student draws.
"""

from configs.digits_reflow import get_config as digits_reflow


def get_config():
    """Yin et al. 2024 (arXiv:2405.14867), from a student of Liu et al. 2022 (arXiv:2209.03003)."""
    config = digits_reflow()
    distilled = dict(
        name="dmd",
        teacher="digits",
        loss=dict(
            name="distribution_matching",
            guidance_scale=1.25,
            gan=0.01,
            times=dict(name="log_normal", mean=0.0, std=1.2, low=0.03, high=30.0),
        ),
        optimizer=dict(
            learning_rate=5e-4,
            b1=0.5,
            parts=dict(critic=dict(learning_rate=1e-3), head=dict(learning_rate=1e-3, b1=0.0)),
        ),
        train=dict(steps=1500),
        sample=dict(steps=1),
    )
    config.stages = [*config.stages, distilled]
    return config
