"""Draws samples: `python sample.py [--checkpoint=runs/digits] [--solver=ddim] [--steps=20] ...`.

Without --checkpoint it draws digits from the network that comes with the package. The picture goes
to --out: a grid (.png), all samples as arrays (.npz), or, for a name without a dot, a folder of PNG
files, which goes on where it was stopped and which any number of processes fill.
"""

import ast
import os
import sys
import time
from pathlib import Path

from absl import app, flags, logging

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "digits", "a training workdir, an exported .safetensors file, or a bundled name"
)
_SOLVER = flags.DEFINE_string(
    "solver", None, "a name in ddim_jax.solvers.SOLVERS, or adaptive; default the checkpoint's"
)
_STRIDE = flags.DEFINE_string(
    "stride", None, "a name in ddim_jax.strides.STRIDES or a learned .json; default the solver's"
)
_STEPS = flags.DEFINE_integer("steps", None, "intervals of the stride; default the checkpoint's")
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-3, "of solver adaptive: error of a step")
_ETA = flags.DEFINE_float("eta", None, "of solver ddim: 0 deterministic ... 1 DDPM")
_SOLVER_OPTIONS = flags.DEFINE_list("solver_options", [], "like order=3,lower_order_final=False")
_STRIDE_OPTIONS = flags.DEFINE_list("stride_options", [], "like rho=5,lam_min=-4")
_GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "1: none; 0: without labels; default the checkpoint's"
)
_GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval", ["0", "inf"], "low,high in sigma/alpha outside of which there is none"
)
_GUIDANCE_RESCALE = flags.DEFINE_float("guidance_rescale", 0.0, "0..1")
_CLIP = flags.DEFINE_enum(
    "clip", None, ["none", "static", "dynamic"], "of the clean estimate; default the checkpoint's"
)
_LABELS = flags.DEFINE_list("labels", [], "classes, in rotation; default all")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 40, "how many")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "how many at a time")
_SEED = flags.DEFINE_integer("seed", 0, "of the whole set")
_OUT = flags.DEFINE_string(
    "out", None, ".png grid, .npz, or a folder; default samples/NAME-0001.png, ..."
)
_TRAJECTORY = flags.DEFINE_string("trajectory", None, "also the clean estimates as .gif or .png")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace existing files")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "one of several processes; found without it where the environment says so"
)
_PLAN = flags.DEFINE_string(
    "plan", None, "draw nothing; say what a batch over devices like v5e:4x4 or h100:8 needs"
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "with --plan: a tenth of the time, and bounds from above of memory and traffic"
)
_PROGRESS = flags.DEFINE_bool("progress", False, "a bar over network evaluations")


