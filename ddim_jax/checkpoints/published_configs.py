"""Classes of published pipelines, and the configs of models that many have.

The configs are those that reading the published folders gives, but for their names.
"""

from typing import Any, NamedTuple

from ddim_jax.checkpoints.diffusers import drawing

Section = dict[str, Any]


class Parts(NamedTuple):
    """What a class of pipelines is made of: its network, text encoders, its own guidance scale."""

    network: str
    encoders: int
    guidance_scale: float


STABLE, XL = Parts("unet", 1, 7.5), Parts("unet", 2, 5.0)
CONSISTENT, DIT = Parts("unet", 1, 8.5), Parts("transformer", 0, 4.0)
PIPELINES = {
    "StableDiffusionPipeline": STABLE,
    "StableDiffusionImg2ImgPipeline": STABLE,
    "StableDiffusionInpaintPipeline": STABLE,
    "StableDiffusionXLPipeline": XL,
    "StableDiffusionXLImg2ImgPipeline": XL,
    "StableDiffusionXLInpaintPipeline": XL,
    "LatentConsistencyModelPipeline": CONSISTENT,
    "LatentConsistencyModelImg2ImgPipeline": CONSISTENT,
    "DiTPipeline": DIT,
}
"""Of latents, by the class's own name."""

BETAS = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000
)
LEADING = BETAS | dict(set_alpha_to_one=False, steps_offset=1, clip_sample=False)
SCHEDULERS: dict[str, Section] = {
    "sd15": dict(_class_name="PNDMScheduler", skip_prk_steps=True, **LEADING),
    "sd21": dict(_class_name="DDIMScheduler", prediction_type="v_prediction", **LEADING),
    "sdxl": dict(
        _class_name="EulerDiscreteScheduler", timestep_spacing="leading", steps_offset=1, **BETAS
    ),
    "dit-xl-2": dict(
        _class_name="DDIMScheduler",
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        num_train_timesteps=1000,
        clip_sample=False,
    ),
}
"""scheduler_config.json of each."""
SIT: Section = dict(
    schedule=dict(name="rectified_flow", model_time="to_data"),
    prediction=dict(name="data_flow"),
    sample=dict(solver="heun_flow", stride="uniform", steps=50, clip="none", guidance_scale=4.0),
)
"""Of SiT: its clock runs from noise at 0 to data at 1, and it predicts the velocity along it."""

CLIP_L: Section = dict(
    vocabulary=49408, length=77, width=768, layers=12, heads=12, hidden=3072,
    activation="quick_gelu", projection=0, end=49407,
)  # fmt: skip
OPENCLIP_H = CLIP_L | dict(width=1024, layers=23, heads=16, hidden=4096, activation="gelu")
OPENCLIP_G = CLIP_L | dict(
    width=1280, layers=32, heads=20, hidden=5120, activation="gelu", projection=1280
)
AUTOENCODER: Section = dict(name="autoencoder_kl", scale=0.18215, shift=0.0)
XL_UNET: Section = dict(
    widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10, heads=(5, 10, 20), context_dim=2048,
    vector_dim=1280, sizes=6, size_dim=256,
)  # fmt: skip
DIT_XL_2: Section = dict(
    name="dit", out_channels=4, unused_channels=4, width=1152, depth=28, heads=16, patch_size=2,
    num_classes=1000,
)  # fmt: skip


def unasked(name: str, scheduler: Section, told: bool = False) -> Section:
    """Guidance scale, number of pictures, perhaps steps, unless a recipe says otherwise.

    Distilled networks are drawn from without guidance, in few steps. No file says that they are,
    but their schedulers do: LCM and TCD are of no others, and Turbo and Lightning have Euler's with
    the spacing "trailing", which others have together with a zero terminal SNR alone.

    Args:
        name: of the pipeline's class.
        scheduler: its scheduler_config.json.
        told: whether the network is told the guidance scale, which it was distilled for.
    """
    kind, made_of = scheduler.get("_class_name"), PIPELINES[name]
    euler = kind in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    trailing = euler and scheduler.get("timestep_spacing") == "trailing"
    trailing &= not scheduler.get("rescale_betas_zero_snr", False)
    distilled = trailing or kind in ("LCMScheduler", "TCDScheduler")
    if told or not distilled or not made_of.encoders:
        return {"num_samples": 1, "guidance_scale": made_of.guidance_scale}
    return {"num_samples": 1, "guidance_scale": 1.0, "steps": 4}


def drawn_by(name: str, scheduler: Section, linear: bool = False, told: bool = False) -> Section:
    """The sections on drawing of a pipeline's class and its scheduler; `told` as of `unasked`."""
    sections = drawing(scheduler)
    sections["sample"] |= unasked(name, scheduler, told)
    published = dict(pipeline=name, scheduler=scheduler, linear_projection=linear)
    return sections | dict(published=published)


def _config(name: str, size: int, model: Section, drawn: Section, **more: Any) -> Section:
    data = dict(name=f"published:{name}", image_shape=(size, size, 3), class_names=())
    loss = dict(name="diffusion", label_dropout=0.1)
    return dict(data=data, model=model, loss=loss, codec=AUTOENCODER) | drawn | more


def _stable(name: str, size: int, encoder: Section, **model: Any) -> Section:
    drawn = drawn_by("StableDiffusionPipeline", SCHEDULERS[name], linear=name == "sd21")
    text = dict(encoders=(encoder | dict(take="last", pooled=False),), null="encode")
    return _config(name, size, dict(name="text_unet", **model), drawn, text=text)


def _xl() -> Section:
    taken = [dict(take="penultimate", pooled=pooled) for pooled in (False, True)]
    text = dict(encoders=(CLIP_L | taken[0], OPENCLIP_G | taken[1]), null="zeros")
    drawn = drawn_by("StableDiffusionXLPipeline", SCHEDULERS["sdxl"], linear=True)
    codec = AUTOENCODER | dict(scale=0.13025)
    model = dict(name="text_unet", **XL_UNET)
    return _config("sdxl", 1024, model, drawn, text=text, codec=codec)


def _dit() -> Section:
    model = DIT_XL_2 | dict(time_embedding="dit", eps=1e-5, position_grid=16)
    return _config("dit-xl-2", 256, model, drawn_by("DiTPipeline", SCHEDULERS["dit-xl-2"]))


CONFIGS: dict[str, Section] = {
    "sd15": _stable("sd15", 512, CLIP_L),
    "sd21": _stable("sd21", 768, OPENCLIP_H, heads=(5, 10, 20, 20), context_dim=1024),
    "sdxl": _xl(),
    "dit-xl-2": _dit(),
    "sit-xl-2": _config("sit-xl-2", 256, DIT_XL_2, SIT),
}
"""Published models by name."""
