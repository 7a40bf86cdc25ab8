"""What a backend must offer: load a graph, bind buffers, run, free.

A backend is a small module that implements these three protocols. onnxruntime is the embedded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy.typing as npt

from flux_trt.runtime.errors import BackendError
from flux_trt.runtime.manifest import Stage

Device = Literal["auto", "cpu", "cuda"]


class Buffer(Protocol):
    """A dense array in a backend's memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""

    @property
    def on_host(self) -> bool:
        """Whether `numpy` waits for no transfer."""

    def __getitem__(self, row: int) -> Buffer:
        """Row `row` of the first dim: the same memory, not a copy."""

    def reshape(self, *shape: int) -> Buffer:
        """The same memory in another shape."""

    def numpy(self) -> npt.NDArray[Any]:
        """The values on the host: a view or a copy."""


class Graph(Protocol):
    """A stage that is ready to run."""

    def run(
        self, inputs: Mapping[str, Buffer | npt.NDArray[Any]], into: Mapping[str, Buffer] | None = None
    ) -> dict[str, Buffer]:
        """Run once.

        Args:
            inputs: every input of the stage. Buffers that have not changed since the last run are not
                bound again; arrays are uploaded.
            into: where to write. Only these outputs are delivered. None: all, into new buffers.

        Raises:
            BackendError: the run failed, or the graph is closed.
        """

    def close(self) -> None:
        """Free the graph and its weights; closing twice is harmless."""


class Backend(Protocol):
    """One way to run graphs on one device."""

    @property
    def device(self) -> str:
        """Where graphs run: "cpu" or "cuda"."""

    def refuse(self, name: str, stage: Stage) -> None:
        """Check, without reading the graph, that this machine can run `stage`.

        Raises:
            BackendError: it cannot, and what to do.
        """

    def load(self, path: Path, name: str, stage: Stage) -> Graph:
        """Load the graph at `path`, whose weights lie beside it.

        Raises:
            BackendError: a graph that cannot be loaded here.
            BundleError: a graph whose inputs or outputs are not those of `stage`.
        """

    def upload(self, array: npt.NDArray[Any]) -> Buffer:
        """Put an array into the backend's memory; on the CPU the buffer is the array's own memory."""


def connect(name: str, device: Device) -> Backend:
    """The backend of that name.

    Args:
        name: "onnxruntime".
        device: "auto" takes the GPU where there is one that the backend can use.

    Raises:
        BackendError: an unknown backend, or one that is not installed, or without such a device.
    """
    if name == "onnxruntime":
        from flux_trt.runtime.ort import OnnxRuntime

        return OnnxRuntime(device)
    raise BackendError(f"no backend is called {name!r}; there is: onnxruntime")
