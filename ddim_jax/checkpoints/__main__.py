"""Exports a workdir's moving average to one file, or to a folder that diffusers reads.

    python -m ddim_jax.checkpoints runs/digits digits.safetensors [--dtype=float16]
    python -m ddim_jax.checkpoints runs/cifar10 cifar10-diffusers
    python -m ddim_jax.checkpoints runs/style style.safetensors --lora

`sample.py --checkpoint` takes the first two; the last is of a run with `config.train.lora`.
"""

import argparse
from pathlib import Path

from ddim_jax import command_line, files
from ddim_jax.checkpoints import DTYPES, diffusers, load, lora, save


def main(argv: list[str] | None = None) -> None:
    """Parses, loads, writes."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="training workdir, file or bundled name")
    parser.add_argument("file", help="ends in .safetensors, or is a folder for diffusers")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--lora", action="store_true", help="its low-rank factors alone, for peft")
    args = parser.parse_args(argv)
    command_line.run("export", lambda: _export(args))


def _export(args: argparse.Namespace) -> None:
    path = Path(args.file)
    suffixes = (".safetensors",) if path.suffix or args.lora else ()
    files.check_new(path, what="the file", suffixes=suffixes, overwrite=None)
    if args.lora:
        _export_lora(args.checkpoint, path, args.dtype)
        return
    model = load(args.checkpoint)
    if not path.suffix:
        diffusers.write(path, model.config, model.params)
        print(f"{path}: step {model.step}, as diffusers reads it")
        return
    save(path, model, args.dtype)
    print(f"{path}: step {model.step}, {path.stat().st_size / 1e6:.2f} MB")


def _export_lora(checkpoint: str, path: Path, dtype: str) -> None:
    from ddim_jax.checkpoints import workdir

    changed = workdir.read_factors(Path(checkpoint))
    lora.save(path, changed.factors, changed.base.network, changed.low_rank, dtype)
    size = path.stat().st_size / 1e6
    print(f"{path}: step {changed.step}, rank {changed.low_rank.rank}, {size:.2f} MB")


if __name__ == "__main__":
    main()
