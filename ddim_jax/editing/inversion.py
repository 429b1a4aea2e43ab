"""Inversion: from an image to the noise that draws it, by a table up that undoes a table down.

With phi = atan2(sigma, alpha) and `y = x / |alpha, sigma|`, a step of DDIM from noisy t to clean s
is a rotation by d = phi_t - phi_s,

    y_s = cos(d) y_t - sin(d) u(x_t, t),       u = cos(phi_t) eps - sin(phi_t) x0,

which is DDIM's equation 12 at eta = 0, with coefficients that are bounded at both ends. Run upwards
it is an equation for y_t, and the methods differ in how they solve it:

    reverse       runs any solver over reversed times; exact as the steps go to zero
    fixed_point   iterates y_t <- y_s / cos(d) + tan(d) u(x_t, t); inverts DDIM itself
    edict         couples two chains, whose steps algebra undoes; two evaluations a step
    bdia          gets x_s from x_t and the point before it (leapfrog), which algebra undoes
    null_text     a fixed point without guidance, and null texts under which guided DDIM follows it

A table up starts at an image and ends at a standard normal. Clean estimates must not be clipped in
either direction, and guidance must be the same in both; none inverts best.

Sources: Song et al. 2021 (arXiv:2010.02502), section 5.4; Pan et al. 2023 (arXiv:2309.04907, fixed
point); Wallace et al. 2022 (arXiv:2211.12446, EDICT); Zhang et al. 2023 (arXiv:2307.10829, BDIA);
Mokady et al. 2022 (arXiv:2211.09794, null-text inversion).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddim_jax.names import check_options, lookup
from ddim_jax.recipe import Recipe, parse_stride
from ddim_jax.schedules import Schedule
from ddim_jax.solvers import SOLVERS, Solver, SolverTable, concatenate, ddim
from ddim_jax.solvers.rows import BASE, POINT, Combination, Rows


class RoundTrip(NamedTuple):
    """A table up and the table down that undoes it.

    Attributes:
        up: from an image to a standard normal. Running it gives a `State`, which `down` starts
            from; `evaluate` of that state is the latent.
        down: from that state to the image.
        repeats: rows of `up` that solve one step, each but the last ending at an iterate.
        iterations: of fitting the null text of each step down, see `null_text.py`; 0: none, it is
            the model's own.
    """

    up: SolverTable
    down: SolverTable
    repeats: int = 1
    iterations: int = 0


Inversion = Callable[[Schedule, np.ndarray], RoundTrip]
"""`(schedule, times [steps + 1] towards the clean end) -> RoundTrip`."""


def reverse(solver: Solver | None = None) -> Inversion:
    """Runs a solver over the same times upwards; with DDIM (the default) its naive inversion.

    The clean end has no trained level: the first row goes from there to the lowest one,
    `schedule.t_min`, with the noise that the network predicts at that level.

    Raises:
        ValueError: (of the result) a stochastic solver, or a stride that the solver cannot end at.
    """
    solver = solver or ddim()

    def tables(schedule: Schedule, times: np.ndarray) -> RoundTrip:
        down, upwards, rows = solver(schedule, times), times[::-1], None
        if not down.deterministic:
            raise ValueError("inversion needs a deterministic solver; use ddim with eta=0")
        if times[-1] == schedule.t_span[1]:
            lowest = _lowest(schedule, times)
            upwards = np.append(lowest, upwards[upwards > lowest])
            level = schedule.level(lowest)
            rows = Rows(schedule, np.array([times[-1], lowest]), start=(1.0, 0.0))
            rows.move(level.alpha * POINT + level.sigma * rows.predict(lowest, eps=1.0))
        up = solver(schedule, upwards)._replace(start=np.array([1.0, 0.0]))
        up = up if rows is None else concatenate(rows.table(), up)
        return RoundTrip(_to_unit(up, schedule, times).validate(), down)

    return tables


def fixed_point(refinements: int = 5) -> Inversion:
    """Undoes DDIM's steps by iteration; it contracts where tan(d) times the slope of u is below 1.

    The first guess of each step is extrapolated with u of the step before; each refinement is one
    more evaluation a step.

    Raises:
        ValueError: a negative number; (of the result) a step of almost a right angle or more.

    Source: Pan et al. 2023, section 4.1.
    """
    if refinements < 0:
        raise ValueError(f"refinements must be at least 0, got {refinements}; 5 is usual")

    def tables(schedule: Schedule, times: np.ndarray) -> RoundTrip:
        turn = _Rotation(schedule, times)
        rows = Rows(schedule, times[::-1], start=(1.0, 0.0))
        for k in reversed(range(len(times) - 1)):
            for _ in range(refinements):
                rows.move(turn.undo(k, BASE, turn.velocity(rows, k)), BASE)
            u = turn.velocity(rows, k)
            solved = turn.undo(k, BASE, u)
            rows.move(turn.up(k - 1, solved, u) if k else solved, solved)
        up = _to_unit(rows.table(), schedule, times).validate()
        return RoundTrip(up, ddim()(schedule, times), refinements + 1)

    return tables


def edict(mixing: float = 0.93) -> Inversion:
    """Couples two chains x and y; each moves with the slope at the other, then they are mixed.

        x <- step(x, u(y)),  y <- step(y, u(x)),  x <- p x + (1 - p) y,  y <- p y + (1 - p) x

    The chains change places after every step, as in the authors' code. The last mixing is left out,
    so that the table up starts at a pair of equal images. Upwards the difference of the two grows
    by p^-2 a step, so `mixing` is p for 50 steps, and p^(50 / S) is used for S.

    Raises:
        ValueError: p out of (0, 1].

    Source: Wallace et al. 2022, equations 12 to 15, with rotations for steps.
    """
    if not 0 < mixing <= 1:
        raise ValueError(f"mixing must be in (0, 1], got {mixing}; 0.93 is the paper's")

    def tables(schedule: Schedule, times: np.ndarray) -> RoundTrip:
        turn, last = _Rotation(schedule, times), len(times) - 2
        p = mixing ** (50 / (last + 1))
        down = Rows(schedule, times)
        for k in range(last + 1):  # evaluate at y, x in base; then the other way round
            u = turn.velocity(down, k)
            down.move(turn.down(k, BASE, u), POINT)
            u = turn.velocity(down, k)
            x, y = POINT, turn.down(k, BASE, u)
            if k < last:
                x = p * x + (1 - p) * y
                y = p * y + (1 - p) * x
            down.move(x, y)  # they change places
        up = Rows(schedule, times[::-1], start=(1.0, 0.0))
        for k in range(last, -1, -1):
            u = turn.velocity(up, k)
            up.move(turn.undo(k, BASE, u), POINT)
            u = turn.velocity(up, k)
            x, y = POINT, turn.undo(k, BASE, u)
            if k > 0:
                y = (y - (1 - p) * x) / p
                x = (x - (1 - p) * y) / p
            up.move(x, y)
        return RoundTrip(_to_unit(up.table(), schedule, times).validate(), down.table().validate())

    return tables


def bdia(gamma: float = 1.0) -> Inversion:
    """Leapfrog: `x_s = g x_r + down(x_t) - g up(x_t)`, r the point before t, both by u(x_t, t).

    The first step up is a step of DDIM at the lowest level. The latent is the pair of the two
    noisiest points; the first row down only exchanges them.

    `gamma` is g: 1 is symmetric, less damps, and upwards errors grow by 1 / g a step.

    Raises:
        ValueError: g out of (0, 1].

    Source: Zhang et al. 2023, equations 10 and 11.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma}; 1 is the paper's")

    def tables(schedule: Schedule, times: np.ndarray) -> RoundTrip:
        turn, steps = _Rotation(schedule, times), len(times) - 1
        up = Rows(schedule, times[::-1], start=(1.0, 0.0))
        u = turn.velocity(up, steps, at=_lowest(schedule, times))
        up.move(turn.up(steps - 1, POINT, u), POINT)
        for k in range(steps - 1, 0, -1):
            u = turn.velocity(up, k)
            step = gamma * turn.up(k - 1, POINT, u) - turn.down(k, POINT, u)
            up.move((BASE + step) / gamma, POINT)
        down = Rows(schedule, times)
        down.predict(times[0], eps=1.0)
        down.move(BASE, POINT)
        for k in range(1, steps):
            u = turn.velocity(down, k)
            step = turn.down(k, POINT, u) - gamma * turn.up(k - 1, POINT, u)
            down.move(gamma * BASE + step, POINT)
        return RoundTrip(_to_unit(up.table(), schedule, times).validate(), down.table().validate())

    return tables


