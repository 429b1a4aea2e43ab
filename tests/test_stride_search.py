"""Racing and refining strides on a mixture, their files, and the command that makes them."""

import json
import re
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from ddim_jax import checkpoints, sampling, schedules, solvers, strides
from ddim_jax.commands import sample as sample_command
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SOLVERS
from ddim_jax.strides import fit, learned, search, search_space, trajectories
from ddim_jax.strides.search import Drawer, TeacherSamples
from ddim_jax.strides.search_space import FIXED, Candidate, Evidence, families, propose
from tests.oracles import Mixture, level_of
from tests.selection import slow_but

VP = schedules.vp_linear()
SHAPE = (4, 4)


@jax.jit
def sample(params, table, x, keys, inputs):
    return sampling.run(Mixture(), table, x, keys).x + 0 * params


def teacher_samples(first, count):
    keys = sampling.sample_keys(0, jnp.arange(first, first + count))
    x = sampling.initial_noise(keys, SHAPE)
    end = Mixture().flow(np.asarray(x, np.float64), VP.level(1.0), level_of(1.0, 1e-9), 600)
    return TeacherSamples(x, keys, {}, end)


@pytest.fixture(scope="module")
def teacher():
    """To learn from, and held out."""
    return teacher_samples(0, 16), teacher_samples(16, 16)


def drawer(solver):
    return Drawer(sample, jnp.zeros(()), VP, solver)


def test_the_race_orders_by_distance(teacher):
    solver, held_out = solvers.ddim(), teacher[1]
    times = {name: make(VP, 6) for name, make in list(FIXED.items())[:5]}
    seen = []
    scores = search.race(drawer(solver), times, held_out, lambda *pair: seen.append(pair))
    assert list(scores.values()) == sorted(scores.values()) and dict(seen) == scores
    for name, score in scores.items():
        table = solver(VP, times[name])
        end = table.run_numpy(Mixture(), np.asarray(held_out.noise, np.float64))
        assert score == pytest.approx(np.sqrt(np.mean((end - held_out.samples) ** 2)), rel=1e-3)


@pytest.mark.parametrize("name", slow_but(["ddim", "dpm_solver++_2m"], ["ddim"]))
def test_refining_comes_nearer(name, teacher):
    solver, start = SOLVERS[name], strides.uniform(VP, 5)
    draw = drawer(solver)
    before = draw.distance(solver(VP, start), teacher[1])
    refined = search.refine(draw, start, *teacher, iterations=60, learning_rate=0.1)
    assert refined.distance < 0.75 * before and refined.history is None
    assert refined.distance == pytest.approx(draw.distance(solver(VP, refined.times), teacher[1]))
    assert np.all(np.diff(refined.times) < 0)
    np.testing.assert_array_equal(refined.times[[0, -1]], start[[0, -1]])
    further = search.refine(draw, refined.times, *teacher, iterations=60, coefficients=True)
    assert further.distance < 0.8 * refined.distance
    unused = solver(VP, further.times).history == 0
    assert np.all(further.history[unused] == 0) and np.any(further.history)


def test_refining_never_returns_worse(teacher):
    """A learning rate that throws the knots about: the start is kept."""
    draw, start = drawer(solvers.ddim()), strides.log_snr(VP, 5)
    start = search.refine(draw, start, *teacher, iterations=40).times
    before = draw.distance(draw.solver(VP, start), teacher[1])
    wild = search.refine(draw, start, *teacher, iterations=10, learning_rate=50.0)
    assert wild.distance <= before and np.all(np.diff(wild.times) < 0)


