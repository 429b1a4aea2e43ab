"""Editing by models of latents and texts: against diffusers, in closed form, and the commands."""

import argparse
import json
import re
import shlex
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ddim_jax import checkpoints, data, edit
from ddim_jax.editing import actions, latent_inpainting, pictures, restoration
from ddim_jax.editing.editor import Editor
from ddim_jax.editing.inversion import round_trip
from ddim_jax.editing.text_features import told_features
from tests import latent_edits
from tests import published_pipelines as published
from tests.selection import slow_but
from tests.told_latents import told_latents, told_tokens

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
CAT = "a photograph of a cat"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pipelines that diffusers has drawn with."""
    place = tmp_path_factory.mktemp("pipelines")
    kinds = {options["kind"] for options in latent_edits.CASES.values()}
    return {k: published.write(place / k, k, case=latent_edits.case(k)) for k in kinds}


@pytest.fixture(scope="module")
def models(folders):
    loaded = {kind: checkpoints.load(folder) for kind, folder in folders.items()}
    editors = {
        kind: Editor(model, guidance_scale=latent_edits.GUIDANCE, show_progress=False)
        for kind, model in loaded.items()
    }
    return loaded, editors


def encoded(model, pictures=PICTURES):
    return np.asarray(model.codec.encode(model.codec.params, pictures, None))


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("name", slow_but(latent_edits.CASES, ("network 1", "replacement 0.5")))
def test_latents_of_diffusers(models, name):
    options, kind = latent_edits.CASES[name], latent_edits.CASES[name]["kind"]
    model, editor = models[0][kind], models[1][kind]
    picture, noise = latent_edits.picture(), latent_edits.noise()
    y, recipe = encoded(model, picture), model.recipe.replace(steps=options["steps"])
    table, x = latent_inpainting.start(model, recipe, options["strength"], y, noise)
    assert table.nfe == int(options["steps"] * options["strength"])
    given = {"prompt": model.inputs.told(latent_edits.PROMPT, latent_edits.NEGATIVE)}
    mask = np.float32(~latent_edits.unknown())[None, :, :, None]
    cells = latent_inpainting.known_cells(model, mask)
    if kind == "inpaint":
        given["channels"] = latent_inpainting.further_channels(model, picture, mask)
    elif options.get("mask"):
        given |= {"task": TASK, "known": restoration.Known(y, cells, noise)}
    table = table.pad(6, table.history.shape[-1]) if kind == "sd" else table
    drawn = editor.draw(table, x, **given)
    if "task" in given:
        drawn = cells * y + (1 - cells) * drawn
    wanted = np.array(json.loads(latent_edits.GOLDEN.read_text())[name])
    error = np.abs(np.array(latent_edits.some(drawn)) - wanted).max()
    assert error < 1e-4 * np.abs(wanted).max()


TASK = restoration.replacement()


@pytest.mark.slow
def test_null_texts_undo_guidance():
    """DDIM's own inversion is lost under guidance 7.5; each row is fitted by itself."""
    model = told_latents()
    x, told = encoded(model), {"prompt": model.inputs.told([CAT, "the sea"])}
    plain, guided = (
        Editor(model, guidance_scale=scale, show_progress=False) for scale in (1.0, 7.5)
    )
    naive, trip = (round_trip(model.schedule, name, steps=10) for name in ("ddim", "null_text"))
    state = plain.invert(naive, x, **told).state
    lost = rms(guided.draw(naive.down, state, **told) - x)
    found = guided.invert(trip, x, **told)
    assert found.nulls.text.shape == (2, 10, 3, 4) and found.nulls.t.shape == (2, 10)
    back = guided.draw(trip.down, found.state, nulls=found.nulls, **told)
    assert rms(back - x) < lost / 100
    first = {"prompt": model.inputs.told(CAT)}
    alone = guided.invert(trip, x[:1], **first).nulls.text
    np.testing.assert_allclose(alone, found.nulls.text[:1], atol=2e-3)
    other = guided.draw(trip.down, found.state, nulls=found.nulls, prompt="a bold seven")
    assert rms(other - x) > 10 * rms(back - x)  # another prompt is drawn


@pytest.mark.parametrize("method", slow_but(["bdia", "edict"], ["bdia"]))
def test_exact_inversions_under_guidance(method):
    model = told_latents()
    x, told = encoded(model), {"prompt": model.inputs.told(CAT, "blurry")}
    editor = Editor(model, guidance_scale=7.5, show_progress=False)
    trip = round_trip(model.schedule, method, steps=10)
    back = editor.draw(trip.down, editor.invert(trip, x, **told).state, **told)
    assert rms(back - x) < 1e-3


