"""Files that hold a clip: GIF, animated WebP and PNG, MP4 and WebM, folders of frames.

    found = inspect(path)                  how many frames, how long each is shown
    frames = read(path, found, places)     some of them, as Pillow images

Pillow reads animations; imageio-ffmpeg, the extra "video", reads the rest, frames by their time. In
a folder of frames the names say the order, numbers in them by their value.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ANIMATIONS = (".apng", ".gif", ".png", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
SUFFIXES = (*ANIMATIONS, *VIDEOS)
STILLS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of the pictures in a folder of frames."""
ROUNDING = {"GIF": 0.0101, "": 0.0021}
"""Seconds by which frames of one rate may differ: GIF counts in hundredths, others finer."""
MOST = 8
"""How many times as many frames as in the file a clip may have."""
DEFAULT = 0.1
"""Seconds that viewers show a frame whose duration is 0."""


class Timeline(NamedTuple):
    """When a file shows which frame.

    Attributes:
        size: (width, height) of the frames.
        ends: seconds at which each of them ends, [N]; of a folder their numbers 1..N.
        timed: whether it says so; False of a folder of frames.
        steady: whether all are shown equally long.
        shown: int [N], of an animation which of the frames in the file each is; None: 0..N - 1.
            Equal frames are often written as one that is shown longer.
    """

    size: tuple[int, int]
    ends: np.ndarray
    timed: bool = True
    steady: bool = True
    shown: np.ndarray | None = None

    @property
    def rate(self) -> float | None:
        """Frames a second, on average; None where the file does not say."""
        return len(self.ends) / float(self.ends[-1]) if self.timed else None


def is_clip(path: Path) -> bool:
    """Whether a file of this ending may hold a clip, or a folder frames."""
    if path.name[0] in "._":
        return False
    if path.is_dir():
        return bool(frames_in(path))
    return path.suffix.lower() in SUFFIXES


def frames_in(folder: Path) -> list[Path]:
    """The pictures of a folder of frames, in order; none of a folder of other things."""
    files = [f for f in folder.iterdir() if f.is_file() and f.name[0] not in "._"]
    pictures = [f for f in files if f.suffix.lower() in STILLS]
    if not pictures or any(f.suffix.lower() in (*VIDEOS, ".gif", ".apng") for f in files):
        return []
    pictures.sort(key=_in_order)
    return [] if _is_animated(pictures[0]) else pictures


def _in_order(file: Path) -> tuple:
    """By which frames are sorted: "frame9" comes before "frame10"."""
    parts = re.split(r"(\d+)", file.stem)
    return tuple((int(p), "") if i % 2 else (0, p) for i, p in enumerate(parts)), file.name


def _is_animated(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1) > 1 and image.format not in ("TIFF", "MPO")
    except Exception:  # damaged: `inspect` says how
        return False


def inspect(path: Path) -> Timeline:
    """Looks through a file, all of an animation; of a video at its beginning and its end.

    Raises:
        ValueError: it cannot be read, is a still picture, or has frames of different sizes; the
            message does not name it. Or a video, and imageio-ffmpeg is not there.
    """
    if path.is_dir():
        return _inspect_folder(path)
    if path.suffix.lower() in VIDEOS:
        return _inspect_video(path)
    try:
        return _inspect_animation(path)
    except ValueError:
        raise
    except Exception as error:  # Pillow raises SyntaxError, struct.error, ... on damaged files
        why = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        raise ValueError(why) from None


def _inspect_animation(path: Path) -> Timeline:
    if path.suffix.lower() == ".gif" and path.read_bytes()[-1024:].rstrip(b"\0\r\n ")[-1:] != b";":
        raise ValueError("it has no end: the file is cut short")
    with Image.open(path) as image:
        first = _first(image)
        count = getattr(image, "n_frames", 1) - first
        if count < 2:
            raise ValueError("a still picture, a clip has several frames")
        lasts = []
        for place in range(first, first + count):
            image.seek(place)
            image.load()
            lasts.append((image.info.get("duration") or 0) / 1000 or DEFAULT)
        size, rounding = image.size, ROUNDING.get(image.format, ROUNDING[""])
    if max(lasts) - min(lasts) <= rounding:
        return Timeline(size, np.arange(1, count + 1) * np.mean(lasts))
    lasts = np.array(lasts)
    times = _times(lasts)
    clock = lasts.sum() / times.sum()
    off = max(
        np.abs(times * clock - lasts).max(), *(np.ptp(lasts[times == k]) for k in np.unique(times))
    )
    if off > rounding or times.sum() > MOST * count:
        return Timeline(size, np.cumsum(lasts), steady=False)
    ends = np.arange(1, times.sum() + 1) * clock
    return Timeline(size, ends, shown=np.repeat(np.arange(count), times))


