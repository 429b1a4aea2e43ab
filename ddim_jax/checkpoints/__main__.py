"""Converts a checkpoint: to one `.safetensors` file, or to a folder that diffusers reads.

    python -m ddim_jax.checkpoints runs/digits digits.safetensors --dtype=float16
    python -m ddim_jax.checkpoints runs/cifar10 cifar10-diffusers
    python -m ddim_jax.checkpoints stable-diffusion sd.safetensors        # a published folder
    python -m ddim_jax.checkpoints sd.safetensors stable-diffusion        # and back
    python -m ddim_jax.checkpoints runs/style style.safetensors --lora    # of a run with train.lora
    python -m ddim_jax.checkpoints runs/student student.safetensors --base=emoji --dtype=int8
    python -m ddim_jax.checkpoints v1-5.safetensors sd15 --tokenizer=stable-diffusion/tokenizer

The file of a pipeline holds its autoencoder, text encoders and tokenizers too. With `--base`, a
model of the package that the run started from, it holds what training changed, and of a run with
`train.lora` the factors.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from ddim_jax import command_line, files
from ddim_jax.checkpoints import (
    eight_bits,
    hub,
    load,
    lora,
    packaged,
    parts,
    pipelines,
    single_file,
    weights_file,
)
from ddim_jax.checkpoints.parts import Pipeline
from ddim_jax.checkpoints.tensors import cast


def main(argv: list[str] | None = None) -> None:
    """Parses, loads, writes."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint",
        help="training workdir, file, bundled name, folder of diffusers, hf:ORG/NAME, or original "
        "single file of Stable Diffusion, DiT or SiT",
    )
    parser.add_argument("file", help="ends in .safetensors, or is a folder for diffusers")
    dtypes = weights_file.DTYPES
    parser.add_argument("--dtype", choices=dtypes, help="of the weights; default: as they are")
    parser.add_argument("--tokenizer", help="folder of the tokenizer, of an original single file")
    parser.add_argument("--autoencoder", help="its folder, of an original file of DiT or SiT")
    parser.add_argument(
        "--prediction", choices=("eps", "v", "flow"), help="of an original single file"
    )
    parser.add_argument("--lora", action="store_true", help="its low-rank factors alone, for peft")
    parser.add_argument("--base", help="model in the package: leave out what equals it")
    args = parser.parse_args(argv)
    command_line.run("checkpoints", lambda: _export(args))


def _export(args: argparse.Namespace) -> None:
    path = Path(args.file)
    suffixes = (".safetensors",) if path.suffix or args.lora else ()
    files.check_new(path, what="the file", suffixes=suffixes, overwrite=None)
    if args.dtype == eight_bits.NAME and (args.lora or not path.suffix):
        raise ValueError(
            f"--dtype={args.dtype} is for one .safetensors file that ddim_jax reads; take float16"
        )
    if args.base and (args.lora or not path.suffix):
        raise ValueError("--base is for one .safetensors file that ddim_jax reads, without --lora")
    if args.base:
        packaged.reference(args.base)
    if args.lora:
        _export_lora(args.checkpoint, path, args.dtype or "float32")
        return
    pipeline, step = _read(args)
    said = f"step {step}, " if step else ""
    if path.suffix:
        weights_file.save_pipeline(path, pipeline, args.dtype, step, args.base)
        print(f"{path}: {said}{path.stat().st_size / 1e6:.2f} MB")
        return
    if args.dtype:
        to = lambda value: cast(np.asarray(value), args.dtype, "a parameter")  # noqa: E731
        pipeline = Pipeline(
            pipeline.config, *jax.tree.map(to, jax.device_get(pipeline[1:4])), pipeline.tokenizers
        )
    pipelines.write(path, pipeline)
    print(f"{path}: {said}as diffusers reads it")
    scale = (pipeline.config.get("sample") or {}).get("guidance_scale")
    if scale not in (None, 1):
        print(f"note: guidance_scale={scale:g} is not in it; diffusers takes one in every call")


def _read(args: argparse.Namespace) -> tuple[Pipeline, int]:
    """The checkpoint, whatever it is, and its step."""
    given, packed = args.checkpoint, args.dtype == eight_bits.NAME
    dtype = None if packed else args.dtype
    path = hub.local(given, dtype)
    original = path.is_file() and single_file.is_original(path)
    for name in ("tokenizer", "autoencoder", "prediction"):
        if getattr(args, name) and not original:
            raise ValueError(f"--{name} is for original single files, and {given} is none")
    if original:
        options = dict(tokenizer=args.tokenizer, autoencoder=args.autoencoder)
        return single_file.read(path, dtype, **options, prediction=args.prediction), 0
    if path.is_dir() and pipelines.is_folder(path):
        return pipelines.read(path, dtype), 0
    if path.is_file():
        return weights_file.read_pipeline(path)
    model = load(given)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.params)):
        raise ValueError(f"{given} has shapes and no weights to convert: give a checkpoint")
    return parts.pipeline_of(model), model.step


def _export_lora(checkpoint: str, path: Path, dtype: str) -> None:
    from ddim_jax.checkpoints import workdir

    changed = workdir.read_factors(Path(checkpoint))
    linear = pipelines.linear_projection(changed.base.config)
    lora.save(path, changed.factors, changed.base.network, changed.low_rank, dtype, linear)
    size = path.stat().st_size / 1e6
    print(f"{path}: step {changed.step}, rank {changed.low_rank.rank}, {size:.2f} MB")


if __name__ == "__main__":
    main()
