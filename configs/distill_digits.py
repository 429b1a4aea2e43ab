"""Progressive distillation of the bundled digits network to 8, 4, 2 and 1 steps.

    python train.py --config=configs/distill_digits.py

Each stage starts from the student before it, and the first from the network that comes with the
package; stages are runs of their own in runs/distill_digits, and stop and resume like any run.
"""

from configs.digits import get_config as digits


def get_config():
    """Salimans & Ho 2022, algorithm 2: linear decay in every stage, the last two twice as long."""
    config = digits()
    config.start_from = "digits"
    config.loss = dict(name="progressive", steps=0, weighting=dict(name="truncated_snr"))
    config.optimizer = dict(
        name="adam", learning_rate=3e-4, decay="linear", decay_steps=0, clip_norm=1.0, b2=0.99
    )
    config.ema = dict(name="constant", decay=0.99)
    config.train.update(batch_size=64, log_every=50, checkpoint_every=200, sample_every=500)
    config.stages = [stage(steps) for steps in (8, 4, 2, 1)]
    return config


def stage(steps: int) -> dict:
    """The student of so many steps."""
    length = 1500 if steps > 2 else 3000
    return dict(
        name=f"{steps}_step",
        loss=dict(steps=steps),
        optimizer=dict(decay_steps=length),
        train=dict(steps=length),
        sample=dict(steps=steps),
    )
