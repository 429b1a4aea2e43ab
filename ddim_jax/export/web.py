"""A static page that draws in the browser: the graph of a row, tables, and onnxruntime-web.

The folder needs no server of its own: any that serves files will do (`python -m http.server`). What
is in `page/` is copied as it is; beside it are, for every network, its ONNX file with manifest and
tables, and a few pictures that Python drew, which the page can compare itself with.
"""

import hashlib
import importlib.resources
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax import experiment, files
from ddim_jax.export import graph, made, onnx_file, row, tables
from ddim_jax.export.graph import Case
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SolverTable

PAGE = importlib.resources.files("ddim_jax.export") / "page"
RUNTIME_VERSION = "1.30.0"
WASM = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU = (
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs"),
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""Files of onnxruntime-web: what every page loads, and what those with a graphics card do."""
SITE = "site.json"


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Checks, before the work, that a page can be written into a folder.

    Raises:
        FileExistsError: it holds a page, which is not to be replaced, or other files.
        OSError: it cannot be written.
    """
    files.check_folder(out, f"the page {out}")
    there = [path.name for path in out.iterdir()] if out.exists() else []
    if there and SITE not in there:
        raise FileExistsError(f"{out} holds other files: choose an empty folder or a new one")
    if there and not overwrite:
        raise FileExistsError(f"{out} holds a page; choose another folder, or pass overwrite=True")


def write(
    out: Path,
    loaded: Sequence[tuple[Model, Recipe]],
    found: Sequence[dict[str, SolverTable]],
    dtype: str,
    cdn: str | None = None,
) -> None:
    """Writes the page.

    Args:
        out: the folder, checked.
        loaded: the networks with their recipes.
        found: the tables of each.
        dtype: of the weights, float32 or float16.
        cdn: where the page loads onnxruntime-web from; None: a copy of it, by npm.

    Raises:
        ValueError: a network that the page cannot draw with; nothing to convert with; no npm.
    """
    seen = set()
    for model, _ in loaded:
        check(model)
        if model.name in seen:
            raise ValueError(f"two networks are called {model.name}: give each once")
        seen.add(model.name)
    fresh = not out.exists() or not any(out.iterdir())
    made_in = out if fresh else files.next_free(out.parent, out.name, ".new")
    before = [] if fresh else _networks(out)
    with files.new_folder(made_in) as folder:
        if cdn is None:
            fetch_runtime(folder / "runtime")
        for file in PAGE.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        models = [
            _network(folder, model, recipe, own, dtype)
            for (model, recipe), own in zip(loaded, found, strict=True)
        ]
        runtime = "runtime/" if cdn is None else cdn.rstrip("/") + "/"
        about = {"version": experiment.version(), "runtime": runtime, "models": models}
        files.write_json(folder / SITE, about)
        _fill_service_worker(folder, isolated=cdn is None)
    if not fresh:
        _replace_page(out, before, made_in)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB; look at it with: python -m http.server -d {out}")


def _networks(page: Path) -> list[str]:
    """Names of a page's networks; ValueError if its file is damaged."""
    about = files.read_json(page / SITE)
    with files.interpreting(page / SITE):
        return [one["name"] for one in about.get("models", ())]


def _replace_page(old: Path, names: list[str], new: Path) -> None:
    """Moves a page to where one of networks of these names is.

    What it is told of its networks comes after these, and then the files of old networks go; other
    files stay.
    """
    moved = sorted(
        (path.relative_to(new) for path in new.rglob("*") if path.is_file()),
        key=lambda path: (path.name == SITE, path.as_posix()),
    )
    for path in moved:
        (old / path).parent.mkdir(parents=True, exist_ok=True)
        (new / path).replace(old / path)
    for path in old.iterdir():
        ends = [path.name.removeprefix(name) for name in names if path.name.startswith(name)]
        of_network = any(end.startswith((".onnx", ".check.json", "-decoder.onnx")) for end in ends)
        if of_network and Path(path.name) not in moved:
            path.unlink()
    shutil.rmtree(new)


def check(model: Model) -> None:
    """Raises ValueError for a network that the page cannot draw with."""
    made.check_size(model, "onnx")
    beside = set(model.inputs.declared) - {"label", "guidance", "interval"}
    if made.tokenizer(model) is not None:
        beside -= {"text"}
    if beside:
        raise ValueError(
            f"{model.name} is told {', '.join(sorted(beside))}, which the page cannot say: write "
            "the graph of a row for your own client, by --format=onnx --per_row"
        )
    if model.codec.picture_shape[-1] not in (1, 3):
        shape = model.codec.picture_shape
        raise ValueError(f"the page shows 1 or 3 channels, {model.name} draws {shape}")


def _network(
    folder: Path, model: Model, recipe: Recipe, own: dict[str, SolverTable], dtype: str
) -> dict[str, Any]:
    """Writes the files of a network; returns what the page is told of it."""
    stored = graph.stored_as(model, dtype)
    print(f"converting {model.name} ...", flush=True)
    converted = onnx_file.make(stored, recipe)
    apart = made.differences(converted, graph.cases(model, recipe, tables.few(own)))
    made.check(apart, dtype)
    cases = graph.cases(stored, recipe, tables.few(own))  # which the page draws to rounding
    about = made.manifest(converted, model, recipe, dtype, apart, format="onnx", form="row")
    about["tables"] = f"{model.name}.onnx.tables.json"
    network = folder / f"{model.name}.onnx"  # names are those of files, without their folder
    network.write_bytes(converted.data)
    page: dict[str, Any] = {"name": model.name}
    if model.draws_latents:
        decoder = onnx_file.make_decoder(stored)
        made.check([made.decoder_difference(decoder, stored, cases)], dtype)
        page["decoder"] = about["decoder"] = made.decoder_path(network).name
        made.decoder_path(network).write_bytes(decoder.data)
    if about["tokenizer"]:
        page["prompts"] = list((model.config.get("sample") or {}).get("prompts") or [""])
    for ending, content in (
        (".onnx.json", about),
        (".onnx.tables.json", tables.as_json(own, model)),
        (".check.json", _check(cases)),
    ):
        (folder / f"{model.name}{ending}").write_text(json.dumps(content))
    guidance = None
    if row.is_guidable(model):
        low, high = (1.0, 4.0)
        if model.inputs.takes("guidance"):
            low, high = model.config.loss.get("guidance") or (1.0, 1.0)
        scale = recipe.guidance_scale
        guidance = {"low": min(low, scale), "high": max(high, scale), "scale": scale}
    small = int(np.prod(model.codec.picture_shape)) <= 1024
    return page | {"count": 10 if small else 1, "guidance": guidance}


def _check(cases: Sequence[Case]) -> dict[str, Any]:
    """Pictures that Python drew, for the page to compare itself with."""
    told = [
        {
            "table": case.name,
            "told": {name: value.ravel().tolist() for name, value in case.inputs.items()},
            "wanted": [float(f"{value:.6g}") for value in case.wanted.ravel()],
        }
        for case in cases
    ]
    return {"seed": graph.SEED, "count": len(cases[0].x), "cases": told}


def _fill_service_worker(folder: Path, isolated: bool) -> None:
    """Tells the service worker which files it keeps; those for a graphics card when asked for."""
    kept = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in WEBGPU and path.name != "service-worker.js"
    )
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in kept)).hexdigest()
    worker = folder / "service-worker.js"
    text = worker.read_text().replace("__VERSION__", digest[:16])
    text = text.replace("__FILES__", json.dumps(["./", *kept]))
    worker.write_text(text.replace("__ISOLATED__", json.dumps(isolated)))


