"""Trains a model: `python train.py [--config=digits] [--workdir=runs/digits]`.

Any field of the config can be overridden: `--config.train.steps=500`. The same command resumes an
interrupted run.
"""

import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from ddim_jax import interrupts
from ddim_jax.commands import configs
from ddim_jax.commands.flags import DISTRIBUTED, PLAN, QUICK, list_in_help, short_help

DEFAULT = "digits"
# no default of the flag's own: overrides would then be checked against it, whatever --config says
CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"what to train: a file, or a name in configs/; default {DEFAULT}"
)
WORKDIR = flags.DEFINE_string("workdir", None, "where to; default runs/<name of the config>")


def run(argv: list[str]) -> None:
    """Runs the training that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; overrides are --config.a.b=c")
    from ddim_jax import parallel

    parallel.use_cpu_cores()
    import jax

    from ddim_jax.training import loop, stages
    from ddim_jax.training.signals import StopOnSignal

    logging.set_verbosity(logging.WARNING)  # orbax logs every save in ten lines
    parallel.use_compilation_cache()
    try:
        parallel.join(DISTRIBUTED.value)
        if PLAN.value:
            _plan(CONFIG.value, PLAN.value)
            return
        interrupts.keeping("the same command resumes from what is saved")
        workdir = WORKDIR.value or os.path.join("runs", _config_name())
        state = stages.train(CONFIG.value, workdir)
    except (ValueError, OSError, loop.NotFiniteError) as error:
        sys.exit(f"train.py: {error}")
    if jax.process_index() == 0:
        places = "*/samples" if CONFIG.value.get("stages") else "samples"
        print(f"At step {int(state.step)}; pictures in {os.path.join(workdir, places)}")
    if StopOnSignal.stopped:
        sys.exit(interrupts.status())


def _config_name() -> str:
    return Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _plan(config, topology: str) -> None:
    """Prints what a train step needs on devices that may not be here.

    Raises:
        ValueError: it does not fit.
    """
    from ddim_jax import planning

    if config.get("stages"):
        from ddim_jax.training import stages

        (folder, config), *later = stages.split(config, Path())
        print(f"stage {folder.name}; {len(later)} later ones start from what it learns")
    time = "minutes" if QUICK.value else "minutes or, for large networks, hours (--quick: a tenth)"
    print(f"compiling for {topology}, which may take {time} ...", flush=True)
    plan = planning.plan_training(config, topology, QUICK.value)
    print(planning.report(plan, f"A train step of {config.train.batch_size} images"), flush=True)
    if not plan.fits:
        raise ValueError(planning.advice(config, plan))


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with configs found by name and one line in place of a traceback."""
    try:
        rest = app.parse_flags_with_usage(configs.resolve(argv, DEFAULT))
        assert CONFIG.value is not None
        return rest
    except (AttributeError, OSError) as error:
        message = " ".join(str(error).split()).strip("\"'")
        if message.isidentifier():  # of an override, which says no more than its name
            message = f"the config has no field {message!r} there; its file lists those it has"
        sys.exit(f"train.py: {message}")


def main(argv: list[str] | None = None) -> None:
    """The command line; of this process by default."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    list_in_help(run.__module__)
    argv = short_help(["train.py", *argv] if argv else sys.argv)
    app.run(run, argv=argv, flags_parser=_parse)


if __name__ == "__main__":
    main()
