"""The CUDA runtime calls that `runtime/backends/device.py` uses, on the host's memory.

Device memory is host memory at real addresses, poisoned when it is allocated and when it is freed. Work is
only queued: it runs when somebody waits, so that a missing wait shows. A capture keeps work for a graph and
refuses what CUDA refuses while capturing. Where CUDA leaves behaviour open this is the stricter.
"""

# ruff: noqa: N802, N815  the names are CUDA's
from __future__ import annotations

import ctypes
import itertools
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from cuda.bindings import runtime as real

POISON = 0xFF  # NaN as float32, -1 as int64, white as a picture
ALIGNMENT = 256
Error = real.cudaError_t
Work = Callable[[], None]


class DeviceError(Exception):
    """Queued work went wrong; every later call reports it."""

    def __init__(self, code: real.cudaError_t, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass
class Stream:
    """A queue, and while capturing the work that is kept instead."""

    queue: list[Work] = field(default_factory=list)
    kept: list[Work] | None = None
    broken: bool = False

    def add(self, work: Work) -> None:
        (self.queue if self.kept is None else self.kept).append(work)


class CudaSimulator:
    """Stands for the module `cuda.bindings.runtime`; one per simulated GPU."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaDeviceAttr = real.cudaDeviceAttr
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking

    def __init__(
        self, memory: int = 1 << 28, capability: tuple[int, int] = (8, 9), name: str = "Simulated GPU"
    ) -> None:
        self.memory, self.capability, self.name = memory, capability, name
        self.calls: Counter[str] = Counter()
        self.copies: list[tuple[str, int]] = []
        """(kind, bytes) of every copy that was done."""
        self.faults: list[str] = []
        self._held: dict[int, tuple[np.ndarray, int]] = {}
        self._streams: dict[int, Stream] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._handles = itertools.count(4096)
        self._sticky: real.cudaError_t | None = None

    @property
    def used(self) -> int:
        return sum(size for _, size in self._held.values())

    def expect(self, address: int, nbytes: int, what: str) -> None:
        """Raise a DeviceError unless the bytes lie in one live allocation."""
        for start, (_, size) in self._held.items():
            if start <= address and address + nbytes <= start + size:
                return
        raise DeviceError(
            Error.cudaErrorIllegalAddress, f"{what}: {nbytes} bytes at {address:#x} are not allocated"
        )

    def stream(self, handle: object) -> Stream:
        return self._streams[int(handle)]  # type: ignore[call-overload]

    def capturing(self) -> Stream | None:
        return next((each for each in self._streams.values() if each.kept is not None), None)

    def forbid(self) -> bool:
        """Whether a capture is under way, which this breaks."""
        if (stream := self.capturing()) is None:
            return False
        stream.broken = True
        return True

    def wait(self) -> None:
        """Do all queued work, in order."""
        for stream in self._streams.values():
            while stream.queue and self._sticky is None:
                try:
                    stream.queue.pop(0)()
                except DeviceError as fault:
                    self._sticky = fault.code
                    self.faults.append(str(fault))

    def _answer(self, name: str, *results: object, failed: real.cudaError_t | None = None) -> tuple:
        self.calls[name] += 1
        code = self._sticky or failed or Error.cudaSuccess
        return code, *(results if code == Error.cudaSuccess else [None] * len(results))

    # The calls of `cuda.bindings.runtime`, with its names, parameters and results.

    def cudaSetDevice(self, device):
        return self._answer("cudaSetDevice", failed=None if device == 0 else Error.cudaErrorInvalidDevice)

    def cudaGetLastError(self):
        return (Error.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attr, device):
        found = {
            real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: self.capability[0],
            real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: self.capability[1],
        }
        return self._answer("cudaDeviceGetAttribute", found[attr])

    def cudaGetDeviceProperties(self, device):
        return self._answer("cudaGetDeviceProperties", types.SimpleNamespace(name=self.name.encode()))

    def cudaMemGetInfo(self):
        return self._answer("cudaMemGetInfo", self.memory - self.used, self.memory)

    def cudaMalloc(self, size):
        if self.forbid():
            return self._answer("cudaMalloc", 0, failed=Error.cudaErrorStreamCaptureUnsupported)
        if self.used + size > self.memory:
            return self._answer("cudaMalloc", 0, failed=Error.cudaErrorMemoryAllocation)
        raw = np.full(size + ALIGNMENT, POISON, np.uint8)
        address = -(-raw.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._held[address] = raw, size
        return self._answer("cudaMalloc", address)

    def cudaFree(self, devPtr):
        if self.forbid():
            return self._answer("cudaFree", failed=Error.cudaErrorStreamCaptureUnsupported)
        self.wait()
        if devPtr not in self._held:
            return self._answer("cudaFree", failed=Error.cudaErrorInvalidValue)
        raw, _ = self._held.pop(devPtr)
        raw[:] = POISON
        return self._answer("cudaFree")

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        return self._copy("cudaMemcpyAsync", dst, count, src, count, count, 1, kind, stream)

    def cudaMemcpy2DAsync(self, dst, dpitch, src, spitch, width, height, kind, stream):
        if width > min(dpitch, spitch):
            return self._answer("cudaMemcpy2DAsync", failed=Error.cudaErrorInvalidPitchValue)
        return self._copy("cudaMemcpy2DAsync", dst, dpitch, src, spitch, width, height, kind, stream)

    def _copy(self, name, dst, dpitch, src, spitch, width, height, kind, stream):
        way = real.cudaMemcpyKind
        if kind != way.cudaMemcpyDeviceToDevice and self.forbid():
            return self._answer(name, failed=Error.cudaErrorStreamCaptureUnsupported)
        # From pageable memory the values are read before the call returns.
        values = ctypes.string_at(src, width * height) if kind == way.cudaMemcpyHostToDevice else None

        def work() -> None:
            for row in range(height):
                to, start = dst + row * dpitch, src + row * spitch
                if kind != way.cudaMemcpyDeviceToHost:
                    self.expect(to, width, name)
                if values is None:
                    self.expect(start, width, name)
                    ctypes.memmove(to, start, width)
                else:
                    ctypes.memmove(to, values[row * width : (row + 1) * width], width)
            self.copies.append((kind.name, width * height))

        self.stream(stream).add(work)
        return self._answer(name)

    def cudaStreamCreateWithFlags(self, flags):
        handle = next(self._handles)
        self._streams[handle] = Stream()
        return self._answer("cudaStreamCreateWithFlags", handle)

    def cudaStreamDestroy(self, stream):
        self.wait()
        del self._streams[int(stream)]
        return self._answer("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream):
        if self.forbid():
            return self._answer("cudaStreamSynchronize", failed=Error.cudaErrorStreamCaptureUnsupported)
        self.wait()
        return self._answer("cudaStreamSynchronize")

    def cudaStreamBeginCapture(self, stream, mode):
        chosen = self.stream(stream)
        if chosen.kept is not None:
            return self._answer("cudaStreamBeginCapture", failed=Error.cudaErrorIllegalState)
        chosen.kept, chosen.broken = [], False
        return self._answer("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream):
        chosen = self.stream(stream)
        kept, chosen.kept = chosen.kept, None
        if kept is None or chosen.broken:
            return self._answer("cudaStreamEndCapture", None, failed=Error.cudaErrorStreamCaptureInvalidated)
        handle = next(self._handles)
        self._graphs[handle] = kept
        return self._answer("cudaStreamEndCapture", handle)

    def cudaGraphInstantiate(self, graph, flags):
        handle = next(self._handles)
        self._graphs[handle] = list(self._graphs[graph])
        return self._answer("cudaGraphInstantiate", handle)

    def cudaGraphLaunch(self, graphExec, stream):
        for work in self._graphs[graphExec]:
            self.stream(stream).add(work)
        return self._answer("cudaGraphLaunch")

    def cudaGraphDestroy(self, graph):
        del self._graphs[graph]
        return self._answer("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graphExec):
        del self._graphs[graphExec]
        return self._answer("cudaGraphExecDestroy")
