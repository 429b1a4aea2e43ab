"""Continuous batching: one thread that owns the devices, and queues of pictures that wait for them.

    engine = Engine(models).start()         # compiles, which takes seconds to minutes
    future = engine.submit(job)             # uint8 [num, H, W, C]; other threads may wait for it
    engine.cancel(job)                      # its pictures leave at once, the waiting and the begun
    engine.stop()                           # finishes what it has, takes nothing more

Between two evaluations of a model pictures leave and others take their places, first come first
served, picture by picture: a request of many pictures needs no gap as large as it is. Models take
turns, an evaluation each.
"""

import collections
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, NamedTuple

import numpy as np

from ddim_jax.dropping import NULL
from ddim_jax.export import row
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe
from ddim_jax.serve.evaluation import SIZES, Evaluation, Slot, halves, of_place
from ddim_jax.serve.metrics import Metrics

KEPT_TEXTS = 64
"""Texts whose encodings are kept, of all models."""


class Refused(RuntimeError):
    """Nothing comes of a job, for no fault of its own.

    Attributes:
        status: HTTP's.
        retry_after: seconds from now, when something may.
    """

    def __init__(self, message: str, status: int, retry_after: int):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Job:
    """A request: pictures of one set, with one table.

    Attributes:
        model: name of the model that draws them.
        recipe: how, with the model's own clip and guidance but for its scale.
        rows: float32 [E, 29], of `row.pack`.
        start: float32 [2], the table's.
        table: the table itself, for networks that are told how long its steps are.
        labels: int32 [num]; None for a network without classes.
        prompts: texts in rotation; None for a network that is told none.
        negative_prompt: None: the model's null text.
        seed: of the set.
        num: how many pictures.
        on_estimate: `(place, evaluation, picture)` after every row of every picture, uint8
            [H, W, C], called by the engine's thread; None: nobody asks.
        future: of the pictures.
        pictures: by their places, as far as they are done.
    """

    def __init__(
        self,
        model: str,
        recipe: Recipe,
        table: Any,
        rows: np.ndarray,
        *,
        num: int = 1,
        labels: np.ndarray | None = None,
        prompts: Sequence[str] | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        on_estimate: Callable[[int, int, np.ndarray], None] | None = None,
    ):
        self.model, self.recipe, self.table, self.rows = model, recipe, table, rows
        self.start = np.asarray(table.start, np.float32)
        self.num, self.labels, self.seed = num, labels, seed
        self.prompts, self.negative_prompt = prompts, negative_prompt
        self.on_estimate = on_estimate
        self.future: Future = Future()
        self.pictures: dict[int, np.ndarray] = {}
        self.inputs: dict[str, Any] | None = None


class _Place(NamedTuple):
    """A picture of a job, and its slot once it has one."""

    job: Job
    place: int
    slot: Slot | None = None


