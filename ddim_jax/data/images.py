"""Pictures as uint8 arrays: resize them, arrange them on a sheet, write PNG and GIF files.

save_grid("digits.png", pictures)       a contact sheet of uint8 [N, H, W, C]
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from ddim_jax import files

PathLike = str | os.PathLike
Size = int | tuple[int, int] | None
"""Side of a square, or (height, width), in pixels; None: as it is."""
TEXT = "ddim_jax"
"""Keyword of the text in a PNG that says what drew it."""


def grid(
    images: Any,
    labels: Sequence[Any] | None = None,
    *,
    columns: int | None = None,
    scale: int | None = None,
    padding: int = 2,
) -> Image.Image:
    """Returns a contact sheet: images on white, row by row.

    Args:
        images: [N, H, W, C] uint8 with C = 1 or 3, numpy or JAX; clips [N, T, H, W, C] are shown
            by their frames, a row for each.
        labels: N labels, one above each image, or `columns` labels, one above each column. A
            column widens where its label is wider than the image.
        columns: images in a row; default 10 if that leaves no row unfilled, else as many as make
            the sheet about square. Of clips default T, of long ones a part of it.
        scale: whole number of screen pixels per image pixel; nearest neighbour, so small images
            stay sharp. Default: images become about 64 pixels high, or keep their size if higher.
        padding: pixels between images and around the sheet.

    Raises:
        ValueError: shapes, dtype, number of labels or a count that do not fit.
    """
    images = np.asarray(images)
    if images.ndim == 5:
        images, labels, columns = _frames(images, labels, columns)
    _check_images(images)
    if columns is None:
        columns = 10 if len(images) % 10 == 0 else math.isqrt(len(images) - 1) + 1
    if scale is None:
        scale = max(1, 64 // images.shape[1])
    _check_layout(len(images), columns, labels, scale, padding)
    height, width = scale * images.shape[1], scale * images.shape[2]
    texts = [] if labels is None else [str(label) for label in labels]
    font = ImageFont.load_default()
    sizes = [_text_size(font, text) for text in texts]
    column = padding + max([width, *(w for w, _ in sizes)])
    heading = max([0, *(padding + h for _, h in sizes)])
    # labels above each image make every row higher, labels above each column only the first
    first, row = (0, heading) if len(texts) == len(images) else (heading, 0)
    row += height + padding
    size = padding + columns * column, padding + first + -(-len(images) // columns) * row
    sheet = Image.new("L" if images.shape[3] == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(texts):
        at = padding + i % columns * column, padding + i // columns * row
        draw.text(at, text, fill="black", font=font)
    for i, image in enumerate(images):
        tile = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (padding + i % columns * column, heading + padding + i // columns * row))
    return sheet


def _frames(clips: np.ndarray, labels: Any, columns: int | None) -> tuple:
    """Frames of clips as images, with labels above the first of each, and the columns."""
    count, frames = clips.shape[:2]
    if labels is not None and len(labels) == count:
        labels = [text for label in labels for text in (label, *[""] * (frames - 1))]
    if columns is None:  # whole rows, not wider than a page
        columns = max((n for n in range(8, 17) if frames % n == 0), default=frames)
    return clips.reshape(-1, *clips.shape[2:]), labels, columns


def save_grid(
    path: PathLike,
    pictures: Any,
    labels: Sequence[Any] | None = None,
    *,
    columns: int | None = None,
    scale: int | None = None,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes pictures as a contact sheet to a PNG file, making its folder where needed.

    Args:
        path: of the file.
        pictures: [N, H, W, C] uint8 with C = 1 or 3; clips [N, T, H, W, C].
        labels: N labels, one above each picture, or `columns` labels, one above each column.
        columns: pictures in a row; default see `grid`.
        scale: whole number of screen pixels per image pixel; default see `grid`.
        overwrite: replace an existing file.
        about: JSON kept in the file, see `provenance.about`.

    Raises:
        FileExistsError: the file exists and `overwrite` is not set.
        ValueError: another ending than .png; shapes, dtype or counts that do not fit.
    """
    path = files.check_new(path, suffixes=(".png",), overwrite=overwrite)
    sheet = grid(pictures, labels, columns=columns, scale=scale)
    save_png(path, sheet, overwrite=overwrite, about=about)


def to_pil(image: Any) -> Image.Image:
    """Returns a uint8 array [H, W], [H, W, 1] or [H, W, 3] as a Pillow image.

    Raises:
        ValueError: another shape or dtype.
    """
    image = np.asarray(image)
    grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(
            f"an image is uint8 [H, W], [H, W, 1] or [H, W, 3], got {image.dtype} "
            f"{list(image.shape)}; to_uint8 converts from [-1, 1], grid shows a batch"
        )
    return Image.fromarray(np.ascontiguousarray(image.reshape(image.shape[:2]) if grey else image))


