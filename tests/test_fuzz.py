"""Damaged and odd files, random command lines: one line says what is wrong, no file is lost.

Slow: FUZZ_SECONDS (default 4) for each reader, from the seed FUZZ_SEED (default 0). What once
crashed is a case of its own, and is tried every time.
"""

import copy
import functools
import io
import json
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddim_jax import checkpoints, data, provenance, schedules
from ddim_jax.checkpoints import diffusers, diffusers_schedulers, lora_file, weights_file
from ddim_jax.commands import configs
from ddim_jax.data import clip_files
from ddim_jax.evaluation import emoji_encoder, own_features, references
from ddim_jax.networks.tokenizer import Tokenizer
from ddim_jax.recipe import Recipe
from ddim_jax.strides import learned
from tests.test_diffusers import network
from tests.test_every_flag import COMMANDS, VALUES, faults, stubs  # noqa: F401
from tests.test_tokenizer import MERGES
from tests.tokenizer_texts import write as write_tokenizer

SECONDS, SEED = float(os.environ.get("FUZZ_SECONDS", 4)), int(os.environ.get("FUZZ_SEED", 0))
ODD = [None, "", "x", "1e999", -1, 0, 1, 0.5, 2**70, -(2**70), 1e300, float("nan"), float("inf")]
ODD += [True, [], {}, [None], [[1, 2], [3]], {"a": 1}, "a" * 5000, "\ud800", "\0", "../x"]


class Hung(Exception):
    """It computes and computes."""


def hung(number, frame):
    raise Hung


# --- changes --------------------------------------------------------------------------------------


def places(tree, way=()):
    """The ways to all nodes of a JSON tree."""
    yield way
    items = {dict: dict.items, list: enumerate}.get(type(tree), lambda tree: ())
    for name, value in items(tree):
        yield from places(value, (*way, name))


def changed(tree, rng):
    """A JSON tree of which one to three nodes are odd, gone, or more."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        way = rng.choice(list(places(tree)))
        if not way:
            return copy.deepcopy(rng.choice(ODD)) if rng.random() < 0.1 else tree
        owner = functools.reduce(lambda node, name: node[name], way[:-1], tree)
        kind = rng.random()
        if kind < 0.2:
            del owner[way[-1]]
        elif kind < 0.3 and isinstance(owner, dict):
            owner[rng.choice(["extra", "class_name", "_class_name", ""])] = owner.pop(way[-1])
        elif kind < 0.4 and isinstance(owner[way[-1]], int | float):
            owner[way[-1]] = owner[way[-1]] * rng.choice([-1, 1000, 0.37])
        else:
            owner[way[-1]] = copy.deepcopy(rng.choice(ODD))
    return tree


def as_text(tree):
    return json.dumps(tree).encode()


def damaged(content, rng):
    """Bytes cut short, overwritten, put in or taken out."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, len(content)))
        kind = rng.randrange(5)
        if kind == 0:
            del content[at:]
        elif kind == 1:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            content[at:at] = rng.randbytes(rng.randint(1, 40))
        elif kind == 3:
            del content[at : at + rng.randint(1, 40)]
        else:
            at = rng.randrange(max(1, min(300, len(content))))  # headers
            content[at : at + 4] = rng.choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]
            )
    return bytes(content)


# --- readers: files in a folder, how each is changed, what reads them -----------------------------


def stride(folder):
    times = np.linspace(0.99, 0.0, 5)
    lam = schedules.cosine().half_log_snr(times[:-1])
    made = learned.LearnedStride(times, "curvature", {"a": 0.1}, "ddim", lam, 1.0, "digits", "00")
    learned.save(folder / "s.json", made)

    def read(folder):
        recipe = Recipe(stride=str(folder / "s.json"))
        recipe.table(schedules.cosine())

    return {"s.json": changed}, read


@functools.cache
def model():
    return network()


def weights(folder):
    weights_file.save(folder / "w.safetensors", model())
    return {"w.safetensors": header}, lambda folder: checkpoints.load(folder / "w.safetensors")


