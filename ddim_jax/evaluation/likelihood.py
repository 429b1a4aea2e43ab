"""Measures bits per dimension of images under a model.

    python -m ddim_jax.evaluation.likelihood --method=ode --tolerance=1e-3 --out=likelihood.json
    python -m ddim_jax.evaluation.likelihood --method=vlb --steps=1000 --data=npz:FILE --split=test

`ode` is the density of the probability flow (`evaluation/density.py`), for each image to a
tolerance; `vlb` is the variational bound of DDPM's chain (`evaluation/bound.py`), whose terms are
kept apart. Both are means of bounds on the code length of uint8 images, of two distributions made
of one network, so either may be the smaller. The file holds every setting and the value of every
image.

Without --data it reads the digits in the package, on which its models were trained: for a
likelihood that can be compared with others give images that the model has not seen. A model with
classes is told each image's own label.

The bundled model on MNIST's test images: `ode` 2.06 +- 0.02 bits (256 images, 53 evaluations each;
the standard deviation of an image's value is 0.03 by the one probe, 0.006 by the tolerance of 1e-3,
0.3 between images). `vlb` with 1,000 steps 2.37 +- 0.03, of which the last step alone is 0.75; with
--stride=log_snr, whose steps are equal where the bits are, 1.86 +- 0.04 (64 images). For the same
reason --terms is inaccurate on a uniform stride.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ddim_jax import checkpoints, command_line, data, files
from ddim_jax.adaptive_sampling import Tolerance, noisy_end
from ddim_jax.batch_loop import Generator
from ddim_jax.evaluation import bound, density, features, scores
from ddim_jax.keys import check_seed, sample_keys
from ddim_jax.model import Model
from ddim_jax.recipe import make_times

OPTIONS = {
    "ode": {"tolerance": 1e-3, "probes": 1},
    "vlb": {"steps": None, "stride": "uniform", "terms": None, "variance": "small"},
}
"""Default settings that only one of the methods has."""

DIGITS_NFE = 52
"""Evaluations per image that the bundled model takes at tolerance 1e-3; the cost is told by it."""


class Images(NamedTuple):
    """What is measured: uint8 [N, H, W, C], with labels if the model has any, and their places."""

    images: np.ndarray
    labels: np.ndarray | None
    index: np.ndarray


def read(model: Model, args: argparse.Namespace) -> Images:
    """Reads a random choice of images that fit the model, the same for the same seed."""
    image_shape, resize = model.sample_shape, model.config.data.get("resize")
    size = {"image_size": resize, "channels": image_shape[-1]} if resize else {}
    size |= {"pad": model.config.data.get("pad", False)} if resize else {}
    source = data.load(args.data, args.split, **size)
    if source.image_shape != image_shape:
        raise ValueError(
            f"{model.name} takes images of shape {image_shape}, {args.data} has "
            f"{source.image_shape}; choose the data it was trained on"
        )
    if args.num_images > len(source):
        raise ValueError(
            f"num_images must be at most {len(source)}, all of {args.data}, split {args.split}, "
            f"got {args.num_images}"
        )
    classes = model.inputs.num_classes
    if classes and not 0 < source.num_classes <= classes:
        raise ValueError(
            f"{model.name} is told each image's label, one of {classes}, and {args.data} has "
            f"{source.num_classes} classes; choose data with the labels it was trained on"
        )
    index = np.random.default_rng(args.seed).permutation(len(source))[: args.num_images]
    images, labels = features.read_images(source, index)
    return Images(images, labels.astype(np.int32) if classes else None, index)


class Method(NamedTuple):
    """One way of measuring images.

    Attributes:
        sampler: jitted `(params, table, images, keys, inputs, guidance, known) -> dict`, [B, ...].
        table: what it takes in that place.
        known: [N, ...] what it knows of each image, or None.
        finish: (rows, result) of a batch -> {"bits": [B], ...}, on the host.
        describe: results of all -> what else to report, JSON.
        cost: of all images, in words.
    """

    sampler: Callable[..., dict[str, Any]]
    table: Any
    known: np.ndarray | None
    finish: Callable[[slice, dict], dict[str, np.ndarray]]
    describe: Callable[[dict], dict[str, Any]]
    cost: str


def by_flow(model: Model, images: Images, args: argparse.Namespace) -> Method:
    """Measures by the probability flow."""
    schedule = model.schedule
    sampler = density.make_flow_bits(
        model.apply, model.parameterization, schedule, probes=args.probes
    )

    def finish(rows: slice, result: dict) -> dict[str, np.ndarray]:
        return {"bits": result["bits"], "nfe": result["integration"].validate().nfe}

    def describe(results: dict) -> dict[str, Any]:
        nfe, end, size = results["nfe"], noisy_end(schedule), images.images[0].size
        lost = bound.prior_divergence(schedule, end.t, images.images) / (size * np.log(2))
        return {
            "nfe": {"mean": float(nfe.mean()), "min": int(nfe.min()), "max": int(nfe.max())},
            "lam": [float(schedule.half_log_snr(t)) for t in (schedule.t_min, end.t)],
            "lost_at_the_noisy_end_at_most": float(lost.mean()),
        }

    table = Tolerance(args.tolerance, args.tolerance).validate()
    nfe = DIGITS_NFE * (1e-3 / args.tolerance) ** (1 / 5)  # the order of the pair
    cost = (
        f"{args.num_images} images x about {nfe:.0f} network evaluations (what the bundled digits "
        f"take at this tolerance), each with {args.probes} jvp: as much work as about "
        f"{args.num_images * nfe * (1 + args.probes):,.0f} forward passes"
    )
    return Method(sampler, table, None, finish, describe, cost)


def by_bound(model: Model, images: Images, args: argparse.Namespace) -> Method:
    """Measures by the variational bound; sets `args.steps` where it was not given."""
    if args.steps is None:
        args.steps = model.schedule.num_steps or 1000
    times = make_times(model.schedule, args.stride, args.steps)
    chain = bound.Chain(model.schedule, times, args.terms, args.variance)
    index = chain.choose(sample_keys(args.seed, images.index))

    def finish(rows: slice, result: dict) -> dict[str, np.ndarray]:
        terms = chain.bound(images.images[rows], index[rows], result["errors"], result["x0"])
        return {"bits": terms.total, **terms._asdict()}

    def describe(results: dict) -> dict[str, Any]:
        index, steps = results["index"].ravel(), results["steps"].ravel()
        count = np.bincount(index, minlength=chain.steps)
        with np.errstate(invalid="ignore"):
            means = np.bincount(index, steps, minlength=chain.steps) / count
        return {
            "nfe": {"mean": float(chain.nfe), "min": chain.nfe, "max": chain.nfe},
            "lam": model.schedule.half_log_snr(times[:-1]).tolist(),
            "terms": {
                "prior": float(results["prior"].mean()),
                "steps": [None if np.isnan(mean) else mean for mean in means.tolist()],
                "decoder": float(results["decoder"].mean()),
            },
        }

    errors = bound.make_errors(model.apply, model.parameterization)
    cost = (
        f"{args.num_images} images x {chain.nfe} network evaluations, no jvp: "
        f"{args.num_images * chain.nfe:,} forward passes"
    )
    return Method(errors, chain.levels, index, finish, describe, cost)


METHODS = {"ode": by_flow, "vlb": by_bound}


def measure(
    model: Model, method: Method, images: Images, args: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Measures all images, batch by batch over the devices, with a bar."""
    generator = Generator(method.sampler, model.params, model.sample_shape)
    count, parts = len(images.index), []
    inputs = model.inputs.arrays(images.labels, np.ones(count))
    given = {"x": images.images, "known": method.known, "batch_size": args.batch_size}
    with tqdm(total=count, unit="image", desc=args.method) as bar:
        for rows, result in generator.batches(
            method.table, images.index, inputs, seed=args.seed, **given
        ):
            parts.append(method.finish(rows, result))
            bits = np.concatenate([part["bits"] for part in parts])
            if not np.all(np.isfinite(bits)):
                raise ValueError(
                    f"image {images.index[np.isfinite(bits).argmin()]} has no finite value; are "
                    "the network's predictions finite?"
                )
            bar.update(len(bits) - bar.n)
            bar.set_postfix(bits=f"{bits.mean():.3f}")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line and checks it as far as it can be without a model."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="digits", help="as of sample.py")
    add("--data", default="digits", help="digits, npz:PATH, folder:PATH, TFDS name")
    add("--split", default="train")
    add("--num_images", type=int, default=256, help="a random choice")
    add("--method", default="ode", choices=OPTIONS)
    add("--tolerance", type=float, help="ode: error of a step (1e-3)")
    add("--probes", type=int, help="ode: of the trace of each image (1)")
    add("--steps", type=int, help="vlb: of the chain (all, 1000 if continuous)")
    add("--stride", help="vlb: a name in STRIDES (uniform)")
    add("--terms", type=int, help="vlb: steps to evaluate, chosen at random (all)")
    add("--variance", choices=("small", "large"), help="vlb: of a step (small)")
    add("--batch_size", type=int, default=32)
    add("--seed", type=int, default=0, help="of the choice and of all noise")
    add("--out", default="likelihood.json")
    add("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    for method, defaults in OPTIONS.items():
        for name, value in defaults.items():
            if method == args.method and getattr(args, name) is None:
                setattr(args, name, value)
            elif method != args.method and getattr(args, name) is not None:
                raise ValueError(f"--{name} belongs to --method={method}, got {args.method}")
    for name, least in {"num_images": 2, "batch_size": 1, "probes": 1}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    check_seed(args.seed, "--seed")
    files.check_new(args.out, what="--out", suffixes=(".json",), overwrite=args.overwrite)
    return args


def run(args: argparse.Namespace) -> None:
    """Checks, says the cost, measures and writes."""
    model = checkpoints.load(args.checkpoint)
    model.check_weights()
    images = read(model, args)
    method = METHODS[args.method](model, images, args)
    training = args.split.startswith("train")
    what = f"{args.num_images} images of {args.data}, split {args.split}"
    what += " (training images: the model may have seen them)" if training else ""
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{what}\n{method.cost}", flush=True)
    start = time.perf_counter()
    results = measure(model, method, images, args)
    bits = results["bits"].astype(np.float64)
    mean, error = float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(len(bits)))
    report = {
        "bits_per_dim": {"mean": mean, "standard_error": error},
        "training_images": training,
        **method.describe(results),
        "seconds": time.perf_counter() - start,
        "settings": {name: value for name, value in vars(args).items() if value is not None},
        "step": model.step,
        "weights": model.fingerprint,
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
    command_line.run("likelihood", lambda: run(parse(argv)))


if __name__ == "__main__":
    main()
