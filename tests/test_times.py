"""The search of times by quality: on functions with a known least, and on a tiny network."""

import json

import jax
import numpy as np
import pytest

from configs import digits_ect
from ddim_jax import checkpoints, experiment, schedules
from ddim_jax.evaluation import feature_networks, metrics, scores, times
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import consistency
from ddim_jax.strides import learned
from ddim_jax.training import loop
from tests.tiny import tiny


@pytest.mark.parametrize("least", [-3.9, -1.234, 0.5, 2.9])
def test_golden_section(least):
    tried = []

    def score(x):
        tried.append(x)
        return (x - least) ** 4 + 3

    found, value = times.golden_section(score, -4.0, 3.0, 24)
    assert len(tried) == len(set(tried)) == 24
    np.testing.assert_allclose(found, least, atol=7 * times.GOLDEN**20)
    assert value == min(map(lambda x: (x - least) ** 4 + 3, tried))


def test_times_are_found_one_after_another():
    """Of a separable score each time is its own least; order and ends are kept."""
    wanted = [-1.0, 0.5, 1.7]

    def score(lam):
        assert (np.diff(lam) > 0).all()
        return sum((a - b) ** 2 for a, b in zip(lam[1:], wanted, strict=False))

    found = times.search(score, -3.0, 3.0, 4, 25)
    np.testing.assert_allclose(found, [-3.0, *wanted], atol=1e-3)
    crowded = times.search(lambda lam: -lam[-1], -3.0, 3.0, 4, 25)  # all want the end
    assert (np.diff(crowded) >= times.ROOM - 1e-9).all() and crowded[-1] <= 3.0


@pytest.mark.parametrize("low, high, trials", [(0, 1, 1), (1, 1, 5), (2, 1, 5)])
def test_bad_searches(low, high, trials):
    with pytest.raises(ValueError, match="2 trials and low < high"):
        times.golden_section(abs, low, high, trials)


def small():
    """The config of a consistency model of 28 x 28 digits."""
    config = tiny(digits_ect.get_config(), levels=1)
    config.start_from, config.data.resize = "", 0
    config.data.image_shape, config.model.patch_size = (28, 28, 1), 4
    return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """It has hardly been trained."""
    workdir = tmp_path_factory.mktemp("runs") / "little"
    loop.train(small(), workdir)
    return workdir


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    model = experiment.build(small())
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    path = tmp_path_factory.mktemp("untrained") / "little.safetensors"
    checkpoints.save(path, model.replace(params=zeros))
    return path


@pytest.mark.slow
def test_the_command(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [f"--checkpoint={checkpoint}", "--steps=3", "--num_samples=150", "--trials=3"]
    times.main(flags)
    path = tmp_path / "strides" / "little-consistency-3.json"
    out = capsys.readouterr().out
    assert "best of 6" in out and "distance" in out
    model, stride = checkpoints.load(checkpoint), learned.load(path)
    assert json.loads(path.read_text())["solver"] == "consistency"
    assert stride.steps == 3 and list(stride.scores.values()) == sorted(stride.scores.values())
    schedule = model.schedule
    np.testing.assert_allclose(schedule.half_log_snr(stride.times[0]), -3.0, atol=1e-6)
    found = out[out.index("alpha ") + 6 : out.index(": distance")]
    assert found in stride.scores
    np.testing.assert_allclose(np.exp(-stride.lam[1:]), np.fromstring(found, sep=","), rtol=1e-3)
    table = Recipe("consistency", str(path)).table(schedule)
    np.testing.assert_allclose(table.level.t, stride.times[:-1])
    with pytest.raises(SystemExit, match="exists; choose another name, or pass --overwrite"):
        times.main(flags)


@pytest.mark.slow
def test_a_distance_is_that_of_the_samples(checkpoint):
    """Drawn in other batches here."""
    args = times.parse([f"--checkpoint={checkpoint}", "--num_samples=150", "--batch_size=64"])
    model = checkpoints.load(checkpoint)
    objective, lam = times.FrechetObjective(model, args), [-3.0, 0.0]
    schedule, count = model.schedule, 150
    table = consistency(0.0)(schedule, [schedule.time_of(-3.0), schedule.time_of(0.0), 0.0])
    conditions = model.conditions(count, model.recipe, model.inputs.labels(None, count), table)
    batches = model.generator().batches(
        table, np.arange(count), seed=1, batch_size=count, **conditions
    )
    ((_, result),) = batches
    network = feature_networks.load("digits")
    real, _ = scores.find_data(network, "digits_train", None, (28, 28, 1))
    moments = metrics.moments(network.extract(model.pictures(result.x)).pool)
    expected = metrics.frechet_distance(moments, real.pool)
    np.testing.assert_allclose(objective(lam), expected, rtol=1e-4)


@pytest.mark.slow
def test_another_solver_starts_where_the_model_s_own_does(checkpoint):
    model = checkpoints.load(checkpoint)
    args = times.parse([f"--checkpoint={checkpoint}", "--solver=ddim", "--num_samples=150"])
    objective = times.FrechetObjective(model, args)
    assert objective.recipe.solver == "ddim" and objective.recipe.clip == model.recipe.clip
    assert model.schedule.half_log_snr(objective.start) == pytest.approx(-3.0)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--steps=1"], "--steps must be at least 2, got 1; one or more, like 2,4"),
        (["--steps=two"], "got 'two'"),
        (["--trials=1"], "--trials must be in .2, 1000., got 1"),
        (["--num_samples=100"], "needs at least 129 samples, got 100"),
        (["--solver=consistensy"], "unknown solver 'consistensy'"),
        (["--guidance_scale=2"], "without label dropout"),
    ],
)
def test_bad_flags(untrained, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, ValueError), match=message):
        times.main([f"--checkpoint={untrained}", *flags])
    assert not list(tmp_path.iterdir())


def test_every_schedule_has_room():
    for schedule in (schedules.cosine(), schedules.edm(), schedules.rectified_flow()):
        assert schedule.half_log_snr(schedule.t_min) > -4.0
