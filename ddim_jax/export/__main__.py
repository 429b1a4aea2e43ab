"""Writes a model as StableHLO, ONNX, LiteRT or a web page, and checks that it draws the same.

    python -m ddim_jax.export digits_4step digits.stablehlo
    python -m ddim_jax.export digits_4step digits.onnx --per_row --dtype=float16
    python -m ddim_jax.export digits_4step digits.tflite --steps=4 --dtype=int8
    python -m ddim_jax.export digits_4step,digits page --format=web

Beside a file it writes what is in it (.json) and, for graphs that take any, tables of solvers
(.tables.json); see docs/deploy.md.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddim_jax import checkpoints, command_line, files, interrupts
from ddim_jax.export import graph, litert, made, onnx_file, stablehlo, tables, web
from ddim_jax.model import Model
from ddim_jax.names import check_range, parse_options, whole_number
from ddim_jax.recipe import ADAPTIVE, Recipe
from ddim_jax.solvers import SolverTable

MODULES = {"stablehlo": stablehlo, "onnx": onnx_file, "litert": litert}
FORMATS = {name: module.SUFFIX for name, module in MODULES.items()}
"""Endings of the files of each format; a page is a folder."""
MOST_UNROLLED = 32
"""Evaluations of a graph that holds them one after the other."""


def names(text: str) -> list[str]:
    """Reads names like ddim,unipc_2."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(text: str) -> list[int]:
    """Reads whole numbers like 1,2,4."""
    try:
        return [whole_number(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers like 2,4,8, got {text!r}"
        ) from None


RECIPE = {
    "solver": dict(help="a name in ddim_jax.solvers.SOLVERS; default the checkpoint's"),
    "steps": dict(type=int, help="intervals of the stride; default the checkpoint's"),
    "stride": dict(help="a name in ddim_jax.strides.STRIDES or a learned .json"),
    "eta": dict(type=float, help="of solver ddim: 0 deterministic ... 1 DDPM"),
    "solver_options": dict(default="", help="like order=3,lower_order_final=False"),
    "stride_options": dict(default="", help="like rho=5,lam_min=-4"),
    "guidance_scale": dict(type=float, help="that it is compared at, and a page begins with"),
    "guidance_interval": dict(help="low,high in sigma/alpha outside of which there is none"),
    "guidance_rescale": dict(type=float, help="0..1"),
    "guidance_channels": dict(type=int, help="guide so many of the first channels"),
    "clip": dict(choices=("none", "static", "static_x0", "dynamic"), help="of the clean estimate"),
}
FLAGS = {
    "format": dict(choices=(*FORMATS, "web"), help="default by the ending of OUT; without one web"),
    "per_row": dict(action="store_true", help="one evaluation, which runs any table"),
    "from_noise": dict(action="store_true", help="of stablehlo: noise is an input, not the seed"),
    "dtype": dict(
        choices=("float32", "float16", "int8"), help="of the weights; int8 of litert alone"
    ),
    "batch": dict(type=int, default=1, help="of litert: samples at a time, which are fixed there"),
    "tables": dict(type=names, default=list(tables.USUAL), help="solvers of the tables beside it"),
    "table_steps": dict(type=whole_numbers, default=list(tables.STEPS), help="and their steps"),
    "cdn": dict(help="of web: where the page takes onnxruntime-web from, instead of a copy"),
    "lora": dict(action="append", default=[], help="FILE or FILE:scale, merged into the weights"),
    "size": dict(help="HEIGHTxWIDTH like 512x768; default the checkpoint's"),
    "overwrite": dict(action="store_true", help="replace existing files"),
}


def main(argv: list[str] | None = None) -> None:
    """Parses, loads, converts, compares, writes."""
    parser = command_line.Parser(
        description=__doc__.splitlines()[0], epilog=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("checkpoint", help="workdir, file, folder or bundled name; of web several")
    parser.add_argument("out", help=f"ends in {', '.join(FORMATS.values())}; or a folder, for web")
    for name, options in (RECIPE | FLAGS).items():
        parser.add_argument(f"--{name}", **options)
    args = parser.parse_args(argv)
    command_line.run("export", lambda: _export(args))


def _export(args: argparse.Namespace) -> None:
    check_range("--batch", args.batch, "[1, 1024]", whole=True)
    out, kind = Path(args.out), _format(args)
    if not (checkpoint_names := names(args.checkpoint)):
        raise ValueError(f"the checkpoint must be a name or a path, got {args.checkpoint!r}")
    if kind == "web":
        web.check_folder(out, overwrite=args.overwrite)
        loaded = [_load(args, name) for name in checkpoint_names]
        found = [_tables(args, *one) for one in loaded]
        web.write(out, loaded, found, args.dtype or "float16", args.cdn)
        return
    _check_new(args, decoder=False)
    model, recipe = _load(args, args.checkpoint)
    made.check_size(model, kind)
    _check_new(args, model.draws_latents)
    _write(args, kind, out, model, recipe)


def _check_new(args: argparse.Namespace, decoder: bool) -> list[Path]:
    """The files that are written, or would be of another form; none is there, or may be replaced.

    Raises:
        FileExistsError: one exists, and is not to be overwritten.
    """
    out = Path(args.out)
    paths = [out, _beside(out, ".json"), _beside(out, ".tables.json")]
    if decoder:
        paths += [made.decoder_path(out), _beside(made.decoder_path(out), ".json")]
    for path in paths:
        files.check_new(path, what="the file", overwrite=args.overwrite)
    return paths


def _format(args: argparse.Namespace) -> str:
    """`--format`, or that of the ending of OUT."""
    suffix = Path(args.out).suffix
    by_ending = {ending: name for name, ending in FORMATS.items()} | {"": "web"}
    kind = args.format or by_ending.get(suffix)
    ends = suffix not in FORMATS.values() if kind == "web" else FORMATS.get(kind) == suffix
    if not ends:
        wanted = FORMATS.get(kind, "nothing, as it is a folder")
        raise ValueError(
            f"the file must end in {wanted}, got {args.out}"
            if kind
            else f"the file must end in {', '.join(FORMATS.values())}, got {args.out}; or give "
            "--format=web and a folder"
        )
    if kind != "web" and not _takes_tables(args, kind):
        usual = {name: FLAGS[name]["default"] for name in ("tables", "table_steps")}
        for flag in (name for name, value in usual.items() if getattr(args, name) != value):
            raise ValueError(f"--{flag} is for graphs that run any table: add --per_row")
    taken = {"from_noise": "stablehlo", "cdn": "web"}
    for flag, of in taken.items():
        if getattr(args, flag) and kind != of:
            raise ValueError(f"--{flag} is for --format={of}, got --format={kind}")
    if args.dtype == "int8" and kind != "litert":
        raise ValueError(f"--dtype=int8 is for --format=litert, got --format={kind}; use float16")
    if args.batch != 1 and kind != "litert":
        raise ValueError(f"--batch is for --format=litert: the batch of {kind} is open")
    if args.cdn is not None and not args.cdn.startswith(("https://", "http://")):
        raise ValueError(f"--cdn must be an address that begins with https://, got {args.cdn!r}")
    if args.from_noise and args.per_row:
        raise ValueError("--per_row always takes noise: leave out --from_noise")
    return kind


def _takes_tables(args: argparse.Namespace, kind: str) -> bool:
    return kind == "stablehlo" or args.per_row


def _load(args: argparse.Namespace, name: str) -> tuple[Model, Recipe]:
    """The model and the recipe that the flags name, checked."""
    if args.solver == ADAPTIVE:
        _refuse_adaptive()
    model = checkpoints.load(name, lora=args.lora).sized(command_line.size(args.size))
    recipe = _recipe(args, model.recipe)
    model.check(recipe)
    if recipe.solver == ADAPTIVE:
        _refuse_adaptive()
    if model.inputs.channels:
        raise ValueError(f"{model.name} completes pictures, and is not exported")
    if model.codec.frames:
        raise ValueError(
            f"{model.name} draws clips, which are not exported: draw them by sample.py, or in "
            "Python by ddim_jax.load"
        )
    return model, recipe


def _refuse_adaptive() -> None:
    raise ValueError(
        "solver=adaptive chooses its steps while it draws and has no table to export: name another "
        "--solver, such as unipc_2"
    )


def _recipe(args: argparse.Namespace, own: Recipe) -> Recipe:
    """A model's own recipe, with what the flags replace."""
    interval = None
    if args.guidance_interval is not None:
        try:
            interval = tuple(float(end) for end in args.guidance_interval.split(","))
        except ValueError:
            raise ValueError(
                f"guidance_interval must be low,high like 0.2,5, got {args.guidance_interval}"
            ) from None
    chosen = own.replace(
        solver=args.solver,
        guidance_scale=args.guidance_scale,
        guidance_interval=interval,
        guidance_rescale=args.guidance_rescale,
        guidance_channels=args.guidance_channels,
        clip=args.clip,
    ).replace(stride=args.stride, steps=args.steps)
    options = parse_options(args.solver_options, "--solver_options")
    options |= {} if args.eta is None else {"eta": args.eta}
    stride_options = parse_options(args.stride_options, "--stride_options")
    return chosen.replace(
        solver_options={**chosen.solver_options, **options},
        stride_options={**chosen.stride_options, **stride_options},
    )


def _tables(args: argparse.Namespace, model: Model, recipe: Recipe) -> dict[str, SolverTable]:
    return tables.collect(model, recipe, args.tables, args.table_steps)


def _write(args: argparse.Namespace, kind: str, out: Path, model: Model, recipe: Recipe) -> None:
    """Converts, compares, writes."""
    open_table = _takes_tables(args, kind)
    dtype = args.dtype or "float32"
    table = recipe.table(model.schedule).validate()
    found = {tables.name_of(recipe, table): table}
    if open_table:
        found = _tables(args, model, recipe)
    elif table.nfe > MOST_UNROLLED:
        raise ValueError(
            f"a graph of {table.nfe} evaluations, one after the other, is too long: at most "
            f"{MOST_UNROLLED}; take fewer steps, or --per_row, which runs any table"
        )
    stored = graph.stored_as(model, dtype)
    print(f"converting {model.name} for {kind} ...", flush=True)
    converted, form = _convert(args, kind, stored, recipe, table)
    cases = graph.cases(model, recipe, tables.few(found))
    apart = made.differences(converted, cases)
    made.check(apart, dtype)
    about = made.manifest(converted, model, recipe, dtype, apart, format=kind, form=form)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _all_or_none(_check_new(args, model.draws_latents)):  # others may have appeared
        if model.draws_latents:
            about["decoder"] = _write_decoder(args, kind, out, stored, cases, about)
        for path in _of_another_form(out, keep_decoder=model.draws_latents):
            path.unlink(missing_ok=True)
        if open_table:
            about["tables"] = _beside(out, ".tables.json").name
            text = json.dumps(tables.as_json(found, model))
            files.replace(_beside(out, ".tables.json"), lambda file: file.write(text.encode()))
        files.replace(out, lambda file: file.write(converted.data))
        files.write_json(_beside(out, ".json"), about)
    print(f"{out}: {len(converted.data) / 1e6:.2f} MB, {form}, {dtype}")


@contextlib.contextmanager
def _all_or_none(paths: list[Path]) -> Iterator[None]:
    """Of files that belong together all are written, or where none was before, none."""
    new = {path for path in paths if not path.exists()}
    interrupts.unfinished.update(new)
    try:
        yield
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
    finally:
        interrupts.unfinished.difference_update(new)


def _of_another_form(out: Path, keep_decoder: bool) -> list[Path]:
    """What stands beside a file that is replaced, and may not be of the new one."""
    paths, manifest = [_beside(out, ".tables.json")], _beside(out, ".json")
    if manifest.exists() and not keep_decoder:
        name = None
        with contextlib.suppress(ValueError):  # one that is damaged names none
            name = files.read_json(manifest).get("decoder")
        if name == made.decoder_path(out).name:
            paths += [out.with_name(name), out.with_name(f"{name}.json")]
    return paths


def _write_decoder(args: Any, kind: str, out: Path, model: Model, cases: Any, about: dict) -> str:
    """Writes what makes pictures of a network's latents; returns the name of the file."""
    options = {"batch": args.batch, "int8": args.dtype == "int8"} if kind == "litert" else {}
    converted = MODULES[kind].make_decoder(model, **options)
    apart = [made.decoder_difference(converted, model, cases)]
    made.check(apart, about["dtype"])
    path = made.decoder_path(out)
    files.replace(path, lambda file: file.write(converted.data))
    own = about | made.described(converted, apart) | {"form": "decoder"}
    files.write_json(_beside(path, ".json"), own)
    print(f"{path}: {len(converted.data) / 1e6:.2f} MB, decoder, {about['dtype']}")
    return path.name


def _convert(args: Any, kind: str, model: Model, recipe: Recipe, table: SolverTable):
    """The file as `Made`, and what it is in a word."""
    form = "row" if args.per_row else "steps"
    if kind == "stablehlo":
        form = "row" if args.per_row else "noise" if args.from_noise else "seed"
        return stablehlo.make(model, recipe, form), form
    if kind == "onnx":
        return onnx_file.make(model, recipe, None if args.per_row else table), form
    options = {"batch": args.batch, "int8": args.dtype == "int8"}
    return litert.make(model, recipe, None if args.per_row else table, **options), form


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


if __name__ == "__main__":
    main()
