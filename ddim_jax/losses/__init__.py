"""Training methods: one file each, one signature.

    Loss = Callable[[params, frozen, batch, keys, step], (scalar, metrics)]

`batch` holds "image" [B, H, W, C] in [-1, 1] and, if labelled, "label" int32 [B]; `keys` [B] is one
key per sample, so that a loss is the same however the batch is spread over devices; `frozen` is a
teacher or a target copy, None for methods that have none.
"""

from collections.abc import Callable
from typing import Any

from ddim_jax.losses.diffusion import TIMES, WEIGHTINGS, diffusion

Loss = Callable[[Any, Any, dict, Any, Any], tuple[Any, dict]]

LOSSES: dict[str, Callable[..., Loss]] = {"diffusion": diffusion}
"""Losses by the name that configs use; made from (apply, schedule, parameterization, ...)."""

__all__ = ["LOSSES", "Loss", "TIMES", "WEIGHTINGS", "diffusion"]