def main(argv):
    """Draws what the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    start = time.perf_counter()
    from ddim_jax import parallel

    parallel.use_cpu_cores()
    logging.set_verbosity(logging.WARNING)
    parallel.use_compilation_cache()
    try:
        parallel.join(_DISTRIBUTED.value)
        if _PLAN.value:
            print(_plan())
        else:
            print(f"{_draw()}, {time.perf_counter() - start:.1f} s in all")
    except (ValueError, OSError) as error:
        sys.exit(f"sample.py: {error}")


def _draw():
    """Checks the flags, draws, writes; returns what was done."""
    import jax

    from ddim_jax import files, generation
    from ddim_jax.probability_flow import Tolerance

    trajectory, out = _TRAJECTORY.value, _OUT.value
    if out is not None and not Path(out).suffix:
        return _draw_folder(Path(out))
    if jax.process_count() > 1:
        raise ValueError("several processes draw into a folder; say which by --out=FOLDER")
    if trajectory is not None:
        trajectory = files.check_new(trajectory, (".gif", ".png"), "--trajectory", _OVERWRITE.value)
    if out is not None:
        out = files.check_new(out, (".png", ".npz"), "--out", _OVERWRITE.value)
    model, table, guidance, how = _sampler()
    result = generation.generate(
        model,
        table,
        labels=generation.make_labels(model, _int_labels(), _NUM_SAMPLES.value),
        num_samples=_NUM_SAMPLES.value,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        guidance=guidance,
        clip=_CLIP.value or model.config.sample.clip,
        trajectory=trajectory is not None,
        show_progress=_PROGRESS.value,
    )
    out = out or files.next_free(Path("samples"), model.name)
    _write(result, out, trajectory)
    if isinstance(table, Tolerance):
        spread = f"{result.nfe.min()}..{result.nfe.max()} (mean {result.nfe.mean():.0f})"
        how = f"{how}, NFE {spread}"
    if guidance is not None and not model.experiment.takes_guidance:
        how += " x 2 forward passes (guided)"
    return f"{out}: {len(result.images)} samples, {how}\n" + _times(len(result.images), result)


def _draw_folder(folder: Path) -> str:
    """Draws this process's samples of a large set; returns what was done."""
    from ddim_jax import sets
    from ddim_jax.probability_flow import Tolerance

    if _TRAJECTORY.value is not None or _OVERWRITE.value:
        raise ValueError(f"--out={folder} is a folder: it takes no --trajectory and no --overwrite")
    model, table, guidance, how = _sampler()
    if isinstance(table, Tolerance):
        raise ValueError("--solver=adaptive does not draw into a folder; use --out=NAME.npz")
    drawn = sets.draw(
        folder,
        model,
        table,
        num_samples=_NUM_SAMPLES.value,
        labels=_int_labels(),
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        guidance=guidance,
        clip=_CLIP.value or model.config.sample.clip,
    )
    before = f" ({drawn.found} more were there)" if drawn.found else ""
    return f"{folder}: {drawn.count} samples{before}, {how}\n" + _times(drawn.count, drawn)


def _times(count: int, done) -> str:
    rate = f", {count / done.seconds:.1f} images/s" if done.seconds else ""
    return f"compiled in {done.compile_seconds:.1f} s, sampled in {done.seconds:.2f} s{rate}"


def _plan() -> str:
    """What drawing a batch needs on devices that may not be here."""
    from ddim_jax import planning

    model, table, guidance, how = _sampler()
    print(f"compiling for {_PLAN.value}, which may take minutes ...")
    clip = _CLIP.value or model.config.sample.clip
    plan = planning.plan_sampling(
        model, table, _PLAN.value, batch_size=_BATCH_SIZE.value, guidance=guidance, clip=clip,
        quick=_QUICK.value,
    )  # fmt: skip
    text = planning.report(plan, f"Drawing {_BATCH_SIZE.value} samples, {how},")
    if not plan.fits:
        print(text)
        raise ValueError("it does not fit; take a smaller --batch_size or more devices")
    return text


def _sampler():
    """What the flags name: the network, the table or tolerance, guidance, and a description."""
    from ddim_jax import generation
    from ddim_jax.models import pretrained

    model = pretrained.load(_CHECKPOINT.value)
    guidance = _guidance(model)
    table, how = _tolerance() if _SOLVER.value == "adaptive" else _table(model)
    generation.check(model, _NUM_SAMPLES.value, _BATCH_SIZE.value, guidance)
    return model, table, guidance, how


def _table(model):
    """The table, and its description; what the flags leave open is the checkpoint's own choice."""
    from ddim_jax import experiment
    from ddim_jax.solvers import SOLVERS

    if _given(_TOLERANCE):
        solver = _SOLVER.value or model.config.sample.solver
        raise ValueError(f"--tolerance is for --solver=adaptive, got {solver}")
    solver_options = _options(_SOLVER_OPTIONS)
    solver_options |= {} if _ETA.value is None else {"eta": _ETA.value}
    own, solver, stride, steps = model.config.sample, _SOLVER.value, _STRIDE.value, _STEPS.value
    stride_options = _options(_STRIDE_OPTIONS)
    if solver is None:
        solver = own.solver
        solver_options = dict(own.get("solver_options") or {}) | solver_options
    if stride is None and solver == own.solver:
        stride = own.stride
        stride_options = dict(own.get("stride_options") or {}) | stride_options
    if stride and stride.endswith(".json"):
        _say_differences(model, solver, stride)
    elif steps is None:
        steps = own.steps
    table = experiment.build_table(
        model.experiment.schedule,
        solver,
        stride,
        steps,
        solver_options=solver_options,
        stride_options=stride_options,
    )
    return table, f"{solver}, {stride or SOLVERS[solver].stride} stride, {table.nfe} NFE"