def null_text(iterations: int = 10, refinements: int = 5) -> Inversion:
    """Undoes guided DDIM by null texts that are fitted to the unguided one, see `null_text.py`.

    The tables are those of `fixed_point`. An iteration costs two forward and backward passes a
    step.

    Raises:
        ValueError: iterations below 1, negative refinements.

    Source: Mokady et al. 2022, algorithm 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}; 10 is usual")

    def tables(schedule: Schedule, times: np.ndarray) -> RoundTrip:
        return fixed_point(refinements)(schedule, times)._replace(iterations=iterations)

    return tables


class _Rotation:
    """DDIM's step over the angle, between the points of a stride."""

    def __init__(self, schedule: Schedule, times: np.ndarray):
        self._times, self._schedule = times, schedule
        angle, self._scale = _polar(schedule.level(times))
        self._turn = angle[:-1] - angle[1:]
        if np.any(self._turn > 1.5):
            raise ValueError(
                f"{len(times) - 1} steps are too few to invert: one of them spans almost the whole "
                "angle between noise and image; take more"
            )

    def velocity(self, rows: Rows, k: int, at: float | None = None) -> Combination:
        """Begins a row: u at time k of the stride, or at another time."""
        t = self._times[k] if at is None else at
        angle, _ = _polar(self._schedule.level(t))
        return rows.predict(t, x0=-np.sin(angle), eps=np.cos(angle))

    def down(self, k: int, x: Combination, u: Combination) -> Combination:
        """From point k to k + 1, with the slope at k."""
        ratio, d = self._scale[k + 1] / self._scale[k], self._turn[k]
        return ratio * np.cos(d) * x - self._scale[k + 1] * np.sin(d) * u

    def up(self, k: int, x: Combination, u: Combination) -> Combination:
        """From point k + 1 to k, with the slope at k + 1."""
        ratio, d = self._scale[k] / self._scale[k + 1], self._turn[k]
        return ratio * np.cos(d) * x + self._scale[k] * np.sin(d) * u

    def undo(self, k: int, x: Combination, u: Combination) -> Combination:
        """The point k from which `down` with this slope came to x."""
        ratio, d = self._scale[k] / self._scale[k + 1], self._turn[k]
        return ratio / np.cos(d) * x + self._scale[k] * np.tan(d) * u


