"""Whole pipelines, `load(folder).generate(...)`: latents and pictures are those of diffusers."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from absl.testing import flagsaver
from PIL import Image

from ddim_jax.commands import sample
from tests import published_pipelines, whole_pipelines
from tests.latent_networks import random
from tests.selection import slow_but
from tests.whole_pipelines import RUNS


@pytest.fixture(scope="module")
def golden():
    with np.load(whole_pipelines.GOLDEN) as arrays:
        return dict(arrays)


def close(found, wanted):
    """Latents to 1e-4 of the largest, pictures to the rounding."""
    latents, pictures = wanted
    assert np.abs(latents).max() > 1 and pictures.std() > 10
    np.testing.assert_allclose(found[0], latents, rtol=0, atol=1e-4 * np.abs(latents).max())
    np.testing.assert_allclose(np.int32(found[1]), pictures, rtol=0, atol=1)


FEW = ("sd1 pndm", "lcm", "dit ddim")
"""Runs that are always checked."""


@pytest.mark.parametrize("name", slow_but(RUNS, FEW))
def test_drawn_as_diffusers_drew(golden, name, tmp_path):
    """diffusers 0.42.1 and transformers 5.24 with torch 2.14, for the same folder."""
    scheduler = json.loads(str(golden[f"{name}/scheduler"]))
    folder = whole_pipelines.write(tmp_path / "model", RUNS[name], scheduler)
    found = whole_pipelines.ours(folder, RUNS[name])
    close(found, (golden[f"{name}/latents"], golden[f"{name}/pictures"]))


@pytest.mark.parametrize("name", ["sd1 pndm", "xl dpm++", "lcm", "dit ddim"])
def test_folders_that_diffusers_wrote(name, tmp_path):
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module, reason=f"needs {module} (the extra parity)")
    pipe = whole_pipelines.pipeline(tmp_path / "given", RUNS[name])
    pipe.save_pretrained(tmp_path / "saved")
    found = whole_pipelines.ours(tmp_path / "saved", RUNS[name])
    close(found, whole_pipelines.theirs(pipe, RUNS[name]))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs sample.py in a folder with a pipeline, "model", and a LoRA of it."""
    monkeypatch.chdir(tmp_path)
    published_pipelines.write(tmp_path / "model", "sd")
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {
        f"{attention}.lora_{side}.weight": random(side, *shape)
        for side, shape in {"A": (4, 32), "B": (32, 4)}.items()
    }
    safetensors.numpy.save_file(factors, tmp_path / "lcm.safetensors")

    def run(**asked):
        if "like" not in asked:
            asked = dict(checkpoint="model", prompt=["a photograph of a cat"]) | asked
        with flagsaver.flagsaver(**asked):
            sample.run(["sample.py"])

    sample.flags.FLAGS(["sample.py"])
    return run


def test_the_commands_draw_from_a_folder(command):
    """With prompts, a size and a dtype; with a LoRA file that changes the picture."""
    command(
        negative_prompt="blurry", steps=3, guidance_scale=7.5, size="16x24", dtype="bfloat16",
        out="cat.png",
    )  # fmt: skip
    with Image.open("cat.png") as picture:
        assert np.std(np.asarray(picture)) > 20
    few = dict(solver="lcm", steps=3, guidance_scale=1.0)
    command(out="plain.npz", **few)
    command(out="lora.npz", lora=["lcm.safetensors"], **few)
    command(out="none.npz", lora=["lcm.safetensors:0"], **few)
    plain, merged, none = (
        np.int32(np.load(f"{name}.npz")["images"]) for name in ("plain", "lora", "none")
    )
    assert plain.shape == (1, 16, 16, 3) and np.abs(plain - merged).max() > 8
    np.testing.assert_array_equal(plain, none)


def test_a_picture_of_a_lora_is_drawn_again(command, tmp_path):
    """From any folder; in the dtype that it had; not with another file, or without."""
    few = dict(solver="lcm", steps=2, guidance_scale=1.0, dtype="bfloat16")
    command(out="a.npz", lora=["lcm.safetensors:0.5"], **few)
    command(out="plain.npz", **few)
    (tmp_path / "other").mkdir()
    os.chdir("other")
    command(like="../a.npz", out="b.npz")
    command(like="b.npz", out="c.npz")
    drawn, again = np.load("../a.npz")["images"], np.load("c.npz")["images"]
    np.testing.assert_array_equal(drawn, again)
    assert (drawn != np.load("../plain.npz")["images"]).any()

    file = tmp_path / "lcm.safetensors"
    file.rename("moved.safetensors")
    gone = f"the LoRA {file}, which is gone; .* by --lora=lcm.safetensors:0.5"
    changed = "drawn with --lora=lcm.safetensors:0.5, whose content has changed since"
    other = "with --lora=lcm.safetensors:0.5, not with --lora=moved.safetensors:1; name what drew"
    with pytest.raises(SystemExit, match=gone):
        command(like="b.npz", out="d.npz")
    command(like="b.npz", out="d.npz", lora=["moved.safetensors:0.5"])
    np.testing.assert_array_equal(drawn, np.load("d.npz")["images"])
    with pytest.raises(SystemExit, match=other):
        command(like="b.npz", out="e.npz", lora=["moved.safetensors"])
    factors = safetensors.numpy.load_file("moved.safetensors")
    safetensors.numpy.save_file({name: 2 * value for name, value in factors.items()}, file)
    with pytest.raises(SystemExit, match=changed):
        command(like="b.npz", out="e.npz")
    with pytest.raises(SystemExit, match="drawn with no --lora, not with --lora=moved"):
        command(like="../plain.npz", out="e.npz", lora=["moved.safetensors"])
