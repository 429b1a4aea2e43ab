"""Exported files beside JAX: megabytes, difference, milliseconds of a picture on one core.

    taskset -c 0 python -m benchmarks.deploy --rounds=40
    taskset -c 0 python -m benchmarks.deploy --page=FOLDER     # in a browser too

Times are minima of rounds in which all take turns, so that other work on the machine hits them
alike. The folder is that of `python -m ddim_jax.export digits_4step FOLDER --format=web`.
"""

import argparse
import importlib.util

import numpy as np

import ddim_jax
from benchmarks import browser, common
from ddim_jax.export import graph, litert, made, onnx_file, stablehlo, tables

TABLE = "ddim:4"


def exported(model):
    """Name -> `Made`, of the formats that are installed."""
    table = model.recipe.replace(solver="ddim", steps=4).table(model.schedule)
    halved, recipe = graph.stored_as(model, "float16"), model.recipe
    yield "stablehlo, from the seed", stablehlo.make(model, recipe)
    if importlib.util.find_spec("jax2onnx"):
        yield "onnx, rows", onnx_file.make(model, recipe)
        yield "onnx, rows, float16", onnx_file.make(halved, recipe)
        yield "onnx, 4 steps", onnx_file.make(model, recipe, table)
    if importlib.util.find_spec("litert_converter"):
        yield "litert, rows", litert.make(model, recipe)
        yield "litert, rows, float16", litert.make(halved, recipe)
        yield "litert, rows, int8", litert.make(model, recipe, int8=True)
        yield "litert, 4 steps", litert.make(model, recipe, table)


def main(argv=None):
    """Converts, compares, times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--page", help="folder of a page with digits_4step")
    args = parser.parse_args(argv)
    model = ddim_jax.load("digits_4step")
    found = {TABLE: tables.collect(model, model.recipe, ["ddim"], [4])[TABLE]}
    (four,) = graph.cases(model, model.recipe, found)
    one = four._replace(x=four.x[:1], noise=four.noise[:1], wanted=four.wanted[:1])
    one = one._replace(inputs={name: value[:1] for name, value in four.inputs.items()})
    files = dict(exported(model))
    jobs = {name: lambda file=file: file.draw(one) for name, file in files.items()}
    generator = model.generator(model.recipe)
    given = model.conditions(1, model.recipe, np.zeros(1, np.int32), found[TABLE])
    jobs["JAX"] = lambda: list(generator.batches(found[TABLE], np.arange(1), **given))
    with browser.Browser.start() as chromium, browser.served(args.page or ".") as address:
        if args.page:
            page = chromium.open(address)
            page.wait(browser.READY, seconds=300)
            print(f"the page: first picture after {page.evaluate('page.first'):.0f} ms")
            options = f"{{name: 'digits_4step', table: '{TABLE}', guidance: 1.2, repeats: 1}}"
            jobs["the page, float16"] = lambda: page.evaluate(f"page.time({options})")
        taken = common.alternate(jobs, args.rounds)
    for name, seconds in taken.items():
        said = f"{name:26} {1e3 * np.min(seconds):7.1f} ms"
        if name in files:
            (apart,) = made.differences(files[name], [four])
            said += f" {len(files[name].data) / 1e6:6.2f} MB, most {apart.most:.1e}"
            said += f", rms {apart.rms:.1e} of the range"
        print(said)


if __name__ == "__main__":
    main()
