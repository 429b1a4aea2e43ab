"""Racing and refining strides on a mixture, their files, and the command that makes them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import sample as sample_script
from ddim_jax import sampling, schedules, solvers, strides
from ddim_jax.solvers import SOLVERS
from ddim_jax.strides import adaptive, learned, fit, search
from ddim_jax.strides.search_space import FIXED, Candidate, Evidence, families, propose
from tests.oracles import Mixture, level_of

VP = schedules.vp_linear()
SHAPE = (4, 4)


@jax.jit
def sample(params, table, x, keys, cond):
    return sampling.run(Mixture(), table, x, keys).x + 0 * params


def lesson(first, count):
    keys = sampling.sample_keys(0, jnp.arange(first, first + count))
    x = sampling.initial_noise(keys, SHAPE)
    end = Mixture().flow(np.asarray(x, np.float64), VP.level(1.0), level_of(1.0, 1e-9), 600)
    return search.Lesson(x, keys, None, end)


@pytest.fixture(scope="module")
def lessons():
    return lesson(0, 16), lesson(16, 16)


PARAMS = jnp.zeros(())


def test_the_race_orders_by_distance(lessons):
    solver, held_out = solvers.ddim(), lessons[1]
    times = {name: make(VP, 6) for name, make in list(FIXED.items())[:5]}
    seen = []
    scores = search.race(
        sample, PARAMS, solver, VP, times, held_out, progress=lambda *pair: seen.append(pair)
    )
    assert list(scores.values()) == sorted(scores.values()) and dict(seen) == scores
    for name, score in scores.items():
        table = solver(VP, times[name])
        end = table.run_numpy(Mixture(), np.asarray(held_out.x, np.float64))
        assert score == pytest.approx(np.sqrt(np.mean((end - held_out.end) ** 2)), rel=1e-3)


@pytest.mark.parametrize("name", ["ddim", "dpm_solver++_2m"])
def test_refining_comes_nearer(name, lessons):
    solver, start = SOLVERS[name].make(), strides.uniform(VP, 5)
    before = search.distance(sample, PARAMS, solver(VP, start), lessons[1])
    refined = search.refine(
        sample, PARAMS, solver, VP, start, *lessons, iterations=60, learning_rate=0.1
    )
    assert refined.distance < 0.75 * before and refined.history is None
    assert refined.distance == pytest.approx(
        search.distance(sample, PARAMS, solver(VP, refined.times), lessons[1])
    )
    assert np.all(np.diff(refined.times) < 0)
    np.testing.assert_array_equal(refined.times[[0, -1]], start[[0, -1]])
    further = search.refine(
        sample, PARAMS, solver, VP, refined.times, *lessons, iterations=60, coefficients=True
    )
    assert further.distance < 0.8 * refined.distance
    unused = solver(VP, further.times).history == 0
    assert np.all(further.history[unused] == 0) and np.any(further.history)


def test_refining_never_returns_worse(lessons):
    """A learning rate that throws the knots about: the start is kept."""
    solver, start = solvers.ddim(), strides.log_snr(VP, 5)
    start = search.refine(sample, PARAMS, solver, VP, start, *lessons, iterations=40).times
    before = search.distance(sample, PARAMS, solver(VP, start), lessons[1])
    wild = search.refine(
        sample, PARAMS, solver, VP, start, *lessons, iterations=10, learning_rate=50.0
    )
    assert wild.distance <= before and np.all(np.diff(wild.times) < 0)


def test_the_gradient_is_that_of_the_loss(lessons):
    """Through the scan and the table, against differences of the loss itself over the knots."""
    solver, times = solvers.unipc(2), strides.log_snr(VP, 5)
    knots = search._Knots(VP, solver, times)
    batch = lessons[0]

    def loss(lam):
        table = solver(VP, knots.times(lam))
        return np.mean((table.run_numpy(Mixture(), host(batch.x)) - batch.end) ** 2)

    table = solver(VP, times)
    slope = jax.grad(search._loss(sample, table), argnums=1)(PARAMS, search._floats(table), batch)
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
def test_what_cannot_be_refined(solver, steps, message, lessons):
    with pytest.raises(ValueError, match=message):
        search.refine(sample, PARAMS, solver, VP, strides.uniform(VP, steps), *lessons)


# --- candidates -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence(lessons):
    def teach(table, x, keys, collect):
        return jax.jit(lambda t, x: sampling.run(Mixture(), t, x, keys, collect=collect))(table, x)

    path = adaptive.teacher(teach, VP, lessons[0].x, lessons[0].keys, nodes=31)
    end = path.y[-1].reshape(lessons[0].x.shape)
    mse = adaptive.noising_errors(teach, VP, end, lessons[0].keys, path.times[:-1])
    return Evidence(path, mse)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_candidates_are_strides_between_their_ends(steps, evidence):
    wanted = [
        Candidate(name, start, last)
        for name in families(2)
        for start in (None, -3.0)
        for last in (None, 0.1)
    ]
    found = propose(wanted, VP, evidence, steps, 2)
    assert len(found) > 3
    assert steps < 5 or {"elbo", "gits dev 1.15"} <= {c.family for c in found}
    for candidate, times in found.items():
        assert len(times) == steps + 1 and np.all(np.diff(times) < 0)
        assert times[-1] == 0
        lam = VP.half_log_snr(times[:-1])
        if candidate.start is not None:
            assert lam[0] >= -3.0 - 1e-9
        if candidate.last is not None and candidate.family in ("karras", "log_snr") and steps > 1:
            assert np.exp(-lam[-1]) == pytest.approx(0.1)
    strides_found = [times.tobytes() for times in found.values()]
    assert len(set(strides_found)) == len(strides_found)


# --- files ----------------------------------------------------------------------------------------


def learned(**changes):
    fields = dict(
        times=np.array([1.0, 0.5, 0.0]), method="uniform", scores={"uniform": 0.1},
        solver="ddim", lam=VP.half_log_snr(np.array([1.0, 0.5])), guidance=1.0, checkpoint="digits",
        weights="0" * 64, history=None,
    )  # fmt: skip
    return files.LearnedStride(**fields | changes)


@pytest.mark.parametrize("history", [None, np.full((2, 2, 1), 0.1)])
def test_a_file_holds_what_was_saved(history, tmp_path):
    stride = learned(history=history)
    files.save(tmp_path / "a" / "s.json", stride)
    again = files.load(tmp_path / "a" / "s.json")
    np.testing.assert_array_equal(again.times, stride.times)
    assert again.steps == 2 and again.scores == stride.scores and again.solver == "ddim"
    table, plain = again.table(VP, solvers.ddim()), solvers.ddim()(VP, again.times)
    added = 0 if history is None else history
    np.testing.assert_allclose(table.history, plain.history + added)
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        files.save(tmp_path / "a" / "s.json", stride)
    files.save(tmp_path / "a" / "s.json", stride, overwrite=True)


def test_coefficients_belong_to_their_solver():
    stride = learned(history=np.full((2, 2, 1), 0.1))
    with pytest.raises(ValueError, match="coefficients for solver 'ddim' alone"):
        stride.table(VP, solvers.heun("flow"))


def test_a_schedule_is_known_again():
    with pytest.raises(ValueError, match="another schedule than rectified_flow"):
        learned().table(schedules.rectified_flow(), solvers.ddim())
    with pytest.raises(ValueError, match="another schedule than edm"):
        learned(times=np.array([100.0, 1.0, 0.0])).table(schedules.edm(), solvers.ddim())


def test_differences_are_said():
    stride = learned()
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
        (json.dumps({"format": files.FORMAT, "times": [1, 0]}), "fields .*solver.* are missing"),
    ],
)
def test_damaged_files_are_named(text, message, tmp_path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        files.load(tmp_path / "s.json")


def test_times_must_fall(tmp_path):
    files.save(tmp_path / "s.json", learned(times=np.array([0.5, 1.0, 0.0])))
    with pytest.raises(ValueError, match="must fall from noise to clean"):
        files.load(tmp_path / "s.json")
    with pytest.raises(FileNotFoundError, match="ddim_jax.strides.fit makes them"):
        files.load(tmp_path / "absent.json")


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("refine", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stride_is_learned_and_used(refine, tmp_path, capsys, monkeypatch):
    """On the bundled digits, at the smallest sizes: files, plot, and a picture drawn with it."""
    monkeypatch.setattr(fit, "LASTS", (0.1,))
    monkeypatch.setattr(fit, "STARTS", (-3.0,))
    fit.main(
        [
            "--solver=dpm_solver++_2m", "--steps=3", "--num_samples=2", "--nodes=6",
            f"--refine={refine}", "--reference_steps=4", f"--out={tmp_path}",
        ]
    )  # fmt: skip
    said = capsys.readouterr().out
    path = tmp_path / "digits-dpm_solver++_2m-3.json"
    assert re.search(r"distance to them: .*uniform .*learned", said) and str(path) in said
    stride = files.load(path)
    fixed = [score for name, score in stride.scores.items() if name in FIXED]
    assert len(fixed) >= 4 and stride.scores[stride.method] <= min(fixed)
    assert path.with_suffix(".png").stat().st_size > 10_000
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["sample.py"])
    with flagsaver.flagsaver(
        stride=str(path), solver="dpm_solver++_2m", num_samples=2, out=str(tmp_path / "a.png")
    ):
        sample_script.main(["sample.py"])
    said = capsys.readouterr()
    assert "3 NFE" in said.out and "it was learned with" not in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver=ddpm"], "strides are learned from where noise ends up, and ddpm adds its own"),
        (["--solver=dim"], "unknown solver 'dim' .did you mean 'ddim'"),
        (["--steps=3,x"], "whole numbers like 5,8,12, got 3,x"),
        (["--steps=61"], r"must be 1..60 .below --nodes., got \[61\]"),
        (["--num_samples=0"], "num_samples must be at least 1, got 0"),
        (["--checkpoint=absent"], "no checkpoint 'absent'"),
    ],
)
def test_the_command_checks_before_any_work(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        fit.main([*arguments, f"--out={tmp_path}"])
    (tmp_path / "digits-ddim-8.json").write_text("")
    with pytest.raises(SystemExit, match="exists; choose another --out, or pass --overwrite"):
        fit.main([f"--out={tmp_path}"])
