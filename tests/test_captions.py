"""Captions: where they are read, what digits are called, what a network is told of them."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from ddim_jax import command_line, data, experiment
from ddim_jax.checkpoints import around as around_file
from ddim_jax.checkpoints.parts import pipeline_of
from ddim_jax.data import captions, digits
from ddim_jax.inputs import Inputs
from ddim_jax.losses.loss import conditions
from ddim_jax.networks.tokenizer import Tokenizer
from ddim_jax.training import around, method, resume, teacher
from tests.errors import rejects
from tests.test_configs import get
from tests.tiny import tiny
from tests.tiny_pipeline import tiny_pipeline


def test_digits_are_thin_or_bold_among_their_like():
    images, labels = digits.read("train")
    source = data.load("digits")
    ink = images.mean(axis=(1, 2, 3))
    means = {text: ink[np.array(source.captions) == text].mean() for text in set(source.captions)}
    assert len(means) == 30
    for number, name in enumerate(captions.DIGITS):
        own = [i for i, label in enumerate(labels) if label == number]
        assert all(source.captions[i].split()[-1] == name for i in own)
        assert means[f"a thin {name}"] < means[f"a {name}"] < means[f"a bold {name}"]
        assert 160 <= sum(source.captions[i] == f"a bold {name}" for i in own) <= 170


def write(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade,) * 3).save(path)


def test_texts_beside_pictures(tmp_path):
    write(tmp_path / "dog" / "1.png")
    write(tmp_path / "cat" / "2.png")
    assert data.load(f"folder:{tmp_path}").captions == ()
    (tmp_path / "dog" / "1.txt").write_text("a dog\n")
    source = data.load(f"folder:{tmp_path}")
    assert source.captions == ("", "a dog") and not source.note
    rows = [{"file_name": "cat/2.png", "text": "Ein Kätzchen"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert data.load(f"folder:{tmp_path}").captions == ("Ein Kätzchen", "")
    assert not data.load(f"folder:{tmp_path}").note
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "dog/1.png", "text": "a dog"}')
    assert data.load(f"folder:{tmp_path}", checked=False).image_shape  # of the first file alone
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "dog/1.png", "text": ""}')
    assert data.load(f"folder:{tmp_path}").captions == ("", "")


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"file_name": "3.png", "text": "x"}', "names none of the pictures, such as 1.png; write"),
        ('{"file": "1.png"}', 'line 1 of .*metadata.jsonl must be like {"file_name": "1.png"'),
        ("1.png: a dog", "line 1 of .*must be like .*got '1.png: a dog'"),
        ('{"file_name": "1.png", "text": 3}', "line 1 of .*: text must be a text of Unicode"),
        (
            '{"file_name": "1.png", "text": "\\ud83d"}',
            "line 1 of .*: text must be a text of Unicode",
        ),
        (2 * '{"file_name": "1.png", "text": "x"}\n', "line 2 of .* names 1.png again; keep one"),
    ],
)
def test_damaged_metadata(tmp_path, line, message):
    write(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        data.load(f"folder:{tmp_path}")


def test_marks_lines_and_encodings_of_texts(tmp_path):
    """UTF-8 with a mark at its beginning, characters that only Python ends a line at, Latin-1."""
    write(tmp_path / "a.png")
    file = tmp_path / "a.txt"
    file.write_text("a café", encoding="utf-8-sig")
    assert data.load(f"folder:{tmp_path}").captions == ("a café",)
    assert command_line.prompts([f"@{file}"]) == ["a café"]
    file.write_bytes("one\u2028line\r\ntwo".encode())
    assert command_line.prompts([f"@{file}"]) == ["one\u2028line", "two"]
    file.write_bytes("a café".encode("latin-1"))
    for read in (
        lambda: data.load(f"folder:{tmp_path}"),
        lambda: command_line.prompts([f"@{file}"]),
    ):
        with rejects(ValueError, f"{file} is no text in UTF-8", "save it in that encoding"):
            read()
    row = json.dumps({"file_name": "a.png", "text": "one\x85line\u2028"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(f"{row}\n", encoding="utf-8-sig")
    assert data.load(f"folder:{tmp_path}").captions == ("one\x85line\u2028",)


def test_captions_in_npz_files(tmp_path):
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, captions=np.array(["one", "two"]))
    assert data.load(f"npz:{tmp_path}/a.npz").captions == ("one", "two")
    np.savez(tmp_path / "b.npz", test_x=images, test_captions=["one", "two"], captions=["no"])
    assert data.load(f"npz:{tmp_path}/b.npz", "test").captions == ("one", "two")
    np.savez(tmp_path / "b.npz", test_x=images, captions=["one", "two"])
    with rejects(ValueError, "b.npz has 'captions' beside 'test_x'; call them 'test_captions'"):
        data.load(f"npz:{tmp_path}/b.npz", "test")
    np.savez(tmp_path / "c.npz", images=images)
    assert data.load(f"npz:{tmp_path}/c.npz").captions == ()
    np.savez(tmp_path / "d.npz", images=images, captions=["one"])
    with pytest.raises(ValueError, match="'captions' of .*; captions must be texts .2., one for"):
        data.load(f"npz:{tmp_path}/d.npz")


def test_a_tokenizer_of_captions_has_a_token_for_each_word(tmp_path):
    texts = ["an even seven", "a seven, even", "ÄRGER even-ing"]
    made = Tokenizer.of_texts(texts, 16)
    for text, count in zip(texts, (3, 4, 4), strict=True):
        assert len(made.tokens(text)) == count
    assert made.text(made.tokens("other words!")) == "other words !"
    made.write(tmp_path / "tokenizer")
    again = Tokenizer.read(tmp_path / "tokenizer")
    np.testing.assert_array_equal(made(texts + ["x"]), again(texts + ["x"]))


def test_a_tokenizer_of_so_many_tokens_merges_what_is_frequent(tmp_path):
    texts = ["low lower lowest", "low low newer", "wider newer"]
    made = Tokenizer.of_texts(texts, 16, 520)
    assert made.end == 519 and len(made.options()["merges"]) == 6
    # by hand: l-o (5), lo-w</w> (3) and e-r</w> (4) by their numbers, the rest by name
    assert list(map(tuple, made.options()["merges"]))[:2] == [("l", "o"), ("e", "r</w>")]
    assert len(made.tokens("low")) == 1 and len(made.tokens("lowest")) > 1
    assert made.text(made.tokens("slower")) == "slower"
    assert made.options() == Tokenizer.of_texts(texts[::-1], 16, 520).options()
    made.write(tmp_path / "tokenizer")
    np.testing.assert_array_equal(Tokenizer.read(tmp_path / "tokenizer")(texts), made(texts))
    assert Tokenizer.of_texts(texts, 16, 10_000).end < 600  # all there is to merge
    with rejects(ValueError, "vocabulary must be at least 514, got 500"):
        Tokenizer.of_texts(texts, 16, 500)


def test_records_hold_what_the_network_is_told(tmp_path):
    model = tiny_pipeline()
    images = np.zeros((4, 16, 16, 3), np.uint8)
    texts = ["a cat", "a dog", "a cat", ""]
    np.savez(tmp_path / "a.npz", images=images, captions=texts)
    source = around.told(model.config, model, data.load(f"npz:{tmp_path}/a.npz"))
    encoded = model.inputs.encode(texts)["text"]
    batch = next(data.batches(source, 4, seed=0, shuffle=False))
    np.testing.assert_allclose(batch["text"], encoded, atol=1e-5)
    dropped = conditions(batch, jax.random.split(jax.random.key(0), 4), model.inputs.dropped, 1.0)
    np.testing.assert_allclose(dropped["text"], np.repeat(encoded[3:], 4, axis=0), atol=1e-5)
    half = conditions(batch, jax.random.split(jax.random.key(0), 4), model.inputs.dropped, 0.5)
    same = np.all(half["text"][:3] == batch["text"][:3], axis=(1, 2))
    assert 0 < same.sum() < 3


def test_latents_are_kept_in_place_of_pictures(tmp_path):
    model, rng = tiny_pipeline(), np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, captions=["a", "b", "c"])
    config = model.config.copy_and_resolve_references()
    config.data.cache = True
    source = around.told(config, model, data.load(f"npz:{tmp_path}/a.npz"))
    latents = model.codec.encode(model.codec.params, images, None)
    np.testing.assert_allclose(source[2]["image"], latents[2], rtol=1e-5, atol=1e-5)
    assert source[2]["text"].shape == model.inputs.declared["text"].shape


def test_a_run_says_how_many_images_have_no_caption(tmp_path):
    model, images = tiny_pipeline(), np.zeros((4, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, captions=["a", "", "c", " "])
    source = data.load(f"npz:{tmp_path}/a.npz")
    said = "2 of 4 images have no caption, and are told the empty text"
    assert around.note(model, source) == said
    assert around.note(model.replace(inputs=Inputs({})), source) == ""
    assert captions.note(["a"]) == captions.note([]) == ""
    assert captions.note(["", " "]).startswith("2 of 2 images have no caption")


def test_pictures_are_not_kept_as_latents():
    config = tiny(get("digits_text"))
    del config.codec
    with pytest.raises(ValueError, match="config.data.cache keeps .* set it to False"):
        method.check(config, experiment.build(config), 1)


def test_data_without_captions_are_refused():
    model = tiny_pipeline()
    plain = data.Source("x", (16, 16, 3), 0, 1, lambda index: (np.zeros((16, 16, 3), np.uint8), 0))
    with pytest.raises(ValueError, match="has no captions for a network that is told texts; put"):
        around.check(model.config, model, plain)
    assert Inputs({}).dropped == {}


def test_a_run_whose_captions_changed_is_refused(tmp_path):
    config, file = tiny(get("digits_text")), tmp_path / "run" / "config.json"
    file.parent.mkdir()

    def kept(*texts):
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8, 3), np.uint8), captions=texts)
        source = data.load(f"npz:{tmp_path}/a.npz")
        return json.loads(teacher.record(config, None, source).to_json())

    was, now = kept("a cat", "a dog"), kept("a cat", "a fox")
    resume.check(file, was, kept("a cat", "a dog"))
    with rejects(
        ValueError, "the captions of the run in ", "have changed since: restore those of "
    ):
        resume.check(file, was, now)
    del was["captions_fingerprint"]  # as earlier versions wrote it, or to insist
    resume.check(file, was, now)


def test_a_run_that_goes_on_fills_in_what_its_sections_leave_open(tmp_path):
    model, source = tiny_pipeline(), data.load("digits")
    around_file.save(tmp_path, pipeline_of(model))
    config = model.config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.codec = dict(start_from="vae", scale=None)
        config.text = dict(start_from="sd", encoders=None)
    config, parts = around.load(config, tmp_path, source)
    assert config.codec.scale == 0.5 and config.codec.start_from == "vae"
    assert len(config.text.encoders) == 1 and len(parts.tokenizers) == 1


@pytest.mark.parametrize("field, value", [("vocabulary", 600), ("text_length", 8)])
def test_tokens_that_a_network_does_not_know_are_refused(field, value):
    config = get("emoji")
    experiment.build(config)
    config.model[field] = value
    with rejects(ValueError, f"config.model.{field} is {value}, and config.text.encoders say "):
        experiment.build(config)
