"""What benchmarks share: models of config files, and timing by turns."""

import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from ddim_jax import experiment, parallel
from ddim_jax.model import Model
from ddim_jax.training import loop
from ddim_jax.training.method import build


def load_config(config_file: str) -> ml_collections.ConfigDict:
    """The config of a file, with the shape and classes of its data."""
    spec = importlib.util.spec_from_file_location("config", Path(config_file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return experiment.resolve(module.get_config())


def load(config_file: str) -> Model:
    """The model of a config file, without parameters."""
    return experiment.build(load_config(config_file))


def our_training(config: ml_collections.ConfigDict, batch: int):
    """(parameters, a call that takes a step): as train.py takes it, its images in host memory."""
    config.train.batch_size = batch
    mesh = parallel.make_mesh()
    method = build(config, None, mesh)
    state = loop.init_state(config, method, None, mesh)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    rng = np.random.default_rng(0)
    rows = {
        "image": rng.integers(0, 256, (batch, *method.model.sample_shape), np.uint8),
        "label": np.zeros(batch, np.int32),
        "row": np.arange(batch, dtype=np.int32),
    }

    def take():
        nonlocal state
        state, metrics = method.step(state, parallel.shard(rows, mesh))
        return metrics

    return count, take


def alternate(
    calls: dict[str, Callable[[], Any]], repeats: int, seconds: float = math.inf
) -> dict[str, np.ndarray]:
    """Wall-clock seconds [repeats] of each call, taken in turns after one that does not count.

    Results of JAX are waited for. There are fewer turns, but one, where all take `seconds`.
    """
    taken, end = {name: [] for name in calls}, time.perf_counter() + seconds
    for turn in range(repeats + 1):
        if turn > 1 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def ratio(ours: np.ndarray, theirs: np.ndarray) -> str:
    """ours / theirs, of the minima and of the medians."""
    return f"{ours.min() / theirs.min():.2f} ({np.median(ours) / np.median(theirs):.2f})"