def header(content, rng):
    """Another header of a safetensors file, or its metadata's config changed."""
    size = int.from_bytes(content[:8], "little")
    tree, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    if rng.random() < 0.6:
        key = rng.choice(["config", "step", "format"])
        try:
            inner = changed(json.loads(tree["__metadata__"][key]), rng)
        except ValueError:
            inner = rng.choice(ODD)
        tree["__metadata__"][key] = json.dumps(inner)
    else:
        tree = changed(tree, rng)
    text = json.dumps(tree).encode()
    size = len(text) if rng.random() < 0.9 else rng.choice([0, 2**62, 2**64 - 1, len(content) * 2])
    return size.to_bytes(8, "little") + text + rest


def folder_of_diffusers(folder):
    diffusers.write(folder / "net", model().config, model().params)
    jsons = {str(f.relative_to(folder)): changed for f in (folder / "net").rglob("*.json")}
    return jsons, lambda folder: checkpoints.load(folder / "net")


def scheduler(folder):
    (folder / "s.json").write_text(json.dumps(SCHEDULERS[0]))

    def read(folder):
        content = json.loads((folder / "s.json").read_text())
        if isinstance(content, dict):
            recipe, schedule = diffusers_schedulers.scheduler(content)
            recipe.replace(steps=5).table(schedule)

    def other(tree, rng):
        return changed(rng.choice(SCHEDULERS), rng)

    return {"s.json": other}, read


SCHEDULERS = [
    {"_class_name": name, "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
     "beta_schedule": "linear", "prediction_type": "epsilon", **more}
    for name, more in {
        "DDIMScheduler": {"clip_sample": True, "set_alpha_to_one": False, "steps_offset": 1},
        "PNDMScheduler": {"skip_prk_steps": True},
        "DPMSolverMultistepScheduler": {"solver_order": 2, "algorithm_type": "dpmsolver++"},
        "UniPCMultistepScheduler": {"solver_order": 2, "solver_type": "bh2"},
        "EulerDiscreteScheduler": {"timestep_spacing": "leading", "use_karras_sigmas": True},
        "DEISMultistepScheduler": {"solver_order": 2},
        "LCMScheduler": {"original_inference_steps": 50},
        "HeunDiscreteScheduler": {}, "KDPM2DiscreteScheduler": {}, "DDPMScheduler": {},
    }.items()
]  # fmt: skip


def arrays(folder):
    images = np.zeros((6, 8, 8, 1), np.uint8)
    names = np.array(["a", "b", "c"])
    content = {"train_x": images, "train_y": np.arange(6) % 3, "class_names": names}
    np.savez(folder / "a.npz", **content)

    def other(content, rng):
        if rng.random() < 0.3:
            return damaged(content, rng)
        odd = {"train_x": images, "train_y": np.arange(6) % 3, "class_names": names}
        odd[rng.choice(list(odd))] = rng.choice([
            np.zeros(0), np.zeros((6, 8, 8, 2), np.uint8), np.array(["x"] * 6), np.float32(3),
            np.full(6, np.nan), np.arange(6) - 3, np.arange(6) * 10**12, np.zeros((6, 8, 8)),
            np.zeros((6, 2)), np.array([b"\xff"] * 3), np.zeros((0, 8, 8, 1), np.uint8),
            np.zeros((6, 0, 8, 1), np.uint8), np.zeros(6, bool), np.zeros(6, complex),
        ])  # fmt: skip
        np.savez(file := io.BytesIO(), **odd)
        return file.getvalue()

    def read(folder):
        source = data.load(f"npz:{folder / 'a.npz'}")
        source.read(0)

    return {"a.npz": other}, read


def statistics(folder):
    about = {"count": 200, "name": "x", "network_sha256": "0", "resize": "none"}
    np.savez(folder / "r.npz", mu=np.zeros(3), sigma=np.eye(3), about=json.dumps(about))

    def other(content, rng):
        if rng.random() < 0.3:
            return damaged(content, rng)
        odd = {"mu": np.zeros(3), "sigma": np.eye(3), "about": json.dumps(about)}
        if rng.random() < 0.5:
            odd["about"] = json.dumps(changed(about, rng))
        else:
            name = rng.choice(["mu", "sigma", "mu_s", "sigma_s", "about"])
            odd[name] = rng.choice([
                np.zeros(0), np.zeros((2, 2)), np.array(["x"]), np.full((3, 3), np.nan),
                np.float32(1), np.zeros(3, complex), np.zeros((3, 3, 3)),
            ])  # fmt: skip
        np.savez(file := io.BytesIO(), **odd)
        return file.getvalue()

    return {"r.npz": other}, lambda folder: references.load(folder / "r.npz")


