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
import numpy as np

from ddim_jax.names import lookup, make
from ddim_jax.recipe import Recipe
from ddim_jax.schedules import SCHEDULES, Schedule

Sections = dict[str, dict[str, Any]]
"""`schedule`, `prediction` and `sample` of a config."""

BETAS = {
    "linear": "ddpm_linear",
    "scaled_linear": "ddpm_scaled_linear",
    "squaredcos_cap_v2": "ddpm_cosine",
}
PREDICTIONS = {
    "epsilon": "eps",
    "v_prediction": "v",
    "original_sample": "x0",
    "sample": "x0",
    "flow_prediction": "flow",
}
BETAS_OF = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
DEFAULT_BETAS = ("linear", 1e-4, 0.02, 1000)
FEWER = 15
"""DPM-Solver's and DEIS's order falls at the end of fewer steps than this."""
FINITE = 2.0**-12
"""alpha of the last level of betas without terminal signal, where the log-SNR must be finite."""


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
    recipe = Recipe.of(ml_collections.ConfigDict({"sample": parts["sample"]}))
    return recipe, make(SCHEDULES, parts["schedule"], "schedule")


def sections(config: Mapping[str, Any]) -> Sections:
    """A config's sections `schedule`, `prediction` and `sample` of a scheduler_config.json.

    Arguments and errors as of `scheduler`.
    """
    name = config.get("_class_name", "DDIMScheduler")
    read = lookup(CLASSES, name, "diffusers scheduler")
    options = _Options(name, config)
    parts = read(options)
    options.check_all_known()
    return parts


class _Options:
    """The options of a scheduler; remembers which ones have been asked for."""

    def __init__(self, name: str, config: Mapping[str, Any]):
        self.name, self.asked = name, set()
        self.given = {k: v for k, v in config.items() if not k.startswith("_")}

    def get(self, name: str, default: Any = None) -> Any:
        """The option's value."""
        self.asked.add(name)
        return self.given.get(name, default)

    def choice(self, name: str, default: Any, known: Mapping[Any, Any]) -> Any:
        """What is known by the option's value."""
        value = self.get(name, default)
        if value not in known:
            self.refuse(name, value, ", ".join(map(str, known)))
        return known[value]

    def only(self, **values: Any) -> None:
        """Refuses other values of options; None, False and empty lists are one value."""
        for name, value in values.items():
            if (found := self.get(name, value)) != value and (found or value):
                self.refuse(name, found, repr(value))

    def refuse(self, name: str, value: Any, only: str) -> None:
        """Raises the ValueError of a value that has no counterpart."""
        raise ValueError(f"{self.name}: {name}={value!r} is not supported, only {only}")

    def check_all_known(self) -> None:
        """Raises ValueError for an option that no class has."""
        unknown = sorted(set(self.given) - self.asked - OTHER_OPTIONS)
        if unknown:
            raise ValueError(
                f"{self.name}: option {unknown[0]!r} is not known; it has "
                f"{', '.join(sorted(self.asked))}"
            )


# --- what classes share ---------------------------------------------------------------------------


