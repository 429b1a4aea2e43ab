"""DPM-Solver, UniPC and DEIS of diffusers: integrated in log-SNR, from whole indices."""

from typing import Any

import numpy as np

from ddim_jax.checkpoints.scheduler_options import (
    FINITE,
    Options,
    Sections,
    make_parts,
    make_schedule,
    read_spacing,
    read_terminal,
    read_threshold,
    read_uneven,
)
from ddim_jax.names import make
from ddim_jax.schedules import SCHEDULES

BETAS_OF = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
DEFAULT_BETAS = ("linear", 1e-4, 0.02, 1000)
FEWER = 15
"""DPM-Solver's and DEIS's order falls at the end of fewer steps than this."""


def _log_snr(
    o: Options,
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
    at = read_spacing(o, "linspace") if spaced else {"spacing": "linspace"}
    stride, multi = read_uneven(o), o.name == "DPMSolverMultistepScheduler"
    lu = multi and o.get("use_lu_lambdas", False)  # which others leave aside
    told = None
    if stride or lu:
        rounds = stride == "karras" or lu
        rounds &= not multi or o.get("beta_schedule", "linear") != "squaredcos_cap_v2"
        told = "rounded" if rounds else _whole_part(o)
        stride = stride if stride == "karras" or not lu else "log_snr"
        options = {"terminal": end, "lam_min": None}
    else:
        end = "zero_to_min" if end == "repeat" else end
        whole = {"zero": "skip", "zero_to_min": "min"}
        options = at | {"terminal": end if at["spacing"] == "trailing" else whole[end]}
        options |= {"lam_min": lam_min}
        if lam_min is not None and at["spacing"] == "trailing":
            o.refuse("lambda_min_clipped", lam_min, "-inf with timestep_spacing='trailing'")
    schedule = make_schedule(
        o, last_alpha=last_alpha, interpolation="lam" if told else None, model_time=told
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


def _whole_part(o: Options) -> str:
    """The model time of the last index is one less where its log sigma is rounded up."""
    betas = [o.get(k, default) for k, default in zip(BETAS_OF, DEFAULT_BETAS, strict=True)]
    plain = betas[1:] == [1e-4, 0.02, 1000] and betas[0] in ("linear", "scaled_linear")
    rescaled = o.get("trained_betas") or o.get("rescale_betas_zero_snr", False)
    return "floored" if plain and not rescaled else "floored_under"


def _flow_sigmas(o: Options, parts: Sections, end: str) -> Sections:
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
        stride = {"spacing": "linspace", "lam_min": float(np.log(1e-6)), "terminal": "skip"}
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


def _dpm_options(o: Options) -> tuple[str, dict[str, Any]]:
    """(form, options that DPM-Solver's classes share)."""
    forms = {"dpmsolver++": "data", "dpmsolver": "eps", "sde-dpmsolver++": "sde", "deis": "data"}
    form = o.choice("algorithm_type", "dpmsolver++", forms)
    slopes = dict.fromkeys(("midpoint", "logrho", "bh1", "bh2"), "midpoint") | {"heun": "taylor"}
    options = {"derivative": o.choice("solver_type", "midpoint", slopes), "lam_min": None}
    if form == "eps" and o.get("final_sigmas_type", "zero") == "zero":
        o.refuse("final_sigmas_type", "zero", "'sigma_min' with algorithm_type='dpmsolver'")
    return form, options


def _check_variance(o: Options) -> None:
    """Refuses networks that give variances too; all other types are one, and none is read."""
    if (kind := o.get("variance_type")) in ("learned", "learned_range"):
        o.refuse("variance_type", kind, "null and fixed ones")


def _clipped_lam(o: Options) -> float | None:
    """The least lam of `lambda_min_clipped`, which some files hold as text."""
    lam = o.get("lambda_min_clipped")
    return None if lam is None or float(lam) == -np.inf else float(lam)


def multistep(o: Options) -> tuple[str, dict[str, Any]]:
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


def dpm_multistep(o: Options) -> Sections:
    """DPMSolverMultistepScheduler."""
    _check_variance(o)
    end = read_terminal(o)
    solver, options = multistep(o)
    parts = _log_snr(
        o,
        solver,
        solver_options=options,
        end=end,
        last_alpha=FINITE,
        lam_min=_clipped_lam(o),
        clip=read_threshold(o),
    )
    return _flow_sigmas(o, parts, end)


def dpm_singlestep(o: Options) -> Sections:
    """DPMSolverSinglestepScheduler."""
    _check_variance(o)
    if o.get("algorithm_type") == "sde-dpmsolver++":
        o.refuse("algorithm_type", "sde-dpmsolver++", "dpmsolver++ and dpmsolver")
    end = read_terminal(o)
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
        clip=read_threshold(o),
    )
    return _flow_sigmas(o, parts, end)


def unipc(o: Options) -> Sections:
    """UniPCMultistepScheduler."""
    o.only(solver_p=None, shift_terminal=None)
    for name in ("sigma_min", "sigma_max"):  # which uneven strides alone read
        o.get(name)
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
    end, clip = read_terminal(o), read_threshold(o)  # which its eps form leaves out
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


def deis(o: Options) -> Sections:
    """DEISMultistepScheduler."""
    o.choice("algorithm_type", "deis", dict.fromkeys(("deis", "dpmsolver", "dpmsolver++")))
    o.choice("solver_type", "logrho", dict.fromkeys(("logrho", "midpoint", "heun", "bh1", "bh2")))
    order = o.choice("solver_order", 2, {1: 1, 2: 2, 3: 3})
    falls = FEWER if o.get("lower_order_final", True) else False
    options = {"order": order - 1, "space": "log_rho", "lower_order_final": falls, "lam_min": None}
    parts = _log_snr(o, "deis", solver_options=options, end="repeat", clip=read_threshold(o))
    return _flow_sigmas(o, parts, "repeat")