def test_the_gradient_is_that_of_the_loss(teacher):
    """Through the scan and the table, against differences of the loss itself over the knots."""
    solver, times = solvers.unipc(2), strides.log_snr(VP, 5)
    knots = search._Knots(VP, solver, times)
    batch = teacher[0]

    def loss(lam):
        table = solver(VP, knots.times(lam))
        return np.mean((table.run_numpy(Mixture(), host(batch.noise)) - batch.samples) ** 2)

    table = solver(VP, times)
    slope = jax.grad(search._loss(sample, table), argnums=1)(0.0, search._floats(table), batch)
    got = knots.pull_back(slope, knots.lam)
    for k in range(len(knots.lam)):
        step = 1e-4 * (np.arange(len(knots.lam)) == k)
        expected = (loss(knots.lam + step) - loss(knots.lam - step)) / 2e-4
        assert got[k] == pytest.approx(expected, rel=0.02, abs=2e-4)


def host(x):
    return np.asarray(x, np.float64)


@pytest.mark.parametrize(
    ("solver", "steps", "message"),
    [
        (solvers.ddim(), 1, "no interior times"),
        (solvers.ddim(1.0), 4, "needs a deterministic solver"),
    ],
)
def test_what_cannot_be_refined(solver, steps, message, teacher):
    with pytest.raises(ValueError, match=message):
        search.refine(drawer(solver), strides.uniform(VP, steps), *teacher)


# --- candidates -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence(teacher):
    def run(table, x, keys, collect):
        return jax.jit(lambda t, x: sampling.run(Mixture(), t, x, keys, collect=collect))(table, x)

    noise, keys = teacher[0].noise, teacher[0].keys
    path = trajectories.teacher(run, VP, noise, keys, nodes=31)
    end = path.y[-1].reshape(noise.shape)
    mse = trajectories.noising_errors(run, VP, end, keys, path.times[:-1])
    return Evidence(path, mse)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_candidates_are_strides_between_their_ends(steps, evidence):
    wanted = [
        Candidate(name, start, last)
        for name in families(2)
        for start in (None, -3.0)
        for last in (None, 0.1)
    ]
    proposed = propose(wanted, VP, evidence, steps, 2)
    assert len(proposed) > 3
    assert steps < 5 or {"elbo", "gits dev 1.15"} <= {c.family for c in proposed}
    for candidate, times in proposed.items():
        assert len(times) == steps + 1 and np.all(np.diff(times) < 0)
        assert times[-1] == 0
        lam = VP.half_log_snr(times[:-1])
        if candidate.start is not None:
            assert lam[0] >= -3.0 - 1e-9
        if candidate.last is not None and candidate.family in ("karras", "log_snr") and steps > 1:
            assert np.exp(-lam[-1]) == pytest.approx(0.1)
    assert len({times.tobytes() for times in proposed.values()}) == len(proposed)


# --- files ----------------------------------------------------------------------------------------


def stride_of(**changes):
    fields = dict(
        times=np.array([1.0, 0.5, 0.0]), method="uniform", scores={"uniform": 0.1},
        solver="ddim", lam=VP.half_log_snr(np.array([1.0, 0.5])), guidance=1.0, checkpoint="digits",
        weights="0" * 64, history=None,
    )  # fmt: skip
    return learned.LearnedStride(**fields | changes)


@pytest.mark.parametrize("history", [None, np.full((2, 2, 1), 0.1)])
def test_a_file_holds_what_was_saved(history, tmp_path):
    stride = stride_of(history=history)
    learned.save(tmp_path / "a" / "s.json", stride)
    again = learned.load(tmp_path / "a" / "s.json")
    np.testing.assert_array_equal(again.times, stride.times)
    assert again.steps == 2 and again.scores == stride.scores and again.solver == "ddim"
    table, plain = again.table(VP, solvers.ddim()), solvers.ddim()(VP, again.times)
    added = 0 if history is None else history
    np.testing.assert_allclose(table.history, plain.history + added)
    with pytest.raises(
        FileExistsError, match="exists; choose another name, or pass overwrite=True"
    ):
        learned.save(tmp_path / "a" / "s.json", stride)
    learned.save(tmp_path / "a" / "s.json", stride, overwrite=True)