def feature_file(folder):
    asset = Path(checkpoints.__file__).parent.parent / "assets" / "digit_classifier.npz"
    shutil.copy(asset, folder / "f.npz")

    def other(content, rng):
        if rng.random() < 0.4:
            return damaged(content, rng)
        with np.load(io.BytesIO(content)) as file:
            odd = {name: file[name] for name in file.files}
        name = rng.choice(list(odd))
        odd[name] = rng.choice(
            [np.zeros(0), np.array("x"), np.float32(1), odd[name].T, np.array("{}")]
        )
        np.savez(file := io.BytesIO(), **odd)
        return file.getvalue()

    return {"f.npz": other}, lambda folder: own_features.feature_network(folder / "f.npz")


def told(folder):
    recipe = {"solver": "ddim", "steps": 3, "guidance_interval": [0.0, 9.0]}
    about = {
        "recipe": recipe, "labels": [1, 2], "index": [0, 2], "seed": 3, "batch_size": 4,
        "checkpoint": "digits", "path": None, "step": 1, "weights": "0", "table": "0",
        "size": [28, 28], "prompts": None, "loras": [],
    }  # fmt: skip
    write_png(folder / "p.png", about)

    def other(content, rng):
        if rng.random() < 0.2:
            return damaged(content, rng)
        write_png(file := io.BytesIO(), changed(about, rng))
        return file.getvalue()

    return {"p.png": other}, lambda folder: provenance.read(folder / "p.png")


def write_png(file, about):
    info = PngInfo()
    info.add_text("ddim_jax", json.dumps(about))
    Image.new("L", (28, 28)).save(file, "PNG", pnginfo=info)


def pictures(folder):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8))
    for end in ("png", "jpg", "gif", "webp", "bmp", "tiff"):
        picture.save(folder / f"p.{end}")

    def read(folder):
        source = data.load(f"folder:{folder}", skip_unreadable=True)
        [source.read(k) for k in range(source.count)]

    return {f"p.{end}": damaged for end in ("png", "jpg", "gif", "webp", "bmp", "tiff")}, read


def clips(folder):
    frames = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(4)]
    for end in ("gif", "webp", "png"):
        frames[0].save(folder / f"c.{end}", save_all=True, append_images=frames[1:], duration=100)

    def read(folder):
        for path in folder.iterdir():
            try:
                found = clip_files.inspect(path)
                clip_files.read(path, found, [0, 1])
            except ValueError:
                continue

    return {f"c.{end}": damaged for end in ("gif", "webp", "png")}, read


def low_rank(folder):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    tensors = {name.format("A"): np.ones((2, 4), np.float32)}
    tensors[name.format("B")] = np.ones((4, 2), np.float32)
    text = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4})}
    safetensors.numpy.save_file(tensors, folder / "l.safetensors", text)

    def other(content, rng):
        size = int.from_bytes(content[:8], "little")
        tree = json.loads(content[8 : 8 + size])
        if rng.random() < 0.5:
            key = "lora_adapter_metadata"
            inner = json.loads(tree["__metadata__"][key])
            tree["__metadata__"][key] = json.dumps(changed(inner, rng))
        else:
            tree = changed(tree, rng)
        text = json.dumps(tree).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return {"l.safetensors": other}, lambda folder: lora_file.read(folder / "l.safetensors")


def tokenizer(folder):
    write_tokenizer(folder, MERGES)

    def read(folder):
        Tokenizer.read(folder)(["a small cat"])

    files = {f.name: damaged if f.suffix == ".txt" else changed for f in folder.iterdir()}
    return files, read


def overrides(folder):
    (folder / "o.json").write_text(json.dumps([["train.steps", "5"]]))
    config = configs.load("digits").to_dict()
    paths = [".".join(map(str, way)) for way in places(json.loads(json.dumps(config))) if way]

    def other(tree, rng):
        texts = [
            "",
            "x",
            "-1",
            "[1,",
            "{",
            "dict(a=1)",
            "None",
            "1e400",
            "(1,)",
            "'",
            "\\",
            "lambda: 0",
        ]
        names = [*paths, "x.y", "", ".", "stages[0].x", "stages[9", "model.", "__class__"]
        return [[rng.choice(names), rng.choice(texts)] for _ in range(rng.randint(1, 3))]

    def read(folder):
        configs.load("digits", [tuple(o) for o in json.loads((folder / "o.json").read_text())])

    return {"o.json": other}, read


