"""Guided teachers: every loss that has one sees the guided prediction, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from ddim_jax import checkpoints, experiment, losses, parallel, predictions, schedules
from ddim_jax.checkpoints import weights_file
from ddim_jax.commands import configs
from ddim_jax.guidance import Guidance
from ddim_jax.guidance import autoguidance as network_autoguidance
from ddim_jax.losses import Net
from ddim_jax.losses.guides import autoguidance, classifier_free
from ddim_jax.predictions import expand
from ddim_jax.training import guide, loop, method
from tests.errors import rejects
from tests.latent_networks import random
from tests.selection import slow_but
from tests.tiny import tiny

COSINE = schedules.cosine()
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(16))
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (16, 3)), jnp.float32)
BATCH = {"image": IMAGES, "label": jnp.arange(16, dtype=jnp.int32) % 3}
NULL = {"label": 3}


def apply(p, x, model_time, inputs, keys=None):
    """v is known for every label; 3 is the null label."""
    return jnp.sin(p * x) + expand(inputs["label"].astype(x.dtype), x)


STUDENT = Net(apply, COSINE, predictions.v, NULL)


def known(g=None):
    """What a teacher says that is guided by g, or by each row's own scale; at the clean end too."""

    def guided(p, x, level, inputs):
        scale = inputs["guidance"] if g is None else g
        return jnp.sin(p * x) + expand(3 + scale * (inputs["label"] - 3.0), x)

    return STUDENT._replace(guided=guided)


METHODS = {
    "guided": dict(weighting=None),
    "progressive": dict(steps=4),
    "consistency": dict(pairs=losses.PAIRS["grid"](sigma_min=0.0), distil=True),
    "continuous_consistency": dict(distil=True),
    "lsd": dict(kind="lsd", distil=True),
    "esd": dict(kind="esd", distil=True),
    "psd": dict(kind="psd", distil=True),
    "dmd": dict(objective="dmd"),
    "sid": dict(objective="sid"),
}
"""Every loss that has a teacher, with options."""
NAMES = {"lsd": "flow_map", "esd": "flow_map", "psd": "flow_map"} | dict.fromkeys(
    ("dmd", "sid"), "distribution_matching"
)


def values(name, teacher, params=0.7, **options):
    """The loss of a student against a teacher, and its gradient."""
    loss = losses.LOSSES[NAMES.get(name, name)](
        STUDENT, teacher=teacher, **METHODS[name], **options
    )
    own = {"student": jnp.float32(0.9), "critic": jnp.float32(0.8)}
    own = own if loss.parts else jnp.float32(0.9)
    frozen = {"teacher": params, "target": jnp.float32(0.85)}
    both = jax.value_and_grad(lambda p: loss(p, frozen, BATCH, KEYS, jnp.int32(3))[0])
    return np.hstack(jax.tree.leaves(both(own)))


OFTEN = ("consistency", "lsd", "esd", "psd", "dmd", "sid")