@pytest.mark.slow
def test_features_in_place_of_the_tokens_that_a_network_learns():
    """It draws the same; null texts are fitted to features alone."""
    model = told_tokens()
    told = told_features(model)
    assert told_features(told) is told and told.inputs.declared["text"].shape == (6, 16)
    given = dict(label="fluent", prompt=["a cat", "the sea"], seed=3, guidance_scale=3.0)
    ours, theirs = (one.draw(2, **given) for one in (model, told))
    np.testing.assert_allclose(np.int32(ours), theirs, atol=1)
    assert np.abs(np.int32(ours) - model.draw(2, **given | {"prompt": "a"})).max() > 2
    x, trip = encoded(model), round_trip(model.schedule, "null_text", steps=2, iterations=2)
    with pytest.raises(ValueError, match="null_text fits features of a text, and told is told num"):
        Editor(model, guidance_scale=3.0).invert(trip, x, "fluent", prompt="a cat")


@pytest.mark.slow
def test_null_texts_where_the_network_learns_tokens():
    model = told_features(told_tokens())
    x, trip = encoded(model), round_trip(model.schedule, "null_text", steps=2, iterations=2)
    editor = Editor(model, guidance_scale=3.0, show_progress=False)
    assert editor.invert(trip, x, "fluent", prompt="a cat").nulls.text.shape == (2, 2, 6, 16)


def test_a_cell_is_known_where_all_its_pixels_are():
    mask = np.ones((1, 16, 16, 1), np.float32)
    mask[0, 3, 4] = 0
    cells = latent_inpainting.known_cells(told_latents(), mask)
    assert cells.shape == (1, 8, 8, 1) and np.argwhere(cells == 0).tolist() == [[0, 1, 2, 0]]


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs one on the closed form; returns its numbers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.png")

    def run(name, *flags, model=None, target=None, images="images"):
        model = told_latents() if model is None else model
        found = {"digits": model, "target": target}  # by default the first
        monkeypatch.setattr(edit.checkpoints, "load", lambda name, **options: found[name])
        noises = any(flag.startswith("--seeds") for flag in flags)
        named = [] if images is None or noises else [f"--images={images}"]
        edit.main([name, *named, "--steps=4", *flags])
        out = capsys.readouterr().out.splitlines()[-1].split(": ")[0]
        return json.loads((tmp_path / out).with_suffix(".json").read_text())

    return run


@pytest.mark.slow
def test_invert_and_translate(command, tmp_path):
    flags = (f"--prompt={CAT}", "--guidance_scale=7.5")
    (row,) = command("invert", "--method=bdia", *flags)["table"]
    assert row["mean_squared_error"] < 1e-6
    out = ("--latents=codes.npz", "--iterations=3")
    command("invert", "--method=null_text", *flags, *out)
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["null_texts"].shape == (2, 4, 3, 4)
        assert codes["latents"].shape == (2, 8, 8, 4)
    numbers = command("translate", "--method=bdia", "--toward=a dog", f"--prompt={CAT}")
    assert 1e-6 < numbers["cycle_error"] < 1


def test_a_target_draws_by_its_own_autoencoder(command, tmp_path, monkeypatch):
    seen, model, write = [], told_latents(), actions.write

    def kept(model, args, rows, *rest, **named):
        seen.append(rows)
        write(model, args, rows, *rest, **named)

    monkeypatch.setattr(actions, "write", kept)
    codec = model.codec._replace(decode=lambda *given: 255 - model.codec.decode(*given))
    for target in (model, model.replace(codec=codec)):
        command("translate", "--target=target", f"--prompt={CAT}", "--overwrite", target=target)
    np.testing.assert_array_equal(seen[1]["translated"], 255 - seen[0]["translated"])
    np.testing.assert_array_equal(seen[1]["and back"], seen[0]["and back"])
    with pytest.raises(SystemExit, match="--target=target draws samples of shape .8, 16, 4. and"):
        command("translate", "--target=target", target=model.sized((16, 32)))


