"""Whole pipelines as diffusers draws them: from our noise, with its own networks and schedulers.

A run is a pipeline of `published_pipelines`, a scheduler, and what is asked for. The fixture holds
the scheduler_config.json that diffusers writes, and its latents and pictures;
`python -m tests.whole_pipelines` records it, where torch, diffusers and transformers are installed.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddim_jax import keys
from tests import published_pipelines as published

GOLDEN = Path(__file__).parent / "fixtures" / "whole_pipelines.npz"
SEED = 3
PROMPTS = ["a photograph of a cat", "the sea at night"]
NEGATIVES = ["blurry", "a bold seven"]
SD, BETAS = published.PNDM, published.BETAS
ENDS = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
TURBO = dict(timestep_spacing="trailing", **BETAS)


class Run(NamedTuple):
    """A pipeline's case, its scheduler, and what is asked for beside prompts or labels."""

    case: str
    scheduler: str
    options: dict[str, Any]
    steps: int = 6
    scale: float = 7.5
    size: tuple[int, int] = (16, 16)
    rescale: float = 0.0
    negative: bool = True


RUNS = {
    "sd1 ddim": Run("sd", "DDIMScheduler", BETAS | ENDS),
    "sd1 euler": Run(
        "sd", "EulerDiscreteScheduler", dict(steps_offset=1, timestep_spacing="leading", **BETAS)
    ),
    "sd1 pndm": Run("sd", "PNDMScheduler", SD | dict(set_alpha_to_one=False), steps=5),
    "sd1 unipc": Run("sd", "UniPCMultistepScheduler", BETAS),
    "sd1 dpm++": Run("sd", "DPMSolverMultistepScheduler", BETAS),
    "sd1 dpm++ karras": Run(
        "sd", "DPMSolverMultistepScheduler", dict(use_karras_sigmas=True, **BETAS)
    ),
    "sd1 ancestral, turbo": Run(
        "sd", "EulerAncestralDiscreteScheduler", TURBO, steps=4, scale=1.0, negative=False
    ),
    "sd2 ddim, zero terminal SNR, not square": Run(
        "sd2", "DDIMScheduler", published.ZERO, rescale=0.7, size=(16, 24)
    ),
    "xl euler, not square, null of zeros": Run(
        "xl", "EulerDiscreteScheduler", dict(steps_offset=1, timestep_spacing="leading", **BETAS),
        scale=5.0, size=(24, 16), negative=False,
    ),
    "xl dpm++": Run(
        "xl", "DPMSolverMultistepScheduler", dict(use_karras_sigmas=True, **BETAS), size=(24, 16)
    ),
    "lcm": Run("lcm", "LCMScheduler", BETAS, steps=4, scale=8.5, negative=False),
    "dit ddim": Run("dit", "DDIMScheduler", dict(clip_sample=False), scale=4.0, negative=False),
    "dit dpm++": Run("dit", "DPMSolverMultistepScheduler", {}, scale=4.0, negative=False),
}  # fmt: skip
LABELS = [207, 0]


def case(name: str) -> dict:
    """A pipeline's recorded files; Stable Diffusion 2 has linear projections and other heads."""
    found = published.recorded("sd" if name == "sd2" else name)
    if name == "sd2":
        own = dict(use_linear_projection=True, attention_head_dim=[2, 4])
        found["files"]["unet/config.json"] |= own
    if name == "dit":  # whose pipeline takes 1000 for no class
        found["files"]["transformer/config.json"]["num_embeds_ada_norm"] = 1000
        del found["files"]["model_index.json"]["id2label"]
    return found


def write(folder: Path, run: Run, scheduler: dict | None = None) -> Path:
    """The folder of a run's pipeline, with a scheduler_config.json."""
    files = case(run.case)
    if scheduler is not None:
        files["files"]["scheduler/scheduler_config.json"] = scheduler
        files["files"]["model_index.json"]["scheduler"] = ["diffusers", run.scheduler]
    return published.write(folder, run.case, case=files)


