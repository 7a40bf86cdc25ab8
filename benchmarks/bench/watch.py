"""A backend that notes when each graph runs; the pipeline above it is the one that users run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from flux_trt.runtime.backends.device import Gpu
from flux_trt.runtime.backends.protocols import Backend, Buffer, Graph
from flux_trt.runtime.bundle.manifest import Stage


class Clock(Protocol):
    """Marks moments, and tells later how far apart they were."""

    def mark(self) -> Any:
        """Now, in the order of the work."""

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds from one mark to another."""


class HostClock:
    """`perf_counter_ns`: right where a graph has run when `run` returns."""

    def mark(self) -> int:
        """Now."""
        return time.perf_counter_ns()

    def ms(self, start: int, end: int) -> float:
        """Milliseconds from one mark to another."""
        return (end - start) / 1e6


class DeviceClock:
    """CUDA events on the pipeline's stream: when the GPU gets there, not when the host has queued it.

    Written against CUDA's runtime API (cudaEventRecord, cudaEventElapsedTime); it has been run on no GPU yet.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def mark(self) -> Any:
        """An event that is queued now; it is never destroyed, as a profile has few."""
        event = self._gpu.call("cudaEventCreate")
        self._gpu.call("cudaEventRecord", event, self._gpu.stream)
        return event

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds from one event to another, once both have happened."""
        self._gpu.call("cudaEventSynchronize", end)
        return float(self._gpu.call("cudaEventElapsedTime", start, end))


@dataclass
class Span:
    """One run of a graph."""

    stage: str
    start: Any
    end: Any


@dataclass
class Watched:
    """A backend whose graphs leave a span for every run."""

    inner: Backend
    clock: Clock
    spans: list[Span] = field(default_factory=list)
    least_free: int | None = None
    """Fewest bytes that were free on the GPU after a run."""

    @property
    def name(self) -> str:
        """The inner backend's."""
        return self.inner.name

    @property
    def device(self) -> str:
        """The inner backend's."""
        return self.inner.device

    @property
    def gpu(self) -> Gpu | None:
        """The inner backend's."""
        return self.inner.gpu

    def refuse(self, name: str, stage: Stage) -> None:
        """As the inner backend."""
        self.inner.refuse(name, stage)

    def weight_bytes(self, path: Path, name: str, stage: Stage) -> int:
        """As the inner backend."""
        return self.inner.weight_bytes(path, name, stage)

    def load(self, path: Path, name: str, stage: Stage) -> Graph:
        """The inner backend's graph, watched."""
        return WatchedGraph(self, name, self.inner.load(path, name, stage))

    def upload(self, array: npt.NDArray[Any]) -> Buffer:
        """As the inner backend."""
        return self.inner.upload(array)


@dataclass
class WatchedGraph:
    """A graph that leaves a span for every run."""

    of: Watched
    name: str
    inner: Graph

    def run(
        self, inputs: Mapping[str, Buffer | npt.NDArray[Any]], into: Mapping[str, Buffer] | None = None
    ) -> dict[str, Buffer]:
        """Run once; see `backend.Graph.run`."""
        start = self.of.clock.mark()
        found = self.inner.run(inputs, into)
        self.of.spans.append(Span(self.name, start, self.of.clock.mark()))
        if self.of.gpu:
            free = self.of.gpu.free_bytes()
            self.of.least_free = min(free, self.of.least_free or free)
        return found

    def close(self) -> None:
        """Free the graph."""
        self.inner.close()


def clock(backend: Backend) -> Clock:
    """The clock that fits a backend's device."""
    return DeviceClock(backend.gpu) if backend.gpu else HostClock()
