"""Models that are told texts and draw latents: prompts, negatives, sizes, and what compiles."""

import dataclasses
import functools
import json
import warnings

import jax
import numpy as np
import pytest

from ddim_jax import batch_loop, files, provenance
from ddim_jax.dropping import NULL
from ddim_jax.evaluation.asked import Asked
from ddim_jax.strides import fit
from tests.errors import rejects
from tests.tiny_pipeline import tiny_pipeline
from tests.told_latents import told_latents

PROMPTS = ["a photograph of a cat", "the sea at night", "a bold seven"]


@pytest.fixture(scope="module")
def model():
    return tiny_pipeline()


@pytest.fixture
def compiled():
    """Names of what is compiled from now on."""
    names = []

    def listen(event, duration, **about):
        if event.endswith("backend_compile_duration"):
            names.append(about.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_prompts_in_many_forms(model):
    one = model.draw(prompt=PROMPTS[0])
    assert one.shape == (1, 16, 16, 3) and one.dtype == np.uint8 and one.std() > 1
    several = model.draw(prompt=PROMPTS)
    assert several.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(np.int32(several[:1]), one, atol=1)
    rotated = model.draw(4, prompt=PROMPTS, batch_size=4)
    np.testing.assert_allclose(np.int32(rotated[:3]), several, atol=1)
    encoded = model.inputs.told(PROMPTS)
    np.testing.assert_allclose(np.int32(model.draw(prompt=encoded)), several, atol=1)


@pytest.mark.slow
def test_a_negative_prompt_is_what_guidance_leads_away_from(model):
    plain = model.draw(1, prompt=PROMPTS[0])
    empty = model.draw(1, prompt=PROMPTS[0], negative_prompt="")
    np.testing.assert_array_equal(plain, empty)
    other = model.draw(1, prompt=PROMPTS[0], negative_prompt=PROMPTS[1])
    assert np.abs(np.int32(other) - plain).max() > 2
    itself = model.draw(1, prompt=PROMPTS[0], negative_prompt=PROMPTS[0])  # nothing to lead to
    unguided = model.draw(1, prompt=PROMPTS[0], guidance_scale=1.0)
    np.testing.assert_allclose(np.int32(itself), unguided, atol=1)


def test_a_negative_prompt_without_guidance_is_warned_of(model):
    for prompt in (PROMPTS[0], model.inputs.told(PROMPTS[0])):
        with pytest.warns(UserWarning, match="negative_prompt='blurry' changes nothing"):
            model.inputs.texts(prompt, "blurry", 1, guided=False)
    with warnings.catch_warnings(action="error"):
        model.inputs.texts(PROMPTS[0], "blurry", 1, guided=True)
        model.inputs.texts(PROMPTS[0], "", 1, guided=False)


def test_encoded_prompts_take_a_negative_prompt_and_have_a_null(model):
    def null(prompt, negative=None):
        texts = model.inputs.texts(prompt, negative, 3, guided=True)
        return np.asarray(texts[NULL]["text"])

    told, negatives = model.inputs.told(PROMPTS), ["blurry", "", "the sea"]
    for negative in (None, "blurry", negatives):
        np.testing.assert_allclose(null(told, negative), null(PROMPTS, negative), atol=1e-4)
    features = {name: value for name, value in told.items() if name != NULL}
    np.testing.assert_allclose(null(features), null(PROMPTS), atol=1e-4)
    kept = model.inputs.told(PROMPTS, negatives)
    np.testing.assert_array_equal(null(kept), null(PROMPTS, negatives))
    with rejects(ValueError, "one for each of 3 prompts, got 2"):
        null(told, ["a", "b"])
    alone = dataclasses.replace(model.inputs, encode=None)
    assert NULL not in alone.texts(features, None, 3, guided=False)
    with rejects(ValueError, "those of the null", "'null'", "guidance_scale=1"):
        alone.texts(features, None, 3, guided=True)


def test_a_new_prompt_negative_scale_solver_seed_or_weights_compile_nothing(model, compiled):
    model.draw(2, prompt=PROMPTS[0])
    model.draw(2, prompt=PROMPTS[0], solver="ddim", solver_options={"eta": 0.5}, steps=4)
    model.inputs.told(PROMPTS)  # lists of texts have a program of their own
    merged = jax.tree.map(lambda leaf: 1.01 * leaf, model.params)
    compiled.clear()
    model.draw(2, prompt=PROMPTS[1], negative_prompt=PROMPTS[2], seed=3)
    for scale in (7.5, 5, np.float64(6)):
        model.draw(2, prompt=PROMPTS[:2], guidance_scale=scale, guidance_interval=(0, 10))
    model.draw(2, prompt=PROMPTS[0], solver="ddim", solver_options={"eta": 1.0}, steps=4)
    model.replace(params=merged).draw(2, prompt=PROMPTS[1])
    model.draw(6, prompt=PROMPTS[1], seed=2**40, batch_size=2)
    for solver in ("euler", "dpm_solver++_2m", "unipc_2", "ipndm", "lcm"):
        model.draw(2, prompt=PROMPTS[0], solver=solver, steps=4)
    assert not compiled
    model.draw(2, prompt=PROMPTS[0], steps=5)
    assert compiled


@pytest.mark.slow
def test_parameters_are_put_on_devices_once_and_batches_bring_their_inputs_alone(monkeypatch):
    model = tiny_pipeline()
    model = model.replace(params=jax.tree.map(np.asarray, model.params))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    put, placed = jax.device_put, []

    def device_put(tree, *args, **kwargs):
        placed.extend(leaf.nbytes for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray))
        return put(tree, *args, **kwargs)

    monkeypatch.setattr(jax, "device_put", device_put)
    draw = functools.partial(model.draw, 4, prompt=PROMPTS, batch_size=2)
    draw()
    assert placed.count(largest) >= 1
    told = model.inputs.told(PROMPTS)
    placed.clear()
    for options in ({}, {"size": (16, 32)}, {"progress": True}):
        model.draw(4, prompt=told, batch_size=2, **options)
    assert max(placed, default=0) <= told["text"][:2].nbytes < largest


