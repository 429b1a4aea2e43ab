r"""SiT on ImageNet at 256 x 256: DiT's network on a flow; SiT-XL/2, 674,834,720 parameters.

    python train.py --config=imagenet256_sit --config.data.name=latents:imagenet256 \
        --config.codec.start_from=FOLDER

Data and autoencoder are those of `imagenet256_dit`. The authors trained 7M steps on TPU v4s. Their
clock, from noise at 0 to data at 1, unscaled, and their velocity, data - noise, are followed, so
that their weights are such a run's too. Published, not ours: at guidance scale 1.5, FID 2.06 by 250
steps of an SDE and 2.15 by 250 evaluations of Heun's method (Ma et al. 2024, arXiv:2401.08740).
"""

from configs.imagenet256_dit import get_config as imagenet256_dit


def get_config(size: str = "xl_2"):
    """Ma et al. 2024, section 3, and the authors' train.py: linear path, velocity, uniform t."""
    config = imagenet256_dit(size)
    config.schedule = dict(name="rectified_flow", model_time="to_data")
    config.prediction = dict(name="data_flow")
    config.sample.update(solver="heun_flow", steps=125)
    return config
