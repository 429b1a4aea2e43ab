"""Straightness of paths against closed forms; of a network that was trained for a moment."""

import numpy as np
import pytest

from configs import digits, digits_reflow
from ddim_jax import schedules, strides
from ddim_jax.evaluation import straightness
from ddim_jax.solvers import ddim
from ddim_jax.training import loop
from tests.oracles import GaussianData
from tests.tiny import tiny

SCHEDULE = schedules.rectified_flow()
NOISE = np.random.default_rng(0).normal(size=(2000, 3))


def path(data, steps):
    times = strides.uniform(SCHEDULE, steps)
    points = [NOISE]
    for k in range(steps):
        step = ddim()(SCHEDULE, times[k : k + 2])._replace(start=np.array([1.0, 0.0]))
        points.append(step.run_numpy(data, points[-1]))
    return np.array(points), times


def test_a_point_mass_is_reached_straight():
    points, times = path(GaussianData(0.7, 0.0), 16)
    np.testing.assert_allclose(points[-1], 0.7)
    np.testing.assert_allclose(straightness.straightness(points, times), 0, atol=1e-20)


def test_paths_of_a_gaussian():
    """x(t) = (1 - t) m + z sqrt((1 - t)^2 s^2 + t^2): the integral of the square, by quadrature."""
    mean, std = 0.3, 0.2
    points, times = path(GaussianData(mean, std), 2000)
    found = straightness.straightness(points, times)
    t = np.linspace(0, 1, 20001)
    t = (t[1:] + t[:-1]) / 2
    speed = (t - (1 - t) * std**2) / np.sqrt((1 - t) ** 2 * std**2 + t**2)
    expected = np.mean((speed - (1 - std)) ** 2) * (NOISE**2).mean(1)
    assert expected.mean() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_uneven_times_weigh_by_their_length():
    points = np.array([0.0, 1.0, 1.0])[:, None, None]
    found = straightness.straightness(points, [0.0, 0.25, 1.0])
    np.testing.assert_allclose(found, [0.25 * 3**2 + 0.75 * 1])


def test_bad_paths():
    with pytest.raises(ValueError, match="two points or more and a time for each"):
        straightness.straightness(NOISE[None], [0.0])


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    config = tiny(digits_reflow.get_config(), levels=1)
    with config.unlocked():
        del config["stages"]
        config.start_from = ""
    loop.train(config, tmp_path / "flow")
    straightness.main([f"--checkpoint={tmp_path / 'flow'}", "--num_samples=4", "--steps=3"])
    name, value, *rest = capsys.readouterr().out.splitlines()[-1].split()
    assert name == "straightness" and 0 < float(value) < 1e-6  # it has hardly begun to move
    assert rest[-2:] == ["3", "steps"]
    loop.train(tiny(digits.get_config(), levels=1), tmp_path / "cosine")
    with pytest.raises(SystemExit, match="straightness is of rectified flows, .* 'cosine'"):
        straightness.main([f"--checkpoint={tmp_path / 'cosine'}"])
