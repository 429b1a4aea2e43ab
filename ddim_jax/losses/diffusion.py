"""Denoising: regress what the network predicts, at random noise levels.

    t ~ times,  eps ~ N(0, I),  x = alpha x0 + sigma eps,  loss = weight * mean (F - target)^2

Flow matching is this loss with `schedule = rectified_flow` and `prediction = flow`; reflow is that
on pairs of an image and the noise it was drawn from (`data.noise_pairs`).

Clips may have a level for each frame, so that one network draws them, goes on from frames that are
known, fills in between and draws frame behind frame; known frames have no noise and no loss. The
frames of some clips may be cut apart, which trains the network of pictures within.

Sources: Ho et al. 2020 (arXiv:2006.11239); Salimans & Ho 2022 (arXiv:2202.00512), section 4;
Liu et al. 2022 (arXiv:2209.03003), equation 1 and algorithm 1; Ho & Salimans 2022
(arXiv:2207.12598, label dropout); Chen et al. 2024 (arXiv:2407.01392, levels of frames); Ho et al.
2022 (arXiv:2204.03458), section 3.1 (pictures beside clips).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddim_jax.dropping import ALONE
from ddim_jax.losses.loss import (
    Loss,
    Net,
    add_noise,
    check_dropout,
    conditions,
    regress,
    split,
)
from ddim_jax.losses.time_samplers import TimeSampler, of_frames, uniform
from ddim_jax.losses.weightings import Weighting
from ddim_jax.names import check_range
from ddim_jax.predictions import Prediction, predict
from ddim_jax.sampling import initial_noise

Array = Any


def diffusion(
    net: Net,
    *,
    times: TimeSampler | None = None,
    weighting: Weighting | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
    label_dropout: float = 0.0,
    frame_levels: tuple[float, float] | None = None,
    alone: float = 0.0,
) -> Loss:
    """The denoising loss; on data from `data.noise_pairs` with the noise of each pair (reflow).

    Args:
        net: the network.
        times: keys [B] -> t [B]; default `uniform(schedule)`.
        weighting: weight on the squared error of x0, by lam; None is "simple".
        distance: function of two batches of images [B, H, W, C] that replaces the squared error,
            such as `lpips.load(path)` for one-step distillation; without a weighting.
        label_dropout: probability that the inputs of a row become null.
        frame_levels: of clips, the shares of those with one level for all frames and of those with
            some frames known, see `time_samplers.of_frames`; None: one level for all.
        alone: of clips, probability that frames are cut apart, where the batch does not say it.

    Returns:
        The loss; its metrics are those of `regress`.

    Raises:
        ValueError: a probability outside [0, 1], or a distance and a weighting.

    Source: Ho et al. 2020, equation 14; Salimans & Ho 2022, section 4.
    """
    check_dropout(label_dropout)
    if distance is not None and (weighting is not None or not callable(distance)):
        raise ValueError(
            f"config.loss.distance must be lpips:FILE, without a weighting, got {distance!r} and "
            f"{'a' if weighting else 'no'} weighting; leave it out for the squared error"
        )
    check_range("config.loss.alone", alone, "[0, 1]", "0.1 is usual")
    times = times or uniform(net.schedule)
    of_clips = frame_levels and of_frames(net.schedule, times, frame_levels)

    def compute(params, frozen, batch, keys, step):
        x0 = batch["image"]
        t_key, eps_key, drop_key, dropout_keys, alone_key = split(keys, 5)
        t = of_clips(t_key, x0.shape[1]) if of_clips else times(t_key)
        level = net.schedule.level(t)
        if "noise_key" in batch:  # a coupled pair: the image was drawn from this very noise
            pair_keys = jax.random.wrap_key_data(batch["noise_key"])
            eps = initial_noise(pair_keys, x0.shape[1:], net.frame_noise)
        else:
            eps = net.noise(eps_key, x0)
        x = add_noise(x0, eps, level)
        inputs = conditions(batch, drop_key, net.null, label_dropout)
        if alone and ALONE not in inputs:
            inputs[ALONE] = jax.vmap(jax.random.uniform)(alone_key) < alone
        output = net.output(params, x, level, inputs, dropout_keys)
        lam, wanted = net.schedule.half_log_snr(level.t), Prediction(x0, eps)
        value, metrics = regress(output, net.parameterization, level, lam, wanted, weighting)
        if distance is not None:
            x0_hat = predict(net.parameterization, x, level, output).x0
            value = jnp.mean(distance(x0_hat, x0))
        return value, metrics | {"loss": value}

    return Loss(compute)
