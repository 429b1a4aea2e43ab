"""Checks an installation in half a minute; what it prints is what an issue begins with.

    python -m ddim_jax.selfcheck

It draws with the bundled network and compares with pictures that come with the package, to
rounding; shows the order of five solvers by how their errors fall on a mixture of two Gaussians,
whose denoiser is known in closed form; and draws in two batch sizes, which must agree. The exit
status is 1 if something failed.
"""

import importlib.metadata
import importlib.resources
import os
import platform
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.integrate import solve_ivp

from ddim_jax import checkpoints, command_line, schedules
from ddim_jax.data import digits
from ddim_jax.editing.editor import Editor
from ddim_jax.editing.inversion import round_trip
from ddim_jax.model import Model
from ddim_jax.predictions import Prediction
from ddim_jax.solvers import SOLVERS

Array = Any
PACKAGES = (
    *("ddim_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "diffrax"),
    *("grain", "ml-collections", "numpy", "scipy", "pillow", "safetensors"),
)
SETTINGS = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")
"""Environment variables that change what is computed."""
ROUNDING = 2
"""Greys of 255 by which a pixel may differ from the stored one."""
ORDERS = ("ddim", "heun", "dpm_solver++_2m", "unipc_2", "rk4")
WITHIN = 0.15
"""How far a measured order may be from a solver's own."""
STEPS = (160, 320)
"""Between which the orders are measured."""
SPAN = (1.0, 0.01)
"""Times between which the flow is followed."""
VP = schedules.vp_linear()


class Line(NamedTuple):
    """One line of the report.

    Attributes:
        passed: whether it is as it should be.
        text: what was done, and measured.
        meaning: what it means if it is not.
    """

    passed: bool
    text: str
    meaning: str


def versions() -> Iterator[str]:
    """Yields what runs here: packages, devices, settings."""
    yield f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores"
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} (not installed by pip)")
    yield ", ".join(found)
    devices = jax.devices()
    yield f"devices: {len(devices)} x {devices[0].platform} ({devices[0].device_kind})"
    for name in SETTINGS:
        if os.environ.get(name):
            yield f"{name}={os.environ[name].strip()}"


# --- pictures -------------------------------------------------------------------------------------


def deterministic(model: Model) -> np.ndarray:
    """A three by UniPC in 8 steps, guided; uint8 [1, 28, 28, 1]."""
    return model.draw(label=3, solver="unipc_2", steps=8, guidance_scale=2.0, seed=7)


def stochastic(model: Model, batch_size: int = 6) -> np.ndarray:
    """Six digits by DDIM with fresh noise in each of 10 steps; uint8 [6, 28, 28, 1]."""
    how: dict[str, Any] = {
        "solver": "ddim",
        "solver_options": {"eta": 1.0},
        "steps": 10,
        "guidance_scale": 1.0,
    }
    return model.draw(6, seed=2**40 + 1, batch_size=batch_size, **how)


def edited(model: Model) -> np.ndarray:
    """A four of the bundled digits, inverted as a four and drawn as a nine; as `deterministic`."""
    images, labels = digits.read("train")
    editor = Editor(model, show_progress=False)
    trip = round_trip(model.schedule, "fixed_point", steps=10, refinements=0)
    rows, slots = (max(table.history.shape[axis] for table in trip[:2]) for axis in (0, 2))
    up, down = (table.pad(rows, slots) for table in trip[:2])  # of one shape: compiled once
    state = editor.invert(trip._replace(up=up), images[4:5] / 127.5 - 1, labels[4:5]).state
    return model.pictures(editor.draw(down, state, 9))


PICTURES: dict[str, Callable[[Model], np.ndarray]] = {
    "deterministic": deterministic,
    "stochastic": stochastic,
    "edited": edited,
}
"""What is drawn, by its name in `assets/selfcheck.npz`."""


def check_picture(name: str, drawn: np.ndarray) -> Line:
    """Compares what was drawn with what is stored."""
    asset = importlib.resources.files("ddim_jax.assets") / "selfcheck.npz"
    with asset.open("rb") as file, np.load(file) as stored:
        off = np.abs(stored[name].astype(int) - drawn)
    text = f"{name} sample: at most {off.max()} of 255 from the stored one, {ROUNDING} allowed"
    meaning = (
        f"{(off > ROUNDING).mean():.0%} of the pixels are others than those of the release: the "
        "package was changed, or jax computes something else on this device"
    )
    return Line(bool(off.max() <= ROUNDING), text, meaning)


