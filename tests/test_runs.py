"""Whole training runs of a tiny network: resume, damage, signals, divergence, other experiments."""

import contextlib
import copy
import inspect
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import ddim_jax
from configs import digits
from ddim_jax import checkpoints, data, experiment, files, parallel
from ddim_jax.checkpoints import __main__ as export
from ddim_jax.checkpoints import workdir as workdirs
from ddim_jax.checkpoints.workdir import BASE
from ddim_jax.commands import configs
from ddim_jax.losses import Loss
from ddim_jax.schedules import cosine
from ddim_jax.training import loop, resume, run_data, teacher
from ddim_jax.training.method import Method
from ddim_jax.training.metrics import MetricsWriter
from ddim_jax.training.state import TrainState
from tests.errors import rejects
from tests.tiny import tiny

ROOT = Path(__file__).parent.parent


def config(steps, **train):
    config = tiny(digits.get_config(), levels=1)
    config.train.update(dict(steps=steps, log_every=1, checkpoint_every=2, sample_every=0) | train)
    return config


def leaves(state):
    state = state.replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def curve(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def kept(workdir):
    """The steps of its checkpoints."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of 6 steps: (workdir, state)."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, loop.train(config(6, sample_every=6), workdir)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(finished, tmp_path):
    loop.train(config(3, keep=1), tmp_path)
    state = loop.train(config(6, keep=1), tmp_path)
    for ours, theirs in zip(leaves(state), leaves(finished[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert curve(tmp_path) == curve(finished[0]) and sorted(curve(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert kept(tmp_path) == [6] and kept(finished[0]) == [4, 6]  # keep=1 and 2
    assert (finished[0] / "samples" / "step_0000006.png").stat().st_size > 100


@pytest.mark.slow
def test_a_pmapped_run_trains_and_draws_like_a_jitted_one(finished, tmp_path):
    pmapped = config(3, sample_every=3)
    pmapped.parallel = "pmap"
    state = loop.train(pmapped, tmp_path)
    assert int(state.step) == 3 and (tmp_path / "samples" / "step_0000003.png").exists()
    for step, loss in curve(tmp_path).items():
        np.testing.assert_allclose(loss, curve(finished[0])[step], rtol=1e-5)


def test_a_signal_saves_and_stops(tmp_path, monkeypatch):
    add = MetricsWriter.add
    calls = []

    def add_and_signal(self, metrics):
        add(self, metrics)
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsWriter, "add", add_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    state = loop.train(config(50, checkpoint_every=50), tmp_path)
    assert int(state.step) == 3 and (tmp_path / "checkpoints" / "3").is_dir()
    assert signal.getsignal(signal.SIGTERM) is before


def damage(step_dir):
    for file in step_dir.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_skipped_and_said(finished, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    damage(workdir / "checkpoints" / "6")
    with caplog.at_level("WARNING"):
        model = checkpoints.load(workdir)
    assert model.step == 4
    assert "Skipped the damaged checkpoint of step 6" in caplog.text
    state = loop.train(config(6), workdir)
    for ours, theirs in zip(leaves(state), leaves(finished[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert checkpoints.load(workdir).step == 6  # the damaged one was replaced
    damage(workdir / "checkpoints" / "4")
    damage(workdir / "checkpoints" / "6")
    with pytest.raises(ValueError, match="no checkpoint in .* can be read: step 6 .*; remove the"):
        checkpoints.load(workdir)


def test_on_cpu_a_step_begins_when_the_one_before_is_done(tmp_path, monkeypatch):
    """Of many steps that wait for each other XLA's threads can run out, for good."""
    waited, wait = [], jax.block_until_ready
    monkeypatch.setattr(loop.jax, "block_until_ready", lambda x: waited.append(x) or wait(x))
    loop.train(config(3), tmp_path)
    assert len([one for one in waited if isinstance(one, dict) and "loss" in one]) == 2


@contextlib.contextmanager
def largest_file(size):
    """Writing beyond so many bytes of a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 6])  # the failure shows at the end, or at a later step
def test_a_save_that_fails_says_so_and_leaves_the_one_before(finished, tmp_path, steps):
    loop.train(config(2), tmp_path)
    message = "not be written to .*: File too large; that of step 2 is intact. .* goes on"
    with largest_file(4096), pytest.raises(workdirs.SaveError, match=message):
        loop.train(config(steps), tmp_path)
    assert checkpoints.load(tmp_path).step == 2
    state = loop.train(config(6), tmp_path)
    for ours, theirs in zip(leaves(state), leaves(finished[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert curve(tmp_path) == curve(finished[0])


def test_the_newest_checkpoint_that_can_be_read_is_taken(caplog):
    """And those that cannot are remembered, to be replaced."""
    checkpointer = object.__new__(workdirs.Checkpointer)
    checkpointer._damaged = set()
    checkpointer._manager = types.SimpleNamespace(all_steps=lambda: [4, 2, 6], directory="here")
    wrong = {6: OSError("cut off\nat byte 3")}

    def read(step):
        if step in wrong:
            raise wrong[step]
        return f"state {step}"

    with caplog.at_level("WARNING"):
        assert checkpointer._newest(read) == "state 4" and checkpointer._damaged == {6}
    assert "Skipped the damaged checkpoint of step 6 (cut off); using 4" in caplog.text
    wrong |= {4: workdirs.Mismatch("another network"), 2: OSError("gone")}
    with pytest.raises(workdirs.Mismatch, match="another network"):
        checkpointer._newest(read)
    wrong[4] = KeyError("ema")
    with rejects(ValueError, "no checkpoint in here can be read: step 6 (cut off); step 4 ('ema')"):
        checkpointer._newest(read)
    assert checkpointer._damaged == {2, 4, 6}
    checkpointer._manager.all_steps = lambda: []
    assert checkpointer._newest(read) is None


def test_a_checkpointer_leaves_hooks_as_they_were(tmp_path):
    before = sys.unraisablehook, list(logging.getLogger("asyncio").filters)
    checkpointer = workdirs.Checkpointer(tmp_path)
    assert sys.unraisablehook is not before[0]
    checkpointer.close()
    assert (sys.unraisablehook, logging.getLogger("asyncio").filters) == before


def test_a_file_that_cannot_be_written_is_named_and_nothing_waits_for_it(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    with largest_file(500), pytest.raises(OSError, match="File too large: .*metrics.jsonl"):
        for step in range(1, 100):
            writer.add({"loss": 1.0, "grad_norm": 1.0})
            writer.write(step, 4, 1e-3)
    file = tmp_path / "file.json"
    files.write_json(file, 1)
    with largest_file(500), pytest.raises(OSError, match="File too large: .*file.json"):
        files.write_json(file, "long" * 500)
    assert file.read_text() == "1\n" and not list(tmp_path.glob("file.json.*"))


def test_metrics_are_means_since_the_last_and_go_on_where_a_run_does(tmp_path):
    def write(writer, *steps):
        for step in steps:
            writer.add({"loss": np.float32(step**2), "finite": np.True_})
        return writer.write(steps[-1], 4, 0.1 * steps[-1])

    writer = MetricsWriter(tmp_path, 0)
    assert write(writer, 1, 3) | {"images_s": 0} == {
        "loss": 9, "finite": 1, "loss_mean": (1 + 9) / 2, "learning_rate": 0.1 * 3, "images_s": 0
    }  # fmt: skip
    assert write(writer, 4, 6)["loss_mean"] == (16 + 36) / 2
    write(writer, 7)
    writer.close()
    again = MetricsWriter(tmp_path, 6)  # of that step is the newest checkpoint
    assert curve(tmp_path) == {3: 9, 6: 36}
    write(again, 8)
    again.close()
    assert curve(tmp_path) == {3: 9, 6: 36, 8: 64}


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(tmp_path):
    resume.check_not_lost(tmp_path, 10)
    line = '{"step": %d}\n'
    (tmp_path / "metrics.jsonl").write_text(line % 10 + line % 20 + '{"step": 3')
    resume.check_not_lost(tmp_path, 10)
    (tmp_path / "metrics.jsonl").write_text(line % 10 + line % 30)
    with rejects(ValueError, "has no checkpoint, though metrics.jsonl there goes to step 30"):
        resume.check_not_lost(tmp_path, 10)


def test_checkpoints_are_missed_by_the_interval_that_they_were_written_at(tmp_path):
    config = digits.get_config()
    config.train.checkpoint_every = 10
    assert resume.checkpoint_every(tmp_path, config) == 10
    resume.save_config(tmp_path, config)
    config.train.checkpoint_every = 1000
    assert resume.checkpoint_every(tmp_path, config) == 10


@pytest.mark.parametrize("name", ["ema", "loss", "train.keep"])
def test_a_config_without_a_section_is_refused(name):
    config = digits.get_config()
    section, _, field = name.rpartition(".")
    del (config[section] if section else config)[field]
    with rejects(ValueError, "the config has no", name, "as configs/digits.py has"):
        teacher.resolve(config, None)


def test_a_config_need_not_say_the_usual():
    config = digits.get_config()
    del config.seed, config.parallel, config.sample, config.data["flip"]
    found = teacher.resolve(config, None)
    assert (found.seed, found.parallel, found.data.flip) == (0, "jit", False)
    assert found.sample.to_dict() == {} and "seed" not in config


@pytest.mark.slow
def test_a_run_whose_data_changed_is_refused(tmp_path):
    file, workdir = tmp_path / "images.npz", tmp_path / "run"

    def on(first, last, steps):
        source = data.load("digits")
        images, labels = zip(*(source[i].values() for i in range(first, last)), strict=True)
        np.savez(file, images=images, labels=labels)
        changed = config(steps)
        changed.data.name = f"npz:{file}"
        return loop.train(changed, workdir)

    on(0, 40, 2)
    message = (
        "data of the run in .* have changed: npz:.* was 40 images of 8 x 8 x 1 .*, it is {} im"
    )
    for first, last in ((40, 80), (0, 39)):
        with pytest.raises(ValueError, match=message.format(last - first) + ".*another --workdir"):
            on(first, last, 4)
    assert sorted(curve(workdir)) == [1, 2] and int(on(0, 40, 3).step) == 3
    about = workdir / workdirs.CONFIG_FILE
    old = json.loads(about.read_text())
    assert "40 images" in old.pop("data_fingerprint")
    about.write_text(json.dumps(old))  # as earlier versions wrote it, or to insist
    assert int(on(40, 80, 4).step) == 4
    assert "40 images" in json.loads(about.read_text())["data_fingerprint"]


def test_a_checkpoint_of_another_architecture_names_the_parameter(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    text = json.loads((workdir / workdirs.CONFIG_FILE).read_text())
    text["model"]["channels"] *= 2
    (workdir / workdirs.CONFIG_FILE).write_text(json.dumps(text))
    with pytest.raises(ValueError, match="checkpoint 6 is of another architecture: parameter conv"):
        checkpoints.load(workdir)


def test_a_workdir_of_another_experiment_is_refused(finished):
    other = config(6)
    other.schedule.name = "vp_linear"
    message = "run whose config.schedule.name is 'cosine', not 'vp_linear'; .*another --workdir"
    with pytest.raises(ValueError, match=message):
        loop.train(other, finished[0])


def test_a_config_that_names_a_default_is_of_the_same_experiment(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    file = workdir / workdirs.CONFIG_FILE
    old = json.loads(file.read_text())
    assert old["model"].pop("dtype") == "float32"
    file.write_text(json.dumps(old))
    resume.save_config(workdir, config(6))
    other = config(6)
    other.model.dtype = "bfloat16"
    with pytest.raises(
        ValueError, match="whose config.model.dtype is 'float32', not 'bfloat16'; ch"
    ):
        resume.save_config(workdir, other)


def test_weights_that_were_trained_on_since_are_said(tmp_path):
    begun = config(6)
    begun.start_weights = "a"
    resume.save_config(tmp_path, begun)
    begun.start_weights = "b"
    message = f"{tmp_path} began from a network that has other weights now.*remove {tmp_path} alo"
    with pytest.raises(ValueError, match=message):
        resume.save_config(tmp_path, begun)


def test_an_unfinished_start_is_said(finished):
    start = checkpoints.load(finished[0])
    place = str(finished[0])
    assert teacher.note(place, start) is None and teacher.note("", None) is None
    assert teacher.note("", start.replace(step=4)) is None  # the working directory is no run
    said = teacher.note(place, start.replace(step=4))
    assert f"{place} is at step 4 of 6, and this run learns from that state" in said


def test_a_loss_that_is_not_finite_saves_the_last_good_state_and_stops(tmp_path):
    bad = config(9)
    bad.optimizer.update(learning_rate=1e30, warmup_steps=0, clip_norm=0.0)
    with pytest.raises(loop.NotFiniteError, match="not finite .*learning_rate") as error:
        loop.train(bad, tmp_path)
    (saved,) = kept(tmp_path)
    assert f"is saved in {tmp_path / 'checkpoints' / str(saved)}." in str(error.value)
    assert 0 < saved < 9
    ema = checkpoints.load(tmp_path).params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ema))


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nowhere'.*: digits"):
        checkpoints.load("nowhere")
    with pytest.raises(FileNotFoundError, match="not a training workdir .no config.json"):
        checkpoints.load(tmp_path)
    (begun := tmp_path / "begun").mkdir()
    resume.save_config(begun, config(1))
    with pytest.raises(FileNotFoundError, match="has no checkpoints yet"):
        checkpoints.load(begun)
    with pytest.raises(FileNotFoundError, match=f"; {tmp_path} holds begun$"):
        checkpoints.load(tmp_path / "later")


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("float16", 1e-3)])
def test_an_exported_file_holds_the_network_and_its_config(finished, tmp_path, dtype, tolerance):
    model = checkpoints.load(finished[0])
    file = tmp_path / "model.safetensors"
    export.main([str(finished[0]), str(file), f"--dtype={dtype}"])
    back = checkpoints.load(file)
    assert back.step == 6 and back.config.to_json() == model.config.to_json()
    model.config.data.name = "npz:/home/me/mine.npz"
    model.config.start_from = "/home/me/runs/8_step"
    checkpoints.save(tmp_path / "mine.safetensors", model)
    mine = checkpoints.load(tmp_path / "mine.safetensors").config
    assert (mine.data.name, mine.start_from) == ("npz:mine.npz", "8_step")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        back.params,
        model.params,
    )
    with pytest.raises(FileExistsError, match="exists; choose another name"):
        checkpoints.save(file, model)
    with pytest.raises(ValueError, match="must end in .safetensors, got"):
        checkpoints.save(tmp_path / "model.bin", model)
    with pytest.raises(ValueError, match="dtype must be one of .*, float16, int8, got 'int4'"):
        checkpoints.save(tmp_path / "new.safetensors", model, "int4")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        checkpoints.load(file)


def command(workdir, steps):
    return [
        sys.executable, "train.py", f"--workdir={workdir}", f"--config.train.steps={steps}",
        "--config.model.channels=8", "--config.train.batch_size=8", "--config.train.log_every=1",
        "--config.train.checkpoint_every=20", "--config.train.sample_every=0",
    ]  # fmt: skip


@pytest.mark.slow
def test_kill_9_and_sigterm_in_a_process_of_its_own(tmp_path):
    """The same command continues, and its loss curve is that of an uninterrupted run."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole, 120), cwd=ROOT, check=True)
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        process = subprocess.Popen(command(broken, 120), cwd=ROOT)
        first = max(curve(broken)) if (broken / "metrics.jsonl").exists() else 0
        while process.poll() is None:
            time.sleep(0.02)
            done = (broken / "metrics.jsonl").exists() and max(curve_so_far(broken), default=0)
            if done and done >= first + 30:
                process.send_signal(number)
                break
        assert process.wait() == code
    subprocess.run(command(broken, 120), cwd=ROOT, check=True)
    assert curve(broken) == curve(whole) and max(curve(whole)) == 120


def curve_so_far(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


# --- what follows from the data -------------------------------------------------------------------


SMALL = {
    **{"model.channels": "8", "model.patch_size": "1", "model.channel_mults": "(1,)"},
    **{"train.steps": "2", "train.batch_size": "4", "train.log_every": "1"},
    **{"train.sample_every": "0", "sample.steps": "2", "sample.num_samples": "2"},
    "optimizer.warmup_steps": "1",
}
"""Overrides that shrink the digits config, on a command line."""


def photos(folder, classes, count=3, size=(8, 8)):
    """A folder of RGB pictures; without classes if there are none."""
    rng = np.random.default_rng(0)
    for name in classes or [""]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return f"folder:{folder}"


def own(name, **changes):
    """The digits config, small, on one's own data."""
    return configs.load("digits", [*(SMALL | {"data.name": name} | changes).items()])


@pytest.mark.slow
def test_one_override_trains_on_ones_own_pictures(tmp_path, capsys):
    """Classes, channels and shape follow the data; names are kept, shown, and labels."""
    spec = photos(tmp_path / "photos", ["10", "9", "dog"])
    (tmp_path / "photos" / "dog" / "notes.txt").write_text("x")
    loop.train(own(spec), tmp_path / "run")
    out, err = capsys.readouterr()
    assert f"9 images of {spec}, 8 x 8 x 3, 3 classes (9, 10, dog)" in out
    assert "note: skipped 1 other files (.txt)" in out
    lines = err.splitlines()
    assert lines.pop(0) == "compiling the first state ..."
    assert lines[0] == "compiling the train step ..."
    assert re.fullmatch(r"step 1 of 2: loss \S+, learning rate 0", lines[1])
    assert re.fullmatch(r"step 2 .* learning rate 0.001, \S+ images/s, 00:00 left", lines[2])
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0, 1e-3])
    model = checkpoints.load(tmp_path / "run")
    assert (model.sample_shape, model.inputs.num_classes) == ((8, 8, 3), 3)
    assert model.network.out_channels == 3 and "3 classes (9, 10, dog)" in repr(model)
    checkpoints.save(tmp_path / "model.safetensors", model)
    exported = checkpoints.load(tmp_path / "model.safetensors")
    for one in (model, exported):
        assert one.inputs.class_names == ("9", "10", "dog")
        assert one.generate(2, label=["dog", "9"]).labels.tolist() == [2, 0]