class Engine:
    """Draws the pictures of jobs.

    Attributes:
        models: by name.
        metrics: what it counts.
        draining: whether it takes nothing more.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        sizes: Sequence[int] = SIZES,
        queue: int = 256,
        metrics: Metrics | None = None,
    ):
        """Compiles nothing yet.

        Args:
            models: by name.
            sizes: numbers of slots that programs are compiled for; the largest is how many
                pictures of a model are drawn at a time.
            queue: most pictures that wait.
            metrics: where to count.
        """
        self.models, self.metrics = dict(models), metrics or Metrics()
        self.draining, self._most, self._room = False, queue, max(sizes)
        self._evaluations = {name: Evaluation(model, sizes) for name, model in models.items()}
        self._waiting = {name: collections.deque() for name in models}
        self._live: dict[str, list[_Place]] = {name: [] for name in models}
        self._texts: dict[tuple, dict] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> "Engine":
        """Compiles what will be needed, and begins to draw.

        Raises:
            ValueError: a model that cannot draw from noise alone.
        """
        for name, model in self.models.items():
            model.check(model.recipe)
            self._warm_up(name, model)
        self.metrics.warm()
        self._thread.start()
        return self

    def submit(self, job: Job) -> Future:
        """Puts a job's pictures into the queue.

        Returns:
            Of uint8 [num, H, W, C]; a ValueError says what the model could not serve after all.

        Raises:
            Refused: the queue is full, or the engine stops.
        """
        with self._changed:
            if self.draining or not self._thread.is_alive():
                raise Refused("the server is stopping: ask another one, or later", 503, 5)
            if self.waiting + job.num > self._most:
                raise Refused(
                    f"{self.waiting} pictures wait, and the queue has room for {self._most}, not "
                    f"for {job.num} more: ask again later",
                    429,
                    self._seconds_to_wait(),
                )
            self._waiting[job.model] += [_Place(job, place) for place in range(job.num)]
            self._changed.notify()
        return job.future

    def cancel(self, job: Job) -> None:
        """Forgets a job; nothing of it is drawn any more. One that is done stays done."""
        job.future.cancel()
        with self._changed:
            waiting = self._waiting[job.model]
            if any(one.job is job for one in waiting):
                self._waiting[job.model] = collections.deque(o for o in waiting if o.job is not job)

    def stop(self, timeout: float | None = None) -> None:
        """Takes nothing more, and waits until what it has is done."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def drain(self) -> None:
        """Takes nothing more."""
        with self._changed:
            self.draining = True
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return sum(map(len, self._waiting.values()))

    @property
    def live(self) -> int:
        """Pictures that are being drawn."""
        return sum(map(len, self._live.values()))

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def _seconds_to_wait(self) -> int:
        """Until about all that waits is done, from a second to a minute."""
        total = 0.0
        for name, waiting in self._waiting.items():
            seconds, room = self._evaluations[name].seconds[self._room], self._room
            total += sum(len(one.job.rows) for one in waiting) * seconds / room
        return min(60, max(1, math.ceil(total)))

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._await_work():
            for name, live in self._live.items():
                try:
                    self._enter(name, live)
                    self._step(name, live)
                except Exception as error:  # of one model: the others go on
                    logging.getLogger("ddim_jax").exception("an evaluation of %s failed", name)
                    failed = Refused(f"an evaluation failed: {type(error).__name__}", 500, 1)
                    for one in live:
                        _finish(one.job, failed)
                    live.clear()

    def _await_work(self) -> bool:
        """Waits for something to draw; False if there is to be none."""
        with self._changed:
            while not (self.live or self.waiting):
                if self.draining:
                    return False
                self._changed.wait()
        return True

    def _enter(self, name: str, live: list[_Place]) -> None:
        """Gives free slots to what waits; drops what is cancelled."""
        live[:] = [one for one in live if not one.job.future.done()]
        with self._changed:
            waiting, taken = self._waiting[name], []
            while waiting and len(live) + len(taken) < self._room:
                taken.append(waiting.popleft())
        for job, place, _ in taken:
            if job.future.done():
                continue
            try:
                inputs = of_place(self._inputs(job), place)
            except ValueError as error:
                _finish(job, error)
                continue
            except Exception as error:  # such as memory for a text encoder: of this job alone
                logging.getLogger("ddim_jax").exception("the inputs of a job of %s failed", name)
                failed = f"what the network is told failed: {type(error).__name__}"
                _finish(job, Refused(failed, 500, 1))
                continue
            scale = job.recipe.guidance_scale
            slot = Slot(job.rows, job.start, halves(job.seed), place, inputs, scale)
            live.append(_Place(job, place, slot))

    def _step(self, name: str, live: list[_Place]) -> None:
        """One evaluation of all slots of a model; hands over what is done."""
        if not live:
            return
        model, slots = self.models[name], [one.slot for one in live]
        watched = [i for i, one in enumerate(live) if one.job.on_estimate]
        evaluation = self._evaluations[name]
        runs = evaluation.runs
        x0 = evaluation.step(slots, watched)
        self.metrics.evaluated(name, len(slots), evaluation.runs - runs)
        for i, picture in zip(watched, _decoded(model, x0), strict=True):
            if picture is not None:
                live[i].job.on_estimate(live[i].place, slots[i].at, picture)
        done = [one for one in live if one.slot.done]
        x = np.array([one.slot.carry.point for one in done])
        for one, picture in zip(done, _decoded(model, x), strict=True):
            self._hand_over(one, picture)
        live[:] = [one for one in live if not (one.slot.done or one.job.future.done())]

    def _hand_over(self, one: _Place, picture: np.ndarray | None) -> None:
        job = one.job
        if picture is None:
            _finish(job, ValueError(
                f"picture {one.place} is not finite: try a lower guidance_scale, more steps or "
                "another solver"
            ))  # fmt: skip
            return
        job.pictures[one.place] = picture
        if len(job.pictures) == job.num:
            self.metrics.drawn(job.model, job.num)
            _finish(job, np.stack([job.pictures[place] for place in range(job.num)]))

    # --- what a network is told -------------------------------------------------------------------

    def _inputs(self, job: Job) -> dict[str, Any]:
        """Of all pictures of a job, [num, ...] each; made when its first picture enters."""
        if job.inputs is None:
            model = self.models[job.model]
            told = self._told(job) if model.inputs.takes("text") else None
            given = model.conditions(job.num, job.recipe, job.labels, job.table, prompt=told)
            job.inputs = {k: v for k, v in given["inputs"].items() if k != "guidance"}
            if told is not None and row.is_guidable(model):  # though this one may not be guided
                texts = model.inputs.texts(told, None, job.num, True)
                job.inputs[NULL] = texts[NULL]
        return job.inputs

    def _told(self, job: Job) -> dict[str, Any]:
        """The encoded texts of a job, the last ones kept."""
        key = (job.model, tuple(job.prompts or ("",)), job.negative_prompt)
        if key not in self._texts:
            encode = self.models[job.model].inputs.told
            self._texts[key] = encode(list(key[1]), job.negative_prompt)
            while len(self._texts) > 1 and sum(len(k[1]) + 1 for k in self._texts) > KEPT_TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]

    def _warm_up(self, name: str, model: Model) -> None:
        """Runs everything once that a request may need: encoders, evaluations, decoder."""
        table = model.recipe.table(model.schedule)
        job = Job(name, model.recipe, table, row.pack(table), prompts=[""])
        job.labels = model.inputs.labels(None, 1)
        if model.inputs.takes("text"):
            for count in (1, 4):  # the two sizes of `texts.Texts`
                model.inputs.told([f"{i}" for i in range(count)], "none")
        inputs = of_place(self._inputs(job), 0)
        self._evaluations[name].warm_up(inputs)
        model.pictures(np.zeros((1, *model.sample_shape), np.float32))


def _finish(job: Job, result: Any) -> None:
    """Sets a job's result; somebody may have cancelled it meanwhile."""
    try:
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
    except (InvalidStateError, CancelledError):
        pass


def _decoded(model: Model, x: np.ndarray) -> list[np.ndarray | None]:
    """Pictures of samples [N, ...]; None of those that are not finite."""
    if not len(x):
        return []
    finite = np.isfinite(x.reshape(len(x), -1)).all(1)
    pictures = iter(model.pictures(x[finite]) if finite.any() else ())
    return [next(pictures) if good else None for good in finite]