def _times(lasts: np.ndarray) -> np.ndarray:
    """How many ticks of a common clock frames last, int [N], where they last [N] seconds.

    A tick is at first the shortest, which is rounded itself; then the mean of all so far, so that
    it is known well before the longest are counted.
    """
    times, clock = np.ones(len(lasts), int), lasts.min()
    order = np.argsort(lasts)
    for done, place in enumerate(order, 1):
        times[place] = np.rint(lasts[place] / clock)
        clock = lasts[order[:done]].sum() / times[order[:done]].sum()
    return times


def _first(image: Image.Image) -> int:
    """The first frame of an animation; a PNG may have a picture before it for old viewers."""
    return int(bool(image.info.get("default_image")))


def _inspect_folder(folder: Path) -> Timeline:
    sizes = {}
    for file in frames_in(folder):
        try:
            with Image.open(file) as image:
                image.load()
                sizes.setdefault(image.size, file.name)
        except Exception as error:
            raise ValueError(f"frame {file.name} cannot be read ({error})") from None
    if len(sizes) > 1:
        (w, h), (other_w, other_h) = [*sizes][:2]
        names = [*sizes.values()]
        raise ValueError(
            f"frames of different sizes, {names[0]} is {w} x {h} and {names[1]} {other_w} x "
            f"{other_h}"
        )
    count = len(frames_in(folder))
    if count < 2:
        raise ValueError("one picture alone, a clip has several frames")
    return Timeline(next(iter(sizes)), np.arange(1.0, count + 1), timed=False)


def ffmpeg() -> Any:
    """The module imageio_ffmpeg; ValueError says how to get it."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ValueError(
            "videos need imageio-ffmpeg: pip install 'ddim_jax[video]', or convert them to GIF or "
            "animated WebP"
        ) from None
    return imageio_ffmpeg


def _inspect_video(path: Path) -> Timeline:
    module = ffmpeg()
    try:
        about, _ = _some(path, 1, ["-sseof", "-0.5"], [])
        rate, seconds = about["fps"], about["duration"]
        if not rate or not seconds:  # of some WebM only reading it says
            count, seconds = module.count_frames_and_secs(str(path))
            rate = count / seconds
    except Exception as error:  # what it raises on damaged files is of any kind
        raise ValueError(f"no video that ffmpeg can read to its end ({_last(error)})") from None
    count = max(1, int(np.floor(seconds * rate + 0.25)))
    return Timeline(tuple(about["size"]), np.arange(1, count + 1) / rate)


def _last(error: Exception) -> str:
    """The last line of what ffmpeg says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _some(path: Path, count: int, before: list[str], after: list[str]) -> tuple[dict, list]:
    """What a video says of itself, and some frames of it; ValueError if it has none."""
    stream = ffmpeg().read_frames(str(path), input_params=before, output_params=after)
    try:
        about, frames = next(stream), []
        width, height = about["size"]
        for data in stream:
            frames.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
            if len(frames) == count:
                break
    finally:
        stream.close()
    if not frames:
        raise ValueError("no frame can be decoded")
    return about, frames


def read(path: Path, found: Timeline, places: Sequence[int], rate: float | None = None) -> list:
    """Reads frames of a file.

    Args:
        path: of the file, or of a folder of frames.
        found: what `inspect` said of it.
        places: of the frames, rising.
        rate: of a video: `places` count frames at this rate, not at its own.

    Returns:
        Pillow images.

    Raises:
        ValueError: it cannot be decoded any more.
    """
    try:
        if path.is_dir():
            files = frames_in(path)
            return [_loaded(files[place]) for place in places]
        if path.suffix.lower() in VIDEOS:
            return _read_video(path, list(places), found.rate, rate or found.rate)
        own = list(places) if found.shown is None else found.shown[np.asarray(places)].tolist()
        return _read_animation(path, own)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be decoded ({_last(error)}); it was readable when the data were "
            "loaded: repair or remove it and start again"
        ) from error


def _loaded(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        return image.copy()


def _read_animation(path: Path, places: list[int]) -> list[Image.Image]:
    kept = {}
    with Image.open(path) as image:
        first = _first(image)
        for place in range(places[-1] + 1):  # each frame may only say what it changes
            image.seek(first + place)
            image.load()
            if place in places:
                kept[place] = image.copy()
    return [kept[place] for place in places]


def _read_video(path: Path, places: list[int], own: float, rate: float) -> list[Image.Image]:
    """The frames that are shown a little after each k / rate, where k are `places`."""
    first = places[0] / rate + 0.5 * min(1 / own, 1 / rate)
    start = max(0.0, first - 1 / own)  # what is shown then began up to a frame before
    wanted = [place - places[0] for place in places]
    chosen = f"setpts=PTS-{first - start:.6f}/TB,fps={rate!r}:start_time=0:round=up"
    seek = ["-ss", f"{start:.6f}"] if start else []
    _, frames = _some(path, wanted[-1] + 1, seek, ["-vf", chosen])
    if len(frames) < wanted[-1]:  # the last may be missing where the duration was rounded
        raise ValueError(f"{len(frames)} frames from {start:.2f} s on, not {wanted[-1] + 1}")
    return [Image.fromarray(frames[min(place, len(frames) - 1)]) for place in wanted]
