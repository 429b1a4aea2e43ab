"""From a config to the model it describes, before it has weights.

A config (see `configs/`) is an `ml_collections.ConfigDict` with the sections `data`, `model`,
`schedule`, `prediction`, `loss`, `optimizer`, `ema`, `train` and `sample`. A section with a `name`
is that function's options, so `schedule = {name: "cosine", log_snr_min: -15}` is
`schedules.cosine(log_snr_min=-15)`. What only training needs is built in `training/method.py`.
"""

from typing import Any

import ml_collections

from ddim_jax import codecs
from ddim_jax.inputs import Inputs
from ddim_jax.model import Model
from ddim_jax.names import check_options, lookup, make
from ddim_jax.networks import NETWORKS
from ddim_jax.predictions import PREDICTIONS
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import SCHEDULES


def build(config: ml_collections.ConfigDict) -> Model:
    """The model that a config describes, without parameters.

    Raises:
        ValueError: an unknown name or option, or a schedule that the prediction cannot serve.
    """
    schedule = make(SCHEDULES, config.schedule, "schedule")
    if config.prediction.name == "eps" and schedule.level(schedule.t_span[0]).alpha == 0:
        raise ValueError(
            f"prediction 'eps' says nothing about x0 where alpha = 0, as {schedule.name} is at its "
            "noisy end; use prediction 'v' or 'flow'"
        )
    network = build_network(config.model)
    return Model(
        network=network,
        params=None,
        schedule=schedule,
        parameterization=make(PREDICTIONS, config.prediction, "prediction"),
        inputs=Inputs(network.inputs, tuple(config.data.get("class_names") or ())),
        codec=codecs.pixels(tuple(config.data.image_shape)),
        recipe=Recipe.of(config),
        config=config,
    )


def build_network(section: ml_collections.ConfigDict) -> Any:
    """The network of a config's section `model`: a name in `NETWORKS`, default "unet", and options.

    Raises:
        ValueError: an unknown name or option.
    """
    options = dict(section)
    if not options.get("vector_dim"):  # which version 0.1 had, and nothing could use
        options.pop("vector_dim", None)
    network = lookup(NETWORKS, options.pop("name", "unet"), "network")
    check_options(network, options, "model")
    return network(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
