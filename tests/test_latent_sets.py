"""Latents that are encoded once: what a set holds, how it resumes, what training makes of it."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import digits_text, digits_vae
from ddim_jax import checkpoints, codecs, data, experiment, parallel
from ddim_jax.data import latent_sets, latents
from ddim_jax.training import around, loop, method
from tests.errors import rejects
from tests.processes import finish, start
from tests.tiny import tiny

COUNT = 20


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latent_sets, "SHARD", 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the file of an autoencoder without training, and pictures with captions."""
    folder = tmp_path_factory.mktemp("made")
    model = experiment.build(tiny(digits_vae.get_config()))
    model = model.replace(params=jax.jit(model.init)(jax.random.key(1)), name="vae")
    checkpoints.save(folder / "vae.safetensors", model)
    rng = np.random.default_rng(0)
    np.savez(
        folder / "pictures.npz", images=rng.integers(0, 256, (COUNT, 8, 8, 3), np.uint8),
        labels=np.arange(COUNT) % 3, captions=[f"number {i % 4}" for i in range(COUNT)],
    )  # fmt: skip
    return folder


def where(made):
    return [f"npz:{made}/pictures.npz", f"--autoencoder={made}/vae.safetensors"]


def encode(made, out, *flags):
    latents.main([*where(made), f"--out={out}", *flags])


