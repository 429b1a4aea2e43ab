"""Images or clips, and labels, in a file made by `numpy.savez`.

A split is read from the arrays {split}_x and {split}_y; the split "train" also from images and
labels, or x and y. Labels may be left out; `class_names`, texts in their order, may be there, and
of clips frames a second, {split}_frame_rate or frame_rate, one number or one for each. Everything
is checked before training starts.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ddim_jax import files

NAMES = "class_names"


def read(path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Returns images, labels and the names of the classes.

    Images are uint8 [N, H, W, C], clips [N, T, H, W, C]; labels integers [N], None if there are
    none; names () if the file has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz file, no arrays of that split, or arrays of another kind; not one
            name for each class.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"npz file {path} does not exist{files.missing_part(path)}; write npz:PATH with the "
            "path of a file made by numpy.savez"
        )
    with _explain_errors(path), np.load(path) as arrays:
        keys = list(arrays)
    x_key, y_key = _choose_keys(path, keys, split)
    with _explain_errors(path), np.load(path) as arrays:
        images, labels = arrays[x_key], arrays[y_key] if y_key else None
        names = arrays[NAMES] if NAMES in keys else None
    images = _check_images(path, x_key, images)
    if labels is not None:
        _check_labels(path, y_key, labels, len(images))
    return images, labels, () if names is None else _check_names(path, names, y_key, labels)


def read_captions(path: Path, split: str) -> tuple[str, ...]:
    """The captions of the images of `read`, in {split}_captions or captions; () for none.

    Raises:
        ValueError: not one text for each image.
    """
    with _explain_errors(path), np.load(path) as arrays:
        x_key, _ = _choose_keys(path, list(arrays), split)
        key = f"{split}_captions" if x_key == f"{split}_x" else "captions"
        texts, count = (arrays[key], len(arrays[x_key])) if key in arrays else (None, 0)
        misnamed = texts is None and "captions" in arrays
    if misnamed:
        raise ValueError(f"{path} has 'captions' beside {x_key!r}; call them {key!r}")
    if texts is None:
        return ()
    if texts.dtype.kind != "U" or texts.shape != (count,):
        raise ValueError(
            f"{key!r} of {path} is {texts.dtype} {list(texts.shape)}; captions must be texts "
            f"[{count}], one for each image: numpy.array(list of str)"
        )
    return tuple(map(str, texts))


def read_frame_rates(path: Path, split: str, count: int) -> np.ndarray | None:
    """Frames a second of the clips of `read`, float64 [count]; None where the file says none.

    Raises:
        ValueError: neither one number nor one for each clip, or some that are not above 0.
    """
    with _explain_errors(path), np.load(path) as arrays:
        key = next((k for k in (f"{split}_frame_rate", "frame_rate") if k in arrays), None)
        rates = None if key is None else arrays[key]
    if rates is None:
        return None
    good = rates.dtype.kind in "iuf" and rates.shape in ((), (count,))
    if not good or not np.isfinite(rates).all() or rates.min() <= 0:
        raise ValueError(
            f"{key!r} of {path} is {rates.dtype} {list(rates.shape)}; it must be frames a second, "
            f"a number above 0 or {count} of them"
        )
    return np.broadcast_to(rates.astype(np.float64), (count,))


def arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    captions: Sequence[str] | None = None,
    frame_rate: float | None = None,
) -> dict[str, np.ndarray]:
    """What `numpy.savez` is to write for `read`, `read_captions` and `read_frame_rates`.

    Args:
        images: uint8 [N, H, W, C] or [N, T, H, W, C].
        labels: int [N]; None for none.
        class_names: in the order of the labels; left out where two are the same.
        captions: texts in rotation; none are left out.
        frame_rate: of clips, frames a second; None or 0: not known.
    """
    held = {"images": images}
    if frame_rate and images.ndim == 5:
        held["frame_rate"] = np.array(frame_rate, np.float64)
    if labels is not None:
        held["labels"] = labels
        if class_names and len(set(class_names)) == len(class_names):  # else they are no names
            held[NAMES] = np.array(class_names)
    if captions:
        held["captions"] = np.resize(captions, len(images))
    return held


@contextlib.contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile, pickle, zlib and numpy each raise their own
        raise ValueError(
            f"{path} cannot be read as an npz file of plain arrays ({fault(error)}); write it "
            "again with numpy.savez(path, images=..., labels=...)"
        ) from error


def fault(error: Exception) -> str:
    """Why numpy could not read a file, without its advice to unpickle it."""
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    return "it is none, or holds Python objects" if "pickle" in str(error) else str(error)


def _choose_keys(path: Path, keys: Sequence[str], split: str) -> tuple[str, str | None]:
    """Returns the keys of the images and of the labels, None if there are no labels."""
    choices = [(f"{split}_x", f"{split}_y")]
    if split == "train":
        # keys without a split hold one set of images, and that is the one to train on
        choices += [("images", "labels"), ("x", "y")]
    for x_key, y_key in choices:
        if x_key in keys:
            return x_key, y_key if y_key in keys else None
    wanted = ", or ".join(f"{x!r} (labels in {y!r})" for x, y in choices)
    raise ValueError(
        f"{path} holds the keys {sorted(keys)}, but split {split!r} needs {wanted}; "
        "rename the arrays or choose another split"
    )


def _check_images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    """Returns the images as uint8 [N, H, W, C], or clips as [N, T, H, W, C]."""
    rule = (
        "images must be uint8 [N, H, W] or [N, H, W, C], clips [N, T, H, W, C], with C = 1 or 3 "
        "last and N >= 1"
    )
    got = f"{key!r} of {path} is {images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8:
        raise ValueError(f"{got}; {rule}; bring the values to 0..255 and use .astype('uint8')")
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        raise ValueError(f"{got}; {rule}; move the channels with .transpose(0, 2, 3, 1)")
    if images.ndim not in (3, 4, 5) or (images.ndim > 3 and images.shape[-1] not in (1, 3)):
        raise ValueError(f"{got}; {rule}; reshape the array, leave out an alpha channel")
    if images.size == 0:
        raise ValueError(f"{got}; {rule}; write at least one image")
    return images[..., None] if images.ndim == 3 else images


def _check_labels(path: Path, key: str, labels: np.ndarray, count: int) -> None:
    got = f"{key!r} of {path} is {labels.dtype} {list(labels.shape)}"
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{got}; labels must be integers [{count}], one for each image; "
            "leave the array out for unlabelled images"
        )
    if labels.min() < 0:
        raise ValueError(
            f"{got} with smallest value {labels.min()}; labels must count from 0; renumber them "
            "or leave the array out for unlabelled images"
        )


def _check_names(path: Path, names: np.ndarray, key: str | None, labels) -> tuple[str, ...]:
    """Returns the names of the classes, one text each."""
    got = f"{NAMES!r} of {path} is {names.dtype} {list(names.shape)}"
    if names.ndim != 1 or names.dtype.kind != "U" or not all(map(str.strip, names.tolist())):
        raise ValueError(f"{got}; it must be a list of texts, the names of the classes in order")
    if len(set(names.tolist())) < len(names):
        raise ValueError(f"{got} and holds a name twice; give every class a name of its own")
    if labels is None or labels.max() >= len(names):
        has = "has no labels" if labels is None else f"has labels up to {labels.max()} in {key!r}"
        raise ValueError(f"{got}, but the file {has}; give one name for each class, or none")
    return tuple(names.tolist())
