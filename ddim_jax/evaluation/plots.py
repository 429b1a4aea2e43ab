"""Plots a sweep: quality, Pareto front, guidance, cost, and a sheet of the pictures.

Each function takes the records that `tradeoff` writes, so that NAME.json alone is enough to plot
again:

    content = json.load(open("runs/quality/tradeoff.json"))
    plots.quality("q.png", content["records"], "FDD", content["about"]["baseline"])
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, ScalarFormatter

from ddim_jax.evaluation.results import Record
from ddim_jax.solvers import SOLVERS

MARKERS = "osD^vP*X<>hp"
SHOWN = 10
"""Pictures in a block of the sheet."""


def all_plots(
    base: Path,
    about: dict[str, Any],
    records: list[Record],
    quality_name: str,
    few: Sequence[np.ndarray],
    others: Sequence[Record] = (),
) -> list[Path]:
    """Draws every plot that the records allow, at BASE_*.png; returns the paths.

    The provenance's "baseline" is the name of a cell or None. Of the metric lower must be better.
    Of each record there are a `few` images uint8 [SHOWN, H, W, C]. Records of other sweeps join
    quality and Pareto front.
    """
    caption = (
        f"{quality_name} of {about['num_samples']} samples of {about['checkpoint']} "
        f"against {about['reference']}"
    )
    cells = {record["cell"] for record in records}
    every = [*records, *(record for record in others if record["cell"] not in cells)]
    plots = {
        "quality": lambda path: quality(path, every, quality_name, about["baseline"], caption),
        "pareto": lambda path: pareto(path, every, quality_name, caption),
        "cost": lambda path: cost(path, records),
        "sheet": lambda path: sheet(path, list(zip(records, few, strict=True))),
    }
    if len({record["guidance_scale"] for record in records}) > 1:
        plots["guidance"] = lambda path: guidance(path, records, quality_name)
    paths = {name: base.with_name(f"{base.name}_{name}.png") for name in plots}
    for name, plot in plots.items():
        plot(paths[name])
    return list(paths.values())


def curve_name(record: Record) -> str:
    """Returns the solver and what is not its default; the same for all steps of a curve."""
    if "student" in record:
        return record["student"]
    parts = [record["solver"]]
    stride = record["stride"]
    if stride.endswith(".json"):
        parts.append("learned stride")
    elif stride != SOLVERS[record["solver"]].stride:
        parts.append(stride)
    parts += [f"{name} {value:g}" for name, value in record["solver_options"].items()]
    if record["guidance_scale"] != 1:
        parts.append(f"guidance {record['guidance_scale']:g}")
    return ", ".join(parts)


def curves(records: list[Record], key: Callable[[Record], str] = curve_name) -> dict:
    """Groups records by the name of their curve, each in the order of NFE."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return {name: sorted(group, key=lambda r: r["nfe"]) for name, group in groups.items()}


def quality(
    path: Path, records: list[Record], name: str, baseline: str | None = None, caption: str = ""
) -> None:
    """Plots quality against network evaluations, both axes logarithmic, a curve for each solver.

    The cell that is the baseline is a line at its quality, with bands 5% and 10% above.
    """
    figure = Figure(figsize=(9, 5.5))
    axes = figure.subplots()
    reference = [record for record in records if record["cell"] == baseline]
    groups = curves(records)
    lines = {k: part for k, part in groups.items() if part != reference or len(groups) == 1}
    for i, (label, part) in enumerate(lines.items()):
        nfe, values = [r["nfe"] for r in part], [r[name] for r in part]
        axes.plot(nfe, values, markersize=5, linewidth=1.3, label=label, **_style(i))
    for record in reference:
        level = record[name]
        axes.axhline(level, color="black", linewidth=1, label=f"{baseline}: {level:.3g}")
        axes.axhspan(level, 1.05 * level, color="black", alpha=0.18, lw=0, label="within 5%")
        axes.axhspan(1.05 * level, 1.1 * level, color="black", alpha=0.08, lw=0, label="within 10%")
    _log_axes(axes, {r["nfe"] for part in lines.values() for r in part})
    axes.set(xlabel="network evaluations (NFE)", ylabel=f"{name} (lower is better)")
    axes.set_title(caption, fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    _save(figure, path)


def pareto(path: Path, records: list[Record], name: str, caption: str = "") -> None:
    """Plots all cells over the forward passes they cost, and the Pareto front."""
    figure = Figure(figsize=(9, 5.5))
    axes = figure.subplots()
    cost, value = (np.array([r[key] for r in records]) for key in ("forward_passes", name))
    axes.scatter(cost, value, s=16, color="0.65")
    front = pareto_front(cost, value)
    axes.step(cost[front], value[front], where="post", color="tab:red", linewidth=1)
    axes.scatter(cost[front], value[front], s=30, color="tab:red")
    for i in front:
        text = f" {curve_name(records[i])}, {records[i]['steps']} steps"
        axes.annotate(text, (cost[i], value[i]), fontsize=7, rotation=25, va="bottom")
    _log_axes(axes, set(cost.tolist()))
    x = "forward passes of a sample (a guided evaluation takes two)"
    axes.set(xlabel=x, ylabel=f"{name} (lower is better)")
    axes.set_title(caption, fontsize=10)
    _save(figure, path)


def pareto_front(cost: np.ndarray, value: np.ndarray) -> list[int]:
    """Returns the indices of the points that no other beats in both, by rising cost."""
    front: list[int] = []
    for i in np.lexsort((value, cost)):
        if not front or value[i] < value[front[-1]]:
            front.append(int(i))
    return front


def guidance(path: Path, records: list[Record], name: str) -> None:
    """Plots for each solver quality over guidance scale x steps; a red frame marks the best."""
    groups = curves(records, lambda r: curve_name(r | {"guidance_scale": 1}))
    figure = Figure(figsize=(1 + 4.2 * len(groups), 4), layout="constrained")
    all_axes = figure.subplots(1, len(groups), squeeze=False)
    for axes, (label, part) in zip(all_axes[0], groups.items(), strict=True):
        scales, steps = (sorted({r[key] for r in part}) for key in ("guidance_scale", "steps"))
        values = np.full((len(scales), len(steps)), np.nan)
        for r in part:
            values[scales.index(r["guidance_scale"]), steps.index(r["steps"])] = r[name]
        axes.imshow(np.log(values), cmap="viridis_r", aspect="auto")
        best = np.unravel_index(np.nanargmin(values), values.shape)
        for i, j in itertools.product(*map(range, values.shape)):
            if np.isfinite(values[i, j]):
                style = {"weight": "bold" if (i, j) == best else "normal", "fontsize": 8}
                style["bbox"] = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 1}
                axes.text(j, i, f"{values[i, j]:.3g}", ha="center", va="center", **style)
        corner = (best[1] - 0.5, best[0] - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec="red", lw=2.5))
        axes.set_xticks(range(len(steps)), steps)
        axes.set_yticks(range(len(scales)), [f"{s:g}" for s in scales])
        axes.set_xlabel("steps")
        axes.set_title(f"{label}: best {scales[best[0]]:g} x {steps[best[1]]}", fontsize=9)
    all_axes[0][0].set_ylabel("guidance scale")
    figure.suptitle(f"{name} over guidance scale and steps (red: best)", fontsize=10)
    _save(figure, path, tight=False)


