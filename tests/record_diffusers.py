"""Records runs of diffusers' schedulers, for tests/test_diffusers_schedulers.py.

    pip install -e '.[parity]'
    python -m tests.record_diffusers tests/fixtures/diffusers_schedulers.json.gz

A run is a scheduler with its options and a number of steps, on a smooth model of known formula, and
ends in 12 numbers. Classes that add noise are fed cosines, in the order in which they ask. Writes
what diffusers computes in its own precision, with the sample in float64 between steps.
"""

import gzip
import itertools
import json
import math
import sys
import warnings

import numpy as np

SHAPE = (2, 2, 3, 1)
INDEX = np.arange(np.prod(SHAPE))
LINEAR = {"beta_schedule": "linear"}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def model(x, t, numpy=np):
    """The model: smooth in x and t, and far from any solution that a solver could meet exactly."""
    return 0.5 * numpy.sin(1.1 * x + t / 300) + 0.4 * x * math.cos(t / 900)


def start():
    """What a run starts from, before the scheduler's scale."""
    return np.cos(1.3 * INDEX + 0.7)


def noise(k):
    """The k-th noise that a run asks for."""
    return np.sqrt(2) * np.cos(0.9 * INDEX + 1.7 * k + 0.2)


def grid(**axes):
    """All combinations of option values."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


SPACINGS = ["linspace", "leading", "trailing"]
SIGMAS = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
TYPES = ["epsilon", "v_prediction", "sample"]


def options_of_classes():
    """(class, its options) of all runs."""
    plain = {"clip_sample": False}
    for o in grid(timestep_spacing=SPACINGS, set_alpha_to_one=[True, False], steps_offset=[0, 1]):
        yield "DDIMScheduler", LINEAR | plain | o
        yield "PNDMScheduler", SD | o | {"skip_prk_steps": o["set_alpha_to_one"]}
        if o["timestep_spacing"] != "linspace":
            yield "DDIMInverseScheduler", SD | plain | o
    for kind in TYPES[1:]:
        yield "DDIMScheduler", SD | plain | {"prediction_type": kind}
    for skip in (True, False):
        yield "PNDMScheduler", COSINE | {"skip_prk_steps": skip}
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for name in ("DDIMScheduler", "DDPMScheduler"):
        yield name, SD | plain | zero | {"prediction_type": "v_prediction"}
    for o in grid(timestep_spacing=SPACINGS, variance_type=["fixed_small", "fixed_large"]):
        yield "DDPMScheduler", LINEAR | plain | o
    yield "DDPMScheduler", {"beta_schedule": "sigmoid"} | plain
    for o in grid(original_inference_steps=[50, 40], prediction_type=TYPES):
        yield "LCMScheduler", o
        yield "TCDScheduler", o
    for name in ("Euler", "Heun", "LMS", "KDPM2"):
        name += "DiscreteScheduler"
        for spacing, sigmas in itertools.product(SPACINGS, SIGMAS):
            o = {"timestep_spacing": spacing, "steps_offset": int(spacing == "leading")} | sigmas
            yield name, SD | o
        yield name, COSINE | {"timestep_spacing": "leading"}
        if name != "KDPM2DiscreteScheduler":
            yield name, LINEAR | {"prediction_type": "sample"}
    yield "EulerDiscreteScheduler", SD | zero | {"prediction_type": "v_prediction"}
    yield "EulerDiscreteScheduler", SD | {"final_sigmas_type": "sigma_min"}
    yield "HeunDiscreteScheduler", {"beta_schedule": "exp"}
    svd = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    yield "EulerDiscreteScheduler", SD | svd
    ends = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
    yield "EulerDiscreteScheduler", SD | svd | ends | {"timestep_spacing": "leading"}
    for name in ("EulerAncestral", "KDPM2Ancestral"):
        for spacing in SPACINGS:
            yield name + "DiscreteScheduler", SD | {"timestep_spacing": spacing}
    yield "KDPM2AncestralDiscreteScheduler", SD | {"use_karras_sigmas": True}
    for spacing, sigmas in itertools.product(SPACINGS[::2], SIGMAS[:2]):
        yield "DPMSolverSDEScheduler", SD | {"timestep_spacing": spacing} | sigmas
    yield from multistep_options()
    for sigmas, shift in itertools.product(SIGMAS, (1.0, 3.0)):
        yield "FlowMatchEulerDiscreteScheduler", {"shift": shift} | sigmas
    yield "FlowMatchEulerDiscreteScheduler", {"shift": 2.5, "stochastic_sampling": True}
    yield "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}
    edm = {"sigma_schedule": ["karras", "exponential"], "final_sigmas_type": ["zero", "sigma_min"]}
    for o in grid(**edm):
        yield "EDMEulerScheduler", o | {"sigma_max": 40.0, "rho": 5.0}
        yield "EDMDPMSolverMultistepScheduler", o
        yield "EDMDPMSolverMultistepScheduler", o | {"solver_order": 3}
    for sigmas, order in itertools.product(SIGMAS, (1, 3)):  # where single precision loses most
        yield "DEISMultistepScheduler", COSINE | sigmas | {"solver_order": order}
        yield "DEISMultistepScheduler", LINEAR | sigmas | {"solver_order": order}


def multistep_options():
    """(class, options) of DPM-Solver, UniPC and DEIS."""
    multi, single = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    unipc, deis = "UniPCMultistepScheduler", "DEISMultistepScheduler"
    ends = ["zero", "sigma_min"]
    for order, end in itertools.product((1, 2, 3), ends):
        o = {"solver_order": order, "final_sigmas_type": end}
        yield multi, LINEAR | o
        yield multi, SD | o | {"algorithm_type": "sde-dpmsolver++"}
        yield single, LINEAR | o
        yield single, LINEAR | o | {"lower_order_final": True, "solver_type": "heun"}
        for kind, x0 in itertools.product(("bh1", "bh2"), (True, False)):
            if x0 or end == "sigma_min":
                yield unipc, SD | o | {"solver_type": kind, "predict_x0": x0}
        if end == "sigma_min":
            for kind in ("midpoint", "heun"):
                eps = {"algorithm_type": "dpmsolver", "solver_type": kind}
                yield multi, SD | o | eps | {"prediction_type": "v_prediction"}
                yield single, SD | o | eps
            yield deis, LINEAR | {"solver_order": order}
            yield deis, SD | {"solver_order": order, "lower_order_final": False}
    flow = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    for name in (multi, single, unipc, deis):
        for sigmas, end in itertools.product(SIGMAS, ends):
            o = sigmas if name == deis else sigmas | {"final_sigmas_type": end}
            if name != deis or end == "zero":
                yield name, SD | o
        yield name, SD | {"solver_order": 3} | flow
        if name != single:
            for spacing, offset in itertools.product(SPACINGS[1:], (0, 1)):
                yield name, SD | {"timestep_spacing": spacing, "steps_offset": offset}
        yield name, COSINE
        yield name, COSINE | {"use_karras_sigmas": True}
        yield name, COSINE | {"prediction_type": "sample"}
    for name in (multi, unipc):
        zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
        yield name, SD | zero
    yield multi, SD | {"use_lu_lambdas": True}
    yield multi, SD | {"euler_at_final": True, "final_sigmas_type": "sigma_min"}
    yield multi, SD | {"lower_order_final": False}
    yield multi, SD | {"thresholding": True}
    yield multi, COSINE | {"lambda_min_clipped": -5.1}
    yield single, COSINE | {"lambda_min_clipped": -5.1, "prediction_type": "epsilon"}
    yield unipc, SD | {"disable_corrector": [0, 2]}
    yield unipc, SD | {"lower_order_final": False, "final_sigmas_type": "sigma_min"}


def cases():
    """(class, options, steps) of all runs; the steps go round, and all see both sides of 15."""
    rounds = {}
    for name, options in options_of_classes():
        k = rounds[name] = rounds.get(name, -1) + 1
        few = (4, 7, 10) if name in ("LCMScheduler", "TCDScheduler") else (7, 10, 20, 25)
        yield name, options, few[k % len(few)]


def record(name, options, steps):
    """The final sample, flat; None where it is not finite."""
    import diffusers
    import torch

    asked = itertools.count()

    def drawn(*_, **__):
        return torch.tensor(noise(next(asked)).reshape(SHAPE))

    module = sys.modules[getattr(diffusers, name).__module__]
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = drawn
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    if name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler = _brownian(drawn)
    if hasattr(scheduler, "set_begin_index"):  # else it starts late where two times are equal
        scheduler.set_begin_index(0)
    if name == "DEISMultistepScheduler":  # whose integrals cancel in single precision
        scheduler.sigmas = scheduler.sigmas.double()
    x = torch.tensor(start().reshape(SHAPE)) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = model(given.double(), float(t), torch)
        x = scheduler.step(output, t, x).prev_sample.double()
    final = x.numpy().ravel()
    return [float(f"{value:.9g}") for value in final] if np.isfinite(final).all() else None


def _brownian(drawn):
    """A path whose first half and second half are fresh noises."""
    halves = {}

    def sample(sigma, after):
        sigma, after = float(sigma), float(after)
        if sigma not in halves:
            halves[sigma] = (after, drawn())
            return halves[sigma][1]
        middle, first = halves[sigma]
        whole, part = sigma - after, sigma - middle
        return (part**0.5 * first + (whole - part) ** 0.5 * drawn()) / whole**0.5

    return sample


def main(path):
    """Writes all runs."""
    warnings.simplefilter("ignore")
    runs = []
    for name, options, steps in cases():
        try:
            final = record(name, options, steps)
        except (
            AssertionError,
            IndexError,
            ValueError,
        ) as error:  # some options fail there for some steps
            print(type(error).__name__, error, name, options, steps)
            continue
        if final is None:
            print("not finite:", name, options, steps)
        else:
            runs.append({"scheduler": name, "config": options, "steps": steps, "final": final})
    text = "[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n"
    with open(path, "wb") as file:
        file.write(gzip.compress(text.encode(), mtime=0))
    print(len(runs), "runs")


if __name__ == "__main__":
    main(sys.argv[1])