READERS = [
    stride, weights, folder_of_diffusers, scheduler, arrays, statistics, feature_file, told,
    pictures, clips, low_rank, tokenizer, overrides,
]  # fmt: skip


def tried(read, folder):
    """What a reader did that it must not have done; "" for nothing."""
    signal.signal(signal.SIGALRM, hung)
    signal.alarm(30)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder)
    except (ValueError, OSError) as error:
        return "" if str(error).strip() else f"{type(error).__name__} that says nothing"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = [frame for frame in frames if "/ddim_jax/" in frame.filename or frame is frames[0]][-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        return f"{type(error).__name__} at {where}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return ""


def fuzz(make, folder, seconds, seed):
    """Tries changed files for so long; what went wrong -> an example of it."""
    rng, found, count = random.Random(seed), {}, 0
    files, read = make(folder)
    whole = {name: (folder / name).read_bytes() for name in files}
    assert not tried(read, folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = rng.choice(list(files))
        change = files[name]
        if name.endswith(".json") and change is not damaged:
            content = as_text(change(json.loads(whole[name]), rng))
            content = damaged(content, rng) if rng.random() < 0.05 else content
        else:
            content = change(whole[name], rng) if rng.random() < 0.8 else damaged(whole[name], rng)
        (folder / name).write_bytes(content)
        count += 1
        if wrong := tried(read, folder):
            found.setdefault(wrong.split(": ")[0], (wrong, content[:1500]))
        (folder / name).write_bytes(whole[name])
    return count, found


@pytest.mark.slow
@pytest.mark.parametrize("make", READERS)
def test_damaged_files_are_refused_in_words(make, tmp_path, capsys):
    count, found = fuzz(make, tmp_path, SECONDS, SEED)
    with capsys.disabled():
        print(f"\n{make.__name__}: {count} files tried")
    assert not found, "\n".join(f"{wrong} from {content!r}" for wrong, content in found.values())


# --- command lines --------------------------------------------------------------------------------

PLAUSIBLE = [
    "2",
    "0.5",
    "digits",
    "x.png",
    "x.npz",
    "ddim",
    "heun",
    "uniform",
    "1,2",
    "a=1",
    "True",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_random_command_lines(command, stubs, tmp_path, capsys):  # noqa: F811
    """Two to four flags at once, each with an odd or a plausible value; no file is lost."""
    run, names, always = COMMANDS[command]
    names = [name for name in names if name not in ("overwrite", "workdir")]
    rng, found, count = random.Random(SEED), {}, 0
    values = [value for value in VALUES.values() if value is not None] + PLAUSIBLE
    kept = {name: name.encode() for name in ("x.png", "x.npz", "out.png")}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for path in tmp_path.iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        for name, content in kept.items():
            (tmp_path / name).write_bytes(content)
        chosen = rng.sample(names, min(len(names), rng.randint(2, 4)))
        arguments = [*always, *(f"--{name}={rng.choice(values)}" for name in chosen)]
        wrong = [w for w in faults(run, arguments, tmp_path, capsys) if not w.startswith("left")]
        lost = [n for n, content in kept.items() if (tmp_path / n).read_bytes() != content]
        count += 1
        if wrong or lost:
            found[" ".join(arguments)] = wrong + [f"{name} was overwritten" for name in lost]
    with capsys.disabled():
        print(f"\n{command}: {count} command lines tried")
    assert not found, "\n".join(f"{line}: {wrong}" for line, wrong in found.items())


# --- what once crashed ----------------------------------------------------------------------------

BETAS = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": [1]}, r"unknown diffusers scheduler \[1\]"),
        ({"_class_name": "PNDMScheduler", "beta_schedule": {}}, "PNDMScheduler is damaged"),
        ({"prediction_type": {}}, "DDIMScheduler is damaged"),
        ({"_class_name": "LCMScheduler", "num_train_timesteps": None}, "LCMScheduler is damaged"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 0}, "LCMScheduler is damaged"),
    ],
)
def test_odd_schedulers(changes, said):
    with pytest.raises(ValueError, match=said):
        diffusers_schedulers.scheduler(BETAS | changes)