def test_sdedit_of_a_prompt_file(command, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{CAT}\n\nthe sea\n")
    numbers = command("sdedit", "--strength=0.25,1", "--prompt=@prompts.txt", "--size=16x32",
                      "--resize", "--negative_prompt=blurry")  # fmt: skip
    distances = numbers["mean_squared_difference"]
    assert distances["image"] == 0 < distances["0.25"] < distances["1"]
    assert numbers["solver"] == "ddim"


@pytest.mark.parametrize("flags, count", [((), 6), (("--solver=ddim",), 50), (("--steps=3",), 3)])
def test_the_models_own_solver_takes_its_own_steps(tmp_path, monkeypatch, capsys, flags, count):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(edit.checkpoints, "load", lambda *args, **options: told_latents())
    Image.fromarray(PICTURES[0]).save("a.png")
    edit.main(["sdedit", "--images=a.png", f"--prompt={CAT}", "--strength=1", *flags])
    assert f"strength 1: {count} evaluations" in capsys.readouterr().out


def test_guidance_is_the_models_own_but_for_the_scale_of_the_flag(monkeypatch):
    """Interval, rescale and channels too, as of sample.py."""
    monkeypatch.setattr(actions, "Editor", lambda model, **options: options)
    guidance = dict(guidance_scale=4.0, guidance_interval=(0.1, 9.0), guidance_rescale=0.5)
    model = told_latents()
    model = model.replace(recipe=model.recipe.replace(guidance_channels=3, **guidance))
    for given in (None, 2.0):
        args = argparse.Namespace(guidance_scale=given, batch_size=2)
        made = actions.make_editor(model, args, own=True)
        scale = {} if given is None else {"guidance_scale": given}
        assert made == guidance | {"guidance_channels": 3, "batch_size": 2} | scale
        assert actions.make_editor(model, args) == {"batch_size": 2} | scale


@pytest.mark.parametrize(
    "scale, toward, said", [(1.0, None, 1), (1.0, 1.0, 1), (3.0, None, 0), (1.0, 3.0, 0)]
)
def test_a_negative_prompt_without_guidance_is_said(scale, toward, said):
    args = argparse.Namespace(
        guidance_scale=scale, toward_guidance=toward, batch_size=2, negative_prompt="blurry"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actions.told(actions.make_editor(told_latents(), args), args, [CAT])
    assert sum("'blurry' changes nothing" in str(one.message) for one in caught) == said


def test_frames_are_told_apart_whatever_else_is_told(monkeypatch):
    """Along a walk between prompts, and where a direction is of no text or label."""
    args, pair = argparse.Namespace(alone=True, told=False), {"text": np.eye(2)[:, None]}
    given = actions.apart(args) | {"prompt": pair}
    _, walked = actions._walk_of_prompts(np.zeros((1, 4)), given, 2, actions.latents.straight)
    assert walked["alone"] and len(walked["prompt"]["text"]) == 3
    assert actions.apart(argparse.Namespace(alone=False)) == {}


def test_shapes_without_weights_edit_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shapes = told_latents()
    shapes = shapes.replace(params=jax.eval_shape(lambda: shapes.params))
    monkeypatch.setattr(edit.checkpoints, "load", lambda *args, **options: shapes)
    with pytest.raises(SystemExit, match="told has shapes and no weights: it can be planned with"):
        edit.main(["sdedit", "--num=1", "--resize"])


def test_texts_without_an_image_are_said(capsys):
    for count, said in {2: "note: 3 texts for 2 images: 1 left out\n", 3: ""}.items():
        pictures.Asked.of(told_latents().inputs, count, None, ["a", "b", "c"])
        assert capsys.readouterr().err == said


def test_walks_between_prompts(command, tmp_path):
    flags = (f"--prompt={CAT}", "--prompt=the sea", "--frames=3", "--method=ddim")
    assert command("interpolate", "--seeds=3", *flags)["frames"] == 4
    both = command("interpolate", "--seeds=3,5", "--between=slerp", *flags)
    assert both["frames"] == 4 and both["greatest_step"] > 0
    (tmp_path / "texts.txt").write_text(f"{CAT}\nthe sea\n")
    for prompts in (flags, ("--prompt=@texts.txt", *flags[2:])):  # alone: all are of one noise
        alone = command("interpolate", *prompts, images=None)
        assert alone["step"] == command("interpolate", "--seeds=0", *flags)["step"]


@pytest.mark.parametrize("named", ["--index=0,1,2", "--num=3", "--only=7", "--shuffle"])
def test_a_walk_between_prompts_and_images_that_are_named_is_between_both(command, named):
    with pytest.raises(SystemExit, match="digits holds images of shape .*--images names others"):
        command("interpolate", "--prompt=a", "--prompt=b", named, images=None)


@pytest.mark.slow
def test_walks_between_prompts_whose_tokens_the_network_learns(command, tmp_path):
    """Features are mixed: half-way between two equal prompts lies that prompt."""
    flags = ("--seeds=3", "--frames=2", "--method=ddim", "--label=noto", "--save=walk.npz")
    both = ("--prompt=a cat", "--prompt=a cat")
    assert command("interpolate", *flags, *both, model=told_tokens())["greatest_step"] < 1e-5
    numbers = command(
        "interpolate", *flags, "--prompt=a cat", "--prompt=sea", "--overwrite", model=told_tokens()
    )
    first, second = numbers["step"]
    assert min(first, second) > 0.1 * max(first, second)


# --- networks that are told texts and classes -----------------------------------------------------

STYLES = ("noto", "twemoji", "fluent")


@pytest.fixture
def styled(command, tmp_path):
    """Runs a command on two captioned pictures, a noto and a fluent one: (numbers, saved)."""
    held = dict(images=PICTURES, labels=[0, 2], class_names=STYLES)
    np.savez(tmp_path / "styled.npz", captions=["beating heart", "slice of pizza"], **held)
    np.savez(tmp_path / "plain.npz", **held)

    def run(name, *flags, images="styled"):
        common = (f"--images=npz:{images}.npz", "--save=out.npz", "--overwrite")
        numbers = command(name, *common, *flags, model=told_latents(names=STYLES))
        with np.load(tmp_path / "out.npz") as saved:
            return numbers, dict(saved)

    return run


@pytest.mark.parametrize("name", slow_but(("sdedit", "invert", "inpaint"), ("sdedit", "invert")))
def test_an_images_own_label_and_caption_are_told(styled, name, tmp_path):
    numbers, saved = styled(name)
    source = data.load("npz:out.npz")
    assert source.captions == ("beating heart", "slice of pizza") and source.class_names == STYLES
    assert saved["labels"].tolist() == [0, 2]
    given = styled(name, "--prompt=beating heart", "--prompt=slice of pizza", images="plain")[1]
    np.testing.assert_array_equal(saved["images"], given["images"])
    assert name == "invert" or numbers["judged"] == 2
    if name != "invert":  # where nothing changes, nothing is told apart
        none = styled(name, "--prompt=")[1]
        assert none["captions"].tolist() == ["", ""]
        assert np.abs(np.int32(none["images"]) - given["images"]).max() > 2


def test_another_style_keeps_the_caption(styled):
    numbers, saved = styled("sdedit", "--label=fluent", "--strength=0.5,1")
    assert saved["labels"].tolist() == [2, 2] and saved["captions"].tolist() == [
        "beating heart",
        "slice of pizza",
    ]
    for what in ("top1", "top5", "style", "top1_in_style", "top5_in_style"):
        assert set(numbers[what]) == {"image", "0.5", "1"}
    assert "judged" not in styled("sdedit", images="plain")[0]


@pytest.mark.parametrize(
    "toward, labels, captions",
    [
        ("Fluent", [2, 2], ["beating heart", "slice of pizza"]),
        ("2", [0, 2], ["2", "2"]),
        ("a dog", [0, 2], ["a dog", "a dog"]),
    ],
)
def test_translation_toward_a_class_keeps_the_prompt_and_the_other_way_round(
    styled, toward, labels, captions
):
    numbers, saved = styled("translate", "--method=bdia", f"--toward={toward}")
    assert saved["labels"].tolist() == labels and saved["captions"].tolist() == captions
    assert numbers["cycle_error"] > 0 and np.abs(np.int32(saved["images"]) - PICTURES).max() > 2
    guided = styled("translate", "--method=bdia", f"--toward={toward}", "--toward_guidance=3")[1]
    assert np.abs(np.int32(saved["images"]) - guided["images"]).max() > 2


def test_directions_of_what_texts_do_not_say(styled, tmp_path):
    flags = ("--by=fluent:noto", "--strength=1")
    plain, told = (styled("attribute", *flags, *more)[1] for more in ((), ("--told",)))
    assert "labels" not in plain and "captions" not in plain
    assert told["labels"].tolist() == [0, 2] and told["captions"].tolist() == [
        "beating heart",
        "slice of pizza",
    ]
    assert np.abs(np.int32(plain["images"]) - told["images"]).max() > 2
    both = ("--toward=npz:styled.npz", "--away=npz:plain.npz", "--told", "--strength=0")
    assert styled("arithmetic", *both)[1]["labels"].tolist() == [0, 2]


def test_walks_between_captioned_images(styled):
    _, saved = styled("interpolate", "--frames=2", "--method=ddim")
    assert "labels" not in saved and "captions" not in saved
    _, saved = styled("interpolate", "--frames=2", "--prompt=a dog", "--label=fluent")
    assert saved["labels"].tolist() == [2, 2] and saved["captions"].tolist() == ["a dog"] * 2


def test_images_of_a_named_class_in_random_order(styled, tmp_path):
    _, saved = styled("sdedit", "--only=Fluent")
    assert saved["captions"].tolist() == ["slice of pizza"]

    def first(seed):
        args = dict(images="npz:styled.npz", split="train", resize=False, index=[], num=1)
        args |= dict(only=None, shuffle=True, seed=seed)
        return pictures.read_pictures(told_latents(), argparse.Namespace(**args))[2]

    assert {*map(tuple, map(first, range(5)))} == {("beating heart",), ("slice of pizza",)}


@pytest.mark.parametrize(
    "names, labels",
    [
        (("fluent", "noto"), [2, 0]),
        (("twemoji", "noto", "fluent"), [1, 2]),
        (("a", "b", "c"), None),
        (("a", "b"), None),
        ((), None),
    ],
)
def test_labels_are_numbered_as_the_network_numbers_them(styled, names, labels, capsys):
    held = dict(images=PICTURES, captions=["a", "b"], labels=[0, max(1, len(names) - 1)])
    np.savez("other.npz", **held, **({"class_names": names} if names else {}))
    args = dict(images="npz:other.npz", split="train", resize=False, index=[0, 1])
    found = pictures.read_pictures(told_latents(names=STYLES), argparse.Namespace(**args))[1]
    assert (found if labels is None else found.tolist()) == labels
    foreign = f"classes ({', '.join(names)}) of npz:other.npz are not the network's"
    assert (foreign in capsys.readouterr().err) == (labels is None and bool(names))


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("sdedit", ["--only=emoji"], r"no image of that class; its classes are 0..2 .noto, twem"),
        (
            "sdedit",
            ["--label=fluant"],
            "labels must be 0..2 or a class name, got fluant .did you m",
        ),
        ("translate", [], "--toward is a prompt, unless it names a class"),
        (
            "translate",
            ["--toward=fluent", "--toward_guidance=2", "--method=null_text"],
            "null_text has one guidance for both ways",
        ),
    ],
)
def test_errors_of_a_network_told_both(styled, name, flags, message):
    with pytest.raises(SystemExit, match=message):
        styled(name, *flags)


