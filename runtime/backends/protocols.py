"""What a backend must offer: load a graph, bind buffers, run, free.

A backend is a small module that implements these three protocols. onnxruntime is the embedded one. A stage's
graph and a glue graph (true CFG's combination) are loaded and run in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy.typing as npt

from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.bundle.record import Tensor
from flux_trt.runtime.errors import BackendError, BundleError

if TYPE_CHECKING:
    from flux_trt.runtime.backends.device import Gpu

Device = Literal["auto", "cpu", "cuda"]
Compute = Literal["auto", "fp32", "bf16"]
"""What a CPU computes the loop's stage in; auto: what the bundle was built in, or what is faster here."""
Port = tuple[str | None, list[int | str | None]]
"""An input or output as a library tells of it: NumPy's name of its type, and its dims."""


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

    def head(self, rows: int) -> Buffer:
        """The first `rows` rows of the first dim: the same memory, not a copy."""

    def reshape(self, *shape: int) -> Buffer:
        """The same memory in another shape."""

    def numpy(self) -> npt.NDArray[Any]:
        """The values on the host: a view or a copy."""

    def fill(self, other: Any) -> None:
        """Take the values of another of this backend's buffers, as large and of the same type; on a GPU the
        copy is queued."""


class Runnable(Protocol):
    """What can be run, now or later."""

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


class Graphs(Protocol):
    """What can be run, by the names of stages and glue."""

    def __getitem__(self, name: str) -> Runnable:
        """One of them."""


class Graph(Runnable, Protocol):
    """A stage that is ready to run; calls from several threads wait for each other."""

    def close(self) -> None:
        """Free the graph and its weights; closing twice is harmless."""


class Backend(Protocol):
    """One way to run graphs on one device."""

    @property
    def name(self) -> str:
        """What it is asked for by, such as "onnxruntime"."""

    @property
    def device(self) -> str:
        """Where graphs run: "cpu" or "cuda"."""

    @property
    def gpu(self) -> Gpu | None:
        """The GPU on whose stream graphs run and in whose memory buffers are; None on a CPU."""

    def refuse(self, name: str, stage: Stage) -> None:
        """Check, without reading the graph, that this machine can run `stage`.

        Raises:
            BackendError: it cannot, and what to do.
        """

    def weight_bytes(self, path: Path, name: str, stage: Stage) -> int:
        """How much of the device's memory the weights of the graph at `path` take, at most."""

    def load(self, path: Path, name: str, stage: Stage) -> Graph:
        """Load the graph at `path`, whose weights lie beside it.

        Raises:
            BackendError: a graph that cannot be loaded here.
            BundleError: a graph whose inputs or outputs are not those of `stage`.
        """

    def upload(self, array: npt.NDArray[Any]) -> Buffer:
        """Put an array into the backend's memory; on the CPU the buffer is the array's own memory."""


def expect_all(name: str, takes: Iterable[str], given: Iterable[str]) -> None:
    """Every input and no other: a library would take an input that is left out from an earlier run.

    Raises:
        BackendError: one is missing, or too much.
    """
    takes = list(takes)
    if wrong := sorted(set(takes) ^ set(given)):
        raise BackendError(f"the stage {name} failed: it takes {', '.join(takes)}, not {', '.join(wrong)}")


def file_bytes(path: Path, stage: Stage) -> int:
    """Bytes of the files that hold a stage's weights; other stages may share them."""
    root = path.parents[len(PurePosixPath(stage.graph).parts) - 1]
    return sum((root / each).stat().st_size for each in (stage.graph, *stage.weights))


def agree(path: Path, kind: str, expected: list[Tensor], found: Mapping[str, Port]) -> None:
    """Compare a graph's inputs or outputs with the manifest's: names, types, ranks and fixed dims.

    Raises:
        BundleError: they differ.
    """
    names = {each.name for each in expected}
    if names != set(found):
        raise BundleError(
            f"{path} has the {kind}s {', '.join(sorted(found))} where the manifest says "
            f"{', '.join(sorted(names))}; build the bundle again"
        )
    for tensor in expected:
        dtype, dims = found[tensor.name]
        if dtype != tensor.dtype or len(dims) != len(tensor.dims) or _differ(tensor.dims, dims):
            raise BundleError(
                f"{path}: {kind} {tensor.name} is {dtype} {dims} where the manifest "
                f"says {tensor.dtype} {tensor.dims}; build the bundle again"
            )


def _differ(expected: list[int | str], found: list[int | str | None]) -> bool:
    """A fixed dim of the graph must be that of the manifest; a dim that varies may be anything."""
    return any(isinstance(there, int) and there != dim for dim, there in zip(expected, found, strict=True))


def refuse_nvfp4(name: str, stage: Stage) -> None:
    """Refuse what only TensorRT has an operator for.

    Raises:
        BackendError: naming the stage.
    """
    if stage.precision == "nvfp4":
        raise BackendError(
            f"the stage {name} is nvfp4, for which only TensorRT has operators; use --backend tensorrt-rtx "
            "or tensorrt on a GPU of compute capability 10.0 or newer, or build with --precision fp8 or w4a16"
        )
