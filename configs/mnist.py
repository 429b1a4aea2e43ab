"""The demo digits: class-conditional, v-prediction, 1.5M parameters, 60,000 training images.

    python train.py --config=mnist
    python train.py --config=mnist --config.data.name=npz:mnist.npz

The first form needs TFDS's mnist, prepared; the second an npz file with train_x and train_y. Trains
the network that comes with the package and that `python sample.py` draws with: 6,000 steps in 81
minutes on 2 CPU cores that other work shared.
"""

from configs.digits import get_config as digits


def get_config():
    """The digits network on all of MNIST's training images, with a cosine decay to 0."""
    config = digits()
    config.data.name = "mnist"
    config.optimizer.decay = "cosine"
    config.train.update(
        steps=6000, batch_size=64, log_every=50, checkpoint_every=250, sample_every=500
    )
    return config
