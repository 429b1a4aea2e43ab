"""Trains a model: `python train.py [--config=digits] [--workdir=runs/digits]`.

Any field of the config can be overridden: `--config.train.steps=500`. The same command resumes an
interrupted run. `ddim_jax/commands/train.py` has the flags, `ddim_jax/training/loop.py` the run.
"""

from ddim_jax import interrupts

if __name__ == "__main__":
    interrupts.begin()  # before the imports that take seconds
    from ddim_jax.commands import train

    train.main()