@pytest.mark.parametrize("name", slow_but(METHODS, OFTEN))
def test_a_guided_teacher_is_what_a_loss_sees(name):
    found = values(name, classifier_free(STUDENT, 2.5))
    np.testing.assert_allclose(found, values(name, known(2.5)), rtol=2e-4, atol=2e-5)
    assert np.abs(found - values(name, STUDENT)).max() > 1e-2
    if name in ("lsd", "esd", "psd"):
        by_option = values(name, STUDENT, guidance_scale=2.5)
        np.testing.assert_allclose(by_option, found, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_each_row_is_guided_by_its_own_scale(name):
    """Which the teacher is not told, and this student neither: it learns the mean."""
    found = values(name, classifier_free(STUDENT), guidance=(1.0, 4.0))
    expected = values(name, known(), guidance=(1.0, 4.0)) if name != "guided" else None
    if name == "guided":  # a loss that guides its teacher itself, unless that is done already
        expected = values(name, STUDENT, guidance=(1.0, 4.0))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_worse_network_guides_every_loss(name):
    """F = p x and q x, label included: guided by 3 it is (q + 3 (p - q)) x."""

    def line(p, x, model_time, inputs, keys=None):
        return p * x + expand(inputs["label"].astype(x.dtype), x)

    net = Net(line, COSINE, predictions.v, NULL)
    taught = autoguidance(net, net, 3.0)
    found = values(name, taught, {"own": jnp.float32(0.7), "weak": jnp.float32(0.6)})
    np.testing.assert_allclose(found, values(name, net, jnp.float32(0.9)), rtol=2e-4, atol=2e-5)


def denoise(m, s):
    """E[x0 | x] of N(m, s^2) at a level."""
    return lambda x, level: (
        m + level.alpha * s**2 * (x - level.alpha * m) / ((level.alpha * s) ** 2 + level.sigma**2)
    )


@pytest.mark.parametrize("scale", [None, 2.0])
def test_autoguidance_of_gaussians(scale):
    """The better knows N(.3, .5^2), the worse N(0, 1), and predicts eps; rows may say their g."""
    level = COSINE.level(jnp.float32(0.4))
    better, worse = denoise(0.3, 0.5), denoise(0.0, 1.0)
    net = Net(lambda p, x, t, inputs, keys=None: better(x, level), COSINE, predictions.x0)
    eps = lambda x: (x - level.alpha * worse(x, level)) / level.sigma  # noqa: E731
    weak = Net(lambda p, x, t, inputs, keys=None: p * eps(x), COSINE, predictions.eps)
    x, g = jnp.linspace(-2, 2, 6)[:, None], jnp.arange(6.0)
    inputs = {"guidance": g} if scale is None else {}
    taught = autoguidance(net, weak, scale)
    params = {"own": jnp.float32(0), "weak": jnp.float32(1)}
    rows = level._replace(**{name: jnp.full(6, field) for name, field in level._asdict().items()})
    found = taught.predict(params, x, rows, inputs).x0
    g = g[:, None] if scale is None else scale
    expected = worse(x, level) + g * (better(x, level) - worse(x, level))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    as_networks = (lambda x, level, inputs, of=of: of(x, level) for of in (better, worse))
    again = network_autoguidance(*as_networks, Guidance(jnp.float32(2.0)))(x, level, {})
    if scale:
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)
    elsewhere = autoguidance(net, weak, 2.0, interval=(5.0, 80.0)).predict(params, x, rows, inputs)
    np.testing.assert_allclose(elsewhere.x0, better(x, level), rtol=1e-5)
    assert taught.own(params) == 0 and taught.alone.own(params) is params


def test_a_critic_starts_as_the_better_network():
    features = lambda p, x, t, inputs: x[:, None, None] * p  # noqa: E731
    net = STUDENT._replace(features=features)
    loss = losses.distribution_matching(net, teacher=autoguidance(net, net, 2.0), gan=0.1)
    params = {"own": jnp.float32(0.7), "weak": jnp.float32(0.6)}
    example = (IMAGES[:1], jnp.ones(1), {"label": jnp.zeros(1, jnp.int32)})
    parts = loss.parts.init(jax.random.key(0), params, example)
    assert parts["critic"] == np.float32(0.7) and set(parts) == {"critic", "head"}


def test_what_cannot_guide():
    with rejects(ValueError, "needs a class-conditional network"):
        classifier_free(Net(apply, COSINE, predictions.v), 2.0)
    with rejects(ValueError, "the teacher is guided twice"):
        autoguidance(classifier_free(STUDENT, 2.0), STUDENT, 2.0)
    with rejects(ValueError, "config.guide.interval must be (low, high)", "got (2, 1)"):
        classifier_free(STUDENT, 2.0, interval=(2, 1))
    with rejects(ValueError, "config.guide.scale must be"):
        classifier_free(STUDENT, np.inf)
    with rejects(ValueError, "the teacher is guided twice"):
        losses.distribution_matching(
            STUDENT, teacher=classifier_free(STUDENT, 2.0), guidance_scale=2.0
        )


# --- in a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A network of which no parameter is zero, and a worse one, as files."""
    folder = tmp_path_factory.mktemp("base")
    made = experiment.build(tiny(digits.get_config(), levels=1))
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    for name, size in (("own", 1.0), ("weak", 0.5)):
        params = jax.tree.map(lambda leaf, s=size: s * random(str(leaf.shape), *leaf.shape), shapes)
        weights_file.save(folder / f"{name}.safetensors", made.replace(params=params))
    return folder


def config(base, loss, **of_guide):
    made = tiny(digits.get_config(), levels=1)
    with made.unlocked():
        made.start_from, made.loss = str(base / "own.safetensors"), loss
        made.guide = of_guide
        if of_guide.get("weak"):
            made.guide.weak = str(base / of_guide["weak"])
    return made


MATCHING = dict(name="distribution_matching")


