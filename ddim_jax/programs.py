"""The programs of models, kept while they may be asked for again.

Equal networks that are drawn from alike share a program, whatever their parameters, tables, texts
and guidance scales: those are its arguments. Only what decides a program is a key here.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax import adaptive_sampling, sampling
from ddim_jax.dropping import NULL, Nulled
from ddim_jax.inputs import CHANNELS, Input
from ddim_jax.networks import winograd
from ddim_jax.networks.blocks import MIDDLE
from ddim_jax.predictions import Parameterization

Array = Any


@functools.lru_cache(maxsize=16)
def apply_of(network: Any) -> Callable[..., Array]:
    """`(params, x, model_time, inputs, dropout_keys=None) -> F`: see `Model.apply`."""

    def apply(params, x, model_time, inputs, dropout_keys=None):
        variables = params if "params" in params else {"params": params}  # with other collections
        x, told = joined(x, inputs)
        return network.apply(variables, x, model_time, told, dropout_keys)

    return apply


@functools.lru_cache(maxsize=16)
def features_of(network: Any) -> Callable[..., Array]:
    """`(params, x, model_time, inputs) -> h`: see `Model.features`; what follows is not computed.

    Raises:
        ValueError: the network does not say what it makes of x.
    """

    def features(params, x, model_time, inputs):
        x, told = joined(x, inputs)
        variables = {"params": params}
        kept = network.apply(variables, x, model_time, told, mutable=["intermediates"])[1]
        if "intermediates" not in kept:
            raise ValueError(
                f"{type(network).__name__} does not say what it makes of a picture half-way; use "
                "config.model.name='unet'"
            )
        (h,) = kept["intermediates"][MIDDLE]
        return h

    return features


@functools.lru_cache(maxsize=16)
def sampler_of(
    network: Any, parameterization: Parameterization, null: Nulled | None, options: tuple
) -> Callable[..., Any]:
    """The jitted sampler: see `Model.sampler`; adaptive where the options have a schedule."""
    chosen = dict(options) | {"null_inputs": null}
    if "schedule" not in chosen:
        return sampling.make_sampler(apply_of(network), parameterization, **chosen)
    schedule = chosen.pop("schedule")
    make = adaptive_sampling.make_adaptive_sampler
    return make(apply_of(network), parameterization, schedule, **chosen)


def winograd_of(
    network: Any, sample_shape: tuple[int, ...], declared: tuple, params: Any
) -> dict[str, Any]:
    """Winograd's kernels of the network's convolutions, one made after the other."""

    def made(params):
        told = example(sample_shape, dict(declared))
        return network.apply({"params": params}, *told, mutable=[winograd.COLLECTION])[1]

    shapes = jax.eval_shape(made, params).get(winograd.COLLECTION, {})  # none of bfloat16
    plain = flatten_dict(params)
    kernels = {path: _transform(plain[path]) for path in flatten_dict(shapes)}
    return unflatten_dict(kernels)


_transform = jax.jit(winograd.transform)


def example(sample_shape: tuple[int, ...], declared: Mapping[str, Input]) -> tuple:
    """x, t and inputs of one sample, for shapes, as the network takes them."""
    inputs = {name: jnp.ones((1, *put.shape), put.dtype) for name, put in declared.items()}
    x, told = joined(jnp.zeros((1, *sample_shape)), inputs)
    return x, jnp.ones(1), told


def joined(x: Array, inputs: Mapping[str, Any]) -> tuple[Array, dict[str, Array]]:
    """What a network takes: x with the further channels behind its own, and its own inputs."""
    told = {name: value for name, value in inputs.items() if name not in (NULL, CHANNELS)}
    if CHANNELS in inputs:
        x = jnp.concatenate([x, inputs[CHANNELS].astype(x.dtype)], axis=-1)
    return x, told
