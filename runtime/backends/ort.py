"""The onnxruntime backend: CPU anywhere, CUDA where onnxruntime-gpu and a GPU are.

Everything is bound by pointer (IOBinding), on both devices: arrays are not copied on the CPU, and on a GPU
values stay there from the conditioner to the decoder. On a GPU it runs on the stream and the memory of
`device.Gpu`, and no run waits for the one before.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends import protocols
from flux_trt.runtime.backends.device import DeviceBuffer, Gpu
from flux_trt.runtime.bundle.manifest import Stage
from flux_trt.runtime.errors import BackendError, GpuMemoryError
from flux_trt.runtime.minimums import misfit

try:
    import onnxruntime as ort
except ImportError:
    raise BackendError(
        "onnxruntime is not installed; install flux_trt with its extra: flux_trt[cpu], or flux_trt[gpu]"
    ) from None
if _wrong := misfit("onnxruntime", "onnxruntime-gpu"):
    raise BackendError(_wrong)

PLAIN_QDQ = {"session.disable_quant_qdq": "1"}
"""Of fp8: Q/DQ pairs are carried out as they stand, and constant ones once, at loading.

Left on, onnxruntime before 1.32 fuses pairs of E4M3 on the CPU into its kernels for 8-bit integers and then
cannot load the graph; 1.32 dequantises every weight anew in every run. Its fusions are for the CPU provider
alone, so a GPU gains nothing, and would hold the weights in the type around fp8, twice as large.
"""
WEIGHTS_ALONE = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Of w8a16 and w4a16: by itself onnxruntime rounds what such weights are multiplied with to 8 bits, too."""
QDQ = {"fp8": PLAIN_QDQ, "w8a16": WEIGHTS_ALONE, "w4a16": WEIGHTS_ALONE}
"""How a CPU session treats the Q/DQ of a precision."""
_ERRORS_ONLY = 3
_NUMPY = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class OrtBuffer:
    """Part of an OrtValue in the host's memory: `shape` elements from element `start` on."""

    owner: ort.OrtValue
    shape: tuple[int, ...]
    start: int = 0

    on_host = True

    @property
    def dtype(self) -> np.dtype[Any]:
        """As NumPy names it."""
        return np.dtype(_NUMPY[self.owner.data_type()])

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return int(self.owner.data_ptr()) + self.start * self.dtype.itemsize

    def __getitem__(self, row: int) -> OrtBuffer:
        if not 0 <= row < self.shape[0]:
            raise IndexError(row)
        rest = self.shape[1:]
        return OrtBuffer(self.owner, rest, self.start + row * math.prod(rest))

    def head(self, rows: int) -> OrtBuffer:
        """The first `rows` rows of the first dim."""
        if not 0 < rows <= self.shape[0]:
            raise IndexError(rows)
        return OrtBuffer(self.owner, (rows, *self.shape[1:]), self.start)

    def reshape(self, *shape: int) -> OrtBuffer:
        """The same memory in another shape."""
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"{self.shape} cannot be seen as {shape}")
        return OrtBuffer(self.owner, shape, self.start)

    def numpy(self) -> npt.NDArray[Any]:
        """The values on the host."""
        flat = self.owner.numpy().reshape(-1)
        return flat[self.start : self.start + math.prod(self.shape)].reshape(self.shape)

    def fill(self, other: OrtBuffer) -> None:
        """Copy another's values here."""
        ctypes.memmove(self.pointer, other.pointer, math.prod(self.shape) * self.dtype.itemsize)


