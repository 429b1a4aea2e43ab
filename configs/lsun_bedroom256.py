"""DDPM on LSUN bedrooms at 256 x 256: 113.7M parameters.

    tfds build lsun/bedroom --file_format=array_record   (once, where tensorflow is installed)
    python train.py --config=lsun_bedroom256 --config.model.remat=blocks

The paper trained 2.4 million steps of batch 64 on a TPU v3-8. Published, not ours (Song et al.,
arXiv:2010.02502, table 3): FID at 10, 20, 50, 100 steps with eta = 0: 16.95, 8.89, 6.75, 6.62, and
6.36 at 1000 steps of DDPM.
"""

from configs.cifar10 import get_config as cifar10


def get_config():
    """Ho et al. 2020, appendix B."""
    config = cifar10()
    config.data.update(name="lsun/bedroom", resize=256, flip=False)
    config.model.update(channel_mults=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,), dropout=0.0)
    config.optimizer.learning_rate = 2e-5
    config.train.update(steps=2_400_000, batch_size=64)
    config.sample.update(stride="uniform", num_samples=8)
    return config
