"""Which cases of a parametrized test are run every time; the rest is slow."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(names: Iterable[str], always: Callable[[str], bool] | Iterable[str]) -> list[Any]:
    """The names, or tuples, as parameters, marked slow but for those that are always run."""
    wanted = always if callable(always) else set(always).__contains__

    def slow(name):
        return pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=pytest.mark.slow)

    return [name if wanted(name) else slow(name) for name in names]
