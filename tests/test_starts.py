"""Every method from every start: bundled digits, a Stable Diffusion, a DiT; whole or by factors.

The student begins as its teacher, whatever inputs it has beside: bit for bit, at any value of them.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ddim_jax import checkpoints, parallel
from ddim_jax.commands import configs
from ddim_jax.training import loop, method, teacher
from tests import published_pipelines as published
from tests.errors import rejects
from tests.latent_networks import random
from tests.selection import slow_but

GRID = dict(name="grid", sigma_min=0.0)
METHODS = {
    # loss, scalars; of a network that predicts eps too, as all of Stable Diffusion 1 and DiT do
    "guided": (dict(name="guided", guidance=(1.0, 4.0)), ("guidance",)),
    "progressive": (dict(name="progressive", steps=4), ()),
    "consistency": (dict(name="consistency", distil=True, pairs=GRID), ()),
    "lcm": (dict(name="consistency", distil=True, pairs=GRID, guidance=(3.0, 15.0)), ()),
    "scm": (dict(name="continuous_consistency", distil=True), ()),
    "lsd": (dict(name="flow_map", kind="lsd", distil=True), ("interval",)),
    "psd": (dict(name="flow_map", kind="psd", distil=True), ("interval",)),
    "ayf": (
        dict(name="flow_map", kind="esd", distil=True, tangent_floor=0.1, guidance=(1.0, 3.0)),
        ("interval", "guidance"),
    ),
    "imm": (dict(name="moment_matching", group=1), ("interval",)),
    "dmd": (dict(name="distribution_matching", start=2.5), ()),
    "sid": (dict(name="distribution_matching", objective="sid", start=2.5), ()),
}
GUIDES = {"lcm": dict(name="classifier_free"), "ayf": dict(name="classifier_free")}
STARTS = ("digits", "sd", "dit")
FACTORS = {"whole": None, "factors": dict(rank=2, targets="attention")}
REFUSED = {
    # method, start -> why, and the way out
    ("progressive", "dit"): "a teacher that predicts eps is converted first by a stage",
}
CASES = [f"{m} {s} {f}" for m in METHODS for s in STARTS for f in FACTORS]
ALWAYS = ("lsd digits whole",)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Loads what a run starts from, of which no parameter is zero."""
    folder = tmp_path_factory.mktemp("published")

    @functools.cache
    def load(name):
        if name != "digits":
            name = published.write(folder / name, name)
        model = checkpoints.load(str(name), accelerated=False)
        move = lambda leaf: leaf + 0.02 * random(str(leaf.shape), *leaf.shape)  # noqa: E731
        return model.replace(params=jax.tree.map(move, model.params))

    return load


def config_of(name, start, factors):
    """The config of a run: what it learns, and nothing of the network but new inputs."""
    loss, scalars = METHODS[name]
    config = ml_collections.ConfigDict(
        dict(
            seed=0, parallel="jit", start_from="start", loss=loss,
            data=dict(name="digits", image_shape=start.codec.picture_shape, flip=False,
                      cache=start.draws_latents),
            train=dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, keep=1,
                       sample_every=0),
            optimizer=dict(name="adam", learning_rate=1e-3), ema=dict(name="constant"),
            sample=dict(num_samples=1, solver="ddim", stride="uniform", steps=4,
                        guidance_scale=1.0),
        )
    )  # fmt: skip
    with config.unlocked():
        if scalars:
            config.model = dict(scalars=scalars)
        if name in GUIDES:
            config.guide = GUIDES[name]
        if factors:
            config.train.lora = factors
        if loss["name"] == "distribution_matching":
            config.sample.update(
                solver="consistency", solver_options=dict(sigma_min=0.0), stride="uniform",
                stride_options=dict(lam_min=-np.log(2.5)), steps=1,
            )  # fmt: skip
    return teacher.resolve(config, start)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd_lcm_lora sd", "sd_dmd2 sd", "imagenet256_dmd2 dit"])
def test_the_configs_for_published_networks(name, start):
    """At tiny size; nothing is compiled."""
    name, begun = name.split()
    model, mesh = start(begun), parallel.make_mesh()
    config = configs.load(name, [("start_from", "start"), ("data.cache", "True")])
    config.train.batch_size = 2
    config = teacher.resolve(config, model)
    built = method.build(config, model, mesh)
    assert built.model.network.remat == config.model.get("remat", "none")
    traced(config, built, model, mesh)
    if config.get("teacher_dtype") == "bfloat16":
        held = loop.abstract_state(config, built, model, mesh).frozen["teacher"]
        assert {leaf.dtype.name for leaf in jax.tree.leaves(held)} == {"bfloat16"}


@pytest.mark.parametrize("case", slow_but(CASES, ALWAYS))
def test_the_student_begins_as_its_teacher(case, start):
    name, begun, kind = case.split()
    model, factors = start(begun), FACTORS[kind]
    config, mesh = config_of(name, model, factors), parallel.make_mesh()
    message = REFUSED.get((name, begun))
    if message:
        with rejects(ValueError, message):
            method.build(config, model, mesh)
        return
    built = method.build(config, model, mesh)
    params = first_params(built, model)
    traced(config, built, model, mesh)
    student, level = method.net(built.model), model.schedule.level(jnp.array([0.3, 0.8]))
    x, inputs = samples(model), inputs_of(model)
    if begun not in EXPECTED:
        predict = jax.jit(method.net(model).predict)
        EXPECTED[begun] = predict(model.params, x, level, inputs)
    scalars = {n: jnp.array([0.7, 2.5]) for n in METHODS[name][1]}
    found = jax.jit(student.predict)(params, x, level, inputs | scalars)
    for ours, theirs in zip(found, EXPECTED[begun], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def first_params(built, start):
    """Those that a run begins with, of the student; factors merged."""
    taken = teacher.take_over(start, built.model)
    params = teacher.merge(initial(built.model), taken)
    if built.low_rank is None:
        return params
    return built.low_rank.merge(params, built.low_rank.init(jax.random.key(2), params))


INITIAL, EXPECTED = {}, {}
"""Parameters of new networks, and what each start says: computed once."""


def initial(model):
    """A new network's parameters, once for each network."""
    if model.network not in INITIAL:
        INITIAL[model.network] = jax.jit(model.init)(jax.random.key(1))
    return INITIAL[model.network]


def traced(config, built, start, mesh):
    """The step can be taken; nothing is compiled."""
    state = loop.abstract_state(config, built, start, mesh)
    told = built.model.inputs.declared | start.inputs.declared
    batch = {"image": jax.ShapeDtypeStruct((2, *built.model.sample_shape), np.float32)}
    batch |= {n: jax.ShapeDtypeStruct((2, *put.shape), put.dtype) for n, put in told.items()}
    after, metrics = jax.eval_shape(built.step, state, batch)
    assert jax.tree.structure(after.params) == jax.tree.structure(state.params)


def samples(model):
    return jnp.asarray(random("x", 2, *model.sample_shape), jnp.float32)


def inputs_of(model):
    """Some inputs of two samples."""
    made = {}
    for name, put in model.inputs.declared.items():
        rows = (2, *put.shape)
        made[name] = jnp.zeros(rows, put.dtype) if "int" in put.dtype else random(name, *rows)
    return made