def _polar(level) -> tuple[np.ndarray, np.ndarray]:
    return np.arctan2(level.sigma, level.alpha), np.hypot(level.alpha, level.sigma)


def _lowest(schedule: Schedule, times: np.ndarray) -> float:
    """The cleanest level a network is asked at, or the stride's own where that is cleaner."""
    return float(min(schedule.t_min, times[-2]))


def _to_unit(table: SolverTable, schedule: Schedule, times: np.ndarray) -> SolverTable:
    """The table with its last row divided by the std that `down` will start with."""
    state, history = table.state.copy(), table.history.copy()
    std = schedule.prior_std(times[0])
    state[-1] /= std
    history[-1] /= std
    return table._replace(state=state, history=history)


INVERSIONS = {make.__name__: make for make in (reverse, fixed_point, edict, bdia, null_text)}
"""Inversions by name."""


def round_trip(
    schedule: Schedule,
    method: str = "fixed_point",
    steps: int = 50,
    stride: str | None = None,
    **options: Any,
) -> RoundTrip:
    """Returns the tables up and down of an inversion by its name.

    Args:
        schedule: the forward process.
        method: in `INVERSIONS`, or a deterministic solver in `SOLVERS` that runs both ways.
        steps: intervals of the stride.
        stride: its name, with options if any as in "quadratic:fraction=1"; default uniform, or the
            solver's own.
        **options: of the inversion, or of the solver.

    Raises:
        ValueError: an unknown name or option, a stochastic solver, too few steps, a stride file
            with coefficients.
    """
    lookup(SOLVERS | INVERSIONS, method, "inversion")
    chosen = {} if stride is None else parse_stride(stride)
    if method in SOLVERS:
        recipe = Recipe(method, steps=steps, solver_options=options, **chosen)
        inversion = reverse(recipe.make_solver())
    else:
        recipe = Recipe("ddim", steps=steps, **chosen)
        options = check_options(INVERSIONS[method], options, f"inversion {method!r}")
        inversion = INVERSIONS[method](**options)
    return inversion(schedule, recipe.bare_times(schedule, "inversion"))
