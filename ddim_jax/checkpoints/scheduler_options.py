"""Reading the options of diffusers' schedulers: what the classes share."""

from collections.abc import Mapping
from typing import Any

import numpy as np

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
FINITE = 2.0**-12
"""alpha of the last level of betas without terminal signal, where the log-SNR must be finite."""


class Options:
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

    def check_all_known(self, others: set[str]) -> None:
        """Raises ValueError for an option that has not been asked for and is none of the others."""
        unknown = sorted(set(self.given) - self.asked - others)
        if unknown:
            raise ValueError(
                f"{self.name}: option {unknown[0]!r} is not known; it has "
                f"{', '.join(sorted(self.asked))}"
            )


def make_schedule(
    o: Options,
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
        more |= {"zero_terminal_snr": True, "last_alpha": last_alpha}
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


def make_parts(
    o: Options,
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


def read_spacing(o: Options, default: str) -> dict[str, Any]:
    """`spacing` and `offset` of a stride."""
    spacing = o.choice(
        "timestep_spacing", default, {k: k for k in ("linspace", "leading", "trailing")}
    )
    offset = o.get("steps_offset", 0)
    return {"spacing": spacing} | ({"offset": offset} if offset and spacing == "leading" else {})


def read_clip(o: Options, default: bool, static: str) -> str:
    """The clip of `clip_sample` and `thresholding`, which wins."""
    thresholds = read_threshold(o, static)
    clips = o.get("clip_sample", default)
    if clips and thresholds == "none":
        o.only(clip_sample_range=1.0)
        return static
    o.get("clip_sample_range")
    return thresholds


def read_threshold(o: Options, static: str = "static") -> str:
    """The clip of `thresholding`: whose threshold lies between 1 and sample_max_value."""
    o.get("dynamic_thresholding_ratio")
    if not o.get("thresholding", False):
        o.get("sample_max_value")
        return "none"
    o.only(sample_max_value=1.0)
    return static


def read_uneven(o: Options, bounded: bool = True) -> str | None:
    """The stride of `use_..._sigmas`, if any.

    Where `bounded`, the class would go from sigma_max to sigma_min, even if these are no options of
    its own.
    """
    strides = {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "log_snr",
        "use_beta_sigmas": "beta",
    }
    used = [name for name in strides if o.get(name, False)]
    if len(used) > 1:
        raise ValueError(f"{o.name}: only one of {', '.join(used)} can be used")
    if used and bounded:
        for name in ("sigma_min", "sigma_max"):
            if (value := o.get(name)) is not None:
                o.refuse(name, value, f"null with {used[0]}")
    return strides[used[0]] if used else None


def read_terminal(o: Options) -> str:
    """The stride's terminal, "zero" or "zero_to_min", of `final_sigmas_type`."""
    ends = {"zero": "zero", "sigma_min": "zero_to_min"}
    return o.choice("final_sigmas_type", "zero", ends)
