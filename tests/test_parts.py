"""Runs of several networks at once: what is saved and drawn, resume, what cannot be."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import ddim_jax
from configs import digits
from ddim_jax import experiment, parallel
from ddim_jax.checkpoints import weights_file, workdir
from ddim_jax.commands import configs
from ddim_jax.networks import low_rank
from ddim_jax.training import loop, method
from ddim_jax.training import teacher as teachers
from tests.errors import rejects
from tests.latent_networks import random
from tests.processes import ROOT
from tests.tiny import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A network of which no parameter is zero, as a file."""
    made = experiment.build(tiny(digits.get_config(), levels=1))
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: random(str(leaf.shape), *leaf.shape), shapes)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    weights_file.save(path, made.replace(params=params))
    return path


LOSS = dict(name="distribution_matching", start=5.0, every=2, gan=0.1)


def config(base, steps=6, **loss):
    config = tiny(digits.get_config(), levels=1)
    config.start_from = str(base)
    config.train.update(steps=steps, log_every=2, checkpoint_every=2, sample_every=0)
    with config.unlocked():
        config.loss = LOSS | loss
        config.optimizer.parts = dict(critic=dict(learning_rate=2e-3), head=dict(b1=0.0))
        config.sample.stride_options = dict(lam_min=-math.log(5.0))
        config.sample.steps = 1
    return config