def test_a_file_of_release_0_1_loads(tmp_path):
    with tarfile.open(Path(__file__).parent / "fixtures" / "release_0_1.tar.gz") as archive:
        archive.extract("./stride.json", tmp_path, filter="data")
    stride = learned.load(tmp_path / "stride.json")
    assert (stride.method, stride.solver, stride.steps) == ("karras, refined", "ddim", 3)
    assert stride.scores["uniform"] == 0.9391487892965251
    np.testing.assert_allclose(stride.lam[0], -10.0)
    learned.save(tmp_path / "again.json", stride)
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(
        (tmp_path / "stride.json").read_text()
    )


def test_coefficients_belong_to_their_solver():
    stride = stride_of(history=np.full((2, 2, 1), 0.1))
    with pytest.raises(ValueError, match="coefficients for solver 'ddim' alone"):
        stride.table(VP, solvers.heun("flow"))


def test_a_schedule_is_known_again():
    with pytest.raises(ValueError, match="another schedule than rectified_flow"):
        stride_of().table(schedules.rectified_flow(), solvers.ddim())
    with pytest.raises(ValueError, match="another schedule than edm"):
        stride_of(times=np.array([100.0, 1.0, 0.0])).table(schedules.edm(), solvers.ddim())


def test_differences_are_said():
    stride = stride_of()
    assert stride.differences(solver="ddim", guidance=1.0, weights="0" * 64) == []
    assert stride.differences(solver="lms", guidance=2.0, weights="1") == [
        "it was learned with another solver: 'ddim', now 'lms'",
        "it was learned with another guidance: 1.0, now 2.0",
        "it was learned with other weights",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "is not a stride file"),
        ('{"times": [1, 0]}', "is not a stride file"),
        (json.dumps({"format": learned.FORMAT, "times": [1, 0]}), "fields .*solver.* are missing"),
    ],
)
def test_damaged_files_are_named(text, message, tmp_path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        learned.load(tmp_path / "s.json")


def test_times_must_fall(tmp_path):
    learned.save(tmp_path / "s.json", stride_of(times=np.array([0.5, 1.0, 0.0])))
    with pytest.raises(ValueError, match="must fall from noise to clean"):
        learned.load(tmp_path / "s.json")
    with pytest.raises(FileNotFoundError, match="ddim_jax.strides.fit makes them"):
        learned.load(tmp_path / "absent.json")


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("refine", [0, 2])
def test_a_stride_is_learned_and_used(refine, tmp_path, capsys, monkeypatch):
    """On the bundled digits, at the smallest sizes: files, plot, and a picture drawn with it."""
    monkeypatch.setattr(search_space, "LASTS", (0.1,))
    monkeypatch.setattr(search_space, "STARTS", (-3.0,))
    fit.main(
        [
            "--solver=dpm_solver++_2m", "--steps=3", "--num_samples=2", "--nodes=6",
            f"--refine={refine}", "--reference_steps=4", f"--out={tmp_path}",
        ]
    )  # fmt: skip
    said = capsys.readouterr().out
    path = tmp_path / "digits-dpm_solver++_2m-3.json"
    assert re.search(r"distance to them: .*uniform .*learned", said) and str(path) in said
    stride = learned.load(path)
    fixed = [score for name, score in stride.scores.items() if name in FIXED]
    assert len(fixed) >= 4 and stride.scores[stride.method] <= min(fixed)
    assert path.with_suffix(".png").stat().st_size > 10_000
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["sample.py"])
    with flagsaver.flagsaver(
        stride=str(path), solver="dpm_solver++_2m", num_samples=2, out=str(tmp_path / "a.png")
    ):
        sample_command.run(["sample.py"])
    said = capsys.readouterr()
    assert "3 NFE" in said.out and "it was learned with" not in said.err


