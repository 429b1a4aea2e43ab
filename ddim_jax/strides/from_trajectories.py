"""Strides learned from a network: steps are short where its predictions change.

With y = x / alpha and s = sigma / alpha the probability flow is dy/ds = eps(y, s). One pass of a
teacher over nodes 0..M, or one over noised images, is all that a method needs of the network; both
are in `trajectories`. The schedule of a stride is that of its trajectory.

GITS, a shortest path. One DDIM step from node i to s_j, with the teacher's prediction, misses the
teacher's node j by C; over K steps the least sum is found by dynamic programming:

    C[i, j] = distance(y_i + (s_j - s_i) eps_i, y_j)
    V_1[i] = C[i, M],    V_k[i] = min_{j > i} C[i, j] + discount V_{k-1}[j],    the best is V_K[0]

ELBO, a shortest path. With `mse_i = E |x0 - x0hat(x_i)|^2`, summed over dimensions, a step of the
posterior sampler costs the KL divergence `C[i, j] = (1 / s_j^2 - 1 / s_i^2) mse_i / 2`. For an
exact denoiser the sum is also KLUB, the objective of Align Your Steps, plus `int mse(s) / s^3 ds`:
x0hat is a martingale of the reverse process, so `E |x0hat(x_i) - x0hat(x_s)|^2 = mse_i - mse(s)`. A
likelihood is decided at the lowest noise, where these strides crowd: as samplers they end further
from the teacher than even steps in log-SNR (see the tests).

Curvature, in closed form. The local error of a solver of order p is `ds^(p+1) G`, `G = |d^p eps /
ds^p|`, and of it the flow carries about `w G` to the end, `w = 1 / sqrt(std^2 + s^2)` (for Gaussian
data of that std). The sum is least where `ds ~ (w G)^(-1/(p+1))`: knots are equal quantiles of the
integral of `(w G)^(1/(p+1))`. For solvers that extrapolate x0 over lam, lam and x0 replace s, eps.

Sources: Chen et al. 2024 (GITS, arXiv:2405.11326) and their code; Watson et al. 2021
(arXiv:2106.03802); Sabour et al. 2024 (Align Your Steps, arXiv:2404.14507).
"""

from collections.abc import Callable

import numpy as np

from ddim_jax.names import check_range
from ddim_jax.schedules import Schedule
from ddim_jax.strides.ends import check_steps, finish
from ddim_jax.strides.trajectories import Trajectory, check, noisy_ratio

METRICS = ("dev", "l2", "l1")
FLOOR = {"sigma": 1e-9, "lam": 1e-3}
"""The least wG as a part of the greatest, by space: where it vanishes there are knots too."""


# --- shortest paths -------------------------------------------------------------------------------


