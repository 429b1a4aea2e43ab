"""Measures of clips: whether they move as real ones do, and stay what they are.

    network = feature_networks.load("moving_digits")       # clips of one digit each
    network = feature_networks.load("clips:emoji")         # any named features, frame by frame
    features = network.extract(clips)                      # uint8 [N, T, H, W, C]
    network.compare(features, real)                        # numbers, by name

    bounce         residual in pixels of a bouncing line through the digit's centroids, see
                   `motion`: root mean square over clips; bounce_median
    missing        share of frames without ink
    jerk           third difference of the centroid, median
    speed_w1       distance of the distributions of fitted speeds
    same           share of frames that are read as what the clip is mostly read as
    first          share of later frames whose nearest first frame, of all clips, is their own
    drift          change of a frame's features to the next, 1 for two different clips
    flicker        change of a frame's pixels to the next, over its contrast
    sharp          energy of the gradient, over that of the contrast
    frame FDD      Frechet distance of the features of single frames (FDD by the digit classifier)
    clip FDD       of a clip's mean features, and their mean absolute change from frame to frame
    spectral       Frechet distance of log energies over temporal frequency and spatial band
    label          share of frames that are read as the clip's label

What moves is first centred, of moving digits only: bounce, jerk and speeds are theirs alone. Each
fault is seen by some of these and by none alone, see docs/video.md. Frechet distances depend on the
number of clips: compare equal numbers, and more than there are dimensions. None is the Frechet
video distance of the papers, whose features are those of a network for action recognition.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax.data import moving_digits
from ddim_jax.evaluation import metrics, motion
from ddim_jax.evaluation.features import FeatureNetwork, Features

Array = Any
HAZE = 0.1
"""Ink of 0..1 below this is background."""
LEAST = 4.0
"""Ink of a frame, summed, that shows a digit; of real ones 10 to 80."""
CROP = 28
"""Pixels of a side of a centred digit, shown twice as large: as its classifier knows it."""
BANDS = 3
"""Spatial bands of `spectrum`, each half as fine as the one before."""
EVERY = 3
"""Of the frames of a clip, those that single frames are compared by."""
SMALL = 1e-6


def of_moving_digits(digits: FeatureNetwork) -> FeatureNetwork:
    """The network of clips of moving digits, by the digit classifier."""

    @jax.jit
    def apply(clips: Array) -> Features:
        places, mass = centroids(clips)
        shown = centred(clips, places)
        frames = digits.apply(shown.reshape(-1, CROP, CROP, 1))
        places = jnp.where((mass >= LEAST)[..., None], places, jnp.nan)
        read = frames.logits.argmax(-1).reshape(clips.shape[:2])
        return _of_frames(clips, shown, frames, read, {"places": places})

    return _network("moving_digits", digits, (None, None, None, 1), apply)._replace(
        num_classes=digits.num_classes
    )


def of_frames(inner: FeatureNetwork) -> FeatureNetwork:
    """The network of any clips, by features of their frames as they are."""
    gallery = inner.gallery
    known = None if gallery is None else gallery.embed(gallery.pool)

    @jax.jit
    def apply(clips: Array) -> Features:
        frames = inner.apply(clips.reshape(-1, *clips.shape[2:]))
        if gallery is None:
            read = frames.logits.argmax(-1)
        else:  # the nearest real picture
            own = frames.pool @ gallery.kernel + gallery.bias[None]
            own = own / jnp.maximum(jnp.linalg.norm(own, axis=1, keepdims=True), SMALL)
            read = jnp.asarray(gallery.name)[(own @ known.T).argmax(-1)]
        return _of_frames(clips, clips, frames, read.reshape(clips.shape[:2]), {})

    return _network(f"clips_{inner.name}", inner, (None, *inner.image_shape), apply)


def _network(name: str, inner: FeatureNetwork, shape: tuple, apply: Any) -> FeatureNetwork:
    """A feature network of clips."""
    return inner._replace(
        name=name,
        dimensions=2 * inner.dimensions,
        names=tuple(f"clip {one}" for one in inner.names),
        image_shape=shape,
        num_classes=0,
        apply=apply,
        gallery=None,
        compare=lambda samples, real, labels=None: compare(
            samples, real, labels, f"frame {inner.names[0]}"
        ),
    )


def _of_frames(
    clips: Array, shown: Array, frames: Features, read: Array, further: dict[str, Array]
) -> Features:
    """What is kept of clips: features of each as a whole, and what it takes to compare sets."""
    count, length = clips.shape[:2]
    pool = frames.pool.reshape(count, length, -1)
    change = jnp.diff(pool, axis=1) if length > 1 else jnp.zeros_like(pool)
    likely = jax.nn.softmax(frames.logits).reshape(count, length, -1).mean(1)
    further |= {
        "frames": pool[:, ::EVERY],
        "read": read,
        "drift": jnp.square(change).sum(-1).mean(1),
        "spectrum": spectrum(clips),
        **_pixels(shown),
        "size": jnp.broadcast_to(jnp.array(clips.shape[2:4]), (count, 2)),
    }
    features = jnp.concatenate([pool.mean(1), jnp.abs(change).mean(1)], axis=1)
    return Features(features, jnp.log(likely + SMALL), None, further)


def flicker(clips: Array) -> Array:
    """How much the pixels of clips uint8 [N, T, H, W, C] change from frame to frame, [N]."""
    return _pixels(clips)["flicker"]


def _pixels(shown: Array) -> dict[str, Array]:
    """Flicker and sharpness [N] of clips uint8 [N, T, H, W, C]."""
    x = shown.astype(jnp.float32) / 255
    x = x - jnp.where(x.mean((1, 2, 3, 4), keepdims=True) > 0.5, 1.0, 0.0)  # paper is no contrast
    energy = jnp.maximum(jnp.square(x).mean((1, 2, 3, 4)), SMALL)
    steps = [jnp.square(jnp.diff(x, axis=axis)).mean((1, 2, 3, 4)) for axis in (2, 3)]
    change = jnp.square(jnp.diff(x, axis=1)).mean((1, 2, 3, 4)) if x.shape[1] > 1 else 0.0
    return {"flicker": jnp.sqrt(change / energy), "sharp": sum(steps) / 2 / energy}


def centroids(clips: Array) -> tuple[Array, Array]:
    """Where the ink of clips uint8 [N, T, H, W, 1] is: [N, T, 2] (y, x) in pixels, and how much.

    The place of a frame without ink is its middle.
    """
    ink = clips[..., 0].astype(jnp.float32) / 255
    ink = jnp.where(ink > HAZE, ink, 0.0)
    mass = ink.sum((2, 3))
    least = jnp.maximum(mass, SMALL)
    y = (ink.sum(3) @ jnp.arange(ink.shape[2], dtype=jnp.float32)) / least
    x = (ink.sum(2) @ jnp.arange(ink.shape[3], dtype=jnp.float32)) / least
    middle = (jnp.array(ink.shape[2:4], jnp.float32) - 1) / 2
    places = jnp.stack([y, x], axis=-1)
    return jnp.where((mass >= LEAST)[..., None], places, middle[None, None]), mass


def centred(clips: Array, places: Array) -> Array:
    """What is around places [N, T, 2], twice as large: uint8 [N, T, 28, 28, 1], cubic."""
    x = clips[..., 0].astype(jnp.float32)
    around = (jnp.arange(CROP) - (CROP - 1) / 2) / 2
    wanted = places[..., None] + around[None, None, None]  # [N, T, 2, 28]
    rows, columns = (
        _cubic(wanted[:, :, axis, :, None] - jnp.arange(x.shape[2 + axis])[None, None, None])
        for axis in (0, 1)
    )
    crops = jnp.einsum("ntah,nthw,ntbw->ntab", rows, x, columns)
    return jnp.clip(jnp.round(crops), 0, 255).astype(jnp.uint8)[..., None]


def _cubic(distance: Array) -> Array:
    """The weights of cubic interpolation (Keys 1981, a = -1/2)."""
    d = jnp.abs(distance)
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0))


def spectrum(clips: Array) -> Array:
    """Log energies of clips [N, T, H, W, C] by band, temporal frequency and channel, [N, K].

    A band is what a picture loses when 2 x 2 pixels become one; the last is what is then left.
    """
    x, least = clips.astype(jnp.float32) / 255, 2 ** (BANDS - 1)
    height, width = (side // least * least for side in x.shape[2:4])
    x, bands = x[:, :, :height, :width], []
    for band in range(BANDS):
        n, t, h, w, c = x.shape
        low = None
        if band < BANDS - 1:
            low = x.reshape(n, t, h // 2, 2, w // 2, 2, c).mean((3, 5))
            x = x - low.repeat(2, axis=2).repeat(2, axis=3)
        energy = jnp.square(jnp.abs(jnp.fft.rfft(x, axis=1))).mean((2, 3)) / t
        bands.append(jnp.log(energy + SMALL).reshape(n, -1))
        x = low
    return jnp.concatenate(bands, axis=1)


def compare(
    samples: Features, real: Features, labels: np.ndarray | None = None, frame_name: str = "frame"
) -> dict[str, float]:
    """The measures of the module but clip FDD, of samples beside real clips.

    A distance of which there are not more clips, or frames, than dimensions is left out; so are,
    of clips that are too short for them, `first` and `jerk`.

    Args:
        samples: of a network of clips.
        real: of the same.
        labels: int [N], of the samples.
        frame_name: of the distance of single frames.
    """
    own, theirs = samples.further, real.further
    read = own["read"]
    mostly = np.array([np.bincount(row).argmax() for row in read])
    begins, later = own["frames"][:, 0], own["frames"][:, 1:]
    apart = theirs["frames"][:, 0]
    apart = np.square(apart - np.roll(apart, 1, axis=0)).sum(axis=-1).mean()
    scores = _motion(own, theirs) if "places" in own else {}
    scores["same"] = float(np.mean(read == mostly[:, None]))
    if later.shape[1]:  # none of clips of up to `EVERY` frames
        found = metrics.nearest(later.reshape(-1, later.shape[-1]), begins)
        right = found.reshape(later.shape[:2]) == np.arange(len(later))[:, None]
        scores["first"] = float(np.mean(right))
    scores |= {
        "drift": float(own["drift"].mean() / max(apart, SMALL)),
        "flicker": float(own["flicker"].mean()),
        "sharp": float(own["sharp"].mean()),
    }
    for name, key in ((frame_name, "frames"), ("spectral", "spectrum")):
        a, b = (part[key].reshape(-1, part[key].shape[-1]) for part in (own, theirs))
        if min(len(a), len(b)) > a.shape[1]:
            moments = map(metrics.moments, (a, b))
            scores[name] = metrics.frechet_distance(*moments)
    if labels is not None and "places" in own:
        scores["label"] = float(np.mean(read == np.asarray(labels)[:, None]))
    return scores


def _motion(own: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """What centroids say."""
    fits = []
    for part in (own, theirs):
        rooms = tuple(moving_digits.room(side) / 2 for side in part["size"][0].tolist())
        fits.append(motion.bounce_fit(part["places"], rooms))
    (residual, speed), (_, real_speed) = fits
    found = {
        "bounce": float(np.sqrt(np.mean(residual**2))),
        "bounce_median": float(np.median(residual)),
        "missing": float(np.isnan(own["places"][..., 0]).mean()),
    }
    if own["places"].shape[1] > 3:  # its difference takes four
        found["jerk"] = float(np.nanmedian(motion.jerk(own["places"])))
    return found | {"speed_w1": motion.wasserstein(speed, real_speed)}
