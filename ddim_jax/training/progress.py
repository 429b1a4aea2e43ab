"""What a run says while it trains: a bar on a terminal, else a line every so often.

Lines go to stderr, so that a log file shows that the run lives, how fast, and when it will end.
"""

import sys
import time
from typing import Any

import jax
from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines, at least; the first and the last line come when they can."""


class Progress:
    """Tells how far a run is; only the first of several processes does.

    Args:
        first: steps that are done.
        steps: in all.
        batch_size: images a step.
    """

    def __init__(self, first: int, steps: int, batch_size: int):
        """Begins with a bar, or with nothing."""
        self._steps, self._batch_size, self._said = steps, batch_size, -EVERY
        self._quiet = jax.process_index() != 0
        terminal = not self._quiet and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=first, unit="step") if terminal else None

    def __enter__(self) -> "Progress":
        """Returns itself."""
        return self

    def __exit__(self, *exception: Any) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Writes a line."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def step(self) -> None:
        """Counts a step."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, step: int, values: dict[str, float], last: bool) -> None:
        """Tells the metrics of a step, if it is time to.

        Args:
            step: their step.
            values: what `MetricsWriter.write` returned.
            last: it is the last one.
        """
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{values['loss_mean']:.4f}", images_s=values["images_s"])
            return
        now = time.monotonic()
        if not last and now - self._said < EVERY:
            return
        self._said = now
        text = (
            f"step {step} of {self._steps}: loss {values['loss_mean']:.4f}, learning rate "
            f"{values['learning_rate']:.3g}"
        )
        if speed := values["images_s"]:
            left = tqdm.format_interval((self._steps - step) * self._batch_size / speed)
            text += f", {speed:.1f} images/s, {left} left"
        self.say(text)
