"""Which cases of a parametrized test are run every time; the rest is slow."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(names: Iterable[str], always: Callable[[str], bool] | Iterable[str]) -> list[Any]:
    """The names as parameters, marked slow but for those that are always run."""
    wanted = always if callable(always) else set(always).__contains__
    return [n if wanted(n) else pytest.param(n, marks=pytest.mark.slow) for n in names]
