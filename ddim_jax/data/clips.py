"""Folders of clips, uint8 [T, H, W, C].

`clips:FOLDER` holds files of `clip_files`, or a sub-folder of them for each class. A folder that
holds pictures alone is a clip, and they are its frames. Size, crop and mirroring are the same for
all frames of a clip; `frame_choice` says which frames those are. Everything is looked through
before training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddim_jax.data import captions, clip_files, folders
from ddim_jax.data.clip_files import Timeline
from ddim_jax.data.frame_choice import OWN, Cut, Windows
from ddim_jax.data.images import Size, fit, fit_pil
from ddim_jax.files import missing_part
from ddim_jax.names import few


def fit_frames(
    frames: Iterable[np.ndarray], size: Size = None, channels: int | None = None, pad: bool = False
) -> np.ndarray:
    """Frames uint8 [H, W, C] as a clip [T, H, W, C] of another size or channels, see `fit`."""
    return np.stack([fit(frame, size, channels, pad) for frame in frames])


def open_folder(
    path: Path,
    split: str,
    cut: Cut,
    size: Size,
    channels: int | None,
    pad: bool = False,
    skip_unreadable: bool = False,
    checked: bool = True,
) -> tuple[dict[str, Any], list[Path]]:
    """Opens a folder of clips, all of which it looks through.

    Args:
        path: of the folder.
        split: see `folders.split_folder`.
        cut: which frames are taken.
        size: resize to this many pixels, see `images.fit`; None to keep the size, the same for all.
        channels: 1 for grey; default 3, RGB.
        pad: keep the whole of each frame, between black bars.
        skip_unreadable: leave out files that cannot be read, and clips that are too short.
        checked: False: only the first clip that can be read counts.

    Returns:
        Fields of a `Source`, and the files.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no such split, no clips, files that cannot be used, or different sizes.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"folder {path} does not exist{missing_part(path)}; write clips:PATH with a folder of "
            f"clips ({', '.join(clip_files.SUFFIXES)}) or of class sub-folders"
        )
    root = folders.split_folder(path, split)
    files, labels, classes = find_clips(root)
    channels = channels or 3
    if any(file.suffix.lower() in clip_files.VIDEOS for file in files):
        clip_files.ffmpeg()  # not there: no fault of the files

    def look(file: Path) -> Timeline | str:
        try:
            found = clip_files.inspect(file)
            return cut.problem(found) or found
        except ValueError as error:
            return str(error)

    if not checked:
        first = next((i for i, file in enumerate(files) if not isinstance(look(file), str)), 0)
        files, labels = [files[first]], [labels[first]]
    found = folders.check_files(root, files, skip_unreadable, look, "clips")
    notes = _others(root, files) if checked else []
    if bad := [i for i, one in enumerate(found) if isinstance(one, str)]:
        notes.append(f"skipped {len(bad)} clips{folders.listed(root, files, found)}")
        kept = sorted(set(range(len(files))) - set(bad))
        files, labels, found = ([part[i] for i in kept] for part in (files, labels, found))
    if not files or (checked and len({*labels}) < len(classes)):
        which = "clip" if not files else f"clip of class {_lost(classes, labels)!r}"
        raise ValueError(f"no {which} in {root} can be used; repair them or remove the sub-folder")
    folders.check_sizes(root, [one.size for one in found], size, "clips")
    windows = Windows(str(root), found, cut)

    def at(index: int, share: float) -> tuple[np.ndarray, int]:
        frames = read_taken(files[index], found[index], windows, index, share)
        return np.stack([fit_pil(frame, size, channels, pad) for frame in frames]), labels[index]

    fields = {
        "image_shape": fit_pil(Image.new("L", found[0].size), size, channels, pad).shape,
        "num_classes": len(classes),
        "count": len(files),
        "class_names": tuple(classes),
        "note": "; ".join(notes),
    }
    return fields | _taken(windows, at), files


def read_taken(
    file: Path, found: Timeline, windows: Windows, index: int = 0, share: float = 0.0
) -> list[Any]:
    """Reads of a file the frames that `windows` take of their clip `index`, and no others.

    Args:
        file: of the clip, or a folder of frames.
        found: what `clip_files.inspect` said of it.
        windows: of several clips.
        index: as of `Windows.places`.
        share: as of `Windows.places`.

    Returns:
        Pillow images.
    """
    if file.suffix.lower() in clip_files.VIDEOS:
        places, rate = windows.places(index, share)
    else:
        places, rate = windows.own_places(index, share), None
    return clip_files.read(file, found, places.tolist(), rate)


