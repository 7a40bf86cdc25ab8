"""One GPU: its memory, its stream, and recordings of work on it. All that touches the CUDA runtime is here.

Work is queued on one stream and runs in order; the host waits only in `synchronize` and `read`. Both GPU
backends use it: TensorRT's contexts and onnxruntime's CUDA provider run on its stream, on its addresses.
All threads share the stream; `Gpu.lock` is held for what must not be torn apart, a recording above all, into
which a neighbour's work would go.
Source: CUDA Runtime API, "API synchronization behavior" and "Stream capture".
"""

from __future__ import annotations

import contextlib
import importlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.errors import BackendError, GpuMemoryError

ALIGNMENT = 256  # bytes; of every address that TensorRT is given, and of every allocation


class Memory:
    """An allocation on a GPU, 256-byte aligned; freed when nothing refers to it any more."""

    def __init__(self, gpu: Gpu, nbytes: int) -> None:
        """Allocate.

        Raises:
            GpuMemoryError: the GPU has not that much.
        """
        self.gpu, self.nbytes = gpu, nbytes
        self.address = gpu.allocate(nbytes)

    def __del__(self) -> None:
        if hasattr(self, "address"):  # not where the allocation has failed
            self.gpu.free(self.address)


@dataclass(frozen=True)
class DeviceBuffer:
    """A dense array on a GPU."""

    gpu: Gpu
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object
    """What keeps the memory alive."""

    on_host = False

    @property
    def nbytes(self) -> int:
        """Of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, row: int) -> DeviceBuffer:
        if not 0 <= row < self.shape[0]:
            raise IndexError(row)
        rest = self.shape[1:]
        start = self.pointer + row * math.prod(rest) * self.dtype.itemsize
        return DeviceBuffer(self.gpu, start, rest, self.dtype, self.owner)

    def head(self, rows: int) -> DeviceBuffer:
        """The first `rows` rows of the first dim."""
        if not 0 < rows <= self.shape[0]:
            raise IndexError(rows)
        return DeviceBuffer(self.gpu, self.pointer, (rows, *self.shape[1:]), self.dtype, self.owner)

    def reshape(self, *shape: int) -> DeviceBuffer:
        """The same memory in another shape."""
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"{self.shape} cannot be seen as {shape}")
        return DeviceBuffer(self.gpu, self.pointer, shape, self.dtype, self.owner)

    def numpy(self) -> npt.NDArray[Any]:
        """A copy on the host, once all work queued so far is done."""
        return self.gpu.read(self)

    def fill(self, other: DeviceBuffer) -> None:
        """Copy another's values here, after the work that is queued."""
        self.gpu._copy(self.pointer, other.pointer, self.nbytes, "cudaMemcpyDeviceToDevice")


class Launch:
    """Work that was recorded once and is queued again as a whole."""

    def __init__(self, gpu: Gpu, executable: Any) -> None:
        self._gpu, self._executable = gpu, executable

    def __call__(self) -> None:
        """Queue the work."""
        with self._gpu.lock:
            self._gpu.call("cudaGraphLaunch", self._executable, self._gpu.stream)

    def close(self) -> None:
        """Free the recording; closing twice is harmless."""
        with self._gpu.lock:
            if self._executable is not None:
                self._gpu.synchronize()
                self._gpu.call("cudaGraphExecDestroy", self._executable)
                self._executable = None


