"""Reads the pictures that the editing commands start from, and writes what they make of them."""

import argparse
import itertools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddim_jax import command_line, data, experiment, files, provenance
from ddim_jax.data import clip_writers, folders, npz
from ddim_jax.editing import clips
from ddim_jax.evaluation.features import read_images
from ddim_jax.inputs import Inputs
from ddim_jax.model import Model
from ddim_jax.names import check_range, few, parse_value

Array = np.ndarray
MASKS = ("left", "right", "top", "bottom", "center", "random:SHARE")
"""Masks by name: which part is unknown."""


class Asked(NamedTuple):
    """What a network was told of N pictures: for their file, and for whom judges them.

    Attributes:
        labels: int [N]; None for none.
        class_names: of the labels; () for none.
        texts: N of them; () for none.
    """

    labels: Array | None = None
    class_names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, inputs: Inputs, count: int, labels: Any, texts: Sequence[str]) -> "Asked":
        """Of labels and texts as they are given, in rotation, to a network with these inputs.

        It says so where there are more texts than pictures.
        """
        if len(texts) > count and inputs.takes("text"):
            left = f"{len(texts) - count} left out"
            print(f"note: {len(texts)} texts for {count} images: {left}", file=sys.stderr)
        if labels is not None:
            labels = inputs.labels(labels, count)
        if not texts or not inputs.takes("text"):
            return cls(labels, inputs.class_names)
        return cls(
            labels, inputs.class_names, tuple(itertools.islice(itertools.cycle(texts), count))
        )


NOTHING = Asked()


def read(
    model: Model, args: argparse.Namespace, spec: str | None = None, *, first: int | None = None
) -> tuple[Array, Any, Sequence[str]]:
    """Reads `--images`, or another spec, as samples of a model: what `read_pictures` does, encoded.

    Returns:
        [N, *sample_shape], labels and texts.
    """
    pictures, labels, texts = read_pictures(model, args, spec, first=first)
    return np.asarray(model.codec.encode(model.codec.params, pictures, None)), labels, texts


def read_pictures(
    model: Model, args: argparse.Namespace, spec: str | None = None, *, first: int | None = None
) -> tuple[Array, Any, Sequence[str]]:
    """Reads `--images`, or another spec, and what the network is told of them.

    Args:
        model: whose codec says what size they have.
        args: `images`, `split`, `resize`, and which of them: `index`, or `only`, `shuffle` and
            `num`; also `label` and `prompt`, of commands that have them.
        spec: as `--images`.
        first: read so many from the beginning, whatever `index`, `only` and `num` say.

    Returns:
        uint8 [N, H, W, C], of clips [N, T, H, W, C]; `--label`, or else the labels int [N], None
        where they are not of the model's classes; the texts of `--prompt`, or else the captions, ()
        where there are none.

    Raises:
        ValueError: pictures of another size or mode than the model's, unless `--resize`; none;
            clips that are too short, or with a model of pictures.
        OSError: a file that is not there, or cannot be read.
    """
    frames, shape = model.codec.frames, tuple(model.codec.picture_shape)
    own = "" if spec or args.images else ", --images names others"
    spec = spec or args.images or (model.config.data.name if frames else "digits")
    given = vars(args)  # some commands do not have all flags
    texts = command_line.prompts(given.get("prompt") or ())
    made = spec == "moving_digits"  # of any size
    size, channels = shape[-3:-1] if args.resize or made else None, shape[-1]
    captions: Sequence[str] = ()
    if Path(spec).is_file() and Path(spec).suffix.lower() == ".npz":
        spec = f"npz:{spec}"
    if Path(spec).is_file():
        path, labels = Path(spec), None
        if frames:
            pictures = clips.read_file(model, path, args.resize)
        else:
            pictures = _read_file(path, size, channels, args.resize)[None]
    else:
        spec = f"{'clips' if frames else 'folder'}:{spec}" if Path(spec).is_dir() else spec
        source = data.load(
            spec, args.split, image_size=size, channels=channels if args.resize else None,
            frames=frames or None, **(experiment.cut(model.config) if frames else {}),
        )  # fmt: skip
        if source.autoencoder:
            raise ValueError(f"{spec} holds latents: name the {source.noun} by --images")
        if source.frames and not frames:
            raise ValueError(
                f"{spec} holds clips, and {model.name} draws pictures: use the checkpoint of a "
                "network of clips"
            )
        index = _choose(args, source) if first is None else range(min(first, len(source)))
        pictures, labels = read_images(source, index)
        labels = model.inputs.labels_of(source, labels)
        asked = given.get("label") is not None
        if labels is None and source.num_classes and model.inputs.num_classes and not asked:
            held = f"{source.num_classes} classes"
            held += f" ({few(source.class_names)})" if source.class_names else ""
            print(
                f"note: the {held} of {spec} are not the network's, which is told none; --label "
                "says one",
                file=sys.stderr,
            )
        captions = [source.captions[i] for i in index] if source.captions else ()
    if pictures.shape[1:] != shape:
        raise ValueError(
            f"{spec} holds images of shape {pictures.shape[1:]}, {model.name} draws {shape}; "
            f"--resize crops and resizes them{own}"
        )
    asked = given.get("label")
    return pictures, labels if asked is None else asked, texts or captions


