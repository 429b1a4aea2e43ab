"""Chooses the best stride of the search space, in rounds: families, their noisy ends, all together.

The search space is too large to race all of it. The first round races every learned and fixed
family with several last levels on few samples; the second varies where the best of them start; the
last races the best of both, and the plain fixed strides, on all held-out noise.
"""

from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from ddim_jax.solvers.solver import LIMIT
from ddim_jax.strides import search
from ddim_jax.strides.search import Drawer, TeacherSamples
from ddim_jax.strides.search_space import (
    FIXED,
    LASTS,
    STARTS,
    Candidate,
    Evidence,
    families,
    propose,
)

FEW = 16
"""Samples of the first two rounds."""
STARTED = 4
"""Candidates of the first round whose start is varied."""
FINALISTS = 6
"""Candidates of the first two rounds that take part in the last."""


def choose(
    drawer: Drawer, evidence: Evidence, held_out: TeacherSamples, steps: int
) -> tuple[np.ndarray, str, dict[str, float]]:
    """Returns the best candidate's times and name, and the distances of the last round.

    Args:
        drawer: sampler, schedule and solver.
        evidence: what learned candidates are derived from.
        held_out: what distances are measured on; nothing of it is in the evidence.
        steps: intervals.
    """
    order, lam_min = drawer.solver.order, drawer.solver.lam_min
    few = held_out.take(np.arange(min(FEW, len(held_out.noise))))

    def race(candidates: Iterable[Candidate], teacher: TeacherSamples, what: str):
        times = propose(candidates, drawer.schedule, evidence, steps, order)
        with tqdm(total=len(times), desc=f"{steps} steps: {what}", unit="stride") as bar:
            return search.race(drawer, times, teacher, lambda *_: bar.update()), times

    limit = LIMIT if lam_min is None else lam_min
    kinds = [Candidate(name, limit, last) for name in families(order) for last in (None, *LASTS)]
    first, _ = race(kinds, few, "families and last levels")
    started = [c._replace(start=start) for c in list(first)[:STARTED] for start in STARTS]
    second, _ = race(started, few, "starts")
    best = sorted((first | second).items(), key=lambda item: item[1])[:FINALISTS]
    fixed = [Candidate(name, lam_min) for name in FIXED]
    scores, times = race([*fixed, *(candidate for candidate, _ in best)], held_out, "race")
    winner = next(iter(scores))
    return times[winner], str(winner), {str(name): score for name, score in scores.items()}