@pytest.mark.slow
def test_strides_are_learned_with_the_checkpoints_own_clip(tmp_path, monkeypatch):
    model = checkpoints.load("digits")
    model = model.replace(recipe=model.recipe.replace(clip="none"))
    monkeypatch.setattr(checkpoints, "load", lambda name: model)
    made = []

    def stop(noise_to_image, *_):
        made.append(noise_to_image)
        raise ValueError("far enough")

    monkeypatch.setattr(fit, "make_teacher_data", stop)
    with pytest.raises(SystemExit, match="far enough"):
        fit.main(["--solver=ddim", "--steps=3", "--num_samples=2", f"--out={tmp_path}"])
    (noise_to_image,), index = made, np.arange(2)
    table = Recipe("ddim", "uniform", 3).table(model.schedule)
    noise, keys = noise_to_image.noise(index)
    expected = {
        clip: sampling.run(model.denoiser(label=[0, 1], clip=clip), table, noise, keys).x
        for clip in ("none", "static")
    }
    assert np.abs(expected["none"] - expected["static"]).max() > 0.01
    drawn = noise_to_image.draw(table, index)  # as the teacher and the references are
    np.testing.assert_allclose(drawn.x, expected["none"], atol=1e-3)
    teacher = noise_to_image.teacher_samples(index, np.asarray(expected["none"]))
    assert noise_to_image.drawer.distance(table, teacher) < 1e-4  # as candidates are


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver=ddpm"], "strides are learned from where noise ends up, and ddpm adds its own"),
        (["--solver=dim"], "unknown solver 'dim' .did you mean 'ddim'"),
        (["--steps=3,x"], "whole numbers like 5,8,12, got 3,x"),
        (["--steps=61"], r"must be 1..60 .below --nodes., got \[61\]"),
        (["--num_samples=0"], "num_samples must be at least 1 and a multiple of .* got 0"),
        (["--num_samples=3"], "num_samples must be at least 1 and a multiple of the 2 devices"),
        (["--coefficients"], "--coefficients needs --refine, like --refine=40, got 0"),
        (["--reference_steps=20000"], r"--reference_steps must be in \[0, 10000\], got 20000"),
        (["--checkpoint=absent"], "no checkpoint 'absent'"),
    ],
)
def test_the_command_checks_before_any_work(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        fit.main([*arguments, f"--out={tmp_path}"])
    (tmp_path / "digits-ddim-8.json").write_text("")
    with pytest.raises(
        SystemExit, match="ddim-8.json exists; choose another name, or pass --overwrite"
    ):
        fit.main([f"--out={tmp_path}"])


def test_references_have_no_more_steps_than_the_schedule():
    coarse, continuous = schedules.ddpm_linear(500), schedules.cosine()
    assert [fit.reference_steps(s, None) for s in (coarse, continuous)] == [500, 1000]
    assert fit.reference_steps(coarse, 0) == 0 and fit.reference_steps(continuous, 2000) == 2000
    with pytest.raises(ValueError, match=r"steps must be in \[0, 500\], got 501; the schedule"):
        fit.reference_steps(coarse, 501)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=21"], "steps must be 1..20 for a 20-step schedule, got 21"),
        (["--steps=4", "--reference_steps=21"], r"--reference_steps must be in \[0, 20\], got 21"),
        (["--steps=20"], "teacher is run"),
    ],
)
def test_the_command_checks_the_schedule_before_the_teacher(
    arguments, message, tmp_path, monkeypatch
):
    """What would only fail when all is learned."""
    model = checkpoints.load("digits").replace(schedule=schedules.ddpm_linear(20, 5e-3, 0.6))
    monkeypatch.setattr(checkpoints, "load", lambda name: model)

    def run(*_):
        raise ValueError("teacher is run")

    monkeypatch.setattr(fit, "make_teacher_data", run)
    with pytest.raises(SystemExit, match=message):
        fit.main([*arguments, "--num_samples=2", f"--out={tmp_path}"])