@pytest.mark.parametrize("flags", [(), ("--method=replacement", "--strength=0.5", "--no_paste")])
def test_inpainting(command, tmp_path, flags):
    numbers = command("inpaint", f"--prompt={CAT}", "--save=out.npz", *flags)
    with np.load(tmp_path / "out.npz") as saved:
        images = saved["images"]
    kept = np.abs(np.int32(images[:, :, :8]) - PICTURES[:, :, :8]).max()
    assert (kept == 0) == (numbers["known_error"] == 0) == (not flags)
    assert np.abs(np.int32(images[:, :, 8:]) - PICTURES[:, :, 8:]).max() > 20


def test_the_commands_of_the_page_on_editing(tmp_path, monkeypatch, capsys):
    """Literally, but for the folder, with a picture and a mask of any size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(edit.checkpoints, "load", lambda *args, **options: told_latents())
    across, down = np.meshgrid(np.arange(30), np.arange(40))
    picture = np.stack([8 * across, 6 * down, 4 * across + down], -1)
    Image.fromarray(np.uint8(picture)).save("cat.png")
    unknown = (10 < down) & (down < 30) & (8 < across) & (across < 22)
    Image.fromarray(np.uint8(255 * ~unknown)).save("mask.png")
    page = (Path(__file__).parent.parent / "docs" / "editing.md").read_text()
    commands = re.findall(r"^python -m ddim_jax.edit (.*FOLDER.*)$", page, re.M)
    assert len(commands) == 5
    for line in commands:
        few = ["--steps=4"] + ["--iterations=2"] * ("null_text" in line)
        edit.main([*shlex.split(line), *few])
        out = capsys.readouterr().out.splitlines()[-1].split(": ")[0]
        with Image.open(out) as shown:
            assert np.std(np.asarray(shown.convert("RGB"))) > 20


def test_a_mask_is_cropped_and_resized_as_the_pictures_are(tmp_path):
    """40 x 30 to 16 x 16: five rows at the top and at the bottom are cut off."""
    mask = np.full((40, 30), 255, np.uint8)
    mask[20:, :15] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    args = argparse.Namespace(mask=str(tmp_path / "mask.png"), resize=True)
    found = pictures.read_mask(args, (2, 16, 16, 3))
    wanted = np.ones((2, 16, 16, 1))
    wanted[:, 8:, :8] = 0
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="40 x 30, the images are 16 x 16; .* resizes both"):
        pictures.read_mask(argparse.Namespace(mask=args.mask, resize=False), (2, 16, 16, 3))


def test_inpainting_by_a_network_made_for_it(command):
    model = told_latents(5)
    numbers = command("inpaint", f"--prompt={CAT}", "--strength=0.75", model=model)
    assert numbers["method"] == "network" and numbers["evaluations"] == 3
    with pytest.raises(ValueError, match="completes pictures and draws none from noise alone"):
        model.draw(prompt=CAT)


@pytest.mark.parametrize(
    "name, flags, further, message",
    [
        ("inpaint", ["--method=dps"], 0, "told draws latents: use --method=repaint or replacement"),
        ("inpaint", ["--method=ddnm"], 0, "use --method=repaint or replacement, got ddnm"),
        ("inpaint", ["--operator=grey"], 0, "--operator=grey measures pixels, and told draws lat"),
        ("inpaint", ["--method=repaint"], 5, "made for inpainting: use --method=network, got rep"),
        ("inpaint", [], 4, "further channels of kind 'edit', which inpaint has not"),
        ("inpaint", ["--mask=small.png"], 0, "is 5 x 5, the images are 16 x 16; white is known"),
        ("inpaint", ["--strength=0.5"], 0, "--method=repaint starts from noise; use --method=repl"),
        ("inpaint", ["--solver=ddim"], 0, "repaint is a solver itself and takes no --solver"),
        ("inpaint", ["--jump_length=9"], 0, "--jump_length must be below the 4 --steps, got 9"),
        (
            "inpaint",
            ["--method=replacement", "--resamplings=2"],
            0,
            "--resamplings is of --method=repaint, got --method=replacement",
        ),
        ("sdedit", [], 5, "is told what to keep of a picture: use inpaint"),
        ("sdedit", ["--size=16x17"], 0, "sides are multiples of 2, got 16 x 17; for 17 take 16"),
        ("sdedit", ["--size=16"], 0, "--size must be HEIGHTxWIDTH like 512x768, got '16'"),
        ("sdedit", ["--label=3"], 0, "takes no labels"),
        ("invert", ["--method=null_text"], 0, "null_text undoes guidance, and there is none"),
        ("interpolate", ["--method=null_text"], 0, "picture, .*; use fixed_point or ddim"),
        ("interpolate", ["--method=bdia"], 0, "--method=bdia inverts to a pair of points"),
        ("interpolate", ["--method=edict"], 0, "to a pair .* interpolate changes one; use fixed_p"),
        ("interpolate", ["--prompt=a", "--prompt=b", "--prompt=c"], 0, "a walk between 3 prompts"),
        ("interpolate", ["--seeds=-1,2"], 0, "--seeds must be in .0, 2147483647., got -1"),
        ("invert", ["--prompt=@none.txt"], 0, "no file 'none.txt' of prompts .*has no 'none.txt'"),
        ("invert", ["--negative_prompt=@bad.txt"], 0, "--negative_prompt is one text for all, no"),
        ("translate", [], 0, "needs --toward, a class, or --target"),
    ],
)
def test_errors_are_one_line(command, tmp_path, name, flags, further, message):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "small.png")
    model = told_latents(further, "inpaint" if further != 4 else "edit")
    with pytest.raises(SystemExit, match=message):
        command(name, *flags, model=model)


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("invert", ["--prompt=a"], "digits is told no text: leave out --prompt"),
        ("sdedit", ["--negative_prompt=a"], "digits is told no text: leave out --prompt"),
        ("sdedit", ["--size=32x32"], "digits draws pictures of 28 x 28 alone: give no size"),
        ("invert", ["--method=null_text"], "null_text fits the null text of guidance, and digits"),
        ("inpaint", ["--method=network"], "--method=network is of networks made for inpainting"),
        ("inpaint", ["--strength=0.5"], "--strength of inpaint is for models of latents"),
    ],
)
def test_errors_of_a_network_without_texts(tmp_path, monkeypatch, name, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        edit.main([name, "--num=1", "--steps=4", *flags])
