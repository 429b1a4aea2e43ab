"""Tables of solvers as JSON, for whatever runs the graph of a row; docs/deploy.md specifies it.

    {"format": "ddim_jax.tables/1", "columns": {"level": [0, 3], ...}, "default": "ddim:4",
     "tables": {"ddim:4": {"nfe": 4, "start": [1.0, 0.0], "rows": [[29 numbers], ...]}, ...}}

with "told": {"interval": 0.25} in a table of a network that is told the length of its steps.
Numbers are float32, each written in the fewest digits that read back as it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ddim_jax.export import graph, row
from ddim_jax.model import Model
from ddim_jax.names import check_range, lookup
from ddim_jax.recipe import MOST_STEPS, Recipe
from ddim_jax.solvers import SOLVERS, SolverTable

FORMAT = "ddim_jax.tables/1"
USUAL = (
    *("ddim", "ddpm", "euler_ancestral", "heun", "rk4", "deis", "dpm_solver++_2m"),
    *("dpm_solver++_3m", "sde_dpm_solver++_2m", "unipc_2", "lcm"),
)
"""Solvers whose tables are written unless others are asked for."""
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50)
"""And how many steps."""
TRIED = ("unipc_2:6", "ddpm:4")
"""By which a graph that takes any table is compared with JAX, beside the recipe's own."""


def name_of(recipe: Recipe, table: SolverTable) -> str:
    """`solver:steps`, by which a table is found; of a learned stride its evaluations."""
    return f"{recipe.solver}:{recipe.steps or table.nfe}"


def collect(
    model: Model,
    recipe: Recipe,
    solvers: Sequence[str] = USUAL,
    steps: Sequence[int] = STEPS,
) -> dict[str, SolverTable]:
    """Tables by name, the recipe's own first; its stride and options are those of its solver.

    A solver that needs more steps has no table of fewer, and a network that is told the length of
    its steps has those alone that it can follow.

    Raises:
        ValueError: an unknown solver, steps out of range, a solver without any table; a recipe that
            the network cannot follow.
    """
    schedule = model.schedule
    own = recipe.table(schedule)
    graph.told_of(model, own)
    found = {name_of(recipe, own): own}
    for count in steps:
        check_range("table_steps", count, f"[1, {MOST_STEPS}]", whole=True)
    for solver in solvers:
        lookup(SOLVERS, solver, "solver")
        made, refusal = 0, None
        for count in steps:
            changes = {"steps": count} | ({} if solver == recipe.solver else {"solver": solver})
            try:
                table = recipe.replace(**changes).table(schedule).validate()
                row.pack(table)
            except ValueError as error:
                refusal = error
                continue
            made += 1
            if graph.follows(model, table):
                found.setdefault(f"{solver}:{count}", table)
        if refusal is not None and not made and solver != recipe.solver:
            raise ValueError(f"{solver} has no table of {steps} steps: {refusal}") from refusal
    return found


def few(tables: dict[str, SolverTable]) -> dict[str, SolverTable]:
    """The first table, and some by which a graph that takes any is compared with JAX."""
    first = next(iter(tables))
    return {name: table for name, table in tables.items() if name == first or name in TRIED}


def as_json(tables: dict[str, SolverTable], model: Model) -> dict[str, Any]:
    """What the file holds; the first table is the default one.

    Args:
        tables: by name.
        model: what follows them.
    """
    ends = np.cumsum([0, *row.COLUMNS.values()]).tolist()
    return {
        "format": FORMAT,
        "slots": row.SLOTS,
        "columns": dict(zip(row.COLUMNS, zip(ends, ends[1:], strict=False), strict=True)),
        "default": next(iter(tables)),
        "tables": {
            name: _table(table, graph.told_of(model, table)) for name, table in tables.items()
        },
    }


def _table(table: SolverTable, told: dict[str, float]) -> dict[str, Any]:
    rows = row.pack(table)
    return {
        "nfe": table.nfe,
        "deterministic": table.deterministic,
        **({"told": dict(zip(told, _numbers(told.values()), strict=True))} if told else {}),
        "start": _numbers(np.float32(table.start)),
        "rows": [_numbers(one) for one in rows[: table.nfe]],
    }


def _numbers(values: Iterable[float]) -> list[float | int]:
    """float32 in the fewest digits; 0 and 1 without a point."""
    read = [float(str(np.float32(value))) for value in values]
    return [int(value) if value in (0.0, 1.0) else value for value in read]