def _schedule(
    o: _Options,
    *,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    kind: str = "linear",
    last_alpha: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The section of betas; `last_alpha` is that of rescaled ones, None where a class has none."""
    total, kind = o.get("num_train_timesteps", 1000), o.get("beta_schedule", kind)
    start, end = o.get("beta_start", beta_start), o.get("beta_end", beta_end)
    betas = o.get("trained_betas")
    if last_alpha is not None and o.get("rescale_betas_zero_snr", False):
        more["last_alpha"] = last_alpha
    more = {name: value for name, value in more.items() if value is not None} | {"single": True}
    if betas is not None:
        return {"name": "trained_betas", "betas": tuple(map(float, betas)), **more}
    if kind == "exp" and o.name == "HeunDiscreteScheduler":
        start = end = min(-np.expm1(-12 / total), 0.999)
        kind = "linear"
    known = BETAS | ({"sigmoid": "ddpm_sigmoid"} if o.name == "DDPMScheduler" else {})
    if kind not in known:
        prediction = o.get("prediction_type", "epsilon")
        raise ValueError(
            f"{o.name} with beta_schedule={kind!r}, prediction_type={prediction!r} is not "
            f"supported, only {', '.join(known)} and {', '.join(PREDICTIONS)}"
        )
    section = {"name": known[kind], "num_steps": total, **more}
    if kind != "squaredcos_cap_v2":
        section |= {"beta_start": start, "beta_end": end}
    return section


def _parts(
    o: _Options,
    schedule: dict[str, Any],
    solver: str,
    stride: str,
    *,
    solver_options: dict[str, Any] | None = None,
    stride_options: dict[str, Any] | None = None,
    clip: str = "none",
    prediction: dict[str, Any] | None = None,
) -> Sections:
    """The sections; options that are None are left out."""
    if prediction is None:
        known = o.choice("prediction_type", "epsilon", PREDICTIONS)
        prediction = {"name": known}
    sample = {"solver": solver, "stride": stride, "clip": clip}
    sample["solver_options"] = solver_options or {}
    sample["stride_options"] = stride_options or {}
    return {"schedule": schedule, "prediction": prediction, "sample": sample}


def _spacing(o: _Options, default: str) -> dict[str, Any]:
    """`spacing` and `offset` of a stride."""
    spacing = o.choice(
        "timestep_spacing", default, {k: k for k in ("linspace", "leading", "trailing")}
    )
    offset = o.get("steps_offset", 0)
    return {"spacing": spacing} | ({"offset": offset} if offset and spacing == "leading" else {})


def _clip(o: _Options, default: bool, static: str) -> str:
    """The clip of `clip_sample` and `thresholding`, which wins."""
    thresholds = _threshold(o, static)
    clips = o.get("clip_sample", default)
    if clips and thresholds == "none":
        o.only(clip_sample_range=1.0)
        return static
    o.get("clip_sample_range")
    return thresholds


def _threshold(o: _Options, static: str = "static") -> str:
    """The clip of `thresholding`: whose threshold lies between 1 and sample_max_value."""
    o.get("dynamic_thresholding_ratio")
    if not o.get("thresholding", False):
        o.get("sample_max_value")
        return "none"
    o.only(sample_max_value=1.0)
    return static


def _uneven(o: _Options) -> str | None:
    """The stride of `use_..._sigmas`, if any."""
    strides = {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "log_snr",
        "use_beta_sigmas": "beta",
    }
    used = [name for name in strides if o.get(name, False)]
    if len(used) > 1:
        raise ValueError(f"{o.name}: only one of {', '.join(used)} can be used")
    return strides[used[0]] if used else None


def _terminal(o: _Options) -> str:
    """The stride's terminal, "zero" or "zero_to_min", of `final_sigmas_type`."""
    ends = {"zero": "zero", "sigma_min": "zero_to_min"}
    return o.choice("final_sigmas_type", "zero", ends)


# --- DDIM and its kin -----------------------------------------------------------------------------


def _ddim(o: _Options, **solver_options: Any) -> Sections:
    options = {"landing": "whole", **solver_options}
    return _parts(
        o,
        _schedule(o, last_alpha=0.0),
        "ddim",
        "uniform",
        solver_options=options,
        stride_options=_spacing(o, "leading") | {"terminal": _alpha_at_end(o, True)},
        clip=_clip(o, True, "static_x0"),
    )


def _ddim_inverse(o: _Options) -> Sections:
    if o.get("set_alpha_to_zero") is not None:
        o.given["set_alpha_to_one"] = o.get("set_alpha_to_zero")
    return _ddim(o, inverse=True)


def _alpha_at_end(o: _Options, default: bool) -> str:
    return "zero" if o.get("set_alpha_to_one", default) else "zero_to_min"


def _ddpm(o: _Options) -> Sections:
    small = {"solver": "ddpm", "solver_options": {}}
    large = {"solver": "ddpm_large", "solver_options": {"final_noise": True}}
    variances = {"fixed_small": small, "fixed_small_log": small, "fixed_large": large}
    return _parts(
        o,
        _schedule(o, last_alpha=0.0),
        **o.choice("variance_type", "fixed_small", variances),
        stride="uniform",
        stride_options=_spacing(o, "leading"),
        clip=_clip(o, True, "static"),
    )


def _pndm(o: _Options) -> Sections:
    options = {"landing": "whole", "lower_order_final": False, "lam_min": None}
    average = {"epsilon": "eps", "v_prediction": "v"}
    options["average"] = o.choice("prediction_type", "epsilon", average)
    return _parts(
        o,
        _schedule(o),
        "plms" if o.get("skip_prk_steps", False) else "pndm",
        "uniform",
        solver_options=options,
        stride_options=_spacing(o, "leading") | {"terminal": _alpha_at_end(o, False)},
    )


def _lcm(o: _Options, **solver_options: Any) -> Sections:
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
    clip = _clip(o, False, "static")
    return _parts(
        o,
        _schedule(o, last_alpha=0.0, **betas),
        "lcm",
        "uniform",
        solver_options=solver_options,
        stride_options={"spacing": "trailing", "among": among, "terminal": end},
        clip=clip if o.name == "LCMScheduler" else "none",  # the other never clips
    )


def _tcd(o: _Options) -> Sections:
    return _lcm(o, gamma=0.3)


# --- Euler and its kin: in sigma, from fractional indices -----------------------------------------


def _sigmas(
    o: _Options,
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
    at, stride = _spacing(o, "linspace"), _uneven(o) if uneven else None
    prior = None if at["spacing"] == "leading" else "sigma"
    linspace = at["spacing"] == "linspace"
    interpolation = "lam" if stride or not linspace else "ratio"
    if stride is None:
        options = at | ({"rounded": False} if linspace else {})
    else:
        options = {} if linspace else at
    options["terminal"] = end
    told = "rounded" if rounds and stride == "karras" else None
    schedule = _schedule(
        o, last_alpha=last_alpha, interpolation=interpolation, prior=prior, model_time=told, **betas
    )
    return _parts(
        o,
        schedule,
        solver,
        stride or "uniform",
        solver_options=solver_options,
        stride_options=options,
        clip=clip,
    )


def _euler(o: _Options) -> Sections:
    o.only(interpolation_type="linear")
    low, high = o.get("sigma_min"), o.get("sigma_max")
    continuous = o.choice("timestep_type", "discrete", {"discrete": False, "continuous": True})
    continuous = continuous and o.get("prediction_type", "epsilon") == "v_prediction"
    end = _terminal(o)
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


def _euler_ancestral(o: _Options) -> Sections:
    return _sigmas(o, "euler_ancestral", last_alpha=FINITE, uneven=False)


OLD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
"""Heun's and DPM2's own."""


def _heun(o: _Options) -> Sections:
    clip = "static" if o.get("clip_sample", False) else "none"
    if clip == "static":
        o.only(clip_sample_range=1.0)
    o.get("clip_sample_range")
    return _sigmas(o, "heun", solver_options={"lam_min": None}, clip=clip, **OLD_BETAS)


def _lms(o: _Options) -> Sections:
    options = {"lower_order_final": False, "lam_min": None}
    return _sigmas(o, "lms", solver_options=options)


def _kdpm2(o: _Options) -> Sections:
    options = {"lam_min": None}
    options |= {"exact_middle": True} if o.get("use_karras_sigmas", False) else {}
    options |= {"ancestral": True} if o.name == "KDPM2AncestralDiscreteScheduler" else {}
    return _sigmas(o, "midpoint", solver_options=options, rounds=True, **OLD_BETAS)


def _sde(o: _Options) -> Sections:
    o.get("noise_sampler_seed")
    options = {"lam_min": None, "path": "sigma"}
    return _sigmas(o, "sde_dpm_solver++_2s", solver_options=options, **OLD_BETAS)


# --- DPM-Solver and its kin: in log-SNR, from whole indices ---------------------------------------


def _log_snr(
    o: _Options,
    solver: str,
    *,
    solver_options: dict[str, Any],
    end: str,
    last_alpha: float | None = None,
    lam_min: float | None = None,
    spaced: bool = True,
    clip: str = "none",
) -> Sections:
    """`end`: "zero", "zero_to_min" or "repeat" of the last sigma; `spaced`: the class has spacings.

    Where the end is "repeat", that is of the uneven strides only.
    """
    o.only(use_dynamic_shifting=False)
    o.get("time_shift_type")
    at = _spacing(o, "linspace") if spaced else {"spacing": "linspace"}
    stride, lu = _uneven(o), o.get("use_lu_lambdas", False)
    told = None
    if stride or lu:
        rounds = stride in ("karras", None)
        if o.name == "DPMSolverMultistepScheduler":
            rounds = rounds and o.get("beta_schedule", "linear") != "squaredcos_cap_v2"
        told = "rounded" if rounds else _whole_part(o)
        stride = stride if stride == "karras" or not lu else "log_snr"
        options = {"terminal": end, "lam_min": None}
    else:
        end = "zero_to_min" if end == "repeat" else end
        whole = {"zero": "min_to_zero", "zero_to_min": "min"}
        options = at | {"terminal": end if at["spacing"] == "trailing" else whole[end]}
        options |= {"lam_min": lam_min}
        if lam_min is not None and at["spacing"] == "trailing":
            o.refuse("lambda_min_clipped", lam_min, "-inf with timestep_spacing='trailing'")
    schedule = _schedule(
        o, last_alpha=last_alpha, interpolation="lam" if told else None, model_time=told
    )
    return _parts(
        o,
        schedule,
        solver,
        stride or "uniform",
        solver_options=solver_options,
        stride_options=options,
        clip=clip,
    )


def _whole_part(o: _Options) -> str:
    """The model time of the last index is one less where its log sigma is rounded up."""
    betas = [o.get(k, default) for k, default in zip(BETAS_OF, DEFAULT_BETAS, strict=True)]
    plain = betas[1:] == [1e-4, 0.02, 1000] and betas[0] in ("linear", "scaled_linear")
    rescaled = o.get("trained_betas") or o.get("rescale_betas_zero_snr", False)
    return "floored" if plain and not rescaled else "floored_under"


def _flow_sigmas(o: _Options, parts: Sections, end: str) -> Sections:
    """The parts with the levels of `use_flow_sigmas`."""
    shift = o.get("flow_shift", 1.0)
    if not o.get("use_flow_sigmas", False):
        return parts
    if parts["sample"]["stride"] != "uniform":
        o.refuse("use_flow_sigmas", True, "without other use_..._sigmas or use_lu_lambdas")
    total = o.get("num_train_timesteps", 1000)
    schedule = {"name": "rectified_flow", "shift": shift, "model_time": "floored"}
    schedule |= {"num_steps": total, "single": True, "prior": "unit"}
    if o.name == "UniPCMultistepScheduler":  # begins a little below pure noise
        if end != "zero":
            o.refuse("final_sigmas_type", "sigma_min", "'zero' with use_flow_sigmas")
        schedule["t_min"] = 1 / total
        stride = {"spacing": "linspace", "lam_min": float(np.log(1e-6)), "terminal": "min_to_zero"}
    else:
        first = shift * (1 - 1 / total) / (1 + (shift - 1) * (1 - 1 / total))
        if end == "zero_to_min":
            made = make(SCHEDULES, parts["schedule"], "schedule")
            last = np.exp(-made.half_log_snr(made.t_min))  # of the betas, taken for one of the flow
            schedule["t_min"] = float(last / (shift - (shift - 1) * last))
        stride = {"spacing": "trailing", "lam_min": float(np.log((1 - first) / first))}
        stride |= {"terminal": end}
    parts["schedule"] = schedule
    parts["sample"]["stride_options"] = stride
    return parts


def _dpm_options(o: _Options) -> tuple[str, dict[str, Any]]:
    """(form, options that DPM-Solver's classes share)."""
    forms = {"dpmsolver++": "data", "dpmsolver": "eps", "sde-dpmsolver++": "sde", "deis": "data"}
    form = o.choice("algorithm_type", "dpmsolver++", forms)
    slopes = dict.fromkeys(("midpoint", "logrho", "bh1", "bh2"), "midpoint") | {"heun": "taylor"}
    options = {"derivative": o.choice("solver_type", "midpoint", slopes), "lam_min": None}
    if form == "eps" and o.get("final_sigmas_type", "zero") == "zero":
        o.refuse("final_sigmas_type", "zero", "'sigma_min' with algorithm_type='dpmsolver'")
    return form, options


def _clipped_lam(o: _Options) -> float | None:
    """The least lam of `lambda_min_clipped`, which some files hold as text."""
    lam = o.get("lambda_min_clipped")
    return None if lam is None or float(lam) == -np.inf else float(lam)


def _multistep(o: _Options) -> tuple[str, dict[str, Any]]:
    """(solver, its options) of DPM-Solver's multistep classes."""
    form, options = _dpm_options(o)
    order = o.choice("solver_order", 2, {1: 1, 2: 2, 3: 3})
    falls, last = o.get("lower_order_final", True), o.get("euler_at_final", False)
    if order == 1:
        return ("sde_dpm_solver++_1", {}) if form == "sde" else ("ddim", {})
    options |= {"lower_order_final": FEWER if falls else False, "euler_at_final": bool(last)}
    options |= {"eta": 1.0} if form == "sde" else {"form": form}
    options |= {"exact": "misprint" if form == "sde" else False} if order == 3 else {}
    return f"dpm_solver++_{order}m", options


def _dpm_multistep(o: _Options) -> Sections:
    o.only(variance_type=None)
    end = _terminal(o)
    solver, options = _multistep(o)
    parts = _log_snr(
        o,
        solver,
        solver_options=options,
        end=end,
        last_alpha=FINITE,
        lam_min=_clipped_lam(o),
        clip=_threshold(o),
    )
    return _flow_sigmas(o, parts, end)


def _dpm_singlestep(o: _Options) -> Sections:
    o.only(variance_type=None)
    if o.get("algorithm_type") == "sde-dpmsolver++":
        o.refuse("algorithm_type", "sde-dpmsolver++", "dpmsolver++ and dpmsolver")
    end = _terminal(o)
    form, options = _dpm_options(o)
    if form == "eps" and o.get("thresholding", False):
        o.refuse("thresholding", True, "False with algorithm_type='dpmsolver'")
    order = o.choice("solver_order", 2, {1: 1, 2: 2, 3: 3})
    falls = bool(o.get("lower_order_final", False)) and end != "zero"
    options |= {"order": order, "lower_order_final": falls, "exact_inner": False}
    parts = _log_snr(
        o,
        "dpm_solver++_fast" if form == "data" else "dpm_solver_fast",
        solver_options=options,
        end=end,
        lam_min=_clipped_lam(o),
        spaced=False,
        clip=_threshold(o),
    )
    return _flow_sigmas(o, parts, end)


def _unipc(o: _Options) -> Sections:
    o.only(solver_p=None, shift_terminal=None, sigma_min=None, sigma_max=None)
    order = o.choice("solver_order", 2, {1: 1, 2: 2, 3: 3})
    variants = {"bh1": "bh1", "bh2": "bh2", **dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")}
    options = {
        "form": "data" if o.get("predict_x0", True) else "eps",
        "variant": o.choice("solver_type", "bh2", variants),
        "lower_order_final": bool(o.get("lower_order_final", True)),
        "lam_min": None,
    }
    if uncorrected := o.get("disable_corrector"):
        options["uncorrected"] = tuple(uncorrected)
    end, clip = _terminal(o), _threshold(o)  # which its eps form leaves out
    uneven = "repeat" if end == "zero_to_min" else end
    parts = _log_snr(
        o,
        f"unipc_{order}",
        solver_options=options,
        end=uneven,
        last_alpha=FINITE,
        clip=clip if options["form"] == "data" else "none",
    )
    return _flow_sigmas(o, parts, uneven)


def _deis(o: _Options) -> Sections:
    o.choice("algorithm_type", "deis", dict.fromkeys(("deis", "dpmsolver", "dpmsolver++")))
    o.choice("solver_type", "logrho", dict.fromkeys(("logrho", "midpoint", "heun", "bh1", "bh2")))
    order = o.choice("solver_order", 2, {1: 1, 2: 2, 3: 3})
    falls = FEWER if o.get("lower_order_final", True) else False
    options = {"order": order - 1, "space": "log_rho", "lower_order_final": falls, "lam_min": None}
    parts = _log_snr(o, "deis", solver_options=options, end="repeat", clip=_threshold(o))
    return _flow_sigmas(o, parts, "repeat")


# --- EDM and flow matching ------------------------------------------------------------------------


def _edm(o: _Options, solver: str, solver_options: dict[str, Any], clip: str = "none") -> Sections:
    o.get("num_train_timesteps")
    schedule = {
        "name": "edm",
        "sigma_min": o.get("sigma_min", 0.002),
        "sigma_max": o.get("sigma_max", 80.0),
        "prior": "total",
    }
    stride = o.choice("sigma_schedule", "karras", {"karras": "karras", "exponential": "log_snr"})
    rho = o.get("rho", 7.0)
    options = {"terminal": _terminal(o)} | ({"rho": rho} if stride == "karras" else {})
    prediction = {"name": "edm", "sigma_data": o.get("sigma_data", 0.5)}
    if o.get("prediction_type", "epsilon") != "epsilon":
        o.refuse("prediction_type", o.get("prediction_type"), "'epsilon', EDM's F")
    return _parts(
        o,
        schedule,
        solver,
        stride,
        solver_options=solver_options,
        stride_options=options,
        clip=clip,
        prediction=prediction,
    )


def _edm_euler(o: _Options) -> Sections:
    return _edm(o, "ddim", {})


def _edm_multistep(o: _Options) -> Sections:
    return _edm(o, *_multistep(o), clip=_threshold(o))


def _flow(o: _Options, solver: str) -> Sections:
    total, shift = o.get("num_train_timesteps", 1000), float(o.get("shift", 1.0))
    least = shift / total / (1 + (shift - 1) / total)  # shifted here, and again by the schedule
    schedule = {"name": "rectified_flow", "shift": shift, "t_min": least}
    schedule |= {"model_time": "index", "num_steps": total} if total != 1000 else {}
    stride = _uneven(o)
    options = {"space": "flow"} if stride else {"spacing": "linspace"}
    return _parts(
        o,
        schedule,
        solver,
        stride or "uniform",
        stride_options=options,
        prediction={"name": "flow"},
    )


def _flow_euler(o: _Options) -> Sections:
    o.only(use_dynamic_shifting=False, invert_sigmas=False, shift_terminal=None)
    for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        o.get(name)
    o.get("time_shift_type")
    return _flow(o, "lcm" if o.get("stochastic_sampling", False) else "ddim")


def _flow_heun(o: _Options) -> Sections:
    return _flow(o, "heun_flow")


CLASSES: dict[str, Callable[[_Options], Sections]] = {
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
    "DPMSolverMultistepScheduler": _dpm_multistep,
    "DPMSolverSinglestepScheduler": _dpm_singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
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
        options = _Options(name, {})
        read(options)
        asked |= options.asked
    return asked


OTHER_OPTIONS = _all_options()
"""What a class may be given that only others have."""
