"""Writing a solver as its paper does: `Rows` records moves and makes the table of them.

A solver is written with linear combinations of four kinds of symbols: `POINT` (where the network is
evaluated), `BASE` (the second point), `NOISE` (one fresh standard normal a row) and predictions:

    rows = Rows(schedule, times)
    for k in range(steps):
        eps = rows.predict(times[k], eps=1.0)               # evaluate at POINT, store eps
        rows.move(alpha[k + 1] / alpha[k] * POINT + c[k] * eps)
    return rows.table()

In a row POINT and BASE are the points before its move; a prediction may be used in any later row,
and holds a history slot until its last use.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ddim_jax.schedules import Schedule
from ddim_jax.solvers.table import SolverTable


class Combination:
    """A linear combination of symbols; supports +, -, and * and / by numbers."""

    __array_ufunc__ = None  # numpy scalars leave multiplication to us

    def __init__(self, weights: Mapping):
        self.weights = dict(weights)

    def __add__(self, other: "Combination") -> "Combination":
        symbols = self.weights.keys() | other.weights.keys()
        return Combination(
            {s: self.weights.get(s, 0.0) + other.weights.get(s, 0.0) for s in symbols}
        )

    def __mul__(self, factor: float) -> "Combination":
        return Combination({s: factor * weight for s, weight in self.weights.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "Combination":
        return -1.0 * self

    def __sub__(self, other: "Combination") -> "Combination":
        return self + -other

    def __truediv__(self, divisor: float) -> "Combination":
        return (1 / divisor) * self


POINT, BASE, NOISE = (Combination({name: 1.0}) for name in ("point", "base", "noise"))


def combine(weights: Iterable[float], terms: Sequence[Combination]) -> Combination:
    """The sum of `weight * term`."""
    pairs = zip(weights, terms, strict=True)
    return sum((weight * term for weight, term in pairs), Combination({}))


class Rows:
    """The rows of a table in the making: `predict`, `move`, ..., `table`.

    Args:
        schedule: the forward process.
        times: [steps + 1] the stride; its ends give the table's start and end.
        start: (scale, noise) of the table; default (`schedule.prior_std`, 0).
    """

    def __init__(
        self, schedule: Schedule, times: np.ndarray, start: tuple[float, float] | None = None
    ):
        self.schedule, self._times = schedule, times
        self._start = np.array(start or (schedule.prior_std(times[0]), 0.0))
        self._at: list[float] = []
        self._told: list[float | None] = []
        self._store: list[tuple[float, float]] = []
        self._moves: list[tuple[Combination, Combination]] = []

    def predict(
        self, t: float, *, x0: float = 0.0, eps: float = 0.0, told: float | None = None
    ) -> Combination:
        """Begins a row: evaluates the network at time t, stores `x0 * x0 + eps * eps`.

        `told` is a model time that the network is told in place of the level's own.
        """
        self._at.append(t)
        self._told.append(told)
        self._store.append((x0, eps))
        return Combination({len(self._at) - 1: 1.0})

    def move(self, point: Combination, base: Combination | None = None) -> None:
        """Ends a row: where the two points go; `base` goes with `point` unless it is given."""
        self._moves.append((point, point if base is None else base))

    def into_clean(self, t: float) -> None:
        """A row to the clean end, first order: the answer is x0."""
        self.move(self.predict(t, x0=1.0))

    def table(self) -> SolverTable:
        """The table, with as few history slots as the predictions' uses allow."""
        slot, slots = self._slots()
        count = len(self._moves)
        state, noise = np.zeros((count, 2, 2)), np.zeros((count, 2))
        history = np.zeros((count, 2, slots))
        for k, points in enumerate(self._moves):
            for target, point in enumerate(points):
                for symbol, weight in point.weights.items():
                    if symbol == "noise":
                        noise[k, target] = weight
                    elif symbol in ("point", "base"):
                        state[k, target, int(symbol == "base")] = weight
                    else:
                        history[k, target, slot[symbol]] += weight
        level = self.schedule.level(np.array(self._at, np.float64))
        for k, told in enumerate(self._told):
            if told is not None:
                level.model_time[k] = told
        return SolverTable(
            level=level,
            store=np.array(self._store, np.float64),
            slot=np.array(slot, np.int32),
            state=state,
            history=history,
            noise=noise,
            active=np.ones(count, bool),
            start=self._start,
            end=self.schedule.level(self._times[-1]),
        )

    def _slots(self) -> tuple[list[int], int]:
        """A slot for every prediction: the first that no later use still needs."""
        last_use = list(range(len(self._moves)))
        for k, points in enumerate(self._moves):
            for point in points:
                for symbol, weight in point.weights.items():
                    if isinstance(symbol, int) and weight != 0:
                        last_use[symbol] = k
        slot: list[int] = []
        free_after: list[int] = []  # free_after[i]: the row in which slot i is used last
        for k, last in enumerate(last_use):
            free = [i for i, row in enumerate(free_after) if row < k]
            if not free:
                free_after.append(last)
                slot.append(len(free_after) - 1)
            else:
                free_after[free[0]] = last
                slot.append(free[0])
        return slot, len(free_after)
