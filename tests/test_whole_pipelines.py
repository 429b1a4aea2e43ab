"""Whole pipelines, `load(folder).generate(...)`: latents and pictures are those of diffusers."""

import json

import numpy as np
import pytest

from tests import whole_pipelines
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


@pytest.mark.parametrize("name", RUNS)
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
