"""The flags of `sample.py` about clips: how many frames, and which are known."""

import functools
from typing import Any

from absl import flags

from ddim_jax.commands.flags import define_whole
from ddim_jax.names import check_range

FRAMES = define_whole("frames", None, "of clips, drawn at once; default as many as in training")
FIRST_FRAME = flags.DEFINE_multi_string(
    "first_frame", [], "a picture that a clip begins with, or an NPZ of them; may be given again"
)
FROM_CLIP = flags.DEFINE_multi_string(
    "from_clip", [], "a GIF, WebP, MP4 or NPZ that a clip begins with; may be given again"
)
EXTEND = define_whole("extend", None, "frames in the end, drawn window by window of --frames")
OVERLAP = define_whole(
    "overlap", None, "frames that a window knows of the one before; default half"
)
INTERPOLATE = define_whole("interpolate", None, "2: draws one frame between any two, 3: two")
KNOWN_BY = flags.DEFINE_string(
    "known_by", None, "how known frames are told: levels, replacement or repaint; default levels"
)
FRAME_RATE = flags.DEFINE_float(
    "frame_rate", None, "of clips, frames a second: told to networks that take it, and of the file"
)
RESIZE = flags.DEFINE_bool("resize", False, "crop and resize given pictures to the frames' size")


def asked(model: Any, like: Any = None) -> dict[str, Any]:
    """What the flags ask of clips, as `Model.generate` takes it, with the files read.

    Args:
        model: what draws.
        like: a file to be drawn again, which says it instead; None for none.

    Raises:
        ValueError: files that cannot be read, or of another size without --resize.
        OSError: files that are not there.
    """
    found = like.clips if like is not None else said()
    if not found:
        return {}
    from ddim_jax import clip_drawing
    from ddim_jax.editing import clips

    own = {name: found[name] for name in NUMBERS if found.get(name) is not None}
    resize = found.get("resize", False)
    if files := found.get("first_frame"):
        own["first_frame"] = clips.first_frames(model, files, resize)
    if files := found.get("from_clip"):
        fits = functools.partial(clip_drawing.length, model, own | {"from_clip": files})
        own["from_clip"] = clips.whole(model, files, resize, fits)
        derived = like is None and "frame_rate" not in own  # a file to be drawn again says it
        if derived and (rate := clips.rate_of(files)):
            own["frame_rate"] = rate
    if "frame_rate" in own:
        check_range("--frame_rate", own["frame_rate"], "[0, 1000]", "8 is usual")
        if not model.codec.frames:
            raise ValueError(f"--frame_rate is of clips, and {model.name} draws pictures")
    if like is not None and clips.digest(own) != found.get("pictures"):
        files = found.get("first_frame") or found.get("from_clip")
        raise ValueError(
            f"{', '.join(files)} holds other pictures than when the "
            "clips were drawn; name what they begin with by --first_frame or --from_clip"
        )
    return own


NUMBERS = ("extend", "overlap", "interpolate", "known_by", "frame_rate")


def said() -> dict[str, Any]:
    """The flags that are given, as JSON; without --frames, which is of the model."""
    given = {
        "first_frame": FIRST_FRAME.value or None,
        "from_clip": FROM_CLIP.value or None,
        "extend": EXTEND.value,
        "overlap": OVERLAP.value,
        "interpolate": INTERPOLATE.value,
        "known_by": KNOWN_BY.value,
        "frame_rate": FRAME_RATE.value,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("solver", "eta", "solver_options"):
        if KNOWN_BY.value == "repaint" and not flags.FLAGS[name].using_default_value:
            raise ValueError(f"--known_by=repaint is a solver itself and takes no --{name}")
    if RESIZE.value and not {"first_frame", "from_clip"} & set(given):
        raise ValueError(
            "--resize is of the pictures of --first_frame or --from_clip; leave it out"
        )
    return given | ({"resize": True} if RESIZE.value else {})


def known_rate(model: Any, said: dict[str, Any] | None) -> float:
    """Frames a second of clips that are drawn; 0 where neither flags nor training clips say it."""
    said = said or {}
    return (said.get("frame_rate") or model.frame_rate) * said.get("interpolate", 1)


def shown_rate(model: Any, said: dict[str, Any] | None) -> float:
    """Frames a second of the file that clips are written to."""
    from ddim_jax.data import clip_writers

    own = clip_writers.FRAME_RATE * (said or {}).get("interpolate", 1)
    return known_rate(model, said) or own


def about(known: dict[str, Any], like: Any = None) -> dict[str, Any] | None:
    """What a file of clips is to hold of them beside the rest; None for what is not of clips."""
    from pathlib import Path

    from ddim_jax.editing import clips

    if like is not None:
        return like.clips
    if not known:
        return None
    found = said()
    for name in {"first_frame", "from_clip"} & set(found):
        found[name] = [str(Path(file).expanduser().absolute()) for file in found[name]]
    kept = {"frame_rate": known["frame_rate"]} if "frame_rate" in known else {}
    return found | kept | {"pictures": clips.digest(known)}
