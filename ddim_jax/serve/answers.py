"""Pictures as what clients take: PNG, NPZ, JSON, server-sent events."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddim_jax import data, provenance
from ddim_jax.data import npz
from ddim_jax.data.images import to_pil, write_png
from ddim_jax.names import lookup
from ddim_jax.serve.asked import FORMATS
from ddim_jax.serve.engine import Job

TYPES = {
    "png": "image/png",
    "npz": "application/x-npz",
    "json": "application/json",
    "events": "text/event-stream",
}
"""Media types of the formats."""
OTHERS = {"*/*": "png", "image/*": "png", "application/octet-stream": "npz"}
"""Further media types of the header Accept."""


def format_of(asked: str | None, accept: str) -> str:
    """The format of an answer.

    Args:
        asked: the field of the request; it goes before the header.
        accept: the header Accept, of which the known type of most weight counts; "" for none.

    Raises:
        ValueError: none of these types is known.
    """
    if asked is not None:
        return asked
    known = {kind: name for name, kind in TYPES.items()} | OTHERS
    kinds = [kind for kind in _in_order(accept) if kind in known]
    if accept and not kinds:
        lookup(known, accept.partition(",")[0][:100], "media type in Accept")
    return known[kinds[0]] if kinds else FORMATS[0]


def _in_order(accept: str) -> list[str]:
    """The media types of a header Accept, best first, without those of weight 0.

    Source: RFC 9110, section 12.5.1.
    """
    found = []
    for part in accept.split(","):
        kind, *options = (word.strip().lower() for word in part.split(";"))
        weights = [option[2:] for option in options if option.startswith("q=")]
        try:
            weight = float(weights[0]) if weights else 1.0
        except ValueError:
            weight = 0.0
        if weight > 0:
            found.append((-weight, kind))
    return [kind for _, kind in sorted(found, key=lambda pair: pair[0])]


def body(
    format: str, pictures: np.ndarray, job: Job, about: Mapping[str, Any], class_names: tuple
) -> bytes:
    """An answer of a format in `TYPES`; of events the data of the last.

    Args:
        format: its name.
        pictures: uint8 [num, H, W, C].
        job: what drew them.
        about: of `Desk.about`.
        class_names: of the model.
    """
    if format == "png":
        alone = len(pictures) == 1
        return png(to_pil(pictures[0]) if alone else data.grid(pictures, job.labels), about)
    if format == "npz":
        held = npz.arrays(pictures, job.labels, class_names, job.prompts)
        file = io.BytesIO()
        np.savez(file, **held, **{provenance.NPZ: json.dumps(about)})
        return file.getvalue()
    said = {
        "model": job.model,
        "seed": job.seed,
        "labels": None if job.labels is None else job.labels.tolist(),
        "prompts": job.prompts,
        "solver": job.recipe.solver,
        "evaluations": len(job.rows),
        "guidance_scale": job.recipe.guidance_scale,
        "pictures": [
            text_png(picture, about | _place(job, i)) for i, picture in enumerate(pictures)
        ],
    }
    return json.dumps(said).encode()


def _place(job: Job, i: int) -> dict[str, Any]:
    """What the file of picture i alone says, instead of what that of all of them does."""
    label = None if job.labels is None else job.labels[i : i + 1]
    text = None if job.prompts is None else [job.prompts[i % len(job.prompts)]]
    return provenance.places(np.array([i]), label, text)


def png(image: Any, about: Mapping[str, Any] | None = None) -> bytes:
    """A Pillow image as a PNG file."""
    file = io.BytesIO()
    write_png(file, image, about)
    return file.getvalue()


def text_png(picture: np.ndarray, about: Mapping[str, Any] | None = None) -> str:
    """A uint8 picture [H, W, C] as a PNG file in base64."""
    return base64.b64encode(png(to_pil(picture), about)).decode()


def event(name: str, content: bytes | Mapping[str, Any]) -> bytes:
    """One server-sent event; its data are one line of JSON.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return b"event: %s\ndata: %s\n\n" % (name.encode(), text)
