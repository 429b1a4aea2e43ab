"""Training: the state, the one train step, checkpoints, and the loop that runs them."""

from ddim_jax.training.loop import train
from ddim_jax.training.state import TrainState
from ddim_jax.training.step import make_optimizer, make_step

__all__ = ["TrainState", "make_optimizer", "make_step", "train"]
