"""The input pipeline on this machine: images a second, and whether a train step waits for it.

    python -m benchmarks.pipeline [--networks=digits:64,cifar10:8,celeba64:2] [--steps=3]

NAME:BATCH is a file in configs/ and a batch size. Random images of the network's size are kept in
the three ways that data can be: in memory (`npz:`), as PNG files (`folder:`), and as a TFDS dataset
of PNGs in array_record. Prints images a second of the pipeline alone and of the train step alone,
the ratio of the first to the second, and, by turns, the time of training with the pipeline over
that with one batch in memory: 1 where the device never waits. Noise is the worst case of PNG.
"""

import argparse
import contextlib
import functools
import io
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from benchmarks.common import alternate, load_config, ratio
from ddim_jax import data, parallel
from ddim_jax.training import loop
from ddim_jax.training.method import build

COUNT = 2048
"""Images of a source."""


class RandomImages(tfds.core.GeneratorBasedBuilder):
    """The class's `images`, uint8 [N, H, W, C], as PNG with labels 0..9."""

    VERSION = tfds.core.Version("1.0.0")
    images: np.ndarray

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=self.images.shape[1:]),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, image in enumerate(self.images):
            yield i, {"image": io.BytesIO(png(image)), "label": i % 10}


def png(image: np.ndarray) -> bytes:
    """The file of uint8 [H, W, C]."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    return file.getvalue()


def sources(folder: Path, shape: tuple[int, int, int]) -> dict[str, data.Source]:
    """The same random images, kept in three ways."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, *shape), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(COUNT) % 10)
    for i, image in enumerate(images):
        path = folder / "png" / str(i % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    RandomImages.images, kept = images, str(folder / "tfds")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        RandomImages(data_dir=kept, file_format="array_record").download_and_prepare()
    return {
        "npz": data.load(f"npz:{folder / 'images.npz'}"),
        "folder": data.load(f"folder:{folder / 'png'}", channels=shape[-1]),
        "array_record": data.load("random_images", data_dir=kept),
    }


def training(name: str, batch: int, steps: int):
    """(shape of an image, a call that takes `steps` steps on batches of an iterator)."""
    config = load_config(f"configs/{name}.py")
    config.train.batch_size = batch
    mesh = parallel.make_mesh()
    method = build(config, None, mesh)
    state = loop.init_state(config, method, None, mesh)

    def take(batches):
        nonlocal state
        for _ in range(steps):
            state, metrics = method.step(state, parallel.shard(next(batches), mesh))
        return metrics

    return method.model.codec.picture_shape, take


def reading_rate(batches, batch: int, seconds: float = 5.0) -> float:
    """Images a second of an iterator, after a pass that does not count."""
    for _ in range(COUNT // batch):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += batch
    return count / (time.perf_counter() - start)


def measure(name: str, batch: int, steps: int, repeats: int) -> None:
    """Prints the rows of a network."""
    shape, take = training(name, batch, steps)
    with tempfile.TemporaryDirectory() as folder:
        for kind, source in sources(Path(folder), shape).items():
            with contextlib.closing(data.batches(source, batch, seed=0)) as batches:
                kept = [next(batches)] * steps
                rate = reading_rate(batches, batch)
                calls = {
                    "with": functools.partial(take, batches),
                    "without": lambda kept=kept: take(iter(kept)),
                }
                taken = alternate(calls, repeats)
            step_rate = batch * steps / taken["without"].min()
            print(
                f"{name:9}{'x'.join(map(str, shape)):>10}{batch:6} {kind:13}{rate:9,.0f}"
                f"{step_rate:9.1f}{rate / step_rate:7.0f}  "
                f"{ratio(taken['with'], taken['without'])}",
                flush=True,
            )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="digits:64,cifar10:8,celeba64:2")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{'network':9}{'image':>10}{'batch':>6} {'source':13}{'read/s':>9}{'train/s':>9}"
        f"{'ratio':>7}  with the pipeline over without"
    )
    for name, _, batch in (part.partition(":") for part in args.networks.split(",")):
        measure(name, int(batch), args.steps, args.repeats)
    print(f"jax {jax.__version__}, {jax.device_count()} devices")


if __name__ == "__main__":
    parallel.use_cpu_cores()
    main()