@pytest.mark.slow
def test_data_without_classes_make_a_network_without(tmp_path):
    spec = photos(tmp_path / "photos", [])
    loop.train(own(spec), tmp_path / "run")
    model = checkpoints.load(tmp_path / "run")
    assert (model.sample_shape, model.inputs.num_classes) == ((8, 8, 3), 0)
    assert model.config.loss.label_dropout == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model.num_classes": "3"},
            "has 2 classes .ant, bee., the network 3; set config.model.num_classes=2",
        ),
        (
            {"model.num_classes": "1"},
            "has 2 classes .ant, bee., the network 1; set config.model.num_classes=2",
        ),
        ({"data.image_shape": "(8, 8, 1)"}, r"\(8, 8, 3\), .*; .*set config.data.channels=1"),
        ({"data.image_shape": "(16, 8, 3)"}, r"set config.data.resize=\(16, 8\)"),
        ({"model.out_channels": "1"}, "the network returns 1 channels, the images have 3"),
        ({"data.class_names": "('bee', 'cat')"}, "are ant, bee, those of the network bee, cat"),
        ({"data.class_names": "('ant',)"}, "class_names must name all 2 classes"),
        ({"data.channels": "2"}, "config.data.channels must be 1 .grey., 3 .RGB. or None"),
        ({"data.resize": "-1"}, "config.data.resize must be in .*, got -1"),
        ({"data.split": "test"}, "no split 'test'"),
        ({"start_from": "digits"}, r"images of shape \(8, 8, 3\)|another architecture"),
    ],
)
def test_what_is_said_of_the_data_must_match_them(changes, message, tmp_path):
    spec = photos(tmp_path / "photos", ["ant", "bee"])
    with pytest.raises(ValueError, match=message):
        loop.train(own(spec, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unlabelled_data_do_not_train_a_network_of_classes(tmp_path):
    spec = photos(tmp_path / "photos", [])
    with pytest.raises(ValueError, match="has 0 classes, the network 10; .*num_classes=0 and loss"):
        loop.train(own(spec, **{"model.num_classes": "10"}), tmp_path / "run")
    config = own(photos(tmp_path / "more", ["a", "b"]), **{"model.num_classes": "0"})
    config.loss.label_dropout = 0.0
    resolved = experiment.resolve(config)  # a network without classes takes any
    run_data.check(resolved, experiment.load_data(resolved))


def test_a_run_takes_data_of_some_of_the_classes_that_it_starts_with_or_of_none(tmp_path):
    start, names = ddim_jax.load("digits"), tuple("zyxwvutsra")
    config = experiment.resolve(own("digits"))
    with config.unlocked(), config.ignore_type():
        config.data.class_names, config.data.image_shape = names, (8, 8, 3)
        config.start_from = "digits"

    def numbered(spec, start=start):
        config.data.name = spec
        source = experiment.load_data(config)
        run_data.check(config, source, start)
        return run_data.numbered(config, source, start), run_data.note(config, source)

    some, note = numbered(photos(tmp_path / "some", ["a", "y"]))
    assert not note and {int(some[i]["label"]) for i in range(len(some))} == {1, 9}
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    np.savez(tmp_path / "two.npz", x=images, y=[0, 1], class_names=["x", "a"])
    two, _ = numbered(f"npz:{tmp_path}/two.npz")
    assert two.batch(np.array([1, 0]))["label"].tolist() == [9, 2]
    without, note = numbered(photos(tmp_path / "none", []))
    assert "has no classes: its images are told none" in note and without[0]["label"] == 10
    others = photos(tmp_path / "others", ["ant", "bee"])
    known = r"has 2 classes \(ant, bee\), the network of digits 10 .*; give them names among those"
    with pytest.raises(ValueError, match=known + ".* leave classes out"):
        numbered(others)
    for spec in (others, f"folder:{tmp_path}/none"):
        with pytest.raises(ValueError, match="give them names among those of the network$"):
            numbered(spec, always_told(start))


def always_told(model):
    """A model that was trained without dropped labels."""
    config = model.config.copy_and_resolve_references()
    config.loss.label_dropout = 0.0
    return model.replace(config=config)


def test_pictures_are_made_to_fit_in_words_only(tmp_path):
    spec = photos(tmp_path / "photos", ["ant"], size=(8, 12))
    changes = {"data.resize": "(4, 8)", "data.channels": "1", "data.pad": "True"}
    for pad in ("True", "False"):
        config = experiment.resolve(own(spec, **changes | {"data.pad": pad}))
        assert (config.data.image_shape, config.model.out_channels) == ((4, 8, 1), 1)
        picture = experiment.load_data(config)[0]["image"]
        assert picture.shape == (4, 8, 1)
        assert (not picture[:, :1].any()) == (pad == "True")  # 6 x 4 between bars of 1


# --- what a resume may change ---------------------------------------------------------------------


@pytest.mark.slow
def test_another_batch_size_would_skip_images_and_is_refused(finished):
    other = config(6)
    other.train.batch_size = 8
    message = f"config.train.batch_size is 4, not 8; .*config.start_from={finished[0]} goes on"
    with pytest.raises(ValueError, match=message):
        loop.train(other, finished[0])


OTHER = {
    "seed": 7, "ema.relative_std": 0.2, "prediction.name": "eps", "train.batch_size": 8,
    "codec.name": "autoencoder_kl", "text.encoders": ["clip"], "frame_noise.name": "mixed",
    "guide.name": "weak", "teacher_dtype": "bfloat16", "train.lora.rank": 4,
    "teacher_weights": "b", "weak_weights": "b",
}  # fmt: skip
"""Of the same data, model, schedule, loss and optimizer, which other tests change."""


@pytest.mark.parametrize("field", [*OTHER, resume.DATA])
def test_a_run_does_not_go_on_as_another(field):
    old = json.loads(config(6).to_json()) | {resume.DATA: "40 images"}
    new, message = copy.deepcopy(old), f"w holds a run whose config.{field} is"
    *sections, name = field.split(".")
    section = new
    for one in sections:
        section = section.setdefault(one, {})
    section[name] = OTHER.get(field, "50 images")
    resume.check(Path("w/config.json"), old, copy.deepcopy(old))
    if field.endswith("_weights"):
        message = "w began from a network that has other weights now"
    if field == resume.DATA:
        message = "the data of the run in w have changed: digits was 40 images, it is 50 images"
    with rejects(ValueError, message):
        resume.check(Path("w/config.json"), old, new)


def test_a_mismatch_names_the_fields_that_changed(tmp_path):
    resume.save_config(tmp_path, config(1))
    other = config(1)
    other.model.channels, other.optimizer.b2, other.loss.times.name = 16, 0.5, "u_shaped"
    with pytest.raises(ValueError) as error:
        resume.save_config(tmp_path, other)
    assert str(error.value).startswith(
        f"{tmp_path} holds a run whose config.loss.times.name is 'uniform', not 'u_shaped', "
        "config.model.channels is 8, not 16, config.optimizer.b2 is 0.99, not 0.5; choose another"
    )


@pytest.mark.slow
def test_the_length_of_a_run_may_change_and_its_decay_with_it(tmp_path, capsys):
    def decaying(steps, **optimizer):
        changed = config(steps)
        with changed.unlocked():
            changed.optimizer.update({"decay": "linear", "warmup_steps": 0} | optimizer)
        return changed

    loop.train(decaying(2), tmp_path)
    assert "note" not in capsys.readouterr().out
    loop.train(decaying(4), tmp_path)
    assert "now falls to 0 at step 4, it was 2" in capsys.readouterr().out
    loop.train(decaying(4, decay_steps=8), tmp_path)
    out = capsys.readouterr().out
    assert "at step 8, it was 4" in out and "nothing to do, the run is at step 4" in out
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])