def _options(flag) -> dict:
    """`name=value,...` as a dict; values that are Python literals are read as such."""
    found = {}
    for part in flag.value:
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--{flag.name} must be like name=value,name=value, got {part!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _say_differences(model, solver: str, stride: str) -> None:
    from ddim_jax.models import pretrained
    from ddim_jax.strides import files

    differences = files.load(stride).differences(
        solver=solver,
        guidance=_scale(model),
        weights=pretrained.fingerprint(model.params),
    )
    for difference in differences:
        print(f"note: {stride}: {difference}", file=sys.stderr)


def _tolerance():
    from ddim_jax.probability_flow import Tolerance

    for flag in (_STEPS, _STRIDE, _ETA, _SOLVER_OPTIONS, _STRIDE_OPTIONS, _TRAJECTORY):
        if _given(flag):
            raise ValueError(
                f"--solver=adaptive chooses its own steps and takes no --{flag.name}; "
                "say how exact it must be with --tolerance"
            )
    tolerance = Tolerance(_TOLERANCE.value, _TOLERANCE.value).validate()
    return tolerance, f"adaptive, tolerance {_TOLERANCE.value:g}"


def _given(flag) -> bool:
    return not flags.FLAGS[flag.name].using_default_value


def _int_labels() -> list[int]:
    try:
        return [int(label) for label in _LABELS.value]
    except ValueError:
        raise ValueError(f"labels must be whole numbers like 3,1,4, got {_LABELS.value}") from None


def _scale(model) -> float:
    given = _GUIDANCE_SCALE.value
    return model.config.sample.get("guidance_scale", 1.0) if given is None else given


def _guidance(model):
    from ddim_jax.guidance import Guidance

    try:
        low, high = (float(end) for end in _GUIDANCE_INTERVAL.value)
    except ValueError:
        raise ValueError(
            f"guidance_interval must be low,high like 0.2,5, got {_GUIDANCE_INTERVAL.value}"
        ) from None
    scale = _scale(model)
    return None if scale == 1 else Guidance(scale, (low, high), _GUIDANCE_RESCALE.value)


def _write(result, out: Path, trajectory: Path | None) -> None:
    import numpy as np

    from ddim_jax import data

    columns = 10 if len(result.images) % 10 == 0 else int(np.ceil(len(result.images) ** 0.5))
    scale = max(1, 64 // result.images.shape[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        labels = {} if result.labels is None else {"labels": result.labels}
        np.savez(out, images=result.images, **labels)
    else:
        sheet = data.grid(result.images, columns, result.labels, scale=scale)
        data.save_png(out, sheet, overwrite=_OVERWRITE.value)
    if trajectory is None:
        return
    trajectory.parent.mkdir(parents=True, exist_ok=True)
    frames = result.trajectory
    if trajectory.suffix == ".gif":
        sheets = [data.grid(frame, columns, scale=scale) for frame in frames]
        data.save_gif(trajectory, [*sheets, *sheets[-1:] * 10], 100, overwrite=_OVERWRITE.value)
    else:  # rows: samples, columns: network evaluations
        shown = np.unique(np.linspace(0, len(frames) - 1, min(12, len(frames))).round().astype(int))
        tiles = frames[shown, :8].swapaxes(0, 1).reshape(-1, *frames.shape[2:])
        sheet = data.grid(tiles, len(shown), [k + 1 for k in shown], scale=scale)
        data.save_png(trajectory, sheet, overwrite=_OVERWRITE.value)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