@pytest.fixture(scope="module")
def whole(made):
    """A set with mirrors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_sets, "SHARD", 8)
        encode(made, made / "set", "--flip")
    return made / "set"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def autoencoder(made, source):
    """The network that a set was made by, and its parameters."""
    scale = source.autoencoder["scale"]
    section, params = around.autoencoder(str(made / "vae.safetensors"), source, scale)
    return experiment.build_autoencoder(section), params


def test_a_set_holds_moments_labels_captions_and_mirrors(made, whole):
    source, pictures = data.load(f"latents:{whole}"), np.load(made / "pictures.npz")
    assert (source.image_shape, source.num_classes, len(source)) == ((8, 8, 3), 3, COUNT)
    assert source.captions == tuple(pictures["captions"]) and source.mirrors
    net, params = autoencoder(made, source)
    for flip in (False, True):
        x = np.float32(pictures["images"]) / 127.5 - 1
        x = x[:, :, ::-1] if flip else x
        moments = net.apply({"params": params}, x, method="encode")
        found = source.batch(np.arange(COUNT), np.full(COUNT, flip))
        wanted = np.concatenate(moments, axis=-1)
        np.testing.assert_allclose(found["image"], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found["label"], pictures["labels"])
    np.testing.assert_array_equal(source[3]["image"], source.batch(np.array([3]))["image"][0])


def test_a_set_of_clips_holds_the_latents_of_their_frames(made, whole, tmp_path):
    pictures, folder = np.load(made / "pictures.npz"), tmp_path / "clips"
    clips = pictures["images"].reshape(5, 4, 8, 8, 3)
    np.savez(tmp_path / "clips.npz", images=clips, frame_rate=np.arange(1.0, 6.0))
    arguments = [f"npz:{tmp_path}/clips.npz", f"--autoencoder={made}/vae.safetensors", "--flip"]
    latents.main([*arguments, f"--out={folder}"])
    source, frames = data.load(f"latents:{folder}"), data.load(f"latents:{whole}")
    assert (source.shape, len(source), source.noun) == ((4, 8, 8, 3), 5, "clips")
    scales = [one.autoencoder["scale"] for one in (frames, source)]  # measured anew
    for flip in (False, True):
        of_frames = frames.batch(np.arange(COUNT), np.full(COUNT, flip))["image"]
        found = source.batch(np.arange(5), np.full(5, flip))["image"].reshape(of_frames.shape)
        np.testing.assert_allclose(found / scales[1], of_frames / scales[0], rtol=1e-3, atol=1e-4)
    assert source[3]["frame_rate"] == 4
    assert data.load(f"latents:{folder}", frames=4).frames == 4
    with rejects(ValueError, "clips of 4 frames", "clips of 16", "config.data.frames"):
        data.load(f"latents:{folder}", frames=16)
    with rejects(ValueError, "latents of pictures", "clips of 4"):
        data.load(f"latents:{whole}", frames=4)
    with rejects(ValueError, "latents of 1 to 5 frames a second", "8 are asked", "--frame_rate=8"):
        data.load(f"latents:{folder}", frame_rate=8)
    with rejects(ValueError, "every 2 of them are asked for; leave config.data.frame_stride out"):
        data.load(f"latents:{folder}", frame_stride=2)
    assert data.load(f"latents:{folder}", frame_rate="own")[0]["frame_rate"] == 1
    with rejects(ValueError, "of the split 'train', and 'test' is asked for", "--split=test"):
        data.load(f"latents:{folder}", "test")
    about = json.loads((folder / "latents.json").read_text())
    (folder / "latents.json").write_text(json.dumps({k: about[k] for k in about if k != "split"}))
    assert len(data.load(f"latents:{folder}", "test")) == 5  # an older set does not say
    latents.main([*arguments, f"--out={folder}"])  # and is the same set


def test_what_cannot_be_encoded_is_said_before_anything_is(made, tmp_path, monkeypatch):
    monkeypatch.setattr(around, "measure_scale", None)
    with pytest.raises(SystemExit, match="has pictures of 1 channels, the autoencoder takes 3"):
        encode(made, tmp_path / "new", "--channels=1")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds other files"):
        encode(made, tmp_path)
    with pytest.raises(SystemExit, match="frame_rate must be a number or 'own', got 'fast'"):
        encode(made, tmp_path / "new", "--frame_rate=fast")
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.txt"]


def test_sets_on_disk_are_read_as_those_in_memory(whole, monkeypatch):
    rows, flip = np.array([19, 0, 7, 7]), np.array([True, False, True, False])
    memory = data.load(f"latents:{whole}").batch(rows, flip)
    monkeypatch.setattr(latent_sets, "IN_MEMORY", 0)
    disk = data.load(f"latents:{whole}")
    for name, value in disk.batch(rows, flip).items():
        np.testing.assert_array_equal(value, memory[name])
    options = dict(seed=3, flip=True)
    monkeypatch.setattr(latent_sets, "IN_MEMORY", 2**30)
    one, other = (data.batches(s, 8, **options) for s in (disk, data.load(f"latents:{whole}")))
    for _ in range(3):
        a, b = next(one), next(other)
        np.testing.assert_array_equal(a["image"], b["image"])


def test_what_is_missing_or_damaged_is_encoded_again_and_nothing_else(
    made, whole, tmp_path, monkeypatch
):
    folder, before = shutil.copytree(whole, tmp_path / "set"), files_of(whole)
    names = [f"latents-0000{i}.array_record" for i in range(3)]
    assert sorted(before) == ["captions.json", *names, "latents.json"]
    (folder / names[2]).unlink()
    with rejects(FileNotFoundError, "no complete latents in", f"({names[2]} is missing)", "encode"):
        data.load(f"latents:{folder}")
    (folder / names[1]).write_bytes(b"damaged")
    kept = (folder / names[0]).stat().st_mtime_ns
    damaged = bytearray((folder / names[0]).read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 200] = bytes(200)
    broken = shutil.copytree(whole, tmp_path / "broken")
    (broken / names[0]).write_bytes(damaged)
    (broken / "captions.json").unlink()
    with rejects(ValueError, f"the latents in {broken} are damaged", "captions.json"):
        data.load(f"latents:{broken}")
    shutil.copy(whole / "captions.json", broken)
    with rejects(ValueError, f"the latents in {broken} are damaged", "mends that"):
        data.load(f"latents:{broken}")
    monkeypatch.chdir(made)  # the same autoencoder by another path
    pictures, _ = where(made)
    latents.main([pictures, "--autoencoder=vae.safetensors", f"--out={folder}", "--flip"])
    found = files_of(folder)
    about = json.loads(found.pop("latents.json"))
    assert about == json.loads(before.pop("latents.json")) | {"autoencoder": "vae.safetensors"}
    assert found == before
    assert (folder / names[0]).stat().st_mtime_ns == kept
    latents.main([pictures, "--autoencoder=vae.safetensors", f"--out={broken}", "--flip"])
    assert files_of(broken)[names[0]] == before[names[0]]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "holds latents that were drawn with another mirrors"),
        (["--flip", "--resize=4"], "another content and image_shape"),
        (["--flip", "--channels=1"], "has pictures of 1 channels, the autoencoder takes 3; give"),
        (["--flip", "--resize=7"], "height and width must be multiples of 2 for latents, got 7"),
        (["--flip", "--resize=x"], "--resize must be like 256 or, HEIGHTxWIDTH, like 48x64"),
    ],
)
def test_another_set_does_not_go_into_the_folder(made, whole, flags, message):
    with pytest.raises(SystemExit, match=message):
        encode(made, whole, *flags)
    assert len(files_of(whole)) == 5


def run_config(name, made, **changes):
    """Of a network of latents on pictures or a set."""
    config = tiny(digits_text.get_config())
    del config.text
    config.model = dict(name="unet", out_channels=4, channels=8, channel_mults=(1,), num_blocks=1,
                        attention_resolutions=(), num_classes=3)  # fmt: skip
    config.codec = dict(start_from=f"{made}/vae.safetensors")
    config.data = (
        dict(name=name, split="train", image_shape=None, flip=True, resize=None, data_dir="")
        | changes
    )
    config.sample.update(prompts=(), guidance_scale=1.0)
    config.train.update(steps=3, batch_size=8, log_every=1, checkpoint_every=3, sample_every=0)
    return config


def losses_of(config, workdir):
    loop.train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sample", "mean"])
def test_training_on_a_set_equals_encoding_while_training(made, whole, tmp_path, kind):
    pictures = f"npz:{made}/pictures.npz"
    scale = data.load(f"latents:{whole}").autoencoder["scale"]
    found = {}
    for name, spec, cache in [
        ("set", f"latents:{whole}", False), ("line", pictures, False), ("cache", pictures, True)
    ]:  # fmt: skip
        config = run_config(spec, made, cache=cache, latents=kind)
        found[name] = losses_of(config, tmp_path / name)
    model = checkpoints.load(tmp_path / "set")
    assert model.config.codec.scale == scale and model.draw(1, steps=2).shape == (1, 8, 8, 3)
    assert len(found["set"]) == 3
    for name in ("line", "cache"):
        np.testing.assert_allclose(found[name], found["set"], rtol=1e-5)


def test_each_device_encodes_its_own_rows_while_training(made, monkeypatch):
    """Else all devices would encode the whole batch, as XLA splits no loop over rows."""
    monkeypatch.setattr(codecs, "TOGETHER", 64)
    config = run_config(f"npz:{made}/pictures.npz", made)
    config, parts = around.load(config, made / "none", experiment.load_data(config))
    mesh = parallel.make_mesh()
    built = method.build(config, None, mesh, parts)
    rows = parallel.by_rows(built.model.codec.encode, mesh)
    pictures = parallel.shard(np.load(made / "pictures.npz")["images"], mesh)
    program = jax.jit(lambda x: rows(parts.codec_params, x, None)).lower(pictures).compile()
    assert "all-gather" not in program.as_text()
    found, wanted = program(pictures), built.model.codec.encode(parts.codec_params, pictures)
    assert found.sharding.spec[0] == parallel.AXIS
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    state = loop.abstract_state(config, built, None, mesh)
    shapes = {"image": (8, 8, 8, 3), "label": (8,), "row": (8,)}
    kinds = {"image": np.uint8, "label": np.int32, "row": np.int32}
    batch = {name: jax.ShapeDtypeStruct(shapes[name], kinds[name]) for name in shapes}
    assert "shard_map" in str(built.step.trace(state, batch, parts.codec_params).jaxpr)


def test_latents_are_drawn_by_keys(made, whole):
    source = data.load(f"latents:{whole}")
    net, params = autoencoder(made, source)
    codec = codecs.latents(net, (8, 8, 3), params)
    moments = source.batch(np.arange(4))["image"]
    keys = jax.random.split(jax.random.key(0), 4)
    mean, std = np.split(moments, 2, axis=-1)
    noise = np.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    np.testing.assert_allclose(codec.encode(params, moments, keys), mean + std * noise, rtol=1e-6)
    np.testing.assert_array_equal(codec.encode(params, moments, None), mean)
    pictures = np.load(made / "pictures.npz")["images"][:4]
    online = codec.encode(params, pictures, keys)
    np.testing.assert_allclose(online, mean + std * noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sample", "mean"])
def test_a_set_in_memory_is_that_on_disk(made, whole, kind):
    config = run_config(f"npz:{made}/pictures.npz", made, cache=True, latents=kind)
    pictures, source = experiment.load_data(config), data.load(f"latents:{whole}")
    config, parts = around.load(config, made / "none", pictures)
    model = experiment.build(config).with_parts(None, *parts[2:])
    kept = around.told(config, model, pictures)
    rows, flip = np.array([4, 4, 19]), np.array([True, False, True])
    found, wanted = kept.batch(rows, flip), source.batch(rows, flip)
    channels = found["image"].shape[-1]
    assert channels == (8 if kind == "sample" else 4)
    np.testing.assert_array_equal(found["image"], wanted["image"][..., :channels])
    np.testing.assert_array_equal(found["label"], wanted["label"])
    np.testing.assert_array_equal(kept[4]["image"], found["image"][1])


def test_a_cache_of_clips_with_frames_to_spare_is_refused(made):
    config = run_config(f"npz:{made}/pictures.npz", made, cache=True)
    pictures = experiment.load_data(config)
    config, parts = around.load(config, made / "none", pictures)
    model = experiment.build(config).with_parts(None, *parts[2:])
    config.data.frames = 1
    longer = dataclasses.replace(pictures, at=lambda index, share: pictures.read(index))
    with pytest.raises(ValueError, match="more frames than config.data.frames=1: set"):
        around.check(config, model, longer)
    around.check(config, model, pictures)


def test_data_are_checked_before_a_workdir_is_claimed(made, tmp_path, monkeypatch):
    def refuse(*args):
        raise ValueError("no captions")

    monkeypatch.setattr(around, "check", refuse)
    with rejects(ValueError, "no captions"):
        loop.train(run_config(f"npz:{made}/pictures.npz", made), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_run_on_a_set_needs(made, whole, tmp_path):
    other = checkpoints.load(made / "vae.safetensors")
    other = other.replace(params=jax.tree.map(lambda leaf: leaf + 1e-3, other.params))
    checkpoints.save(tmp_path / "other.safetensors", other)
    cases = [
        (dict(start_from=f"{tmp_path}/other.safetensors"), {}, "an autoencoder of weights"),
        (dict(start_from=f"{made}/vae.safetensors", scale=2.0), {}, "autoencoder of scale"),
        ({}, {}, "needs the autoencoder that made it"),
        (None, dict(latents="median"), "config.data.latents must be 'sample', 'mean' or None"),
        (None, dict(resize=4), "holds latents of pictures of shape (8, 8, 3), and other"),
    ]
    for codec, changes, message in cases:
        config = run_config(f"latents:{whole}", made, **changes)
        if codec is not None:
            config.codec = codec
        with rejects(ValueError, message):
            loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mirrors_that_are_not_there_are_not_made(made, tmp_path):
    encode(made, tmp_path / "plain")
    source = data.load(f"latents:{tmp_path / 'plain'}")
    assert not source.mirrors and source.read(0)[0].shape == (4, 4, 8)
    config = run_config(f"latents:{tmp_path / 'plain'}", made)
    with rejects(ValueError, "holds no mirrored images, and config.data.flip=True", "--flip"):
        experiment.load_data(config)


MANY = """
import resource, sys
from pathlib import Path
from ddim_jax.data import latent_sets
from ddim_jax.data.record_shards import Shards
shards = Shards(Path(sys.argv[1]), "latents", 1)
for i in range(120):
    shards.write(i, [b"x"])
resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[2])))
with latent_sets._damage_of(shards.folder):
    print(len(shards.open(120).__getitems__(range(120))))
"""


@pytest.mark.parametrize("most", [1000, 100])
def test_a_set_of_many_shards_is_read_if_so_many_files_may_be_open(most, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path), str(most)], capture_output=True, text=True
    )
    last = ran.stderr.splitlines()[-1] if ran.stderr else ""
    if most == 1000:
        assert ran.stdout == "120\n", last
    else:
        assert last.startswith("OSError: too many files are open") and "ulimit -n" in last


SLOWLY = """
import sys, time
from ddim_jax.data import latent_sets, latents
latent_sets.SHARD, records = 8, latent_sets.records
latent_sets.records = lambda *arguments: time.sleep(0.5) or records(*arguments)
latents.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_one_or_two_processes_and_a_kill_make_the_same_set(made, whole, tmp_path):
    def launch(count, name):
        return start(count, "-c", SLOWLY, *where(made), "--flip", f"--out={tmp_path / name}")

    (killed,) = launch(1, "killed")
    first, deadline = tmp_path / "killed" / "latents-00000.array_record", time.time() + 120
    while not first.exists():
        assert time.time() < deadline and killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "killed" / "latents-00001.array_record").exists()
    written = first.stat().st_mtime_ns
    for count, name in ((1, "one"), (2, "two"), (2, "killed")):
        finish(launch(count, name))
        assert files_of(tmp_path / name) == files_of(whole), name
    assert first.stat().st_mtime_ns == written