def cost(path: Path, records: list[Record]) -> None:
    """Plots images per second and memory against forward passes, without and with guidance."""
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)

    def kind(record: Record) -> str:
        guided = "" if record["guidance_scale"] == 1 else ", guided"
        return record.get("student", record["solver"]) + guided

    for i, (label, part) in enumerate(curves(records, kind).items()):
        part = sorted(part, key=lambda r: r["forward_passes"])
        passes = [r["forward_passes"] for r in part]
        style = _style(i) | {"markersize": 4, "linewidth": 0.8}
        left.plot(passes, [r["images_per_second"] for r in part], label=label, **style)
        right.plot(passes, [r["program_bytes"] / 1e6 for r in part], **style)
        process = [r["process_bytes"] / 1e6 for r in part]
        right.plot(passes, process, alpha=0.5, **(style | {"linestyle": ":"}))
    for axes in (left, right):
        _log_axes(axes, {r["forward_passes"] for r in records})
        axes.set_xlabel("forward passes of a sample")
    left.set_ylabel("images per second")
    left.legend(fontsize=7)
    right.set(yscale="linear", ylim=0)
    right.set_ylabel("MB; solid: compiled program, a device; dotted: process", fontsize=8)
    _save(figure, path)


def sheet(path: Path, sets: Sequence[tuple[Record, np.ndarray]]) -> None:
    """Shows pictures from the same noise: a row of blocks for each solver, a column for each NFE.

    A block is the first `SHOWN` images [N, H, W, C] of a cell, in two rows; of clips their middle.
    """
    rows = list(dict.fromkeys(curve_name(record) for record, _ in sets))
    steps = sorted({record["nfe"] for record, _ in sets})
    figure = Figure(figsize=(0.4 + 2 * len(steps), 0.3 + 0.95 * len(rows)))
    spacing = {"wspace": 0.04, "hspace": 0.1}
    all_axes = figure.subplots(len(rows), len(steps), squeeze=False, gridspec_kw=spacing)
    for axes in all_axes.flat:
        axes.axis("off")
    for record, images in sets:
        i, j = rows.index(curve_name(record)), steps.index(record["nfe"])
        images = images[:, images.shape[1] // 2] if images.ndim == 5 else images
        halves = np.split(images[:SHOWN], 2)
        block = np.concatenate([np.concatenate(half, axis=1) for half in halves])
        grey = block.shape[-1] == 1
        all_axes[i, j].imshow(block.squeeze(-1) if grey else block, cmap="gray", vmin=0, vmax=255)
    for axes, name in zip(all_axes[:, 0], rows, strict=True):
        place = {"transform": axes.transAxes, "ha": "right", "va": "center"}
        axes.text(-0.03, 0.5, name.replace(", ", "\n"), fontsize=7, **place)
    for axes, nfe in zip(all_axes[0], steps, strict=True):
        axes.set_title(f"{nfe} NFE", fontsize=8)
    _save(figure, path, tight=False)


def _style(i: int) -> dict[str, Any]:
    """Of curve i; the strong colours of tab20 first."""
    color = matplotlib.colormaps["tab20"]((2 * i + i // 10) % 20)
    return {"color": color, "marker": MARKERS[i % len(MARKERS)]}


def _log_axes(axes: Any, ticks: set) -> None:
    axes.set(xscale="log", yscale="log")
    ticks = sorted(ticks)
    shown = [tick for i, tick in enumerate(ticks) if i == 0 or tick >= 1.12 * ticks[i - 1]]
    axes.set_xticks(shown, shown, fontsize=8)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 1)))
    axes.yaxis.minorticks_on()
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.grid(alpha=0.25, which="both")


def _save(figure: Figure, path: Path, tight: bool = True) -> None:
    if tight:
        figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
