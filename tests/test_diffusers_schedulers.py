"""Schedulers of diffusers drawn by named options, against runs of diffusers 0.42.1 (torch 2.14).

`python -m tests.record_diffusers` recorded the runs; the tables are run in numpy, nothing compiles.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from ddim_jax import checkpoints
from ddim_jax.checkpoints import diffusers, diffusers_schedulers
from ddim_jax.checkpoints.diffusers import scheduler
from ddim_jax.names import make
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import SCHEDULES
from tests import record_diffusers
from tests.errors import rejects
from tests.test_diffusers import network

FIXTURE = Path(__file__).parent / "fixtures" / "diffusers_schedulers.json.gz"
RUNS = json.loads(gzip.decompress(FIXTURE.read_bytes()))
NAMES = sorted({run["scheduler"] for run in RUNS})
TORCH = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))


def denoiser(prediction, clip):
    """The recorded model as what it predicts, in numpy."""

    def denoise(x, level):
        a, s, size, scale = level.alpha, level.sigma, 1.0, 1.0
        if prediction["name"] == "edm":
            data = prediction["sigma_data"]
            size = np.hypot(s, data * a)
            scale = data / size
        output = record_diffusers.model(x / size, level.model_time)
        with np.errstate(divide="ignore", invalid="ignore"):
            x0, eps = {
                "eps": lambda: ((x - s * output) / a, output),
                "x0": lambda: (output, (x - a * output) / s),
                "v": lambda: (a * x - s * output, s * x + a * output),
                "flow": lambda: (x - s * output, x + a * output),
                "edm": lambda: ((scale**2 * a * x + s * scale * output), None),
            }[prediction["name"]]()
            if clip != "none":
                x0 = np.clip(x0, -1, 1)
            if eps is None or clip == "static":
                eps = (x - a * x0) / s
        return x0, eps

    return denoise


def draw(name, config, steps):
    """Our run of a scheduler; noise is fed in the order in which the rows ask for it."""
    parts = diffusers_schedulers.sections({"_class_name": name} | config)
    recipe, schedule = scheduler({"_class_name": name} | config)
    table = recipe.replace(steps=steps).table(schedule)
    asks = np.cumsum(np.any(table.noise, axis=1)) - 1
    noise = np.array([record_diffusers.noise(k) for k in asks])
    clip = parts["sample"]["clip"]
    return table.run_numpy(denoiser(parts["prediction"], clip), record_diffusers.start(), noise)


def test_the_recorded_runs_are_of_every_class_and_option():
    assert set(NAMES) == {n for n in diffusers_schedulers.CLASSES if "Parallel" not in n}
    assert len(RUNS) >= 250
    used = {option for run in RUNS for option in run["config"]}
    for option in "thresholding lambda_min_clipped disable_corrector flow_shift shift".split():
        assert option in used


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_those_of_diffusers(name):
    for run in RUNS:
        if run["scheduler"] == name:
            final = np.array(run["final"])
            ours = draw(name, run["config"], run["steps"])
            error = np.max(np.abs(ours - final)) / np.max(np.abs(final))
            assert error <= 2e-5, (error, run["config"], run["steps"])


@pytest.mark.skipif(not TORCH, reason="needs torch and diffusers (the extra parity)")
def test_the_recorded_runs_are_still_those_of_diffusers():
    for run in RUNS[::10]:
        final = record_diffusers.record(run["scheduler"], run["config"], run["steps"])
        np.testing.assert_allclose(final, run["final"], atol=1e-4 * np.max(np.abs(run["final"])))


@pytest.mark.parametrize("name", list(diffusers_schedulers.CLASSES))
def test_a_recipe_is_named_options_alone(name):
    """It goes through a config's JSON and comes back, and holds no times of its own."""
    parts = diffusers_schedulers.sections({"_class_name": name})
    kept = ml_collections.ConfigDict(json.loads(json.dumps(parts)))
    recipe, schedule = scheduler({"_class_name": name})
    assert Recipe.of(kept) == recipe and recipe.steps is None
    again = make(SCHEDULES, kept.schedule.to_dict(), "schedule")
    level = again.level(again.t_span[0])
    assert level == schedule.level(schedule.t_span[0])
    for steps in (4, 16):
        table = recipe.replace(steps=steps).table(schedule)
        assert table.nfe >= steps


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EulerScheduler"}, "unknown diffusers scheduler 'EulerScheduler'"),
        ({"speed": 3}, "DDIMScheduler: option 'speed' is not known; it has beta_end"),
        ({"beta_schedule": "laplace"}, "beta_schedule='laplace'.*is not supported, only linear"),
        ({"prediction_type": "flow"}, "prediction_type='flow' is not supported, only epsilon"),
        ({"timestep_spacing": "even"}, "timestep_spacing='even' is not supported, only linspace"),
        ({"thresholding": True, "sample_max_value": 2.0}, "sample_max_value=2.0 is not supported"),
        ({"clip_sample": True, "clip_sample_range": 3.0}, "clip_sample_range=3.0 is not supported"),
        (
            {"_class_name": "DDPMScheduler", "variance_type": "learned"},
            "variance_type='learned' is not supported, only fixed_small",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned_range"},
            "variance_type='learned_range' is not supported, only null and fixed ones",
        ),
        (
            {"_class_name": "PNDMScheduler", "prediction_type": "sample"},
            "prediction_type='sample' is not supported, only epsilon, v_prediction",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_order": 4},
            "solver_order=4 is not supported, only 1, 2, 3",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_p": {"a": 1}},
            "solver_p=.* is not supported, only None",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"},
            "algorithm_type='sde-dpmsolver' is not supported, only dpmsolver",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            "final_sigmas_type='zero' is not supported, only 'sigma_min' with",
        ),
        (
            {"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "algorithm_type='sde-dpmsolver\\+\\+' is not supported",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"},
            "interpolation_type='log_linear' is not supported, only 'linear'",
        ),
        (
            {
                "_class_name": "LMSDiscreteScheduler",
                "use_karras_sigmas": True,
                "use_beta_sigmas": True,
            },
            "only one of use_karras_sigmas, use_beta_sigmas can be used",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "use_dynamic_shifting=True is not supported, only False",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
            "prediction_type='v_prediction' is not supported, only 'epsilon'",
        ),
        (
            {"_class_name": "LCMScheduler", "timestep_scaling": 0.1},
            "timestep_scaling=0.1 with original_inference_steps=50 is not supported",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        scheduler(config)


def test_options_of_other_classes_are_left_aside():
    """As diffusers does: files keep what the class before them had."""
    file = {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.42.1",
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
    }
    recipe, _ = scheduler(file)
    assert recipe.solver == "ddim" and recipe.stride_options["offset"] == 1
    assert "landing" not in recipe.solver_options


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("UniPCMultistepScheduler", {"use_lu_lambdas": True}),
        ("DEISMultistepScheduler", {"use_lu_lambdas": True}),
        ("DPMSolverSinglestepScheduler", {"use_lu_lambdas": True}),
        ("FlowMatchHeunDiscreteScheduler", {"use_karras_sigmas": True}),
        ("FlowMatchHeunDiscreteScheduler", {"use_beta_sigmas": True}),
        ("DDIMInverseScheduler", {"clip_sample": False, "thresholding": True}),
        ("DPMSolverMultistepScheduler", {"sigma_min": 0.1, "sigma_max": 9.0}),
        ("UniPCMultistepScheduler", {"sigma_min": 0.1}),
        ("DPMSolverMultistepScheduler", {"variance_type": "fixed_small"}),
        ("DPMSolverSinglestepScheduler", {"variance_type": "fixed_large"}),
    ],
)
def test_options_that_a_class_does_not_read_change_nothing(name, options):
    """By the signatures and the sources of diffusers 0.42.1."""
    kept = {"clip_sample": False} if "clip_sample" in options else {}
    config = {"_class_name": name}
    assert diffusers_schedulers.sections(config | options) == (
        diffusers_schedulers.sections(config | kept)
    )


