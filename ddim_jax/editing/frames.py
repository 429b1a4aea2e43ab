"""Clips of which some frames are known: a first frame to go on from, gaps to fill, more to draw.

`known_frames` is a task for any sampler, of a network that has learnt a noise level for each frame
(`config.loss.frame_levels`): known frames are put in at every row and the network is told that they
are clean, so that nothing is noised again. Longer clips are drawn window by window, the last frames
of each known in the next; or with a table in which each frame has rows of its own
(`solvers.staggered`).

`roll_out` draws with a causal network a few frames at a time, any number of them. What the network
keeps of the frames before spares evaluating these again: the result is that of `known_frames`.

Source: Chen et al. 2024 (arXiv:2407.01392), section 3.3.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddim_jax import sampling
from ddim_jax.denoisers import Denoiser
from ddim_jax.dropping import NULL
from ddim_jax.guidance import Guidance
from ddim_jax.networks.frames import CACHE
from ddim_jax.predictions import Prediction, expand, in_pairs, split_known
from ddim_jax.sampling import Task
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.solvers import SolverTable

Array = Any


class KnownFrames(NamedTuple):
    """The frames of clips that are known.

    Attributes:
        clip: [B, T, H, W, C] samples; what the others hold does not matter.
        known: bool [B, T].
    """

    clip: Array
    known: Array


@functools.lru_cache(maxsize=8)  # one task, one program
def known_frames(schedule: Schedule) -> Task:
    """The task of drawing the other frames of clips, whose data are `KnownFrames`.

    Args:
        schedule: of the network.
    """
    clean = clean_level(schedule)

    def wrap(denoise: Denoiser, given: KnownFrames) -> Denoiser:
        mask = expand(given.known, given.clip) > 0

        def of_others(x: Array, level: NoiseLevel) -> Prediction:
            pairs = zip(clean, level, strict=True)
            own = NoiseLevel(*(jnp.where(given.known, of, field) for of, field in pairs))
            found = denoise(jnp.where(mask, given.clip, x), own)
            level, _ = split_known(level)
            eps = (x - expand(level.alpha, x) * given.clip) / expand(level.sigma, x)
            return Prediction(
                jnp.where(mask, given.clip, found.x0), jnp.where(mask, eps, found.eps)
            )

        return of_others

    def constrain(x: Array, level: NoiseLevel, keys: Array, given: KnownFrames) -> Array:
        mask = (expand(given.known, x) > 0) & (expand(level.sigma, x) == 0)
        return jnp.where(mask, given.clip, x)

    return Task(wrap, constrain)


def clean_level(schedule: Schedule) -> NoiseLevel:
    """The level that known frames are told: no noise, the cleanest model time."""
    return schedule.level(jnp.float32(schedule.t_span[1]))


def roll_out(
    model: Any,
    table: SolverTable,
    noise: Array,
    keys: Array,
    inputs: dict[str, Array],
    *,
    guidance: Guidance | None = None,
    seen: Array | None = None,
    at_a_time: int = 1,
) -> Array:
    """Draws clips of any length a few frames at a time, with a causal network. It can be jitted.

    Args:
        model: a `Model` with a causal network of clips, which has learnt a level for each frame.
        table: that every few frames are drawn along.
        noise: [B, T, H, W, C], what frames start from; T a multiple of `at_a_time`.
        keys: [B], one a clip.
        inputs: name -> [B, ...], what the network is told.
        guidance: its strength; None for none.
        seen: [B, K, H, W, C], frames that come before; None for none.
        at_a_time: frames drawn together.

    Returns:
        [B, K + T, H, W, C].

    Raises:
        ValueError: a network that is not causal, a T that is no multiple.
    """
    batch, frames = noise.shape[:2]
    if not getattr(model.network, "causal", False):
        raise ValueError(f"{model.name} is not causal: draw longer clips window by window")
    if at_a_time < 1 or frames % at_a_time:
        raise ValueError(f"at_a_time must divide the {frames} frames, got {at_a_time}")
    told = {name: value for name, value in inputs.items() if name != NULL}
    if guidance is not None:  # both halves of the batch keep frames of their own
        null = model.inputs.nulled(inputs)
        told = {name: in_pairs(null[name], value) for name, value in told.items()}
    level = clean_level(model.schedule)
    scale = jnp.asarray(model.parameterization(level).input_scale, noise.dtype)

    def keep(cache: Any, x: Array) -> Any:
        """The cache after these clean frames too."""
        x = x if guidance is None else in_pairs(x, x)
        t = jnp.broadcast_to(level.model_time, len(x))
        variables = {"params": model.params, CACHE: cache} if cache else {"params": model.params}
        return model.network.apply(variables, scale * x, t, told, mutable=[CACHE])[1][CACHE]

    denoiser = sampling.make_denoiser(
        model.apply, model.parameterization, model.inputs.nulled, model.recipe.clip, None
    )

    def next_few(cache: Any, part: tuple[Array, Array]) -> tuple[Any, Array]:
        x, number = part
        own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        denoise = denoiser({"params": model.params, CACHE: cache}, inputs, guidance)
        x = sampling.run(denoise, table, x, own, frame_noise=model.frame_noise).x
        return keep(cache, x), x

    seen = noise[:, :0] if seen is None else seen
    whole = jnp.zeros((batch, seen.shape[1] + frames, *noise.shape[2:]), noise.dtype)
    shapes = jax.eval_shape(lambda: keep(None, whole))
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    cache = keep(cache, seen) if seen.shape[1] else cache
    parts = noise.reshape(batch, -1, at_a_time, *noise.shape[2:]).swapaxes(0, 1)
    _, drawn = jax.lax.scan(next_few, cache, (parts, jnp.arange(len(parts))))
    drawn = drawn.swapaxes(0, 1).reshape(noise.shape)
    return jnp.concatenate([seen, drawn], axis=1)