def _read_file(path: Path, size: Any, channels: int, resize: bool) -> Array:
    """One picture, uint8 [H, W, C]; an RGB file that is grey has C = 1 if the model's are grey."""
    folders.check_files(path.parent, [path])
    picture = folders.read_file(path, size, channels if resize else 3)
    grey = channels == 1 and np.all(picture == picture[..., :1])
    return picture[..., :1] if grey else picture


def _choose(args: argparse.Namespace, source: data.Source) -> list[int]:
    """Places in the source, as `--index`, or `--only`, `--shuffle` and `--num`, say."""
    if args.index:
        outside = [i for i in args.index if not 0 <= i < len(source)]
        if outside:
            raise ValueError(f"--index must be 0..{len(source) - 1}, got {outside[0]}")
        return args.index
    places = range(len(source))
    if args.shuffle:
        places = np.random.default_rng(args.seed).permutation(len(source)).tolist()
    if args.only is not None:
        names = [name.casefold() for name in source.class_names]
        own = args.only.strip().casefold()
        label = names.index(own) if own in names else parse_value(own)
        places = (i for i in places if source[i]["label"] == label)
    index = list(itertools.islice(places, args.num))
    if 0 < len(index) < args.num:
        print(
            f"note: there are {len(index)} such images, fewer than --num={args.num}",
            file=sys.stderr,
        )
    if not index:
        named = f" ({few(source.class_names)})" if source.class_names else ""
        raise ValueError(
            f"--only={args.only}: {source.name} holds no image of that class; its classes are "
            f"0..{source.num_classes - 1}{named}"
        )
    return index


def of_frames(args: argparse.Namespace) -> bool:
    """Whether whole frames of clips are known."""
    return args.operator == "mask" and args.mask.startswith("frames:")


def read_mask(args: argparse.Namespace, shape: tuple[int, ...]) -> Array:
    """Reads `--mask`, a file or a name in `MASKS`, for images [N, H, W, C]; 1 where it is known.

    With `--resize` a file is cropped and resized as the images are. For clips [N, T, H, W, C] a
    file may move, and frames:4-11 names frames that are unknown; any other holds for all frames.

    Returns:
        [N, H, W, 1] float32, of clips [N, T, H, W, 1].

    Raises:
        ValueError: an unknown name, a file of another size or number of frames.
    """
    height, width = shape[-3:-1]
    name, _, share = args.mask.partition(":")
    if name == "frames" and len(shape) == 5:
        mask = clips.known_frames(share, shape[1])[:, None, None]
    elif len(shape) == 5 and clips.moves(args.mask):
        mask = clips.moving_mask(Path(args.mask), shape[1:4], args.resize)
    elif Path(args.mask).is_file():
        mask = _mask_of_file(Path(args.mask), (height, width), args.resize)
    elif name == "random":
        share = number(share, 0.5, "--mask=random:SHARE")
        check_range("the share of --mask=random:SHARE", share, "[0, 1]")
        mask = np.random.default_rng(args.seed).random((height, width)) > share
    else:
        mask = _mask_of_name(args.mask, height, width)
    whole = np.broadcast_to(mask[..., None], (*shape[:-1], 1))
    return whole.astype(np.float32)


def _mask_of_file(path: Path, size: tuple[int, int], resize: bool) -> Array:
    folders.check_files(path.parent, [path])
    grey = folders.read_file(path, size if resize else None, 1)[..., 0]
    if grey.shape != size:
        raise ValueError(
            f"--mask {path} is {grey.shape[0]} x {grey.shape[1]}, the images are {size[0]} x "
            f"{size[1]}; white is known, black is to be drawn; --resize crops and resizes both"
        )
    return grey > 127