@pytest.mark.parametrize("bound", [{"sigma_min": 0.1}, {"sigma_max": 9.0}])
def test_foreign_bounds_of_uneven_strides_are_refused(bound):
    """diffusers asks whether the config has them, not the class."""
    ((name, value),) = bound.items()
    for cls, used in (
        ("DPMSolverMultistep", "karras"),
        ("HeunDiscrete", "exponential"),
        ("UniPCMultistep", "beta"),
        ("FlowMatchEulerDiscrete", "karras"),
        ("LMSDiscrete", "exponential"),
    ):
        config = {"_class_name": f"{cls}Scheduler", f"use_{used}_sigmas": True}
        with rejects(ValueError, f"{name}={value} is not supported, only null with use_{used}"):
            scheduler(config | bound)
        scheduler(config | {name: None})
    config = {"_class_name": "LMSDiscreteScheduler", "use_karras_sigmas": True}
    assert diffusers_schedulers.sections(config | bound) == diffusers_schedulers.sections(config)


def test_lu_lambdas_come_before_exponential_and_beta_sigmas():
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}
    for used in ("exponential", "beta"):
        both = config | {f"use_{used}_sigmas": True}
        assert diffusers_schedulers.sections(both) == diffusers_schedulers.sections(config)


def test_betas_of_ones_own():
    betas = np.linspace(1e-3, 0.05, 30).tolist()
    _, schedule = scheduler({"trained_betas": betas, "num_train_timesteps": 30})
    assert schedule.num_steps == 30
    np.testing.assert_allclose(
        schedule.level(1.0).alpha ** 2, np.prod(1 - np.array(betas)), rtol=1e-6
    )


def test_a_folders_recipe_is_its_schedulers(tmp_path):
    model = network()
    diffusers.write(tmp_path / "net", model.config, model.params)
    file = tmp_path / "net" / "scheduler" / "scheduler_config.json"
    assert json.loads(file.read_text())["timestep_spacing"] == "trailing"
    for config, steps in (
        (json.loads(file.read_text()), 50),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, 50),
        ({"_class_name": "HeunDiscreteScheduler"}, 50),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 400}, 400),
        ({"_class_name": "LCMScheduler"}, 4),
    ):
        file.write_text(json.dumps(config))
        read, (recipe, schedule) = checkpoints.load(tmp_path / "net"), scheduler(config)
        assert read.recipe == recipe.replace(steps=steps)
        ours, theirs = (
            r.table(s) for r, s in ((read.recipe, read.schedule), (read.recipe, schedule))
        )
        np.testing.assert_allclose(ours.state, theirs.state, atol=1e-4)
    diffusers.write(tmp_path / "again", read.config, read.params)  # what only samplers see is left
    assert checkpoints.load(tmp_path / "again").recipe.solver == "ddim"