def fetch_runtime(out: Path) -> None:
    """Copies onnxruntime-web into a folder; npm fetches it once, and it is kept for the next time.

    Raises:
        ValueError: npm is not installed, or could not fetch it.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kept = Path(cache) / "ddim_jax" / f"onnxruntime-web-{RUNTIME_VERSION}"
    if not all((kept / name).is_file() for name in (*WASM, *WEBGPU, "LICENSE")):
        _fetch(kept)
    shutil.copytree(kept, out)


def _fetch(kept: Path) -> None:
    if shutil.which("npm") is None:
        raise ValueError(
            "npm, which fetches onnxruntime-web, is not installed: install it, or give --cdn=URL, "
            f"where the page finds the folder dist of onnxruntime-web {RUNTIME_VERSION}"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"onnxruntime-web@{RUNTIME_VERSION}"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        packed = next(Path(folder).glob("*.tgz"), None)
        if result.returncode or packed is None:
            said = (result.stderr.strip() or "it wrote nothing").splitlines()[-1]
            raise ValueError(
                f"npm could not fetch onnxruntime-web {RUNTIME_VERSION} ({said}): try again, or "
                "give --cdn=URL"
            )
        with tarfile.open(packed) as archive:
            for name in (*WASM, *WEBGPU):
                _extract(archive, f"package/dist/{name}", kept / name)
            _extract(archive, "package/LICENSE", kept / "LICENSE", needed=False)


def _extract(archive: tarfile.TarFile, name: str, to: Path, needed: bool = True) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        content = archive.extractfile(name).read()
    except KeyError:
        if needed:
            raise ValueError(f"onnxruntime-web {RUNTIME_VERSION} has no file {name}") from None
        content = b"onnxruntime-web: MIT, Microsoft Corporation\n"
    files.replace(to, lambda file: file.write(content), durable=False)
