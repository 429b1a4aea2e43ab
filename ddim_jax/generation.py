"""Drawing many samples from a trained network: batches, labels, devices, timing.

Sample i has the key `fold_in(key(seed), i)` and its own label, so the set is the same whatever the
batch size and the number of devices.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddim_jax import data, parallel, sampling
from ddim_jax.experiment import Experiment
from ddim_jax.guidance import Guidance
from ddim_jax.models import pretrained
from ddim_jax.models.pretrained import Pretrained
from ddim_jax.probability_flow import AdaptiveResult, Tolerance
from ddim_jax.solvers import SolverTable, State

Array = Any


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N], or None for an unconditional network.
        trajectory: uint8 [E, N, H, W, C], the clean estimate in every row, if asked for.
        nfe: int [N], network evaluations of each (a guided one costs two forward passes).
        compile_seconds: spent in tracing and compiling.
        seconds: spent in sampling.
    """

    images: np.ndarray
    labels: np.ndarray | None
    trajectory: np.ndarray | None
    nfe: np.ndarray
    compile_seconds: float
    seconds: float


def make_labels(model: Pretrained, labels: Sequence[int] | None, count: int) -> np.ndarray | None:
    """[count] int32 labels, the given ones (default: all classes) in rotation.

    Raises:
        ValueError: labels for an unconditional network, or out of range.
    """
    classes = model.experiment.num_classes
    if not classes:
        if labels:
            raise ValueError(f"{model.name} is unconditional and takes no labels, got {labels}")
        return None
    labels = list(range(classes)) if labels is None or not len(labels) else list(labels)
    bad = [label for label in labels if not 0 <= label < classes]
    if bad:
        raise ValueError(
            f"labels must be 0..{classes - 1} for {model.name}, got {bad[0]}; "
            "guidance_scale=0 draws without a label"
        )
    return np.resize(np.array(labels, np.int32), count)


def check(model: Pretrained, num_samples: int, batch_size: int, guidance: Guidance | None) -> None:
    """Raises ValueError for what `generate` cannot do, before anything is compiled."""
    if num_samples < 1 or batch_size < 1:
        raise ValueError(
            f"num_samples and batch_size must be at least 1, got {num_samples} and {batch_size}"
        )
    if guidance is not None and not model.experiment.num_classes:
        raise ValueError(
            f"{model.name} is unconditional: guidance needs a class-conditional network"
        )
    if guidance is not None and model.experiment.takes_guidance:
        low, high = model.config.loss.guidance
        if not low <= guidance.scale <= high:
            raise ValueError(
                f"{model.name} was distilled for guidance scales {low} to {high}, got "
                f"{guidance.scale}"
            )
        return
    if guidance is not None and model.config.loss.get("label_dropout", 0) == 0:
        raise ValueError(
            f"{model.name} was trained without label dropout, so it has no null label to guide "
            "away from; use guidance_scale=1"
        )


