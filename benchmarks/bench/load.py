"""A server's load without the network: requests that come at random, painted in one of three ways.

    one by one      each request by itself, first come first served
    by requests     those that are alike together, up to a number, after a short wait for more
    by steps        flux-serve's engine: rows of one run may be at any step

All three use one pipeline, one after the other, and the same requests at the same moments.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flux_trt.runtime.backends.protocols import Buffer
from flux_trt.runtime.bundle.flow import DENOISER
from flux_trt.runtime.pipeline import Pipeline
from flux_trt.runtime.stepwise import Stepwise
from flux_trt.runtime.tasks.company import alike, joined
from flux_trt.runtime.tasks.request import Request
from flux_trt.serving.engine import Engine
from flux_trt.serving.limits import Limits
from flux_trt.serving.metrics import Metrics
from flux_trt.serving.models import Model, Models
from flux_trt.serving.work import Done, Failed, Work

WINDOW = 0.005  # seconds that a batch of requests waits for more
PROMPTS = (
    "a red circle at the top left on a white background",
    "a blue square in the center on a gray background",
)

Tell = Callable[[], None]


@dataclass(frozen=True)
class Arrival:
    """A request, and the seconds after the beginning at which it comes."""

    at: float
    request: Request


def arrivals(
    pipeline: Pipeline,
    rate: float,
    seconds: float,
    steps: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    seed: int,
) -> list[Arrival]:
    """A Poisson stream of `rate` a second; steps, sizes and guidances are drawn evenly."""
    draw, manifest, at = random.Random(seed), pipeline.bundle.manifest, 0.0
    found = []
    while (at := at + draw.expovariate(rate)) < seconds:
        guided: dict[str, Any] = {}
        if manifest.guidance.kind == "embedded":
            guided["guidance"] = draw.choice((1.0, 3.5))
        request = Request.of(
            manifest,
            draw.choice(PROMPTS),
            steps=draw.choice(steps),
            size=draw.choice(sizes),
            seed=draw.randrange(2**32),
            **guided,
        )
        found.append(Arrival(at, request))
    return found


class Way(Protocol):
    """One way to paint what comes."""

    def take(self, request: Request, tell: Tell) -> None:
        """Paint it, and tell when it is there; do not wait."""


class Together:
    """Requests that are alike, up to `most` of them in one batch; with 1 one by one."""

    def __init__(self, pipeline: Pipeline, most: int) -> None:
        self._pipeline, self._most = pipeline, most
        self._waiting: deque[tuple[Request, Tell]] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def take(self, request: Request, tell: Tell) -> None:
        """Into the queue."""
        with self._changed:
            self._waiting.append((request, tell))
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
            if self._most > 1:
                time.sleep(WINDOW)
            with self._changed:
                first = self._waiting[0][0]
                chosen = [each for each in self._waiting if alike(each[0], first)][: self._most]
                for each in chosen:
                    self._waiting.remove(each)
            for _ in self._pipeline.paint(joined([request for request, _ in chosen])):
                pass
            for _, tell in chosen:
                tell()


class BySteps:
    """The engine of flux-serve."""

    def __init__(self, pipeline: Pipeline, most: int) -> None:
        self._model = Model("bench", Stepwise(pipeline), 0)
        limits = Limits(queue_seconds=float("inf"), rows=most, table={2**62: most})
        self._engine = Engine(Models({"bench": self._model}), limits, Metrics())
        self._engine.start()
        while self._engine.state[0] == "loading":
            time.sleep(0.01)

    def take(self, request: Request, tell: Tell) -> None:
        """Hand it in."""

        def told(event: object) -> None:
            if isinstance(event, Failed):
                raise RuntimeError(event)
            if isinstance(event, Done):
                tell()

        self._engine.submit(Work("bench", self._model, request, told))


@dataclass(frozen=True)
class Played:
    """What became of a stream of requests."""

    seconds: list[float]
    """From each request to its picture, in the order of the requests."""
    steps: list[int]
    whole: float
    """From the first request to the last picture."""


def play(way: Way, stream: Sequence[Arrival]) -> Played:
    """Let them come, and wait for the last."""
    start, left = time.perf_counter(), threading.Semaphore(0)
    ends = [0.0] * len(stream)

    def teller(index: int) -> Tell:
        def tell() -> None:
            ends[index] = time.perf_counter() - start
            left.release()

        return tell

    for index, each in enumerate(stream):
        time.sleep(max(0.0, start + each.at - time.perf_counter()))
        way.take(each.request, teller(index))
    for _ in stream:
        left.acquire()
    seconds = [end - each.at for end, each in zip(ends, stream, strict=True)]
    return Played(seconds, [each.request.steps for each in stream], max(ends) - stream[0].at)


def stand_in(pipeline: Pipeline, first: float, more: float) -> None:
    """Let each run of the denoiser take as long as on another device, whatever this machine's neighbours do.

    Args:
        pipeline: whose denoiser runs as before, and then waits.
        first: seconds of a run of one row.
        more: seconds of each further row.
    """
    graph = pipeline.graphs[DENOISER]
    run = graph.run

    def slow(inputs: Mapping[str, Any], into: Mapping[str, Buffer] | None = None) -> dict[str, Buffer]:
        end = time.perf_counter() + first + more * (inputs["latents"].shape[0] - 1)
        found = run(inputs, into)
        time.sleep(max(0.0, end - time.perf_counter()))
        return found

    graph.run = slow  # type: ignore[method-assign]


def burst(stream: Sequence[Arrival], count: int) -> list[Arrival]:
    """So many requests that are all there at once: what a way can do when it has all the choice."""
    return [Arrival(0.0, stream[index % len(stream)].request) for index in range(count)]


def pace(pipeline: Pipeline, stream: Sequence[Arrival], seconds: float) -> float:
    """Pictures a second, one by one and without a pause, to know how long a burst will take."""
    start, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds:
        for _ in pipeline.paint(stream[done % len(stream)].request):
            done += 1
    return done / taken
