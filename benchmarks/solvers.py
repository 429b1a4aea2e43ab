"""Every solver against the 1000-step solution, from the same noise: numbers and one big picture.

    python -m benchmarks.solvers [--checkpoint=digits] [--steps=8] [--out=solvers.png]

Draws with every solver in `SOLVERS` at `steps` steps and prints its distance (root mean square over
pixels in [-1, 1]) to the 1000-step DDIM solution of the same noise and labels, beside that of DDIM
at the same number of network evaluations. All tables are padded to one shape and run in one
compiled program. The picture has a row per solver; the first row is the 1000-step solution.
"""

import argparse
import time

import jax
import numpy as np
from PIL import Image, ImageDraw

from ddim_jax import checkpoints, data, parallel, sampling
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SOLVERS


def sheet(rows: dict[str, np.ndarray], scale: int = 2) -> Image.Image:
    """One labelled row of images per name."""
    strips = [data.grid(images, columns=len(images), scale=scale) for images in rows.values()]
    width, height, margin = strips[0].width, strips[0].height, 230
    canvas = Image.new("RGB", (margin + width, height * len(rows)), "white")
    for k, (name, strip) in enumerate(zip(rows, strips, strict=True)):
        canvas.paste(strip, (margin, k * height))
        ImageDraw.Draw(canvas).text((6, k * height + height // 2 - 6), name, fill="black")
    return canvas


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="digits")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stride", help="default: each solver's own")
    parser.add_argument("--num_samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="solvers.png")
    args = parser.parse_args()
    parallel.use_cpu_cores()
    parallel.use_compilation_cache()
    parallel.check_batch(args.num_samples, jax.device_count())
    model = checkpoints.load(args.checkpoint)
    keys = sampling.sample_keys(args.seed, np.arange(args.num_samples))
    noise = sampling.initial_noise(keys, model.sample_shape)
    inputs = model.inputs.arrays(model.inputs.labels(None, args.num_samples))
    mesh = parallel.make_mesh()
    params = parallel.replicate(model.params, mesh)
    noise, keys, inputs = parallel.shard((noise, keys, inputs), mesh)
    sampler = model.sampler()

    def draw(table):
        return np.asarray(jax.device_get(sampler(params, table, noise, keys, inputs).x))

    def table(solver, stride, steps):
        return Recipe(solver, stride, steps).table(model.schedule)

    exact = draw(table("ddim", "uniform", 1000))
    tables = {name: table(name, args.stride, args.steps) for name in SOLVERS}
    nfe = max(t.nfe for t in tables.values())
    slots = max(t.history.shape[-1] for t in tables.values())

    def distance(images):
        return float(np.sqrt(np.mean((images - exact) ** 2)))

    ddim = {}
    rows = {"ddim, 1000 steps": exact}
    print(f"{'solver':20}{'NFE':>5}{'distance':>10}{'ddim at that NFE':>18}{'ratio':>7}{'s':>7}")
    for name, made in tables.items():
        start = time.perf_counter()
        images = draw(made.pad(nfe, slots))
        seconds = time.perf_counter() - start
        if made.nfe not in ddim:
            ddim[made.nfe] = distance(draw(table("ddim", "uniform", made.nfe).pad(nfe, slots)))
        ours, theirs = distance(images), ddim[made.nfe]
        ratio = "" if SOLVERS[name].stochastic else f"{ours / theirs:7.2f}"
        print(f"{name:20}{made.nfe:5}{ours:10.4f}{theirs:18.4f}{ratio:>7}{seconds:7.2f}")
        rows[f"{name}, {made.nfe} evaluations"] = images
    shown = {name: data.to_uint8(images[:20]) for name, images in rows.items()}
    sheet(shown).save(args.out)
    print(f"{args.out}; one program for all {len(tables)} solvers: {sampler._cache_size() == 2}")


if __name__ == "__main__":
    main()
