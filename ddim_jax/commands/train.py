"""Trains a model: `python train.py [--config=digits] [--workdir=runs/digits]`.

Any field of the config can be overridden: `--config.train.steps=500`. The same command resumes an
interrupted run.
"""

import os
import sys
import textwrap
from pathlib import Path

from absl import app, flags, logging

from ddim_jax import interrupts
from ddim_jax.commands.flags import DISTRIBUTED, PLAN, QUICK, check_values, run_command

CONFIG = flags.DEFINE_string(
    "config", "digits", "what to train: a file, or a name in configs/; --config.a.b=c sets a field"
)
WORKDIR = flags.DEFINE_string("workdir", None, "where to; default runs/<name of the config>")


def run(argv: list[str], overrides: list) -> None:
    """Runs the training that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; overrides are --config.a.b=c")
    from ddim_jax import command_line, parallel

    parallel.use_cpu_cores()
    import jax

    from ddim_jax.commands import configs
    from ddim_jax.training import loop, stages
    from ddim_jax.training.signals import StopOnSignal

    command_line.show_notes()
    logging.set_verbosity(logging.WARNING)  # orbax logs every save in ten lines
    parallel.use_compilation_cache()
    try:
        check_values(run.__module__)
        config = configs.load(CONFIG.value, overrides)
        if QUICK.value and PLAN.value is None:
            raise ValueError("--quick is for --plan, say for which devices, like --plan=v5e:4x4")
        parallel.join(DISTRIBUTED.value)
        if PLAN.value is not None:
            _plan(config, PLAN.value)
            return
        interrupts.keeping("the same command resumes from what is saved")
        name = Path(CONFIG.value.partition(":")[0]).stem
        workdir = Path(WORKDIR.value or os.path.join("runs", name)).expanduser()
        state = stages.train(config, workdir)
    except (ValueError, OSError, loop.NotFiniteError) as error:
        sys.exit(f"{command_line.called('train.py')}: {command_line.with_flags(str(error), ())}")
    if StopOnSignal.stopped:
        sys.exit(interrupts.status())
    if jax.process_index() == 0:
        folder = workdir / ("*/samples" if config.get("stages") else "samples")
        drawn = any(workdir.glob("*/samples/*.png" if config.get("stages") else "samples/*.png"))
        print(f"At step {int(state.step)}; " + (f"pictures in {folder}" if drawn else str(workdir)))


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


def _about_config() -> str:
    """What a config says of itself, if one is named; else the names of all."""
    from ddim_jax import command_line
    from ddim_jax.commands import configs

    if not CONFIG.present:
        names = textwrap.fill(f"--config is one of {', '.join(configs.names())}.", 80)
        return f"\n{names}\n--config=NAME --help says what one trains, and by what command.\n"
    try:
        return f"\n{CONFIG.value}: {configs.about(CONFIG.value)}\n"
    except (ValueError, OSError) as error:
        sys.exit(f"{command_line.called('train.py')}: {error}")


def main(argv: list[str] | None = None) -> None:
    """The command line; of this process by default."""
    from ddim_jax.commands import configs

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments, overrides = configs.split(["train.py", *argv] if argv else sys.argv)
    run_command(run.__module__, lambda rest: run(rest, overrides), arguments, _about_config)


if __name__ == "__main__":
    main()