def leaves(state):
    state = state.replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """An uninterrupted run of 6 steps."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, loop.train(config(base), workdir)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(base, finished, tmp_path):
    loop.train(config(base, steps=3), tmp_path)
    state = loop.train(config(base), tmp_path)
    assert sorted(state.params) == ["critic", "head", "student"]
    for ours, theirs in zip(leaves(state), leaves(finished[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_student_that_rests_tells_the_gauge_of_its_last_turn(finished):
    """Of steps 2, 4 and 6, in which it rests; what is not finite would be no JSON."""
    found = rows(finished[0])
    assert [row["step"] for row in found] == [2, 4, 6]
    assert all(np.isfinite(row["rho"]) and np.isfinite(row["loss_head"]) for row in found)


@pytest.mark.slow
def test_the_student_alone_is_drawn_from_a_workdir(finished, tmp_path):
    workdir, state = finished
    model = ddim_jax.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, model.params, jax.device_get(state.ema))
    assert jax.tree.structure(model.params) == jax.tree.structure(state.params["student"])
    assert not model.notes(model.recipe)
    (note,) = model.notes(model.recipe.replace(steps=3))
    assert "was trained for 1 steps" in note
    pictures = model.draw(2, label=[3, 1])
    weights_file.save(tmp_path / "student.safetensors", model)
    again = ddim_jax.load(tmp_path / "student.safetensors").draw(2, label=[3, 1])
    np.testing.assert_array_equal(pictures, again)


@pytest.fixture(scope="module")
def by_factors(base, tmp_path_factory):
    """A student of low-rank changes, 6 steps in one go, and the config."""
    made = config(base)
    with made.unlocked():
        made.train.lora = dict(rank=2, targets="attention,convolutions")
    workdir = tmp_path_factory.mktemp("factors")
    return workdir, loop.train(made, workdir), made


@pytest.mark.slow
def test_a_student_of_factors_beside_a_whole_critic(base, by_factors, tmp_path):
    start, (workdir, state, made) = ddim_jax.load(base), by_factors
    assert state.frozen["teacher"] == {} and sorted(state.params) == ["critic", "head", "student"]
    jax.tree.map(np.testing.assert_array_equal, state.frozen["base"], start.params)
    assert jax.tree.structure(state.params["critic"]) == jax.tree.structure(start.params)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(state.params["student"]) == count(state.ema) < 0.5 * count(start.params)
    model = ddim_jax.load(workdir)
    merged = low_rank.of(made.train.lora).merge(start.params, jax.device_get(state.ema))
    jax.tree.map(np.testing.assert_array_equal, model.params, merged)
    assert not np.array_equal(model.draw(2, label=[3, 1]), start.draw(2, label=[3, 1]))
    shorter = made.copy_and_resolve_references()
    shorter.train.steps = 3
    loop.train(shorter, tmp_path)
    for ours, theirs in zip(leaves(loop.train(made, tmp_path)), leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_factors_of_a_network_that_another_teaches(base, finished, by_factors, tmp_path):
    """From a student of one step, by the network that it came from; over devices as on one."""
    made = by_factors[2].copy_and_resolve_references()
    made.start_from, made.teacher = str(finished[0]), str(base)
    states = []
    for made.parallel in ("jit", "fsdp"):
        states.append(loop.train(made, tmp_path / made.parallel))
    jax.tree.map(np.testing.assert_array_equal, states[0].frozen["base"], finished[1].ema)
    start = ddim_jax.load(base).params
    jax.tree.map(np.testing.assert_array_equal, states[0].frozen["teacher"], start)
    for ours, theirs in zip(leaves(states[1]), leaves(states[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_parts_start_as_the_teacher_which_does_not_change(base, finished):
    start = ddim_jax.load(base).params
    state = finished[1]
    jax.tree.map(np.testing.assert_array_equal, state.frozen["teacher"], start)
    for part in ("student", "critic"):
        apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.params[part], start)
        assert 0 < max(jax.tree.leaves(apart)) < 0.05


@pytest.mark.slow
def test_another_run_goes_on_from_student_and_critic(base, finished, tmp_path, capsys):
    plain = config(finished[0], steps=2, gan=0.0)
    del plain.optimizer.parts["head"]
    with rejects(ValueError, "knows no other times", "name one with config.teacher"):
        loop.train(plain, tmp_path)
    with plain.unlocked():
        plain.teacher = str(base)
    state = loop.train(plain, tmp_path)
    assert sorted(state.params) == ["critic", "student"]
    teacher = ddim_jax.load(base).params
    jax.tree.map(np.testing.assert_array_equal, state.frozen["teacher"], teacher)
    assert f"note: takes over critic of {finished[0]}" in capsys.readouterr().out
    like = {name: finished[1].params[name] for name in ("critic", "head")}
    found = workdir.read_parts(finished[0], like)
    jax.tree.map(np.testing.assert_array_equal, found, like)
    other = like | {"head": state.params["critic"], "eye": like["head"]}
    assert list(workdir.read_parts(finished[0], other)) == ["critic"]
    assert workdir.read_parts(base, like) == {}


@pytest.mark.slow
def test_a_critic_of_another_teacher_is_left(base, finished, tmp_path, capsys):
    start = ddim_jax.load(base)
    another = start.replace(params=jax.tree.map(lambda leaf: 0.9 * leaf, start.params))
    weights_file.save(tmp_path / "other.safetensors", another)
    asked = config(finished[0], steps=1)
    with asked.unlocked():
        asked.teacher = str(tmp_path / "other.safetensors")
    loop.train(asked, tmp_path / "run")
    note = f"note: leaves critic and head of {finished[0]}, which had another teacher"
    assert note in capsys.readouterr().out


@pytest.mark.slow
def test_parts_of_another_method_are_refused(base, finished, tmp_path):
    with rejects(ValueError, "config.loss.gan is 0.1, not 0.0"):
        other = config(base, gan=0.0)
        del other.optimizer.parts["head"]
        loop.train(other, finished[0])
    shutil.copytree(finished[0], tmp_path / "run")  # a config that was written over
    file = tmp_path / "run" / "config.json"
    said = json.loads(file.read_text())
    said["loss"]["gan"] = 0.0
    del said["optimizer"]["parts"]["head"]
    file.write_text(json.dumps(said))
    with rejects(
        ValueError,
        "checkpoint 6 is of another method: it holds critic, head, student, and the config trains",
        "critic, student; use the config it was trained with",
    ):
        loop.train(other, tmp_path / "run")
    assert ddim_jax.load(tmp_path / "run").step == 6  # the student is there all the same


@pytest.mark.slow
def test_a_student_may_be_of_another_schedule_than_its_teacher(base):
    """A straight flow, taught by a denoiser on the cosine schedule; the step is traced."""
    flow = config(base, gan=0.1, start=None)
    flow.schedule, flow.prediction = dict(name="rectified_flow"), dict(name="flow")
    flow.sample.stride_options = {}
    start = ddim_jax.load(base)
    with rejects(ValueError, "a teacher's must be the student's"):
        teachers.check(flow, start.config, True)
    with flow.unlocked():
        flow.teacher = str(base)
    teachers.check(flow, start.config, True)
    mesh = parallel.make_mesh()
    built = method.build(flow, start, mesh)
    assert built.model.schedule.name == "rectified_flow" and built.teacher.schedule.name == "cosine"
    state = loop.abstract_state(flow, built, start, mesh)
    rows = {"image": jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8)}
    rows["label"] = jax.ShapeDtypeStruct((4,), np.int32)
    after, _ = jax.eval_shape(built.step, state, rows)
    assert jax.tree.structure(after.params) == jax.tree.structure(state.params)
    source = experiment.load_data(flow)
    kept = teachers.record(flow, start, source, built.teacher)
    assert kept.teacher_weights == start.fingerprint
    flow.loss = dict(name="diffusion")
    with rejects(ValueError, "config.teacher is for losses that train a critic"):
        method.build(flow, start, mesh)


def test_scales_that_a_teacher_is_not_told(base):
    start, mesh = ddim_jax.load(base), parallel.make_mesh()
    asked = config(base, guidance=(1.0, 3.0))
    with asked.unlocked():
        asked.model.scalars, asked.guide = ("guidance",), dict(name="classifier_free")
    with rejects(ValueError, "the critic is told no guidance scale", "or take one scale"):
        method.build(asked, start, mesh)
    asked.loss.guidance, asked.sample.guidance_scale = (2.0, 2.0), 2.0
    method.build(asked, start, mesh)
    asked.loss, asked.sample.guidance_scale = dict(name="guided", guidance=(1.0, 3.0)), 1.0
    told = experiment.build(asked).replace(name="told")
    asked = config(base)
    with asked.unlocked():
        asked.model.scalars = ("guidance",)
    loss = method.build_loss(asked, told, told)
    with rejects(ValueError, "told is told its guidance scale, and config.loss says none"):
        method.check_loss(asked, told, loss, told)
    asked.loss = dict(name="mean_flow", improved=True, guidance=(1.0, 8.0), label_dropout=0.1)
    asked.schedule, asked.prediction = dict(name="rectified_flow"), dict(name="flow")
    asked.model.scalars = ("interval",)
    untold = experiment.build(asked)
    with rejects(ValueError, "tells the network its scale, which this one does not take"):
        method.check_loss(asked, untold, method.build_loss(asked, untold))


def test_a_flow_map_may_be_the_student(base):
    """It is asked for jumps to the clean end; the denoiser that teaches it is told of none."""
    asked = config(base, gan=0.0, steps=2)
    del asked.optimizer.parts["head"]
    with asked.unlocked():
        asked.model.scalars, asked.teacher = ("interval",), str(base)
        asked.sample.update(steps=2, solver="lcm", solver_options={})
    start, mesh = ddim_jax.load(base), parallel.make_mesh()
    model = experiment.build(asked).replace(params=start.params, name="map")
    built = method.build(asked, start, mesh)
    state = loop.abstract_state(asked, built, start, mesh)
    rows = {"image": jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8)}
    rows["label"] = jax.ShapeDtypeStruct((4,), np.int32)
    after, _ = jax.eval_shape(built.step, state, rows)
    assert "interval_0" in after.params["student"] and "interval_0" not in after.params["critic"]
    told = {"interval": model.jumps(model.recipe.table(model.schedule))}
    np.testing.assert_allclose(told["interval"], (0.0, 1.0), atol=1e-6)
    asked.sample.solver = "ddim"  # which does not simulate what the student is trained on
    with rejects(
        ValueError, "config.sample.solver='ddim' goes from time to time otherwise", "'lcm'"
    ):
        method.build(asked, start, mesh)
    asked.teacher = ""
    with rejects(ValueError, "map is told how far to jump", "name one with config.teacher"):
        method.build(asked, model, mesh)


@pytest.mark.slow
def test_a_teacher_may_be_kept_at_half_the_precision(base):
    """The student and the critic, which start as it, are not; the loss is the same to that."""
    found = {}
    start, mesh = ddim_jax.load(base), parallel.make_mesh()
    for dtype in ("float32", "bfloat16"):
        asked = config(base, gan=0.0)
        del asked.optimizer.parts["head"]
        with asked.unlocked():
            asked.teacher_dtype = dtype
        built = method.build(asked, start, mesh)
        state = loop.init_state(asked, built, start, mesh)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.frozen)} == {dtype}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
        images = np.tanh(random("images", 4, 8, 8, 1))
        rows = {"image": images, "label": np.arange(4, dtype=np.int32)}
        keys = jax.random.split(jax.random.key(0), 4)
        found[dtype] = built.loss(state.params, state.frozen, rows, keys, 0)[1]
    for name in ("loss_student", "loss_critic"):
        np.testing.assert_allclose(*(found[d][name] for d in found), rtol=0.05, atol=1e-3)
    asked.teacher_dtype = "float16"
    with rejects(ValueError, "config.teacher_dtype must be float32 or bfloat16, got 'float16'"):
        loop.abstract_state(asked, built, start, mesh)


def change(path, value):
    def changed(config):
        with config.unlocked(), config.ignore_type():
            *sections, field = path.split(".")
            target = config
            for section in sections:
                target = target[section]
            target[field] = value

    return changed


BAD = {
    "ratio": ("loss.every", 0, "config.loss.every must be at least 1, got 0"),
    "part": ("optimizer.parts", {"discriminator": {}}, "config.optimizer.parts has no option"),
    "length": ("optimizer.parts.critic.decay_steps", 5, "set config.optimizer.decay_steps"),
    "rate": ("optimizer.parts.critic.learning_rate", -1.0, "parts.critic: config.optimizer.learn"),
    "option": ("optimizer.parts.critic.lr", 1.0, "optimizer has no option 'lr'"),
    "schedule": ("schedule", {"name": "vp_linear"}, "was trained on the schedule {'name': 'cos"),
    "teacher": ("start_from", "", "this loss needs a teacher"),
    "start": ("loss.start", 9.0, "config.sample draws at the times 0.8744, and config.loss trains"),
    "one": ("loss", {"name": "diffusion"}, "'diffusion' trains one network; leave it out"),
    "data": ("data.name", "pairs:nowhere", "the head of config.loss compares with real ones"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_before_anything_is_written(name, base, tmp_path):
    path, value, message = BAD[name]
    wrong = config(base)
    change(path, value)(wrong)
    with rejects(ValueError, message):
        loop.train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_of_a_part_are_set_from_text():
    field = "stages[1].optimizer.parts.head.learning_rate"
    found = configs.load("digits_dmd", [(field, "1e-3")])
    assert found.stages[1]["optimizer"]["parts"]["head"]["learning_rate"] == 1e-3
    assert found.stages[1]["optimizer"]["parts"]["critic"]["learning_rate"] == 1e-3
    with rejects(ValueError, "config.optimizer.parts has no field 'critik'", "'critic'"):
        configs.load("digits", [("optimizer.parts.critik.b1", "0")])
    with rejects(ValueError, "has no field 'lr'"):
        configs.load("digits", [("optimizer.parts.critic.lr", "0")])


CONFIG = """
from tests.test_parts import config

def get_config():
    made = config({base!r}, steps=60)
    made.train.update(log_every=1, checkpoint_every=10)
    return made
"""


@pytest.mark.slow
def test_kill_9_in_a_process_of_its_own(base, tmp_path):
    """The same command continues, and its losses are those of an uninterrupted run."""
    (tmp_path / "config.py").write_text(CONFIG.format(base=str(base)))
    command = [sys.executable, "train.py", f"--config={tmp_path / 'config.py'}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, f"--workdir={whole}"], cwd=ROOT, check=True)
    process = subprocess.Popen([*command, f"--workdir={broken}"], cwd=ROOT)
    file = broken / "metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.02)
        if file.exists() and file.read_text().count("\n") >= 25:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -9
    subprocess.run([*command, f"--workdir={broken}"], cwd=ROOT, check=True)
    found = [[{n: r[n] for n in r if n != "images_s"} for r in rows(w)] for w in (broken, whole)]
    assert found[0] == found[1] and len(found[0]) == 60
