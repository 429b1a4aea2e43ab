"""The flags of `sample.py` that say how to draw, and the recipe that they make."""

from absl import flags

from ddim_jax.commands.flags import define_whole

SOLVER = flags.DEFINE_string(
    "solver", None, "a name in ddim_jax.solvers.SOLVERS, or adaptive; default the checkpoint's"
)
STRIDE = flags.DEFINE_string(
    "stride", None, "a name in ddim_jax.strides.STRIDES or a learned .json; default the solver's"
)
STEPS = define_whole("steps", None, "intervals of the stride; default the checkpoint's")
TOLERANCE = flags.DEFINE_float("tolerance", None, "of solver adaptive: error of a step (1e-3)")
ETA = flags.DEFINE_float("eta", None, "of solver ddim: 0 deterministic ... 1 DDPM")
SOLVER_OPTIONS = flags.DEFINE_list("solver_options", [], "like order=3,lower_order_final=False")
STRIDE_OPTIONS = flags.DEFINE_list("stride_options", [], "like rho=5,lam_min=-4")
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "1: none; 0: without labels; default the checkpoint's"
)
GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval", None, "low,high in sigma/alpha outside of which there is none"
)
GUIDANCE_CHANNELS = define_whole(
    "guidance_channels", None, "guide so many of the first channels, as DiT and SiT do 3 of 4"
)
GUIDANCE_RESCALE = flags.DEFINE_float("guidance_rescale", None, "0..1")
CLIP = flags.DEFINE_enum(
    "clip",
    None,
    ["none", "static", "static_x0", "dynamic"],
    "of the clean estimate; default the checkpoint's",
)


def recipe(own):
    """A model's own `Recipe`, with what the flags replace.

    Raises:
        ValueError: a flag that its solver does not take; an interval or options that are none.
    """
    from ddim_jax.names import parse_options  # here: --help is to be quick
    from ddim_jax.recipe import ADAPTIVE

    if STRIDE.value == "":
        raise ValueError("--stride is empty: give it a name, or leave it out")
    chosen = own.replace(
        solver=SOLVER.value,
        guidance_scale=GUIDANCE_SCALE.value,
        guidance_interval=_interval(),
        guidance_rescale=GUIDANCE_RESCALE.value,
        guidance_channels=GUIDANCE_CHANNELS.value,
        clip=CLIP.value,
    )
    if chosen.solver == ADAPTIVE:
        for name in ("steps", "stride", "eta", "solver_options", "stride_options", "trajectory"):
            if not flags.FLAGS[name].using_default_value:
                raise ValueError(
                    f"--solver=adaptive chooses its own steps and takes no --{name}; "
                    "say how exact it must be with --tolerance"
                )
        tolerance = TOLERANCE.value
        return chosen.replace(
            solver_options=None if tolerance is None else {"tolerance": tolerance}
        )
    if not flags.FLAGS["tolerance"].using_default_value:
        raise ValueError(f"--tolerance is for --solver=adaptive, got {chosen.solver}")
    chosen = chosen.replace(stride=STRIDE.value, steps=STEPS.value)
    options = parse_options(SOLVER_OPTIONS.value, "--solver_options")
    options |= {} if ETA.value is None else {"eta": ETA.value}
    stride_options = parse_options(STRIDE_OPTIONS.value, "--stride_options")
    return chosen.replace(
        solver_options={**chosen.solver_options, **options},
        stride_options={**chosen.stride_options, **stride_options},
    )


def _interval() -> tuple[float, float] | None:
    if GUIDANCE_INTERVAL.value is None:
        return None
    try:
        low, high = (float(end) for end in GUIDANCE_INTERVAL.value)
    except ValueError:
        raise ValueError(
            f"guidance_interval must be low,high like 0.2,5, got {GUIDANCE_INTERVAL.value}"
        ) from None
    return low, high