def origin(model: Pretrained, table: SolverTable) -> dict[str, Any]:
    """What decides the samples of a network and a table, beside seed, labels and guidance; JSON."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(table):  # in float32: that is what the sampler sees
        digest.update(np.asarray(leaf, np.float32).tobytes())
    network = {name: model.config[name] for name in ("model", "schedule", "prediction")}
    return {
        "table": digest.hexdigest(),
        "weights": pretrained.fingerprint(model.params),
        "network": json.loads(json.dumps(network, default=lambda section: section.to_dict())),
        "image_shape": list(model.experiment.image_shape),
    }


def arguments(
    model: Pretrained,
    table: SolverTable | Tolerance,
    index: np.ndarray,
    seed: int = 0,
    labels: np.ndarray | None = None,
    guidance: Guidance | None = None,
    x: Array | State | None = None,
    known: Any = None,
) -> tuple:
    """What a network's sampler is called with, for the samples `index` of a set.

    Args:
        model: the network.
        table: the sampler.
        index: int [B], places in the whole set.
        seed: of the whole set.
        labels: [B], for a class-conditional network; default all classes in rotation.
        guidance: with a scalar scale; None for none.
        x: what the table starts from; default the noise of `seed`.
        known: pytree of [B, ...] arrays for a task.
    """
    parts, count = model.experiment, len(index)
    keys = sampling.sample_keys(seed, index)
    if labels is None and parts.num_classes:
        labels = make_labels(model, None, index.max() + 1)[index]
    own = None if labels is None else jnp.asarray(labels)
    scale = None if guidance is None else guidance.scale
    if parts.takes_guidance:
        guidance = None  # it is an input of this network
    interval = None if isinstance(table, Tolerance) else parts.interval(table, count)
    cond = parts.cond(own, guidance=scale, interval=interval)
    x = sampling.initial_noise(keys, parts.image_shape) if x is None else x
    return model.params, table, x, keys, cond, guidance, known


class Generator:
    """Draws batches from one network, spread over all devices of this process.

    Batches are filled up to a multiple of the devices; fewer samples than devices take one each.
    Compiled programs are kept: a table of the same (nfe, slots) costs no second compilation.

    Attributes:
        model: the network.
        compile_seconds: spent in tracing and compiling so far.
        seconds: spent in sampling so far.
    """

    def __init__(
        self,
        model: Pretrained,
        *,
        adaptive: bool = False,
        clip: str = "static",
        collect: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
        task: sampling.Task | None = None,
    ):
        """Prepares the sampler.

        Args:
            model: the network.
            adaptive: tables are tolerances.
            clip: "static", "dynamic" or "none".
            collect: "x0", "x": what results have of every row, see `sampling.run`; of a table only.
            progress: called with the number of each finished row.
            task: what samples have to agree with; of a table only.

        Raises:
            ValueError: something to collect without a table.
        """
        self.model = model
        self._sample = _sampler(model.experiment, adaptive, clip, collect, progress, task)
        self._on = {}  # number of devices -> their mesh, with the parameters on each
        self._programs = {}
        self.compile_seconds = self.seconds = 0.0

    def program(self, table: Any, batch: int, guidance: Guidance | None = None) -> Any:
        """The compiled program for such a table and batch; it can be asked for its memory."""
        size = self._filled(batch)
        return self._program(*self._arguments(table, np.arange(size), 0, None, guidance))

    def draw(
        self,
        table: SolverTable | Tolerance,
        index: np.ndarray,
        *,
        seed: int = 0,
        labels: np.ndarray | None = None,
        guidance: Guidance | None = None,
        x: Array | State | None = None,
        known: Any = None,
    ) -> sampling.RunResult | AdaptiveResult:
        """The samples of one batch, as float32 arrays of the host.

        Args:
            table: the sampler.
            index: int [B], their places in the whole set.
            seed: of the whole set.
            labels: [B], for a class-conditional network.
            guidance: with a scalar scale; None for none.
            x: [B, H, W, C] what the table starts from, or a `State`; default the noise of `seed`.
            known: pytree of [B, ...] arrays for the task.

        Raises:
            ValueError: a tolerance that was not met.
        """
        count, size = len(index), self._filled(len(index))
        index = np.concatenate([index, index[-1] + 1 + np.arange(size - count)])
        labels, x, known = jax.tree.map(
            lambda leaf: np.resize(leaf, (size, *np.shape(leaf)[1:])), (labels, x, known)
        )
        arguments = self._arguments(table, index, seed, labels, guidance, x, known)
        program = self._program(*arguments)
        start = time.perf_counter()
        result = jax.device_get(program(*arguments))
        self.seconds += time.perf_counter() - start
        if isinstance(table, Tolerance):
            return jax.tree.map(lambda leaf: leaf[:count], result.validate())
        collected = {name: values[:, :count] for name, values in result.collected.items()}
        x, state = jax.tree.map(lambda leaf: leaf[:count], (result.x, result.state))
        return sampling.RunResult(x, state, collected)

    def _filled(self, count: int) -> int:
        """A batch size that the devices it is drawn on share evenly."""
        return count + -count % min(count, jax.local_device_count())

    def _arguments(self, table, index, seed, labels, guidance, x=None, known=None):
        devices = jax.local_devices()[: len(index)]
        if len(devices) not in self._on:
            mesh, params = parallel.make_mesh(devices), self.model.params
            if devices[0].platform == "cpu":
                params = self.model.experiment.prepared(params)
            self._on[len(devices)] = mesh, parallel.replicate(params, mesh)
        mesh, params = self._on[len(devices)]
        _, table, *arrays, guidance, known = arguments(
            self.model, table, index, seed, labels, guidance, x, known
        )
        *arrays, known = parallel.shard((*arrays, known), mesh)
        return params, table, *arrays, guidance, known

    def _program(self, *arguments):
        leaves, tree = jax.tree.flatten(arguments[1:])
        signature = (tree, tuple(np.shape(leaf) for leaf in leaves))
        if signature not in self._programs:
            start = time.perf_counter()
            self._programs[signature] = self._sample.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._programs[signature]


def generate(
    model: Pretrained,
    table: SolverTable | Tolerance,
    *,
    labels: np.ndarray | None = None,
    num_samples: int = 16,
    batch_size: int = 64,
    seed: int = 0,
    guidance: Guidance | None = None,
    clip: str = "static",
    trajectory: bool = False,
    show_progress: bool = False,
) -> Generated:
    """Draws samples, spread over all devices of this process.

    Args:
        model: the network.
        table: the sampler; a tolerance for one that chooses the steps of each sample.
        labels: [num_samples] from `make_labels`.
        num_samples: N.
        batch_size: samples at a time, rounded up to a multiple of the devices.
        seed: of the whole set.
        guidance: with a scalar scale; None for none.
        clip: "static", "dynamic" or "none".
        trajectory: also return the clean estimates of every row; of a table only.
        show_progress: a bar over network evaluations, moved from inside the compiled loop; over
            batches without a table.

    Raises:
        ValueError: see `check`; a trajectory without a table; a tolerance that was not met.
    """
    check(model, num_samples, batch_size, guidance)
    adaptive = isinstance(table, Tolerance)
    batch = min(batch_size, num_samples)
    per_batch, unit = (1, "batch") if adaptive else (table.nfe, "eval")
    bar = tqdm(total=-(-num_samples // batch) * per_batch, unit=unit, disable=not show_progress)
    progress = (lambda row: bar.update()) if show_progress else None
    collect = ("x0",) if trajectory else ()
    generator = Generator(model, adaptive=adaptive, clip=clip, collect=collect, progress=progress)
    images, estimates, nfe = [], [], []
    for first in range(0, num_samples, batch):
        index = np.arange(first, first + batch)  # the last batch draws more than it keeps
        own = None if labels is None else np.resize(labels, first + batch)[first:]
        result = generator.draw(table, index, seed=seed, labels=own, guidance=guidance)
        if adaptive:
            bar.update()
        images.append(data.to_uint8(result.x))
        nfe.append(np.broadcast_to(result.nfe if adaptive else table.nfe, batch))
        if trajectory:
            estimates.append(data.to_uint8(result.collected["x0"]))
    jax.effects_barrier()
    bar.close()
    return Generated(
        images=np.concatenate(images)[:num_samples],
        labels=labels,
        trajectory=np.concatenate(estimates, 1)[:, :num_samples] if trajectory else None,
        nfe=np.concatenate(nfe)[:num_samples],
        compile_seconds=generator.compile_seconds,
        seconds=generator.seconds,
    )


def _sampler(
    parts: Experiment,
    adaptive: bool,
    clip: str,
    collect: Sequence[str],
    progress: Callable | None,
    task: sampling.Task | None,
) -> Callable:
    """A jitted `f(params, table, x, keys, cond, guidance, known)` that answers with `.x`."""
    if not adaptive:
        return parts.sampler(clip=clip, collect=collect, progress=progress, task=task)
    if collect:
        raise ValueError("a trajectory needs a table: samples under a tolerance share no steps")
    draw = parts.adaptive_sampler(clip=clip)

    def draw_without_keys(params, tolerance, x, keys, cond, guidance, known):
        return draw(params, tolerance, x, cond, guidance)

    return jax.jit(draw_without_keys)
