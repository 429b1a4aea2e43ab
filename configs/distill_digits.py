"""Progressive distillation of the bundled digits network to 16, 8, 4, 2 and 1 steps, guided.

    python train.py --config=distill_digits
    python sample.py --checkpoint=runs/distill_digits/4_step --guidance_scale=2

The first stage learns the guided prediction of the bundled network, for every scale from 1 to 2, in
one evaluation instead of two. The scale stays an input of the students, which halve the number of
steps from 32 on and draw at a scale of 1.2 by default. Each stage is a run of its own in
runs/distill_digits, which stops and resumes like any run. With `--config.data.name=npz:mnist.npz`
on 2 CPU cores: 67 minutes, some of the time beside other work; FDD of 10,000 samples
(docs/quality.md) 2.50, 2.69, 3.19 and 3.81 in 8, 4, 2 and 1 steps.
"""

from configs.digits import get_config as digits


def get_config():
    """Salimans & Ho 2022, algorithm 2, with the two stages of Meng et al. 2023 (arXiv:2210.03142).

    Linear decay in every stage; the fewer the steps, the longer the stage.
    """
    config = digits()
    config.start_from = "digits"
    config.model.scalars = ("guidance",)
    guidance = (1.0, 2.0)
    config.loss = dict(name="guided", guidance=guidance)
    config.optimizer = dict(name="adam", learning_rate=3e-4, decay="linear", clip_norm=1.0, b2=0.99)
    config.ema = dict(name="constant", decay=0.99)
    config.train.update(batch_size=64, log_every=50, checkpoint_every=200, sample_every=500)
    config.stages = [
        stage("guided", 32, 1000, dict(name="guided", guidance=guidance)),
        *(
            stage(
                f"{steps}_step",
                steps,
                length,
                dict(name="progressive", steps=steps, guidance=guidance),
            )
            for steps, length in {16: 1000, 8: 1000, 4: 1500, 2: 2500, 1: 3000}.items()
        ),
    ]
    return config


def stage(name: str, steps: int, length: int, loss: dict) -> dict:
    """A stage of `length` training steps with a loss; its samples are drawn in `steps`."""
    return dict(
        name=name,
        loss=loss,
        train=dict(steps=length),
        sample=dict(steps=steps, guidance_scale=1.2),
    )