def _taken(windows: Windows, at: Callable) -> dict[str, Any]:
    """Fields of a `Source` of clips."""
    return {
        "frames": windows.frames,
        "read": lambda index: at(index, 0.0),
        "at": at if windows.moves else None,
        "told": windows.told,
    }


def _lost(classes: Sequence[str], labels: Sequence[int]) -> str:
    return next(name for label, name in enumerate(classes) if label not in labels)


def of_arrays(
    name: str,
    arrays: np.ndarray,
    labels: np.ndarray,
    rates: np.ndarray | None,
    cut: Cut,
    fitted: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    """Fields of a `Source` of clips in memory.

    Args:
        name: of the data, for messages.
        arrays: uint8 [N, T0, H, W, C].
        labels: [N].
        rates: frames a second of each, [N]; None: not known.
        cut: which frames are taken.
        fitted: brings a clip to its size.

    Raises:
        ValueError: too few frames.
    """
    count, size = arrays.shape[1], (arrays.shape[3], arrays.shape[2])
    ends = np.arange(1.0, count + 1)
    if rates is None:
        found = [Timeline(size, ends, timed=False)] * len(arrays)
    else:
        found = [Timeline(size, ends / rate) for rate in rates]
        cut = cut if cut.rate else cut._replace(rate=OWN)  # whoever wrote the file knew them
    if problem := next(filter(None, map(cut.problem, found)), ""):
        raise ValueError(f"clips of {name} have {problem}; ask for fewer")
    windows = Windows(name, found, cut)

    def at(index: int, share: float) -> tuple[np.ndarray, int]:
        return fitted(arrays[index, windows.own_places(index, share)]), labels[index]

    return _taken(windows, at)


def _others(root: Path, found: Sequence[Path]) -> list[str]:
    """What is beside the clips that were found, in words; [] for nothing."""
    beside, names = {root, *(file.parent for file in found)}, {*map(captions.without_ending, found)}
    loose = [file for folder in beside for file in folder.iterdir() if file.is_file()]
    loose = {file for file in {*loose} - {*found} if file.name[0] != "."}
    loose = [file for file in loose if not captions.is_caption(file, names)]
    kinds = sorted({file.suffix.lower() or file.name for file in loose})
    return [f"skipped {len(loose)} other files ({few(kinds)})"] if loose else []


def find_clips(root: Path) -> tuple[list[Path], list[int], list[str]]:
    """Returns the clips, their labels and the class names (none if `root` is flat).

    Raises:
        ValueError: no clips, clips beside sub-folders of clips, or an empty sub-folder.
    """
    hint = f"clips are files ({', '.join(clip_files.SUFFIXES)}), or folders of pictures"
    if clip_files.frames_in(root):
        raise ValueError(
            f"{root} holds still pictures and no clips; {hint}: put the frames of each clip into a "
            "folder of its own, or load folder:PATH for pictures"
        )
    flat = _clips_in(root)
    per_class = {
        folder.name: _clips_in(folder)
        for folder in folders.folders_in(root)
        if not clip_files.is_clip(folder)
    }
    full = [name for name, files in per_class.items() if files]
    if not flat and not full:
        raise ValueError(
            f"{root} holds no clips, neither itself nor in its {len(per_class)} sub-folders; {hint}"
        )
    if flat and full:
        raise ValueError(
            f"{root} holds {len(flat)} clips beside {len(full)} sub-folders of clips "
            f"({few(full)}); move the clips into class sub-folders, or the sub-folders away"
        )
    if flat:
        return flat, [0] * len(flat), []
    if empty := sorted(set(per_class) - set(full)):
        raise ValueError(
            f"{len(empty)} of the {len(per_class)} class sub-folders of {root} hold no clips "
            f"directly inside ({few(empty)}); fill, flatten or remove them: every sub-folder is a "
            "class"
        )
    files = [file for name in full for file in per_class[name]]
    return files, [k for k, name in enumerate(full) for _ in per_class[name]], full


def _clips_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if clip_files.is_clip(path))
