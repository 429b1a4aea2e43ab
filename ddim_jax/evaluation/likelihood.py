"""Measures bits per dimension of images under a network.

    python -m ddim_jax.evaluation.likelihood --method=ode --tolerance=1e-3 --out=likelihood.json
    python -m ddim_jax.evaluation.likelihood --method=vlb --steps=1000 --data=npz:FILE --split=test

`ode` is the density of the probability flow (`evaluation/density.py`), for each image to a
tolerance; `vlb` is the variational bound of DDPM's chain (`evaluation/bound.py`), whose terms are
kept apart. Both are means of bounds on the code length of uint8 images, of two models made of one
network, so neither need be the smaller. The file holds every setting and the value of every image.

Without --data it reads the digits that come with the package, on which networks were trained: for a
likelihood that can be compared with others give images that the network has not seen. A network
with classes is asked at each image's own label.

The bundled network on MNIST's test images: `ode` 2.06 +- 0.02 bits (256 images, 53 evaluations
each; one probe spreads the value of an image by 0.03, the tolerance of 1e-3 by 0.006, the images
differ by 0.3). `vlb` with 1,000 steps 2.37 +- 0.03, of which the last step alone is 0.75; with
--stride=log_snr, whose steps are alike where the bits are, 1.86 +- 0.04 (64 images). For the same
reason --terms says little of a uniform stride.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import commands, data, experiment, files, parallel, sampling
from ddim_jax.evaluation import bound, density, scores
from ddim_jax.models import pretrained
from ddim_jax.probability_flow import Tolerance, noisy_end
from ddim_jax.strides import STRIDES

Array = Any

OPTIONS = {
    "ode": {"tolerance": 1e-3, "probes": 1},
    "vlb": {"steps": None, "stride": "uniform", "terms": None, "variance": "small"},
}
"""Default settings that only one of the methods has."""

DIGITS_NFE = 52
"""Evaluations per image that the bundled network takes at tolerance 1e-3, to tell the cost by."""


class Images(NamedTuple):
    """What is measured.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N], or None for an unconditional network.
        index: int [N], their places in the source.
    """

    images: np.ndarray
    labels: np.ndarray | None
    index: np.ndarray


def read(model: pretrained.Pretrained, args: argparse.Namespace) -> Images:
    """A random choice of images that fit the network, the same for the same seed.

    Raises:
        FileNotFoundError: there is no such data.
        ValueError: images or labels that the network cannot take, fewer than asked for.
    """
    parts, resize = model.experiment, model.config.data.get("resize")
    size = {"image_size": resize, "channels": parts.image_shape[-1]} if resize else {}
    source = data.load(args.data, args.split, **size)
    if source.image_shape != parts.image_shape:
        raise ValueError(
            f"{model.name} takes images of shape {parts.image_shape}, {args.data} has "
            f"{source.image_shape}; choose the data it was trained on"
        )
    if args.num_images > len(source):
        raise ValueError(
            f"num_images must be at most {len(source)}, all of {args.data}, split {args.split}, "
            f"got {args.num_images}"
        )
    classes = parts.num_classes
    if classes and not 0 < source.num_classes <= classes:
        raise ValueError(
            f"{model.name} is asked at each image's label, one of {classes}, and {args.data} has "
            f"{source.num_classes} classes; choose data with the labels it was trained on"
        )
    index = np.random.default_rng(args.seed).permutation(len(source))[: args.num_images]
    examples = [source[i] for i in index]
    labels = np.array([example["label"] for example in examples], np.int32)
    images = np.stack([example["image"] for example in examples])
    return Images(images, labels if classes else None, index)


class Method(NamedTuple):
    """One way of measuring.

    Attributes:
        bits: `(params, images, keys, cond) -> {"bits": [B], ...}`.
        cost: of all images, in words.
        describe: (results, images) -> what else to report, JSON.
    """

    bits: Callable[..., dict[str, Array]]
    cost: str
    describe: Callable[[dict, np.ndarray], dict[str, Any]]


def by_flow(model: pretrained.Pretrained, args: argparse.Namespace) -> Method:
    """The probability flow.

    Raises:
        ValueError: a tolerance that is not positive.
    """
    parts, schedule = model.experiment, model.experiment.schedule
    tolerance = Tolerance(args.tolerance, args.tolerance).validate()
    flow_bits = density.make_flow_bits(
        parts.apply, parts.parameterization, schedule, probes=args.probes
    )

    def bits(params, images, keys, cond) -> dict[str, Array]:
        values, result = flow_bits(params, tolerance, images, keys, cond)
        return {"bits": values, "nfe": result.validate().nfe}

    def describe(results: dict, images: np.ndarray) -> dict[str, Any]:
        nfe, end = results["nfe"], noisy_end(schedule)
        lost = bound.prior_divergence(schedule, end.t, images) / (images[0].size * np.log(2))
        return {
            "nfe": {"mean": float(nfe.mean()), "min": int(nfe.min()), "max": int(nfe.max())},
            "lam": [float(schedule.half_log_snr(t)) for t in (schedule.t_min, end.t)],
            "lost_at_the_noisy_end_at_most": float(lost.mean()),
        }

    nfe = DIGITS_NFE * (1e-3 / args.tolerance) ** (1 / 5)  # the order of the pair
    cost = (
        f"{args.num_images} images x about {nfe:.0f} network evaluations (what the bundled digits "
        f"take at this tolerance), each with {args.probes} jvp: as much work as about "
        f"{args.num_images * nfe * (1 + args.probes):,.0f} forward passes"
    )
    return Method(bits, cost, describe)


def by_bound(model: pretrained.Pretrained, args: argparse.Namespace) -> Method:
    """The variational bound; sets `args.steps` where it was not given.

    Raises:
        ValueError: an unknown stride; steps or terms out of range.
    """
    parts, schedule = model.experiment, model.experiment.schedule
    if args.steps is None:
        args.steps = schedule.num_steps or 1000
    times = experiment.lookup(STRIDES, args.stride, "stride")(schedule, args.steps)
    total = bound.check_bound(schedule, times, args.terms, args.variance)
    errors = bound.make_errors(parts.apply, parts.parameterization)

    def bits(params, images, keys, cond) -> dict[str, Array]:
        terms = bound.variational_bound(
            functools.partial(errors, params, cond=cond), schedule, times, images, keys,
            terms=args.terms, variance=args.variance,
        )  # fmt: skip
        return {"bits": terms.total, **terms._asdict()}

    nfe = 1 + (total if args.terms is None else args.terms)

    def describe(results: dict, images: np.ndarray) -> dict[str, Any]:
        index, steps = results["index"].ravel(), results["steps"].ravel()
        count = np.bincount(index, minlength=total)
        with np.errstate(invalid="ignore"):
            means = np.bincount(index, steps, minlength=total) / count
        return {
            "nfe": {"mean": float(nfe), "min": nfe, "max": nfe},
            "lam": schedule.half_log_snr(times[:-1]).tolist(),
            "terms": {
                "prior": float(results["prior"].mean()),
                "steps": [None if np.isnan(mean) else mean for mean in means.tolist()],
                "decoder": float(results["decoder"].mean()),
            },
        }

    cost = (
        f"{args.num_images} images x {nfe} network evaluations, no jvp: "
        f"{args.num_images * nfe:,} forward passes"
    )
    return Method(bits, cost, describe)


def measure(model: pretrained.Pretrained, call: Callable, images: Images, args) -> dict:
    """The results of all images, batch by batch over the devices, with a bar.

    Raises:
        ValueError: an image without a finite value.
    """
    mesh = parallel.make_mesh(jax.local_devices())
    params = parallel.replicate(model.params, mesh)
    keys = sampling.sample_keys(args.seed, images.index)
    count, results = len(images.index), []
    size = -(-min(args.batch_size, count) // mesh.size) * mesh.size
    with tqdm(total=count, unit="image", desc=args.method) as bar:
        for first in range(0, count, size):
            index = np.minimum(np.arange(first, first + size), count - 1)  # a full last batch
            own = None if images.labels is None else images.labels[index]
            batch = (images.images[index], keys[index], model.experiment.cond(own))
            result = jax.device_get(call(params, *parallel.shard(batch, mesh)))
            results.append({name: values[: count - first] for name, values in result.items()})
            bits = np.concatenate([result["bits"] for result in results])
            if not np.all(np.isfinite(bits)):
                raise ValueError(
                    f"image {images.index[np.isfinite(bits).argmin()]} has no finite value; are "
                    "the network's predictions finite?"
                )
            bar.update(len(bits) - bar.n)
            bar.set_postfix(bits=f"{bits.mean():.3f}")
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as it can be without a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="digits", help="as of sample.py")
    parser.add_argument("--data", default="digits", help="digits, npz:PATH, folder:PATH, TFDS name")
    parser.add_argument("--split", default="train")
    parser.add_argument("--num_images", type=int, default=256, help="a random choice")
    parser.add_argument("--method", default="ode", choices=OPTIONS)
    parser.add_argument("--tolerance", type=float, help="ode: error of a step (1e-3)")
    parser.add_argument("--probes", type=int, help="ode: of the trace of each image (1)")
    parser.add_argument("--steps", type=int, help="vlb: of the chain (all, 1000 if continuous)")
    parser.add_argument("--stride", help="vlb: a name in STRIDES (uniform)")
    parser.add_argument("--terms", type=int, help="vlb: steps to evaluate, chosen at random (all)")
    parser.add_argument("--variance", choices=("small", "large"), help="vlb: of a step (small)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of all noise")
    parser.add_argument("--out", default="likelihood.json")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    for method, defaults in OPTIONS.items():
        for name, value in defaults.items():
            if method == args.method and getattr(args, name) is None:
                setattr(args, name, value)
            elif method != args.method and getattr(args, name) is not None:
                raise ValueError(f"--{name} belongs to --method={method}, got {args.method}")
    for name, least in {"num_images": 2, "batch_size": 1, "probes": 1, "seed": 0}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    out = Path(args.out)
    if out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {out}")
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"{out} exists; choose another --out, or pass --overwrite")
    return args


def run(args: argparse.Namespace) -> None:
    """Checks, says the cost, measures, writes."""
    model = pretrained.load(args.checkpoint)
    method = (by_flow if args.method == "ode" else by_bound)(model, args)
    images = read(model, args)
    training = args.split.startswith("train")
    what = f"{args.num_images} images of {args.data}, split {args.split}"
    what += " (training images: the network may have seen them)" if training else ""
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{what}\n{method.cost}", flush=True)
    start = time.perf_counter()
    results = measure(model, method.bits, images, args)
    bits = results["bits"].astype(np.float64)
    mean, error = float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(len(bits)))
    report = {
        "bits_per_dim": {"mean": mean, "standard_error": error},
        "training_images": training,
        **method.describe(results, images.images),
        "seconds": time.perf_counter() - start,
        "settings": {name: value for name, value in vars(args).items() if value is not None},
        "step": model.step,
        "weights": pretrained.fingerprint(model.params),
        "versions": scores.versions(),
        "index": images.index.tolist(),
        "bits": bits.tolist(),
    }
    files.write_json(out, report)
    print(
        f"{out}: {mean:.4f} +- {error:.4f} bits per dimension ({args.method}, {model.name}, "
        f"{what}), {report['nfe']['mean']:.0f} NFE an image, {report['seconds']:.0f} s"
    )


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line."""
    commands.run(__file__, lambda: run(parse(argv)))


if __name__ == "__main__":
    main()
