"""The graphs of a bundle that are loaded, as the memory mode wants it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from flux_trt.runtime.backends.memory import MemoryMode, Needs, picture_bytes
from flux_trt.runtime.backends.protocols import Backend, Graph
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import GLUE, GlueName
from flux_trt.runtime.bundle.record import StageName
from flux_trt.runtime.errors import BackendError


class Loaded:
    """Graphs by name: all stages at once, or in sequential mode only the one that was asked for last.

    Those that take turns in every step stay together even then.

    What is not among the first names is loaded when it is first asked for, once, whichever threads ask. Glue
    is small and stays.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        memory: MemoryMode,
        names: Sequence[StageName],
        together: Sequence[StageName] = (),
    ) -> None:
        """Check the stages `names`, then load them, if they are to be there at once.

        In sequential mode those of `together` may be there at once.

        Raises:
            BackendError: a stage that this machine cannot run, or that does not fit.
            BundleError: a partial bundle, or a graph that is not what the manifest says.
        """
        self._bundle, self._backend, self._memory = bundle, backend, memory
        self._together = frozenset(together)
        self._graphs: dict[StageName, Graph] = {}
        self._glue: dict[GlueName, Graph] = {}
        self._closed = False
        self._lock = threading.RLock()
        for name in names:
            backend.refuse(name, bundle.stage(name))
        try:
            for name in names if memory != "sequential" else ():
                self._load(name)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Graph:
        """The graph.

        Raises:
            BackendError: it cannot be loaded, or all is closed.
            BundleError: the bundle is without it.
        """
        with self._lock:
            if self._closed:
                raise BackendError(f"the stage {name} is closed; load the pipeline again")
            if name in GLUE:
                return self._glue_graph(name)
            if name not in self._graphs:
                if self._memory == "sequential" and not self._together >= {name, *self._graphs}:
                    self._unload()
                self._load(name)
            return self._graphs[name]

    def close(self) -> None:
        """Free all graphs; closing twice is harmless."""
        with self._lock:
            self._closed = True
            self._unload()
            while self._glue:
                self._glue.popitem()[1].close()

    def _load(self, name: StageName) -> None:
        stage = self._bundle.stage(name)
        self._backend.refuse(name, stage)
        self._graphs[name] = self._backend.load(self._bundle.root / stage.graph, name, stage)

    def _glue_graph(self, name: GlueName) -> Graph:
        if name not in self._glue:
            stage = self._bundle.glue(name)
            self._glue[name] = self._backend.load(self._bundle.root / stage.graph, name, stage)
        return self._glue[name]

    def _unload(self) -> None:
        while self._graphs:
            self._graphs.popitem()[1].close()


def needs(
    bundle: Bundle,
    backend: Backend,
    memory: MemoryMode,
    names: Sequence[StageName],
    dims: Mapping[str, int] | None = None,
) -> Needs:
    """What the stages take of a GPU's memory, and a batch of pictures with these dims.

    Raises:
        BundleError: a partial bundle.
        BackendError: a stage without an engine.
    """
    stages = {name: bundle.stage(name) for name in names}
    weights = {
        str(name): backend.weight_bytes(bundle.root / stage.graph, name, stage)
        for name, stage in stages.items()
    }
    return Needs(memory, weights, picture_bytes(stages.values(), dims) if dims else 0)
