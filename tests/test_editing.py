"""The editor on the bundled network, and the command on a tiny one: pictures, numbers, errors."""

import dataclasses
import json
import types
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from ddim_jax import checkpoints, data, edit, experiment, schedules, strides
from ddim_jax.editing import inpainting, judging, pictures, restoration
from ddim_jax.editing.editor import Editor, squared_error
from ddim_jax.editing.inversion import round_trip
from ddim_jax.editing.sdedit import sdedit_table
from ddim_jax.evaluation.features import Features
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SOLVERS
from ddim_jax.strides import learned
from ddim_jax.training import loop
from tests.errors import rejects
from tests.selection import slow_but
from tests.tiny import tiny

NAMES = tuple("zero one two three four five six seven eight nine".split())


@pytest.fixture(scope="module")
def bundled():
    return checkpoints.load("digits")


@pytest.fixture(scope="module")
def images():
    source = data.load("digits")
    chosen = [source[i] for i in range(4)]
    return (
        data.to_unit_range(np.stack([example["image"] for example in chosen])),
        np.array([example["label"] for example in chosen]),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The file of a tiny class-conditional network on 8 x 8 digits."""
    workdir = tmp_path_factory.mktemp("tiny")
    loop.train(tiny(digits.get_config(), levels=1), workdir)
    checkpoints.save(workdir / "tiny.safetensors", checkpoints.load(workdir))
    return workdir / "tiny.safetensors"


def make_editor(model, **options):
    return Editor(model, **{"batch_size": 4, "show_progress": False} | options)


@pytest.mark.slow
def test_real_digits_come_back(bundled, images):
    """Few steps here; docs/gallery.md has 256 digits at 50."""
    x, labels = images
    errors = {}
    editor = make_editor(bundled)
    for method in ("ddim", "fixed_point", "bdia"):
        trip = round_trip(bundled.schedule, method, steps=12)
        latents = editor.invert(trip, x, labels)
        errors[method] = squared_error(x, editor.draw(trip.down, latents.state, labels)).max()
        assert latents.state.evaluate.shape == x.shape
        assert (latents.residual is not None) == (method == "fixed_point")
    assert errors["fixed_point"] < errors["ddim"] / 20
    assert errors["bdia"] < 1e-9
    assert 0 < latents.state.evaluate.std() < 1.5


@pytest.mark.slow
def test_new_images_masks_and_strengths_compile_nothing(bundled, images):
    x, labels = images
    traced, before = [], None
    plain = restoration.replacement()

    def counted(*args):
        traced.append(1)
        return plain.constrain(*args)

    task = plain._replace(constrain=counted)
    editor, trip = make_editor(bundled), round_trip(bundled.schedule, steps=2, refinements=2)
    rng = np.random.default_rng(0)
    for strength, shift in ((1.0, 0.0), (0.5, 0.1)):
        editor.draw(trip.down, editor.invert(trip, x + shift, labels).state, labels[::-1])
        recipe = Recipe("ddim", "uniform", steps=round(2 / strength))
        table = sdedit_table(bundled.schedule, recipe, strength)
        editor.draw(table, x + shift, labels)
        mask = rng.integers(0, 2, (4, 28, 28, 1)).astype(np.float32)
        known = restoration.Known(mask * x, mask)
        restored = editor.draw(trip.down, None, labels, task=task, known=known)
        np.testing.assert_array_equal(mask * restored, mask * x)
        programs = [len(g._programs) for g in editor._generators.values()]
        assert (programs, len(traced)) == (before := before or (programs, len(traced)))


def test_guidance_and_batches_of_any_size(bundled, images):
    x, labels = images
    trip = round_trip(bundled.schedule, "bdia", steps=2)
    whole = make_editor(bundled, guidance_scale=2.0)
    parts = make_editor(bundled, guidance_scale=2.0, batch_size=3)
    ours, theirs = whole.invert(trip, x, labels).state, parts.invert(trip, x, labels).state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)
    np.testing.assert_allclose(parts.draw(trip.down, theirs, labels), x, atol=1e-3)


def test_latents_that_are_no_noise_are_said_and_good_ones_are_not(bundled, images):
    x, labels = images
    trip = round_trip(bundled.schedule, "bdia", steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_editor(bundled).invert(trip, x, labels)
        make_editor(bundled, guidance_scale=15.0).invert(trip, x, labels)
    wild = bundled.replace(params=jax.tree.map(lambda leaf: 3 * leaf, bundled.params))
    with pytest.warns(UserWarning, match="4 of 4 images .* size up to .*, where noise has 1, .*un"):
        far = make_editor(wild).invert(trip, x, labels).state.evaluate
    assert np.all(np.isfinite(far))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(method="ddmi"), "unknown inversion 'ddmi' .did you mean"),
        (dict(method="ddpm"), "inversion needs a deterministic solver"),
        (
            dict(method="bdia", gama=1),
            "inversion 'bdia' has no option 'gama' .did you mean 'gamma'",
        ),
        (dict(stride="unifrm"), "unknown stride 'unifrm'"),
        (dict(steps=0), "steps must be"),
    ],
)
def test_bad_round_trips(bundled, options, message):
    with pytest.raises(ValueError, match=message):
        round_trip(bundled.schedule, **options)


def test_bad_images(bundled):
    editor, trip = make_editor(bundled), round_trip(bundled.schedule, steps=2)
    with pytest.raises(ValueError, match=r"takes images \[N, 28, 28, 1\], got \[2, 8, 8, 1\]"):
        editor.invert(trip, np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="draw needs x, .* or known"):
        editor.draw(trip.down)


def test_bad_editors(bundled):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make_editor(bundled, batch_size=0)
    with pytest.raises(
        ValueError, match="no option 'gidance_scale' .did you mean 'guidance_scale'"
    ):
        make_editor(bundled, gidance_scale=2.0)


def test_labels_are_null_unless_given_and_may_be_names(bundled, images):
    named = bundled.replace(inputs=dataclasses.replace(bundled.inputs, class_names=NAMES))
    editor, trip = make_editor(named), round_trip(bundled.schedule, "bdia", steps=2)
    state = editor.invert(trip, images[0]).state
    three = editor.draw(trip.down, state, "three")
    np.testing.assert_array_equal(three, editor.draw(trip.down, state, 3))
    np.testing.assert_array_equal(three, editor.draw(trip.down, state, np.full(4, 3)))
    np.testing.assert_allclose(editor.draw(trip.down, state), images[0], atol=1e-4)
    assert np.abs(three - images[0]).max() > 0.1
    with pytest.raises(ValueError, match="labels must be 0..9 or a class name, got thre"):
        editor.invert(trip, images[0], "thre")


# --- SDEdit ---------------------------------------------------------------------------------------


def test_sdedit_noises_to_the_level_of_its_first_step():
    schedule = schedules.cosine()
    table = sdedit_table(schedule, Recipe("ddim", "uniform", steps=10), 0.3)
    times = strides.uniform(schedule, 10)[-4:]
    level = schedule.level(times[0])
    np.testing.assert_allclose(table.start, [level.alpha, level.sigma])
    np.testing.assert_allclose(table.level.t, times[:-1])


@pytest.mark.parametrize(
    ("strength", "steps"), [(0.5, 48), (0.97, 93), (0.98, 94), (0.99, 95), (1.0, 96)]
)
def test_sdedit_counts_the_steps_that_the_stride_holds(strength, steps):
    """The quadratic stride of a 1000-step schedule holds 96 steps where 100 are asked for."""
    schedule = schedules.ddpm_linear()
    recipe = Recipe("ddim", "quadratic", steps=100)
    times = recipe.times(schedule)
    assert len(times) == 97
    table = sdedit_table(schedule, recipe, strength)
    np.testing.assert_allclose(table.level.t, times[96 - steps : -1])


@pytest.mark.parametrize("name", SOLVERS)
def test_sdedit_noises_to_the_level_that_the_network_is_told(name):
    """Also where a solver adds noise before its first step, as EDM's does."""
    schedule = schedules.cosine()
    options = {"s_noise": 1.0} if name == "heun_churn" else {}
    table = sdedit_table(schedule, Recipe(name, "karras", 8, options, {"lam_min": -4.0}), 0.5)
    ratio = table.level.sigma[0] / table.level.alpha[0]
    assert table.start[1] / table.start[0] == pytest.approx(ratio, rel=1e-6)
    assert table.start[0] == pytest.approx(table.level.alpha[0], rel=1e-6)


@pytest.mark.parametrize(
    ("recipe", "strength", "message"),
    [
        (Recipe(steps=50), 0.001, r"strength must be in \(0, 1\] and make .* 50 steps, got 0.001"),
        (Recipe(steps=50), 1.01, r"strength must be in \(0, 1\].* got 1.01"),
        (Recipe(solver_options={"analytical_first_step": 0.5}), 0.5, "from pure noise, and SDEdit"),
    ],
)
def test_bad_strengths(recipe, strength, message):
    with pytest.raises(ValueError, match=message):
        sdedit_table(schedules.cosine(), recipe, strength)


def test_coefficients_of_a_whole_drawing_are_refused(tmp_path):
    """A learned stride without them serves."""
    schedule = schedules.cosine()
    plain = Recipe(steps=4)
    times, shape = plain.times(schedule), plain.table(schedule).history.shape
    lam, path = schedule.half_log_snr(times[:-1]), str(tmp_path / "s.json")
    makers = (
        lambda: sdedit_table(schedule, Recipe(stride=path), 0.5).level.t,
        lambda: round_trip(schedule, "ddim", 4, path).down.level.t,
        lambda: round_trip(schedule, "fixed_point", 4, path).down.level.t,
    )
    for history in (None, np.full(shape, 0.1)):
        stride = learned.LearnedStride(times, "x", {}, "ddim", lam, 1.0, "x", "x", history)
        learned.save(path, stride, overwrite=True)
        for make in makers:
            if history is None:
                np.testing.assert_allclose(make()[-1], times[-2])
            else:
                with rejects(ValueError, "s.json holds coefficients", "without --coefficients"):
                    make()


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs one on the tiny network; returns its numbers."""
    monkeypatch.chdir(tmp_path)

    def run(name, *flags):
        common = (f"--checkpoint={checkpoint}", "--num=4", "--steps=4")
        resize = () if name == "compare" else ("--resize",)  # of noises
        edit.main([name, *common, *resize, *flags])
        out = capsys.readouterr().out.splitlines()[-1].split(": ")[0]
        return out, json.loads((tmp_path / out).with_suffix(".json").read_text())

    return run


@pytest.mark.slow
def test_inversion_of_several_step_counts_makes_a_table_and_a_plot(command, tmp_path):
    flags = ("--method=bdia", "--steps=3,6", "--latents=codes.npz", "--out=out.png")
    table = command("invert", *flags)[1]["table"]
    assert [row["steps"] for row in table] == [3, 6]
    assert all(row["mean_squared_error"] < 1e-8 and len(row["errors"]) == 4 for row in table)
    assert Image.open(tmp_path / "invert_error-0001.png").size[0] > 300
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["latents"].shape == codes["base"].shape == (4, 8, 8, 1)


@pytest.mark.slow
def test_the_same_noise_in_several_step_counts(command):
    _, numbers = command("compare", "--steps=2,4", "--method=ddim")
    coarse, fine = numbers["table"]
    assert fine["distance"] == 0 < coarse["distance"] and coarse["correlation"] < 1
    np.testing.assert_allclose(fine["correlation"], 1)


@pytest.mark.slow
def test_a_walk_between_noises_and_between_images(command, tmp_path):
    out, numbers = command("interpolate", "--seeds=1,2,3", "--frames=4", "--label=3")
    assert out == "edits/interpolate-0001.png" and numbers["frames"] == 9
    out, numbers = command("interpolate", "--grid=3", "--method=ddim")
    assert out == "edits/interpolate-0002.png" and numbers["frames"] == 9
    out, _ = command("interpolate", "--num=2", "--frames=3", "--out=walk.gif")
    assert Image.open(tmp_path / out).n_frames == 6  # there and back


@pytest.mark.slow
def test_directions_from_sets_and_from_labels(command, tmp_path):
    for name in ("bold", "thin"):
        (tmp_path / name).mkdir()
        pixels = np.full((12, 12), 200 if name == "bold" else 20, np.uint8)
        for i in range(2):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    _, numbers = command("arithmetic", "--toward=bold", "--away=folder:thin", "--strength=0,1")
    assert (numbers["toward"], numbers["away"], numbers["direction"]) == (2, 2, "mean")
    assert set(numbers["mean_brightness"]) == {"image", "+0", "+1"}
    flags = ("--learn_from=60", "--probe")
    _, numbers = command("attribute", "--by=7:1", *flags)
    assert numbers["toward"] == 6 and numbers["direction"] == "probe"
    _, by_ink = command("attribute", "--random", "--learn_from=60")
    assert by_ink["direction"] == "random"


@dataclasses.dataclass(frozen=True)
class Still:
    """Predicts v = 0: a latent is the image, smaller by the same factor everywhere."""

    def apply(self, variables, x, t, told, dropout_keys=None):
        return variables["params"]["zero"] * x


@pytest.fixture
def still(tmp_path, monkeypatch):
    """Runs a command on that network; returns its numbers."""
    monkeypatch.chdir(tmp_path)
    params = {"zero": np.zeros((), np.float32)}
    model = experiment.build(tiny(digits.get_config(), levels=1))
    model = model.replace(network=Still(), params=params, name="still")
    monkeypatch.setattr(checkpoints, "load", lambda *given, **options: model)

    def run(name, *flags):
        edit.main([name, "--num=3", "--steps=8", "--method=ddim", "--resize", *flags])
        (file,) = Path("edits").glob("*.json")
        return json.loads(file.read_text())

    return run


@pytest.mark.parametrize("probe", [(), ("--probe",)])
def test_a_direction_leads_from_what_is_away_to_what_is_toward(still, probe):
    for name, level in (("bold", 200), ("thin", 20)):
        Path(name).mkdir()
        for i in range(2):
            pixels = np.full((8, 8), level + i, np.uint8)
            Image.fromarray(pixels).save(f"{name}/{i}.png")
    flags = ("--toward=folder:bold", "--away=folder:thin", "--strength=-1,0,1", *probe)
    brightness = still("arithmetic", *flags)["mean_brightness"]
    assert brightness["-1"] + 0.05 < brightness["+0"] < brightness["+1"] - 0.05


def test_a_direction_of_ink_leads_to_what_is_bright(still):
    brightness = still("attribute", "--learn_from=40", "--strength=0,1")["mean_brightness"]
    assert brightness["+1"] > brightness["+0"] + 0.1


def at(name, shape=(2, 8, 10, 1), **options):
    """A mask by its name; its four corners, and its middle."""
    asked = {"mask": name, "resize": False, "seed": 0} | options
    mask = pictures.read_mask(types.SimpleNamespace(**asked), shape)
    assert mask.shape == (*shape[:-1], 1) and mask.dtype == np.float32
    height, width = shape[-3:-1]
    one = mask[1, ..., 0]
    assert np.array_equal(one, mask[0, ..., 0])
    ends = [one[..., y, x] for y in (0, -1) for x in (0, -1)]
    return mask, [*ends, one[..., height // 2, width // 2]]


def test_masks_are_one_where_pictures_are_known(tmp_path):
    """At the corners, line by line, and in the middle."""
    expected = {
        "left": [0, 1, 0, 1, 1],
        "right": [1, 0, 1, 0, 0],
        "top": [0, 0, 1, 1, 1],
        "bottom": [1, 1, 0, 0, 0],
        "center": [1, 1, 1, 1, 0],
    }
    shares = dict.fromkeys(expected, 0.5) | {"center": 1 - 24 / 80}
    for name, ends in expected.items():
        mask, found = at(name)
        assert found == ends and np.isclose(mask.mean(), shares[name]), name
        frames = at(name, (2, 3, 8, 10, 1))[1]
        assert np.array_equal(frames, np.repeat(np.array(ends)[:, None], 3, 1))
    pixels = np.zeros((8, 10), np.uint8)
    pixels[:3] = 255  # white is known
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(at(str(tmp_path / "mask.png"))[0][0, ..., 0], pixels / 255)


def test_masks_at_random_hide_the_share_that_is_asked_for():
    for name, share in (("random", 0.5), ("random:0.8", 0.8), ("random:0", 0), ("random:1", 1)):
        mask = at(name, (2, 64, 64, 1))[0]
        assert abs(mask.mean() - (1 - share)) <= 5 * np.sqrt(share * (1 - share)) / 64
    other = at("random", (2, 64, 64, 1), seed=1)[0]
    assert 0.4 < np.mean(other == at("random", (2, 64, 64, 1))[0]) < 0.6


def test_digits_that_are_read_as_others_have_changed():
    """By made-up logits: of the second row one in two; of fewer than 500 there is no FDD."""
    logits = {"image": [[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]], "+1": [[0.0, 1.0, 2.0], [1.0, 0.5, 0.0]]}
    rows = {name: Features(np.zeros((2, 4)), np.array(of)) for name, of in logits.items()}
    found = judging._digits(rows)
    assert found["read"] == {"image": [1, 0], "+1": [2, 0]}
    assert found["changed"] == {"image": 0, "+1": 0.5} and "FDD" not in found


@pytest.mark.parametrize("method", slow_but(inpainting.RESTORATIONS, ("repaint",)))
def test_inpainting_keeps_what_is_known(command, method, tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[:3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    own = ["--resamplings=2"] if method == "repaint" else []
    _, numbers = command("inpaint", f"--method={method}", "--mask=mask.png", *own)
    assert numbers["known_error"] < 1e-6
    assert numbers["evaluations"] > 4 if method == "repaint" else numbers["evaluations"] == 4


@pytest.mark.slow
def test_sharper_images(command):
    for method, operator in (("ddnm", "average:2"), ("dps", "blur:0.6")):
        _, numbers = command("inpaint", f"--method={method}", f"--operator={operator}")
        assert numbers["known_error"] < (1e-5 if operator == "average:2" else 0.05)


@pytest.mark.slow
def test_translation_and_sdedit(command, checkpoint):
    _, numbers = command("translate", "--toward=8", "--method=bdia")
    assert numbers["cycle_error"] < 0.1
    command("translate", f"--target={checkpoint}", "--method=ddim")
    _, numbers = command("sdedit", "--strength=0.25,1")
    distances = numbers["mean_squared_difference"]
    assert distances["image"] == 0 < distances["0.25"] < distances["1"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("invert", "--images=nowhere.png"), "nowhere.png"),
        (("invert", "--index=9999"), r"--index must be 0..4999, got 9999"),
        (("invert", "--only=12"), "--only=12: digits holds no image of that class"),
        (("invert", "--save=there.png"), "--save must end in .npz"),
        (("invert", "--out=x.gif"), "--out must end in .png, got x.gif"),
        (("invert", "--out=there.png"), "--out there.png exists; choose another name"),
        (("invert", "--out=numbers.png"), "beside --out, numbers.json exists"),
        (("invert", "--latents=there.npz"), "--latents there.npz exists"),
        (("invert", "--method=bdia", "--refinements=2"), "'bdia' has no option 'refinements'"),
        (("translate", "--toward=8", "--steps=4,8"), "translate takes one number of --steps, got"),
        (("inpaint", "--steps=4,8"), "inpaint takes one number of --steps"),
        (("invert", "--images=broken"), "broken"),
        (("invert", "--method=ddpm"), "inversion needs a deterministic solver"),
        (("inpaint", "--mask=middle"), "--mask must be a file or one of left, right"),
        (("inpaint", "--operator=average"), "--method=repaint replaces pixels, and --operator=ave"),
        (("inpaint", "--operator=grey", "--method=dps"), "--operator=grey needs colour images"),
        (("inpaint", "--operator=warp", "--method=dps"), "unknown operator 'warp'"),
        (("translate",), "needs --toward, a class, or --target"),
        (("translate", "--toward=12"), "labels must be 0..9"),
        (("sdedit", "--strength=2"), r"strength must be in \(0, 1\]"),
        (("attribute", "--by=colour"), "--by must be ink, or two classes .* got colour"),
        (("attribute", "--by=7:12"), "labels must be 0..9, got 12"),
        (("attribute", "--by=7:1", "--learn_from=2"), "--by=7:1 finds no images on one side"),
        (("invert", "--label=thre"), "labels must be 0..9, got thre"),
        (("invert", "--num=0"), "--num must be in .1, 1000000., got 0"),
        (("inpaint", "--mask=random:half"), "--mask=random:SHARE needs a number like 0.5"),
        (("inpaint", "--operator=blur:x", "--method=dps"), "--operator=blur: needs a number like"),
        (("interpolate", "--seeds=1,2", "--grid=4"), "a grid needs 4 corners.*got 2 and --grid=4"),
        (("interpolate", "--seeds=1,2,3,4", "--grid=1"), "sides of 2 or more, got 4 and --grid=1"),
        (("interpolate", "--grid=3", "--num=5"), "a grid needs 4 corners.*got 5"),
        (("inpaint", "--method=ddnm", "--resamplings=3"), "--resamplings is of --method=repaint"),
        (("inpaint", "--method=dps", "--jump_length=1"), "--jump_length is of --method=repaint"),
        (("inpaint", "--jump_length=4"), "--jump_length must be below the 4 --steps, got 4"),
        (("inpaint", "--operator=mask:3"), "--operator=mask takes no number, got 'mask:3'"),
        (
            ("inpaint", "--operator=average:2", "--method=ddnm", "--mask=left"),
            "--mask=left is for --operator=mask, got --operator=average",
        ),
        (("inpaint", "--mask=numbers.json"), "numbers.json: cannot identify image file"),
        (("attribute", "--by=7:7", "--learn_from=60"), "both sides are the same images"),
        (("arithmetic", "--toward=digits", "--away=digits"), "both sides are the same images"),
        (("interpolate", "--num=1"), "a walk needs two ends or more, got 1; name them by --seeds"),
        (("interpolate", "--seeds=7"), "a walk needs two ends or more, got 1"),
        (("compare", "--images=there.png"), "compare draws noises, .* takes no --images"),
        (("compare", "--method=bdia"), "from a pair of points .* use another method"),
        (("interpolate", "--seeds=1,2", "--images=there.png"), "noises of --seeds and .* --images"),
        (("interpolate", "--seeds=1,2", "--index=0"), "noises of --seeds and takes no --index"),
        (("interpolate", "--seeds=1,2", "--only=3"), "noises of --seeds and takes no --only"),
        (("interpolate", "--seeds=1,2", "--shuffle"), "noises of --seeds and takes no --shuffle"),
        (("invert", "--images="), "--images is empty: give it a value, or leave it out"),
        (("arithmetic", "--toward=", "--away=digits"), "--toward is empty"),
        (("invert", "--stride=karras:steps=3"), "stride 'karras' has no option 'steps'"),
        (("invert", "--stride=karras", "--steps=2"), "2 steps are too few to invert.*take more"),
        (("arithmetic", "--toward=empty", "--away=digits"), "empty"),
    ],
)
def test_errors_are_one_line(command, flags, message, tmp_path):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "there.png")
    for name in ("numbers.json", "there.npz"):
        (tmp_path / name).touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=message):
        command(*flags)


@pytest.mark.parametrize(
    "name, flags, way_out",
    [
        ("invert", ["--images=there.png"], "give a label, 0..9"),
        ("arithmetic", ["--toward=digits", "--away=digits"], "use --told"),
        ("attribute", ["--learn_from=9"], "use --told"),
    ],
)
def test_a_network_that_was_never_told_nothing(name, flags, way_out, tmp_path, monkeypatch):
    """The student of the digits has a null label, which its loss did not train."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save("there.png")
    with rejects(SystemExit, "digits_4step was trained without label dropout", way_out):
        edit.main([name, "--checkpoint=digits_4step", "--num=2", "--steps=4", *flags])


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--steps=10,", "--steps: must be whole numbers like 3,14,15, got '10,'"),
        ("--steps=2.5", "--steps: must be whole numbers like 3,14,15, got '2.5'"),
        ("--index=", "--index: must be whole numbers like 3,14,15, got ''"),
        ("--strength=a", "--strength: must be numbers like 0.3,0.5, got 'a'"),
        ("--num=two", "--num: must be a whole number, got 'two'"),
        ("--guidance_scale=x", "--guidance_scale: must be a number, got 'x'"),
    ],
)
def test_values_that_cannot_be_read(flag, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        edit.main(["sdedit", flag])
    assert message in capsys.readouterr().err


def test_images_of_another_size_are_resized_only_when_asked(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"shape \(28, 28, 1\), .* draws \(8, 8, 1\); --resize"):
        edit.main(["invert", f"--checkpoint={checkpoint}"])
    assert not list(tmp_path.iterdir())
