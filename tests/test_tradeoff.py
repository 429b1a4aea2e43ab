"""The sweep: its grid, its plan, its results and plots, resumed; and what is refused beforehand."""

import csv
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs.digits import get_config
from ddim_jax import checkpoints, data, experiment
from ddim_jax.evaluation import (
    feature_networks,
    features,
    metrics,
    plots,
    references,
    results,
    sanity_check,
    scores,
    shards,
    sweep,
    tradeoff,
)
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SOLVERS


def grid(*flags):
    return sweep.grid(tradeoff.parse(["--clip=static", *flags]))


def test_the_grid_is_the_product_and_eta_is_for_those_who_take_it():
    found = grid("--solver=ddim,unipc_2", "--steps=5,10", "--eta=0,0.5", "--guidance_scale=1,2")
    assert len(found) == 2 * 2 * 2 + 2 * 2
    half = Recipe("ddim", steps=5, solver_options={"eta": 0.5}, guidance_scale=2.0)
    assert half in found and Recipe("ddim", steps=5) in found  # eta 0 is ddim
    assert all(not cell.solver_options for cell in found if cell.solver == "unipc_2")


def test_the_paper_s_table():
    found = grid("--preset=paper", "--stride=quadratic")
    assert len(found) == 5 * 5 and {cell.stride for cell in found} == {"quadratic"}
    assert {cell.steps for cell in found} == {10, 20, 50, 100, 1000}
    assert sum(cell.solver == "ddpm_large" for cell in found) == 5
    assert len(grid("--preset=paper", "--steps=10", "--eta=0,1")) == 3
    assert len(grid("--preset=paper", "--baseline=ddpm:1000", "--stride=uniform")) == 5 * 5


def test_evaluations_are_a_budget(capsys):
    found = grid("--solver=ddim,heun,rk4", "--nfe=3,8")
    assert [(c.solver, c.steps) for c in found] == [
        ("ddim", 3), ("ddim", 8), ("heun", 2), ("heun", 4), ("rk4", 1), ("rk4", 2)
    ]  # fmt: skip
    assert all(SOLVERS[c.solver].nfe(c.steps) <= 8 for c in found)
    assert grid("--solver=pndm,ddim", "--nfe=1")[-1].solver == "ddim"


def test_strides_by_name_of_solver_and_steps():
    found = grid("--solver=ddim", "--steps=5,8", "--stride=uniform,s/{solver}-{steps}.json")
    assert [c.stride for c in found] == ["uniform", "uniform", "s/ddim-5.json", "s/ddim-8.json"]
    (heun,) = grid("--solver=heun", "--steps=3")
    assert shards.settings(heun)["stride"] == "karras"


