"""Training: `state` and `step` are pure, `checkpoints` keeps them, `loop.train` runs them."""
