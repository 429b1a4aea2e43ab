"""DMD2 on ImageNet at 64 x 64: EDM's teacher, then one step, with a head on real pictures.

    tfds build imagenet_resized/64x64 --file_format=array_record     (where tensorflow is installed)
    python train.py --config=imagenet64_dmd2 --config.model.remat=blocks

The paper's head is on the critic's features, and its term there is weighed by 0.01 against the
critic's; here it is on the teacher's, with an optimizer of its own. There it also draws levels of
its own, classes are drawn uniformly and rates warm up over 500 steps in all processes together;
here the head looks at the levels of the matching term, classes are the data's and nothing warms up.
Published, not ours: FID 1.51 in one step (Yin et al. 2024, arXiv:2405.14867, table 1). The authors'
1.28 is of another way: 405,000 steps without a head, then 140,000 with it at a learning rate of
5e-7.
"""

from configs.imagenet64_cd import get_config as imagenet64_cd


def get_config():
    """Yin et al. 2024 and the authors' script for ImageNet: AdamW at 2e-6, batch 280, no EMA."""
    config = imagenet64_cd()
    distilled = dict(
        name="dmd2",
        data=dict(flip=False),
        model=dict(dropout=0.0),
        loss=dict(
            name="distribution_matching",
            gan=3e-3,
            start=80.0,
            every=5,
            times=dict(name="karras", low=0.02, high=0.98),
            critic_times=dict(name="karras"),
            weighting=dict(name="edm", sigma_data=0.5),
        ),
        optimizer=dict(name="adamw", learning_rate=2e-6, weight_decay=0.01, clip_norm=10.0),
        ema=dict(name="constant", decay=0.0, warmup=False),
        train=dict(steps=200_000, batch_size=280),
        sample=dict(
            solver="consistency", solver_options=dict(sigma_min=0.0), stride="uniform", steps=1
        ),
    )
    config.stages = [config.stages[0], distilled]
    return config
