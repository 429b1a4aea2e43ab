"""Methods of several stages on a tiny network: chains, resuming, pairs, and what is refused."""

import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from configs import digits
from ddim_jax import checkpoints, experiment, sampling
from ddim_jax.data import noise_pairs
from ddim_jax.training import loop, reflow_pairs, stages
from ddim_jax.training.metrics import MetricsWriter
from ddim_jax.training.signals import StopOnSignal
from tests.tiny import tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a tiny teacher."""
    workdir = tmp_path_factory.mktemp("teacher")
    loop.train(tiny(digits.get_config(), levels=1), workdir)
    return workdir


def stage(name, **changes):
    return dict(name=name, **changes)


def student(steps, **changes):
    return stage(f"{steps}_step", loss=dict(name="progressive", steps=steps), **changes)


def config(teacher, *parts, **train):
    config = tiny(digits.get_config(), levels=1)
    config.start_from = str(teacher)
    config.train.update(dict(steps=2, sample_every=0, checkpoint_every=1, keep=5) | train)
    with config.unlocked():
        config.stages = list(parts)
    return config


def leaves(state):
    state = state.replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def chain(teacher, tmp_path_factory):
    """Two halvings without interruption: (workdir, last state)."""
    workdir = tmp_path_factory.mktemp("chain")
    return workdir, stages.train(config(teacher, student(2), student(1), sample_every=2), workdir)


@pytest.mark.slow
def test_every_stage_starts_from_the_one_before_and_keeps_its_checkpoint(teacher, chain):
    workdir, state = chain
    first, second = (
        json.loads((workdir / f"{n}_step" / "config.json").read_text()) for n in (2, 1)
    )
    assert first["start_from"] == str(teacher)
    assert second["start_from"] == str(workdir / "2_step")
    models = [checkpoints.load(workdir / f"{n}_step") for n in (2, 1)]
    assert second["start_weights"] == models[0].fingerprint
    frozen = models[0].replace(params=state.frozen["teacher"]).fingerprint
    assert frozen == second["start_weights"] and [m.step for m in models] == [2, 2]
    assert (workdir / "1_step" / "samples" / "step_0000002.png").exists()


@pytest.mark.slow
def test_finished_stages_are_not_done_again(teacher, chain, capsys):
    workdir, state = chain
    again = stages.train(config(teacher, student(2), student(1), sample_every=2), workdir)
    said = capsys.readouterr().out
    assert f"Stage 2 of 2: 1_step; {workdir / '2_step'} is finished and can be drawn" in said
    for ours, theirs in zip(leaves(again), leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_chain_stopped_inside_a_stage_goes_on_there_bit_for_bit(
    teacher, chain, tmp_path, monkeypatch
):
    add, calls = MetricsWriter.add, []

    def add_and_signal(self, metrics):
        add(self, metrics)
        calls.append(1)
        if len(calls) == 3:  # the first step of the second stage
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricsWriter, "add", add_and_signal)
    parts = config(teacher, student(2), student(1))
    stopped = stages.train(parts, tmp_path)
    assert int(stopped.step) == 1 and len(calls) == 3
    state = stages.train(parts, tmp_path)
    assert len(calls) == 4
    for ours, theirs in zip(leaves(state), leaves(chain[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_stage_stopped_early_does_not_hand_over(teacher, tmp_path, monkeypatch):
    add = MetricsWriter.add

    def add_and_signal(self, metrics):
        add(self, metrics)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricsWriter, "add", add_and_signal)
    stages.train(config(teacher, student(2), student(1)), tmp_path)
    assert not (tmp_path / "1_step").exists()


@pytest.mark.parametrize(
    ("steps", "signalled", "trained", "stopped"),
    [
        ((2, 4), False, 2, False),
        ((1, 4), False, 1, False),
        ((2, 4), True, 1, True),
        ((2, 3), True, 2, True),
        ((2, 4), True, 2, False),
    ],
    ids=["all", "inside the first", "behind the first", "inside the last", "behind the last"],
)
def test_a_stage_hands_over_when_it_is_finished_and_nobody_stopped_it(
    steps, signalled, trained, stopped, monkeypatch
):
    """Of two stages, of 2 and 4 steps, the second starts then; the last state comes back."""
    runs = []

    def train(config, folder):
        StopOnSignal.stopped = signalled and len(runs) + 1 == trained
        runs.append((folder.name, config.train.steps))
        return types.SimpleNamespace(step=steps[len(runs) - 1])

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(StopOnSignal, "stopped", False)
    parts = [ml_collections.ConfigDict({"train": {"steps": count}}) for count in (2, 4)]
    state = stages._train([*zip(map(Path, ("w/a", "w/b")), parts, strict=True)])
    assert runs == [("a", 2), ("b", 4)][:trained] and state.step == steps[trained - 1]
    assert StopOnSignal.stopped == stopped  # a signal behind the last has stopped nothing


CHILD = """
import sys
from tests.test_stages import config, student
from ddim_jax.training import stages
stages.train(config(sys.argv[1], student(2), student(1), steps=80, checkpoint_every=7), sys.argv[2])
"""


@pytest.mark.slow
def test_kill_9_inside_the_second_stage(teacher, tmp_path):
    """The same command ends in the state of an uninterrupted run, and halves no stage twice."""

    def child(workdir):
        return [sys.executable, "-c", CHILD, str(teacher), str(workdir)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(child(whole), cwd=ROOT, check=True)
    process, metrics = subprocess.Popen(child(broken), cwd=ROOT), broken / "1_step/metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_text().count("\n") >= 30
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    first = (broken / "2_step/metrics.jsonl").read_text()
    subprocess.run(child(broken), cwd=ROOT, check=True)
    assert (broken / "2_step/metrics.jsonl").read_text() == first
    fingerprints = [checkpoints.load(run / "1_step").fingerprint for run in (whole, broken)]
    assert fingerprints[0] == fingerprints[1] and checkpoints.load(broken / "1_step").step == 80


@pytest.mark.slow
def test_another_teacher_is_another_run(teacher, chain, tmp_path):
    other = config(teacher, student(2), student(1))
    other.start_from = str(chain[0] / "2_step")
    with pytest.raises(ValueError, match="this one takes 2; halve that: loss.steps=1"):
        stages.train(other, chain[0])
    parts = config(chain[0] / "1_step", stage("2_step", loss=dict(name="guided")))
    with pytest.raises(ValueError, match="stage 2_step: .*a run whose config.loss.name is"):
        stages.train(parts, chain[0])


def change(parts, path, value):
    with parts.unlocked():
        *sections, field = path.split(".")
        target = parts
        for section in sections:
            target = target[section]
        target[field] = value
    return parts


@pytest.mark.parametrize(
    "parts, path, value, message",
    [
        ([student(4), student(3)], "seed", 0, "stage 3_step: a student of 3 steps needs a teacher"),
        ([student(4), student(1)], "seed", 0, "of 1 steps .* of 2, this one takes 4; .*steps=2"),
        ([student(0)], "seed", 0, "stage 0_step: config.loss.steps must be in .1, 10000., got 0"),
        ([student(1)], "prediction.name", "eps", "stage 1_step: .*next to nothing about x0"),
        ([student(1)], "schedule", dict(name="vp_linear"), "was trained on the schedule .*cosine"),
        ([student(1)], "start_from", "", "this loss needs a teacher: set config.start_from"),
        ([student(1)], "start_from", "nowhere", "no checkpoint 'nowhere'"),
        ([student(1)], "model.num_classes", 4, "has 10 classes, this config 4; set .*classes=10"),
        ([student(1)], "data.image_shape", (16, 16, 1), r"images of shape \(8, 8, 1\), this conf"),
        (
            [student(1)],
            "data.resize",
            16,
            "network of .* draws .8, 8, 1.; name the data that it le",
        ),
        ([student(1)], "model.channels", 12, "of another architecture: parameter"),
        ([student(2), student(2)], "seed", 0, "every stage needs a name of its own, got '2_step'"),
        (
            [student(2), stage("x", loss=dict(name="flow"))],
            "seed",
            0,
            "stage x: unknown loss 'flow'",
        ),
        ([student(2), stage("x", train=dict(steps=0))], "seed", 0, "stage x: .*at least 1, got 0"),
        ([stage("x", data=dict(name="pairs"))], "seed", 0, "stage x: .*no earlier stage draws"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    parts, path, value, message, teacher, tmp_path
):
    wrong = change(config(teacher, *parts), path, value)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stages.train(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


CLIPS = np.arange(4 * 5 * 64, dtype=np.uint8).reshape(4, 5, 8, 8, 1)


@pytest.fixture
def of_clips(tmp_path, monkeypatch):
    """A config of single frames first and then of clips, as stages train; nothing is trained."""

    def make(*later, **arrays):
        np.savez(tmp_path / "clips.npz", images=CLIPS, labels=np.arange(4) % 2, **arrays)
        config = tiny(digits.get_config(), levels=1)
        config.data.update(name=f"npz:{tmp_path / 'clips.npz'}", frames=1)
        config.model.num_classes = 2
        with config.unlocked(), config.ignore_type():
            config.stages = [stage("frames"), *later]
        return config

    def trained(config, folder):
        raise AssertionError(f"{folder.name} is trained")

    monkeypatch.setattr(loop, "train", trained)
    return make


MOVING = dict(model=dict(name="video_unet"))


@pytest.mark.parametrize(
    "data, message",
    [
        (dict(frames=6), r"stage clips: .*have 5 frames, config.stages.1..data.frames=6 asks"),
        (dict(frames=4, name="npz:none.npz"), "stage clips: .*none.npz does not exist"),
        (dict(frames=4, split="test"), "stage clips: .*split 'test' needs"),
    ],
)
def test_data_of_later_stages_are_checked_before_the_first_runs(data, message, of_clips, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stages.train(of_clips(stage("clips", data=data, **MOVING)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_equal_data_of_stages_are_loaded_once(of_clips, tmp_path, monkeypatch):
    load, loaded = experiment.load_data, []
    monkeypatch.setattr(experiment, "load_data", lambda c: loaded.append(c.data.frames) or load(c))
    long = dict(data=dict(frames=4), **MOVING)
    config = of_clips(stage("clips", **long), stage("more", **long), class_names=["a", "b"])
    with pytest.raises(AssertionError, match="frames is trained"):
        stages.train(config, tmp_path / "run")
    assert loaded == [1, 4]


def test_messages_about_data_name_the_field_of_the_stage(of_clips, tmp_path, monkeypatch):
    def refuse(config, model, source):
        if config.data.frames > 1:
            raise ValueError("set config.data.frames=5, config.data.frames_a or config.data.flip")

    monkeypatch.setattr(stages.around, "check", refuse)
    says = r"stage clips: set config.stages.1..data.frames=5, config.data.frames_a or config.data.f"
    with pytest.raises(ValueError, match=says):
        stages.train(of_clips(stage("clips", data=dict(frames=4), **MOVING)), tmp_path / "run")


@pytest.mark.slow
def test_a_guided_student_takes_the_scale_as_an_input(teacher, tmp_path):
    parts = config(teacher, stage("guided", loss=dict(name="guided", guidance=(1.0, 4.0))))
    parts.model.scalars = ("guidance",)
    state = stages.train(parts, tmp_path)
    assert int(state.step) == 2
    before, after = checkpoints.load(teacher), checkpoints.load(tmp_path / "guided")
    assert set(after.params) - set(before.params) == {"guidance_0", "guidance_1"}
    with pytest.raises(ValueError, match="was distilled for guidance scales 1.0 to 4.0, got 6"):
        after.check(after.recipe.replace(guidance_scale=6))


@pytest.mark.slow
def test_scalars_of_a_network_change_what_it_says(teacher, tmp_path):
    """Guidance through the input of a guided student, in one forward pass an evaluation."""
    changed = tiny(digits.get_config(), levels=1)
    changed.model.scalars = ("guidance",)
    changed.loss = dict(name="guided", guidance=(1.0, 4.0))
    model = experiment.build(changed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))
    normal = lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape)  # noqa: E731
    model = model.replace(params=jax.tree.map(normal, shapes))
    table = model.recipe.replace(steps=1).table(model.schedule)
    index, labels = np.arange(2), np.array([1, 2], np.int32)

    def draw(scale):
        recipe = model.recipe.replace(guidance_scale=scale)
        conditions = model.conditions(2, recipe, labels, table)
        assert conditions["guidance"] is None
        (batch,) = model.generator(recipe).batches(table, index, **conditions)
        return batch.result.x

    weak, strong = draw(1.0), draw(3.0)
    assert np.abs(weak - strong).max() > 1e-3
    keys = sampling.sample_keys(0, index)
    noise = sampling.initial_noise(keys, model.sample_shape)
    inputs = {"label": labels, "guidance": np.full(2, 3.0, np.float32)}
    again = model.sampler()(model.params, table, noise, keys, inputs).x
    np.testing.assert_allclose(again, strong, atol=1e-5)


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reflow_trains_on_what_the_stage_before_drew(teacher, tmp_path):
    flow = dict(loss=dict(name="diffusion", times=dict(name="uniform")))
    parts = config(
        teacher,
        stage("reflow", **flow, pairs=dict(count=8, solver="ddim", steps=2, batch_size=4)),
        stage("one_step", loss=dict(times=dict(name="nodes", steps=1)), data=dict(name="pairs")),
    )
    state = stages.train(parts, tmp_path)
    assert int(state.step) == 2
    saved = json.loads((tmp_path / "one_step" / "config.json").read_text())
    assert saved["data"]["name"] == f"pairs:{tmp_path / 'reflow' / 'pairs'}"
    assert saved["loss"]["name"] == "diffusion"
    about = json.loads((tmp_path / "reflow" / "pairs" / noise_pairs.ABOUT).read_text())
    assert about["nfe"] == 2 and about["count"] == 8
    assert about["weights"] == checkpoints.load(teacher).fingerprint


def test_pairs_cannot_be_flipped(teacher, tmp_path):
    model, folder = checkpoints.load(teacher), tmp_path / "pairs"
    reflow_pairs.draw(model, folder, count=4, solver="ddim", steps=2)
    flipped = tiny(digits.get_config(), levels=1)
    flipped.data.update(name=f"pairs:{folder}", flip=True)
    with pytest.raises(ValueError, match="pairs cannot be flipped"):
        loop.train(flipped, tmp_path / "run")


def test_an_override_reaches_a_stage():
    parts = config("x", student(2), student(1))
    assert isinstance(parts, ml_collections.ConfigDict)
    folder, second = stages.split(parts, Path("w"))[1]
    assert second.loss.steps == 1 and "stages" not in second and second.start_from == "w/2_step"
