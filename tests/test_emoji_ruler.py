"""The emoji encoder: pictures that are damaged by known amounts, ranks by hand, a tiny training."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.emoji_analogies import analogies
from ddim_jax import data
from ddim_jax.evaluation import (
    asked,
    emoji,
    emoji_damage,
    emoji_encoder,
    feature_networks,
    retrieval,
    sanity_check,
    scores,
)
from ddim_jax.evaluation.features import FeatureNetwork, Features
from ddim_jax.evaluation.gallery import Gallery
from ddim_jax.inputs import Input, Inputs

STYLES = ("flat", "round")


def gallery(pool, name, style, names=("cat", "dog", "fox")):
    size = len(pool[0])
    kernel, bias = np.eye(size, dtype=np.float32), np.zeros(size, np.float32)
    pool = np.array(pool, np.float32)
    return Gallery(names, STYLES, np.array(name), np.array(style), pool, kernel, bias)


THREE = gallery([[1, 0], [0, 1], [1, 1], [0, 1]], [0, 1, 2, 0], [0, 0, 0, 1])


def test_ranks_by_hand():
    drawn = np.float32([[1, 0.1], [1, 0.1], [1, 0.1], [5, 0.1]])
    ranks = THREE.ranks(drawn, ["cat", "fox", "dog", "cat"], np.array([0, 0, 0, 1]))
    assert ranks.tolist() == [1, 2, 3, 1]
    shares = THREE.found(drawn, ["cat", "fox", "dog", "cat"], np.array([0, 0, 0, 1]))
    assert shares["top1"] == 0.5 and shares["top5"] == 1
    assert shares["top1 flat"] == pytest.approx(1 / 3) and shares["top1 round"] == 1


def test_equal_pictures_count_as_one_and_a_collapsed_embedding_finds_nothing():
    twins = gallery([[1, 0], [1, 0], [0, 1]], [0, 1, 2], [0, 0, 0])
    assert twins.ranks(np.float32([[1, 0]]), ["dog"], np.array([0])).tolist() == [1]
    assert twins.ranks(np.float32([[1, 0]]), ["fox"], np.array([0])).tolist() == [3]
    blind = twins._replace(pool=twins.pool + [[0, 0], [0, 1e-3], [0, 0]])
    blind = blind._replace(kernel=np.zeros((2, 2), np.float32), bias=np.ones(2, np.float32))
    assert blind.ranks(np.float32([[1, 0]]), ["cat"], np.array([0])).tolist() == [3]


def test_what_the_gallery_does_not_hold():
    one = np.float32([[1, 0]])
    with pytest.raises(ValueError, match=r"no picture of 'dgo' in flat \(did you mean 'dog'\?\)"):
        THREE.ranks(one, ["dgo"], np.array([0]))
    with pytest.raises(ValueError, match="no picture of 'dog' in round"):
        THREE.ranks(one, ["dog"], np.array([1]))
    with pytest.raises(ValueError, match="in style 7"):
        THREE.ranks(one, ["dog"], np.array([7]))
    assert THREE.found(one, ["dog"], np.array([1])) == {}
    assert THREE.found(np.repeat(one, 2, 0), ["dog", "cat"], np.array([1, 0]))["top1"] == 1


def bright(images):
    """Features of pictures of two brightnesses, whose style is "round" if they are bright."""
    pool = np.float32(images[:, :5, 0, 0])
    bright = images.mean((1, 2, 3)) > 128
    return Features(pool, np.stack([1.0 - bright, 1.0 * bright], -1))


@pytest.fixture
def ruler(monkeypatch):
    """Says what `sanity_check` loads: features of brightness, with a gallery of two styles."""
    pool = np.float32(np.random.default_rng(0).normal(size=(8, 5)))
    kept = gallery(pool, [0, 1] * 4, [0, 0, 1, 1] * 2)
    names = ("FD", "KD", "score")
    network = FeatureNetwork("two", 5, names, "", "none", (8, 8, 1), 2, None, kept)
    monkeypatch.setattr(FeatureNetwork, "extract", lambda self, images: bright(images))
    monkeypatch.setattr(feature_networks, "load", lambda name: network)


def checked(path, capsys, *flags, **arrays):
    """What `sanity_check` says of 8 dark pictures and 8 bright ones: set -> column -> text."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 100, (16, 8, 8, 1)) + 150 * (np.arange(16) >= 8)[:, None, None, None]
    np.savez(path, x=images.astype(np.uint8), **arrays)
    sanity_check.main([f"--data=npz:{path}", "--features=two", *flags])
    rows = [row.strip("|").split("|") for row in capsys.readouterr().out.splitlines()]
    head, _, *rows = [[cell.strip() for cell in row] for row in rows if len(row) > 1]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_labels_are_styles_by_their_names(ruler, tmp_path, capsys):
    given = dict(y=np.arange(16) // 8 ^ 1, captions=["cat", "dog"] * 8, class_names=STYLES[::-1])
    found = checked(tmp_path / "a.npz", capsys, **given)
    assert found["real"]["accuracy"] == "1" and found["real"]["top1"]
    with pytest.raises(SystemExit, match="classes of the pictures must be flat, round, got 'x'"):
        checked(tmp_path / "b.npz", capsys, **given | dict(class_names=("x", "flat")))


@pytest.mark.parametrize(
    "labels, parts",
    [
        (None, set()),
        (np.zeros(16, int), {"labels shuffled"}),
        (np.arange(16) // 11 ^ 1, {"labels shuffled"}),  # 5 pictures of the first of two classes
        (np.arange(16) // 10 ^ 1, {"labels shuffled", "half of the classes alone"}),
    ],
)
def test_what_cannot_be_measured_is_left_out(labels, parts, ruler, tmp_path, capsys):
    given = {} if labels is None else dict(y=labels)
    found = checked(tmp_path / "a.npz", capsys, **given)
    blurs = {f"blurred by {b} pixels" for b in sanity_check.BLURS}
    noises = {f"noise of {s}/255" for s in sanity_check.NOISES}
    assert set(found) == {"real", "mirrored"} | blurs | noises | parts
    assert ("accuracy" in found["real"]) == (labels is not None)


def test_pictures_are_compared_with_real_ones(ruler, tmp_path, capsys):
    file = tmp_path / "a.npz"
    assert float(checked(file, capsys)["real"]["FD"]) > 1  # the gallery, which is of noise
    assert abs(float(checked(file, capsys, f"--real=npz:{file}")["real"]["FD"])) < 1e-3


def test_parts_have_so_many_pictures():
    images = np.zeros((2500, 1, 1, 1), np.uint8)
    names = {name for name, *_ in sanity_check.altered(images, None, least=2049)}
    assert "real, 1000 of them" not in names and "real, 2000 of them" not in names


def test_resampling_moves_scales_and_blurs_as_scipy_does():
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    x = picture[0, :, :, 0].astype(np.float32)
    one = np.ones(1, np.float32)

    def by(scale, shift, blur):
        return np.asarray(emoji_damage.resampling(32, scale * one, shift * one, blur * one))[0]

    np.testing.assert_allclose(by(1, 0, 0), np.eye(32), atol=1e-6)
    np.testing.assert_allclose(by(1, 2, 0) @ x, np.pad(x, ((2, 0), (0, 0)))[:32], atol=1e-3)
    blurred = by(1, 0, 1.0) @ x @ by(1, 0, 1.0).T
    wanted = sanity_check.blur(picture, 1.0)[0, :, :, 0]
    np.testing.assert_allclose(blurred[6:-6, 6:-6], wanted[6:-6, 6:-6], atol=1)
    line = by(2, 0, 0) @ np.arange(32.0)
    np.testing.assert_allclose(line, (np.arange(32) - 15.5) / 2 + 15.5, atol=1e-4)


def test_damage_is_what_it_says():
    images = np.full((64, 16, 16, 3), 128, np.uint8)
    x, damage = emoji_damage.damaged(images, jax.random.key(0))
    x, damage = np.asarray(x), np.asarray(damage)
    assert x.shape == images.shape and np.abs(x).max() <= 1
    assert damage.min() == 0 and damage.max() <= 1 and 0.05 < np.mean(damage.max(1) == 0) < 0.3
    rough = np.abs(np.diff(x[:, 4:12, 4:12], axis=2)).mean((1, 2, 3))
    assert rough[damage[:, 1] > 0.3].mean() > 3 * rough[damage[:, 1] == 0].mean()


def test_what_samples_are_asked_for(tmp_path):
    text, label = Input((4, 8)), Input((), "int32", 2)
    inputs = Inputs({"text": text, "label": label}, STYLES)
    found = asked.find(inputs, None, "train", THREE)
    pairs = set(zip(found.prompts(np.arange(4)), found.labels(inputs, 4).tolist(), strict=True))
    assert pairs == {("cat", 0), ("dog", 0), ("fox", 0), ("cat", 1)}
    assert found.prompts(np.array([1, 5]))[0] == found.prompts(np.array([1, 5]))[1]
    classes = Inputs({"label": label}, STYLES)
    assert asked.find(classes, None, "train", THREE) == asked.ALL_CLASSES
    assert asked.ALL_CLASSES.labels(classes, 3).tolist() == [0, 1, 0]
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", test_x=images, test_y=[1, 1], test_captions=["a", "b"])
    found = asked.find(inputs, f"npz:{tmp_path / 'a.npz'}", "test")
    assert sorted(found.texts) == ["a", "b"] and found.labels(inputs, 2).tolist() == [1, 1]
    np.savez(tmp_path / "b.npz", x=images)
    with pytest.raises(ValueError, match="has no captions to ask for"):
        asked.find(inputs, f"npz:{tmp_path / 'b.npz'}", "train")
    named = dict(x=images, y=[0, 1], captions=["a", "b"], class_names=STYLES[::-1])
    np.savez(tmp_path / "c.npz", **named)  # its classes are in another order
    found = asked.find(inputs, f"npz:{tmp_path / 'c.npz'}", "train")
    assert dict(zip(found.texts, found.labels(inputs, 2).tolist(), strict=True)) == {"a": 1, "b": 0}
    turned = Inputs({"text": text, "label": label}, STYLES[::-1])
    with pytest.raises(ValueError, match="look for names in the styles .*; take other --features"):
        asked.find(turned, f"npz:{tmp_path / 'c.npz'}", "train", THREE)
    with pytest.raises(ValueError, match="which are not those to ask for"):
        np.savez(tmp_path / "d.npz", **named | dict(class_names=["dada", "pop"]))
        asked.find(inputs, f"npz:{tmp_path / 'd.npz'}", "train")
    for wrong in (dict(y=None, class_names=None), dict(class_names=["cubism", "dada"])):
        arrays = {k: v for k, v in (named | wrong).items() if v is not None}
        np.savez(tmp_path / "d.npz", **arrays)
        three = Inputs({"text": text, "label": Input((), "int32", 3)}, ("a", "b", "c"))
        with pytest.raises(ValueError, match="classes.*, which are not those to ask for"):
            asked.find(three, f"npz:{tmp_path / 'd.npz'}", "train")
    with pytest.raises(ValueError, match="draws from a text: say what to ask it for by --asked"):
        asked.find(inputs, None, "train")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Six emoji in two styles, squares of one colour: the folder of both files, the pictures."""
    folder = tmp_path_factory.mktemp("emoji")
    colours = np.random.default_rng(0).integers(0, 200, (6, 3))
    pictures, webp = np.full((12, 64, 64, 3), 255, np.uint8), []
    for i, picture in enumerate(pictures):
        edge = 8 + 8 * (i % 2)
        picture[edge:-edge, edge:-edge] = colours[i // 2]
        Image.fromarray(picture).save(data := io.BytesIO(), "webp", lossless=True)
        webp.append(np.frombuffer(data.getvalue(), np.uint8))
    np.savez(
        folder / "emoji.npz", webp=np.concatenate(webp), styles=np.array(STYLES),
        offset=np.cumsum([0, *map(len, webp)]), style=np.arange(12) % 2, emoji=np.arange(12) // 2,
        name=np.array([f"square {k}" for k in range(6)]), category=np.array(["a", "b"] * 3),
    )  # fmt: skip
    names = np.array([f"square {i // 2}" for i in range(12)])
    given = dict(images=pictures, labels=np.arange(12) % 2, captions=names)
    np.savez(folder / "pictures.npz", class_names=np.array(STYLES), **given)
    return folder, pictures


@pytest.fixture(scope="module")
def trained(squares):
    """The squares, with an encoder of a few steps beside them."""
    folder, pictures = squares
    flags = [f"--data={folder / 'emoji.npz'}", f"--out={folder / 'e.npz'}", "--widths=8,8,8"]
    emoji.main([*flags, "--steps=60", "--batch_size=8", "--check"])
    return folder, pictures


@pytest.mark.slow
def test_a_tiny_training_is_kept_and_used(trained, capsys):
    folder, pictures = trained
    network = feature_networks.load(f"emoji:{folder / 'e.npz'}")
    extracted = network.extract(pictures)
    kept = network.gallery.pool
    np.testing.assert_allclose(extracted.pool, kept, atol=np.abs(kept).max() / 100)
    retrieval.main(
        [f"--pictures=npz:{folder / 'pictures.npz'}", f"--features=emoji:{folder / 'e.npz'}"]
    )
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| flat | 6 | 100.0% | 100.0% | 1 |")
    assert rows[-1].startswith("| all | 12 | 100.0% |")
    statistics, source = scores.find_data(network, None, None, (64, 64, 3))
    evaluator = scores.make_evaluator(network, statistics, source)
    assert evaluator.reference.pool.count == 12 and len(evaluator.real) == 12
    with pytest.raises(ValueError, match="take images of shape"):
        scores.find_data(network, None, None, (64, 64, 1))
    assert json.loads(str(np.load(folder / "e.npz")["about"]))["styles"] == list(STYLES)


@pytest.mark.slow
def test_training_goes_on_from_an_encoder(trained, tmp_path):
    """At a rate of almost nothing it stays what it was, in the widths that it has."""
    folder, pictures = trained
    out, given = tmp_path / "more.npz", f"--data={folder / 'emoji.npz'}"
    flags = [given, f"--out={out}", "--steps=2", "--batch_size=8", "--learning_rate=1e-9"]
    emoji.main([*flags, f"--start_from={folder / 'e.npz'}"])
    params, about, gallery = emoji_encoder.read(out)
    before, of_before, _ = emoji_encoder.read(folder / "e.npz")
    assert about == of_before and gallery.names[0] == "square 0"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), params, before)
    with pytest.raises(SystemExit, match="has seen them all: leave out --check"):
        emoji.main([given, f"--out={tmp_path / 'x.npz'}", f"--start_from={out}", "--check"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--widths=a"], "--widths must be like 64,128,160"),
        (["--widths=8,8"], "--widths must be like 64,128,160, 1 to 4999 each, got '8,8'"),
        (["--widths=8,8,0"], "--widths must be like .* got '8,8,0'"),
        (["--minutes=0"], "--minutes must be in"),
        (["--steps=0"], "--steps must be"),
        (["--data=none.npz"], "no emoji at none.npz"),
        (["--data=pictures"], "holds no emoji as this command reads them"),
    ],
)
def test_what_training_refuses(squares, flags, message, tmp_path):
    flags = [flag.replace("=pictures", f"={squares[0] / 'pictures.npz'}") for flag in flags]
    with pytest.raises(SystemExit, match=message):
        emoji.main([f"--data={squares[0] / 'emoji.npz'}", f"--out={tmp_path / 'e.npz'}", *flags])


def test_damaged_pictures_of_emoji_are_refused(squares, tmp_path):
    whole, file = (squares[0] / "emoji.npz").read_bytes(), tmp_path / "emoji.npz"
    for content in (b"", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="holds no emoji as this command reads them"):
            emoji.read(file)
    for beyond in (6, -7):
        held = dict(np.load(squares[0] / "emoji.npz"))
        held["emoji"][3] = beyond
        np.savez(file, **held)
        with pytest.raises(ValueError, match=f"as this command reads them: index {beyond} is out"):
            emoji.read(file)


def test_what_retrieval_refuses(squares, tmp_path):
    _, pictures = squares
    encoder = "--features=emoji"
    np.savez(tmp_path / "bare.npz", x=pictures)
    with pytest.raises(SystemExit, match="has no captions to say what was asked for"):
        retrieval.main([f"--pictures=npz:{tmp_path / 'bare.npz'}", encoder])
    np.savez(tmp_path / "other.npz", x=pictures, y=np.zeros(12, int), captions=np.array(["x"] * 12))
    with pytest.raises(SystemExit, match="no caption of .* is a name of the gallery"):
        retrieval.main([f"--pictures=npz:{tmp_path / 'other.npz'}", encoder])
    np.savez(tmp_path / "unlabelled.npz", x=pictures, captions=np.array(["x"] * 12))
    with pytest.raises(SystemExit, match="has no labels to say in which style; noto, twemoji"):
        retrieval.main([f"--pictures=npz:{tmp_path / 'unlabelled.npz'}", encoder])
    with pytest.raises(SystemExit, match="--features must be emoji"):
        retrieval.main([f"--pictures=npz:{tmp_path / 'bare.npz'}", "--features=digits"])
    with pytest.raises(ValueError, match="is no emoji encoder"):
        feature_networks.load(f"emoji:{tmp_path / 'bare.npz'}")
    with pytest.raises(FileNotFoundError, match="no emoji encoder at"):
        feature_networks.load("emoji:none.npz")
    with pytest.raises(SystemExit, match="--worst must be at least 0, got -1"):
        retrieval.main([f"--pictures=npz:{tmp_path / 'bare.npz'}", "--worst=-1"])
    (tmp_path / "note.npz").write_text("no arrays")
    for read in (feature_networks.load, data.load):
        kind = "emoji" if read is feature_networks.load else "npz"
        with pytest.raises(ValueError, match="it is none, or holds Python objects"):
            read(f"{kind}:{tmp_path / 'note.npz'}")


def test_analogies_are_those_that_the_words_say():
    names = ["crying cat face", "crying face", "cat face pouting", "pouting face", "man", "cat"]
    there = ("crying cat face", "crying face", "pouting face", "cat face pouting")
    assert set(analogies(names)) == {there, there[::-1]}
    people = ["man singing", "woman singing", "man", "woman", "man cook", "woman cook", "cook"]
    assert set(analogies(people)) == {
        (f"{one} {what}", one, other, f"{other} {what}")
        for what in ("cook", "singing")
        for one, other in (("man", "woman"), ("woman", "man"))
    }
    assert {one.a.split()[1] for one in analogies(people, most=1)} == {"cook", "singing"}
    assert len(analogies(people, most=1)) == 2
