"""What a model can be asked for: guidance, sizes, lengths; refused before any work."""

from typing import Any

import numpy as np

from ddim_jax.names import check_range
from ddim_jax.recipe import ADAPTIVE, Recipe

Model = Any

WEAK_IN_FEW_STEPS = ("heun", "plms", "s_pndm", "pndm")
"""Solvers whose first steps leave the data where these are few and long."""


def notes(model: Model, recipe: Recipe) -> list[str]:
    """What is allowed and still disappoints in a recipe, in a sentence each; mostly none."""
    if recipe.solver == ADAPTIVE:
        return []
    steps, loss = len(recipe.times(model.schedule)) - 1, model.config.loss
    found = []
    if loss.get("name") == "progressive" and steps > loss.get("steps", steps):
        found.append(
            f"{model.name} was distilled for {loss.steps} steps: more of them are not better"
        )
    if loss.get("name") == "distribution_matching" and steps != loss.get("steps", 1):
        own = loss.get("steps", 1)
        found.append(f"{model.name} was trained for {own} steps: more or fewer are not better")
    if recipe.solver in WEAK_IN_FEW_STEPS and steps <= 3:
        found.append(
            f"{recipe.solver} in {steps} steps is far worse than ddim; below 4 steps take "
            "ddim, dpm_solver++_2m or unipc_2"
        )
    return found


def check(model: Model, recipe: Recipe) -> None:
    """Raises ValueError for what a network was not trained for: guidance, or to draw."""
    name = model.name
    if model.config.loss.get("name") == "autoencoder":
        raise ValueError(
            f"{name} is an autoencoder and draws nothing; config.codec.start_from names "
            "it where a network of its latents is trained"
        )
    guided, channels = recipe.guidance_scale != 1, model.sample_shape[-1]
    if (recipe.guidance_channels or 0) > channels:
        raise ValueError(
            f"guidance_channels must be at most the {channels} channels of {name}'s "
            f"samples, got {recipe.guidance_channels}; leave it out to guide all"
        )
    if model.inputs.takes("guidance"):
        _check_distilled_guidance(model, recipe)
    elif guided and not model.inputs.null:
        raise ValueError(
            f"{name} is unconditional: guidance needs a class-conditional network; use "
            "guidance_scale=1"
        )
    elif guided and not knows_null(model):
        raise ValueError(
            f"{name} was trained without label dropout, so it has no null label to guide "
            "away from; use guidance_scale=1"
        )


def knows_null(model: Model) -> bool:
    """Whether a network has learnt to draw without its inputs, and can be guided away from that."""
    config = model.config
    dropped = (config.get("loss") or {}).get("label_dropout", 0)
    return bool(dropped and config.model.get("null_label", True))


def _check_distilled_guidance(model: Model, recipe: Recipe) -> None:
    """Raises ValueError unless a network that is told its guidance scale can follow a recipe."""
    low, high = model.config.loss.get("guidance") or (1.0, 1.0)
    if not low <= recipe.guidance_scale <= high:
        raise ValueError(
            f"{model.name} was distilled for guidance scales {low} to {high}, got "
            f"{recipe.guidance_scale}; choose a guidance_scale between them"
        )
    where = (recipe.guidance_rescale, recipe.guidance_channels)
    if tuple(recipe.guidance_interval) != (0, np.inf) or any(where):
        raise ValueError(
            f"{model.name} is told its guidance scale and guides within one evaluation: "
            "leave out guidance_interval, guidance_rescale and guidance_channels"
        )


def shape(model: Model, size: tuple[int, int] | None, frames: int | None) -> tuple[int, int, int]:
    """(height, width, frames; 0 of pictures) of what is drawn; None stands for the model's own.

    Raises:
        ValueError: what its network or its codec cannot serve; frames of pictures.
    """
    return *_size(model, size), _frames(model, frames)


def _size(model: Model, size: tuple[int, int] | None) -> tuple[int, int]:
    own = height, width = model.codec.size
    if size is None:
        return own
    if np.shape(size) != (2,) or not all(side == int(side) for side in size):
        raise ValueError(f"size must be two whole numbers, height and width, got {size!r}")
    size = (int(size[0]), int(size[1]))
    if size == own:
        return own
    least = getattr(model.network, "multiple", 0) * (height // model.sample_shape[-3])
    if not least:
        raise ValueError(f"{model.name} draws pictures of {height} x {width} alone: give no size")
    for side in size:
        if side < least or side % least:
            raise ValueError(
                f"{model.name} draws pictures whose sides are multiples of {least}, got "
                f"{size[0]} x {size[1]}; for {side} take {max(1, round(side / least)) * least}"
            )
    return size


def _frames(model: Model, frames: int | None) -> int:
    own = model.codec.frames
    if frames is None:
        return own
    if not own:
        raise ValueError(
            f"{model.name} draws pictures: frames={frames} needs a network of clips, such as "
            "--config=moving_digits trains"
        )
    return check_range("frames", frames, "[1, 65536]", f"{own} are usual", whole=True)
