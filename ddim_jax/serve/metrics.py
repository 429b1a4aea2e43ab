"""What a server counts, as Prometheus reads it.

Source: the text format 0.0.4 of https://prometheus.io/docs/instrumenting/exposition_formats.
"""

import bisect
import collections
import functools
import json
import os
import threading
import time
from collections.abc import Mapping

import jax

COMPILES = "/jax/core/compile/backend_compile_duration"
"""JAX's event of a program that is made, or found among those on disk."""
BOUNDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Of the histogram of seconds that requests take."""
HELP = {
    "ddim_jax_requests_total": "counter|Answers by status.",
    "ddim_jax_disconnects_total": "counter|Clients that left before their answer.",
    "ddim_jax_pictures_total": "counter|Pictures drawn.",
    "ddim_jax_evaluations_total": "counter|Network evaluations of a picture each.",
    "ddim_jax_runs_total": "counter|Evaluations of programs, which pictures share.",
    "ddim_jax_waiting_pictures": "gauge|Pictures in the queue.",
    "ddim_jax_live_pictures": "gauge|Pictures that are being drawn.",
    "ddim_jax_compilations_total": "counter|Programs compiled or read from disk in this process.",
    "ddim_jax_compilations_after_start_total": "counter|Those of them since it began to serve.",
    "ddim_jax_request_seconds": "histogram|From the request to the answer of /draw.",
    "process_resident_memory_bytes": "gauge|Memory of the process.",
    "process_start_time_seconds": "gauge|When it began, in seconds since 1970.",
}
_compiled, _began = 0, time.time()


class Metrics:
    """Counters, of any thread."""

    def __init__(self):
        _listen()
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], float] = collections.Counter()
        self._seconds, self._buckets, self._warm = 0.0, [0] * (len(BOUNDS) + 1), None

    def count(self, name: str, number: float = 1, **labels: object) -> None:
        """Adds to a counter in `HELP`."""
        text = ",".join(f"{key}={json.dumps(str(value))}" for key, value in labels.items())
        with self._lock:
            self._counts[name, text] += number

    def drawn(self, model: str, number: int) -> None:
        """Counts pictures."""
        self.count("ddim_jax_pictures_total", number, model=model)

    def evaluated(self, model: str, slots: int, runs: int) -> None:
        """Counts evaluations that so many slots shared."""
        self.count("ddim_jax_runs_total", runs, model=model)
        self.count("ddim_jax_evaluations_total", slots, model=model)

    def took(self, seconds: float) -> None:
        """Counts a request of that many seconds."""
        with self._lock:
            self._seconds += seconds
            self._buckets[bisect.bisect_left(BOUNDS, seconds)] += 1

    def warm(self) -> None:
        """Says that nothing is compiled from here on."""
        self._warm = _compiled

    def total(self, name: str) -> float:
        """A counter, over all its labels."""
        with self._lock:
            return sum(value for (own, _), value in self._counts.items() if own == name)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it, with the values of gauges now."""
        with self._lock:
            counts, buckets, seconds = dict(self._counts), list(self._buckets), self._seconds
        since = 0 if self._warm is None else _compiled - self._warm
        own = {
            "ddim_jax_compilations_total": _compiled,
            "ddim_jax_compilations_after_start_total": since,
            "process_resident_memory_bytes": resident_bytes(),
            "process_start_time_seconds": round(_began, 3),
        }
        values = counts | {(name, ""): value for name, value in (own | dict(gauges)).items()}
        lines = []
        for name, text in HELP.items():
            kind, _, about = text.partition("|")
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            if kind == "histogram":
                lines += _histogram(name, buckets, seconds)
            for (counter, labels), value in sorted(values.items()):
                if counter == name:
                    lines.append(f"{name}{'{' + labels + '}' if labels else ''} {value:.15g}")
        return "\n".join(lines) + "\n"


def _histogram(name: str, buckets: list[int], seconds: float) -> list[str]:
    lines, total = [], 0
    for bound, count in zip([*map(str, BOUNDS), "+Inf"], buckets, strict=True):
        total += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
    return [*lines, f"{name}_sum {seconds:.6f}", f"{name}_count {total}"]


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@functools.cache
def _listen() -> None:
    """Counts what JAX compiles, from the first call on."""

    def heard(event: str, seconds: float, **_: object) -> None:
        global _compiled
        _compiled += event == COMPILES

    jax.monitoring.register_event_duration_secs_listener(heard)