@pytest.mark.slow
def test_a_run_with_a_worse_network(base, tmp_path):
    """Both are kept with the run, which may not go on with others."""
    asked = config(base, MATCHING, name="autoguidance", weak="weak.safetensors", scale=2.0)
    asked.sample.update(steps=1)
    state = loop.train(asked, tmp_path)
    assert set(state.frozen["teacher"]) == {"own", "weak"}
    for name in ("own", "weak"):
        saved = checkpoints.load(base / f"{name}.safetensors").params
        jax.tree.map(np.testing.assert_array_equal, state.frozen["teacher"][name], saved)
    other = config(base, MATCHING, name="autoguidance", weak="own.safetensors", scale=2.0)
    other.sample.update(steps=1)
    with rejects(ValueError, "weak_weights is"):
        loop.train(other, tmp_path)


def test_the_step_of_a_run_can_be_traced(base):
    """The teacher of factors is the base, guided row by row; the student is not told its scale."""
    asked = config(base, dict(name="consistency", distil=True), name="classifier_free")
    asked.loss = dict(asked.loss, guidance=(3.0, 15.0), pairs=dict(name="grid", sigma_min=0.0))
    with asked.unlocked():
        asked.train.lora = dict(rank=2)
    start, mesh = checkpoints.load(base / "own.safetensors"), parallel.make_mesh()
    built = method.build(asked, start, mesh)
    state = loop.abstract_state(asked, built, start, mesh)
    rows = {"image": jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8)}
    rows["label"] = jax.ShapeDtypeStruct((4,), np.int32)
    after, _ = jax.eval_shape(built.step, state, rows)
    assert jax.tree.structure(after.params) == jax.tree.structure(state.params)


GUIDED = dict(name="guided", guidance=(1.0, 4.0))
BAD = {
    "none": (dict(name="diffusion"), dict(name="classifier_free", scale=2.0), "has none as it is"),
    "range": (
        MATCHING,
        dict(name="classifier_free"),
        "set config.guide.scale, or config.loss.guid",
    ),
    "unheard": (dict(MATCHING, guidance=(1.0, 4.0)), {}, "would not reach own"),
    "fixed": (GUIDED, dict(name="classifier_free", scale=2.0), "would not reach own"),
    "weak": (MATCHING, dict(name="autoguidance", scale=2.0), "name it with config.guide.weak"),
    "lost": (MATCHING, dict(name="autoguidance", scale=2.0, weak="x"), "no checkpoint"),
    "name": (MATCHING, dict(name="cfg", scale=2.0), "unknown guide 'cfg'"),
    "option": (MATCHING, dict(name="classifier_free", g=2.0), "guide has no option 'g'"),
}


@pytest.mark.parametrize(
    "loss, of_guide",
    [
        (MATCHING, dict(name="classifier_free", scale=2.0)),
        (dict(MATCHING, guidance_scale=1.5), {}),
        (GUIDED, {}),
    ],
)
def test_a_teacher_without_label_dropout_is_not_guided(loss, of_guide, base):
    own = checkpoints.load(base / "own.safetensors")
    with own.config.unlocked():
        own.config.loss = dict(name="diffusion", label_dropout=0.0)
    asked = config(base, loss, **of_guide)
    asked.sample.update(steps=1)
    with rejects(ValueError, "own was trained without label dropout", "autoguidance"):
        method.build(asked, own, parallel.make_mesh())
    plain = config(base, dict(name="guided"))  # which says in other terms what its teacher says
    method.build(plain, own, parallel.make_mesh())


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_before_anything_is_written(name, base, tmp_path):
    loss, of_guide, message = BAD[name]
    wrong = config(base, loss, **of_guide)
    wrong.sample.update(steps=1)
    with rejects((ValueError, FileNotFoundError), message):
        loop.train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_worse_network_of_other_inputs_is_refused(base):
    asked = config(base, MATCHING, name="autoguidance", weak="weak.safetensors", scale=2.0)
    own = checkpoints.load(base / "own.safetensors")
    other = tiny(digits.get_config(), levels=1)
    other.model.scalars = ("guidance",)
    with rejects(ValueError, "is told ['label'], the teacher ['guidance', 'label']"):
        guide.weak_of(asked, experiment.build(other))
    other.schedule = dict(name="vp_linear")
    with rejects(ValueError, "config.guide.weak is of the schedule"):
        guide.weak_of(asked, experiment.build(other))
    assert guide.weak_of(asked, own).fingerprint != own.fingerprint


def test_options_are_set_from_text():
    found = configs.load("digits_dmd", [("guide.name", "classifier_free"), ("guide.scale", "1.5")])
    assert found.guide.to_dict() == {"name": "classifier_free", "scale": 1.5}
    with rejects(ValueError, "config.guide has no field 'strength'"):
        configs.load("digits", [("guide.strength", "2")])
