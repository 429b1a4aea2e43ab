"""Which frames of a clip are taken.

frames = T          so many, from a random place in training, else from the first on
frame_rate = R      R frames a second of every file, by time: at each 1 / R the frame that is
                    shown then, twice where the file has fewer
frame_stride = k    every k-th frame of a file, whatever its rate
frame_rate = "own"  every k-th frame, of files of different rates, which the network is told
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddim_jax.data.clip_files import Timeline
from ddim_jax.names import check_range

OWN = "own"
ALIKE = 1.05
"""Rates whose ratio is below this count as one."""


class Cut(NamedTuple):
    """What is asked for, see the module.

    Attributes:
        frames: T; None for all there are.
        rate: frames a second, "own", or None.
        stride: takes every so many frames; only without a rate in numbers.
    """

    frames: int | None = None
    rate: float | str | None = None
    stride: int = 1

    @staticmethod
    def of(frames: int | None, frame_rate: float | str | None, frame_stride: int) -> Cut:
        """Checks what was given; ValueError if it cannot be."""
        hint = "leave it out for all frames"
        if frames:
            frames = check_range("frames", frames, "[1, 65536]", hint, whole=True)
        stride = check_range("frame_stride", frame_stride, "[1, 65536]", "1 takes all", whole=True)
        if frame_rate not in (None, OWN):
            if isinstance(frame_rate, str):
                raise ValueError(f"frame_rate must be a number or 'own', got {frame_rate!r}")
            frame_rate = check_range("frame_rate", frame_rate, "(0, 1000]", "leave it out")
            if stride != 1:
                raise ValueError(
                    f"frame_rate={frame_rate} and frame_stride={stride} both say which frames are "
                    "taken; give one of them"
                )
        return Cut(frames or None, frame_rate, stride)

    @property
    def timed(self) -> bool:
        """Whether frames are taken by time."""
        return isinstance(self.rate, float | int)

    def available(self, found: Timeline) -> int:
        """How many frames of a clip there are to take from the first on."""
        if self.timed and found.timed:
            return max(1, int(found.ends[-1] * self.rate + 0.01))
        return (len(found.ends) - 1) // self.stride + 1

    def starts(self, found: Timeline, frames: int) -> int:
        """From how many places `frames` frames can be taken."""
        if self.timed and found.timed:
            return self.available(found) - frames + 1
        return len(found.ends) - (frames - 1) * self.stride

    def rate_of(self, found: Timeline) -> float | None:
        """Frames a second of what is taken; None where nothing says."""
        if self.timed:
            return float(self.rate)
        return None if found.rate is None else found.rate / self.stride

    def problem(self, found: Timeline) -> str:
        """Why it cannot be taken of a clip, in words; "" if it can."""
        if not found.steady and not self.timed:
            lasts = 1000 * np.diff(found.ends, prepend=0)
            return (
                f"its frames are shown for {lasts.min():.0f} to {lasts.max():.0f} ms each: set "
                "config.data.frame_rate=R to take R of them a second"
            )
        if (count := self.available(found)) >= (self.frames or 1):
            return ""
        how = f" at {self.rate:g} a second" if self.timed else ""
        how = f" of which every {self.stride}th is taken" if self.stride > 1 else how
        return f"{count} frames{how}, config.data.frames={self.frames} asks for more"


class Windows:
    """Which frames are taken of each of many clips."""

    def __init__(self, name: str, found: Sequence[Timeline], cut: Cut):
        """Checks that all can be in one batch.

        Args:
            name: of the data, for messages.
            found: of each clip.
            cut: what is asked for, which suits each.

        Raises:
            ValueError: clips of different lengths or rates.
        """
        self._found, self._cut = found, cut
        counts = sorted({cut.available(one) for one in found})
        if cut.frames is None and len(counts) > 1:
            raise ValueError(
                f"clips of {name} have {counts[0]} to {counts[-1]} frames, one batch needs one "
                f"number; set config.data.frames={counts[0]} (frames={counts[0]} in Python)"
            )
        self.frames = cut.frames or counts[0]
        self.rates = [cut.rate_of(one) for one in found]
        known = [rate for rate in self.rates if rate is not None]
        if cut.rate is None and known:
            low, high = min(known), max(known)
            if high > ALIKE * low or len(known) < len(self.rates):
                none = ", some do not say" * (len(known) < len(self.rates))
                raise ValueError(
                    f"clips of {name} have {low:.4g} to {high:.4g} frames a second{none}; set "
                    f"config.data.frame_rate={low:.4g} to take so many of each, or "
                    "config.data.frame_rate='own' for a network that is told"
                )

    @property
    def moves(self) -> bool:
        """Whether some clip has frames to spare, so that it can begin at several places."""
        return any(self._cut.starts(one, self.frames) > 1 for one in self._found)

    def places(self, index: int, share: float = 0.0) -> tuple[np.ndarray, float | None]:
        """Frames of a clip that are taken, and the rate that these numbers count at.

        Args:
            index: of the clip.
            share: in [0, 1): how far into what is to spare they begin.

        Returns:
            Places int [T], and frames a second; None: places are of the clip's own frames.
        """
        found, cut = self._found[index], self._cut
        start = int(share * max(1, cut.starts(found, self.frames)))
        if cut.timed and found.timed:
            return start + np.arange(self.frames), float(cut.rate)
        return start + cut.stride * np.arange(self.frames), None

    def own_places(self, index: int, share: float = 0.0) -> np.ndarray:
        """The same, int [T], counted in the clip's own frames."""
        places, rate = self.places(index, share)
        if rate is None:
            return places
        ends = self._found[index].ends
        # not at the moment itself, where one frame follows on another
        soon = 0.5 * min(np.diff(ends, prepend=0).min(), 1 / rate)
        return np.minimum(np.searchsorted(ends, places / rate + soon, "right"), len(ends) - 1)

    @property
    def told(self) -> dict[str, np.ndarray]:
        """`frame_rate` float32 [N], where all are known."""
        if None in self.rates:
            return {}
        return {"frame_rate": np.array(self.rates, np.float32)}