def fit(
    image: np.ndarray, size: Size = None, channels: int | None = None, pad: bool = False
) -> np.ndarray:
    """Returns an image of another size or number of channels, or the image itself if it fits.

    Args:
        image: uint8 [H, W, C], C = 1 to 4; with C = 2 or 4 the last is opacity.
        size: resize, antialiased, to this many pixels, or to (height, width); what sticks out of
            that shape is cropped away, evenly on both sides.
        channels: 1 for grey, 3 for RGB.
        pad: crop nothing, put black bars beside it.

    Returns:
        uint8 [H, W, C].
    """
    fits = size is None or image.shape[:2] == height_width(size)
    if fits and channels in (None, image.shape[2]):
        return image
    return fit_pil(
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image), size, channels, pad
    )


def fit_pil(image: Image.Image, size: Size, channels: int | None, pad: bool = False) -> np.ndarray:
    """Does what `fit` does to a Pillow image; transparent parts turn white, 16 bits become 8."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) / 257).round().astype("uint8"))
    if channels is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if channels is not None:
        image = image.convert({1: "L", 3: "RGB"}[channels])
    if size is not None and image.size != height_width(size)[::-1]:
        if pad:
            return fit_pil(ImageOps.pad(image, height_width(size)[::-1]), None, channels)
        image = _central(image, *height_width(size)).resize(
            height_width(size)[::-1], Image.Resampling.BICUBIC
        )
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], -1)


def _central(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of an image that has the proportions of a size."""
    w = min(image.width, max(1, round(image.height * width / height)))
    h = min(image.height, max(1, round(image.width * height / width)))
    left, top = (image.width - w) // 2, (image.height - h) // 2
    return image.crop((left, top, left + w, top + h))


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """A size as (height, width); one number means a square.

    Raises:
        ValueError: neither one number nor two.
    """
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"a size is one number or (height, width), got {sides}")
    return sides


def save_png(
    path: PathLike, image: Any, *, overwrite: bool = False, about: Mapping[str, Any] | None = None
) -> None:
    """Writes a PNG file, making its folder where needed.

    Args:
        path: of the file.
        image: a Pillow image, or a uint8 array [H, W], [H, W, 1] or [H, W, 3].
        overwrite: replace an existing file.
        about: JSON kept in the file, see `provenance.about`.

    Raises:
        FileExistsError: the file exists and `overwrite` is not set.
    """
    image = image if isinstance(image, Image.Image) else to_pil(image)
    _write_new(path, lambda file: write_png(file, image, about), overwrite)


def write_png(file: BinaryIO, image: Image.Image, about: Mapping[str, Any] | None = None) -> None:
    """Writes a Pillow image as PNG, with a text that says what drew it, if that is given."""
    image.save(file, "PNG", pnginfo=png_info(about))


def png_info(about: Mapping[str, Any] | None) -> PngInfo:
    """The text of a PNG that says what drew it, if that is given."""
    info = PngInfo()
    if about is not None:
        info.add_text(TEXT, json.dumps(about), zip=True)
    return info


def save_gif(
    path: PathLike, frames: Sequence[Any], duration: int, *, overwrite: bool = False
) -> None:
    """Writes an endlessly looping GIF file, making its folder where needed.

    Args:
        path: of the file.
        frames: Pillow images, or uint8 arrays [H, W], [H, W, 1] or [H, W, 3], of one size.
        duration: milliseconds each frame is shown; GIF counts in steps of 10.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and `overwrite` is not set.
        ValueError: no frames, frames of different sizes, or a `duration` below 10.
    """
    images = [f if isinstance(f, Image.Image) else to_pil(f) for f in frames]
    if not images or len({image.size for image in images}) > 1:
        sizes = sorted({image.size for image in images})
        raise ValueError(
            f"a GIF needs one or more frames of one size, got {len(images)} frames of sizes "
            f"{sizes}; resize them first"
        )
    if duration < 10:
        raise ValueError(
            f"duration must be 10 milliseconds or more, got {duration}; 100 is ten frames a second"
        )
    options = {"save_all": True, "append_images": images[1:], "duration": duration, "loop": 0}
    _write_new(path, lambda file: images[0].save(file, "GIF", **options), overwrite)


def _write_new(path: PathLike, write: Callable[[BinaryIO], Any], overwrite: bool) -> None:
    path = files.check_new(path, overwrite=overwrite)
    files.save(path, write)


def _text_size(font: Any, text: str) -> tuple[int, int]:
    _, _, right, bottom = font.getbbox(text)
    return int(np.ceil(right)), int(np.ceil(bottom))


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"grid takes uint8 [N, H, W, C] images with C = 1 or 3, got {images.dtype} "
            f"{list(images.shape)}; to_uint8 converts from [-1, 1]"
        )
    if len(images) == 0:
        raise ValueError("grid needs at least one image, got 0; give [N, H, W, C] with N >= 1")


def _check_layout(count: int, columns: int, labels: Any, scale: int, padding: int) -> None:
    if columns < 1 or scale < 1 or padding < 0:
        raise ValueError(
            f"columns and scale must be 1 or more and padding 0 or more, got columns={columns}, "
            f"scale={scale}, padding={padding}; leave columns and scale out for sizes that fit"
        )
    if labels is not None and len(labels) not in (count, columns):
        raise ValueError(
            f"labels must number {count} (one above each image) or {columns} (one above "
            f"each column), got {len(labels)}; leave them out for none"
        )
