"""Every flag of every command over missing, empty, 0, -1, huge, nan, inf and a word.

A command either does what it is asked for or says in one line why not, and then leaves no file.
Networks are not run: a stub stands for compiled programs, and what takes long is cut short.
"""

import functools
import shutil
import signal

import jax
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from configs import digits_reflow
from ddim_jax import batch_loop, checkpoints, data, edit, experiment
from ddim_jax.adaptive_sampling import AdaptiveResult, Tolerance
from ddim_jax.checkpoints import __main__ as export
from ddim_jax.commands import sample
from ddim_jax.editing import actions, inpainting
from ddim_jax.evaluation import (
    feature_networks,
    likelihood,
    metrics,
    sanity_check,
    scores,
    straightness,
    times,
    tradeoff,
)
from ddim_jax.sampling import RunResult
from ddim_jax.solvers import State
from ddim_jax.strides import fit
from tests.tiny import tiny

VALUES = {
    "missing": None, "empty": "", "0": "0", "-1": "-1", "huge": "1" + "0" * 12, "nan": "nan",
    "inf": "inf", "word": "word",
}  # fmt: skip


class Hung(Exception):
    """It computes and computes before any check."""


def hung(number, frame):
    raise Hung


class Reached(Exception):
    """All checks are passed, and the work would begin."""


def reached(*args, **options):
    raise Reached


def program(params, table, x, keys, inputs, guidance, known):
    """What a compiled sampler would return: its start."""
    if x is None:
        x = np.zeros((len(keys), 28, 28, 1), np.float32)
    state = x if isinstance(x, State) else State(x, x)
    x = np.tanh(np.asarray(state.evaluate))
    if isinstance(table, Tolerance):
        ones = np.ones(len(x), np.int32)
        return AdaptiveResult(x, 7 * ones, 2 * ones, 0 * ones, np.zeros(len(x), bool))
    collected = np.broadcast_to(x, (len(table.slot), *x.shape))
    return RunResult(x, State(x, x), {"x": collected, "x0": collected})


@functools.cache
def flow():
    model = experiment.build(tiny(digits_reflow.get_config()))
    return model.replace(params=jax.jit(model.init)(jax.random.key(0)), name="flow")


@pytest.fixture
def stubs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plain = functools.cache(checkpoints.load)

    def load(name, *, dtype=None, lora=()):
        return flow() if name == "flow" else plain(name, dtype=dtype, lora=tuple(lora))

    for module in (checkpoints, export):
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(feature_networks, "load", functools.cache(feature_networks.load))
    monkeypatch.setattr(data, "load", functools.cache(data.load))
    monkeypatch.setattr(batch_loop.Generator, "_compiled", lambda self, arguments: program)
    for module in (actions, inpainting):
        monkeypatch.setattr(module, "judge", lambda model, rows: {})
    monkeypatch.setattr(tradeoff, "announce", reached)
    monkeypatch.setattr(fit, "make_teacher_data", reached)
    monkeypatch.setattr(likelihood, "measure", reached)
    monkeypatch.setattr(sanity_check.metrics, "check_count", metrics.check_count)
    monkeypatch.setattr(scores, "_real_features", reached)

    def objective(self, lam):
        self._solver(self._model.schedule, self.times(lam)).validate()
        return float(np.sum(lam))

    monkeypatch.setattr(times.FrechetObjective, "__call__", objective)


def run_sample(argv):
    absl_flags.FLAGS(["sample.py"])
    with flagsaver.flagsaver():
        absl_flags.FLAGS(["sample.py", "--num_samples=2", "--steps=2", *argv])
        sample.run(["sample.py"])


def parsers():
    """Command -> (function of its arguments, names of its flags, arguments it always needs)."""
    absl_flags.FLAGS(["sample.py"])
    own = [flag.name for flag in absl_flags.FLAGS.get_key_flags_for_module(sample.__name__)]
    yield "sample", run_sample, own, []
    needed = {
        "arithmetic": ["--toward=digits", "--away=digits"],
        "translate": ["--toward=3"],
        "interpolate": ["--num=2"],
    }
    for work, options in edit.COMMANDS.items():
        name = work.__name__
        shared = edit.DIRECTION if name in ("arithmetic", "attribute") else edit.LABEL
        always = ["--num=2", "--steps=2", *needed.get(name, ())]
        names = edit.COMMON | shared | edit.INVERSION | options
        yield f"edit {name}", lambda a, name=name: edit.main([name, *a]), names, always
    for module, always in [
        (tradeoff, ["--num_samples=200"]), (fit, []), (times, ["--num_samples=200"]),
        (likelihood, []), (straightness, ["--checkpoint=flow", "--steps=2", "--num_samples=2"]),
        (sanity_check, []),
    ]:  # fmt: skip
        yield module.__name__, module.main, flags_of(module.main), always
    yield "export", export.main, flags_of(export.main), ["digits_4step", "out.safetensors"]


def flags_of(main):
    """The flags in the help of a command."""
    import contextlib
    import io
    import re

    with contextlib.redirect_stdout(text := io.StringIO()), contextlib.suppress(SystemExit):
        main(["--help"])
    return sorted(set(re.findall(r"--(\w+)", text.getvalue())) - {"help"})


COMMANDS = {name: rest for name, *rest in parsers()}


def faults(run, arguments, folder, capsys):
    """What a command did that it must not have done."""
    signal.signal(signal.SIGALRM, hung)
    signal.alarm(40)
    try:
        run(arguments)
    except (Reached, absl_flags.Error):
        return []
    except SystemExit as error:
        said = capsys.readouterr().err if error.code == 2 else str(error.code or "")
        found = [] if error.code == 2 or (said and "\n" not in said) else [f"said {said!r}"]
        left = [str(path) for path in folder.rglob("*") if path.is_file()]
        return found + [f"left {left}" for _ in left[:1]]
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    finally:
        signal.alarm(0)
    return [f"left {path}" for path in folder.rglob("*.part")]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_value_of_a_flag_ends_in_a_traceback(command, stubs, tmp_path, capsys):
    run, names, always = COMMANDS[command]
    tried, found = 0, {}
    for name in names:
        for kind, value in VALUES.items():
            arguments = [*always] if value is None else [*always, f"--{name}={value}"]
            if value is None:  # once a flag: the command without it
                arguments = [part for part in always if not part.startswith(f"--{name}=")]
            for path in tmp_path.iterdir():
                path.unlink() if path.is_file() else shutil.rmtree(path)
            tried += 1
            if wrong := faults(run, arguments, tmp_path, capsys):
                found[f"--{name}, {kind}"] = wrong
    with capsys.disabled():
        print(f"\n{command}: {tried} command lines tried")
    assert not found, "\n".join(f"{flag}: {wrong}" for flag, wrong in found.items())
