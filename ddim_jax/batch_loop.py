"""The one batch loop: a jitted sampler over all devices of this process, batch by batch.

Sample i is decided by `fold_in(key(seed), i)` and its own inputs, so a set is the same whatever the
batch size and the number of devices. Everything that draws goes through `Generator.batches`.
"""

import functools
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax import parallel, sampling
from ddim_jax.adaptive_sampling import AdaptiveResult, Tolerance
from ddim_jax.guidance import Guidance
from ddim_jax.names import check_range
from ddim_jax.solvers import SolverTable, State

Array = Any
Sampler = Callable[..., Any]
"""Jitted `(params, table, x, keys, inputs, guidance, known) -> result`, [B, ...] in and out."""

MODES = ("jit", "fsdp", "pmap")
"""How a batch is spread over devices, see `parallel`; the samples are equal."""

_PROGRAMS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""Sampler -> signature -> what was compiled for it, as long as the sampler lives."""


class Batch(NamedTuple):
    """What `Generator.batches` yields.

    Attributes:
        rows: which of the given samples, a slice of 0..N.
        result: of the sampler, as arrays of the host, for these samples alone.
    """

    rows: slice
    result: Any


class NotFiniteSamples(ValueError):
    """Samples that are infinite or NaN; the message says which, from where on, and what to try."""


class Generator:
    """Runs a sampler over any number of samples.

    A batch takes a multiple of the devices; fewer samples than devices take one each. A table of
    the same (nfe, slots) costs no second compilation, nor do parameters of the same shapes: what
    is compiled is kept with the sampler.

    Attributes:
        params: what the sampler is called with; may be replaced by others of the same shapes.
        compile_seconds: spent in tracing and compiling so far.
        seconds: spent in sampling so far.
        program: what was compiled for the last batch; it can be asked for its memory.
    """

    def __init__(
        self,
        sampler: Sampler,
        params: Any,
        sample_shape: tuple[int, ...],
        *,
        prepare: Callable[[Any], Any] | None = None,
        mode: str = "jit",
        placed: dict | None = None,
        frame_noise: Callable[[Array], Array] | None = None,
    ):
        """Compiles nothing yet.

        Args:
            sampler: see `Sampler`.
            params: of the network.
            sample_shape: of one sample, for the noise it starts from.
            prepare: makes parameters ready for many evaluations on CPUs; None: they are.
            mode: "jit"; "fsdp", which splits the parameters over the devices; or "pmap".
            placed: where parameters on devices are kept, shared by generators of the same ones.
            frame_noise: makes the noise of the frames of clips correlated.

        Raises:
            ValueError: an unknown mode.
        """
        if mode not in MODES:
            raise ValueError(f"parallel must be one of {', '.join(MODES)}, got {mode!r}")
        self._sampler, self._mode = sampler, mode
        self._shape, self._prepare = tuple(sample_shape), prepare
        self._frame_noise = frame_noise
        # (mode, number of devices) -> (mesh, parameters on them)
        self._placed: dict[tuple[str, int], tuple] = {} if placed is None else placed
        self._programs = _PROGRAMS.setdefault(sampler, {})
        self._params, self.program = params, None
        self.compile_seconds = self.seconds = 0.0

    @property
    def params(self) -> Any:
        """What the sampler is called with."""
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params, self._placed = params, {}

    def batches(
        self,
        table: SolverTable | Tolerance | None,
        index: np.ndarray,
        inputs: dict[str, np.ndarray] | None = None,
        *,
        seed: int = 0,
        guidance: Guidance | None = None,
        x: Array | State | None = None,
        known: Any = None,
        keys: Array | None = None,
        batch_size: int = 64,
    ) -> Iterator[Batch]:
        """Yields the results of N samples in batches of one size; the last is padded and sliced.

        Args:
            table: the sampler's table, or whatever it takes in that place.
            index: int [N], places of the samples in the whole set, which decide their keys.
            inputs: name -> [N, ...], what the network is told.
            seed: of the whole set.
            guidance: with a scalar scale; None for none.
            x: [N, ...] what the table starts from, or a `State`; default the noise of `seed`.
            known: pytree of [N, ...] arrays for the sampler's task.
            keys: [N]; default those of `seed` and `index`.
            batch_size: samples at a time, rounded up to a multiple of the devices.

        Raises:
            ValueError: no samples, a batch size below 1, a tolerance that was not met.
            NotFiniteSamples: a ValueError; a sample is infinite or NaN.
        """
        count = len(index)
        count, batch_size = check_count(count, batch_size)
        size = min(batch_size, count)
        size += -size % min(size, jax.local_device_count())
        for first in range(0, count, size):
            last = min(first + size, count)
            rows = np.minimum(np.arange(first, first + size), count - 1)
            part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (inputs or {}, x, known, keys))
            own = np.asarray(index)[rows]
            result = self._run(table, own, last - first, seed, guidance, *part)
            yield Batch(slice(first, last), result)

    def _run(self, table, index, count, seed, guidance, inputs, x, known, keys) -> Any:
        """What the sampler returns of the first `count` samples; what follows pads the batch."""
        keys = sampling.sample_keys(seed, index) if keys is None else keys
        x = sampling.initial_noise(keys, self._shape, self._frame_noise) if x is None else x
        mesh, params = self._on(jax.local_devices()[: len(index)])
        if self._mode != "pmap":
            x, keys, inputs, known = parallel.shard((x, keys, inputs, known), mesh)
        table = table if isinstance(table, SolverTable) else _floats(table)
        arguments = (params, table, x, keys, inputs, _floats(guidance), known)
        self.program = self._compiled(arguments)
        start = time.perf_counter()
        result = _first(jax.device_get(self.program(*arguments)), count)
        self.seconds += time.perf_counter() - start
        if isinstance(result, AdaptiveResult):
            result.validate()
        if not np.all(finite := _finite(result)):
            raise NotFiniteSamples(
                f"{np.sum(~finite)} of {len(finite)} samples of a batch are not finite, the first "
                f"is sample {index[np.argmin(finite)]}; {self._cause(arguments)}"
            )
        return result

    def _cause(self, arguments: tuple) -> str:
        """Where samples that are not finite begin to be so, and what to try."""
        params, table, x, *rest = arguments
        if not _all_finite(params):
            return "the weights of the network are not finite: use another checkpoint"
        if not _all_finite(x):
            return "what the sampler starts from is not finite"
        way_out = "try clip=static, a lower guidance_scale or more steps"
        if not isinstance(table, SolverTable):
            return way_out
        good, bad = 0, table.nfe  # finite after so many rows, and not finite
        while bad - good > 1:
            rows = (good + bad) // 2
            part = table._replace(active=np.arange(len(table.slot)) < rows)
            result = jax.device_get(self.program(params, part, x, *rest))
            good, bad = (rows, bad) if np.all(_finite(result)) else (good, rows)
        level = table.level
        with np.errstate(divide="ignore"):
            ratio = np.max(level.sigma[bad - 1] / level.alpha[bad - 1])
        return (
            f"it begins at evaluation {bad} of {table.nfe}, at sigma / alpha {ratio:.3g}; {way_out}"
        )

    def _on(self, devices: list) -> tuple:
        key = (self._mode, len(devices))
        if key not in self._placed:
            mesh, params = parallel.make_mesh(devices), self.params
            if self._prepare is not None and devices[0].platform == "cpu":
                params = self._prepare(params)
            layout = parallel.layout(params, mesh, self._mode)
            self._placed[key] = mesh, jax.device_put(params, layout)
        return self._placed[key]

    def _compiled(self, arguments: tuple) -> Callable:
        leaves, tree = jax.tree.flatten(arguments)
        kinds = tuple(jax.typeof(leaf) for leaf in leaves)
        signature = (tree, kinds, self._mode, tuple(jax.local_devices()[: len(arguments[3])]))
        if signature not in self._programs:
            _note_compilation()
            start = time.perf_counter()
            self._programs[signature] = self._compile(arguments)
            self.compile_seconds += time.perf_counter() - start
        return self._programs[signature]

    def _compile(self, arguments: tuple) -> Callable:
        if self._mode == "pmap":
            devices = jax.local_devices()[: len(arguments[3])]
            return parallel.pmap_program(self._sampler, devices, arguments)
        return self._sampler.lower(*arguments).compile()


def _floats(options: Any) -> Any:
    """Numbers as float32, so that 2, 2.0 and those of numpy are one type, and run one program."""
    return jax.tree.map(lambda leaf: leaf if np.ndim(leaf) else np.float32(leaf), options)


@functools.cache
def _note_compilation() -> None:
    """Says, once, that the first program of this process is compiled."""
    logging.getLogger("ddim_jax").info("compiling the sampler (it is kept for the next time) ...")


def check_count(count: int, batch_size: int) -> tuple[int, int]:
    """Both as integers; ValueError for no samples, batches of none, or what is not whole."""
    count = check_range("num_samples", count, f"[1, {2**31}]", whole=True)
    return count, check_range("batch_size", batch_size, "[1, inf)", whole=True)


def _finite(result: Any) -> np.ndarray:
    """Which samples of a sampler's result are finite, [B]; of other results, none are looked at."""
    if not isinstance(result, (sampling.RunResult, AdaptiveResult)):
        return np.ones(1, bool)
    leaves = [np.asarray(result.x)]
    if isinstance(result, sampling.RunResult):
        leaves += [*result.state, *(np.moveaxis(x, 1, 0) for x in result.collected.values())]
    return np.all([np.isfinite(x.reshape(len(x), -1)).all(1) for x in leaves], axis=0)


def _all_finite(tree: Any) -> bool:
    return all(np.all(np.isfinite(np.asarray(leaf))) for leaf in jax.tree.leaves(tree))


def _first(result: Any, count: int) -> Any:
    """The first `count` samples of a batch; what was collected has its rows in front."""
    if isinstance(result, sampling.RunResult):
        collected = {name: values[:, :count] for name, values in result.collected.items()}
        x, state = jax.tree.map(lambda leaf: leaf[:count], (result.x, result.state))
        return sampling.RunResult(x, state, collected)
    return jax.tree.map(lambda leaf: leaf[:count], result)