def path_costs(trajectory: Trajectory, metric: str = "l2") -> np.ndarray:
    """[M + 1, M + 1] cost of one DDIM step from node i to node j > i; +inf for the others.

    Args:
        trajectory: of the teacher.
        metric: "l2", root mean square over dimensions; "l1", mean absolute value; "dev", how much
            higher the step ends over the chord from y_0 to y_M than the teacher, may be negative.
            All are means over samples.

    Raises:
        ValueError: unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; it is one of {', '.join(METRICS)}")
    nodes, samples = trajectory.y.shape[:2]
    costs = np.where(_later(nodes), 0.0, np.inf)
    for b in range(samples):
        y, eps = (v[:, b].astype(np.float64) for v in (trajectory.y, trajectory.eps))
        if metric == "dev":  # what is perpendicular to the chord
            chord = (y[-1] - y[0]) / np.linalg.norm(y[-1] - y[0])
            y, eps = (v - np.outer(v @ chord, chord) for v in (y - y[0], eps))
        for i, slope in enumerate(eps):
            goal = y[i + 1 :]
            landed = y[i] + (trajectory.ratio[i + 1 :, None] - trajectory.ratio[i]) * slope
            if metric == "dev":
                cost = _rms(landed) - _rms(goal)
            else:
                cost = _rms(landed - goal) if metric == "l2" else np.mean(abs(landed - goal), -1)
            costs[i, i + 1 :] += cost / samples
    return costs


def elbo_costs(ratio: np.ndarray, mse: np.ndarray) -> np.ndarray:
    """[M, M] KL divergence of one posterior step from node i to node j > i; +inf for the others.

    Args:
        ratio: [M] sigma / alpha, descending, above 0.
        mse: [M] from `noising_errors`.
    """
    snr = ratio**-2.0
    return np.where(_later(len(snr)), (snr - snr[:, None]) * mse[:, None] / 2, np.inf)


def shortest_path(costs: np.ndarray, steps: int, discount: float = 1.0) -> np.ndarray:
    """[steps + 1] indices of the nodes on the cheapest path from the first to the last.

    Args:
        costs: [N, N] of the step from row i to column j > i.
        steps: 1..N - 1.
        discount: every step weighs this much more than the one before.

    Raises:
        ValueError: steps or discount out of range, costs that are not finite.
    """
    nodes, later = len(costs), _later(len(costs))
    hint = f"there are {nodes} nodes; use fewer steps, or a teacher with more nodes"
    steps = check_range("steps", steps, f"[1, {nodes - 1}]", hint, whole=True)
    if not 0 < discount < np.inf:
        raise ValueError(f"discount must be positive and finite, got {discount}; 1 means none")
    if not np.all(np.isfinite(costs[later])):
        raise ValueError("costs must be finite above the diagonal; are the network's predictions?")
    costs = np.where(later, costs, np.inf)
    ahead, choices = costs[:, -1], []  # ahead: the least cost from each node, in so many steps
    for _ in range(steps - 1):
        total = costs + discount * ahead
        choices.append(np.argmin(total, 1))
        ahead = np.min(total, 1)
    path = [0]
    for choice in reversed(choices):
        path.append(choice[path[-1]])
    return np.array([*path, nodes - 1])


def gits(
    schedule: Schedule,
    trajectory: Trajectory,
    steps: int,
    *,
    metric: str = "dev",
    discount: float = 1.15,
    terminal: str = "zero",
) -> np.ndarray:
    """Geometry-inspired time scheduling: the shortest path over the teacher's nodes.

    Args:
        steps: intervals, 1..M; with terminal "min" or "skip" 1..M - 1.
        metric: see `path_costs`; the defaults are those of the authors' code.
        discount: see `shortest_path`.
        terminal: "zero" ends at the clean image, "min" at the last noisy node; "skip" as "min", but
            clean in its place.

    Raises:
        ValueError: steps or discount out of range, unknown metric or terminal, a trajectory that is
            not finite or of another schedule.
    """
    steps = check_steps(schedule, steps, terminal)
    check(schedule, trajectory)
    costs = path_costs(trajectory, metric)
    if terminal == "zero":
        return trajectory.times[shortest_path(costs, steps, discount)]
    path = shortest_path(costs[:-1, :-1], steps, discount)
    return finish(schedule, trajectory.times[path], terminal)


def elbo(
    schedule: Schedule, times: np.ndarray, mse: np.ndarray, steps: int, *, terminal: str = "zero"
) -> np.ndarray:
    """The stride of the best evidence lower bound, and of the least KLUB; needs no teacher.

    Args:
        times: [M] noise to clean, without the clean end.
        mse: [M] at these times, from `noising_errors`.
        steps: intervals, 1..M; with terminal "min" or "skip" 1..M - 1.
        terminal: "zero" goes on from the last of the times to the clean image, "min" ends there;
            "skip" is clean in its place.

    Raises:
        ValueError: steps out of range, unknown terminal, a time at the clean end.
    """
    steps, most = check_steps(schedule, steps, terminal), len(times) - (terminal != "zero")
    hint = f"there are {len(times)} times; use fewer steps, or more times"
    check_range("steps", steps, f"[1, {most}]", hint)
    times, noisy_steps = np.asarray(times), steps - (terminal == "zero")
    costs = elbo_costs(noisy_ratio(schedule, times), np.asarray(mse))
    path = shortest_path(costs, noisy_steps) if noisy_steps else [0]
    return finish(schedule, times[path], terminal)


def _later(nodes: int) -> np.ndarray:
    return np.triu(np.ones((nodes, nodes), bool), 1)


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(values**2, -1))


# --- curvature ------------------------------------------------------------------------------------


def curvature(
    schedule: Schedule,
    trajectory: Trajectory,
    steps: int,
    *,
    order: int = 1,
    space: str = "sigma",
    propagate: bool = True,
    data_std: float | None = None,
    last: float | None = None,
    terminal: str = "zero",
) -> np.ndarray:
    """Knots at equal quantiles of the density of errors; any number of steps.

    Args:
        steps: intervals, at least 1.
        order: p, of the solver.
        space: "sigma" for solvers that extrapolate eps over sigma / alpha (DDIM, Heun, Adams),
            "lam" for those that extrapolate x0 over lam (DPM-Solver++ 2M, UniPC).
        propagate: weigh errors by w; False takes w = 1.
        data_std: std in w; default that of the trajectory's end points.
        last: sigma / alpha of the last noisy knot; default that of the last noisy node.
        terminal: "zero" ends at the clean image, "min" at the last noisy knot; "skip" as "min", but
            clean in its place.

    Raises:
        ValueError: steps or order out of range, unknown space or terminal, `last` outside the
            nodes, a trajectory that is not finite or of another schedule.
    """
    steps = check_steps(schedule, steps, terminal)
    check(schedule, trajectory)
    if space not in FLOOR:
        raise ValueError(f"unknown space {space!r}; it is 'sigma' or 'lam'")
    ratio = trajectory.ratio[:-1]
    hint = f"there are {len(ratio)} noisy nodes"
    order = check_range("order", order, f"[1, {len(ratio) - 1}]", hint, whole=True)
    if last is not None and not ratio[-1] * (1 - 1e-9) <= last < ratio[0]:
        raise ValueError(
            f"last must be in [{ratio[-1]:.4g}, {ratio[0]:.4g}), the trajectory's, got {last}"
        )
    to_clock: Callable = np.negative if space == "sigma" else lambda ratio: -np.log(ratio)  # rise
    clock = to_clock(ratio)
    error = _derivative(trajectory, clock, order, space)
    if propagate:
        std = np.std(trajectory.y[-1], dtype=np.float64) if data_std is None else data_std
        error = error / np.hypot(std, ratio)
    density = np.maximum(error, FLOOR[space] * error.max()) ** (1 / (order + 1))
    if not np.any(error):  # straight paths: all strides are exact
        density = np.ones_like(error)
    mass = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(clock)))
    whole = mass[-1] if last is None else np.interp(to_clock(last), clock, mass)
    at = np.interp(np.linspace(0, whole, steps + (terminal != "zero")), mass, clock)
    times = schedule.time_of(-np.log(-at) if space == "sigma" else at)
    times[0] = trajectory.times[0]
    if last is None and len(times) > 1:
        times[-1] = trajectory.times[-2]
    return finish(schedule, times, terminal)


def _derivative(trajectory: Trajectory, clock: np.ndarray, order: int, space: str) -> np.ndarray:
    """[M] root mean square over samples and dimensions of the derivative over the clock."""
    squares = []
    for b in range(trajectory.y.shape[1]):
        values = trajectory.eps[:, b].astype(np.float64)
        if space == "lam":  # x0
            values = trajectory.y[:-1, b] - trajectory.ratio[:-1, None] * values
        for _ in range(order):
            values = np.gradient(values, clock, axis=0)
        squares.append(np.mean(values**2, -1))
    return np.sqrt(np.mean(squares, 0))
