"""What benchmarks share: models of config files, and timing by turns."""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from ddim_jax import experiment
from ddim_jax.model import Model


def load_config(config_file: str) -> ml_collections.ConfigDict:
    """The config of a file, with the shape and classes of its data."""
    spec = importlib.util.spec_from_file_location("config", Path(config_file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return experiment.resolve(module.get_config())


def load(config_file: str) -> Model:
    """The model of a config file, without parameters."""
    return experiment.build(load_config(config_file))


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Wall-clock seconds [repeats] of each call, taken in turns after one that does not count.

    Results of JAX are waited for.
    """
    taken = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def ratio(ours: np.ndarray, theirs: np.ndarray) -> str:
    """ours / theirs, of the minima and of the medians."""
    return f"{ours.min() / theirs.min():.2f} ({np.median(ours) / np.median(theirs):.2f})"
