"""Writes clips to files that move, or to a sheet of their frames; the file's ending says which.

    save_clips("clips.gif", clips, frame_rate=8)    also .webp, .apng, .mp4; several clips in a grid
    save_clips("clips.png", clips)                  a row of frames for each clip

WebP and APNG keep every pixel; GIF has 256 colours a frame, and MP4 (by imageio-ffmpeg, the extra
"video") is compressed. What drew the clips is kept in all but MP4, see `provenance`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ddim_jax import files
from ddim_jax.data import clip_files
from ddim_jax.data.images import PathLike, grid, png_info, save_grid, to_pil
from ddim_jax.names import check_range

MOVING = (".gif", ".webp", ".apng", ".mp4")
"""Endings of files that move."""
FRAME_RATE = 8.0
"""Frames a second of what says none."""
DESCRIPTION = 0x010E
"""Of the tag of EXIF in which a WebP says what drew it."""


def save_clips(
    path: PathLike,
    clips: Any,
    frame_rate: float = FRAME_RATE,
    labels: Sequence[Any] | None = None,
    *,
    columns: int | None = None,
    scale: int | None = None,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes clips to one file, making its folder where needed.

    Args:
        path: of the file, which ends in .gif, .webp, .apng or .mp4, or in .png for a sheet.
        clips: [N, T, H, W, C] uint8 with C = 1 or 3.
        frame_rate: frames a second; a sheet needs none.
        labels: N labels, one above each clip.
        columns: clips in a row; of a sheet frames in a row. Default see `images.grid`.
        scale: whole number of screen pixels per pixel; default see `images.grid`.
        overwrite: replace an existing file.
        about: JSON kept in the file, see `provenance.about`; MP4 keeps none.

    Raises:
        FileExistsError: the file exists and `overwrite` is not set.
        ValueError: another ending; shapes, dtype, a rate or counts that do not fit; MP4 without
            imageio-ffmpeg.
    """
    path = files.check_new(path, suffixes=(*MOVING, ".png"), overwrite=overwrite)
    check_writable(path, frame_rate)
    clips = np.asarray(clips)
    if clips.ndim != 5:
        raise ValueError(
            f"save_clips takes uint8 [N, T, H, W, C] clips, got {clips.dtype} {list(clips.shape)}; "
            "save_grid writes pictures, clips[None] is one clip"
        )
    if path.suffix == ".png":
        sheet: dict[str, Any] = {
            "columns": columns,
            "scale": scale,
            "overwrite": overwrite,
            "about": about,
        }
        return save_grid(path, clips, labels, **sheet)
    options: dict[str, Any] = {"columns": columns, "scale": scale}
    options["padding"] = 2 if len(clips) > 1 else 0
    frames = [grid(clips[:, t], labels, **options) for t in range(clips.shape[1])]
    if path.suffix == ".mp4":
        content = _mp4(frames, frame_rate)
        return files.save(path, lambda file: file.write(content))
    write = {".gif": _write_gif, ".webp": _write_webp, ".apng": write_apng}[path.suffix]
    files.save(path, lambda file: write(file, frames, frame_rate, about))


def check_writable(path: Path, frame_rate: float) -> None:
    """Checks what `save_clips` needs, before clips are drawn.

    Raises:
        ValueError: a rate out of range; MP4 without imageio-ffmpeg.
    """
    if path.suffix != ".png":
        check_range("frame_rate", frame_rate, "[0.1, 100]", "8 frames a second is usual")
    if path.suffix == ".mp4":
        clip_files.ffmpeg()


def write_apng(
    file: BinaryIO, frames: Sequence[Any], frame_rate: float, about: Mapping[str, Any] | None = None
) -> None:
    """Writes frames, Pillow images or uint8 [T, H, W, C], as an endless animated PNG."""
    images = [f if isinstance(f, Image.Image) else to_pil(f) for f in frames]
    # opaque frames look alike under either; but two that are equal are not made one, longer frame
    blend = [t % 2 for t in range(len(images))]
    images[0].save(
        file, "PNG", save_all=True, append_images=images[1:], duration=1000 / frame_rate, loop=0,
        blend=blend, pnginfo=png_info(about),
    )  # fmt: skip


def _write_gif(file: BinaryIO, frames: list, frame_rate: float, about: Any) -> None:
    ends = np.rint(100 * np.arange(len(frames) + 1) / frame_rate)  # GIF counts in hundredths
    durations = np.maximum(10 * np.diff(ends), 10).astype(int).tolist()
    comment = {} if about is None else {"comment": json.dumps(about).encode()}
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, **comment
    )


def _write_webp(file: BinaryIO, frames: list, frame_rate: float, about: Any) -> None:
    exif = Image.Exif()
    if about is not None:
        exif[DESCRIPTION] = json.dumps(about)
    frames = [frame.convert("RGB") for frame in frames]
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=1000 / frame_rate, loop=0,
        lossless=True, exif=exif,
    )  # fmt: skip


def _mp4(frames: list[Image.Image], frame_rate: float) -> bytes:
    """An MP4 that all players take, whose sides must be even: a white line is put beside odd ones.

    Raises:
        ValueError: imageio-ffmpeg is not there.
    """
    width, height = (side + side % 2 for side in frames[0].size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.mp4"
        stream = clip_files.ffmpeg().write_frames(
            str(path), (width, height), fps=frame_rate, codec="libx264", quality=8,
            macro_block_size=2,
        )  # fmt: skip
        stream.send(None)
        for frame in frames:
            whole = Image.new("RGB", (width, height), "white")
            whole.paste(frame, (0, 0))
            stream.send(whole.tobytes())
        stream.close()
        return path.read_bytes()
