"""Trains a model: `python train.py [--config=configs/digits.py] [--workdir=runs/digits]`.

Any field of the config can be overridden: `--config.train.steps=500`. The same command continues
an interrupted run.
"""

import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

DEFAULT = "configs/digits.py"
# not the flag's own default: overrides would then be checked against it, whatever --config says
_CONFIG = config_flags.DEFINE_config_file("config", None, f"what to train; default {DEFAULT}")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "one of several processes; found without it where the environment says so"
)
_PLAN = flags.DEFINE_string(
    "plan", None, "train nothing: compile for devices like v5e:16x16 or h100:8, say what they need"
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "with --plan: a tenth of the time, and bounds from above of memory and traffic"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "where to; default runs/<name of the config>")


def main(argv):
    """Runs the training that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; overrides are --config.a.b=c")
    from ddim_jax import parallel

    parallel.use_cpu_cores()
    import jax

    from ddim_jax.training import loop, stages

    logging.set_verbosity(logging.WARNING)  # orbax logs every save in ten lines
    parallel.use_compilation_cache()
    try:
        parallel.join(_DISTRIBUTED.value)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    if _PLAN.value:
        _plan(_CONFIG.value, _PLAN.value)
        return
    name = os.path.splitext(
        os.path.basename(config_flags.get_config_filename(flags.FLAGS["config"]))
    )[0]
    workdir = _WORKDIR.value or os.path.join("runs", name)
    try:
        state = stages.train(_CONFIG.value, workdir)
    except (ValueError, OSError, loop.NotFiniteError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:  # while pairs are drawn or the step compiles
        sys.exit("train.py: stopped; the same command goes on from what is saved")
    if jax.process_index() != 0:
        return
    places = "*/samples" if _CONFIG.value.get("stages") else "samples"
    print(f"At step {int(state.step)}; pictures in {os.path.join(workdir, places)}")


def _plan(config, topology):
    """Prints what a train step needs on devices that may not be here; exits with 1 if too much."""
    from ddim_jax import planning

    if config.get("stages"):
        from ddim_jax.training import stages

        (folder, config), *later = stages.split(config, Path())
        print(f"stage {folder.name}; {len(later)} later ones start from what it learns")
    time = "minutes" if _QUICK.value else "minutes or, for large networks, hours (--quick: a tenth)"
    print(f"compiling for {topology}, which may take {time} ...", flush=True)
    try:
        plan = planning.plan_training(config, topology, _QUICK.value)
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    print(planning.report(plan, f"A train step of {config.train.batch_size} images"))
    if not plan.fits:
        sys.exit(f"train.py: {planning.advice(config, plan)}")


def _parse(argv):
    """absl's parser, with the default config and one line in place of a traceback."""
    if not any(arg.lstrip("-").split("=")[0] == "config" for arg in argv[1:]):
        argv = [argv[0], f"--config={DEFAULT}", *argv[1:]]
    try:
        rest = app.parse_flags_with_usage(argv)
        assert _CONFIG.value is not None
        return rest
    except (AttributeError, OSError) as error:
        message = " ".join(str(error).split()).strip("\"'")
        if message.isidentifier():  # of an override, which says no more than its name
            message = f"the config has no field {message!r} there; its file lists those it has"
        sys.exit(f"train.py: {message}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