@pytest.mark.slow
def test_sizes_are_asked_for_and_told(model):
    wide = model.draw(1, prompt="", size=(16, 32))
    assert wide.shape == (1, 16, 32, 3)
    assert model.sized((16, 32)) is model.sized((16, 32)) and model.sized((16, 16)) is model
    xl = tiny_pipeline("xl")
    told = xl.sized((32, 16)).conditions(2, xl.recipe, None, prompt=PROMPTS[0])["inputs"]
    np.testing.assert_array_equal(told["sizes"], [[32, 16, 0, 0, 32, 16]] * 2)
    assert told["vector"].shape == (2, 12) and told["text"].shape == (2, 40, 32)
    assert not np.any(told[NULL]["text"]) and not np.any(told[NULL]["vector"])
    asked = xl.conditions(1, xl.recipe, None, prompt="", negative_prompt="")["inputs"]
    assert np.any(asked[NULL]["text"])
    assert xl.draw(prompt=PROMPTS[0]).shape == (1, 16, 16, 3)


def test_a_guidance_scale_may_be_an_input():
    model = tiny_pipeline("lcm")
    told = model.conditions(1, model.recipe.replace(guidance_scale=8.0), None, prompt="a")
    assert told["guidance"] is None and told["inputs"]["guidance"] == 8.0
    assert NULL not in told["inputs"]
    low, high = (model.draw(prompt="a", guidance_scale=scale) for scale in (1.5, 9.0))
    assert np.abs(np.int32(low) - high).max() > 2


@pytest.mark.slow
def test_parts_alone(model):
    denoise = model.denoiser(prompt=PROMPTS[:2], guidance_scale=2.0)
    level = model.schedule.level(model.recipe.times(model.schedule)[0])
    x = np.ones((2, *model.sample_shape), np.float32)
    assert denoise(x, level).x0.shape == x.shape
    assert model.denoiser(prompt="a")(x, level).eps.shape == x.shape


def test_parameters_split_over_devices_draw_the_same(model):
    whole, split = (
        model.generate(2, prompt=PROMPTS[:2], parallel=mode).pictures for mode in ("jit", "fsdp")
    )
    assert jax.local_device_count() == 2
    np.testing.assert_allclose(np.int32(split), whole, atol=1)


