"""uint8 pictures to and from the network's [-1, 1], contact sheets, PNG and GIF files.

`to_unit_range` and `to_uint8` take numpy or JAX arrays and give back the same kind, so they run on
the host or inside jit: 0 <-> -1 and 255 <-> 1, and `to_uint8(to_unit_range(u)) == u` exactly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PathLike = str | os.PathLike


def to_unit_range(image: Any) -> Any:
    """Returns a uint8 array of any shape as float32 in [-1, 1].

    Args:
        image: numpy or JAX array, uint8.

    Raises:
        ValueError: if `image` is not uint8 (it may have been converted already).
    """
    if image.dtype != np.uint8:
        raise ValueError(
            f"to_unit_range takes uint8 images, got {image.dtype}; "
            "images in [-1, 1] need no conversion, others convert with .astype('uint8') first"
        )
    return image.astype(np.float32) / 127.5 - 1


def to_uint8(x: Any) -> Any:
    """Returns a float array of any shape, nominally in [-1, 1], as uint8: rounded and clipped.

    Args:
        x: numpy or JAX array, floating point; values outside [-1, 1] are clipped.

    Raises:
        ValueError: if `x` is not floating point (it may have been converted already).
    """
    # bfloat16 has kind "V" in numpy, so the integer kinds are the ones to name.
    if x.dtype.kind in "biu":
        raise ValueError(
            f"to_uint8 takes floating point images in [-1, 1], got {x.dtype}; "
            "integer images in 0..255 need no conversion"
        )
    xp = x.__array_namespace__()
    return xp.clip(xp.round((x.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(
    images: Any,
    columns: int,
    labels: Sequence[Any] | None = None,
    *,
    scale: int = 1,
    padding: int = 2,
) -> Image.Image:
    """Returns a contact sheet on white, filled row by row.

    Args:
        images: [N, H, W, C] uint8 with C = 1 or 3, numpy or JAX.
        columns: tiles in a row.
        labels: N labels, one above each tile, or `columns` labels, one above each column. A
            column widens where its label is wider than the tile.
        scale: whole number of screen pixels per image pixel; nearest neighbour, so small images
            stay sharp.
        padding: pixels between tiles and around the sheet.

    Raises:
        ValueError: if the shapes, the dtype, the number of labels or a count do not fit.
    """
    images = np.asarray(images)
    _check_grid(images, columns, labels, scale, padding)
    height, width = scale * images.shape[1], scale * images.shape[2]
    texts = [] if labels is None else [str(label) for label in labels]
    font = ImageFont.load_default()
    sizes = [_text_size(font, text) for text in texts]
    column = padding + max([width, *(w for w, _ in sizes)])
    heading = max([0, *(padding + h for _, h in sizes)])
    per_tile = len(texts) == len(images)
    first, row = (0, heading) if per_tile else (heading, 0)
    row += height + padding
    rows = -(-len(images) // columns)
    sheet = Image.new(
        "L" if images.shape[3] == 1 else "RGB",
        (padding + columns * column, padding + first + rows * row),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(texts):
        at = padding + i % columns * column, padding + i // columns * row
        draw.text(at, text, fill="black", font=font)
    for i, image in enumerate(images):
        tile = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
        at = padding + i % columns * column, heading + padding + i // columns * row
        sheet.paste(tile, at)
    return sheet


def to_pil(image: Any) -> Image.Image:
    """Returns a uint8 array [H, W], [H, W, 1] or [H, W, 3] as a Pillow image.

    Raises:
        ValueError: if the shape or the dtype is another one.
    """
    image = np.asarray(image)
    grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(
            f"an image is uint8 [H, W], [H, W, 1] or [H, W, 3], got {image.dtype} "
            f"{list(image.shape)}; to_uint8 converts from [-1, 1], grid shows a batch"
        )
    return Image.fromarray(np.ascontiguousarray(image.reshape(image.shape[:2]) if grey else image))


def fit(image: np.ndarray, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """Returns an image with another size or number of channels, itself where they fit already.

    Args:
        image: uint8 [H, W, C], C = 1 to 4; with C = 2 or 4 the last is opacity.
        size: crop to the central square and resize, antialiased, to this many pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 [H, W, C].
    """
    fits = size is None or image.shape[:2] == (size, size)
    if fits and channels in (None, image.shape[2]):
        return image
    return fit_pil(
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image), size, channels
    )


def fit_pil(image: Image.Image, size: int | None, channels: int | None) -> np.ndarray:
    """Returns what `fit` does for a Pillow image; transparent parts turn white."""
    if channels is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if channels is not None:
        image = image.convert({1: "L", 3: "RGB"}[channels])
    if size is not None and image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], -1)


def save_png(path: PathLike, image: Any, *, overwrite: bool = False) -> None:
    """Writes a PNG file, making its folder where needed.

    Args:
        path: the file.
        image: a Pillow image, or a uint8 array [H, W], [H, W, 1] or [H, W, 3].
        overwrite: replace an existing file.

    Raises:
        FileExistsError: if the file exists and `overwrite` is not set.
    """
    image = image if isinstance(image, Image.Image) else to_pil(image)
    with _open_new(path, overwrite) as file:
        image.save(file, "PNG")


def save_gif(
    path: PathLike, frames: Sequence[Any], duration: int, *, overwrite: bool = False
) -> None:
    """Writes an endlessly looping GIF file, making its folder where needed.

    Args:
        path: the file.
        frames: Pillow images, or uint8 arrays [H, W], [H, W, 1] or [H, W, 3], of one size.
        duration: milliseconds each frame is shown; GIF counts in steps of 10.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: if the file exists and `overwrite` is not set.
        ValueError: if there are no frames, their sizes differ, or `duration` is below 10.
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
    with _open_new(path, overwrite) as file:
        images[0].save(
            file, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0
        )


def _open_new(path: PathLike, overwrite: bool):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return open(path, "wb" if overwrite else "xb")
    except FileExistsError:
        raise FileExistsError(
            f"{path} exists and would be overwritten; "
            "choose another name, remove it, or pass overwrite=True"
        ) from None


def _text_size(font: Any, text: str) -> tuple[int, int]:
    _, _, right, bottom = font.getbbox(text)
    return int(np.ceil(right)), int(np.ceil(bottom))


def _check_grid(images: np.ndarray, columns: int, labels: Any, scale: int, padding: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"grid takes uint8 [N, H, W, C] images with C = 1 or 3, got {images.dtype} "
            f"{list(images.shape)}; to_uint8 converts from [-1, 1]"
        )
    if len(images) == 0:
        raise ValueError("grid needs at least one image, got 0; give [N, H, W, C] with N >= 1")
    if columns < 1 or scale < 1 or padding < 0:
        raise ValueError(
            f"columns and scale must be 1 or more and padding 0 or more, got columns={columns}, "
            f"scale={scale}, padding={padding}; scale=4 makes 28 x 28 digits readable"
        )
    if labels is not None and len(labels) not in (len(images), columns):
        raise ValueError(
            f"labels must number {len(images)} (one above each tile) or {columns} (one above "
            f"each column), got {len(labels)}; leave them out for none"
        )
