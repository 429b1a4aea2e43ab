"""Schedulers of Hugging Face diffusers as our named options.

    recipe, schedule = scheduler(json.loads(Path("scheduler_config.json").read_text()))
    table = recipe.replace(steps=20).table(schedule)

A class there is a noise schedule, a stride and a solver at once; here it is a config's sections
`schedule`, `prediction` and `sample`, by the names and options that anyone can give. What is told
apart by number of steps there (an order that falls at the end of fewer than 15 steps) is an option
here, so that a recipe holds for all numbers of steps. The samples of classes that keep x / alpha
(Euler, Heun, LMS, DPM2) are kept as x here: the same samples, and at the end the same numbers.

docs/diffusers.md lists what every class becomes, and the library's own turns that have a name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from ddim_jax.checkpoints import log_snr_schedulers
from ddim_jax.checkpoints.scheduler_options import (
    FINITE,
    Options,
    Sections,
    make_parts,
    make_schedule,
    read_clip,
    read_spacing,
    read_terminal,
    read_threshold,
    read_uneven,
)
from ddim_jax.files import interpreting
from ddim_jax.names import lookup, make
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import SCHEDULES, Schedule


def scheduler(config: Mapping[str, Any]) -> tuple[Recipe, Schedule]:
    """The recipe and the schedule of a scheduler_config.json.

    Args:
        config: its content: `_class_name`, by default DDIMScheduler, and options. Options that only
            other classes have are left aside, as diffusers does.

    Returns:
        The recipe, whose number of steps is left open, and the schedule to draw it on. What the
        network predicts is not part of them, see `sections`.

    Raises:
        ValueError: a class that is not in `CLASSES`, an option that no class has, a value that has
            no counterpart here.
    """
    parts = sections(config)
    with interpreting(f"the scheduler {config.get('_class_name')}"):
        recipe = Recipe.of(ml_collections.ConfigDict({"sample": parts["sample"]}))
        return recipe, make(SCHEDULES, parts["schedule"], "schedule")


def sections(config: Mapping[str, Any]) -> Sections:
    """A config's sections `schedule`, `prediction` and `sample` of a scheduler_config.json.

    Arguments and errors as of `scheduler`.
    """
    name = config.get("_class_name", "DDIMScheduler")
    read = lookup(CLASSES, name, "diffusers scheduler")
    options = Options(name, config)
    with interpreting(f"the scheduler {name}"):
        parts = read(options)
    options.check_all_known(OTHER_OPTIONS)
    return parts


# --- DDIM and its kin -----------------------------------------------------------------------------


def _ddim(o: Options, **solver_options: Any) -> Sections:
    options = {"landing": "whole", **solver_options}
    return make_parts(
        o,
        make_schedule(o, last_alpha=0.0),
        "ddim",
        "uniform",
        solver_options=options,
        stride_options=read_spacing(o, "leading") | {"terminal": _alpha_at_end(o, True)},
        clip=read_clip(o, True, "static_x0"),
    )


def _ddim_inverse(o: Options) -> Sections:
    o.given.pop("thresholding", None)  # which it has not
    if o.get("set_alpha_to_zero") is not None:
        o.given["set_alpha_to_one"] = o.get("set_alpha_to_zero")
    return _ddim(o, inverse=True)


def _alpha_at_end(o: Options, default: bool) -> str:
    return "zero" if o.get("set_alpha_to_one", default) else "zero_to_min"


def _ddpm(o: Options) -> Sections:
    small = {"solver": "ddpm", "solver_options": {}}
    large = {"solver": "ddpm_large", "solver_options": {"final_noise": True}}
    variances = {"fixed_small": small, "fixed_small_log": small, "fixed_large": large}
    return make_parts(
        o,
        make_schedule(o, last_alpha=0.0),
        **o.choice("variance_type", "fixed_small", variances),
        stride="uniform",
        stride_options=read_spacing(o, "leading"),
        clip=read_clip(o, True, "static"),
    )


def _pndm(o: Options) -> Sections:
    options = {"landing": "whole", "lower_order_final": False, "lam_min": None}
    average = {"epsilon": "eps", "v_prediction": "v"}
    options["average"] = o.choice("prediction_type", "epsilon", average)
    return make_parts(
        o,
        make_schedule(o),
        "plms" if o.get("skip_prk_steps", False) else "pndm",
        "uniform",
        solver_options=options,
        stride_options=read_spacing(o, "leading") | {"terminal": _alpha_at_end(o, False)},
    )


def _lcm(o: Options, **solver_options: Any) -> Sections:
    total, among = o.get("num_train_timesteps", 1000), o.get("original_inference_steps", 50)
    scaling = o.get("timestep_scaling", 10.0)
    cleanest = total // among - 1
    if o.name == "LCMScheduler" and not abs(cleanest * scaling) >= 50:
        raise ValueError(
            f"{o.name}: timestep_scaling={scaling!r} with original_inference_steps={among!r} is "
            "not supported: its scalings differ from 0 and 1 at the times of the stride"
        )
    end = "zero" if o.name == "LCMScheduler" else "zero_to_min"
    for name in ("set_alpha_to_one", "steps_offset", "timestep_spacing"):  # which it never reads
        o.get(name)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "kind": "scaled_linear"}
    clip = read_clip(o, False, "static")
    return make_parts(
        o,
        make_schedule(o, last_alpha=0.0, **betas),
        "lcm",
        "uniform",
        solver_options=solver_options,
        stride_options={"spacing": "trailing", "among": among, "terminal": end},
        clip=clip if o.name == "LCMScheduler" else "none",  # the other never clips
    )


def _tcd(o: Options) -> Sections:
    return _lcm(o, gamma=0.3)


# --- Euler and its kin: in sigma, from fractional indices -----------------------------------------

UNBOUNDED = ("LMSDiscreteScheduler", "DPMSolverSDEScheduler")
"""Classes whose Karras sigmas do not heed sigma_min and sigma_max."""


def _sigmas(
    o: Options,
    solver: str,
    *,
    solver_options: dict[str, Any] | None = None,
    rounds: bool = False,
    uneven: bool = True,
    clip: str = "none",
    last_alpha: float | None = None,
    end: str = "zero",
    **betas: Any,
) -> Sections:
    """`rounds`: Karras sigmas have whole model times; `uneven`: the class has `use_..._sigmas`."""
    at, stride = read_spacing(o, "linspace"), None
    if uneven:
        free = o.name in UNBOUNDED and o.get("use_karras_sigmas", False)
        stride = read_uneven(o, bounded=not free and o.name != "EulerDiscreteScheduler")
    prior = None if at["spacing"] == "leading" else "sigma"
    linspace = at["spacing"] == "linspace"
    interpolation = "lam" if stride or not linspace else "ratio"
    if stride is None:
        options = at | ({"rounded": False} if linspace else {})
    else:
        options = {} if linspace else at
    options["terminal"] = end
    told = "rounded" if rounds and stride == "karras" else None
    schedule = make_schedule(
        o, last_alpha=last_alpha, interpolation=interpolation, prior=prior, model_time=told, **betas
    )
    return make_parts(
        o,
        schedule,
        solver,
        stride or "uniform",
        solver_options=solver_options,
        stride_options=options,
        clip=clip,
    )


def _euler(o: Options) -> Sections:
    o.only(interpolation_type="linear")
    low, high = o.get("sigma_min"), o.get("sigma_max")
    continuous = o.choice("timestep_type", "discrete", {"discrete": False, "continuous": True})
    continuous = continuous and o.get("prediction_type", "epsilon") == "v_prediction"
    end = read_terminal(o)
    divided = {} if end == "zero" else {"divided": True}
    parts = _sigmas(o, "ddim", last_alpha=FINITE, end=end, solver_options=divided)
    bounded = low is not None or high is not None
    if bounded and parts["sample"]["stride"] != "uniform":  # otherwise it reads neither
        if low is None or high is None or not continuous:
            raise ValueError(
                f"{o.name}: sigma_min={low!r} and sigma_max={high!r} are supported together, and "
                "with timestep_type='continuous' and prediction_type='v_prediction'"
            )
        if parts["sample"]["stride_options"]["terminal"] != "zero":
            o.refuse("final_sigmas_type", "sigma_min", "'zero' with sigma_min and sigma_max")
        prior = parts["schedule"].get("prior")
        parts["schedule"] = {"name": "edm", "sigma_min": low, "sigma_max": high, "preserving": True}
        parts["schedule"] |= {"prior": prior} if prior else {}
        parts["sample"]["stride_options"] = {}
    elif continuous:
        parts["schedule"]["model_time"] = "log_sigma"
    return parts


def _euler_ancestral(o: Options) -> Sections:
    return _sigmas(o, "euler_ancestral", last_alpha=FINITE, uneven=False)


OLD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
"""Heun's and DPM2's own."""


def _heun(o: Options) -> Sections:
    clip = "static" if o.get("clip_sample", False) else "none"
    if clip == "static":
        o.only(clip_sample_range=1.0)
    o.get("clip_sample_range")
    return _sigmas(o, "heun", solver_options={"lam_min": None}, clip=clip, **OLD_BETAS)


def _lms(o: Options) -> Sections:
    options = {"lower_order_final": False, "lam_min": None}
    return _sigmas(o, "lms", solver_options=options)


def _kdpm2(o: Options) -> Sections:
    options = {"lam_min": None}
    options |= {"exact_middle": True} if o.get("use_karras_sigmas", False) else {}
    options |= {"ancestral": True} if o.name == "KDPM2AncestralDiscreteScheduler" else {}
    return _sigmas(o, "midpoint", solver_options=options, rounds=True, **OLD_BETAS)


def _sde(o: Options) -> Sections:
    o.get("noise_sampler_seed")
    options = {"lam_min": None, "path": "sigma"}
    return _sigmas(o, "sde_dpm_solver++_2s", solver_options=options, **OLD_BETAS)


# --- EDM and flow matching ------------------------------------------------------------------------


def _edm(o: Options, solver: str, solver_options: dict[str, Any], clip: str = "none") -> Sections:
    o.get("num_train_timesteps")
    schedule = {
        "name": "edm",
        "sigma_min": o.get("sigma_min", 0.002),
        "sigma_max": o.get("sigma_max", 80.0),
        "prior": "total",
    }
    stride = o.choice("sigma_schedule", "karras", {"karras": "karras", "exponential": "log_snr"})
    rho = o.get("rho", 7.0)
    options = {"terminal": read_terminal(o)} | ({"rho": rho} if stride == "karras" else {})
    prediction = {"name": "edm", "sigma_data": o.get("sigma_data", 0.5)}
    if o.get("prediction_type", "epsilon") != "epsilon":
        o.refuse("prediction_type", o.get("prediction_type"), "'epsilon', EDM's F")
    return make_parts(
        o,
        schedule,
        solver,
        stride,
        solver_options=solver_options,
        stride_options=options,
        clip=clip,
        prediction=prediction,
    )


def _edm_euler(o: Options) -> Sections:
    return _edm(o, "ddim", {})


def _edm_multistep(o: Options) -> Sections:
    return _edm(o, *log_snr_schedulers.multistep(o), clip=read_threshold(o))


def _flow(o: Options, solver: str, uneven: bool = True) -> Sections:
    """`uneven`: the class has `use_..._sigmas`."""
    total, shift = o.get("num_train_timesteps", 1000), float(o.get("shift", 1.0))
    least = shift / total / (1 + (shift - 1) / total)  # shifted here, and again by the schedule
    schedule = {"name": "rectified_flow", "shift": shift, "t_min": least}
    schedule |= {"model_time": "index", "num_steps": total} if total != 1000 else {}
    stride = read_uneven(o) if uneven else None
    options = {"space": "flow"} if stride else {"spacing": "linspace"}
    options |= {"terminal": "zero"} if solver == "lcm" else {}  # it asks at the cleanest level too
    return make_parts(
        o,
        schedule,
        solver,
        stride or "uniform",
        stride_options=options,
        prediction={"name": "flow"},
    )


def _flow_euler(o: Options) -> Sections:
    o.only(use_dynamic_shifting=False, invert_sigmas=False, shift_terminal=None)
    for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        o.get(name)
    o.get("time_shift_type")
    return _flow(o, "lcm" if o.get("stochastic_sampling", False) else "ddim")


def _flow_heun(o: Options) -> Sections:
    return _flow(o, "heun_flow", uneven=False)


CLASSES: dict[str, Callable[[Options], Sections]] = {
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "DDIMInverseScheduler": _ddim_inverse,
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "LCMScheduler": _lcm,
    "TCDScheduler": _tcd,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun,
    "LMSDiscreteScheduler": _lms,
    "KDPM2DiscreteScheduler": _kdpm2,
    "KDPM2AncestralDiscreteScheduler": _kdpm2,
    "DPMSolverSDEScheduler": _sde,
    "DPMSolverMultistepScheduler": log_snr_schedulers.dpm_multistep,
    "DPMSolverSinglestepScheduler": log_snr_schedulers.dpm_singlestep,
    "UniPCMultistepScheduler": log_snr_schedulers.unipc,
    "DEISMultistepScheduler": log_snr_schedulers.deis,
    "EDMEulerScheduler": _edm_euler,
    "EDMDPMSolverMultistepScheduler": _edm_multistep,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "FlowMatchHeunDiscreteScheduler": _flow_heun,
}
"""Scheduler classes by name."""


def _all_options() -> set[str]:
    """The options of all classes."""
    asked = set()
    for name, read in CLASSES.items():
        options = Options(name, {})
        read(options)
        asked |= options.asked
    return asked


OTHER_OPTIONS = _all_options()
"""What a class may be given that only others have."""