class OrtGraph:
    """A loaded session with its bindings."""

    def __init__(self, session: ort.InferenceSession, name: str, backend: OnnxRuntime) -> None:
        self._session: ort.InferenceSession | None = session
        self._name = name
        self._backend = backend
        self._binding = session.io_binding()
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._inputs = [tensor.name for tensor in session.get_inputs()]
        self._outputs = [output.name for output in session.get_outputs()]
        self._options = backend.run_options()
        # A session may run on many threads; a binding is one caller's from its first input to its outputs.
        self._lock = backend.gpu.lock if backend.gpu else threading.RLock()

    def run(
        self,
        inputs: Mapping[str, protocols.Buffer | npt.NDArray[Any]],
        into: Mapping[str, protocols.Buffer] | None = None,
    ) -> dict[str, protocols.Buffer]:
        """Run once; see `protocols.Graph.run`."""
        with self._lock:
            return self._run(inputs, into)

    def _run(
        self,
        inputs: Mapping[str, protocols.Buffer | npt.NDArray[Any]],
        into: Mapping[str, protocols.Buffer] | None,
    ) -> dict[str, protocols.Buffer]:
        if self._session is None:
            raise BackendError(f"the stage {self._name} is closed; load the pipeline again")
        protocols.expect_all(self._name, self._inputs, inputs)
        held = {name: self._hold(value) for name, value in inputs.items()}
        try:
            for name, buffer in held.items():
                self._bind_input(name, buffer)
            wanted = self._bind_outputs(into)
            self._session.run_with_iobinding(self._binding, self._options)
            made = self._binding.get_outputs()
        except Exception as fault:  # onnxruntime's errors share no base class
            raise _fault(f"the stage {self._name} failed", fault) from fault
        if into is not None:
            return dict(into)
        return {name: self._backend.buffer(value) for name, value in zip(wanted, made, strict=True)}

    def close(self) -> None:
        """Let the session and its weights go, once the run under way is done."""
        with self._lock:
            if self._session is not None and (gpu := self._backend.gpu):
                gpu.synchronize()
                gpu.epoch += 1
            self._session = None
            self._binding = None
            self._bound.clear()

    def _hold(self, value: protocols.Buffer | npt.NDArray[Any]) -> OrtBuffer | DeviceBuffer:
        if isinstance(value, (OrtBuffer, DeviceBuffer)):
            return value
        return self._backend.upload(np.asarray(value))

    def _bind_input(self, name: str, buffer: OrtBuffer | DeviceBuffer) -> None:
        key = buffer.pointer, buffer.shape
        if self._bound.get(name) != key:
            self._binding.bind_input(
                name, self._backend.device, 0, buffer.dtype.type, list(buffer.shape), buffer.pointer
            )
            self._bound[name] = key

    def _bind_outputs(self, into: Mapping[str, protocols.Buffer] | None) -> list[str]:
        self._binding.clear_binding_outputs()
        if into is None:
            for name in self._outputs:
                self._binding.bind_output(name, self._backend.device, 0)
            return self._outputs
        for name, target in into.items():
            buffer = self._hold(target)
            self._binding.bind_output(
                name, self._backend.device, 0, buffer.dtype.type, list(buffer.shape), buffer.pointer
            )
        return list(into)


