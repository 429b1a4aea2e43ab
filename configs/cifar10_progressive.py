"""Progressive distillation on CIFAR-10: a teacher of continuous time, then 13 halvings to one step.

    tfds build cifar10 --file_format=array_record        (once, where tensorflow is installed)
    python train.py --config=cifar10_progressive

Each stage is a run in runs/cifar10_progressive. Published, not ours: FID 2.57, 3.00, 4.51, 9.12 at
8, 4, 2, 1 steps (Salimans & Ho 2022, arXiv:2202.00512), with a larger network than this one, which
is that of `cifar10`. The paper trains the last two stages twice as long as the authors' config,
which is followed: `"--config.stages[12].train.steps=100000"`, and so for stage 13.
"""

from configs.cifar10 import get_config as cifar10


def get_config():
    """Salimans & Ho 2022, authors' configs: x-prediction; 50,000 steps a stage, 5e-5 to 0."""
    config = cifar10()
    config.model.dropout = 0.2
    config.schedule = dict(name="cosine")
    config.prediction = dict(name="x0")
    config.loss = dict(
        name="diffusion", times=dict(name="uniform"), weighting=dict(name="truncated_snr")
    )
    config.optimizer.update(name="adamw", warmup_steps=1000, weight_decay=0.001)
    config.ema = dict(name="constant", decay=0.9999, warmup=False)
    config.sample.update(stride="uniform")
    config.stages = [dict(name="teacher"), *(student(2**k) for k in range(12, -1, -1))]
    return config


def student(steps: int, length: int = 50_000) -> dict:
    """The stage whose student takes `steps` steps, after `length` training steps."""
    return dict(
        name=f"{steps}_step",
        model=dict(dropout=0.0),
        loss=dict(name="progressive", steps=steps, weighting=dict(name="truncated_snr")),
        optimizer=dict(learning_rate=5e-5, warmup_steps=0, weight_decay=0.0, decay="linear"),
        ema=dict(name="constant", decay=0.0, warmup=False),  # raw parameters
        train=dict(steps=length),
        sample=dict(steps=min(steps, 64)),
    )
