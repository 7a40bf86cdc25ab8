"""What stages make for a step before the denoiser takes it, where it is another in each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flux_trt.runtime.backends.memory import shape
from flux_trt.runtime.backends.protocols import Backend, Buffer, Graphs
from flux_trt.runtime.bundle.flow import DENOISER, Flow
from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.sampling.adapted import PLAIN, Adapted


class Before:
    """The stages of each step, with the buffers that they write to."""

    def __init__(
        self, backend: Backend, manifest: Manifest, flow: Flow, graphs: Graphs, known: Mapping[str, int]
    ) -> None:
        """Make the buffers.

        Args:
            backend: where they run.
            manifest: of the bundle.
            flow: of the bundle.
            graphs: the stages.
            known: the dims of what they take and give.

        Raises:
            GpuMemoryError: the buffers do not fit.
        """
        self._graphs, self._stages = graphs, {name: manifest.stages[name] for name in flow.each}
        self._wanted = {each.name for each in manifest.stages[DENOISER].inputs}
        # A stage that is given nothing makes nothing.
        self._idle = {
            name
            for name, stage in self._stages.items()
            if not all(size for each in stage.inputs for size in shape(each, known))
        }
        self._made: dict[str, Buffer] = {}
        for stage in self._stages.values():
            for each in stage.outputs:
                dims = shape(each, known)
                self._made[each.name] = (
                    backend.gpu.empty(dims, each.dtype)
                    if backend.gpu
                    else backend.upload(np.zeros(dims, each.dtype))
                )
        self.begin()

    def begin(self, adapted: Adapted = PLAIN) -> None:
        """What was made is of another picture, or with other LoRAs."""
        self._at: int | None = None
        self._adapted = adapted

    def step(self, index: int, given: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Queue what step `index` needs and has not got; all that the denoiser takes of `given` and of it."""
        found = {**given, **self._made}
        if index != self._at:
            self._at = index
            for name, stage in self._stages.items():
                if name not in self._idle:
                    into = {each.name: self._made[each.name] for each in stage.outputs}
                    taken = {each.name: found[each.name] for each in stage.inputs}
                    graph = self._graphs[self._adapted.stage(name)]
                    graph.run({**taken, **self._adapted.given(name)}, into)
        return {name: value for name, value in found.items() if name in self._wanted}
