"""Models of clips: from a config, from pictures, trained, drawn, frame behind frame."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ddim_jax import experiment, parallel, sampling
from ddim_jax.dropping import ALONE
from ddim_jax.editing.frames import KnownFrames, known_frames, roll_out
from ddim_jax.guidance import Guidance
from ddim_jax.losses import diffusion
from ddim_jax.networks.frames import is_added
from ddim_jax.training import method, teacher
from tests.errors import rejects

T, SIZE = 4, 12
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)  # programs run once and take longer to compile than to run


def config_of(**changes):
    """A tiny network of clips of moving digits."""
    config = ml_collections.ConfigDict(
        dict(
            seed=0, parallel="jit", start_from="",
            data=dict(
                name="moving_digits", split="train", frames=T, image_shape=(SIZE, SIZE, 1),
                resize=SIZE, flip=False,
            ),
            model=dict(
                name="video_unet", out_channels=1, channels=8, channel_mults=(1, 2), num_blocks=0,
                attention_resolutions=(), num_classes=10, time_heads=2, joint_attention=(6,),
                time_convolution=(6,),
            ),
            schedule=dict(name="cosine"), prediction=dict(name="v"),
            loss=dict(name="diffusion", label_dropout=0.5),
            optimizer=dict(name="adam", learning_rate=1e-3), ema=dict(name="constant", decay=0.9),
            train=dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, keep=1),
            sample=dict(solver="ddim", stride="uniform", steps=2, num_samples=2, clip="static"),
        )
    )  # fmt: skip
    with config.ignore_type():
        config.train.sample_every = 0
        for section, values in changes.items():
            config[section].update(values)
    return config


def of_pictures(config):
    """The config of the network of pictures within."""
    config = config.copy_and_resolve_references()
    names = ("time_heads", "joint_attention", "time_convolution", "causal")
    with config.unlocked():
        kept = {k: v for k, v in config.model.items() if k not in names}
        config.model = kept | {"name": "unet"}
        config.data.frames = 1
    return config


def shaken(model, seed=0):
    """The model with parameters none of which are zeros."""
    params = jit(model.init)(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    change = lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32)  # noqa: E731
    return model.replace(params=jax.tree.map(change, params))


@pytest.mark.slow
def test_a_network_of_pictures_becomes_one_of_clips():
    config = config_of()
    pictures = shaken(experiment.build(of_pictures(config)))
    model = experiment.build(config)
    assert pictures.sample_shape == (SIZE, SIZE, 1) and model.sample_shape == (T, SIZE, SIZE, 1)
    taken = teacher.take_over(pictures, model)
    params = teacher.merge(jit(model.init)(jax.random.key(1)), taken)
    resolved = teacher.resolve(config, pictures)
    teacher.check(resolved, pictures.config, needs_teacher=False)
    model = model.replace(params=params)
    x = model.initial_noise(sampling.sample_keys(5, np.arange(2)))
    level = model.schedule.level(0.5)
    labels = np.array([3, 7])
    frames = x.reshape(-1, SIZE, SIZE, 1)
    wanted = jit(lambda x: pictures.denoiser(label=labels.repeat(T))(x, level).x0)(frames)
    found = jit(lambda x: model.denoiser(label=labels)(x, level).x0)(x)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=2e-5)
    wider = experiment.build(config_of(model=dict(channels=12, time_heads=1)))
    with rejects(ValueError, "is of another architecture"):
        teacher.take_over(pictures, wider)


def test_clips_and_pictures_are_not_taken_for_each_other():
    with rejects(ValueError, "'video_unet' draws clips", "set config.data.frames"):
        experiment.build(config_of(data=dict(frames=0)))
    pictures = of_pictures(config_of())
    pictures.data.frames = T
    with rejects(ValueError, "frames=4 is of networks of clips", "config.start_from", "frames=1"):
        experiment.build(pictures)
    pictures.data.frames = 1
    source = experiment.load_data(pictures)
    assert source.frames == 0 and source[3]["image"].shape == (SIZE, SIZE, 1)
    with rejects(ValueError, "config.loss.alone=0.1 is of networks of clips"):
        pictures.loss.alone = 0.1
        method.build(pictures, None, parallel.make_mesh(jax.devices()[:1]))


def test_the_loss_of_a_clip_does_not_depend_on_its_batch():
    config = config_of(loss=dict(frame_levels=(0.4, 0.4), alone=0.5))
    model = shaken(experiment.build(config))
    loss = method.build_loss(config, model)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(4, T, SIZE, SIZE, 1)), jnp.float32),
        "label": jnp.arange(4),
    }
    keys = sampling.sample_keys(1, np.arange(4))
    value = jit(lambda batch, keys: loss(model.params, None, batch, keys, 0)[0])
    halves = [
        value({name: rows[part] for name, rows in batch.items()}, keys[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert np.isfinite(halves).all() and len({float(half) for half in halves}) == 2
    np.testing.assert_allclose(value(batch, keys), np.mean(halves), rtol=1e-5)


def test_frames_are_cut_apart_as_often_as_is_said():
    told = []

    def apply(params, x, t, inputs, dropout_keys):
        told.append(inputs[ALONE])
        return x

    model = experiment.build(config_of())
    net = method.net(model)._replace(apply=apply)
    batch = {"image": jnp.zeros((400, T, 2, 2, 1)), "label": jnp.zeros(400, int)}
    diffusion(net, alone=0.25)({}, None, batch, sampling.sample_keys(0, np.arange(400)), 0)
    assert 0.18 < np.mean(told[0]) < 0.32
    given = {ALONE: jnp.arange(400) < 7}
    diffusion(net, alone=0.25)({}, None, batch | given, sampling.sample_keys(0, np.arange(400)), 0)
    assert np.sum(told[1]) == 7


@pytest.mark.slow
def test_distillation_serves_networks_of_clips():
    """At one level for a clip, of which some frames may be known."""
    batch = {"image": jnp.zeros((2, T, SIZE, SIZE, 1)), "label": jnp.arange(2)}
    keys = sampling.sample_keys(1, np.arange(2))
    for loss in (
        dict(name="progressive", steps=2, known=1.0),
        dict(name="consistency", distil=True, pairs=dict(name="grid", sigma_min=0.0)),
        dict(name="guided", known=0.5),
    ):
        config = config_of()
        config.loss = loss
        model = shaken(experiment.build(config))
        built = method.build_loss(config, model, model)
        frozen = built.freeze(model.params, model.params)
        value = jit(jax.value_and_grad(lambda p, b=built, f=frozen: b(p, f, batch, keys, 0)[0]))
        loss, gradient = value(model.params)
        added = [
            bool(np.any(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
            if is_added("/".join(part.key for part in path))
        ]
        assert np.isfinite(loss) and added and all(added)


@pytest.mark.parametrize(
    ("at_a_time", "guided"), [pytest.param(2, False, marks=pytest.mark.slow), (1, True)]
)
def test_rolling_out_is_drawing_behind_known_frames(at_a_time, guided):
    model = shaken(experiment.build(config_of(model=dict(causal=True))))
    keys, labels = sampling.sample_keys(3, np.arange(2)), jnp.array([1, 4])
    noise = model.initial_noise(keys)
    seen = jnp.clip(noise[:, :2] + 0.3, -1, 1)
    table = model.recipe.replace(solver="unipc_2", steps=3).table(model.schedule)
    guidance = Guidance(jnp.float32(2.0)) if guided else None
    inputs = {"label": labels, ALONE: jnp.zeros(2, bool)}

    @jit
    def rolled(noise):
        return roll_out(
            model, table, noise, keys, inputs, guidance=guidance, seen=seen, at_a_time=at_a_time
        )

    found = rolled(noise[:, 2:])
    clip = jnp.zeros_like(noise).at[:, :2].set(seen)
    draw = sampling.make_sampler(
        model.apply, model.parameterization, null_inputs=model.inputs.nulled,
        task=known_frames(model.schedule),
    )  # fmt: skip
    for first in range(2, T, at_a_time):  # the whole clip again for every few
        known = KnownFrames(clip, jnp.broadcast_to(jnp.arange(T) < first, (2, T)))
        drawn = draw(model.params, table, noise, keys, inputs, guidance, known).x
        clip = clip.at[:, first : first + at_a_time].set(drawn[:, first : first + at_a_time])
    assert found.shape == noise.shape
    np.testing.assert_allclose(found, clip, atol=1e-5)


def test_only_a_causal_network_rolls_out():
    model = experiment.build(config_of())
    with rejects(ValueError, "is not causal: draw longer clips window by window"):
        roll_out(model, None, jnp.zeros((1, 2, SIZE, SIZE, 1)), None, {})
    model = experiment.build(config_of(model=dict(causal=True)))
    with rejects(ValueError, "at_a_time must divide the 3 frames, got 2"):
        roll_out(model, None, jnp.zeros((1, 3, SIZE, SIZE, 1)), None, {}, at_a_time=2)


def test_clips_without_classes_are_told_a_row_each():
    model = experiment.build(config_of(model=dict(num_classes=0)))
    told = model.conditions(3, model.recipe, model.inputs.labels(None, 3))["inputs"]
    assert told["alone"].shape == (3,) and "label" not in told