def test_a_finished_run_encodes_nothing(tmp_path, monkeypatch):
    def told(*arguments):
        raise AssertionError("captions and pictures are encoded")

    monkeypatch.setattr(loop.around, "told", told)
    monkeypatch.setattr(loop, "grid", lambda *arguments: None)
    codec = types.SimpleNamespace(params=None)
    method = types.SimpleNamespace(model=types.SimpleNamespace(codec=codec))
    state, mesh = types.SimpleNamespace(step=4), parallel.make_mesh()
    given = (config(4), tmp_path, method, data.load("digits"), state, mesh, None)
    assert loop._steps(*given) is state


class Asked(Exception):
    """Instead of batches."""


def test_batches_are_those_that_a_config_asks_for(monkeypatch):
    def batches(*given, **options):
        raise Asked(given, options)

    monkeypatch.setattr(loop.data, "batches", batches)
    monkeypatch.setattr(loop.around, "told", lambda config, model, source: source)
    asked = config(4)
    asked.seed, asked.data.flip, asked.train.batch_size = 3, True, 6
    method, state = types.SimpleNamespace(model=None), types.SimpleNamespace(step=2)
    with pytest.raises(Asked) as found:
        loop._steps(asked, Path("w"), method, "source", state, None, None)
    given, options = found.value.args
    assert given == ("source", 6) and options == dict(
        seed=3, flip=True, start_step=2, process_index=0, process_count=1
    )


