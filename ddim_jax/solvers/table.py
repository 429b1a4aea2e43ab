"""The solver table: any linear sampler as numbers, one row per network evaluation.

Every sampler of this field is linear in what it has seen: the sample, earlier predictions, fresh
noise. A solver is therefore a host-side function `(schedule, times) -> SolverTable` in float64
numpy, and a table is what numerical analysts call a general linear method. The loop keeps two
points, `evaluate` (where the network is called) and `base` (where a multi-stage step began, the
coupled or the previous point; equal to `evaluate` for single-stage solvers), and H history slots.
Row k does

    (x0, eps)      = denoise(evaluate, level_k)
    history[slot] <- store[0] * x0 + store[1] * eps
    (evaluate, base) <- state @ (evaluate, base) + history_weights @ history + noise * z_k

`start = (scale, noise)` is applied once before row 0, `x <- scale * x + noise * z`; for sampling
x is a standard normal, for editing an image. `end` is the level that the last row arrives at.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddim_jax.schedules import NoiseLevel

Array = Any
NumpyDenoiser = Callable[[np.ndarray, NoiseLevel], tuple[np.ndarray, np.ndarray]]


class State(NamedTuple):
    """The two points a sampler carries; both shaped like the sample."""

    evaluate: Array
    base: Array


class SolverTable(NamedTuple):
    """A sampler as arrays; E rows, H history slots. A pytree: it is an argument of jitted code.

    What is [E, ...] may have further axes, of numbers for each frame of clips, see `staggered`.

    Attributes:
        level: where each row evaluates the network; four arrays [E].
        store: [E, 2] weights of (x0, eps) in the stored prediction.
        slot: [E] int32, the history slot that the stored prediction overwrites.
        state: [E, 2, 2] new (evaluate, base) from old (evaluate, base).
        history: [E, 2, H] ... plus the stored predictions, by slot.
        noise: [E, 2] ... plus this multiple of one fresh standard normal.
        active: [E] bool; False rows are padding, come last and do nothing.
        start: [2] (scale, noise), applied once before row 0.
        end: the last level; four scalars.
    """

    level: NoiseLevel
    store: Array
    slot: Array
    state: Array
    history: Array
    noise: Array
    active: Array
    start: Array
    end: NoiseLevel

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample (a guided evaluation costs two forward passes)."""
        return int(np.sum(self.active))

    @property
    def deterministic(self) -> bool:
        """True if no row, nor the start, draws noise."""
        return not (np.any(self.noise) or np.any(self.start[1]))

    def validate(self) -> "SolverTable":
        """Checks what every table must satisfy and returns it.

        Raises:
            ValueError: a non-finite number, a slot out of range, a weight on a slot that was never
                written, padding before a row, or a level at which no network can be evaluated.
        """
        rows, slots = len(self.slot), self.history.shape[2]
        shapes = {
            "store": (rows, 2), "state": (rows, 2, 2), "history": (rows, 2, slots),
            "noise": (rows, 2), "active": (rows,), "start": (2,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if np.shape(getattr(self, name))[: len(shape)] != shape:
                raise ValueError(
                    f"table.{name} must have shape {shape}, got {np.shape(getattr(self, name))}"
                )
        for name in ("store", "state", "history", "noise", "start"):
            bad = ~np.isfinite(getattr(self, name))
            if np.any(bad):
                row = np.argwhere(bad)[0][0]
                raise ValueError(
                    f"table.{name} is not finite in row {row}; the stride touches an end that this "
                    "solver cannot start from: give the stride lam_min, or use another space"
                )
        for name in NoiseLevel._fields:
            if not np.all(np.isfinite(getattr(self.level, name))):
                raise ValueError(f"table.level.{name} is not finite")
        if rows and (np.min(self.slot) < 0 or np.max(self.slot) >= slots):
            raise ValueError(f"slots must be 0..{slots - 1}, got {self.slot}")
        if np.any(np.diff(self.active.astype(int)) > 0):
            raise ValueError("padded rows must come last")
        self._check_history()
        return self

    def _check_history(self) -> None:
        written = np.zeros(self.history.shape[2], bool)
        for k in range(self.nfe):
            written[self.slot[k]] = True
            if np.any(self.history[k][:, ~written]):
                raise ValueError(f"row {k} uses a history slot that no row has written yet")

    def pad(self, nfe: int, history: int) -> "SolverTable":
        """The same sampler with room for `nfe` rows and `history` slots.

        Tables of one (nfe, history) share one compiled program.

        Raises:
            ValueError: the table is larger than that.
        """
        rows, slots = len(self.slot), self.history.shape[2]
        if nfe < rows or history < slots:
            raise ValueError(
                f"cannot pad a table of {rows} rows and {slots} slots to {nfe} rows and {history}; "
                "padding only grows"
            )
        more = nfe - rows

        def grow(x, slots=0, **how):
            widths = [(0, more), (0, 0), (0, slots)][: x.ndim]
            return np.pad(x, widths + [(0, 0)] * (x.ndim - len(widths)), **how)

        rest = np.eye(2).reshape(1, 2, 2, *[1] * (self.state.ndim - 3))
        rest = np.broadcast_to(rest, (more, *self.state.shape[1:]))
        return SolverTable(
            level=NoiseLevel(*(grow(x, mode="edge") for x in self.level)),
            store=grow(self.store),
            slot=grow(self.slot),
            state=np.concatenate([self.state, rest]),
            history=grow(self.history, history - slots),
            noise=grow(self.noise),
            active=grow(self.active),
            start=self.start,
            end=self.end,
        )

    def run_numpy(
        self,
        denoise: NumpyDenoiser,
        x: Array | State,
        noise: np.ndarray | None = None,
        start_noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """The reference that the jitted loop is tested against, in float64.

        Args:
            denoise: (x, level) -> (x0, eps).
            x: a standard normal (or an image) of any shape, or a `State`.
            noise: [nfe, *x.shape] standard normals; may be None for a deterministic table.
            start_noise: shaped like x; needed if `start` draws noise.
        """
        return self.run_numpy_state(denoise, x, noise, start_noise).evaluate

    def run_numpy_state(self, denoise, x, noise=None, start_noise=None) -> State:
        """`run_numpy`, returning both points."""
        state = np.stack(x if isinstance(x, State) else (x, x)).astype(np.float64)
        state = self.start[0] * state
        if self.start[1]:
            state = state + self.start[1] * start_noise
        seen = np.zeros((self.history.shape[-1],) + state.shape[1:])
        for k in range(self.nfe):
            x0, eps = denoise(state[0], NoiseLevel(*(field[k] for field in self.level)))
            seen[self.slot[k]] = self.store[k, 0] * x0 + self.store[k, 1] * eps
            state = np.tensordot(self.state[k], state, 1) + np.tensordot(self.history[k], seen, 1)
            if np.any(self.noise[k]):
                state = state + np.multiply.outer(self.noise[k], noise[k])
        return State(*state)


def concatenate(*tables: SolverTable) -> SolverTable:
    """One table that runs the given ones in turn, each as a fresh start from where the last ended.

    The starts of all but the first are dropped, and `base` is set to `evaluate` at each join.

    Raises:
        ValueError: no table, padded tables, or a table that does not begin where the last ended.
    """
    if not tables:
        raise ValueError("concatenate needs at least one table")
    slots = max(table.history.shape[-1] for table in tables)
    parts = []
    for i, table in enumerate(tables):
        if table.nfe != len(table.slot):
            raise ValueError(f"table {i} is padded; concatenate first, then pad")
        table = table.pad(len(table.slot), slots)
        if i + 1 < len(tables):
            here, there = table.end, tables[i + 1].level
            if not np.isclose(here.t, there.t[0], rtol=1e-12, atol=0):
                raise ValueError(
                    f"table {i} ends at t = {here.t}, table {i + 1} begins at {there.t[0]}; "
                    "cut both from one stride"
                )
            state, history, noise = table.state.copy(), table.history.copy(), table.noise.copy()
            state[-1, 1], history[-1, 1], noise[-1, 1] = state[-1, 0], history[-1, 0], noise[-1, 0]
            table = table._replace(state=state, history=history, noise=noise)
        parts.append(table)

    def join(name):
        return np.concatenate([getattr(part, name) for part in parts])

    fields = ("store", "slot", "state", "history", "noise", "active")
    return SolverTable(
        level=NoiseLevel(*(np.concatenate(x) for x in zip(*(p.level for p in parts), strict=True))),
        **{name: join(name) for name in fields},
        start=parts[0].start,
        end=parts[-1].end,
    )