def test_a_cell_is_drawn_once_by_whatever_name():
    assert len(grid("--solver=ddim", "--steps=5,5", "--baseline=ddim:5")) == 1
    (named, baseline) = grid("--stride=quadratic", "--steps=5", "--baseline=ddim:5")
    assert (named.stride, baseline.stride) == ("quadratic", None)
    assert len(grid("--stride=uniform", "--steps=5", "--baseline=ddim:5")) == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--solver=dim"], r"unknown solver 'dim' \(did you mean 'ddim'"),
        (["--solver=unipc_2", "--eta=0.5"], "--eta is for ddim and its like"),
        (["--steps=5", "--nfe=5"], "give --steps or --nfe, not both"),
        (["--preset=paper", "--solver=heun"], "--preset=paper has its own solvers"),
        (["--preset=paper", "--guidance_scale=1,2"], "one --stride and one --guidance_scale"),
        (["--baseline=ddpm"], "must be like ddpm:1000, got ddpm"),
        (["--steps=0"], "steps must be"),
        (["--num_samples=128"], "in 128 dimensions needs at least 129 samples, got 128"),
        (["--guidance_scale=2", "--checkpoint=nobody"], "no checkpoint 'nobody'"),
        (["--features=incepton"], "unknown features 'incepton'; they are digits, "),
        (["--features=inception:none.pth"], "none.pth"),
        (["--reference=none.npz"], "no statistics at none.npz; give an npz with mu and sigma"),
        (["--also=none.csv"], "no results of an earlier sweep at none.csv"),
        (["--real=npz:none.npz"], "none.npz"),
    ],
)
def test_what_is_refused_before_anything_is_drawn(flags, message, tmp_path, capsys):
    flags = [f"--workdir={tmp_path}", "--num_samples=200", "--batch_size=2", *flags]
    with pytest.raises(SystemExit, match=message):
        tradeoff.main(flags)
    assert not list(tmp_path.rglob("*.npz"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A real sweep of five cells of a tiny network, and its command line."""
    workdir = tmp_path_factory.mktemp("quality")
    config = get_config()
    config.model.update(channels=8, channel_mults=(1,), num_blocks=1)
    model = experiment.build(config)
    model = model.replace(params=jax.jit(model.init)(jax.random.key(0)), name="tiny")
    checkpoints.save(workdir / "tiny.safetensors", model)
    digits = data.load("digits")
    images = np.stack([digits[i]["image"][..., 0] for i in range(300)])
    np.savez(workdir / "few.npz", train_x=images)
    flags = [f"--workdir={workdir}", f"--checkpoint={workdir / 'tiny.safetensors'}"]
    flags += [f"--real=npz:{workdir / 'few.npz'}", "--num_samples=140", "--batch_size=70"]
    flags += ["--solver=ddim", "--steps=1,2", "--guidance_scale=1,2", "--baseline=ddpm:2"]
    flags += ["--name=small"]
    tradeoff.main(flags)
    return workdir, flags


def test_every_number_has_its_origin(swept, network):
    workdir, _ = swept
    content = json.loads((workdir / "small.json").read_text())
    about, records = content["about"], content["records"]
    assert about["baseline"] == "ddpm_uniform_2" and len(records) == 5
    assert about["features"] == "digits" and about["reference_count"] == 60000
    origin = {"weights_sha256", "features_sha256", "resize", "ema", "versions", "devices"}
    assert origin <= set(about)
    assert [r["nfe"] for r in records] == [1, 2, 1, 2, 2]
    assert [r["forward_passes"] for r in records] == [1, 2, 2, 4, 2]
    for record in records:
        assert record["num_samples"] == 140 and 0 <= record["precision"] <= 1
        assert record["images_per_second"] > 0 and record["program_bytes"] > 1e5
        assert {"KDD", "DS", "recall", "density", "coverage", "accuracy"} <= set(record)
    with np.load(workdir / "cells" / "ddim_uniform_2" / "00000.npz") as shard:
        found = metrics.moments(network.extract(shard["images"]).pool)
    wanted = metrics.frechet_distance(found, references.load("digits_train").pool)
    assert records[1]["FDD"] == pytest.approx(wanted, rel=1e-4)
    with open(workdir / "small.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["FDD"]) for row in rows] == [record["FDD"] for record in records]


def test_the_plots_are_there(swept):
    workdir, _ = swept
    for name in ("quality", "pareto", "guidance", "cost", "sheet"):
        with Image.open(workdir / f"small_{name}.png") as picture:
            assert min(picture.size) > 200


@pytest.mark.slow
def test_the_same_command_draws_nothing_twice(swept, tmp_path, capsys):
    source, flags = swept
    workdir = tmp_path / "copy"
    shutil.copytree(source, workdir)
    before = json.loads((workdir / "small.json").read_text())["records"]
    times = {path: path.stat().st_mtime_ns for path in workdir.rglob("0*.npz")}
    lost = workdir / "cells" / "ddim_uniform_2" / "00000.npz"
    lost.unlink()
    tradeoff.main([f"--workdir={workdir}", *flags[1:]])
    out = capsys.readouterr().out
    assert "140 samples to draw, 280 network evaluations" in out and "about" in out
    after = json.loads((workdir / "small.json").read_text())["records"]
    for old, new in zip(before, after, strict=True):
        assert new["FDD"] == pytest.approx(old["FDD"], rel=1e-3)
    changed = [path for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [lost]


def test_another_sweep_of_that_name_is_not_lost(swept):
    workdir, flags = swept
    before = (workdir / "small.json").read_bytes()
    with pytest.raises(SystemExit, match="which this one would lose; choose another --name"):
        tradeoff.main([*flags, "--steps=1"])
    with pytest.raises(SystemExit, match="a sweep of 140 samples a cell, not 150; choose another"):
        tradeoff.main([*flags, "--num_samples=150"])
    assert (workdir / "small.json").read_bytes() == before


def test_a_plan_draws_nothing(tmp_path, capsys):
    tradeoff.main([f"--workdir={tmp_path}", "--plan", "--steps=3", "--batch_size=2",
                   "--guidance_scale=2", "--num_samples=200"])  # fmt: skip
    out = capsys.readouterr().out
    assert "1 cells x 200 samples of digits: 200 samples to draw, 600 network evaluations" in out
    assert "1,200 forward passes with guidance" in out and "forward passes a second" in out
    assert not list(tmp_path.iterdir())


def test_the_layout_of_the_paper_s_table():
    records = [
        {"solver": "ddim", "solver_options": {"eta": 0.5}, "steps": 10, "FDD": 2.0},
        {"solver": "ddpm_large", "solver_options": {}, "steps": 20, "FDD": 3.0},
    ]
    assert results.paper_table(records, "FDD").splitlines() == [
        "| FDD | S = 10 | S = 20 |",
        "|---|---|---|",
        "| eta = 0.5 | 2.000 |  |",
        "| sigma-hat |  | 3.000 |",
    ]


@pytest.mark.slow
def test_results_of_another_sweep_join_the_plots(swept, monkeypatch):
    """What was written comes back as it was, and is drawn beside the sweep's own cells."""
    workdir, flags = swept
    written = json.loads((workdir / "small.json").read_text())["records"]
    found = results.read([workdir / "small.csv"], 140, "FDD")
    assert found == written
    drawn = []
    monkeypatch.setattr(plots, "quality", lambda path, records, *rest: drawn.append(records))
    also = f"--also={workdir / 'small.csv'}"
    tradeoff.main([*flags[:-5], "--solver=ddim", "--steps=1", "--name=joined", also])
    assert [record["cell"] for record in drawn[0]] == [
        "ddim_uniform_1", *(r["cell"] for r in written if r["cell"] != "ddim_uniform_1")
    ]  # fmt: skip
    assert len(json.loads((workdir / "joined.json").read_text())["records"]) == 1


def test_results_that_cannot_join(swept, tmp_path):
    workdir, _ = swept
    with pytest.raises(ValueError, match="cells of 140 samples, not 150; only equal numbers"):
        results.read([workdir / "small.csv"], 150, "FDD")
    with pytest.raises(ValueError, match="is not a CSV file of a sweep with FID"):
        results.read([workdir / "small.csv"], 140, "FID")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other.csv is not a CSV file of a sweep with FDD"):
        results.read([tmp_path / "other.csv"], 140, "FDD")


def test_the_pareto_front():
    cost, value = np.array([1, 2, 2, 3, 4]), np.array([9.0, 5.0, 4.0, 6.0, 1.0])
    assert plots.pareto_front(cost, value) == [0, 2, 4]


@pytest.fixture(scope="module")
def network():
    return feature_networks.load("digits")


def test_features_do_not_depend_on_the_batch(network):
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    whole, parts = network.extract(images), network.extract(images, batch_size=4)
    assert whole.pool.shape == (7, 128) and whole.logits.shape == (7, 10)
    np.testing.assert_allclose(whole.pool, parts.pool, atol=1e-4)
    with pytest.raises(ValueError, match="must be uint8"):
        network.extract(images.astype(np.float32))
    with pytest.raises(ValueError, match=r"take images of shape \(28, 28, 1\), got \(32, 32, 3\)"):
        network.extract(np.zeros((2, 32, 32, 3), np.uint8))


def test_statistics_of_another_network_are_refused(network, tmp_path):
    shape = (28, 28, 1)
    path = tmp_path / "s.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match="statistics of 2048 features, 'digits' has 128"):
        scores.find_data(network, str(path), None, shape)
    found = metrics.moments(np.random.default_rng(0).normal(size=(200, 128)))
    other = tmp_path / "o.npz"
    references.save(other, found, network._replace(sha256="abc"), "other")
    with pytest.raises(ValueError, match="made with another network_sha256, abc, than that of"):
        scores.find_data(network, str(other), None, shape)


@pytest.mark.slow
def test_the_distance_ranks_altered_pictures(network):
    """Real digits are near, and farther with every blur and noise; half of the classes is far."""
    evaluator = scores.make_evaluator(network, references.load("digits_train"), None)
    images, labels = features.read_images(data.load("digits"))
    sets = sanity_check.altered(images[:1000], labels[:1000])
    found = {n: scores.score(network.extract(i), evaluator, y) for n, i, y, _ in sets}
    distance = {name: record["FDD"] for name, record in found.items()}
    blurs = [distance["real"]] + [distance[f"blurred by {b} pixels"] for b in sanity_check.BLURS]
    noises = [distance["real"]] + [distance[f"noise of {s}/255"] for s in sanity_check.NOISES]
    assert all(np.diff(blurs) > 0) and all(np.diff(noises) > 0)
    assert distance["half of the classes alone"] > 10 * distance["real"]
    assert found["real"]["accuracy"] > 0.99 and found["labels shuffled"]["accuracy"] < 0.2
    assert distance["labels shuffled"] == pytest.approx(distance["real"], rel=1e-6)


@pytest.mark.slow
def test_students_draw_as_their_own_config_says(swept):
    workdir, flags = swept
    model = checkpoints.load(workdir / "tiny.safetensors")
    model.config.sample.update(steps=2, clip="none", stride_options={"lam_min": -4.0})
    model.config.sample.guidance_scale = 1.5
    for name in ("fast_2step", "fast_1step"):
        checkpoints.save(workdir / f"{name}.safetensors", model)
    places = f"{workdir / 'fast_2step.safetensors'},{workdir / 'fast_1step.safetensors'}:1:3"
    tradeoff.main([*flags[:-5], "--steps=1", f"--students={places}", "--name=students"])
    records = json.loads((workdir / "students.json").read_text())["records"]
    assert [r.get("student") for r in records] == [None] + ["fast, diffusion"] * 3
    assert [(r["nfe"], r["clip"]) for r in records[1:]] == [(2, "none"), (1, "none"), (3, "none")]
    assert [r["guidance_scale"] for r in records] == [1.0, 1.5, 1.5, 1.5]
    assert {plots.curve_name(r) for r in records} == {"ddim", "fast, diffusion"}
    assert {r["stride"] for r in records[1:]} == {"uniform:lam_min=-4.0"}
    names = [r["cell"] for r in records[1:]]
    assert names[0] == "fast_2step_ddim_uniform,lam_min=-4.0_2_guidance=1.5_clip=none"
    about = json.loads((workdir / "cells" / names[0] / "cell.json").read_text())
    table = Recipe(stride_options={"lam_min": -4.0}, steps=2).table(model.schedule)
    assert about["table"] == model.origin(table)["table"]
    np.testing.assert_allclose(model.schedule.half_log_snr(table.level.t[0]), -4.0)


@pytest.mark.slow
def test_the_checkpoint_s_clip_is_the_default(swept):
    workdir, flags = swept
    model = checkpoints.load(workdir / "tiny.safetensors")
    model.config.sample.clip = "none"
    checkpoints.save(workdir / "unclipped.safetensors", model)
    flags = [*flags[:1], f"--checkpoint={workdir / 'unclipped.safetensors'}", *flags[2:5]]
    tradeoff.main([*flags, "--steps=1", "--name=unclipped", "--baseline=ddim:1"])
    content = json.loads((workdir / "unclipped.json").read_text())
    assert content["about"]["baseline"] == "ddim_uniform_1_clip=none"
    assert [(r["cell"], r["clip"]) for r in content["records"]] == [
        ("ddim_uniform_1_clip=none", "none")
    ]
    tradeoff.main([*flags, "--steps=1", "--name=clipped", "--clip=static"])
    records = json.loads((workdir / "clipped.json").read_text())["records"]
    assert [r["cell"] for r in records] == ["ddim_uniform_1"]


def test_steps_of_a_student_are_numbers():
    with pytest.raises(SystemExit, match="must be like PATH or PATH:1:2, got 'digits:one'"):
        tradeoff.main(["--students=digits:one"])


def test_a_student_under_a_tolerance_is_no_cell(swept, tmp_path):
    workdir, flags = swept
    model = checkpoints.load(workdir / "tiny.safetensors")
    model.config.sample = dict(solver="adaptive")
    checkpoints.save(tmp_path / "adaptive.safetensors", model)
    with pytest.raises(SystemExit, match="adaptive is drawn to a tolerance, and a sweep counts"):
        tradeoff.main([*flags, f"--students={tmp_path / 'adaptive.safetensors'}"])


def test_plots_leave_matplotlib_as_it_is(swept, tmp_path):
    """No backend is chosen, and no figure stays open, so that notebooks go on as before."""
    workdir, _ = swept
    run = subprocess.run(
        [sys.executable, "-c", PLOT, str(workdir / "small.json"), str(tmp_path / "q.png")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["False"] and (tmp_path / "q.png").exists()


PLOT = """
import json, sys
from pathlib import Path
from ddim_jax.evaluation import plots, tradeoff
records = json.loads(Path(sys.argv[1]).read_text())["records"]
plots.quality(Path(sys.argv[2]), records, "FDD", "ddpm_uniform_2")
print("matplotlib.pyplot" in sys.modules)
"""