def asked(run: Run) -> dict[str, Any]:
    """Labels or prompts, as `Model.generate` takes them."""
    if run.case == "dit":
        return {"label": LABELS}
    return {"prompt": PROMPTS, "negative_prompt": NEGATIVES if run.negative else None}


def ours(folder: Path, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Latents and uint8 pictures of `ddim_jax.load(folder)`."""
    from ddim_jax import checkpoints

    model = checkpoints.load(folder).sized(run.size)
    recipe = model.recipe.replace(
        steps=run.steps, guidance_scale=run.scale, guidance_rescale=run.rescale
    )
    latents, decode = [], model.codec.decode
    model = model.replace(
        codec=model.codec._replace(decode=lambda params, x: latents.append(x) or decode(params, x))
    )
    pictures = model.generate(2, recipe, seed=SEED, **asked(run)).pictures
    return np.concatenate(latents), pictures


# --- recording ------------------------------------------------------------------------------------


def theirs(pipe: Any, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Latents and uint8 pictures of a pipeline of diffusers, given our noise."""
    import sys

    import torch

    side = [length // 2 for length in run.size]
    each = keys.sample_keys(SEED, np.arange(2))
    nchw = lambda x: torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)  # noqa: E731
    noise = nchw(keys.initial_noise(each, (*side, 4)))
    rows = iter(range(1, 1000))

    def draw(*args, **kwargs):  # the noise of the next row
        row_keys = keys.purpose_keys(each, keys.Purpose.SOLVER_NOISE, next(rows))
        return nchw(keys.normal(row_keys, (*side, 4)))

    sys.modules[type(pipe.scheduler).__module__].randn_tensor = draw
    sys.modules[type(pipe).__module__].randn_tensor = lambda *args, **kwargs: noise
    latents, decode = [], pipe.vae.decode

    def decode_and_keep(z, *args, **kwargs):
        latents.append(z)
        return decode(z, *args, **kwargs)

    pipe.vae.decode = decode_and_keep
    pipe.set_progress_bar_config(disable=True)
    told = dict(num_inference_steps=run.steps, guidance_scale=run.scale, output_type="np")
    if run.case == "dit":
        told |= dict(class_labels=LABELS)
    else:
        told |= dict(prompt=PROMPTS, height=run.size[0], width=run.size[1], latents=noise.clone())
        told |= dict(negative_prompt=NEGATIVES) if run.negative else {}
        told |= dict(guidance_rescale=run.rescale) if run.rescale else {}
    with torch.no_grad():
        images = pipe(**told).images
    pipe.vae.decode = decode
    found = latents[0] * pipe.vae.config.scaling_factor
    return found.permute(0, 2, 3, 1).numpy()[:2], np.uint8(np.round(255 * images))


def pipeline(folder: Path, run: Run) -> Any:
    """The pipeline of diffusers, with the run's scheduler."""
    import diffusers

    diffusers.logging.set_verbosity_error()
    pipe = diffusers.DiffusionPipeline.from_pretrained(write(folder, run))
    pipe.scheduler = getattr(diffusers, run.scheduler)(**run.options)
    return pipe


def record() -> None:
    """Writes the fixture."""
    import tempfile

    found = {}
    for name, run in RUNS.items():
        with tempfile.TemporaryDirectory() as place:
            pipe = pipeline(Path(place) / "written", run)
            config = json.dumps(json.loads(pipe.scheduler.to_json_string()))
            latents, pictures = theirs(pipe, run)
        print(f"{name:40} {np.abs(latents).max():8.2f} {pictures.std():6.1f}", flush=True)
        found |= {f"{name}/scheduler": config, f"{name}/latents": latents}
        found[f"{name}/pictures"] = pictures
    np.savez_compressed(GOLDEN, **found)
    print(f"{GOLDEN.stat().st_size} bytes in {GOLDEN}")


if __name__ == "__main__":
    record()
