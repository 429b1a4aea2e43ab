"""Every flag of every command, and every field of a config, over missing, empty, 0, -1, huge, ...

A command either does what it is asked for or says in one line why not, and then leaves no file.
Networks are not run: a stub stands for compiled programs, and what takes long is cut short.
"""

import functools
import itertools
import shutil
import signal

import jax
import ml_collections
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from configs import digits_reflow
from ddim_jax import batch_loop, checkpoints, data, edit, experiment, losses, planning
from ddim_jax.adaptive_sampling import AdaptiveResult, Tolerance
from ddim_jax.checkpoints import __main__ as export
from ddim_jax.commands import configs, sample, train
from ddim_jax.data import latents
from ddim_jax.editing import actions, directions, inpainting, latent_inpainting
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
from ddim_jax.export import __main__ as deploy
from ddim_jax.export import web
from ddim_jax.predictions import PREDICTIONS
from ddim_jax.sampling import RunResult
from ddim_jax.schedules import SCHEDULES
from ddim_jax.solvers import State
from ddim_jax.strides import fit
from ddim_jax.training import fields, loop
from ddim_jax.training.state import EMAS
from tests.tiny import tiny

VALUES = {
    "missing": None, "empty": "", "0": "0", "-1": "-1", "huge": "1" + "0" * 12, "nan": "nan",
    "inf": "inf", "word": "word",
}  # fmt: skip
NAMED = {
    # what a config may name beside what digits names: the sections that it changes
    "--config.schedule.name": ("schedule", [*SCHEDULES]),
    "--config.prediction.name": ("prediction", [*PREDICTIONS]),
    "--config.loss.times.name": ("loss.times", [*losses.TIMES]),
    "--config.loss.weighting.name": ("loss.weighting", [*losses.WEIGHTINGS]),
    "--config.ema.name": ("ema", [*EMAS]),
    "--config": ("loss,loss.pairs", ["digits_ect", "digits_mean_flow", "digits_shortcut"]),
}
ACCEPTED = {
    "-1": "sample.guidance_scale data.data_dir schedule.log_snr_max schedule.log_snr_min loss.mean "
    "loss.times.mean loss.pairs.mean loss.pairs.rate loss.omega loss.kappa loss.guidance_scale",
    "huge": "data.data_dir optimizer.clip_norm optimizer.decay_steps optimizer.warmup_steps "
    "optimizer.learning_rate "
    "schedule.log_snr_max schedule.sigma_max train.checkpoint_every train.keep train.log_every "
    "train.sample_every train.steps loss.huber loss.pairs.every loss.pairs.base loss.pairs.slope "
    "loss.pairs.rate loss.pairs.sigma_max loss.floor loss.every loss.limit loss.times.rate "
    "loss.weighting.gamma loss.weighting.most loss.times.low loss.times.high "
    "loss.times.sigma_min loss.times.sigma_max loss.times.rho",
    "nan": "data.data_dir",
    "inf": "data.data_dir schedule.log_snr_max loss.pairs.sigma_max loss.times.high "
    "loss.weighting.most",
    "word": "data.data_dir",
}
"""Fields that may have such a value: no others do."""


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

    def load(name, **options):
        options = {key: tuple(v) if key == "lora" else v for key, v in options.items()}
        return flow() if name == "flow" else plain(name, **options)

    for module in (checkpoints, export):
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(feature_networks, "load", functools.cache(feature_networks.load))
    monkeypatch.setattr(data, "load", functools.cache(data.load))
    monkeypatch.setattr(batch_loop.Generator, "_compiled", lambda self, arguments: program)
    for module in (actions, directions, inpainting, latent_inpainting):
        monkeypatch.setattr(module, "judge", lambda model, rows, asked: {})
    monkeypatch.setattr(tradeoff, "announce", reached)
    monkeypatch.setattr(latents, "encode", reached)
    monkeypatch.setattr(fit, "make_teacher_data", reached)
    monkeypatch.setattr(likelihood, "measure", reached)
    monkeypatch.setattr(sanity_check.metrics, "check_count", metrics.check_count)
    monkeypatch.setattr(scores, "_real_features", reached)
    monkeypatch.setattr(loop, "init_state", reached)
    monkeypatch.setattr(planning, "compile_plan", reached)
    monkeypatch.setattr(deploy, "_convert", reached)
    monkeypatch.setattr(web, "write", reached)

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
    for name, run, module in (("sample", run_sample, sample), ("train", run_train, train)):
        keys = (module.__name__, "ddim_jax.commands.flags")
        own = {flag.name for key in keys for flag in absl_flags.FLAGS.get_key_flags_for_module(key)}
        yield name, run, sorted(own), []
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
    always = ["digits", "--autoencoder=digits_vae", "--out=set"]
    yield "latents", latents.main, flags_of(latents.main), always
    yield "deploy", deploy.main, flags_of(deploy.main), ["digits_4step", "out.onnx"]
    yield "deploy web", deploy.main, flags_of(deploy.main), ["digits_4step", "page"]
    yield "export", export.main, flags_of(export.main), ["digits_4step", "out.safetensors"]


def run_train(argv):
    arguments, overrides = configs.split(["train.py", *argv])
    absl_flags.FLAGS(["train.py"])
    with flagsaver.flagsaver():
        train.run(absl_flags.FLAGS(arguments), overrides)


def fields_of(given, sections=None):
    """The paths of a config's fields, of these sections or of all."""
    config, everything = configs.load(*given).to_dict(), ("", *config_sections(given))
    for section in everything if sections is None else sections.split(","):
        for name in fields.known_fields(section, config):
            path = f"{section}.{name}".lstrip(".")
            if not fields.known_fields(path, config):
                yield path


def config_sections(given):
    """Of a config, those inside of sections too."""
    config = configs.load(*given)
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield name
            yield from (f"{name}.{k}" for k, v in value.items() if hasattr(v, "items"))


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


def cases():
    """(name, arguments, paths of fields) of the configs that are tried."""
    yield "digits", [], [*fields_of(["digits"])]
    for flag, (sections, names) in NAMED.items():
        for name in names:
            argument = f"{flag}={name}"
            given = [name] if flag == "--config" else ["digits", configs.split([argument])[1]]
            yield name, [argument], [*fields_of(given, sections)]


@pytest.mark.slow
def test_no_value_of_a_field_is_a_traceback_or_taken_for_another(stubs, tmp_path, capsys):
    """Training begins only with values of `ACCEPTED`, 0, and defaults; others are one line."""
    tried, found = 0, {}
    accepted = {kind: {*text.split()} for kind, text in ACCEPTED.items()}
    for name, given, paths in cases():
        for path, (kind, value) in itertools.product(paths, VALUES.items()):
            shutil.rmtree(tmp_path / "runs", ignore_errors=True)
            if value is None:
                continue

            begun, tried = [], tried + 1

            def run(arguments, begun=begun):
                try:
                    run_train(arguments)
                except Reached:
                    begun.append(True)
                    raise

            wrong = faults(run, [*given, f"--config.{path}={value}"], tmp_path, capsys)
            if begun and path not in accepted.get(kind, [path]):
                wrong = [*wrong, "training begins"]
            if wrong:
                found[f"{name} {path} {kind}"] = wrong
    with capsys.disabled():
        print(f"\nfields of configs: {tried} command lines tried")
    assert not found, "\n".join(f"{field}: {wrong}" for field, wrong in found.items())
