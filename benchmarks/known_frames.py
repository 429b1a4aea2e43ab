"""What known frames do: long clips by every way, a first frame, frames between; of moving digits.

    python -m benchmarks.known_frames --checkpoint=runs/moving_digits/clips --num=128

Prints tables for docs/video.md. `bounce` of long clips is that of the frames of a window at a time,
which is what it is compared with; `same` is of whole clips. Test clips are those of digits that
training has not seen. Frames between are compared with the mean of their two neighbours: a test
clip's even frames are given, and its odd ones are drawn.
"""

import argparse
from typing import Any

import numpy as np

import ddim_jax
from ddim_jax import clip_drawing, data
from ddim_jax.evaluation import feature_networks

COLUMNS = ("bounce", "bounce_median", "same", "drift", "flicker", "label")


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="runs/moving_digits/clips")
    parser.add_argument("--num", type=int, default=128, help="clips of each kind")
    parser.add_argument("--extend", type=int, default=64, help="frames of long clips")
    parser.add_argument("--steps", type=int, default=None, help="default the checkpoint's")
    parser.add_argument("--ways", default="levels,replacement", help="of --known_by")
    return parser.parse_args()


def main() -> None:
    """Draws, measures, prints."""
    args = arguments()
    model = ddim_jax.load(args.checkpoint)
    steps = {} if args.steps is None else {"steps": args.steps}
    drawing = {**steps, "seed": 1, "progress": True}
    measured = Measured(model, args.num)
    ways = [way for way in args.ways.split(",") if knows(model, way)]
    print("| clips | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (1 + len(COLUMNS)))
    measured.row("test clips", measured.real, measured.labels)
    labels = np.arange(args.num) % model.inputs.num_classes
    told = {"label": labels.tolist(), **drawing}
    measured.row("drawn at once", model.draw(args.num, **told), labels)
    recipe = model.recipe.replace(**steps)
    apart = model.generate(args.num, recipe, label=told["label"], seed=1, alone=True)
    measured.row("each frame apart", apart.pictures, labels)
    for way in ways:
        long = model.draw(args.num, extend=args.extend, known_by=way, **told)
        measured.row(f"{args.extend} frames by {way}", long, labels)
    for way in ways:
        begun = model.draw(first_frame=measured.real[:, 0], known_by=way, **drawing)
        measured.row(f"from a test clip's first frame by {way}", begun, measured.labels)
        change = np.abs(measured.real[:, 0].astype(int) - begun[:, 0]).max()
        print(f"first frames by {way}: greatest change of a pixel {change} of 255", flush=True)
    odd, even = measured.real[:, 1:-1:2].astype(float), measured.real[:, ::2].astype(float)
    print(f"mean of the neighbours: PSNR {psnr(odd, (even[:, :-1] + even[:, 1:]) / 2):.2f} dB")
    for way in ways:
        given = {"from_clip": measured.real[:, ::2], "interpolate": 2, "known_by": way}
        found = model.draw(**given, **drawing)[:, 1:-1:2]
        print(f"frames between by {way}: PSNR {psnr(odd, found.astype(float)):.2f} dB", flush=True)


class Measured:
    """Prints what is measured of clips beside test clips."""

    def __init__(self, model: Any, count: int):
        """Reads the test clips of the model's size and length."""
        self._size, self._count = model.codec.size, count
        self._network = feature_networks.load("moving_digits")
        self._features: dict[int, Any] = {}
        self.real, self.labels = self._test_clips(model.codec.frames)

    def _test_clips(self, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Clips and labels."""
        source = data.load("moving_digits", "test", image_size=self._size, frames=frames)
        examples = [source[i] for i in range(self._count)]
        return tuple(np.stack([one[name] for one in examples]) for name in ("image", "label"))

    def row(self, name: str, clips: np.ndarray, labels: np.ndarray) -> None:
        """Prints a row of the table."""
        whole = self._scores(clips, labels)
        window = self.real.shape[1]
        parts = clips[:, : clips.shape[1] // window * window].reshape(-1, *self.real.shape[1:])
        scores = whole | {
            name: value
            for name, value in self._scores(parts, None).items()
            if name.startswith("bounce")
        }
        print(f"| {name} | " + " | ".join(f"{scores[c]:.3f}" for c in COLUMNS) + " |", flush=True)

    def _scores(self, clips: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
        frames = clips.shape[1]
        if frames not in self._features:
            self._features[frames] = self._network.extract(self._test_clips(frames)[0])
        return self._network.compare(self._network.extract(clips), self._features[frames], labels)


def knows(model: Any, way: str) -> bool:
    """Whether known frames can be told to a model in this way."""
    return way != "levels" or clip_drawing.knows_levels(model)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of arrays of 0..255, in dB."""
    return float(10 * np.log10(255**2 / max(np.mean((a - b) ** 2), 1e-9)))


if __name__ == "__main__":
    main()
