"""A figure of each of the three nouns, for docs/concepts.md.

    python -m benchmarks.nouns --out=FOLDER

schedule.png has signal and noise of three schedules over time; denoiser.png a noisy digit at five
times and what the bundled network makes of it; table.png the numbers of UniPC's table in 8 steps.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import matplotlib.figure
import numpy as np

import ddim_jax
from ddim_jax import schedules, solvers, strides


def show_schedules(axes) -> None:
    """Alpha and sigma over time."""
    makers = (schedules.ddpm_linear, schedules.cosine, schedules.rectified_flow)
    t = np.linspace(1, 0, 201)
    for color, make in enumerate(makers):
        level = make().level(t)
        axes.plot(t, level.alpha, f"C{color}", label=make.__name__)
        axes.plot(t, level.sigma, f"C{color}--")
    axes.set(xlim=(1, 0), xlabel="t, from noise to picture", title="alpha, dashed sigma")
    axes.legend(frameon=False)


def show_denoiser(axes) -> None:
    """A digit with noise at five times, and the estimates of the clean digit."""
    model = ddim_jax.load("digits")
    image = ddim_jax.data.load("digits", "train")[7]
    x0 = np.asarray(image["image"], np.float32)[None] / 127.5 - 1
    eps = np.random.default_rng(0).standard_normal(x0.shape).astype(np.float32)
    denoise, rows = model.denoiser(label=int(image["label"])), [[], []]
    for t in (0.9, 0.7, 0.5, 0.3, 0.1):
        level = model.schedule.level(t)
        x = np.float32(level.alpha) * x0 + np.float32(level.sigma) * eps
        rows[0].append(x)
        rows[1].append(denoise(jnp.asarray(x), level).x0)
    sheet = np.concatenate([np.concatenate(row, axis=2)[0, ..., 0] for row in rows])
    axes.imshow(sheet.clip(-1, 1), cmap="gray")
    axes.set(
        title="x, and its x0",
        xlabel="t = 0.9, 0.7 ... 0.1",
        xticks=[],
        yticks=[],
    )


def show_table(axes) -> None:
    """The numbers of a table, a row for each evaluation."""
    schedule = schedules.cosine()
    table = solvers.SOLVERS["unipc_2"](schedule, strides.uniform(schedule, 8))
    rows = len(table.slot)
    parts = (table.store, table.state, table.history, table.noise)
    numbers = np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)
    most = np.abs(numbers).max()
    axes.imshow(numbers, cmap="RdBu", vmin=-most, vmax=most)
    edges = np.cumsum([0, *(part.reshape(rows, -1).shape[1] for part in parts)])
    axes.set_xticks((edges[:-1] + edges[1:] - 1) / 2, ["store", "state", "history", "noise"])
    for edge in edges[1:-1]:
        axes.axvline(edge - 0.5, color="black", linewidth=0.5)
    axes.set(title="the table of unipc_2", ylabel="evaluation", yticks=range(rows))


FIGURES = {"schedule": show_schedules, "denoiser": show_denoiser, "table": show_table}


def main() -> None:
    """Draws the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=".", help="folder")
    args = parser.parse_args()
    for name, show in FIGURES.items():
        figure = matplotlib.figure.Figure(figsize=(6, 3), layout="constrained")
        show(figure.subplots())
        figure.savefig(Path(args.out, f"{name}.png"), dpi=100)


if __name__ == "__main__":
    main()
