"""The check of an installation passes here, says what is wrong elsewhere; its pictures are true."""

import dataclasses
import importlib.resources

import numpy as np
import pytest

from ddim_jax import checkpoints, sampling, selfcheck
from ddim_jax.recipe import Recipe
from tests.oracles import Mixture


@pytest.fixture(scope="module")
def stored():
    asset = importlib.resources.files("ddim_jax.assets") / "selfcheck.npz"
    with asset.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_it_passes_here_and_says_what_runs(capsys):
    assert selfcheck.report()
    *head, last = capsys.readouterr().out.splitlines()
    assert "ddim_jax 0." in head[1] and "jax 0." in head[1] and "cpu" in head[2]
    lines = [line for line in head if line.startswith("ok   ")]
    assert last == f"{len(lines)} of {len(lines)} passed" and len(lines) == 9


def test_the_stored_picture_is_that_of_the_reference_loop(stored):
    """In float64, row by row: another loop than the one that the check runs."""
    model = checkpoints.load("digits")
    recipe = Recipe("unipc_2", steps=8)
    denoise = model.denoiser(label=3, solver="unipc_2", guidance_scale=2.0)
    noise = model.initial_noise(sampling.sample_keys(7, np.arange(1)))

    def in_numpy(x, level):
        return map(np.asarray, denoise(np.float32(x), level))

    x = recipe.table(model.schedule).run_numpy(in_numpy, noise)
    off = np.abs(model.pictures(np.float32(x)).astype(int) - stored["deterministic"])
    assert off.max() <= 1


def test_its_mixture_is_the_oracle():
    x, level = np.linspace(-2, 2, 9), selfcheck.VP.level(0.4)
    np.testing.assert_allclose(selfcheck.mixture(x, level), Mixture()(x, level), rtol=1e-12)
    end = Mixture().flow(x, *map(selfcheck.VP.level, selfcheck.SPAN))
    np.testing.assert_allclose(selfcheck.flow_end(x), end, atol=1e-9)


def test_a_wrong_solver_is_told_by_its_order(monkeypatch):
    wrong = selfcheck.SOLVERS | {"rk4": selfcheck.SOLVERS["heun"]}
    wrong["ddim"] = dataclasses.replace(wrong["ddim"], order=2)
    monkeypatch.setattr(selfcheck, "SOLVERS", wrong)
    lines = list(selfcheck.check_orders())
    assert [line.passed for line in lines] == [False, True, True, True, True]
    assert "1.00, 2 within" in lines[0].text and lines[0].meaning


def test_another_picture_is_told(stored):
    for name, pictures in stored.items():
        assert selfcheck.check_picture(name, pictures).passed
        other = pictures.copy()
        other[0, 3, 3] += 3
        line = selfcheck.check_picture(name, other)
        assert not line.passed and "at most 3 of 255" in line.text and "pixels" in line.meaning


def test_a_failure_ends_in_status_1_and_a_crash_in_a_trace(monkeypatch, capsys):
    def broken():
        raise FileNotFoundError("digits.safetensors")

    monkeypatch.setattr(selfcheck, "check_network", broken)
    monkeypatch.setattr(selfcheck, "ORDERS", ())
    with pytest.raises(SystemExit, match="1"):
        selfcheck.main([])
    out = capsys.readouterr().out
    assert "FAIL network: FileNotFoundError" in out and "     Traceback" in out
    assert out.endswith("0 of 1 passed\n")
