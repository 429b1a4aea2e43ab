"""The one compiled evaluation that all requests of a model share, for a few numbers of slots.

    evaluation = Evaluation(model, sizes=(1, 4, 16)).warm_up()
    x0 = evaluation.step(slots)             # every slot is a row further

A slot is one picture on its way. Its seed and place in its request's set decide all its noise, as
in `Model.draw`; which slots share its evaluations changes rounding alone. Noise is made inside the
program, so that there is one program for each size and no other.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import parallel
from ddim_jax.export import row
from ddim_jax.keys import initial_noise
from ddim_jax.model import Model

Array = Any
SIZES = (1, 4, 16)
"""Numbers of slots that programs are compiled for."""
ROUNDS, PATIENCE = 5, 2.0
"""How often each is measured at the start, and the seconds after which two rounds are enough."""


@dataclasses.dataclass
class Slot:
    """One picture on its way.

    Attributes:
        rows: float32 [E, 29], its table, of `row.pack`.
        start: float32 [2], the table's.
        seed: uint32 [2], the two halves of its set's seed.
        place: in that set.
        inputs: name -> what the network is told of it, without a batch axis.
        guidance: its scale.
        at: rows that are done.
        carry: what goes from row to row, without a batch axis.
    """

    rows: np.ndarray
    start: np.ndarray
    seed: np.ndarray
    place: int
    inputs: dict[str, Any]
    guidance: float
    at: int = 0
    carry: row.Carry | None = None

    @property
    def done(self) -> bool:
        """Whether its table is done: its point is the sample."""
        return self.at == len(self.rows)


class _Slots(NamedTuple):
    """What the program is given of B slots, [B, ...]."""

    rows: Array
    start: Array
    seed: Array
    place: Array
    at: Array
    carry: row.Carry
    inputs: dict[str, Any]
    guidance: Array


class Evaluation:
    """The evaluation of one model, spread over the devices of this process.

    Attributes:
        model: whose network it is.
        sizes: numbers of slots that it is compiled for.
        seconds: what an evaluation of each size took at least.
        runs: evaluations so far.
    """

    def __init__(self, model: Model, sizes: Sequence[int] = SIZES):
        self.model, self.sizes = model, tuple(sorted(sizes))
        self.seconds: dict[int, float] = {}
        self.runs = 0
        shape = tuple(model.sample_shape)
        point = np.zeros(shape, np.float32)
        self._fresh = row.Carry(point, point, np.zeros((row.SLOTS, *shape), np.float32))
        self._programs: dict[int, tuple] = {}
        self._params: dict[int, Any] = {}

    def warm_up(self, inputs: dict[str, Any]) -> "Evaluation":
        """Compiles every size, and measures it.

        Args:
            inputs: of a slot, for shapes.
        """
        rows = np.full((1, row.WIDTH), 0.5, np.float32)
        slot = Slot(rows, np.float32([1, 0]), np.zeros(2, np.uint32), 0, inputs, 1.0)
        slots = [dataclasses.replace(slot) for _ in range(self.sizes[-1])]
        for size in self.sizes:
            self._compile(size, self._stacked(slots[:size]))
        began = time.perf_counter()
        for rounds in range(ROUNDS):
            for size in self.sizes:
                self._run(size, slots[:size])
            if rounds and time.perf_counter() - began > PATIENCE:
                break
        return self

    def step(self, slots: Sequence[Slot], estimates: Sequence[int] = ()) -> np.ndarray:
        """Carries every slot one row further.

        Args:
            slots: any number.
            estimates: numbers of the slots whose clean estimates are asked for.

        Returns:
            Of these [N, *sample_shape].
        """
        found, first = [], 0
        for size in cover(len(slots), believed(self.seconds)):
            chunk = slots[first : first + size]
            x0 = self._run(size, chunk)
            found += [np.asarray(x0)[i - first] for i in estimates if 0 <= i - first < len(chunk)]
            first += len(chunk)
        return np.array(found)

    def _run(self, size: int, slots: Sequence[Slot]) -> Array:
        """The same for at most `size` slots, in one evaluation; all estimates, on devices."""
        began = time.perf_counter()
        program, mesh = self._programs[size]
        padded = [*slots, *[slots[-1]] * (size - len(slots))]
        given = parallel.shard(self._stacked(padded), mesh)
        carry, x0 = program(self._params[mesh.size], given)
        carry = jax.device_get(carry)
        for i, slot in enumerate(slots):
            slot.carry, slot.at = row.Carry(*(leaf[i] for leaf in carry)), slot.at + 1
        self.runs += 1
        taken = time.perf_counter() - began
        self.seconds[size] = min(taken, self.seconds.get(size, taken))
        return x0

    def _compile(self, size: int, slots: _Slots) -> None:
        devices = jax.local_devices()
        count = max(n for n in range(1, len(devices) + 1) if size % n == 0)
        mesh = parallel.make_mesh(devices[:count])
        if count not in self._params:
            on_cpu = devices[0].platform == "cpu"
            params = self.model.prepared(self.model.params) if on_cpu else self.model.params
            self._params[count] = parallel.replicate(params, mesh)
        # each device goes its own way: none waits for another, no scale of its neighbours counts
        advance = jax.jit(parallel.by_rows(_advance(self.model), mesh))
        lowered = advance.lower(self._params[count], parallel.shard(slots, mesh))
        self._programs[size] = lowered.compile(), mesh

    def _stacked(self, slots: Sequence[Slot]) -> _Slots:
        carries = [slot.carry or self._fresh for slot in slots]
        return _Slots(
            rows=np.stack([slot.rows[slot.at % len(slot.rows)] for slot in slots]),
            start=np.stack([slot.start for slot in slots]),
            seed=np.stack([slot.seed for slot in slots]),
            place=np.array([slot.place for slot in slots], np.int32),
            at=np.array([slot.at for slot in slots], np.int32),
            carry=row.Carry(*(np.stack(leaves) for leaves in zip(*carries, strict=True))),
            inputs=jax.tree.map(lambda *leaves: np.stack(leaves), *[s.inputs for s in slots]),
            guidance=np.array([slot.guidance for slot in slots], np.float32),
        )


def _advance(model: Model):
    """`(params, slots) -> (Carry, x0)`, pure: a row of every slot, from its noise on."""
    evaluate, shape = row.make_evaluate(model), tuple(model.sample_shape)

    def advance(params, slots: _Slots):
        keys = jax.vmap(_key)(slots.seed, slots.place)

        def begun():
            x = initial_noise(keys, shape)
            new = row.begin(x, slots.start, row.row_noise(keys, jnp.zeros_like(slots.at), shape))
            return jax.tree.map(chosen, new, slots.carry)

        def chosen(new, old):
            return jnp.where(jnp.reshape(slots.at == 0, (-1,) + (1,) * (new.ndim - 1)), new, old)

        carry = jax.lax.cond(jnp.any(slots.at == 0), begun, lambda: slots.carry)
        noise = jax.lax.cond(
            jnp.any(slots.rows[:, -row.COLUMNS["noise"] :] != 0),
            lambda: row.row_noise(keys, slots.at + 1, shape),
            lambda: jnp.zeros_like(carry.point),
        )
        return evaluate(params, slots.rows, carry, noise, slots.inputs, slots.guidance)

    return advance


def _key(seed: Array, place: Array) -> Array:
    """The key of a sample, `keys.sample_keys`, inside a program."""
    return jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), place)


def believed(seconds: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """The seconds of each size, (size, seconds) each, without what other work has added.

    That falls on long evaluations more than on short ones. A larger one takes no less than a
    smaller one, and no more in proportion to its slots.
    """
    sizes, found = sorted(seconds), dict(seconds)
    for small, large in itertools.pairwise(sizes):
        found[large] = min(found[large], found[small] * large / small)
    for large, small in itertools.pairwise(sizes[::-1]):
        found[small] = min(found[small], found[large])
    return tuple((size, found[size]) for size in sizes)


@functools.lru_cache(maxsize=1024)
def cover(count: int, seconds: tuple[tuple[int, float], ...]) -> tuple[int, ...]:
    """The sizes that take the least time for so many slots, largest first; few rather than many.

    Args:
        count: of slots; the last evaluation may have room for more.
        seconds: what an evaluation of each size takes, of `believed`.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, count + 1):
        rests = ((size, taken, best[max(0, n - size)]) for size, taken in seconds)
        ways = ((taken + rest[0], (size, *rest[1])) for size, taken, rest in rests)
        best.append(min(ways, key=lambda way: (round(way[0], 6), len(way[1]))))
    return tuple(sorted(best[count][1], reverse=True))


def halves(seed: int) -> np.ndarray:
    """The two 32-bit halves of a seed, uint32 [2], high first, as keys hold them."""
    return np.array(divmod(seed, 2**32), np.uint32)


def of_place(inputs: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Inputs [N, ...] at one place of N, without the batch axis."""
    return {
        name: of_place(rows, place) if isinstance(rows, Mapping) else np.asarray(rows[place])
        for name, rows in inputs.items()
    }
