"""Loops that share the runs of the denoiser: pictures that are at different steps, in one call.

What differs from step to step (`dt`, the modulation) the denoiser takes for each row, so rows of one call may
be at any step of any schedule. A loop whose graphs are `Waiting` queues its step and nothing runs; `Together`
then runs what several of them have queued, the denoiser for all at once, and glue for each by itself.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.device import DeviceBuffer, Launch
from flux_trt.runtime.backends.protocols import Backend, Buffer, Graphs, Runnable
from flux_trt.runtime.bundle.manifest import GLUE, Stage
from flux_trt.runtime.errors import BackendError, FluxTrtError, GpuMemoryError

KEPT = 8  # stacks: their buffers, and on a GPU their recordings
TABLES = ("cos", "sin")
"""What the denoiser takes for all rows, and what is the same wherever the grids and the text's length are."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run that waits."""

    name: str
    """Of a stage or of glue."""
    inputs: Mapping[str, Any]
    into: Mapping[str, Buffer]

    @property
    def rows(self) -> int:
        """Of the batch."""
        return int(self.inputs["latents"].shape[0])


class Waiting:
    """Graphs that do not run: what they are asked for is noted in order."""

    def __init__(self) -> None:
        self.runs: deque[Run] = deque()

    def __getitem__(self, name: str) -> _Noting:
        return _Noting(self.runs, name)


@dataclass(frozen=True)
class _Noting:
    runs: deque[Run]
    name: str

    def run(
        self, inputs: Mapping[str, Buffer | npt.NDArray[Any]], into: Mapping[str, Buffer] | None = None
    ) -> dict[str, Buffer]:
        """Note it."""
        if into is None:
            raise ValueError("a run that waits must say where to write")
        self.runs.append(Run(self.name, inputs, into))
        return dict(into)


class Together:
    """The denoiser, for the rows of several loops at once."""

    def __init__(
        self, backend: Backend, stage: Callable[[str], Stage], graphs: Graphs, record: bool = True
    ) -> None:
        """Make no buffers yet.

        Args:
            backend: where the graphs are.
            stage: the contract of each denoiser: one with branches for LoRAs may stand beside the plain one.
            graphs: the denoiser and the glue.
            record: on a GPU, launch a stack's run as one CUDA graph from its second run on; the recording is
                of one step, so that it serves any number of steps.
        """
        self._backend, self._stage, self._graphs = backend, stage, graphs
        self._record = record and backend.gpu is not None
        self._stacks: OrderedDict[Hashable, _Stack] = OrderedDict()

    def run(
        self, loops: Mapping[Hashable, Waiting], places: Mapping[Hashable, Hashable]
    ) -> dict[Hashable, FluxTrtError]:
        """Run all that the loops have queued; what goes wrong with one does not touch the others.

        Args:
            loops: by any name.
            places: for each, what decides the tables `cos` and `sin`; see `Loop.place`.

        Returns:
            What went wrong, by the loops' names; what such a loop has queued is dropped.
        """
        faults: dict[Hashable, FluxTrtError] = {}
        while True:
            groups: dict[Hashable, list[tuple[Hashable, Run]]] = {}
            for name, waiting in loops.items():
                try:
                    while waiting.runs and waiting.runs[0].name in GLUE:
                        self._single(waiting.runs.popleft())
                except FluxTrtError as fault:
                    faults[name] = fault
                    waiting.runs.clear()
                if waiting.runs:
                    run = waiting.runs.popleft()
                    groups.setdefault(self._alike(run, places[name]), []).append((name, run))
            if not groups:
                return faults
            for alike, group in groups.items():
                failed = self._share(alike, group)
                faults |= failed
                for name in failed:
                    loops[name].runs.clear()

    def close(self) -> None:
        """Free the buffers and recordings."""
        while self._stacks:
            self._stacks.popitem()[1].close()

    def _alike(self, run: Run, place: Hashable) -> Hashable:
        """What is the same for all runs that can be one."""
        parts: list[Hashable] = [run.name, place]
        batched = _batched(self._stage(run.name))
        for name, value in sorted(run.inputs.items()):
            shared = name not in TABLES and not batched[name]
            parts.append((name, value.shape[1:], id(value) if shared else None))
        return tuple(parts)

    def _share(self, alike: Hashable, group: Sequence[tuple[Hashable, Run]]) -> dict[Hashable, FluxTrtError]:
        try:
            self._stacked(alike, [run for _, run in group])
            return {}
        except FluxTrtError as fault:
            if isinstance(fault, GpuMemoryError):
                self.close()
            if len(group) == 1:
                return {group[0][0]: fault}
        # Nothing was handed out, so each can be run again, alone.
        found: dict[Hashable, FluxTrtError] = {}
        for each in group:
            found |= self._share(alike, [each])
        return found

    def _single(self, run: Run) -> None:
        self._graphs[run.name].run(run.inputs, run.into)

    def _stacked(self, alike: Hashable, runs: Sequence[Run]) -> None:
        if len(runs) == 1 and not self._record:
            self._single(runs[0])
            return
        rows = sum(each.rows for each in runs)
        stack = self._stacks.pop((alike, rows), None)
        if stack is None:
            while len(self._stacks) >= KEPT:
                self._stacks.popitem(last=False)[1].close()
            stack = _Stack(self._backend, self._stage(runs[0].name), self._record)
        self._stacks[alike, rows] = stack
        stack.run(self._graphs[runs[0].name], runs, rows)