def test_a_seed_decides_the_first_parameters_and_the_keys():
    model = types.SimpleNamespace(
        init=lambda key: {"w": jax.random.normal(key, (3,))}, example=lambda: None
    )
    method = Method(model, Loss(None), optax.sgd(0.1), None, None)

    def first(seed):
        seeded = config(1)
        seeded.seed = seed
        return leaves(loop.init_state(seeded, method, None, parallel.make_mesh()))

    for one, same, other in zip(first(3), first(3), first(4), strict=True):
        np.testing.assert_array_equal(one, same)
        assert (one != other).any() or one.shape == ()  # all but the step, which is 0


@pytest.mark.parametrize("factors", [False, True])
def test_pictures_are_drawn_with_the_moving_average(factors):
    trees = [{"a": {"kernel": jnp.full((2, 2), size)}} for size in (1.0, 2.0, 4.0)]
    state = TrainState(jnp.int32(0), trees[0], trees[1], None, None, {BASE: trees[2]})
    low_rank = types.SimpleNamespace(merge=lambda base, own: jax.tree.map(jnp.add, base, own))
    method = types.SimpleNamespace(low_rank=low_rank if factors else None)
    found = loop._drawn_with(method, state, parallel.make_mesh())
    np.testing.assert_array_equal(found["a"]["kernel"], np.full((2, 2), 6.0 if factors else 2.0))


