"""The optax optimizer that a config names: Adam and its kin, warm-up, decay, clipping."""

import optax

OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "radam": optax.radam}


def make_optimizer(
    name: str = "adam",
    learning_rate: float = 2e-4,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    decay: str = "cosine",
    clip_norm: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Adam, AdamW or RAdam with warm-up, optional decay to 0, and global-norm clipping.

    Args:
        name: "adam", "adamw" or "radam".
        learning_rate: after warm-up.
        warmup_steps: of a linear rise from 0.
        decay_steps: total steps of a fall to 0, warm-up included; 0: constant.
        decay: its shape, "cosine" or "linear".
        clip_norm: of the whole gradient; 0: none.
        weight_decay: of adamw.
        b1: decay of the first moment.
        b2: decay of the second moment.

    Raises:
        ValueError: unknown name, a rate that is not positive, weight decay without adamw, decay
            shorter than warm-up.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    if decay not in ("cosine", "linear"):
        raise ValueError(f"decay must be 'cosine' or 'linear', got {decay!r}")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}; DDPM uses 2e-4")
    if name != "adamw" and weight_decay:
        raise ValueError(f"weight_decay={weight_decay} needs optimizer 'adamw'")
    if decay_steps and decay_steps <= warmup_steps:
        raise ValueError(f"decay_steps ({decay_steps}) must exceed warmup_steps ({warmup_steps})")
    rate = _rate(learning_rate, warmup_steps, decay_steps, decay)
    options = {"weight_decay": weight_decay} if name == "adamw" else {}
    adam = OPTIMIZERS[name](rate, b1, b2, **options)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam) if clip_norm else adam


def _rate(top: float, warmup_steps: int, decay_steps: int, decay: str):
    """The learning rate: linearly up, then constant or down to 0."""
    rate = top
    if decay_steps:
        length = decay_steps - warmup_steps
        linear = optax.linear_schedule(top, 0.0, length)
        rate = linear if decay == "linear" else optax.cosine_decay_schedule(top, length)
    if warmup_steps:
        after = rate if decay_steps else optax.constant_schedule(top)
        rise = optax.linear_schedule(0.0, top, warmup_steps)
        rate = optax.join_schedules([rise, after], [warmup_steps])
    return rate
