"""Are two parameter trees of one architecture? Compared by path and shape."""

from typing import Any

import jax

Shapes = dict[str, tuple[int, ...]]


def shapes(tree: Any) -> Shapes:
    """Path, joined with "/", -> shape of every leaf; of a flat dict its own names."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(getattr(k, "key", k)) for k in path): tuple(leaf.shape)
        for path, leaf in leaves
    }


def difference(wanted: Any, given: Any) -> tuple[str, str, str] | None:
    """The first parameter that differs: (path, shape wanted, shape given); None if none does.

    A shape is given as text; "absent" where a tree lacks the parameter.
    """
    wanted, given = shapes(wanted), shapes(given)
    for path in sorted(wanted.keys() | given.keys()):
        if wanted.get(path) != given.get(path):
            return path, *(str(tree.get(path, "absent")) for tree in (wanted, given))
    return None
