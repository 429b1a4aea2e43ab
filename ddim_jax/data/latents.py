"""Encodes a data set to latents, once; training then reads `latents:DIR`.

    python -m ddim_jax.data.latents folder:photos --resize=256 --autoencoder=MODEL --out=DIR --flip
    python train.py --config=imagenet256_dit --config.data.name=latents:DIR \\
        --config.codec.start_from=MODEL

MODEL is a run of `loss.name="autoencoder"`, or the folder of a pipeline that has one. Mean and
standard deviation of every latent are kept, with labels and captions, and with --flip those of
each mirrored image. Of clips (--frames) the first frames are encoded, one by one. Processes share
the work as those of train.py do; all of them must see DIR. The same command goes on where it was
stopped. `latent_sets.py` is the format.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm

from ddim_jax import codecs, command_line, data, experiment, files, interrupts, parallel
from ddim_jax.data import captions, latent_sets
from ddim_jax.fingerprints import fingerprint
from ddim_jax.names import parse_value
from ddim_jax.training import around, teacher


def encode(
    source: data.Source,
    autoencoder: str,
    folder: Path,
    *,
    flip: bool = False,
    split: str = "train",
) -> None:
    """Encodes what is missing of a set; every process its shards, with a progress bar.

    Args:
        source: pictures.
        autoencoder: see the module.
        folder: of the set; one that holds some of the same is completed.
        flip: encode mirrored images too.
        split: that the source is of, which the set remembers.

    Raises:
        FileNotFoundError: the autoencoder is not there.
        ValueError: it is none, or of other pictures; the folder holds other latents.
        OSError: a folder of other files, or one that cannot be written into.
    """
    files.check_origin(folder / latent_sets.ABOUT, {}, "latents")  # before a scale is measured
    section, params = around.autoencoder(autoencoder, source, _scale(folder))
    network = experiment.build_autoencoder(section)
    codec = codecs.latents(network, source.shape, params)
    about = {
        "source": teacher.fingerprint(source),
        "content": teacher.fingerprint(source, 256),
        "weights": fingerprint(params),
        "codec": section,
        "count": len(source),
        "image_shape": source.image_shape,
        "moments_shape": [*codec.sample_shape[:-1], 2 * codec.sample_shape[-1]],
        "num_classes": source.num_classes,
        "class_names": source.class_names,
        "captions": bool(source.captions),
        "mirrors": flip,
        "split": split,
    } | _of_clips(source)
    files.check_origin(folder / latent_sets.ABOUT, about, "latents")
    _together("begin")  # all know what is missing before one writes
    shards = latent_sets.shards(folder)
    missing = shards.missing(len(source))
    _together("missing")
    if jax.process_index() == 0:
        _describe(folder, about | {"autoencoder": autoencoder}, source)
    _together("described")
    interrupts.keeping(f"what is encoded is kept in {folder}; the same command goes on")
    _encode_shards(
        source, latent_sets.Encoder(codec, flip), shards,
        missing[jax.process_index() :: jax.process_count()],
    )  # fmt: skip
    _together("end")


def _of_clips(source: data.Source) -> dict[str, Any]:
    """What is kept of clips beside."""
    if not source.frames:
        return {}
    rates = source.told.get("frame_rate")
    return {"frames": source.frames, "frame_rate": None if rates is None else rates.tolist()}


def _scale(folder: Path) -> float | None:
    """That of a set which was begun: measured again it could be another in the last digit."""
    file = folder / latent_sets.ABOUT
    return files.read_json(file).get("codec", {}).get("scale") if file.is_file() else None


def _describe(folder: Path, about: dict[str, Any], source: data.Source) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / latent_sets.ABOUT, about)
    if source.captions:
        texts = json.dumps(list(source.captions), ensure_ascii=False)
        files.replace(folder / latent_sets.CAPTIONS, lambda file: file.write(texts.encode()))


def _encode_shards(source, encoder: latent_sets.Encoder, shards, missing: list[range]) -> None:
    total = sum(map(len, missing))
    with tqdm(total=total, unit="img", desc="latents", disable=not sys.stderr.isatty()) as bar:
        for places in missing:
            moments, labels = encoder(source, places, bar.update)
            shards.write(places.start, latent_sets.records(moments, labels))


def _together(name: str) -> None:
    """Waits for the other processes, if there are any."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"latents {name}")


def main(argv: list[str] | None = None) -> None:
    """Encodes a data set to latents."""
    parser = command_line.Parser(description=main.__doc__)
    parser.add_argument("source", help="digits, folder:PATH, clips:PATH, npz:PATH or a TFDS name")
    parser.add_argument("--autoencoder", required=True, help="a trained one, or a pipeline")
    parser.add_argument("--out", required=True, help="folder of the set")
    parser.add_argument("--split", default="train", help="of the source")
    parser.add_argument("--resize", help="pixels of a side, or HEIGHTxWIDTH; default as stored")
    parser.add_argument("--channels", type=int, help="1 grey, 3 RGB; default as stored")
    parser.add_argument("--pad", action="store_true", help="with --resize: crop nothing")
    parser.add_argument("--skip_unreadable", action="store_true", help="leave out such files")
    parser.add_argument("--caption", help="a feature of a TFDS dataset, its captions")
    parser.add_argument("--frames", type=int, help="of clips; default all that they have")
    parser.add_argument(
        "--frame_rate", type=parse_value, help="take so many frames a second of clips, or 'own'"
    )
    parser.add_argument("--frame_stride", type=int, default=1, help="or every so many")
    parser.add_argument("--data_dir", help="where TFDS datasets are")
    parser.add_argument("--flip", action="store_true", help="encode mirrored images too")
    parser.add_argument("--distributed", action="store_true", help="join other processes")
    args = parser.parse_args(argv)
    command_line.run("latents", lambda: run(args))


def _size(given: str | None) -> int | tuple[int, int] | None:
    """What --resize says."""
    sides = [] if given is None else given.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--resize must be like 256 or, HEIGHTxWIDTH, like 48x64, got {given!r}")
    return (int(sides[0]), int(sides[-1])) if sides else None


def run(args: argparse.Namespace) -> None:
    """Joins the other processes, loads, encodes, and says what there is."""
    parallel.join(args.distributed)
    source = data.load(
        args.source, args.split, image_size=_size(args.resize), channels=args.channels,
        data_dir=args.data_dir, pad=args.pad, skip_unreadable=args.skip_unreadable,
        caption=args.caption, frames=args.frames, frame_rate=args.frame_rate,
        frame_stride=args.frame_stride,
    )  # fmt: skip
    if not isinstance(source, data.Source) or source.autoencoder:
        raise ValueError(f"{args.source} holds no pictures; encode the data that it was made of")
    encode(source, args.autoencoder, Path(args.out), flip=args.flip, split=args.split)
    if jax.process_index() == 0:
        for note in filter(None, (source.note, captions.note(source.captions))):
            print(f"note: {note}")
        own = f"--config.data.frames={source.frames} " if source.frames else ""
        what = source.noun + " and their mirrors" * args.flip
        print(
            f"{args.out}: latents of {len(source):,} {what}; "
            "train a network of latents (--config=emoji, imagenet256_dit, ...) with "
            f"--config.data.name=latents:{args.out} {own}"
            f"--config.codec.start_from={args.autoencoder}"
        )


if __name__ == "__main__":
    main()