def test_latents_there_and_back(model):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    z = model.codec.encode(model.codec.params, pictures, None)
    assert z.shape == (3, *model.sample_shape)
    np.testing.assert_array_equal(model.codec.encode(model.codec.params, z, None), z)
    drawn = model.codec.encode(model.codec.params, pictures, jax.random.split(jax.random.key(0), 3))
    assert np.abs(drawn - z).max() > 1e-3
    whole = model.pictures(z)
    assert whole.shape == pictures.shape
    inside = jax.jit(model.codec.decode)(model.codec.params, z)
    np.testing.assert_array_equal(inside, whole)


@pytest.mark.parametrize(
    "asked, message",
    [
        (dict(prompt=3), "prompt must be a text or a list of texts, got"),
        (dict(prompt=["a", 3]), "prompt must be a text or a list of texts, got 3"),
        (dict(prompt=[]), "prompt is an empty list"),
        (dict(prompt=["a", "b", "c"], negative_prompt=["a", "b"]), "one for each of 3 prompts"),
        (dict(prompt="a", label=3), "takes no labels, got"),
        (dict(prompt="a", size=512), "size must be two whole numbers, height and width, got 512"),
        (dict(prompt="a", size=(17, 16)), "sides are multiples of 2, got 17 x 16; for 17 take 16"),
        (dict(prompt="a", guidance_channels=5), "at most the 4 channels of .* samples, got 5"),
        (dict(), "this network draws from a text: give a prompt; '' for none"),
    ],
)
def test_bad_input(model, asked, message):
    with pytest.raises(ValueError, match=message):
        model.draw(**asked)


def test_a_network_without_texts_takes_none():
    from ddim_jax import checkpoints

    with pytest.raises(ValueError, match="is told no text: leave out prompt and give labels"):
        checkpoints.load("digits").draw(1, prompt="a seven")
    with pytest.raises(ValueError, match="draws pictures of 28 x 28 alone: give no size"):
        checkpoints.load("digits").draw(1, size=(32, 32))


def test_modes_are_named():
    assert batch_loop.MODES == ("jit", "fsdp", "pmap")


def test_pictures_of_another_text_encoder_or_autoencoder_are_others(model, tmp_path):
    texts = model.inputs.encode
    other = jax.tree.map(lambda leaf: 1.01 * leaf, (model.codec.params, texts.params))
    changes = {
        "autoencoder": (other[0], texts.params),
        "text_encoders": (model.codec.params, other[1]),
    }
    table = model.recipe.table(model.schedule)
    index = np.arange(1)
    kept = provenance.about(
        model, model.recipe, seed=0, index=index, labels=None, batch_size=1, prompts=PROMPTS
    )
    np.savez(tmp_path / "drawn.npz", about=json.dumps(kept))
    drawn = provenance.read(tmp_path / "drawn.npz")
    drawn.check(model, model.recipe)
    origin = tmp_path / "set" / "samples.json"
    origin.parent.mkdir()
    origin.write_text(json.dumps(model.origin(table)))
    for name, parts in changes.items():
        changed = model.with_parts(model.params, *parts, texts.tokenizers)
        with rejects(ValueError, f"drawn with another {name}; choose another folder"):
            files.check_origin(origin, changed.origin(table), "samples")
        with rejects(ValueError, f"drawn with other weights of {name} than"):
            drawn.check(changed, changed.recipe)
    earlier = {k: v for k, v in model.origin(table).items() if k not in changes}
    origin.write_text(json.dumps(earlier))
    files.check_origin(origin, model.origin(table), "samples")  # of a version that did not look


def test_strides_are_learned_on_what_is_asked_for():
    model, asked = told_latents(), Asked("three", None, tuple(PROMPTS))
    noise_to_image = fit.NoiseToImage(model, model.recipe, asked)
    index = np.arange(4, 8)
    learned_on = noise_to_image.teacher_samples(index, np.zeros((4, *model.sample_shape)))
    wanted = model.inputs.encode([PROMPTS[i % 3] for i in index])["text"]
    np.testing.assert_array_equal(learned_on.inputs["text"], wanted)
    null = model.inputs.encode([""])["text"]
    np.testing.assert_array_equal(learned_on.inputs[NULL]["text"], np.repeat(null, 4, 0))
    table = model.recipe.replace(steps=2).table(model.schedule)
    drawn = noise_to_image.draw(table, index).x
    conditions = model.conditions(4, model.recipe, None, prompt=[PROMPTS[i % 3] for i in index])
    (_, result), *_ = model.generator().batches(table, index, **conditions)
    np.testing.assert_allclose(drawn, result.x, atol=1e-5)