def test_configs_that_say_the_same_are_the_same(tmp_path):
    """As earlier versions wrote them."""
    old = config(6)
    with old.unlocked():
        old.optimizer.decay_steps = 6
        del old.data["data_dir"]
    resume.save_config(tmp_path, old)
    new = config(6)
    with new.unlocked():
        new.optimizer.decay = "cosine"
        new.data.class_names = ("a", "b")
    resume.save_config(tmp_path, new)


def test_defaults_may_be_written_out_or_left_out(tmp_path):
    short, long = config(6), config(6)
    with long.unlocked(), long.ignore_type():
        long.optimizer.update(b1=0.9, decay=None)
        long.schedule.log_snr_min = inspect.signature(cosine).parameters["log_snr_min"].default
    resume.save_config(tmp_path, short)
    resume.save_config(tmp_path, long)
    resume.save_config(tmp_path, short)
    long.optimizer.b1 = 0.8
    with pytest.raises(ValueError, match="config.optimizer.b1 is 0.9, not 0.8"):
        resume.save_config(tmp_path, long)


def test_the_config_of_something_else_is_no_workdir(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["CLIPTextModel"], "model_type": "x"}')
    with pytest.raises(ValueError, match="config.json is no config of a training run, .* no sect"):
        checkpoints.load(tmp_path)


def test_the_folder_of_a_staged_run_names_its_stages(tmp_path):
    for name in ("first", "second"):
        resume.save_config(tmp_path / name, config(1))
    with pytest.raises(FileNotFoundError, match="holds the stages first, second; give one of them"):
        checkpoints.load(tmp_path)
