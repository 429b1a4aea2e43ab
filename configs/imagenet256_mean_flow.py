r"""MeanFlow on ImageNet at 256 x 256: one step, trained from scratch, guidance trained in.

    python train.py --config=imagenet256_mean_flow --config.data.name=latents:imagenet256 \
        --config.codec.start_from=FOLDER
    python train.py --config=imagenet256_mean_flow:xl_2 --workdir=runs/mean_flow_xl_2 ...

Data and autoencoder are those of `imagenet256_dit`. B/4 has 131,165,248 parameters, XL/2
676,440,592. B/4 is the run of the authors' code; XL/2 is in the paper alone, and its guidance is
taken from its table as third-party code has it. The authors' code drops labels among the rows with
r = t only; here any row's may be dropped. Published, not ours, in one step: B/4 FID 11.4 after 240
epochs (18.7 after 80; authors' repository); XL/2 3.43, in two 2.93 (Geng et al. 2025,
arXiv:2505.13447). The authors trained on TPUs.
"""

from configs.imagenet256_dit import get_config as imagenet256_dit

EPOCH = 5004
"""Steps of 256 images."""


def get_config(size: str = "b_4"):
    """Geng et al. 2025, appendix A and the authors' code: logit-normal (-0.4, 1), p = 1.

    The guidance scale is omega / (1 - kappa): 2 of B, 2.5 of the larger.
    """
    config = imagenet256_dit(size)
    guidance = dict(omega=1.0, kappa=0.5)
    if not size.startswith("b_"):
        guidance = dict(omega=0.2, kappa=0.92, guided_times=(0.0, 0.75))
    config.model.update(unused_channels=0, scalars=("interval",), time_scale=0.001)
    config.schedule = dict(name="rectified_flow")
    config.prediction = dict(name="flow")
    config.loss = dict(
        name="mean_flow",
        mean=-0.4,
        std=1.0,
        same=0.75,
        power=1.0,
        floor=0.01,
        label_dropout=0.1,
        **guidance,
    )
    config.optimizer.b2 = 0.95
    config.train.steps = 240 * EPOCH
    config.sample = dict(solver="ddim", stride="uniform", steps=1, num_samples=16, clip="none")
    return config