class OnnxRuntime:
    """onnxruntime on one device."""

    name = "onnxruntime"

    def __init__(
        self,
        device: protocols.Device = "auto",
        library: Any = ort,
        driver: Any = None,
        threads: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Choose the device: "auto" is the GPU where there is one.

        Args:
            device: "auto", "cpu" or "cuda".
            library: `onnxruntime`, or what offers the same.
            driver: see `Gpu`.
            threads: that a CPU session computes on; None: as many as the machine has cores.
            settings: entries of a session's configuration, which take the place of ours.

        Raises:
            BackendError: "cuda" without a GPU or without onnxruntime-gpu.
        """
        library.set_default_logger_severity(_ERRORS_ONLY)
        library.disable_telemetry_events()
        self._library = library
        self._threads, self._settings = threads, dict(settings or {})
        self.gpu: Gpu | None = None
        try:
            self.gpu = None if device == "cpu" else _gpu(library, driver)
        except BackendError as fault:
            if device == "cuda":
                raise BackendError(f"{fault}; use --device cpu") from None
        self.device = "cuda" if self.gpu else "cpu"

    def refuse(self, name: str, stage: Stage) -> None:
        """Refuse bf16 on the CPU, and nvfp4: onnxruntime would fail late and unclearly."""
        protocols.refuse_nvfp4(name, stage)
        if self.device == "cpu" and "bf16" in (stage.precision, stage.base):
            way_out = "--precision fp32 or fp16" if stage.base is None else "--base fp32 or fp16"
            raise BackendError(
                f"the stage {name} is bf16, for which onnxruntime has no CPU kernels; "
                f"use --backend openvino or a CUDA GPU, or build with {way_out}"
            )

    def weight_bytes(self, path: Path, name: str, stage: Stage) -> int:
        """Bytes of the graph's file and of the files beside it that hold its weights."""
        return protocols.file_bytes(path, stage)

    def load(self, path: Path, name: str, stage: Stage) -> OrtGraph:
        """Open a session; onnxruntime maps the weights from the files beside the graph."""
        self.refuse(name, stage)
        options = self._library.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        # Threads spin while a stage runs, which saves waking them for every operator, and no longer: each
        # session has threads of its own, and idle ones that spin take cores from the next stage.
        entries = {"session.force_spinning_stop": "1"}
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.gpu is None:
            entries |= QDQ.get(stage.precision, {})
            options.intra_op_num_threads = self._threads or 0
        else:
            providers.insert(0, ("CUDAExecutionProvider", {"user_compute_stream": str(self.gpu.stream)}))
        for entry, value in (entries | self._settings).items():
            options.add_session_config_entry(entry, value)
        try:
            session = self._library.InferenceSession(path, options, providers)
            inputs, outputs = _found(session.get_inputs()), _found(session.get_outputs())
        except Exception as fault:  # onnxruntime's errors share no base class, and a name may be no UTF-8
            raise _fault(f"onnxruntime cannot load {path}", fault) from fault
        protocols.agree(path, "input", stage.inputs, inputs)
        protocols.agree(path, "output", stage.outputs, outputs)
        return OrtGraph(session, name, self)

    def upload(self, array: npt.NDArray[Any]) -> OrtBuffer | DeviceBuffer:
        """Put an array on the device; on the CPU it stays where it is."""
        if self.gpu:
            return self.gpu.upload(np.ascontiguousarray(array))
        return OrtBuffer(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cpu", 0), array.shape)

    def buffer(self, value: ort.OrtValue) -> OrtBuffer | DeviceBuffer:
        """A value that onnxruntime has allocated, as a buffer."""
        shape = tuple(value.shape())
        if self.gpu is None:
            return OrtBuffer(value, shape)
        return DeviceBuffer(self.gpu, value.data_ptr(), shape, np.dtype(_NUMPY[value.data_type()]), value)

    def run_options(self) -> Any:
        """On a GPU a run is only queued: `Gpu.synchronize` waits, not onnxruntime."""
        if self.gpu is None:
            return None
        options = self._library.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options


def _gpu(library: Any, driver: Any) -> Gpu:
    """The GPU, where this onnxruntime can use it.

    Raises:
        BackendError: no CUDA in onnxruntime, or no GPU.
    """
    if "CUDAExecutionProvider" not in library.get_available_providers():
        raise BackendError(
            "this onnxruntime has no CUDA (onnxruntime-gpu, from flux_trt[gpu], must take its place)"
        )
    library.preload_dlls()
    try:
        return Gpu(driver)
    except BackendError as fault:
        raise BackendError(f"CUDA does not work ({fault})") from None


def _found(ports: list[Any]) -> dict[str, protocols.Port]:
    return {port.name: (_NUMPY.get(port.type), port.shape) for port in ports}


def _fault(what: str, fault: Exception) -> BackendError:
    text = " ".join(str(fault).split())
    if "alloc" in text.lower():
        return GpuMemoryError(f"{what}: out of memory ({text}); use a smaller --size or --batch")
    return BackendError(f"{what}: {text}")