@pytest.mark.parametrize(("name", "value"), [("times", None), ("times", [{}]), ("lam", {"a": 1})])
def test_odd_strides(name, value, tmp_path):
    stride(tmp_path)
    file = tmp_path / "s.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match="s.json is damaged"):
        learned.load(file)


@pytest.mark.parametrize("odd", [{"about": "[1]"}, {"mu_s": np.zeros(3)}, {"about": "3"}])
def test_odd_statistics(odd, tmp_path):
    np.savez(tmp_path / "r.npz", **{"mu": np.zeros(3), "sigma": np.eye(3)} | odd)
    with pytest.raises(ValueError, match="r.npz is damaged"):
        references.load(tmp_path / "r.npz")


@pytest.mark.parametrize("flag", [1, 32])  # a password, a patch
def test_archives_with_flags_that_nobody_sets(flag, tmp_path):
    np.savez(tmp_path / "r.npz", mu=np.zeros(3), sigma=np.eye(3))
    content = bytearray((tmp_path / "r.npz").read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(sign)
        while at >= 0:
            content[at + place] |= flag
            at = content.find(sign, at + 4)
    (tmp_path / "r.npz").write_bytes(content)
    for read in (references.load, own_features.feature_network, emoji_encoder.load):
        with pytest.raises(ValueError, match="r.npz"):
            read(tmp_path / "r.npz")
    with pytest.raises(ValueError, match="r.npz"):
        data.load(f"npz:{tmp_path / 'r.npz'}")


def test_odd_feature_networks(tmp_path):
    np.savez(tmp_path / "f.npz", **{"Dense_1/bias": np.float32(1)})
    (tmp_path / "g.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:-30])
    for name in ("f", "g"):
        with pytest.raises(ValueError, match=f"{name}.npz is no feature network"):
            own_features.feature_network(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("index", [[], [0, 2**70], "x"])
def test_odd_accounts_of_pictures(index, tmp_path):
    told(tmp_path)
    about = json.loads(Image.open(tmp_path / "p.png").text["ddim_jax"])
    write_png(tmp_path / "q.png", about | {"index": index})
    with pytest.raises(ValueError, match="does not say what drew it"):
        provenance.read(tmp_path / "q.png")


def test_pictures_with_a_damaged_chunk(tmp_path):
    told(tmp_path)
    content = (tmp_path / "p.png").read_bytes()
    at = content.index(b"IDAT") + 10  # pixels are missing, and the next chunk is where none is
    more = b"q<\xe2>*F\xbb=\x898\xac"
    (tmp_path / "p.png").write_bytes(content[:at] + more + content[at:])
    with pytest.raises(ValueError, match="does not say what drew it"):
        provenance.read(tmp_path / "p.png")


@pytest.mark.parametrize(
    "options", [{"pad_token": 5}, {"pad_token": {}}, {"model_max_length": "1e999"}]
)
def test_odd_tokenizers(options, tmp_path):
    write_tokenizer(tmp_path, MERGES)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9} | options))
    if options != {"pad_token": {}}:  # which is none
        with pytest.raises(ValueError, match="tokenizer in .* is damaged"):
            Tokenizer.read(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"a": {}}))
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="tokens have whole numbers, 'a' has {}"):
        Tokenizer.read(tmp_path)


@pytest.mark.parametrize("section", ["data", "model", "sample"])
def test_files_of_weights_with_an_odd_config(section, tmp_path):
    weights(tmp_path)
    content = (tmp_path / "w.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + size])
    config = json.loads(tree["__metadata__"]["config"])
    tree["__metadata__"]["config"] = json.dumps(config | {section: [0.5]})
    text = json.dumps(tree).encode()
    changed = len(text).to_bytes(8, "little") + text + content[8 + size :]
    (tmp_path / "w.safetensors").write_bytes(changed)
    with pytest.raises(ValueError, match="w.safetensors"):
        checkpoints.load(tmp_path / "w.safetensors")


def test_widths_beyond_all_networks(tmp_path):
    """Their groups were looked for one by one."""
    diffusers.write(tmp_path / "net", model().config, model().params)
    file = tmp_path / "net" / "config.json"
    if not file.exists():
        file = tmp_path / "net" / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [32, 2**70]}))
    with pytest.raises(ValueError, match="block_out_channels must be in"):
        checkpoints.load(tmp_path / "net")
