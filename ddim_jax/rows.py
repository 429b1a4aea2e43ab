"""Rows of an array that are not made before they are asked for."""

from typing import Any

import numpy as np


class Rows:
    """Rows of an array by their places, as an array that is not made before it is asked for.

    So a set of any size may be told a few texts. Indexing gives a numpy array.
    """

    def __init__(self, values: np.ndarray, places: np.ndarray):
        """Row i is `values[places[i]]`."""
        self._values, self._places = values, np.asarray(places)
        self.shape, self.dtype = (len(self._places), *values.shape[1:]), values.dtype

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._values[self._places[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)