def _mask_of_name(name: str, height: int, width: int) -> Array:
    down, across = np.arange(height)[:, None], np.arange(width)
    left, top = across < width // 2, down < height // 2
    inner_rows = (height // 4 <= down) & (down < height - height // 4)
    inner_columns = (width // 4 <= across) & (across < width - width // 4)
    unknown = {"left": left, "right": ~left, "top": top, "bottom": ~top}
    unknown["center"] = inner_rows & inner_columns
    if name not in unknown:
        raise ValueError(f"--mask must be a file or one of {', '.join(MASKS)}, got {name}")
    return np.broadcast_to(~unknown[name], (height, width))


def number(text: str, default: float, what: str) -> float:
    """Returns the finite number that a text holds, or the default of an empty one."""
    value = parse_value(text) if text else default
    try:
        check_range(what, value)
    except ValueError:
        raise ValueError(f"{what} needs a number like {default:g}, got {text!r}") from None
    return value


def folder_of(args: argparse.Namespace) -> Path:
    """Where results go: the folder of `--out`, or edits/."""
    return Path(args.out).parent if args.out else Path("edits")


def write(
    model: Model,
    args: argparse.Namespace,
    rows: dict[str, Array],
    numbers: dict[str, Any],
    columns: int | None = None,
    *,
    asked: Asked = NOTHING,
    kept: str | None = None,
) -> None:
    """Writes rows of samples as a contact sheet, or a GIF, and the numbers as JSON beside it.

    Clips move, in as many columns as there are on a sheet of pictures.

    Args:
        model: whose codec decodes them.
        args: `out`, `overwrite`; `save`, where a row goes as arrays; `columns`; `began`.
        rows: name -> [N, *sample_shape], or uint8 pictures. A GIF shows one after the other, there
            and back.
        numbers: for the JSON file; single numbers are also printed.
        columns: pictures of a row; default up to `--columns`, and the row's name above it.
        asked: what the network was told of a row's pictures, for `--save`.
        kept: the row that `--save` keeps; default the last.
    """
    moves = model.codec.frames > 0
    ending = ".gif" if moves else ".png"
    out = Path(args.out or files.next_free(folder_of(args), args.command, ending))
    pictures = {name: decoded(model, row) for name, row in rows.items()}
    if out.suffix == ".gif" and not moves:
        scale = max(1, 128 // model.codec.picture_shape[0])  # twice the size it has on a sheet
        frames = [data.grid(one[None], scale=scale) for row in pictures.values() for one in row]
        data.save_gif(out, [*frames, *frames[-2:0:-1]], 80, overwrite=args.overwrite)
    else:
        most = min(columns or args.columns, *(len(row) for row in pictures.values()))
        tiles = np.concatenate([row[:most] for row in pictures.values()])
        names = [text for name in pictures for text in (name, *[""] * (most - 1))]
        labels = None if columns else names
        options = {"overwrite": args.overwrite, "about": about_edit(model, args)}
        if out.suffix == ".png" and moves:
            data.save_grid(out, tiles, labels, **options)
        elif moves:
            rate = model.frame_rate or clip_writers.FRAME_RATE
            data.save_clips(out, tiles, rate, labels, columns=most, **options)
        else:
            data.save_grid(out, tiles, labels, columns=most, **options)
    if args.save:
        images = pictures[kept or list(pictures)[-1]]
        rate = model.frame_rate
        arrays = npz.arrays(images, asked.labels, asked.class_names, asked.texts, rate)
        arrays |= {provenance.NPZ: json.dumps(about_edit(model, args))}
        files.save(Path(args.save), lambda file: np.savez(file, **arrays))
    files.write_json(out.with_suffix(".json"), numbers | {"seconds": time.time() - args.began})
    print(f"{out}: {summary(numbers)}")


def decoded(model: Model, row: Array) -> Array:
    """A row of samples, or of uint8 pictures, as uint8 pictures [N, H, W, C]."""
    return row if row.dtype == np.uint8 else model.pictures(row)


def about_edit(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """What made an edited picture, for its file: the command and the model."""
    command = ["python -m ddim_jax edit", args.command]
    for name, value in vars(args).items():
        unset = value is None or value is False or value == []
        if name not in ("command", "work", "began") and not unset:
            flag = "method" if name == "restoration" else name
            again = name in ("prompt", "lora")  # flags that are given again for more
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            texts = value if again else [text]
            words = [shlex.quote(f"--{flag}={text}") for text in texts]
            command += [f"--{flag}"] if value is True else words
    return provenance.maker(model) | {"command": " ".join(command)}


def summary(numbers: dict[str, Any]) -> str:
    """The single numbers and texts among the values, numbers to four digits."""
    single = {key: value for key, value in numbers.items() if isinstance(value, (int, float, str))}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in single.items()
    )
