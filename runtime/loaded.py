"""The graphs of a bundle that are loaded, as the memory mode wants it."""

from __future__ import annotations

from collections.abc import Sequence

from flux_trt.runtime.backend import Backend, Graph
from flux_trt.runtime.bundle import Bundle
from flux_trt.runtime.errors import BackendError
from flux_trt.runtime.manifest import StageName
from flux_trt.runtime.memory import MemoryMode, Needs, picture_bytes
from flux_trt.runtime.request import Request


class Loaded:
    """Stages by name: all at once, or in sequential mode only the one that was asked for last."""

    def __init__(
        self, bundle: Bundle, backend: Backend, memory: MemoryMode, names: Sequence[StageName]
    ) -> None:
        """Check all stages, then load them, if they are to be there at once.

        Raises:
            BackendError: a stage that this machine cannot run, or that does not fit.
            BundleError: a partial bundle, or a graph that is not what the manifest says.
        """
        self._bundle, self._backend, self._memory = bundle, backend, memory
        self._stages = {name: bundle.stage(name) for name in names}
        self._graphs: dict[StageName, Graph] = {}
        self._closed = False
        for name, stage in self._stages.items():
            backend.refuse(name, stage)
        try:
            for name in names if memory != "sequential" else ():
                self._load(name)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: StageName) -> Graph:
        if self._closed:
            raise BackendError(f"the stage {name} is closed; load the pipeline again")
        if name not in self._graphs:
            self._unload()
            self._load(name)
        return self._graphs[name]

    def close(self) -> None:
        """Free all graphs; closing twice is harmless."""
        self._closed = True
        self._unload()

    def _load(self, name: StageName) -> None:
        stage = self._stages[name]
        self._graphs[name] = self._backend.load(self._bundle.root / stage.graph, name, stage)

    def _unload(self) -> None:
        while self._graphs:
            self._graphs.popitem()[1].close()


def needs(
    bundle: Bundle,
    backend: Backend,
    memory: MemoryMode,
    names: Sequence[StageName],
    request: Request | None = None,
) -> Needs:
    """What the stages, and a batch of the request, take of a GPU's memory.

    Raises:
        BundleError: a partial bundle.
        BackendError: a stage without an engine.
    """
    stages = {name: bundle.stage(name) for name in names}
    weights = {
        str(name): backend.weight_bytes(bundle.root / stage.graph, name, stage)
        for name, stage in stages.items()
    }
    return Needs(memory, weights, picture_bytes(bundle.manifest, request) if request else 0)