class _Stack:
    """Buffers in which the rows of several runs stand one under the other."""

    def __init__(self, backend: Backend, stage: Stage, record: bool) -> None:
        self._backend, self._batched, self._recordable = backend, _batched(stage), record
        self._types = {each.name: np.dtype(each.dtype) for each in (*stage.inputs, *stage.outputs)}
        self._held: dict[str, Buffer] = {}
        self._launch: Launch | None = None
        self._ran_at: tuple[object, ...] = ()

    def run(self, graph: Runnable, runs: Sequence[Run], rows: int) -> None:
        first, types = runs[0], self._types
        inputs = {name: self._table(name, first) for name in TABLES if name in first.inputs}
        for name, value in first.inputs.items():
            if self._batched[name]:
                inputs[name] = self._buffer(name, (rows, *value.shape[1:]), types[name])
                given = [each.inputs[name][row] for each in runs for row in range(each.rows)]
                for row, values in enumerate(given):
                    inputs[name][row].fill(values)
            elif name not in TABLES:
                inputs[name] = value
        asked = {name: buffer for each in runs for name, buffer in each.into.items()}
        into = {
            name: self._buffer(f"to {name}", (rows, *buffer.shape[1:]), types[name])
            for name, buffer in sorted(asked.items())
        }
        self._queue(graph, inputs, into)
        for name, buffer in into.items():
            start = 0
            for each in runs:
                for row in range(each.rows):
                    if name in each.into:
                        each.into[name][row].fill(buffer[start + row])
                start += each.rows

    def close(self) -> None:
        if self._launch is not None:
            self._launch.close()
            self._launch = None

    def _queue(self, graph: Runnable, inputs: Values, into: Mapping[str, Buffer]) -> None:
        """Run; on a GPU the second time is recorded, and from then on it is one launch."""
        gpu = self._backend.gpu

        def where() -> tuple[object, ...]:
            buffers = (each for each in inputs.values() if isinstance(each, DeviceBuffer))
            return (gpu.epoch if gpu else 0, *into, *((each.pointer, each.shape) for each in buffers))

        here = where()
        if self._launch is not None and here != self._ran_at:
            self.close()
        if gpu and self._recordable and self._launch is None and here == self._ran_at:

            def work() -> None:
                graph.run(inputs, into)

            try:
                self._launch = gpu.record(work)
            except GpuMemoryError:
                raise
            except BackendError:
                self._recordable = False
        if self._launch is not None:
            self._launch()
        else:
            graph.run(inputs, into)
        self._ran_at = where()  # a first run may make what later ones find

    def _table(self, name: str, run: Run) -> Buffer:
        """One that is the same for all runs of this stack: copied once, so that it stays where it is."""
        fresh = name not in self._held
        buffer = self._buffer(name, run.inputs[name].shape, self._types[name])
        if fresh:
            buffer.fill(run.inputs[name])
        return buffer

    def _buffer(self, name: str, shape: tuple[int, ...], kind: Any) -> Buffer:
        if name not in self._held:
            gpu = self._backend.gpu
            self._held[name] = gpu.empty(shape, kind) if gpu else self._backend.upload(np.zeros(shape, kind))
        return self._held[name]


def shares(stage: Stage) -> bool:
    """Whether rows at different steps fit into one run: there is a row of all that differs between them."""
    return all(batched or name in TABLES for name, batched in _batched(stage).items())


def _batched(stage: Stage) -> dict[str, bool]:
    """Whether each input has a row for each row of the latents."""
    return {each.name: each.dims[:1] == ["batch"] for each in stage.inputs}
