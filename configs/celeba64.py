"""DDIM's model of CelebA at 64 x 64.

    tfds build celeb_a --file_format=array_record        (once, where tensorflow is installed)
    python train.py --config=celeba64

Crops faces to their central 178 x 178 square. The authors cut 128 x 128 pixels closer around the
face, so their figures are for other images than these; to compare, crop as they do and use
`folder:PATH`. Published, not ours (Song et al. 2021, arXiv:2010.02502, table 1, uniform stride):
FID at 10, 20, 50, 100, 1000 steps with eta = 0: 17.33, 13.73, 9.17, 6.53, 3.51.
"""

from configs.cifar10 import get_config as cifar10


def get_config():
    """The authors' network: CIFAR-10's with a fifth level."""
    config = cifar10()
    config.data.update(name="celeb_a", resize=64)
    config.model.channel_mults = (1, 2, 2, 2, 4)
    config.train.steps = 500_000
    config.sample.update(stride="uniform", num_samples=36)
    return config
