"""The engine: one thread that owns a device's pipelines and walks all pictures step by step.

A turn of it: drop what was given up, choose the pictures that make a step, begin those of them that wait,
make that step in as few runs of the denoiser as can be, decode what is finished one by one, then previews. So
a picture can begin between any two steps of the others, and leave as soon.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar

from flux_trt.runtime.course import Course
from flux_trt.runtime.errors import FluxTrtError, GpuMemoryError
from flux_trt.runtime.tasks.request import Request
from flux_trt.serving import told
from flux_trt.serving.choice import Choice, Place
from flux_trt.serving.errors import ApiError
from flux_trt.serving.limits import Limits
from flux_trt.serving.models import Model, Models
from flux_trt.serving.pace import Pace
from flux_trt.serving.work import Done, Event, Failed, Moved, Partial, Work

BEFORE = 1.0  # seconds to wait where nothing is known yet

Found = TypeVar("Found")
State = Literal["loading", "ready", "draining", "stopped", "broken"]

_log = logging.getLogger(__name__)


class Watch(Protocol):
    """Who counts what the engine does."""

    def step(self, model: str, pixels: int, rows: int, seconds: float) -> None:
        """A run of so many rows."""

    def picture(self, work: Work, seconds: dict[str, float]) -> None:
        """One is done."""

    def ended(self, work: Work, outcome: str) -> None:
        """Work is over: "done", "cancelled" or "failed"."""

    def queue(self, waiting: int, active: int, seconds: float) -> None:
        """Pictures that wait and that are under way, and the seconds that they will take."""


class Engine:
    """Start it, give it work, drain it."""

    def __init__(self, models: Models, limits: Limits, watch: Watch) -> None:
        """Do nothing yet."""
        self.models, self.limits = models, limits
        self._watch, self._pace = watch, Pace()
        self._changed = threading.Condition()
        self._inbox: deque[Work] = deque()
        self._works: list[Work] = []
        self._at: list[Work] = []
        self._choice = Choice(limits, self._pace)
        self._state: State = "loading"
        self._why = "the models are being loaded"
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Paint one picture of each model, so that nobody waits for what is done once; then be ready."""
        self._thread.start()

    def join(self) -> None:
        """Wait until it has stopped or died."""
        self._thread.join()

    @property
    def state(self) -> tuple[State, str]:
        """Where it stands, and why."""
        return self._state, self._why

    def submit(self, work: Work) -> float:
        """Take work; the seconds that what was there before it will take.

        Raises:
            ApiError: 503 while it is not ready, 429 where too much waits.
        """
        with self._changed:
            if self._state != "ready":
                raise ApiError(503, f"{self._why}; try again later", code=self._state, retry_after=5)
            ahead = self.seconds_ahead()
            most = self.limits.queue_seconds
            if work.until is not None:
                most = min(most, work.until - time.monotonic())
            if ahead > most:
                raise ApiError(
                    429,
                    f"{ahead:.0f} s of painting wait already and {max(most, 0):.0f} are accepted; "
                    "try again later",
                    code="queue_full",
                    retry_after=ahead - most + BEFORE,
                )
            self._inbox.append(work)
            self._changed.notify()
            return ahead

    def cancel(self, work: Work) -> None:
        """Give work up: what waits is dropped at once, what is under way before its next step."""
        with self._changed:
            work.cancelled = True
            self._changed.notify()

    def seconds_ahead(self) -> float:
        """What all that was taken will still take."""
        return sum(self._seconds(work) for work in (*self._works, *self._inbox) if not work.cancelled)

    def position(self, work: Work) -> int:
        """Requests that were taken before it and have pictures that are not begun."""
        works = [*self._works, *self._inbox]
        if work not in works or not work.waiting:
            return 0
        return sum(bool(each.waiting) for each in works[: works.index(work)])

    def drain(self, seconds: float | None = None) -> bool:
        """Take no more, and wait until all is painted; whether it was.

        Args:
            seconds: how long to wait; what is left then is given up.
        """
        with self._changed:
            if self._state in ("loading", "ready"):
                self._state, self._why = "draining", "the server is about to stop"
            self._changed.notify()
        if not self._thread.ident:
            return True
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        with self._changed:
            for work in (*self._works, *self._inbox):
                work.cancelled = True
            self._changed.notify()
        self._thread.join()
        return False

    def _run(self) -> None:
        try:
            self._warm()
            while self._next():
                self._turn()
            self._state, self._why = "stopped", "the server has stopped"
        except BaseException as fault:
            _log.exception("the engine has died")
            self._state, self._why = "broken", f"the engine has died of {type(fault).__name__}"
            with self._changed:
                left, self._works = [*self._works, *self._inbox], []
                self._inbox.clear()
            for work in left:  # what it was at may be why, and would kill the next one, too
                self._end(work, "failed", Failed(None, self._why, again=work not in self._at))

    def _warm(self) -> None:
        for model in self.models:
            self._warm_up(model)
        with self._changed:
            if self._state == "loading":
                self._state, self._why = "ready", ""

    def _warm_up(self, model: Model) -> None:
        """A picture of two steps, where the bundle paints from text alone; what it takes is learnt."""
        manifest = model.pipeline.bundle.manifest
        if "generate" not in manifest.tasks:
            return
        lines: list[str] = []
        with told.heard(lines):
            request = Request.of(manifest, "", steps=3)
            work = Work("warm-up", model, request, lambda event: None)
            self._works.append(work)
            while not work.over:
                self._turn()

    def _next(self) -> bool:
        """Wait for something to do; False: there is nothing and never will be."""
        with self._changed:
            while not (self._inbox or self._works):
                if self._state == "draining":
                    return False
                self._changed.wait()
            self._works += self._inbox
            self._inbox.clear()
        return True

    def _turn(self) -> None:
        self._drop()
        chosen = self._choice.of(self._works)
        self._at = [work for work, _ in chosen]
        if begun := self._begun(chosen):
            self._step(begun)
        self._works = [each for each in self._works if not each.over]
        if not self._works:
            self._choice.rest()
            for model in self.models:
                model.pipeline.kept.forget()
        waiting = sum(len(each.waiting) for each in (*self._works, *self._inbox))
        self._watch.queue(waiting, self._active, self.seconds_ahead())

    def _drop(self) -> None:
        """What was given up, or whose client will not wait any longer."""
        now = time.monotonic()
        for work in list(self._works):
            late = work.until is not None and now > work.until
            if work.cancelled or (late and not work.courses):
                why = (
                    "it was cancelled" if work.cancelled else "its client's time was over before it was begun"
                )
                self._end(work, "cancelled", Failed(None, why))

    def _begun(self, chosen: Sequence[Place]) -> list[tuple[Course, Work]]:
        """What was chosen, at its first step where it was not begun; what cannot begin fails."""
        found = []
        for work, course in chosen:
            if work in self._works and course is None:
                course = self._begin(work)
            if course is not None:
                found.append((course, work))
        return [(course, work) for course, work in found if course in work.courses]

    def _begin(self, work: Work) -> Course | None:
        """Its next picture that waits; where memory is short, it waits until others are done."""
        index, steps = work.waiting[0], work.model.steps

        def begin() -> Course:
            work.model.adapters.expect_same(work.request.loras or ())
            if work.painting is None:
                work.painting = steps.prepare(work.request)
            return steps.begin(work.painting, index)

        course = self._tried(work, begin)
        if isinstance(course, FluxTrtError):
            self._failed(work, course, fewer=self._active)
            return None
        work.waiting.pop(0)
        work.courses[course] = index
        return course

    def _step(self, chosen: list[tuple[Course, Work]]) -> None:
        model = chosen[0][1].model
        start = time.perf_counter()
        faults = model.steps.step([course for course, _ in chosen])
        if model.pipeline.backend.gpu:
            model.pipeline.backend.gpu.synchronize()
        seconds = time.perf_counter() - start
        first, rows = chosen[0][1], sum(course.rows for course, _ in chosen)
        self._choice.charge([(work, course.rows) for course, work in chosen], seconds)
        self._pace.learn(model.id, first.tokens, rows, seconds)
        self._watch.step(model.id, first.pixels, rows, seconds)
        fewer = self._active // 2
        for course, work in chosen:
            if course in faults and work in self._works:
                work.waiting.insert(0, work.courses.pop(course))
                self._failed(work, faults[course], fewer)
        going = [(course, work) for course, work in chosen if course in work.courses]
        for course, work in going:
            self._say(work, Moved(work.courses[course], course.walk.done, course.walk.steps))
        for course, work in going:
            if not course.left:
                self._finish(course, work)
        for course, work in going:
            if course.left and course.walk.done in work.previews(course.walk.steps) and not work.cancelled:
                self._preview(course, work)

    def _finish(self, course: Course, work: Work) -> None:
        index = work.courses.pop(course, None)
        if index is None:  # another picture of the same work has failed
            return
        painted = self._tried(work, course.finish)
        if isinstance(painted, FluxTrtError):
            work.waiting.insert(0, index)
            self._failed(work, painted, fewer=self._active)
            return
        self._watch.picture(work, painted.seconds)
        self._say(work, Done(index, painted))
        if work.over:
            self._watch.ended(work, "done")
            _log.info("%s %s done in %.2f s", work.id, _size(work), work.age)

    def _preview(self, course: Course, work: Work) -> None:
        """What it is going to be; a preview that fails is none, and the picture goes on."""
        step, pipeline = course.step, work.model.pipeline
        assert step is not None
        try:
            (image,) = pipeline.decode(step.predicted, step.grid)
        except FluxTrtError as fault:
            self._free(work.model, fault)
            return
        number = work.previews(course.walk.steps).index(course.walk.done)
        self._say(work, Partial(work.courses[course], number, image))

    def _end(self, work: Work, outcome: str, event: Event) -> None:
        work.waiting.clear()
        work.courses.clear()
        self._works = [each for each in self._works if each is not work]
        self._watch.ended(work, outcome)
        _log.info("%s %s %s after %.2f s", work.id, _size(work), outcome, work.age)
        self._say(work, event)

    def _say(self, work: Work, event: Event) -> None:
        try:
            work.tell(event)
        except Exception:  # whoever listened is gone
            _log.debug("%s: nobody listens", work.id)

    def _tried(self, work: Work, call: Callable[[], Found]) -> Found | FluxTrtError:
        """What a call for work gives, or what was wrong."""
        try:
            with told.heard(work.warnings):
                return call()
        except MemoryError:
            fault: FluxTrtError = GpuMemoryError(
                "this machine's memory does not suffice; ask for a smaller size"
            )
        except FluxTrtError as found:
            fault = found
        return fault

    def _failed(self, work: Work, fault: FluxTrtError, fewer: int) -> None:
        """It is over; where memory was short it waits until `fewer` are under way, or once after freeing."""
        self._free(work.model, fault)
        if isinstance(fault, GpuMemoryError) and (fewer or not work.spared):
            work.spared = work.spared or not fewer
            self._choice.at_most(max(1, fewer))
        else:
            self._end(work, "failed", Failed(fault))

    def _free(self, model: Model, fault: FluxTrtError) -> None:
        """After want of memory: let go of what is only kept to be fast."""
        if isinstance(fault, GpuMemoryError):
            model.steps.spare()
            gc.collect()  # what was dropped may stand in a circle

    @property
    def _active(self) -> int:
        """Pictures under way."""
        return sum(len(each.courses) for each in self._works)

    def _seconds(self, work: Work) -> float:
        return work.left * self._pace.of(work.model.id, work.tokens)


def _size(work: Work) -> str:
    request = work.request
    return f"{request.task} {len(request)} x {request.width}x{request.height}, {request.moves} steps,"