def check_batches(model: Model, drawn: np.ndarray) -> Line:
    """Compares with the same samples in batches of 4, of which the last is filled up."""
    off = int(np.abs(drawn.astype(int) - stochastic(model, batch_size=4)).max())
    text = f"batches of 6 and of 4: the same but for {off} of 255, 1 allowed"
    meaning = "sample i depends on its batch here, so results cannot be repeated in other batches"
    return Line(off <= 1, text, meaning)


# --- orders ---------------------------------------------------------------------------------------


def mixture(x: np.ndarray, level: schedules.NoiseLevel) -> Prediction:
    """The exact denoiser of a mixture of two Gaussians on the line, at x [N]."""
    weight, mean, std = np.array([[0.3, 0.7], [-1.0, 0.6], [0.35, 0.25]])
    variance = (level.alpha * std) ** 2 + level.sigma**2
    above = x[:, None] - level.alpha * mean
    share = weight / np.sqrt(variance) * np.exp(-(above**2) / (2 * variance))
    share /= share.sum(-1, keepdims=True)
    x0 = share * (mean + level.alpha * std**2 * above / variance)
    return Prediction(x0.sum(-1), (share * level.sigma * above / variance).sum(-1))


def flow_end(x: np.ndarray) -> np.ndarray:
    """Where the probability flow of `mixture` takes x [N] over `SPAN`, by scipy's DOP853."""
    angles = [np.arctan2(level.sigma, level.alpha) for level in map(VP.level, SPAN)]

    def slope(angle: float, z: np.ndarray) -> np.ndarray:
        alpha, sigma = np.cos(angle), np.sin(angle)
        x0, eps = mixture(z, schedules.NoiseLevel(0.0, alpha, sigma, 0.0))
        return alpha * eps - sigma * x0

    return solve_ivp(slope, angles, x, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]


def check_orders() -> Iterator[Line]:
    """Yields the order of each of `ORDERS`: how its error falls from 160 steps to 320."""
    x = np.linspace(-2, 2, 9)
    end, span = flow_end(x), VP.half_log_snr(np.array(SPAN))
    for name in ORDERS:
        solver, errors = SOLVERS[name], []
        if name in ("dpm_solver++_2m", "unipc_2") and solver.make is not None:
            solver = solver.make(lower_order_final=False)
        for steps in STEPS:
            times = VP.time_of(np.linspace(span[0], span[1], steps + 1))
            times[[0, -1]] = SPAN
            table = solver(VP, times)
            errors.append(np.abs(table.run_numpy(mixture, x / table.start[0]) - end).max())
        order = np.log(errors[0] / errors[1]) / np.log(STEPS[1] / STEPS[0])
        text = f"order of {name}: {order:.2f}, {solver.order} within {WITHIN}"
        meaning = "its numbers are wrong here: numpy, or the solver's file, is not as released"
        yield Line(bool(abs(order - (solver.order or 0)) <= WITHIN), text, meaning)


# --- the report -----------------------------------------------------------------------------------


def check_network() -> Iterator[Line]:
    """Yields what is said of each of `PICTURES`, and of batches."""
    model, drawn = checkpoints.load("digits"), {}
    for name, draw in PICTURES.items():
        drawn[name] = draw(model)
        yield check_picture(name, drawn[name])
    yield check_batches(model, drawn["stochastic"])


def checked(name: str, check: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """Yields the lines of a check; where it raises, one that says so with the trace."""
    try:
        yield from check()
    except Exception as error:
        text = f"{name}: {type(error).__name__} instead of a result"
        yield Line(False, text, traceback.format_exc().strip())


def report() -> bool:
    """Prints what runs here and a line for each check; returns whether all passed."""
    print(*versions(), sep="\n", flush=True)
    passed = []
    with jax.default_matmul_precision("highest"):
        for name, check in (("orders", check_orders), ("network", check_network)):
            for line in checked(name, check):
                passed.append(line.passed)
                print(f"{'ok  ' if line.passed else 'FAIL'} {line.text}", flush=True)
                if not line.passed:
                    print(textwrap.indent(line.meaning, "     "), flush=True)
    print(f"{sum(passed)} of {len(passed)} passed")
    return all(passed)


def main(argv: list[str] | None = None) -> None:
    """Prints the report; exits with status 1 if a check failed."""
    command_line.Parser(description=(__doc__ or "").split("\n\n")[0]).parse_args(argv)
    done = []
    command_line.run("selfcheck", lambda: done.append(report()))
    if not all(done):
        sys.exit(1)


if __name__ == "__main__":
    main()
