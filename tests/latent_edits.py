"""What diffusers makes of pictures: img2img, and both kinds of inpainting, on tiny random weights.

`fixtures/latent_edits.json` holds some of the final latents; `python -m tests.latent_edits` records
it, where torch, diffusers and transformers are installed.
"""

import json
from pathlib import Path

import numpy as np

from tests import published_pipelines as published
from tests.latent_networks import random

GOLDEN = Path(__file__).parent / "fixtures" / "latent_edits.json"
PROMPT, NEGATIVE, GUIDANCE = "a photograph of a cat", "the sea at night", 3.0
DDIM = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **published.BETAS)
CASES = {
    "img2img 0.3": dict(kind="sd", steps=10, strength=0.3),
    "img2img 0.75": dict(kind="sd", steps=8, strength=0.75),
    "replacement 0.5": dict(kind="sd", steps=8, strength=0.5, mask=True),
    "network 1": dict(kind="inpaint", steps=4, strength=1.0, mask=True),
    "network 0.5": dict(kind="inpaint", steps=8, strength=0.5, mask=True),
}


def case(kind: str) -> dict:
    """The files of a pipeline with DDIM for a scheduler."""
    files = published.recorded(kind)["files"]
    if kind == "sd":
        place = "scheduler/scheduler_config.json"
        content = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.42.1"}
        files[place] = content | json.loads(json.dumps(DDIM))
        files["model_index.json"]["scheduler"][1] = "DDIMScheduler"
    return {"files": files}


def picture() -> np.ndarray:
    """uint8 [1, 16, 16, 3]."""
    x = random("picture", 1, 16, 16, 3)
    return np.uint8(255 * (x - x.min()) / (x.max() - x.min()))


def noise() -> np.ndarray:
    """[1, 8, 8, 4]."""
    return random("noise", 1, 8, 8, 4)


def unknown() -> np.ndarray:
    """What is to be drawn, bool [16, 16], in whole cells of the latents."""
    mask = np.zeros((16, 16), bool)
    mask[4:12, 6:16] = True
    return mask


def some(latents: np.ndarray) -> list[float]:
    """Every fifth value."""
    return [float(f"{value:.7g}") for value in np.asarray(latents, np.float32).ravel()[::5]]


# --- recording ------------------------------------------------------------------------------------


def theirs(folder: Path, options: dict) -> np.ndarray:
    """The final latents of a pipeline of diffusers."""
    import torch
    from diffusers import (
        DiffusionPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
    )
    from diffusers.models.autoencoders import vae
    from diffusers.pipelines.stable_diffusion import (
        pipeline_stable_diffusion_img2img as img2img,
    )
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint
    from PIL import Image

    fixed = torch.tensor(noise()).permute(0, 3, 1, 2)
    for module in (img2img, inpaint):
        module.randn_tensor = lambda *args, **options: fixed
    vae.DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean
    pipe = DiffusionPipeline.from_pretrained(folder)
    masked = options.get("mask")
    made = StableDiffusionInpaintPipeline if masked else StableDiffusionImg2ImgPipeline
    pipe = made(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    told = dict(prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE)
    if masked:
        told |= dict(mask_image=Image.fromarray(np.uint8(255 * unknown())), height=16, width=16)
    result = pipe(
        image=Image.fromarray(picture()[0]),
        strength=options["strength"],
        num_inference_steps=options["steps"],
        output_type="latent",
        **told,
    )
    return result.images.movedim(1, -1).numpy()


def record() -> None:
    """Writes the fixture."""
    import tempfile

    found = {}
    for name, options in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            kind = options["kind"]
            folder = published.write(Path(place) / kind, kind, case=case(kind))
            found[name] = some(theirs(folder, options))
            print(name, np.abs(found[name]).max())
    GOLDEN.write_text(json.dumps(found, separators=(",", ":")))


if __name__ == "__main__":
    record()
