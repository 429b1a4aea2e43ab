"""SDEdit: noises an image part of the way, and draws from there.

Of the S steps of a stride the last round(strength S) are made; they start with
`x = alpha x0 + sigma z` at the first time of these, where a solver that churns adds its noise.

Source: Meng et al. 2022 (arXiv:2108.01073).
"""

import numpy as np

from ddim_jax.recipe import Recipe
from ddim_jax.schedules import Schedule
from ddim_jax.solvers import SolverTable
from ddim_jax.solvers.ddim import jump_of


def sdedit_table(schedule: Schedule, recipe: Recipe, strength: float) -> SolverTable:
    """Returns a table that starts from images, and changes them more the higher the strength.

    Args:
        schedule: the forward process.
        recipe: solver and stride. The stride's number of steps S is what it holds, which for
            "quadratic" can be fewer than asked for.
        strength: in (0, 1], the share of the stride's steps that are made. At 1 nothing of the
            image is left where the stride starts in noise.

    Raises:
        ValueError: a strength out of range, or too low for one step; an analytical first step,
            which knows pure noise alone; a stride file with coefficients of a whole drawing.
    """
    if "analytical_first_step" in recipe.solver_options:
        raise ValueError(
            "analytical_first_step starts from pure noise, and SDEdit from noised images; leave it "
            "out of the solver's options"
        )
    times = recipe.bare_times(schedule, "SDEdit")
    steps = len(times) - 1
    count = round(strength * steps) if 0 < strength <= 1 else 0
    if not count:
        raise ValueError(
            f"strength must be in (0, 1] and make at least one of {steps} steps, got {strength}; "
            f"take {max(0.5, 1 / steps):.3g}, or more steps"
        )
    times = times[steps - count :]
    if recipe.solver_options.get("landing") == "whole":  # of the whole stride, not of this part
        whole = {**recipe.solver_options, "landing": jump_of(schedule, steps, "whole")}
        recipe = recipe.replace(solver_options=whole)
    level = schedule.level(times[0])
    table = recipe.make_solver()(schedule, times)
    scale, noise = table.start[0] / schedule.prior_std(times[0]), table.start[1]
    start = np.array([scale * level.alpha, np.hypot(scale * level.sigma, noise)])
    return table._replace(start=start).validate()