class Gpu:
    """The present GPU with one stream."""

    def __init__(self, driver: Any = None, ordinal: int = 0) -> None:
        """Find the GPU and create the stream.

        Args:
            driver: `cuda.bindings.runtime`, or what offers the same functions.
            ordinal: which GPU, as CUDA counts the visible ones.

        Raises:
            BackendError: no cuda-python, no GPU, or a driver that is too old.
        """
        self.driver = driver or _cuda_bindings()
        self.epoch = 0
        """Counts up when memory that recordings may use is moved or freed."""
        self.way_out = "use a smaller --size or --batch"
        """What an error says to do when memory runs out."""
        self.lock = threading.RLock()
        self._recording = False
        self._dead: list[int] = []
        self._stream: Any = None
        self.call("cudaSetDevice", ordinal)
        attribute = self.driver.cudaDeviceAttr
        major = self.call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, ordinal)
        minor = self.call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, ordinal)
        self.capability = f"{major}.{minor}"
        name = self.call("cudaGetDeviceProperties", ordinal).name
        self.name = name.decode().rstrip("\0") if isinstance(name, bytes) else str(name)
        # The default stream would wait for every other stream, and cannot be captured.
        self._stream = self.call("cudaStreamCreateWithFlags", self.driver.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    @property
    def recording(self) -> bool:
        """Whether what is queued now goes into a recording."""
        return self._recording

    def __str__(self) -> str:
        return f"{self.name} (sm {self.capability})"

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; its result, or a tuple of them.

        Raises:
            GpuMemoryError: it ran out of device memory.
            BackendError: any other error code.
        """
        code, *results = getattr(self.driver, function)(*arguments)
        if code != self.driver.cudaError_t.cudaSuccess:
            self.driver.cudaGetLastError()  # else the next user of the runtime would find this error
            text = f"{function} failed on {getattr(self, 'name', 'the GPU')}: {code.name}"
            if code == self.driver.cudaError_t.cudaErrorMemoryAllocation:
                raise GpuMemoryError(f"{text}; {self.way_out}")
            raise BackendError(f"{text}; check the GPU with nvidia-smi")
        return results[0] if len(results) == 1 else tuple(results)

    def free_bytes(self) -> int:
        """Of device memory that could be allocated now."""
        return int(self.call("cudaMemGetInfo")[0])

    def allocate(self, nbytes: int) -> int:
        """The address of new memory; `Memory` is the way to own it.

        Raises:
            GpuMemoryError: with what was asked and what is free.
        """
        self._bury()
        try:
            with self.lock:
                return int(self.call("cudaMalloc", max(nbytes, 1)))
        except GpuMemoryError:
            raise GpuMemoryError(
                f"{self} is out of memory: {nbytes / 1e9:.2f} GB asked, "
                f"{self.free_bytes() / 1e9:.2f} GB free; {self.way_out}"
            ) from None

    def free(self, address: int) -> None:
        """Free memory once the work that is queued is done; while recording, when the recording has ended."""
        self._dead.append(address)
        # A garbage collector calls this wherever it likes, also where waiting would never end.
        if self.lock.acquire(blocking=False):
            try:
                if not self._recording:
                    self._bury()
            finally:
                self.lock.release()

    def _bury(self) -> None:
        with self.lock:
            while self._dead:
                self.driver.cudaFree(self._dead.pop())  # waits for the GPU; at exit it may say no: no harm

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceBuffer:
        """A new buffer; its values are whatever was there."""
        kind = np.dtype(dtype)
        memory = Memory(self, max(math.prod(shape) * kind.itemsize, 1))  # what is empty has an address, too
        return DeviceBuffer(self, memory.address, tuple(shape), kind, memory)

    def upload(self, array: npt.NDArray[Any]) -> DeviceBuffer:
        """A new buffer with the array's values."""
        buffer = self.empty(array.shape, array.dtype)
        self.write(buffer, array)
        return buffer

    def write(self, buffer: DeviceBuffer, array: npt.NDArray[Any]) -> None:
        """Put the array's values into the buffer, after the work that is queued.

        Raises:
            ValueError: another shape or dtype.
        """
        if (array.shape, array.dtype) != (buffer.shape, buffer.dtype):
            raise ValueError(f"{array.dtype} {array.shape} put into {buffer.dtype} {buffer.shape}")
        values = np.ascontiguousarray(array)
        # From pageable memory the call returns when the values have been read: the array may go.
        self._copy(buffer.pointer, values.ctypes.data, buffer.nbytes, "cudaMemcpyHostToDevice")

    def read(self, buffer: DeviceBuffer) -> npt.NDArray[Any]:
        """The buffer's values, once all work queued so far is done."""
        values = np.empty(buffer.shape, buffer.dtype)
        with self.lock:
            self._copy(values.ctypes.data, buffer.pointer, buffer.nbytes, "cudaMemcpyDeviceToHost")
            self.synchronize()
        return values

    def rows(self, buffer: DeviceBuffer, kept: list[DeviceBuffer] | None = None) -> list[DeviceBuffer]:
        """The rows of the first dim, each at an address that TensorRT takes.

        Views where the rows are aligned as they are; else they are copied, after the work that is queued,
        into memory with gaps.

        Args:
            buffer: [rows, ...].
            kept: what this gave for a buffer of the same shape; the copies go there again.
        """
        count, width = buffer.shape[0], buffer.nbytes // buffer.shape[0]
        if width % ALIGNMENT == 0 and buffer.pointer % ALIGNMENT == 0:
            return [buffer[row] for row in range(count)]
        pitch = -(-width // ALIGNMENT) * ALIGNMENT
        if kept is None:
            apart = self.empty((count, pitch), np.uint8)
            kept = [
                DeviceBuffer(self, apart.pointer + row * pitch, buffer.shape[1:], buffer.dtype, apart.owner)
                for row in range(count)
            ]
        way = self.driver.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call(
            "cudaMemcpy2DAsync", kept[0].pointer, pitch, buffer.pointer, width, width, count, way, self.stream
        )
        return kept

    def _copy(self, to: int, start: int, nbytes: int, kind: str) -> None:
        way = getattr(self.driver.cudaMemcpyKind, kind)
        with self.lock:
            self.call("cudaMemcpyAsync", to, start, nbytes, way, self.stream)

    def synchronize(self) -> None:
        """Wait until all queued work is done; an error of that work is raised here."""
        self.call("cudaStreamSynchronize", self.stream)

    def record(self, work: Callable[[], None]) -> Launch:
        """Record the work that `work` queues, instead of running it, as one CUDA graph.

        Raises:
            BackendError: the work allocates, waits, or cannot be recorded for another reason. The stream
                is as it was before.
        """
        with self.lock:
            return self._record(work)

    def _record(self, work: Callable[[], None]) -> Launch:
        # Thread-local: TensorRT-RTX compiles kernels on threads of its own, which may allocate.
        mode = self.driver.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        self._recording = True
        try:
            work()
        except BaseException:
            self._end_capture(whole=False)
            raise
        graph = self._end_capture(whole=True)
        try:
            return Launch(self, self.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.call("cudaGraphDestroy", graph)

    def _end_capture(self, whole: bool) -> Any:
        self._recording = False
        if whole:
            return self.call("cudaStreamEndCapture", self.stream)
        code, graph = self.driver.cudaStreamEndCapture(self.stream)
        if code == self.driver.cudaError_t.cudaSuccess:
            self.driver.cudaGraphDestroy(graph)
        self.driver.cudaGetLastError()
        return None

    def close(self) -> None:
        """Free the stream; closing twice is harmless. Buffers free themselves."""
        if self._stream is not None:
            self.synchronize()
            self.call("cudaStreamDestroy", self._stream)
            self._stream = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at exit CUDA may be gone, with the stream
            self.close()


def _cuda_bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as fault:
        raise BackendError(
            f"cuda-python is not installed ({fault}); install flux_trt with flux_trt[tensorrt-rtx], "
            f"flux_trt[tensorrt] or flux_trt[gpu]"
        ) from None
