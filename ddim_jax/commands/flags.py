"""Flags that `sample.py` and `train.py` share, and how both begin."""

import sys
from collections.abc import Callable

from absl import app, flags

from ddim_jax import names

DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "join other processes; found without it where the environment names them"
)
PLAN = flags.DEFINE_string(
    "plan", None, "only compile, for devices like v5e:16x16 or h100:8, and say what they need"
)
QUICK = flags.DEFINE_bool(
    "quick", False, "with --plan: a tenth of the time, and upper bounds of memory and traffic"
)


class _WholeParser(flags.IntegerParser):
    """Of whole numbers, which may be written 2.0."""

    def convert(self, argument):
        return names.whole_number(str(argument))


def define_whole(name: str, default: int | None, text: str) -> flags.FlagHolder:
    """Defines a flag of the calling module that holds a whole number; `text` is its help."""
    return flags.DEFINE(_WholeParser(), name, default, text)


flags.disclaim_key_flags()


def list_in_help(module: str) -> None:
    """Makes --help list the flags of a module and those shared, whatever script was started."""
    for name in (module, __name__):
        for flag in flags.FLAGS.get_key_flags_for_module(name):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def check_values(module: str) -> None:
    """Checks that no flag of a module has taken the next one for its value: `--out --overwrite`.

    Raises:
        ValueError: one has.
    """
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        values = flag.value if isinstance(flag.value, list) else [flag.value]
        if taken := [one for one in values if isinstance(one, str) and one.startswith("--")]:
            raise ValueError(f"--{flag.name} needs a value, and the next flag follows: {taken[0]}")


def run_command(
    module: str,
    run: Callable[[list[str]], None],
    argv: list[str],
    about: Callable[[], str] = str,
) -> None:
    """Runs a command, or lists its flags: `-h` and `--help`, with which absl would fail.

    Args:
        module: whose flags it has, beside those shared.
        run: the command, called with its name and the arguments that are no flags.
        argv: its name, then its arguments.
        about: what `--help` says after the flags; called when the others are read.
    """
    list_in_help(module)
    before = argv[: argv.index("--")] if "--" in argv else argv
    others = [argument for argument in before if argument not in ("-h", "--help")]
    if len(others) == len(before):
        app.run(run, argv=argv)
        return
    flags.FLAGS(others, known_only=True)
    app.usage(shorthelp=True, writeto_stdout=True)
    print(about(), end="")
